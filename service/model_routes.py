"""``/models``: the registry, its cards, export, import and removal."""

import asyncio
import secrets
from types import ModuleType
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from accm_core.errors import AccmError
from service.errors import ServiceError

if TYPE_CHECKING:
    from accm_core.models import ModelEntry

_importing = asyncio.Lock()
"""One model at a time: each is read into memory, whole."""


async def get_models(request: Request) -> Response:
    """All models, the shipped one first."""
    entries = await run_in_threadpool(lambda: registry().list_models())
    return JSONResponse({"models": [entry.summary() for entry in entries]})


async def get_model(request: Request) -> Response:
    """A model's card: what it is, what it was trained on and how."""
    entry = await run_in_threadpool(_find, request.path_params["name"])
    if entry.problem:
        raise ServiceError(409, entry.problem)
    from accm_core.learning.classify import list_channels

    return JSONResponse(
        {
            "name": entry.name,
            "bytes": entry.num_bytes,
            "sha256": entry.sha256,
            "channels": list(list_channels(entry.card)),  # columns of snippets for /classify
            "card": dict(entry.card),
        }
    )


async def export_model(request: Request) -> Response:
    """A model as a file."""
    name = request.path_params["name"]
    entry = await run_in_threadpool(_find, name)
    if entry.problem:  # it may be anything, a link to it as well
        raise ServiceError(409, entry.problem)
    return FileResponse(entry.path, filename=f"{name}.safetensors", media_type="application/octet-stream")


async def put_model(request: Request) -> Response:
    """Import a model from a file, after looking through it."""
    name, server = request.path_params["name"], request.app.state.server
    overwrite = request.query_params.get("overwrite", "false") == "true"
    await run_in_threadpool(registry().prepare_place, name, overwrite=overwrite)
    path = server.settings.data / f".model-{secrets.token_hex(8)}.safetensors"
    try:
        with path.open("xb") as file:
            async for part in request.stream():
                await run_in_threadpool(file.write, part)
        async with _importing:
            await run_in_threadpool(registry().import_model, path, name, overwrite=overwrite)
    except AccmError as error:
        raise ServiceError(400, str(error).replace(str(path), "What was sent")) from error
    finally:
        path.unlink(missing_ok=True)
    entry = await run_in_threadpool(_find, name)
    return JSONResponse(entry.summary(), status_code=201)


async def delete_model(request: Request) -> Response:
    """Remove a model."""
    entry = await run_in_threadpool(_find, request.path_params["name"])
    await run_in_threadpool(registry().remove_model, entry.name)
    return JSONResponse(entry.summary())


def registry() -> ModuleType:
    """The registry of models. Torch comes with it: BentoML's parent process does without."""
    from accm_core import models

    return models


def _find(name: str) -> "ModelEntry":
    entry: ModelEntry | None = registry().describe_model(name)
    if entry is None:
        raise ServiceError(404, f"There is no model {name[:100]!r}. See GET /models.")
    return entry


routes = [
    Route("/models", get_models, methods=["GET"]),
    Route("/models/{name}", get_model, methods=["GET"]),
    Route("/models/{name}", put_model, methods=["PUT"]),
    Route("/models/{name}", delete_model, methods=["DELETE"]),
    Route("/models/{name}/file", export_model, methods=["GET"]),
]
