"""What BentoML adds around the service."""

import asyncio
import warnings


def test_nothing_is_kept_of_a_request_that_was_answered():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BentoML's own
        from bentoml._internal.server.http.traffic import TimeoutMiddleware

        import service.sorter  # noqa: F401  which takes the place of BentoML's timeout

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def ask():
        sent = []

        async def send(message):
            sent.append(message)

        await TimeoutMiddleware(answer, timeout=3600.0)({"type": "http"}, None, send)
        return sent, list(asyncio.get_running_loop()._scheduled)

    assert asyncio.run(ask()) == ([{"type": "http.response.start", "status": 200}], [])
