"""A stand-in for the service that speaks its contract over real sockets, and breaks connections when told to.

What it computes is simple enough to be known beforehand: a job goes through its stages at once, an embedding
is the mean over channels, and a sample below -100 µV of a stream is a spike of the unit of its channel.
"""

import asyncio
import hashlib
import io
import itertools
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from accm_core.client import FINISHED, RECORD

SPIKE_UV = -100.0
MAX_SAMPLES = 1000
CALIBRATION_SAMPLES = 2000
STAGES = [("detect", 0.25), ("learn", 0.5), ("match", 0.75)]
RESULT = {"units": 2, "spikes": 90, "labels": {"good": 1, "mua": 1}, "duration_s": 60.0, "elapsed_s": 3.0}


class FakeServer:
    """What was received, and what is to go wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ""
        self.jobs: dict[str, dict] = {}
        self.requests: list[dict] = []
        self.models: dict[str, bytes] = {"pretrained": b"weights"}
        self.totals: dict[str, int] = {}
        self.received: list[tuple[str, int]] = []  # what came in each part: its Content-Range, bytes
        self.files = {"result": b"sorted" * 50_000, "report": b"<html>"}
        self.asked_ranges: list[str] = []
        self.etag = '"one"'
        self.cuts: dict[str, list[int]] = {
            "upload": [],
            "events": [],
            "result": [],
        }  # after how much to break
        self.conflicts = 0  # answers of 409 to uploads, after the cuts
        self.busy = 0  # answers of 429 to come
        self.has_events = True
        self.go_on = threading.Event()  # jobs stay in their first stage until it is set
        self.go_on.set()
        self.told = threading.Event()
        self.fails = ""
        self.streams: list[dict] = []
        self.stream_error = ""
        self.num_extra_spikes = 0  # in each reply, to make replies large
        self.address = ""

    def cut(self, what: str) -> int | None:
        return self.cuts[what].pop(0) if self.cuts[what] else None

    # ---- uploads ----

    def upload_of(self, name: str) -> dict | None:
        path = self.folder / name
        if not path.exists():
            return None
        size, total = path.stat().st_size, self.totals[name]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest() if size == total else None
        return {"name": name, "bytes": size, "total": total, "complete": size == total, "sha256": digest}

    async def uploads(self, request: Request) -> Response:
        return JSONResponse(
            {"uploads": [self.upload_of(path.name) for path in sorted(self.folder.iterdir())]}
        )

    async def upload(self, request: Request) -> Response:
        name = request.path_params["name"]
        there = self.upload_of(name)
        if request.method == "PUT":
            return await self.put(request, name, there)
        if there is None:
            return refuse(404, f"No upload {name!r}.")
        if request.method == "DELETE":
            (self.folder / name).unlink()
        return JSONResponse(there)

    async def put(self, request: Request, name: str, there: dict | None) -> Response:
        if there is not None and there["complete"]:
            if request.query_params.get("overwrite") != "true":
                return refuse(409, f"The name {name!r} is taken.")
            (self.folder / name).unlink()
            there = None
        if self.conflicts and not self.cuts["upload"]:
            self.conflicts -= 1
            return refuse(409, f"The upload {name!r} is being written.")
        content_range = request.headers.get("Content-Range", "")
        wanted = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        have = there["bytes"] if there else 0
        total = int(wanted[3]) if wanted else int(request.headers["Content-Length"])
        if wanted and int(wanted[1]) != have:
            return JSONResponse({"error": "Out of step.", "bytes": have}, 409)
        cut_after, count = self.cut("upload"), 0
        self.totals[name] = total
        with (self.folder / name).open("ab") as file:
            async for piece in request.stream():
                piece = piece if cut_after is None else piece[: cut_after - count]
                count += len(piece)
                file.write(piece)
                if cut_after is not None and count >= cut_after:
                    break
        self.received.append((content_range, count))
        if cut_after is not None:
            return await break_off(request)
        now = self.upload_of(name)
        if not now["complete"]:
            return JSONResponse(now, 202)
        if request.query_params.get("sha256", now["sha256"]) != now["sha256"]:
            (self.folder / name).unlink()
            return refuse(400, "The checksum is another.")
        return JSONResponse({key: now[key] for key in ("name", "bytes", "sha256")}, 201)

    # ---- jobs ----

    async def submit(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if body.get("seed", 0) < 0:
            detail = [{"loc": ["seed"], "msg": "must be 0 or more", "type": "greater_than_equal"}]
            return JSONResponse({"error": "The request is refused.", "detail": detail}, 400)
        job = {"id": f"job{len(self.jobs)}", "kind": request.url.path[1:], "state": "queued", "stage": None}
        job |= {"fraction": 0.0, "error": None, "result": None}
        job |= {"input": next(iter(body.get("input", {"": ""}).values()))}
        job |= {name: body.get(name) for name in ("name", "model")}
        self.jobs[job["id"]] = job
        threading.Thread(target=self.run, args=(job,), daemon=True).start()
        return JSONResponse(job)

    def run(self, job: dict) -> None:
        for stage, fraction in STAGES:
            time.sleep(0.03)
            job |= {"state": "running", "stage": stage, "fraction": fraction}
            self.told.clear()
            self.told.wait(0.5)  # whoever follows sees each stage
            self.go_on.wait()
            if job["state"] == "cancelled":
                return
        ended = {"state": "failed", "error": self.fails} if self.fails else {"state": "done", "fraction": 1.0}
        job |= ended | {"result": None if self.fails else {**RESULT, "warnings": ["short"]}}

    async def all_jobs(self, request: Request) -> Response:
        state = request.query_params.get("state")
        jobs = [job for job in reversed(self.jobs.values()) if state in (None, job["state"])]
        return JSONResponse({"jobs": jobs[: int(request.query_params.get("limit", 100))]})

    async def one_job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["id"])
        if job is None:
            return refuse(404, f"No job {request.path_params['id']!r}.")
        if request.method == "DELETE":
            if job["state"] in FINISHED:
                return refuse(409, f"Job {job['id']} is {job['state']} already.")
            job["state"] = "cancelled"
            self.go_on.set()
        self.told.set()
        return JSONResponse({**job, "log": ["started"], "request": {}})

    async def events(self, request: Request) -> Response:
        if not self.has_events:
            return refuse(404, "Nothing here.")
        job, cut_after = self.jobs[request.path_params["id"]], self.cut("events")

        async def tell():
            last = None
            for count in itertools.count():
                if cut_after == count:
                    request.scope["abort"]()
                while job == last:
                    await asyncio.sleep(0.005)
                last = dict(job)
                self.told.set()
                yield f": still here\n\nevent: job\ndata: {json.dumps(last)}\n\n"
                if last["state"] in FINISHED:
                    return

        return StreamingResponse(tell(), media_type="text/event-stream")

    async def file(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        if job["state"] != "done":
            return refuse(409, f"Job {job['id']} is {job['state']}.")
        return self.ranged(request, self.files[request.path_params["file"]])

    def ranged(self, request: Request, content: bytes) -> Response:
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        is_same = request.headers.get("If-Range", self.etag) == self.etag
        start = int(wanted[1]) if wanted and is_same else 0
        self.asked_ranges.append(request.headers.get("Range", ""))
        headers = {"ETag": self.etag, "Content-Length": str(len(content) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut_after = self.cut("result")

        async def send():
            yield content[start : len(content) if cut_after is None else start + cut_after]
            if cut_after is not None:
                await asyncio.sleep(0.05)  # so that what was sent arrives
                request.scope["abort"]()

        return StreamingResponse(send(), 206 if start else 200, headers)

    # ---- models ----

    async def all_models(self, request: Request) -> Response:
        models = [
            {"name": n, "kind": "pretrained", "units": None, "bytes": len(b)} for n, b in self.models.items()
        ]
        return JSONResponse({"models": [{**model, "sha256": "", "problem": ""} for model in models]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "PUT":
            self.models[name] = await request.body()
        elif name not in self.models:
            return refuse(404, f"No model {name!r}.")
        content = self.models.pop(name) if request.method == "DELETE" else self.models[name]
        return JSONResponse(
            {"name": name, "bytes": len(content), "sha256": "", "card": {"kind": "pretrained"}}
        )

    async def model_file(self, request: Request) -> Response:
        return self.ranged(request, self.models[request.path_params["name"]])

    async def embed(self, request: Request) -> Response:
        if self.busy:
            self.busy -= 1
            return refuse(429, "The queue is full.")
        snippets = np.load(io.BytesIO(await request.body()))
        body = io.BytesIO()
        np.save(body, snippets.mean(axis=2))
        return Response(body.getvalue(), media_type="application/octet-stream")

    async def server(self, request: Request) -> Response:
        limits = {"max_upload": 10**12, "max_streams": 4, "max_queue": 1000}
        disk = {"free": 10**11, "used": 0, "quota": None}
        about = {"version": "0.1.0", "device": "cpu", "gpus": [], "scheduler": "embedded", "limits": limits}
        return JSONResponse({**about, "input_roots": False, "url_hosts": [], "disk": disk})

    # ---- streams ----

    async def stream(self, socket: WebSocket) -> None:
        await socket.accept()
        hello = await socket.receive_json()
        session = {"hello": hello, "parts": [], "first_samples": [], "is_ended": False}
        self.streams.append(session)
        if self.stream_error:
            await socket.send_json({"error": self.stream_error})
            await socket.close(1008)
            return
        units = [
            {"unit": k, "name": str(k), "channel": k, "amplitude_uV": -200.0}
            for k in range(hello["num_channels"])
        ]
        is_calibrating = "model" not in hello
        ready = {
            "ready": True,
            "session": f"s{len(self.streams)}",
            "protocol": 1,
            "calibrating": is_calibrating,
        }
        ready |= {"units": [] if is_calibrating else units, "lookahead_ms": 2.5, "max_samples": MAX_SAMPLES}
        await socket.send_json(ready)
        try:
            await self.sort_online(socket, session, units, is_calibrating=is_calibrating)
        except WebSocketDisconnect:
            session["is_lost"] = True

    async def sort_online(
        self, socket: WebSocket, session: dict, units: list[dict], *, is_calibrating: bool
    ) -> None:
        dtype = np.dtype(session["hello"]["dtype"]).newbyteorder("<")
        gain, offset = (np.asarray(session["hello"][f"{name}_to_uV"]) for name in ("gain", "offset"))
        expected, num_samples, num_spikes = None, 0, 0
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            if message.get("text"):
                break
            first, length, num_channels, _ = struct.unpack_from("<QIHH", message["bytes"])
            traces = (
                np.frombuffer(message["bytes"], dtype, offset=16).reshape(length, num_channels) * gain
                + offset
            )
            if expected is not None and first < expected:
                await socket.close(1007, "Samples went back.")
                return
            if expected is not None and first > expected:
                await socket.send_json({"event": "gap", "expected": expected, "got": first})
            expected = first + length
            session["parts"].append(traces)
            session["first_samples"].append(first)
            num_samples += length
            if is_calibrating and num_samples >= CALIBRATION_SAMPLES:
                is_calibrating = False
                await socket.send_json({"event": "calibrated", "units": units})
            rows, channels = np.nonzero(traces < SPIKE_UV)
            spikes = np.zeros(len(rows) + self.num_extra_spikes, RECORD)
            spikes["sample"][: len(rows)], spikes["unit"][: len(rows)] = first + rows, channels
            spikes["channel"][: len(rows)], spikes["amplitude_uV"][: len(rows)] = (
                channels,
                traces[rows, channels],
            )
            num_spikes += len(rows)
            await socket.send_bytes(struct.pack("<QII", expected, len(spikes), 0) + spikes.tobytes())
        session["is_ended"] = True
        await socket.send_json({"event": "end", "samples": num_samples, "spikes": num_spikes})
        await socket.close()


def refuse(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


async def break_off(request: Request) -> Response:
    request.scope["abort"]()
    return Response()


@contextmanager
def serving(folder: Path) -> Iterator[FakeServer]:
    fake = FakeServer(folder)
    routes = [
        Route("/uploads", fake.uploads),
        Route("/uploads/{name}", fake.upload, methods=["GET", "PUT", "DELETE"]),
        *(Route(f"/{kind}", fake.submit, methods=["POST"]) for kind in ("sort", "finetune", "pretrain")),
        Route("/jobs", fake.all_jobs),
        Route("/jobs/{id}", fake.one_job, methods=["GET", "DELETE"]),
        Route("/jobs/{id}/events", fake.events),
        Route("/jobs/{id}/{file:str}", fake.file),
        Route("/models", fake.all_models),
        Route("/models/{name}", fake.model, methods=["GET", "PUT", "DELETE"]),
        Route("/models/{name}/file", fake.model_file),
        *(Route(f"/{what}", fake.embed, methods=["POST"]) for what in ("embed", "classify")),
        Route("/server", fake.server),
        WebSocketRoute("/stream", fake.stream),
    ]
    inner = Starlette(routes=routes)

    async def app(scope, receive, send):
        if scope["type"] == "http":
            scope["abort"] = receive.__self__.transport.abort  # of uvicorn: the connection itself
        if scope["type"] != "lifespan" and fake.key:
            given = dict(scope["headers"]).get(b"authorization", b"").decode()
            if given != f"Bearer {fake.key}":
                refusal = refuse(401, "The key is missing or wrong.")
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                await refusal(scope, receive, send)
                return
        await inner(scope, receive, send)

    config = uvicorn.Config(
        app, port=0, log_level="critical", ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    fake.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        fake.go_on.set()
        server.should_exit = True
        thread.join()
