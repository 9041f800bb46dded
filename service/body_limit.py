"""How much a request may send, and of what type."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIB = 1 << 20
DEFAULT_BYTES = 1 * MIB
BODY_BYTES: Mapping[str, int | None] = {
    "/embed": 64 * MIB,
    "/classify": 64 * MIB,
    "/finetune": 16 * MIB,  # labels as JSON
    "/models/": 256 * MIB,  # accm_core.learning.checkpoint.MAX_BYTES, which imports torch
    "/uploads/": None,  # counted as they are written, against ACCM_MAX_UPLOAD
}
"""Most bytes of a body by path; what ends in a slash is the beginning of one. None: no limit here."""


MEDIA_TYPES: Mapping[str, str] = {
    "/sort": "application/json",
    "/finetune": "application/json",
    "/pretrain": "application/json",
    "/embed": "application/octet-stream",
    "/classify": "application/octet-stream",
}
"""Type of a body by path. BentoML would take others: forms, whose fields may be addresses to fetch."""


class MediaTypeMiddleware:
    """Answer 415 to bodies of a type that a route does not take; who says none is believed to mean it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose body is of the right type."""
        wanted = MEDIA_TYPES.get(scope["path"]) if scope["type"] == "http" else None
        told = [] if wanted is None else Headers(scope=scope).getlist("content-type")
        if all(value.partition(";")[0].strip().lower() == wanted for value in told) and len(told) < 2:
            await self.app(scope, receive, send)
            return
        message = f"{scope['path']} takes {wanted}, not {', '.join(told)[:100]!r}. Set Content-Type so."
        await _answer(415, message, scope, receive, send)


class BodyLimitMiddleware:
    """Answer 413 to bodies that are too large, by what they say and by what comes.

    Parameters
    ----------
    app : ASGI application
        When a body turns out too large it is told that the client is gone, and what it answers is dropped.
    limits : mapping of str to int or None
        As `BODY_BYTES`.
    """

    def __init__(self, app: ASGIApp, limits: Mapping[str, int | None] = BODY_BYTES) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, counting what it sends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, headers = self._limit_of(scope["path"]), Headers(scope=scope)
        lengths = headers.getlist("content-length")
        if any(not (n.isascii() and n.isdigit()) for n in lengths) or len(set(lengths)) > 1:
            told = ", ".join(lengths)[:100]
            await _answer(
                400, f"Content-Length is {told!r}; it must be one whole number.", scope, receive, send
            )
        elif lengths and "transfer-encoding" in headers:
            message = "Content-Length and Transfer-Encoding contradict each other. Send one of them."
            await _answer(400, message, scope, receive, send, {"Connection": "close"})
        elif limit is None:
            await self.app(scope, receive, send)
        elif lengths and _exceeds(lengths[0], limit):
            await _answer(413, _explain(scope["path"], limit), scope, receive, send)
        else:
            await self._count(scope, receive, send, limit)

    def _limit_of(self, path: str) -> int | None:
        for known, limit in self.limits.items():
            if path == known or (known.endswith("/") and path.startswith(known)):
                return limit
        return DEFAULT_BYTES

    async def _count(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        received = 0
        has_answered = False

        async def receive_counted() -> Message:
            nonlocal received
            if received > limit:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= limit else {"type": "http.disconnect"}

        async def send_unless_refused(message: Message) -> None:
            nonlocal has_answered
            if received <= limit or has_answered:
                has_answered = True
                await send(message)

        try:
            await self.app(scope, receive_counted, send_unless_refused)
        except Exception:
            if received <= limit:
                raise
        if received > limit and not has_answered:
            await _answer(413, _explain(scope["path"], limit), scope, receive, send)


def _exceeds(digits: str, limit: int) -> bool:
    significant = digits.lstrip("0")
    return len(significant) > len(str(limit)) or int(significant or "0") > limit


def _explain(path: str, limit: int) -> str:
    return (
        f"The body sent to {path[:100]} is larger than {limit} bytes ({limit / MIB:.0f} MiB), the most that "
        "is taken there. Send less at a time; whole sessions go to PUT /uploads/NAME."
    )


async def _answer(
    status: int,
    message: str,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] | None = None,
) -> None:
    await JSONResponse({"error": message}, status, headers)(scope, receive, send)
