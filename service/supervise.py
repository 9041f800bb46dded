"""The Dask task that runs one job: starts its process, passes its news on, and stops it when asked.

It runs on a worker of any Dask cluster that sees the data folder; what it finds out goes back as events.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.settings import environ_without_secrets
from service.work import Task

_running: dict[str, subprocess.Popen[str]] = {}
_stopped: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    result : dict or None
        What came of it, when it is done.
    error : str or None
        Why it failed.
    stage_seconds : dict
        Seconds that each stage took.
    interrupted : str or None
        What killed the process before it could say how it ended.
    """

    result: dict[str, Any] | None = None
    error: str | None = None
    stage_seconds: dict[str, float] | None = None
    interrupted: str | None = None


def run_on_worker(task_json: str, topic: str) -> Outcome:
    """Run a job; its news go to a topic of the cluster's events. For ``Client.submit``."""
    from distributed import get_worker

    worker = get_worker()
    return run_job(Task.from_json(task_json), lambda news: worker.log_event(topic, news))


def stop_job(job_id: str) -> None:
    """Kill a job of this process, and those it started, at once. For ``Client.run``."""
    with _lock:
        _stopped.add(job_id)
        process = _running.get(job_id)
        if process is not None:
            _kill(process)


def run_job(task: Task, on_news: Callable[[dict[str, Any]], None]) -> Outcome:
    """Run a job in a process of its own.

    Parameters
    ----------
    task : Task
    on_news : callable
        Given ``{"job", "stage", "fraction", "eta_s"}`` or ``{"job", "log"}``.
    """
    folder = Path(task.folder)
    for attempt in range(1, int(folder.name) + 1):  # whoever is still at work there was given up
        shutil.rmtree(folder.with_name(str(attempt)), ignore_errors=True)
    folder.mkdir(parents=True)
    outcome = Outcome(interrupted="The job's process ended without a word.")
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=folder) as scratch:
        process = _start(task, scratch)
        try:
            for line in process.stdout or ():
                news = json.loads(line)
                if "done" in news:
                    outcome = Outcome(result=news["done"], stage_seconds=news["stage_seconds"])
                elif "failed" in news:
                    outcome = Outcome(error=news["failed"])
                else:
                    on_news({"job": task.id, **news})
            code = process.wait()
        finally:
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            with _lock:
                _running.pop(task.id, None)
                was_stopped = task.id in _stopped
                _stopped.discard(task.id)
    if outcome.interrupted is not None and was_stopped:
        outcome = Outcome(interrupted="The job was stopped.")
    elif outcome.interrupted is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " It may have run out of memory." if name == "SIGKILL" else ""
        outcome = Outcome(interrupted=f"The job's process was ended by {name}.{hint}")
    if outcome.result is None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another start has its files there
            folder.parent.rmdir()
    return outcome


def _start(task: Task, scratch: str) -> subprocess.Popen[str]:
    """Start the process and tell it the task; its standard input stays open for as long as we live."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service.work"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        env={**environ_without_secrets(), "TMPDIR": scratch, "ACCM_DATA": task.data},
    )
    with _lock:
        _running[task.id] = process
        if task.id in _stopped:  # asked to stop before it began
            _kill(process)
    if process.stdin is not None:
        with suppress(BrokenPipeError):  # it is gone already, as its exit code will tell
            process.stdin.write(task.to_json() + "\n")
            process.stdin.flush()
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
