"""``/uploads``: files stream to disk, resume where they broke off, and are checked."""

import asyncio
import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import ServiceError
from service.uploads import Incoming, WrongOffsetError

WRITE_BYTES = 1 << 20
"""Gathered before they are written."""
IDLE_S = 60.0
"""Without a byte, after which a body is given up; what arrived stays."""
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


async def list_uploads(request: Request) -> Response:
    """All uploads."""
    return JSONResponse({"uploads": await run_in_threadpool(request.app.state.server.uploads.list)})


async def get_upload(request: Request) -> Response:
    """One upload: how much of it has arrived."""
    uploads = request.app.state.server.uploads
    return JSONResponse(await run_in_threadpool(uploads.describe, request.path_params["name"]))


async def remove_upload(request: Request) -> Response:
    """Remove an upload that no job needs."""
    server, name = request.app.state.server, request.path_params["name"]
    _refuse_needed(server, name)
    return JSONResponse(await run_in_threadpool(server.uploads.remove, name))


async def put_upload(request: Request) -> Response:
    """Take a file, or the next part of one (``Content-Range``)."""
    server, name = request.app.state.server, request.path_params["name"]
    wanted = request.query_params.get("sha256")
    if wanted is not None and not _SHA256.fullmatch(wanted):
        raise ServiceError(400, f"sha256={wanted[:100]!r} is no SHA-256; it has 64 hexadecimal digits.")
    overwrite = request.query_params.get("overwrite", "false") == "true"
    if overwrite:
        _refuse_needed(server, name)
    first, last, total = _parse_range(request)
    try:
        with server.uploads.receive(name, first, total, overwrite=overwrite) as incoming:
            await _write_body(request, incoming, None if last is None else last + 1)
            if last is not None and incoming.received != last + 1:
                raise ServiceError(
                    400,
                    f"The body ended at byte {incoming.received}, not at {last + 1} as Content-Range says.",
                )
            if total is not None and incoming.received < total:
                state = {"name": name, "bytes": incoming.received, "total": total, "complete": False}
                return JSONResponse(state, status_code=202)
            sha256 = await run_in_threadpool(incoming.finish, wanted)
    except WrongOffsetError as error:
        return JSONResponse({"error": str(error), "bytes": error.have}, status_code=error.status)
    return JSONResponse({"name": name, "bytes": incoming.received, "sha256": sha256}, status_code=201)


async def _write_body(request: Request, incoming: Incoming, stop: int | None) -> None:
    """Write the body as it comes, block by block: memory stays flat."""
    parts: list[bytes] = []
    waiting = 0
    stream = request.stream()
    try:
        while (part := await asyncio.wait_for(anext(stream, None), IDLE_S)) is not None:
            if stop is not None and incoming.received + waiting + len(part) > stop:
                raise ServiceError(
                    400, f"The body goes beyond byte {stop - 1}, where its Content-Range ends."
                )
            parts.append(part)
            waiting += len(part)
            if waiting >= WRITE_BYTES:
                await run_in_threadpool(incoming.write, b"".join(parts))
                parts, waiting = [], 0
    except TimeoutError as error:
        kept = incoming.received + waiting
        raise ServiceError(
            408, f"Nothing arrived for {IDLE_S:g} s; {kept} bytes are kept. Go on from there."
        ) from error
    except ClientDisconnect as error:
        raise ServiceError(400, "The connection broke; what arrived is kept.") from error
    finally:
        if parts:
            await run_in_threadpool(incoming.write, b"".join(parts))


def _parse_range(request: Request) -> tuple[int, int | None, int | None]:
    """First byte, last byte and total, as far as the headers tell."""
    header = request.headers.get("content-range")
    if header is None:
        length = request.headers.get("content-length", "")
        return 0, None, int(length) if length.isdecimal() else None
    match = _RANGE.fullmatch(header.strip())
    first, last, total = (int(part) for part in match.groups()) if match else (0, -1, 0)
    if not first <= last < total:
        raise ServiceError(
            400, f"Content-Range: {header[:100]!r} is not bytes FIRST-LAST/TOTAL. Bytes count from 0."
        )
    return first, last, total


def _refuse_needed(server: object, name: str) -> None:
    if name in server.jobs.needed_uploads():  # type: ignore[attr-defined]
        raise ServiceError(
            409, f"A job that has not ended needs the upload {name!r}. Cancel it, or wait for it."
        )


routes = [
    Route("/uploads", list_uploads, methods=["GET"]),
    Route("/uploads/{name}", get_upload, methods=["GET"]),
    Route("/uploads/{name}", put_upload, methods=["PUT"]),
    Route("/uploads/{name}", remove_upload, methods=["DELETE"]),
]
