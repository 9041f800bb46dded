"""``/jobs``: how they stand, what they left, and their end."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from service.errors import ServiceError
from service.jobs import FINAL
from service.model_routes import registry
from service.schemas import Job, JobState
from service.work import REPORT, RESULT

LOOK_EVERY_S, COMMENT_EVERY_S = 0.3, 15.0
"""How often a job is looked at for its events; silence after which a comment shows that the line is alive."""
MAX_LISTED = 10_000
_WHOLE = re.compile(r"[0-9]{1,5}")
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:"
)
"""A report's names come from the session: its script runs apart from the page, its key and the network."""


async def list_jobs(request: Request) -> Response:
    """Jobs, newest first."""
    state, limit = request.query_params.get("state"), request.query_params.get("limit", "1000")
    if state is not None and state not in get_args(JobState):
        raise ServiceError(400, f"state={state[:100]!r} is none of {', '.join(get_args(JobState))}.")
    if not (_WHOLE.fullmatch(limit) and 1 <= int(limit) <= MAX_LISTED):
        raise ServiceError(400, f"limit={limit[:100]!r} is not within 1 to {MAX_LISTED}.")
    jobs = await run_in_threadpool(request.app.state.server.jobs.recent, state, int(limit))
    return JSONResponse({"jobs": [job.model_dump() for job in jobs]})


async def get_job(request: Request) -> Response:
    """One job, with its log and what was asked for."""
    store, job_id = request.app.state.server.jobs, request.path_params["id"]

    def read() -> dict[str, object]:
        job = store.get(job_id)
        return {**job.model_dump(), "log": store.log_of(job_id), "request": store.request_of(job_id)}

    return JSONResponse(await run_in_threadpool(read))


async def cancel_job(request: Request) -> Response:
    """Cancel: at once when it waits, within seconds when it runs."""
    job = await run_in_threadpool(request.app.state.server.jobs.cancel, request.path_params["id"])
    return JSONResponse(job.model_dump(), status_code=202 if job.state == "running" else 200)


async def job_events(request: Request) -> Response:
    """A job each time that it changes, as server-sent events, until it has ended."""
    store, job_id = request.app.state.server.jobs, request.path_params["id"]
    first = await run_in_threadpool(store.get, job_id)

    async def events() -> AsyncIterator[str]:
        job, quiet = first, 0.0
        yield _event(job)
        while job.state not in FINAL:
            await asyncio.sleep(LOOK_EVERY_S)
            quiet += LOOK_EVERY_S
            before, job = job, await run_in_threadpool(store.get, job_id)
            if job != before:
                quiet = 0.0
                yield _event(job)
            elif quiet >= COMMENT_EVERY_S:
                quiet = 0.0
                yield ": still here\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def get_result(request: Request) -> Response:
    """The sorted NWB file, or the model."""
    job = await run_in_threadpool(_find_done, request)
    if job.kind != "sort":
        path = registry().find_model(job.name or "")
        return FileResponse(path, filename=path.name, media_type="application/octet-stream")
    path = request.app.state.server.settings.job_folder(job.id, job.attempts) / RESULT
    name = f"{Path(job.input).stem or 'session'}_sorted.nwb"
    return _send_file(path, name, "application/x-hdf5", job, "attachment")


async def get_report(request: Request) -> Response:
    """The report of a sort, to be looked at."""
    job = await run_in_threadpool(_find_done, request)
    path = request.app.state.server.settings.job_folder(job.id, job.attempts) / REPORT
    if job.kind != "sort" or not path.is_file():
        raise ServiceError(404, f"Job {job.id} has no report: it is no sort, or was asked for without one.")
    response = _send_file(path, f"{Path(job.input).stem or 'session'}.html", "text/html", job, "inline")
    response.headers["Content-Security-Policy"] = REPORT_POLICY
    return response


def _send_file(path: Path, name: str, media_type: str, job: Job, disposition: str) -> FileResponse:
    if not path.is_file():
        raise ServiceError(404, f"The files of job {job.id} are gone.")
    return _LargeFile(path, filename=name, media_type=media_type, content_disposition_type=disposition)


class _LargeFile(FileResponse):
    """Read in large blocks: each one waits for its turn among all that the server does."""

    chunk_size = 1 << 20


def _find_done(request: Request) -> Job:
    job: Job = request.app.state.server.jobs.get(request.path_params["id"])
    if job.state != "done":
        why = f": {job.error}" if job.error else ""
        raise ServiceError(409, f"Job {job.id} is {job.state}{why}; only one that is done has a result.")
    return job


def _event(job: Job) -> str:
    return f"event: job\ndata: {json.dumps(job.model_dump())}\n\n"


routes = [
    Route("/jobs", list_jobs, methods=["GET"]),
    Route("/jobs/{id}", get_job, methods=["GET"]),
    Route("/jobs/{id}", cancel_job, methods=["DELETE"]),
    Route("/jobs/{id}/events", job_events, methods=["GET"]),
    Route("/jobs/{id}/result", get_result, methods=["GET"]),
    Route("/jobs/{id}/report", get_report, methods=["GET"]),
]
