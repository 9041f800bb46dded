"""From the queue to the workers: a thread that gives waiting jobs to a cluster, one to a device."""

import fcntl
import logging
import shutil
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from service.cluster import Cluster, Place
from service.inputs import InputLimits
from service.jobs import JobStore, to_text
from service.settings import Settings
from service.supervise import Outcome
from service.uploads import Uploads
from service.work import Task

logger = logging.getLogger(__name__)

TICK_S = 0.2
"""Between two looks at the queue: a cancelled job stops within this and the time of a kill."""
RETRY_S = 5.0
"""Before a cluster that failed is tried again."""
GONE_AFTER_S = 5.0
"""Without a worker, after which its job waits again."""
CLEAN_EVERY_S = 3600.0
"""Between two removals of what is older than the retention."""
STOPPED = "The server was stopped while this job ran."


@dataclass
class _Running:
    """A job on its way."""

    future: Any
    place: Place
    is_stopping: bool = False
    seen: float = field(default_factory=time.monotonic)
    """When its worker was last there."""


class Dispatcher(threading.Thread):
    """Runs the jobs of a store.

    Of several servers with one data folder, one at a time does so: the one that holds the lock. Jobs that
    were running when it took over were interrupted, and wait again.

    Parameters
    ----------
    settings : Settings
    jobs : JobStore
    uploads : Uploads
        Of which the old ones are removed.
    """

    def __init__(self, settings: Settings, jobs: JobStore, uploads: Uploads) -> None:
        super().__init__(name="accm-dispatcher", daemon=True)
        self._settings = settings
        self._jobs = jobs
        self._uploads = uploads
        self._stopping = threading.Event()
        self._running: dict[str, _Running] = {}
        self._cleaned = -CLEAN_EVERY_S
        self.problem: str | None = "starting"
        """Why no job can run now; None when they can."""

    def close(self) -> None:
        """Stop: running jobs are killed, and wait again when a server starts."""
        self._stopping.set()
        if self.is_alive():
            self.join(timeout=30.0)

    def run(self) -> None:
        """Run jobs until closed; for the thread."""
        with (self._settings.data / ".dispatcher.lock").open("w") as lock:
            if not self._take(lock):
                return
            for job in self._jobs.recent("running"):
                self._jobs.requeue(job.id, STOPPED)
            while not self._stopping.is_set():
                try:
                    self._work()
                except Exception as error:
                    # the scheduler of a lab may go and come back: say so, and try again
                    self.problem = f"{type(error).__name__}: {error}"
                    logger.exception("jobs cannot run now; trying again")
                    self._stopping.wait(RETRY_S)

    def _take(self, lock: IO[str]) -> bool:
        """Wait for the lock; False when closed before."""
        while not self._stopping.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.problem = None  # another server runs the jobs
                self._stopping.wait(1.0)
            else:
                return True
        return False

    def _work(self) -> None:
        """Connect, and give out jobs until closed or something fails."""
        cluster = Cluster(self._settings, self._take_news)
        try:
            while not self._stopping.wait(TICK_S):
                self._tick(cluster)
        finally:
            for job_id, running in self._running.items():
                cluster.stop(job_id, running.place)
                self._jobs.requeue(job_id, STOPPED)
            self._running.clear()
            cluster.close()

    def _tick(self, cluster: Cluster) -> None:
        places = cluster.places()
        self.problem = None if places else "The scheduler has no workers; jobs wait until one comes."
        addresses = {place.address for place in places}
        for job_id, running in list(self._running.items()):
            if running.future.done():
                self._settle(job_id, cluster.outcome_of(running.future))
            elif running.place.address in addresses:
                running.seen = time.monotonic()
            elif time.monotonic() - running.seen > GONE_AFTER_S:
                running.future.cancel()
                self._settle(job_id, Outcome(interrupted=f"The worker {running.place.address} went away."))
        for job_id in self._jobs.cancelling():
            running_job = self._running.get(job_id)
            if running_job is not None and not running_job.is_stopping:
                running_job.is_stopping = True
                cluster.stop(job_id, running_job.place)
        taken = {running.place.address for running in self._running.values()}
        for place in places:
            if place.address not in taken and (job := self._jobs.claim()) is not None:
                task = Task(
                    job.id,
                    job.kind,
                    self._jobs.request_of(job.id),
                    str(self._settings.job_folder(job.id, job.attempts)),
                    str(self._settings.data),
                    InputLimits.of(self._settings),
                    place.device,
                )
                self._running[job.id] = _Running(cluster.submit(task, place), place)
        if time.monotonic() - self._cleaned > CLEAN_EVERY_S:
            self._cleaned = time.monotonic()
            self._clean()

    def _settle(self, job_id: str, outcome: Outcome) -> None:
        """Write down how a job ended, or let it wait again."""
        del self._running[job_id]
        if outcome.result is not None:
            self._jobs.finish(job_id, "done", result=outcome.result)
            self._jobs.add_stage_seconds(outcome.stage_seconds or {})
        elif outcome.error is not None:
            self._jobs.finish(job_id, "failed", error=outcome.error)
        else:
            self._jobs.requeue(job_id, outcome.interrupted or "The job was interrupted.")

    def _take_news(self, news: dict[str, Any]) -> None:
        if "log" in news:
            self._jobs.add_log(news["job"], [news["log"]])
        else:
            self._jobs.report(news["job"], news["stage"], news["fraction"], news["eta_s"])

    def _clean(self) -> None:
        """Remove what is older than the retention, and folders that no job owns."""
        before = datetime.now(UTC) - timedelta(days=self._settings.retention_days)
        self._jobs.remove_finished(to_text(before))
        known = {job.id for job in self._jobs.recent(limit=-1)}
        for folder in self._settings.jobs_folder.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        self._uploads.remove_old(before.timestamp(), needed=self._jobs.needed_uploads())
