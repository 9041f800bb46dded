"""What the routes share: settings, jobs, uploads, online sessions."""

import shutil
from typing import Any

from pydantic import BaseModel

from accm_core import __version__
from accm_core.models import find_model, prepare_place
from service.devices import find_gpus
from service.dispatch import Dispatcher
from service.errors import ServiceError
from service.inputs import InputLimits, check_file, resolve_input
from service.jobs import JobStore
from service.schemas import FinetuneRequest, InputRef, Job, JobKind, PretrainRequest, SortRequest
from service.settings import Settings
from service.streaming import Streams
from service.uploads import Uploads


class Server:
    """Everything that a running service holds.

    Parameters
    ----------
    settings : Settings
        Its data folder is made when it is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = InputLimits.of(settings)
        for folder in (settings.data, settings.jobs_folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.uploads = Uploads(settings.uploads_folder, max_bytes=settings.max_upload, quota=settings.quota)
        self.jobs = JobStore(settings.data / "jobs.sqlite")
        self.streams = Streams(settings.streams_folder, settings.max_streams, settings.device)
        self.dispatcher = Dispatcher(settings, self.jobs, self.uploads)

    def start(self) -> None:
        """Begin to run jobs."""
        self.dispatcher.start()

    def close(self) -> None:
        """Stop: jobs that run wait again, sessions end."""
        self.dispatcher.close()
        self.streams.close()
        self.jobs.close()

    def add_sort(self, request: SortRequest) -> Job:
        """Check a session, and put it into the queue.

        Raises
        ------
        ServiceError
            If the session cannot be used, the model is unknown, or the queue is full.
        ModelError
            If the model is not one.
        """
        self._check_input(request.input)
        if request.model is not None:
            find_model(request.model)
        return self._add("sort", request, request.input.display_name, model=request.model)

    def add_finetune(self, request: FinetuneRequest) -> Job:
        """The same for a session with labels; 409 if the model's name is taken."""
        self._check_input(request.input)
        if request.labels.file is not None:
            self._check_input(request.labels.file)
        prepare_place(request.name, overwrite=request.overwrite)
        return self._add("finetune", request, request.input.display_name, name=request.name)

    def add_pretrain(self, request: PretrainRequest) -> Job:
        """The same for sessions to learn an encoder from."""
        for ref in request.inputs:
            self._check_input(ref)
        if not request.inputs and request.recordings == 0:
            raise ServiceError(
                400, "Nothing to learn from: no inputs and recordings = 0. Give one or the other."
            )
        prepare_place(request.name, overwrite=request.overwrite)
        first_few = ", ".join(ref.display_name for ref in request.inputs[:3])
        return self._add("pretrain", request, first_few, name=request.name)

    def describe(self) -> dict[str, Any]:
        """What the server is and may do, for its page and clients."""
        settings, disk = self.settings, shutil.disk_usage(self.settings.data)
        return {
            "version": __version__,
            "device": settings.device,
            "gpus": [gpu.name for gpu in find_gpus()],
            "scheduler": settings.scheduler,
            "problem": self.dispatcher.problem,
            "limits": {
                "max_upload": settings.max_upload,
                "max_streams": settings.max_streams,
                "max_queue": settings.max_queue,
            },
            "input_roots": bool(settings.input_roots),
            "url_hosts": list(settings.url_hosts),
            "disk": {"free": disk.free, "used": self.uploads.used_bytes(), "quota": settings.quota},
        }

    def _check_input(self, ref: InputRef) -> None:
        source = resolve_input(ref, self.limits)
        if ref.url is None:  # what is far away is looked through by the job
            check_file(source, self.limits.input_roots if ref.path is not None else ())

    def _add(
        self,
        kind: JobKind,
        request: BaseModel,
        input_name: str,
        *,
        model: str | None = None,
        name: str | None = None,
    ) -> Job:
        return self.jobs.add(
            kind,
            request.model_dump(mode="json"),
            input_name=input_name,
            model=model,
            name=name,
            max_queue=self.settings.max_queue,
        )
