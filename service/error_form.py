"""One form for all errors: ``{"error": TEXT}``, whoever answered."""

import json
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_JSON = "application/json"


class ErrorFormMiddleware:
    """Give the errors of Starlette, plain text, and of BentoML, a list, the form of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, and look at its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []  # an error, from its start on

        async def send_formed(message: Message) -> None:
            if held or (message["type"] == "http.response.start" and message["status"] >= 400):
                held.append(message)
            else:
                await send(message)
            if held and message["type"] == "http.response.body" and not message.get("more_body", False):
                start, *parts = held
                body = _form(start, b"".join(part.get("body", b"") for part in parts), scope)
                await send(start)
                await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, send_formed)


def _form(start: Message, body: bytes, scope: Scope) -> bytes:
    """The body in our form; the headers that tell of it are changed in place."""
    if Headers(raw=start["headers"]).get("content-type", "").startswith(_JSON):
        told: Any = json.loads(body)
        if isinstance(told, dict):
            return body
        text = str(told[0]["error"] if isinstance(told, list) and told else told)
    else:
        phrase = body.decode(errors="replace").strip() or HTTPStatus(start["status"]).phrase
        text = f"{scope['method']} {scope['path'][:100]}: {phrase.rstrip('.')}. See /docs.json."
    formed = json.dumps({"error": text}).encode()
    headers = MutableHeaders(scope=start)
    headers["content-type"], headers["content-length"] = _JSON, str(len(formed))
    return formed
