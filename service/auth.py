"""Who may ask, and from which page: ASGI middlewares around the whole service."""

import hmac
from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.body_limit import BodyLimitMiddleware, MediaTypeMiddleware
from service.error_form import ErrorFormMiddleware

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/healthz"})
OPEN_FOLDER = "/page/"
"""The static shell of the page, which asks for the key."""
COOKIE = "accm_key"
_READING = ("GET", "HEAD")
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def protections(key: str | None, *, is_loopback: bool) -> tuple[Middleware, ...]:
    """All middlewares that protect the service, the outermost first.

    Parameters
    ----------
    key : str or None
        None asks for no key; web pages of others are kept out then.
    is_loopback : bool
        The server listens to this machine alone.
    """
    gate = (
        Middleware(ApiKeyMiddleware, key=key)
        if key is not None
        else Middleware(OriginMiddleware, is_loopback=is_loopback)
    )
    inner = (BodyLimitMiddleware, MediaTypeMiddleware, ErrorFormMiddleware)
    return Middleware(HeadersMiddleware), gate, *(Middleware(kind) for kind in inner)


class ApiKeyMiddleware:
    """Answer 401 to whoever does not give the key.

    Parameters
    ----------
    app : ASGI application
    key : str
        Given as ``Authorization: Bearer KEY``; for reading also as a percent-encoded cookie, so that links
        and EventSource of the page work. A cookie alone changes nothing, so that no other page can.

    Raises
    ------
    ValueError
        If the key is empty: it would let in everybody.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        if not key.strip():
            raise ValueError("The API key is empty. Set ACCM_API_KEY to a long random text, or unset it.")
        self.app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may be made."""
        if scope["type"] not in ("http", "websocket") or _is_open(scope) or self._has_key(scope):
            await self.app(scope, receive, send)
            return
        message = "The API key is missing or wrong. Send it as 'Authorization: Bearer KEY'."
        await _refuse(scope, receive, send, 401, message, {"WWW-Authenticate": "Bearer"})

    def _has_key(self, scope: Scope) -> bool:
        # a list: every offer is compared, so that the time taken tells nothing
        return any([hmac.compare_digest(offer, self._key) for offer in _offers(scope)])  # noqa: C419


class OriginMiddleware:
    """Keep web pages away from a server that asks for no key: a browser on this machine could ask it too.

    Parameters
    ----------
    app : ASGI application
    is_loopback : bool
        The server listens to this machine alone; it is then addressed as localhost or by a loopback address,
        and any other name in ``Host`` is a web page whose name was made to point here (DNS rebinding).

    Notes
    -----
    A browser names the page in ``Origin`` with each request that changes something and each websocket. What
    comes from another page than our own is refused; programs send no ``Origin``. What other pages may only
    read they cannot see: we send no CORS headers.
    """

    def __init__(self, app: ASGIApp, *, is_loopback: bool) -> None:
        self.app, self.is_loopback = app, is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that may be made."""
        problem = self._find_problem(scope) if scope["type"] in ("http", "websocket") else ""
        if not problem:
            await self.app(scope, receive, send)
            return
        remedy = "Ask from this server's own page or a program, or start the server with ACCM_API_KEY."
        await _refuse(scope, receive, send, 403, f"{problem} {remedy}")

    def _find_problem(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        client = scope.get("client")
        if self.is_loopback and client is not None and not is_loopback(client[0]):
            return f"Without an API key the server answers its own machine only, not {client[0]}."
        if self.is_loopback and (len(hosts) != 1 or not _names_loopback(hosts[0])):
            return f"Without an API key the server is named localhost, not {', '.join(hosts)[:100]!r}."
        origins = headers.getlist("origin")
        if scope["type"] == "http" and scope["method"] in _READING:
            return ""
        if any(origin.partition("://")[2].lower() not in [h.lower() for h in hosts] for origin in origins):
            return f"Without an API key requests from the web page {origins[0][:100]!r} are refused."
        return ""


class HeadersMiddleware:
    """Add the headers that keep browsers from guessing types, telling addresses, and keeping answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, and complete the headers of its answer."""

        async def send_completed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if headers.get("content-type", "").startswith("application/json"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, send_completed)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return (
        scope["type"] == "http"
        and scope["method"] in _READING
        and (path in OPEN_PATHS or path.startswith(OPEN_FOLDER))
    )


def _offers(scope: Scope) -> Iterable[bytes]:
    """All that a request offers as the key."""
    headers = Headers(scope=scope)
    for value in headers.getlist("authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            yield token.strip().encode("latin-1")
    if scope["type"] == "http" and scope["method"] in _READING:
        for value in headers.getlist("cookie"):
            yield unquote_to_bytes(cookie_parser(value).get(COOKIE, ""))


def is_loopback(name: str) -> bool:
    """Whether a name or address is this machine's own, seen from nowhere else."""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _names_loopback(host: str) -> bool:
    """Whether a ``Host`` header names this machine for itself."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


async def _refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
) -> None:
    """Answer a request, or a websocket before it is accepted."""
    if scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {}):
        await JSONResponse({"error": message}, status, headers)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": message})
