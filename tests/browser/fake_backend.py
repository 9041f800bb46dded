"""A server with the routes that the page asks for, whose jobs do what a test says."""

import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from service import page

OPEN_PATHS = ("/livez", "/readyz", "/healthz", "/page/")
START_DEADLINE_S = 10.0
EVERY_SLICE = 1000


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


class FakeBackend:
    """The state of the server, for the tests to set and look at, and the server itself in a thread."""

    def __init__(self) -> None:
        self.key = ""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytearray] = {}
        self.models: dict[str, dict[str, Any]] = {
            "pretrained": {"kind": "encoder", "units": None, "bytes": 370_308}
        }
        self.streams: list[dict[str, Any]] = []
        self.refusals: dict[str, tuple[int, dict[str, Any]]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self._slices: threading.Semaphore | None = None  # what may still be received; None: everything
        self.port = 0
        self._receiving = anyio.Lock()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def add_job(self, job_id: str, state: str = "queued", **changes: Any) -> dict[str, Any]:
        """Add a job, or change it."""
        job = self.jobs.setdefault(
            job_id,
            {
                "id": job_id,
                "kind": "sort",
                "input": f"{job_id}.nwb",
                "model": None,
                "name": None,
                "stage": None,
                "fraction": 0.0,
                "eta_s": None,
                "created": ago(0),
                "started": None,
                "finished": None,
                "error": None,
                "attempts": 1,
                "result": None,
            },
        )
        job.update(state=state, **changes)
        return job

    def hold_uploads(self) -> None:
        """Receive no slice until `let_slices`."""
        self._slices = threading.Semaphore(0)

    def let_slices(self, number: int) -> None:
        """Receive that many slices more."""
        assert self._slices is not None
        self._slices.release(number)

    def start(self) -> None:
        config = uvicorn.Config(
            self._app(), port=self.port, log_level="critical", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("The fake server did not start.")
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        if self._slices is not None:
            self.let_slices(EVERY_SLICE)
        self._thread.join()

    def _app(self) -> Starlette:
        routes = [
            *page.routes,
            Route("/server", self._server_facts),
            Route("/docs.json", self._docs),
            Route("/jobs", self._list_jobs),
            Route("/jobs/{id}", self._job, methods=["GET", "DELETE"]),
            Route("/jobs/{id}/{leaf}", self._leaf),
            Route("/sort", self._ask, methods=["POST"]),
            Route("/finetune", self._ask, methods=["POST"]),
            Route("/uploads", self._list_uploads),
            Route("/uploads/{name}", self._upload, methods=["GET", "PUT", "DELETE"]),
            Route("/models", self._list_models),
            Route("/models/{name}", self._model, methods=["GET", "PUT", "DELETE"]),
            Route("/streams", self._list_streams),
        ]
        return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=self._check_key)])

    async def _check_key(self, request: Request, call_next: Any) -> Response:
        path = request.url.path
        given = [request.headers.get("Authorization", "").removeprefix("Bearer ")]
        if request.method == "GET":
            given.append(unquote(request.cookies.get("accm_key", "")))
        if self.key and path != "/" and not path.startswith(OPEN_PATHS) and self.key not in given:
            return JSONResponse({"error": "A key is needed."}, 401)
        if request.method != "GET" and path in self.refusals:
            status, body = self.refusals[path]
            return JSONResponse(body, status)
        return await call_next(request)

    async def _server_facts(self, request: Request) -> Response:
        return JSONResponse(
            {
                "version": "0.1.0",
                "device": "cuda:0",
                "gpus": ["NVIDIA H100 80GB"],
                "scheduler": None,
                "limits": {"max_upload": 200_000_000_000, "max_streams": 4, "max_queue": 1000},
                "input_roots": True,
                "url_hosts": ["dandiarchive.s3.amazonaws.com"],
                "disk": {"free": 1_310_000_000_000, "used": 214_000_000_000, "quota": None},
            }
        )

    async def _docs(self, request: Request) -> Response:
        threshold = {"type": "number", "default": 5.0, "description": "Height a peak must exceed."}
        schemas = {
            "SorterParams": {"properties": {"detect": {"$ref": "#/components/schemas/DetectParams"}}},
            "DetectParams": {"properties": {"threshold": threshold}},
        }
        return JSONResponse({"components": {"schemas": schemas}})

    async def _list_jobs(self, request: Request) -> Response:
        state, limit = request.query_params.get("state"), int(request.query_params.get("limit", 50))
        jobs = sorted(self.jobs.values(), key=lambda job: job["created"], reverse=True)
        return JSONResponse({"jobs": [job for job in jobs if state in (None, job["state"])][:limit]})

    async def _job(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        if request.method == "GET":
            asked = {"input": {"upload": job["input"]}, "seed": 0}
            return JSONResponse({**job, "log": self.logs.get(job["id"], []), "request": asked})
        status = 202 if job["state"] == "running" else 200
        job.update(state="cancelled", finished=ago(0))
        return JSONResponse(job, status)

    async def _leaf(self, request: Request) -> Response:
        leaf = request.path_params["leaf"]
        return PlainTextResponse(f"{leaf} of {request.path_params['id']}")

    async def _ask(self, request: Request) -> Response:
        body = await request.json()
        kind = request.url.path.strip("/")
        self.asked.append(("POST", kind, body))
        source = next(iter(body["input"].values()))
        job_id = f"job{len(self.jobs) + 1}"
        return JSONResponse(self.add_job(job_id, kind=kind, input=source, name=body.get("name")))

    async def _list_uploads(self, request: Request) -> Response:
        return JSONResponse({"uploads": list(self.uploads.values())})

    async def _upload(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.asked.append((request.method, name, request.headers.get("Content-Range")))
        if request.method == "PUT":
            return await self._receive(request, name)
        if name not in self.uploads:
            return JSONResponse({"error": f"There is no upload {name!r}."}, 404)
        return JSONResponse(self.uploads.pop(name) if request.method == "DELETE" else self.uploads[name])

    async def _receive(self, request: Request, name: str) -> Response:
        span, _, total_text = request.headers["Content-Range"].removeprefix("bytes ").partition("/")
        first, total = int(span.split("-")[0]), int(total_text)
        if self._slices is not None:
            await anyio.to_thread.run_sync(self._slices.acquire)
            if self._server is None or self._server.should_exit:
                return JSONResponse({"error": "The server stops."}, 503)
        async with self._receiving:
            return await self._append(request, name, first, total)

    async def _append(self, request: Request, name: str, first: int, total: int) -> Response:
        there = self.uploads.setdefault(
            name, {"name": name, "bytes": 0, "total": total, "complete": False, "created": ago(0)}
        )
        if first != there["bytes"]:
            return JSONResponse({"error": "Not the next byte.", "bytes": there["bytes"]}, 409)
        content = self.contents.setdefault(name, bytearray()) if first else bytearray()
        self.contents[name] = content
        with suppress(ClientDisconnect):
            async for piece in request.stream():
                content += piece
        there.update(bytes=len(content), complete=len(content) == total)
        return JSONResponse({**there, "sha256": "0" * 64}, 201 if there["complete"] else 202)

    async def _list_models(self, request: Request) -> Response:
        listed = [
            {"sha256": "ab" * 32, "problem": "", **entry, "name": name} for name, entry in self.models.items()
        ]
        return JSONResponse({"models": listed})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "PUT":
            size = len(await request.body())
            self.models[name] = {"kind": "finetuned", "units": 12, "bytes": size}
            return JSONResponse({"name": name, "bytes": size, "sha256": "cd" * 32}, 201)
        entry = self.models.pop(name) if request.method == "DELETE" else self.models[name]
        card = {"kind": entry["kind"], "seed": 0, "training": {"sessions": ["<i>a</i>.nwb"], "steps": 18000}}
        return JSONResponse({"name": name, "bytes": entry["bytes"], "sha256": "ab" * 32, "card": card})

    async def _list_streams(self, request: Request) -> Response:
        return JSONResponse({"limit": 4, "streams": self.streams})
