"""The page at ``/``: its files, and the headers that keep it to this server."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "dashboard"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = frozenset(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "frame-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # with no policy allowed, no text can become markup
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an update, no page of the old version with scripts of the new
}


async def show_page(request: Request) -> Response:
    """``GET /``: the shell of the page. It holds nothing of the session's, and needs no key."""
    return _send("index.html")


async def send_file(request: Request) -> Response:
    """``GET /page/NAME``: a script, style or picture of the page."""
    name = request.path_params["name"]
    if name not in FILES:
        known = ", ".join(sorted(FILES))
        return JSONResponse({"error": f"The page has no file {name!r}; it has {known}."}, 404, HEADERS)
    return _send(name)


def _send(name: str) -> Response:
    path = FOLDER / name
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=HEADERS)


routes = [Route("/", show_page), Route("/page/{name}", send_file)]
