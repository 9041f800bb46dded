"""Requests to an ASGI application in this process, byte by byte as a test wants them."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self):
        return json.loads(self.body)


def request(app, method, path, headers=(), chunks=(b"",), client="127.0.0.1"):
    """One request with its body in chunks, made as they are asked for where they are no list.

    An error where the application does not answer once and wholly.
    """
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": b"",
        "headers": encode(headers),
        "client": (client, 9),
        "server": ("127.0.0.1", 3000),
    }
    last = len(chunks) - 1 if isinstance(chunks, Sequence) else -1
    waiting = enumerate(chunks)

    async def receive():
        for number, chunk in waiting:
            return {"type": "http.request", "body": chunk, "more_body": number != last}
        return {"type": "http.disconnect"}

    messages = _run(app, scope, receive)
    start, *parts = messages
    assert start["type"] == "http.response.start"
    assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]
    names = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return Answer(start["status"], names, b"".join(part.get("body", b"") for part in parts))


def connect(app, path, headers=(), *, extensions=("websocket.http.response",)):
    """Open a websocket and close it: 101 where it was accepted, the status where not, or the code."""
    scope = {
        "type": "websocket",
        "path": path,
        "query_string": b"",
        "headers": encode(headers),
        "extensions": {name: {} for name in extensions},
    }
    waiting = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def receive():
        return waiting.pop(0)

    first = _run(app, scope, receive)[0]
    if first["type"] == "websocket.accept":
        return 101
    return first["code"] if first["type"] == "websocket.close" else first["status"]


def encode(headers):
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [
        (name.lower().encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in pairs
    ]


def _run(app, scope, receive):
    messages = []

    async def send(message):
        messages.append(message)

    asyncio.run(app(scope, receive, send))
    return messages
