"""The workers that jobs run on: an embedded Dask cluster of this process, or a lab's own."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from service.devices import list_devices
from service.settings import Settings
from service.supervise import Outcome, run_on_worker, stop_job
from service.work import Task

logger = logging.getLogger(__name__)

TOPIC = "accm-jobs"
CONNECT_S, START_S = 10.0, 30.0
"""Time to reach a scheduler, and for workers of our own to start."""
LOOK_EVERY_S = 1.0
"""Between two questions to the scheduler which workers there are."""


@dataclass(frozen=True)
class Place:
    """A worker, and the device that jobs use there."""

    address: str
    device: str


class Cluster:
    """A Dask cluster, as the dispatcher needs it.

    Parameters
    ----------
    settings : Settings
        Without a scheduler, workers are threads of this process, one a device and job: they only watch the
        processes in which jobs run.
    on_news : callable
        Given the news of a job; see `run_job`.
    """

    def __init__(self, settings: Settings, on_news: Callable[[dict[str, Any]], None]) -> None:
        from distributed import Client

        self._own: Any = None
        self._devices: list[str] | None = None
        self._device = settings.device
        if settings.scheduler is None:
            self._devices = list_devices(settings.device) * settings.jobs_per_device
            self._own = _start_cluster(len(self._devices), settings)
        self._client = Client(self._own or settings.scheduler, timeout=CONNECT_S, set_as_default=False)
        if self._devices is not None:
            self._client.wait_for_workers(len(self._devices), timeout=START_S)
        self._client.subscribe_topic(TOPIC, lambda event: on_news(event[1]))
        self._places: list[Place] = []
        self._looked = -LOOK_EVERY_S

    def places(self) -> list[Place]:
        """The workers that are there, by name, as a moment ago."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._places, self._looked = self._look(), time.monotonic()
        return self._places

    def _look(self) -> list[Place]:
        # scheduler_info() may give its cache, from which the workers are missing at times
        workers = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        found = sorted(workers.items(), key=lambda item: str(item[1]["name"]))
        if self._devices is None:
            return [Place(address, self._device) for address, _ in found]
        return [Place(address, self._devices[int(info["name"])]) for address, info in found]

    def submit(self, task: Task, place: Place) -> Any:
        """Run a job at a place; a future of its outcome."""
        return self._client.submit(
            run_on_worker, task.to_json(), TOPIC, workers=[place.address], pure=False, retries=0
        )

    def stop(self, job_id: str, place: Place) -> None:
        """Kill a job."""
        self._client.run(stop_job, job_id, workers=[place.address], on_error="ignore")

    @staticmethod
    def outcome_of(future: Any) -> Outcome:
        """How a job ended whose future is done."""
        try:
            outcome: Outcome = future.result()
        except (Exception, CancelledError) as error:
            return Outcome(interrupted=f"The worker failed: {type(error).__name__}: {error}.")
        return outcome

    def close(self) -> None:
        """Leave it, and end it if it is ours."""
        for part in (self._client, self._own):
            if part is not None:
                try:
                    part.close(timeout=5)
                except Exception:
                    logger.exception("closing the cluster")


def _start_cluster(num_workers: int, settings: Settings) -> Any:
    """Workers as threads of this process; Dask's web pages are left out, nothing listens to the network.

    Dask looks at itself up to a hundred times a second, and what else this process does waits for it: here it
    hardly does.
    """
    import dask
    from distributed import LocalCluster

    logging.getLogger("distributed").setLevel(logging.WARNING)
    quiet: dict[str, Any] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
    quiet["distributed.worker.profile.enabled"] = False
    quiet["distributed.admin.tick.interval"] = quiet["distributed.worker.memory.monitor-interval"] = "1s"
    quiet["distributed.admin.system-monitor.interval"] = "10s"
    with dask.config.set(quiet):
        return LocalCluster(
            n_workers=num_workers,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            local_directory=str(settings.data / ".dask"),
        )
