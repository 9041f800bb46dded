"""One job, in a process of its own: ``python -m service.work``.

It reads the task, one line of JSON, from standard input, and writes news as lines of JSON to standard output.
When standard input ends, whoever started it is gone, and it goes too. A process of its own frees the GPU and
all memory however the job ends, and can be killed at any time.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from accm_core.errors import AccmError
from accm_core.progress import FINETUNE_SHARES, PRETRAIN_SHARES, SORT_SHARES, Tally
from service.errors import ServiceError
from service.inputs import InputLimits, check_file, resolve_input
from service.schemas import FinetuneRequest, InputRef, PretrainRequest, SortRequest

REPORT_EVERY_S = 0.5
"""Between two reports of how far a stage is."""
RESULT, REPORT = "session_sorted.nwb", "report.html"
"""What a sort leaves in the folder of its job."""


@dataclass(frozen=True)
class Task:
    """What a job's process is told.

    Attributes
    ----------
    id, kind : str
        Of the job.
    request : dict
        What was asked for.
    folder : str
        Of this start of the job: a number in the job's own folder. It is there and empty.
    data : str
        The data folder of the server.
    limits : InputLimits
        Where the inputs may come from.
    device : str
        Where to compute.
    """

    id: str
    kind: str
    request: dict[str, Any]
    folder: str
    data: str
    limits: InputLimits
    device: str

    def to_json(self) -> str:
        """As one line."""
        return json.dumps({**vars(self), "limits": self.limits.to_dict()})

    @staticmethod
    def from_json(line: str) -> "Task":
        """From that line."""
        values = json.loads(line)
        return Task(**{**values, "limits": InputLimits.from_dict(values["limits"])})


class News:
    """Writes what happens as lines of JSON, from any thread."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._lock = threading.Lock()

    def send(self, **values: Any) -> None:
        """Write one line."""
        with self._lock:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()


class Progress:
    """Takes the stages' progress; sends it on now and then, and adds up what each stage took."""

    def __init__(self, news: News, shares: dict[str, float]) -> None:
        self._news = news
        self._tally = Tally(shares)
        self._lock = threading.Lock()
        self._stage = ""
        self._heard = self._sent = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)

    def __call__(self, stage: str, fraction: float) -> None:
        """Take news of a stage."""
        with self._lock:
            overall, _, left = self._tally.update(stage, fraction)
            now, is_new = time.monotonic(), stage != self._stage
            # news come when a piece of work is done: the time before belongs to it, unless it only begins
            self._seconds[stage if fraction > 0 or not self._stage else self._stage] += now - self._heard
            self._stage, self._heard = stage, now
            if is_new or now - self._sent >= REPORT_EVERY_S:
                self._sent = now
                eta_s = None if left is None else round(left, 1)
                self._news.send(stage=stage, fraction=round(overall, 4), eta_s=eta_s)

    def seconds(self) -> dict[str, float]:
        """What each stage took."""
        return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}


def main() -> None:
    """Do the job that standard input tells."""
    task = Task.from_json(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    # what a library prints must not mix with the news
    news = News(os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with _log_as(news):
        try:
            result, seconds = _KINDS[task.kind](task, news)
            news.send(done=result, stage_seconds=seconds)
        except (AccmError, ServiceError) as error:
            news.send(failed=str(error))
        except MemoryError:
            news.send(failed="The job ran out of memory. Sort on a machine with more, or fewer jobs at once.")
        except Exception as error:
            for line in traceback.format_exc().splitlines():
                news.send(log=line)
            news.send(failed=f"Unexpected {type(error).__name__}: {error}. The job's log has the traceback.")


def _sort(task: Task, news: News) -> tuple[dict[str, Any], dict[str, float]]:
    from accm_core.io.nwb_read import read_nwb
    from accm_core.session import sort_session
    from accm_core.summaries import describe_sorting

    request = SortRequest.model_validate(task.request)
    source = _open(request.input, task)
    folder = Path(task.folder)
    progress, started = Progress(news, SORT_SHARES), time.perf_counter()
    with read_nwb(source, series=request.series) as recording:
        sorting = sort_session(
            recording,
            folder / RESULT,
            report=folder / REPORT if request.report else None,
            params=request.params,
            model=request.model,
            device=task.device,
            seed=request.seed,
            units=request.units,
            on_progress=progress,
        )
    summary = describe_sorting(sorting)
    labels = {label: summary.pop(label) for label in ("good", "mua", "noise")}
    elapsed = round(time.perf_counter() - started, 2)
    device = sorting.provenance["device"]
    return {
        **summary,
        "labels": labels,
        "device": device,
        "elapsed_s": elapsed,
        "file": RESULT,
    }, progress.seconds()


def _finetune(task: Task, news: News) -> tuple[dict[str, Any], dict[str, float]]:
    import numpy as np

    from accm_core.io.nwb_read import read_nwb
    from accm_core.io.nwb_units import read_spike_trains
    from accm_core.session import finetune_session
    from accm_core.summaries import describe_finetuned

    request = FinetuneRequest.model_validate(task.request)
    source, labels_file = _open(request.input, task), request.labels.file
    if labels_file is None:
        trains = {name: np.asarray(times) for name, times in (request.labels.units or {}).items()}
    else:
        trains = read_spike_trains(_open(labels_file, task), without_quality="noise")
    progress, started = Progress(news, FINETUNE_SHARES), time.perf_counter()
    with read_nwb(source, series=request.series) as recording:
        model, path = finetune_session(
            recording,
            trains,
            request.name,
            session_name=request.input.display_name,
            labels_name="" if labels_file is None else labels_file.display_name,
            params=request.params,
            device=task.device,
            seed=request.seed,
            overwrite=True,  # a second start after a crash replaces what the first one stored
            on_progress=progress,
        )
    result = {
        "model": request.name,
        **describe_finetuned(model),
        "elapsed_s": round(time.perf_counter() - started, 2),
        "file": path.name,
    }
    return result, progress.seconds()


def _pretrain(task: Task, news: News) -> tuple[dict[str, Any], dict[str, float]]:
    from accm_core.models import store_model
    from accm_core.pretrain import pretrain

    request = PretrainRequest.model_validate(task.request)
    sources = [_open(ref, task) for ref in request.inputs]
    progress, started = Progress(news, PRETRAIN_SHARES), time.perf_counter()
    model = pretrain(
        sources,
        num_recordings=request.recordings,
        params=request.params,
        device=task.device,
        seed=request.seed,
        on_progress=progress,
    )
    path = store_model(model, request.name, overwrite=True)
    result = {
        "model": request.name,
        **model.card["training"],
        "sha256": model.sha256,
        "elapsed_s": round(time.perf_counter() - started, 2),
        "file": path.name,
    }
    return result, progress.seconds()


_KINDS: dict[str, Callable[[Task, News], tuple[dict[str, Any], dict[str, float]]]] = {
    "sort": _sort,
    "finetune": _finetune,
    "pretrain": _pretrain,
}


def _open(ref: InputRef, task: Task) -> Any:
    """The file or address, checked again: links may have changed since it was asked for."""
    source = resolve_input(ref, task.limits)
    check_file(source, task.limits.input_roots if ref.path is not None else ())
    return source


def _leave_with_parent() -> None:
    """Wait until standard input ends."""
    while sys.stdin.readline():
        pass
    os._exit(1)


@contextmanager
def _log_as(news: News) -> Iterator[None]:
    """Send what the stages tell of themselves, and warnings, as lines of the job's log."""

    class _Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            news.send(log=self.format(record))

    logger = logging.getLogger("accm_core")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Handler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
