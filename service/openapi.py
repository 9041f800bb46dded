"""``/docs.json``: BentoML's OpenAPI of the typed routes, and of ours beside them."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.jobs import FINAL
from service.schemas import Job

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
    ("PUT", "/uploads/{name}"): {"Content-Range": {"type": "string", "pattern": r"^bytes \d+-\d+/\d+$"}}
}
_SUCCESS = {
    ("PUT", "/uploads/{name}"): {"201": "All of it has arrived.", "202": "A part has arrived."},
    ("PUT", "/models/{name}"): {"201": "The model is in the registry."},
    ("DELETE", "/jobs/{id}"): {"200": "It is cancelled.", "202": "It will be within seconds."},
}
_CONTENT = {
    "/jobs/{id}/events": "text/event-stream",
    "/jobs/{id}/result": "application/octet-stream",
    "/jobs/{id}/report": "text/html",
    "/models/{name}/file": "application/octet-stream",
    "/": "text/html",
    "/page/{path:path}": "text/html",
}
_JOB_ANSWERS = {("GET", "/jobs/{id}"), ("DELETE", "/jobs/{id}")}
_ERROR = {"$ref": "#/components/schemas/Error"}


async def get_docs(request: Request) -> Response:
    """The OpenAPI of all routes."""
    return JSONResponse(merge_docs(request.app.state.typed_docs(), request.app.routes))


def merge_docs(spec: dict[str, Any], routes: list[Any]) -> dict[str, Any]:
    """Add our routes to BentoML's OpenAPI; the spec is changed in place and given back."""
    from accm_core import __version__

    spec["info"] = {
        "title": "accm",
        "version": __version__,
        "description": "NWB sessions in, sorted NWB files out. The websocket `/stream` sorts online.",
    }
    spec["servers"] = [{"url": "/"}]
    schemas = spec["components"]["schemas"]
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "description": "What is wrong."}},
    }
    schemas.setdefault("Job", Job.model_json_schema(ref_template="#/components/schemas/{model}"))
    for (method, path), parameters in _QUERY.items():
        if path in spec["paths"]:
            spec["paths"][path][method.lower()]["parameters"] = _describe_parameters("query", parameters)
    for route in routes:
        if isinstance(route, Route) and route.path != "/docs.json":
            path = re.sub(r":\w+}", "}", route.path)
            operations = spec["paths"].setdefault(path, {})
            for method in sorted(route.methods - {"HEAD"} if route.methods else ()):
                operations[method.lower()] = _describe_route(route, method)
    spec["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    spec["security"] = [{"key": []}]
    return spec


def _describe_route(route: Route, method: str) -> dict[str, Any]:
    key = (method, route.path)
    schema = next((s for start, s in _PATH_PARAMETERS.items() if route.path.startswith(start)), {})
    names = re.findall(r"{(\w+)", route.path)
    parameters = [
        *({"in": "path", "name": name, "required": True, "schema": schema} for name in names),
        *_describe_parameters("query", _QUERY.get(key, {})),
        *_describe_parameters("header", _HEADERS.get(key, {})),
    ]
    answer = {"$ref": "#/components/schemas/Job"} if key in _JOB_ANSWERS else {"type": "object"}
    kind = _CONTENT.get(route.path, "application/json")
    content = {kind: {"schema": answer if kind == "application/json" else {"type": "string"}}}
    described: dict[str, Any] = {
        "tags": ["Files, jobs and models"],
        "summary": (route.endpoint.__doc__ or "").split("\n")[0],
        "operationId": f"{method.lower()}_{route.endpoint.__name__}",
        "parameters": parameters,
        "responses": {
            **{
                status: {"description": text, "content": content}
                for status, text in _SUCCESS.get(key, {"200": "Done."}).items()
            },
            "4XX": {"description": "Refused.", "content": {"application/json": {"schema": _ERROR}}},
        },
    }
    if method == "PUT":
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        described["requestBody"] = {"required": True, "content": binary}
    return described


def _describe_parameters(place: str, parameters: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"in": place, "name": name, "required": False, "schema": s} for name, s in parameters.items()]


routes = [Route("/docs.json", get_docs, methods=["GET"])]
