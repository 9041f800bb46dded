"""All routes beside BentoML's own, as one application."""

import logging

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from accm_core.errors import AccmError
from service import job_routes, metrics, model_routes, openapi, page, streaming, upload_routes
from service.errors import ServiceError
from service.uploads import WrongOffsetError

logger = logging.getLogger(__name__)


async def get_server(request: Request) -> Response:
    """What the server is and may do."""
    return JSONResponse(await run_in_threadpool(request.app.state.server.describe))


def make_app() -> Starlette:
    """Make the application; ``app.state.server`` is set when the service starts."""
    return Starlette(
        routes=[
            Route("/server", get_server, methods=["GET"]),
            *upload_routes.routes,
            *job_routes.routes,
            *model_routes.routes,
            *streaming.routes,
            *page.routes,
            *metrics.routes,
            *openapi.routes,
        ],
        exception_handlers={
            ServiceError: answer_refusal,
            ClientDisconnect: _answer_nobody,
            AccmError: answer_bad_input,
            Exception: _answer_failure,
        },
    )


def answer_refusal(request: Request, error: Exception) -> Response:
    """Answer a refusal by its status."""
    status = error.status if isinstance(error, ServiceError) else 500
    more = {"bytes": error.have} if isinstance(error, WrongOffsetError) else {}
    return JSONResponse({"error": str(error), **more}, status_code=status)


def answer_bad_input(request: Request, error: Exception) -> Response:
    """Answer what the package refuses."""
    return JSONResponse({"error": str(error)}, status_code=400)


def _answer_nobody(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The connection broke."}, status_code=400)


def _answer_failure(request: Request, error: Exception) -> Response:
    logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "Something went wrong here; the server's log says what."}, status_code=500)
