"""Bodies that say, or turn out, to be too large."""

import pytest
from asgi import request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from service.body_limit import BODY_BYTES, DEFAULT_BYTES, MIB, BodyLimitMiddleware

LIMITS = {"/small": 10, "/models/": 20, "/uploads/": None}
seen = []


async def count(request: Request):
    seen.append(len(await request.body()))
    return PlainTextResponse(str(seen[-1]))


async def swallow(request: Request):
    """As a framework that makes an answer of any error."""
    try:
        return await count(request)
    except Exception:
        return PlainTextResponse("broken", 500)


async def echo(scope, receive, send):
    """As a route that answers while it reads."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


APP = BodyLimitMiddleware(
    Starlette(
        routes=[
            Route("/swallow", swallow, methods=["PUT"]),
            Mount("/echo", echo),
            Route("/{path:path}", count, methods=["GET", "PUT"]),
        ]
    ),
    {**LIMITS, "/swallow": 10, "/echo/": 10},
)


@pytest.mark.parametrize(("path", "limit"), [("/small", 10), ("/models/x", 20), ("/other", DEFAULT_BYTES)])
def test_up_to_the_limit_and_not_beyond(path, limit):
    for chunks in (
        [bytes(limit)],
        [bytes(limit - 3), b"", b"123"],
        [b"1"] * limit if limit < 99 else [bytes(limit)],
    ):
        whole = sum(map(len, chunks))
        assert request(APP, "PUT", path, {"Content-Length": str(whole)}, chunks).body == str(limit).encode()
        assert request(APP, "PUT", path, (), chunks).body == str(limit).encode()
        seen.clear()
        for headers in ({"Content-Length": str(limit + 1)}, ()):
            refused = request(APP, "PUT", path, headers, [*chunks, b"+"])
            assert refused.status == 413
            assert f"{path} is larger than {limit} bytes" in refused.json()["error"]
        assert seen == []  # nothing got through


@pytest.mark.parametrize("path", ["/small", "/swallow"])
def test_a_body_without_end_is_not_read_on(path):
    def body():
        yield b"12345"
        yield b"678901"
        pytest.fail("read on")

    assert request(APP, "PUT", path, (), body()).status == 413


def test_an_answer_that_has_begun_ends():
    assert request(APP, "PUT", "/echo/", (), [b"12345", b"67890"]).body == b"1234567890"
    cut = request(APP, "PUT", "/echo/", (), [b"12345", b"678901"])
    assert cut.status == 200
    assert cut.body == b"12345"


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("-1", 400),
        ("+5", 400),
        ("1e3", 400),
        ("", 400),
        ("5, 5", 400),
        ("٣".encode(), 400),
        ("9" * 5000, 413),
        ("0" * 5000 + "5", 200),
    ],
)
def test_what_is_no_length(length, status):
    assert request(APP, "PUT", "/small", {"Content-Length": length}, [b"12345"]).status == status


def test_two_lengths():
    twice = [("Content-Length", "5"), ("Content-Length", "6")]
    assert request(APP, "PUT", "/small", twice, [b"12345"]).status == 400


def test_uploads_have_a_limit_of_their_own():
    assert request(APP, "PUT", "/uploads/x", {"Content-Length": str(10**15)}, [bytes(30)]).body == b"30"
    assert request(APP, "PUT", "/uploads", (), [bytes(DEFAULT_BYTES + 1)]).status == 413


def test_limits_of_the_service():
    assert BODY_BYTES == {
        "/embed": 64 * MIB,
        "/classify": 64 * MIB,
        "/finetune": 16 * MIB,
        "/models/": 256 * MIB,
        "/uploads/": None,
    }
    from accm_core.learning.checkpoint import MAX_BYTES

    assert BODY_BYTES["/models/"] == MAX_BYTES
