"""``/docs.json``: the OpenAPI of all routes, BentoML's and ours."""

import re
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.jobs import FINAL
from service.schemas import FinetuneRequest, Job, PretrainRequest, SortRequest

VERSION = "3.1.0"
"""Of OpenAPI: BentoML says 3.0.2, where no schema may have the type null that pydantic gives."""
_FLAG = {"type": "string", "enum": ["true", "false"]}
_NAME = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"}
_UPLOAD = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"}
_PATH_PARAMETERS = {
    "/uploads": _UPLOAD,
    "/models": _NAME,
    "/jobs": {"type": "string"},
    "/page": {"type": "string"},
}
_QUERY: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("GET", "/jobs"): {
        "state": {"type": "string", "enum": ["queued", "running", *FINAL]},
        "limit": {"type": "integer", "minimum": 1, "maximum": 10_000},
    },
    ("PUT", "/uploads/{name}"): {
        "sha256": {"type": "string", "pattern": "^[0-9A-Fa-f]{64}$"},
        "overwrite": _FLAG,
    },
    ("PUT", "/models/{name}"): {"overwrite": _FLAG},
    ("POST", "/embed"): {"model": _NAME},
    ("POST", "/classify"): {"model": _NAME},
}
_HEADERS: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("PUT", "/uploads/{name}"): {"Content-Range": {"type": "string", "pattern": r"^bytes \d+-\d+/\d+$"}},
    ("GET", "/jobs/{id}/result"): {"Range": {"type": "string", "pattern": r"^bytes=\d+-\d*$"}},
}
_REQUESTS = {"/sort": SortRequest, "/finetune": FinetuneRequest, "/pretrain": PretrainRequest}
_SUCCESS = {
    ("PUT", "/uploads/{name}"): {"201": "All of it has arrived.", "202": "A part has arrived."},
    ("PUT", "/models/{name}"): {"201": "The model is in the registry."},
    ("DELETE", "/jobs/{id}"): {"200": "It is cancelled.", "202": "It will be within seconds."},
    **{
        ("GET", path): {"200": "The file.", "206": "The part that was asked for."}
        for path in ("/jobs/{id}/result", "/jobs/{id}/report", "/models/{name}/file", "/", "/page/{name}")
    },
}
_CONTENT = {
    "/jobs/{id}/events": ("text/event-stream",),
    "/jobs/{id}/result": ("application/x-hdf5", "application/octet-stream"),
    "/jobs/{id}/report": ("text/html",),
    "/models/{name}/file": ("application/octet-stream",),
    "/": ("text/html",),
    "/page/{name}": ("text/html", "text/css", "text/javascript", "image/svg+xml"),
    "/metrics": ("text/plain",),
    "/embed": ("application/octet-stream",),
    "/classify": ("application/octet-stream",),
}
"""Media types of answers; what is not named answers JSON."""


def _refer(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(key: str, items: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"type": "array", "items": items}},
    }


_TEXT, _WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {**_TEXT, "description": "What is wrong."},
            "detail": {
                "type": "array",
                "items": {"type": "object"},
                "description": "Each value that is wrong, where it stands (`loc`) and why (`msg`).",
            },
            "bytes": {**_WHOLE, "description": "How much of an upload has arrived, when a part is refused."},
        },
    },
    "Upload": {
        "type": "object",
        "required": ["name", "bytes"],
        "properties": {
            "name": _UPLOAD,
            "bytes": {**_WHOLE, "description": "What has arrived."},
            "total": {"type": ["integer", "null"], "description": "What was announced."},
            "complete": {"type": "boolean"},
            "sha256": {"type": ["string", "null"], "description": "When it is complete."},
            "created": _TEXT,
        },
    },
    "Model": {
        "type": "object",
        "required": ["name", "bytes", "sha256"],
        "properties": {
            "name": _NAME,
            "kind": {"type": ["string", "null"], "description": "encoder or finetuned."},
            "units": {"type": ["integer", "null"], "description": "How many it knows."},
            "bytes": _WHOLE,
            "sha256": _TEXT,
            "problem": {**_TEXT, "description": "Why the file is no model; empty when it is one."},
        },
    },
    "ModelCard": {
        "type": "object",
        "required": ["name", "bytes", "sha256", "channels", "card"],
        "properties": {
            "name": _NAME,
            "bytes": _WHOLE,
            "sha256": _TEXT,
            "channels": {
                "type": "array",
                "items": {"type": ["string", "null"]},
                "description": "Columns of the snippets for /classify.",
            },
            "card": {"type": "object"},
        },
    },
    "JobDetail": {
        "allOf": [_refer("Job")],
        "type": "object",
        "required": ["log", "request"],
        "properties": {"log": {"type": "array", "items": _TEXT}, "request": {"type": "object"}},
    },
    "Jobs": _list("jobs", _refer("Job")),
    "Uploads": _list("uploads", _refer("Upload")),
    "Models": _list("models", _refer("Model")),
}
_ANSWERS = {
    ("GET", "/jobs"): "Jobs",
    ("GET", "/jobs/{id}"): "JobDetail",
    ("DELETE", "/jobs/{id}"): "Job",
    ("GET", "/uploads"): "Uploads",
    ("GET", "/uploads/{name}"): "Upload",
    ("PUT", "/uploads/{name}"): "Upload",
    ("DELETE", "/uploads/{name}"): "Upload",
    ("GET", "/models"): "Models",
    ("GET", "/models/{name}"): "ModelCard",
    ("PUT", "/models/{name}"): "Model",
    ("DELETE", "/models/{name}"): "Model",
    **{("POST", path): "Job" for path in _REQUESTS},
}
_REFUSED = {
    "4XX": {
        "description": "Refused.",
        "content": {"application/json": {"schema": _refer("Error")}},
    }
}


