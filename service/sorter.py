"""The BentoML service. What is typed is here; uploads, jobs, models, the stream and the page are in `app`."""

import functools
import gc
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from accm_core.errors import AccmError
from service.app import make_app
from service.auth import protections
from service.errors import ServiceError
from service.request_metrics import RequestMetrics, RequestMetricsMiddleware
from service.schemas import FinetuneRequest, Job, PretrainRequest, SortRequest
from service.settings import read_settings
from service.stream_wire import SWITCH_S

TIMEOUT_S = 3600.0
"""Until the first byte of an answer, should `_pass_on` not take its place."""
NPY = ContentType("application/octet-stream")
Npy = Annotated[bytes, NPY]
"""A ``.npy`` file."""

app = make_app()
app.state.requests = RequestMetrics(app.routes)


def _answer_errors(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Answer what is refused on purpose by its status and message; BentoML's own form is a list."""

    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except ServiceError as error:
            status, message = error.status, str(error)
        except AccmError as error:
            status, message = 400, str(error)
        if "ctx" in kwargs:  # BentoML takes the status from there, where there is a context
            kwargs["ctx"].response.status_code = status
        return JSONResponse({"error": message}, status_code=status)

    return call


def _leave_with_parent(parent: int) -> None:
    """End when BentoML's parent process is gone: a worker that stays would hold the port and the jobs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


@bentoml.asgi_app(app, path="/")
@bentoml.service(
    name="spike_sorter",
    workers=1,  # jobs and online sessions have processes of their own
    traffic={"timeout": TIMEOUT_S},
    metrics={"enabled": False},  # they would grow for ever, see service/request_metrics.py
    logging={"access": {"enabled": False}},  # the page asks every other second
)
class SpikeSorter:
    """Spike sorting by adaptive contrastive learning: sessions in, sorted NWB files, models and spikes out.

    Sorting, fine-tuning and pretraining are jobs: the answer is a job, which `/jobs/ID` follows. Torch is not
    imported before it is needed here, and jobs run in processes of their own.
    """

    def __init__(self) -> None:
        from service.inference import Inference
        from service.server import Server

        sys.setswitchinterval(SWITCH_S)
        settings = read_settings()
        self.server: Server = Server(settings)
        self.server.start()
        self.inference = Inference(device=settings.device)
        app.state.server = self.server
        threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
        # what is there by now stays: the collector need not stop a stream to look at it again and again
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Stop: jobs that run wait for the next start."""
        self.inference.close()
        self.server.close()

    async def __is_ready__(self) -> bool:
        """Whether jobs are taken; a lab's scheduler that is away for a while lets them wait."""
        return self.server.dispatcher.is_alive()

    @bentoml.api
    @_answer_errors
    async def sort(self, request: SortRequest, /) -> Job:
        """Sort a session; the answer is a job."""
        return await run_in_threadpool(self.server.add_sort, request)

    @bentoml.api
    @_answer_errors
    async def finetune(self, request: FinetuneRequest, /) -> Job:
        """Make a model of a session with labelled spikes; the answer is a job."""
        return await run_in_threadpool(self.server.add_finetune, request)

    @bentoml.api
    @_answer_errors
    async def pretrain(self, request: PretrainRequest, /) -> Job:
        """Make an encoder from simulated recordings and sessions, without labels; the answer is a job."""
        return await run_in_threadpool(self.server.add_pretrain, request)

    @bentoml.api
    @_answer_errors
    async def embed(self, snippets: Npy, /, ctx: bentoml.Context) -> Npy:
        """Embed snippets, a `.npy` of (n, n_samples, n_channels), by the model that `?model=` names."""
        return await self.inference.embed(snippets, ctx.request.query_params.get("model"))

    @bentoml.api
    @_answer_errors
    async def classify(self, snippets: Npy, /, ctx: bentoml.Context) -> Npy:
        """Probability of each unit of a fine-tuned model, `?model=`, for snippets, a `.npy`, as a `.npy`."""
        model = ctx.request.query_params.get("model")
        if model is None:
            raise ServiceError(400, "Name a fine-tuned model, as in /classify?model=NAME. See GET /models.")
        return await self.inference.classify(snippets, model)


async def _pass_on(self: Any, scope: Any, receive: Any, send: Any) -> None:
    """Take the place of BentoML's timeout for requests.

    It keeps 5 KiB of each one until the timeout is over, answered or not, and cannot be turned off; ours may
    not be short, for it counts until an upload is whole. Uploads that stand still are ended by their route.
    """
    await self.app(scope, receive, send)


with suppress(ImportError):  # where a later BentoML has none, nothing is to be done
    from bentoml._internal.server.http.traffic import TimeoutMiddleware

    TimeoutMiddleware.__call__ = _pass_on
_service: Any = SpikeSorter  # BentoML's decorator makes a service of the class
app.state.typed_docs = lambda: _service.openapi_spec.asdict()
_settings = read_settings()
_service.add_asgi_middleware(RequestMetricsMiddleware, metrics=app.state.requests)
for protection in protections(_settings.api_key, is_loopback=not _settings.allow_no_key):
    _service.add_asgi_middleware(protection.cls, **protection.kwargs)
