"""From sample to time: a constant rate, or time stamps with gaps."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pynwb.ecephys import ElectricalSeries

from accm_core.errors import NwbError
from accm_core.io.nwb_file import explain_read
from accm_core.io.remote import Address
from accm_core.types import Segment

GAP_PERIODS = 1.5
"""A step longer than this many sample periods is a gap."""
MIN_SEGMENT_S = 0.1
"""A gapless stretch shorter than this (s) cannot be filtered; it is left out, with a warning."""
MAX_RATE_HZ = 1e6
"""No amplifier for neurons samples faster."""
_BLOCK = 1 << 20  # time stamps read at once: 8 MiB
_ROUND = 1e-6  # a rate this close (relative) to a whole number of Hz is that number


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Time of each sample of a series.

    Attributes
    ----------
    sampling_frequency : float
        Hz.
    num_samples : int
    t_start : float
        Seconds on the session clock of sample 0.
    segments : tuple of Segment
        Gapless stretches of `MIN_SEGMENT_S` or more.
    gaps : tuple of (float, float)
        Last time before and first time after each gap, s.
    warnings : tuple of str
    """

    sampling_frequency: float
    num_samples: int
    t_start: float
    segments: tuple[Segment, ...]
    gaps: tuple[tuple[float, float], ...] = ()
    warnings: tuple[str, ...] = ()
    _timestamps: Any = None
    _lock: Lock = field(default_factory=Lock)

    def times(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds on the session clock of each sample index, float64, of the same shape.

        Time stamps are read in blocks; memory stays flat. Indices before the first sample or after
        the last are extrapolated at the sampling rate.

        Raises
        ------
        NwbError
            If the times lie in a file that was closed.
        """
        index = np.asarray(sample_index)
        if self._timestamps is None:
            return self.t_start + index / self.sampling_frequency
        if not self._timestamps:
            raise NwbError("The session was closed and its timestamps lie in the file; read it again.")
        flat = index.ravel().astype(np.int64)
        inside = np.clip(flat, 0, self.num_samples - 1)
        order = np.argsort(inside, kind="stable")
        times = np.empty(len(flat))
        done = 0
        while done < len(flat):
            start = int(inside[order[done]])
            until = int(np.searchsorted(inside, start + _BLOCK, sorter=order))
            rows = order[done:until]
            stop = int(inside[rows[-1]]) + 1
            with self._lock:
                block = self._timestamps[start:stop]
            times[rows] = block[inside[rows] - start]
            done = until
        times += (flat - inside) / self.sampling_frequency
        return times.reshape(index.shape)


def read_clock(series: ElectricalSeries, path: str, file_path: Path | Address, lock: Lock) -> Clock:
    """Read the clock of a series; with time stamps all of them are looked at, in blocks.

    Raises
    ------
    NwbError
        If the rate or the time stamps make no sense.
    """
    num_samples = series.data.shape[0]
    if series.rate is not None:
        rate = float(series.rate)
        if not 0 < rate <= MAX_RATE_HZ:  # nor NaN
            raise NwbError(
                f"{path} has rate {rate:g} Hz; it must be above 0 and at most {MAX_RATE_HZ:g}. Correct the "
                "rate in the file."
            )
        t_start = 0.0 if series.starting_time is None else float(series.starting_time)
        if not np.isfinite(t_start):
            raise NwbError(
                f"{path} has starting_time {t_start:g} s; it must be finite. Correct it in the file."
            )
        whole = (Segment(0, num_samples),)
        return Clock(sampling_frequency=rate, num_samples=num_samples, t_start=t_start, segments=whole)
    stamps = series.timestamps
    if stamps is None:
        raise NwbError(
            f"{path} has neither a rate nor timestamps; one is needed to tell the time of a spike."
        )
    if len(stamps) != num_samples:
        raise NwbError(
            f"{path} has {num_samples} samples but {len(stamps)} timestamps; they must agree. "
            "Convert the session again."
        )
    if num_samples < 2:
        raise NwbError(f"{path} has {num_samples} sample; two or more are needed to tell the rate.")
    with explain_read(file_path, f"the timestamps of {path}"):
        breaks, period = _scan(stamps, path)
        edges = [0, *breaks, num_samples]
        gaps = tuple((float(stamps[k - 1]), float(stamps[k])) for k in breaks)
    frequency = 1.0 / period
    if abs(frequency - round(frequency)) < _ROUND * frequency:
        frequency = float(round(frequency))
    segments, warnings = _keep_long(list(pairwise(edges)), frequency, path)
    return Clock(
        sampling_frequency=frequency,
        num_samples=num_samples,
        t_start=float(stamps[0]),
        segments=segments,
        gaps=gaps,
        warnings=warnings,
        _timestamps=stamps,
        _lock=lock,
    )


def _scan(stamps: Any, path: str) -> tuple[list[int], float]:
    """First sample after each gap, and the mean step outside gaps (s)."""
    typical = float(np.median(np.diff(np.asarray(stamps[:_BLOCK], dtype=np.float64))))
    if not typical > 0:
        _refuse_order(np.asarray(stamps[:_BLOCK], dtype=np.float64), 0, path)
    breaks: list[int] = []
    total, count = 0.0, 0
    for start in range(0, len(stamps) - 1, _BLOCK):
        block = np.asarray(stamps[start : start + _BLOCK + 1], dtype=np.float64)
        steps = np.diff(block)
        if not ((steps > 0) & np.isfinite(steps)).all():
            _refuse_order(block, start, path)
        is_gap = steps > GAP_PERIODS * typical
        breaks.extend((np.flatnonzero(is_gap) + start + 1).tolist())
        total += float(steps[~is_gap].sum())
        count += int((~is_gap).sum())
    return breaks, total / count


def _refuse_order(block: np.ndarray, start: int, path: str) -> None:
    if not np.isfinite(block).all():
        sample = start + int(np.flatnonzero(~np.isfinite(block))[0])
        raise NwbError(
            f"The timestamps of {path} are not finite at sample {sample}. Convert the session again."
        )
    k = int(np.flatnonzero(np.diff(block) <= 0)[0])
    raise NwbError(
        f"The timestamps of {path} do not increase: {block[k]:.6f} s at sample {start + k}, "
        f"{block[k + 1]:.6f} s at sample {start + k + 1}. Correct them, or write the series with a rate."
    )


def _keep_long(
    stretches: list[tuple[int, int]], frequency: float, path: str
) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    shortest = MIN_SEGMENT_S * frequency
    kept = tuple(Segment(a, b) for a, b in stretches if b - a >= shortest)
    short = [(a, b) for a, b in stretches if b - a < shortest]
    if not kept:
        raise NwbError(
            f"{path} has {len(stretches) - 1} gaps in its timestamps and no gapless stretch of "
            f"{MIN_SEGMENT_S} s. Write the series with a rate, or correct its timestamps."
        )
    if not short:
        return kept, ()
    lost = sum(b - a for a, b in short)
    return kept, (
        f"{len(short)} stretches between gaps are shorter than {MIN_SEGMENT_S} s and are not sorted: "
        f"{lost} samples, {lost / frequency:.3f} s in all.",
    )