async def get_docs(request: Request) -> Response:
    """The OpenAPI of all routes."""
    return JSONResponse(merge_docs(request.app.state.typed_docs(), request.app.routes))


def merge_docs(spec: dict[str, Any], routes: list[Any]) -> dict[str, Any]:
    """Add our routes to BentoML's OpenAPI; the spec is changed in place and given back.

    Notes
    -----
    BentoML's own schemas are left out for those of pydantic: they say of what may be null that it may not.
    """
    from accm_core import __version__

    spec["openapi"] = VERSION
    spec["info"] = {
        "title": "accm",
        "version": __version__,
        "description": "NWB sessions in, sorted NWB files out. The websocket `/stream` sorts online.",
    }
    spec["servers"] = [{"url": "/"}]
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            _complete_typed(operation, method.upper(), path)
    for route in routes:
        if isinstance(route, Route) and route.path != "/docs.json":
            operations = spec["paths"].setdefault(re.sub(r":\w+}", "}", route.path), {})
            for method in sorted(route.methods - {"HEAD"} if route.methods else ()):
                operations[method.lower()] = _describe_route(route, method)
    spec["components"] = {
        "schemas": {**_describe_types(), **_SCHEMAS},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    spec["security"] = [{"key": []}]
    return spec


def _describe_types() -> dict[str, Any]:
    """Schemas of what is asked, and of a job as it is answered."""
    asked = [(model, "validation") for model in _REQUESTS.values()]
    _, described = models_json_schema(
        [*asked, (Job, "serialization")],  # type: ignore[list-item]
        ref_template="#/components/schemas/{model}",
    )
    return dict(described["$defs"])


def _complete_typed(operation: dict[str, Any], method: str, path: str) -> None:
    """Say of a route of BentoML what it takes and answers."""
    operation["parameters"] = _describe_parameters("query", _QUERY.get((method, path), {}))
    if path in _REQUESTS:
        schema = _refer(_REQUESTS[path].__name__)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "requestBody" in operation:
        operation["responses"] = _describe_answers(method, path)
    else:
        operation["security"] = []  # health, which needs no key


def _describe_route(route: Route, method: str) -> dict[str, Any]:
    key = (method, route.path)
    schema = next((s for start, s in _PATH_PARAMETERS.items() if route.path.startswith(start)), {})
    names = re.findall(r"{(\w+)", route.path)
    parameters = [
        *({"in": "path", "name": name, "required": True, "schema": schema} for name in names),
        *_describe_parameters("query", _QUERY.get(key, {})),
        *_describe_parameters("header", _HEADERS.get(key, {})),
    ]
    described: dict[str, Any] = {
        "tags": ["Files, jobs and models"],
        "summary": (route.endpoint.__doc__ or "").split("\n")[0],
        "operationId": f"{method.lower()}_{route.endpoint.__name__}",
        "parameters": parameters,
        "responses": _describe_answers(method, route.path),
    }
    if method == "PUT":
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        described["requestBody"] = {"required": True, "content": binary}
    if route.path == "/" or route.path.startswith("/page/"):
        described["security"] = []
    return described


def _describe_answers(method: str, path: str) -> dict[str, Any]:
    """The answers of a route by their status."""
    key = (method, path)
    answer = _refer(_ANSWERS[key]) if key in _ANSWERS else {"type": "object"}
    if path in _CONTENT:
        # events have no schema before OpenAPI 3.2
        schema = {} if path.endswith("/events") else {"schema": _TEXT}
        content: dict[str, Any] = dict.fromkeys(_CONTENT[path], schema)
    else:
        content = {"application/json": {"schema": answer}}
    success = _SUCCESS.get(key, {"200": "Done."})
    return {status: {"description": text, "content": content} for status, text in success.items()} | _REFUSED


def _describe_parameters(place: str, parameters: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"in": place, "name": name, "required": False, "schema": s} for name, s in parameters.items()]


routes = [Route("/docs.json", get_docs, methods=["GET"])]
