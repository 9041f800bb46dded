"""How many requests were answered how, and in what time, by route: for ``/metrics``."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
TYPED = ("/sort", "/finetune", "/pretrain", "/embed", "/classify", "/livez", "/readyz", "/healthz")
"""Routes of BentoML."""
OTHER = "other"
"""For what is none of the routes: whatever anybody asks for, the figures stay as many as they are."""
Key = tuple[str, str, str]
"""Method, route and status."""


class RequestMetrics:
    """Counts of all requests and the time that they took.

    BentoML keeps its own by the whole path, for ever: each upload and job adds a hundred lines to them, and
    so does each path that somebody without a key makes up.

    Parameters
    ----------
    routes : sequence of BaseRoute
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes
        self._lock = threading.Lock()
        self._counts: dict[Key, int] = defaultdict(int)
        self._seconds: dict[Key, float] = defaultdict(float)

    def add(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Count a request that was answered."""
        method = scope["method"] if scope["method"] in METHODS else OTHER
        key = method, self.name_route(scope["path"]), str(status)
        with self._lock:
            self._counts[key] += 1
            self._seconds[key] += seconds

    def name_route(self, path: str) -> str:
        """The route of a path, as ``/jobs/{id}``."""
        if path in TYPED:
            return path
        scope = {"type": "http", "path": path, "method": "GET"}
        found = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return getattr(next(found, None), "path", OTHER)

    def totals(self) -> list[tuple[dict[str, str], int, float]]:
        """Labels, requests and seconds."""
        with self._lock:
            return [
                (
                    {"method": method, "route": route, "status": status},
                    count,
                    self._seconds[method, route, status],
                )
                for (method, route, status), count in sorted(self._counts.items())
            ]


class RequestMetricsMiddleware:
    """Count the requests that pass.

    Parameters
    ----------
    app : ASGI application
    metrics : RequestMetrics
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request; it is counted when its answer begins."""
        started = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["type"] == "http":
                self.metrics.add(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self.app(scope, receive, send_counted)
