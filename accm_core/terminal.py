"""What a command shows: progress, warnings, the result, and how it ended.

Progress, warnings and errors go to standard error; standard output holds the result alone.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer

from accm_core.errors import AccmError
from accm_core.progress import Tally

FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
PLAIN_INTERVAL_S = 10.0  # between two progress lines of a stage where there is no terminal

OnProgress = Callable[[str, float], None]


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it: end like Ctrl-C, so that temporary files go."""


@dataclass(frozen=True)
class Terminal:
    """Where one command writes.

    Parameters
    ----------
    as_json : bool
        The result is one JSON object.
    quiet : bool
        Errors only.
    verbose : bool
        Tracebacks and library warnings too.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def warn(self, messages: Iterable[str]) -> None:
        """Say what the user should know, unless quiet."""
        for message in messages:
            if not self.quiet:
                typer.echo(typer.style("warning: ", fg="yellow") + message, err=True)

    def finish(self, result: Mapping[str, Any], text: str) -> None:
        """Give the result: JSON, or text for a person."""
        if self.as_json:
            typer.echo(json.dumps(result, allow_nan=False))
        elif not self.quiet:
            typer.echo(text)

    def fail(self, message: str, exit_code: int) -> None:
        """Say why the command failed."""
        typer.echo(typer.style("error: ", fg="red", bold=True) + message, err=True)
        if self.as_json:
            typer.echo(json.dumps({"error": message, "exit_code": exit_code}))

    @contextmanager
    def progress(self, shares: Mapping[str, float]) -> Iterator[OnProgress]:
        """``on_progress(stage, fraction)``: a bar on a terminal, plain lines elsewhere.

        Parameters
        ----------
        shares : mapping of str to float
            The stages, and about how much of the time each takes.
        """
        if self.quiet:
            yield lambda stage, fraction: None
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            with _bar(shares) as on_progress:
                yield on_progress
        else:
            yield PlainProgress(shares)


class PlainProgress:
    """Progress as lines: one when a stage first starts, and one every ten seconds."""

    def __init__(
        self,
        shares: Mapping[str, float],
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write if write is not None else _to_stderr
        self._tally = Tally(shares, clock)
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._shown = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Take news of a stage, from any thread."""
        with self._lock:
            overall, elapsed, left = self._tally.update(stage, fraction)
            if stage in self._seen and elapsed - self._shown < PLAIN_INTERVAL_S:
                return
            self._seen.add(stage)
            self._shown = elapsed
            self._write(f"{overall:4.0%}  {stage}" + (f", {_time_left(left)}" if left is not None else ""))


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _bar(shares: Mapping[str, float]) -> Iterator[OnProgress]:
    """One bar with stage, percent and time left, on the terminal; it goes when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=36),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    lock = threading.Lock()
    tally = Tally(shares)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(next(iter(shares)), total=1.0, left="")

        def on_progress(stage: str, fraction: float) -> None:
            with lock:
                overall, _, left = tally.update(stage, fraction)
                progress.update(task, completed=overall, description=stage, left=_time_left(left))

        yield on_progress


def _time_left(seconds: float | None) -> str:
    return "" if seconds is None else f"{format_seconds(seconds)} left"


def format_seconds(seconds: float) -> str:
    """Duration for a person: ``'4.2 s'``, ``'3 min 20 s'``, ``'2 h 5 min'``.

    Examples
    --------
    >>> format_seconds(4.21), format_seconds(200), format_seconds(7500)
    ('4.2 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"


@contextmanager
def terminal(*, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> Iterator[Terminal]:
    """Run a command's work; whatever ends it becomes a message and an exit code.

    Raises
    ------
    typer.Exit
        With 1, 2, 130 or 143 where the work did not end well.
    """
    out = Terminal(as_json, quiet, verbose)
    try:
        with _sigterm_interrupts(), warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            with _log_to_stderr() if verbose else nullcontext():
                yield out
    except (typer.Exit, typer.BadParameter, BrokenPipeError):
        raise
    except AccmError as error:
        _show_traceback(verbose)
        out.fail(str(error), BAD_INPUT)
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt as error:
        code = TERMINATED if isinstance(error, _Terminated) else INTERRUPTED
        out.fail(str(error) or "interrupted; nothing was left half written.", code)
        raise typer.Exit(code) from error
    except Exception as error:
        _show_traceback(verbose)
        hint = "" if verbose else " Run it again with -v for the traceback."
        out.fail(f"unexpected {type(error).__name__}: {error}.{hint}", FAILED)
        raise typer.Exit(FAILED) from error


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show what the stages tell of themselves."""
    logger, handler = logging.getLogger("accm_core"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _show_traceback(verbose: bool) -> None:
    if verbose:
        traceback.print_exc()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
