"""Find the ElectricalSeries to sort, and refuse what cannot be sorted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pynwb import NWBFile
from pynwb.ecephys import LFP, ElectricalSeries, SpikeEventSeries

from accm_core.errors import NwbError
from accm_core.io.remote import Address

MIN_RATE_HZ = 5000.0
"""A slower series holds no spike waveforms; it is sorted only when named."""
_RATE_STEPS = 1000


@dataclass(frozen=True)
class Candidate:
    """An ElectricalSeries of the file.

    Attributes
    ----------
    path : str
        As for ``--series``: ``acquisition/NAME``.
    series : pynwb.ecephys.ElectricalSeries
    is_lfp : bool
        Whether it lies in an LFP container.
    rate : float
        Hz; NaN when it cannot be told.
    """

    path: str
    series: ElectricalSeries
    is_lfp: bool
    rate: float

    @property
    def refusal(self) -> str:
        """Why it is not sorted unless named; empty when it can be."""
        if not self.path.startswith("acquisition/"):
            return "processed data"
        if self.is_lfp:
            return "in an LFP container"
        if self.rate < MIN_RATE_HZ:
            return f"{self.rate:g} Hz, under {MIN_RATE_HZ:g} Hz"
        return ""


def choose_series(
    nwbfile: NWBFile, name: str | None, file_path: Path | Address
) -> tuple[Candidate, list[str]]:
    """Return the series to sort and warnings about those passed over.

    Parameters
    ----------
    name : str, optional
        Path (``acquisition/NAME``) or, where only one series has it, name.

    Raises
    ------
    NwbError
        If there is none, none fits, several fit, or the name is not found.
    """
    found = list(_walk(nwbfile))
    if not found:
        raise NwbError(
            f"{file_path} has no ElectricalSeries: nothing to sort. Give a session with raw voltage."
        )
    if name is not None:
        chosen = _named(found, name, file_path)
        return chosen, [
            f"{chosen.path} was asked for although it is {chosen.refusal}."
        ] if chosen.refusal else []
    fit = [c for c in found if not c.refusal]
    if len(fit) > 1:
        raise NwbError(
            f"{file_path} has {len(fit)} series that could be sorted: {_listed(fit)}. "
            f"Name one, as in --series {fit[0].path}."
        )
    if not fit:
        raise NwbError(
            f"{file_path} has no raw series of {MIN_RATE_HZ:g} Hz or more in acquisition. "
            f"Found: {_listed(found)}. To sort one all the same, name it: --series {found[0].path}."
        )
    return fit[0], [f"{c.path} is passed over ({c.refusal})." for c in found if c is not fit[0]]


def check_layout(series: ElectricalSeries, path: str) -> None:
    """Refuse data that are not numbers of (samples, channels).

    Raises
    ------
    NwbError
        If axes, dtype or the electrodes do not suit.
    """
    data, num_electrodes = series.data, len(series.electrodes.data)
    if getattr(data.dtype, "kind", "records") not in "iuf":  # hdmf gives a list for records
        raise NwbError(f"{path} holds {data.dtype}; integers or floats are needed.")
    if data.ndim not in (1, 2):
        raise NwbError(
            f"{path} has {data.ndim} axes, shape {data.shape}; two are needed, (samples, channels)."
        )
    if 0 in data.shape:
        raise NwbError(f"{path} holds no samples: its shape is {data.shape}. Give a session with data.")
    num_channels = data.shape[1] if data.ndim == 2 else 1
    if num_channels == num_electrodes:
        return
    if data.shape[0] == num_electrodes:
        raise NwbError(
            f"{path} has shape {data.shape} and {num_electrodes} electrodes: the second dimension does not "
            "match the electrodes, the first does. The data are transposed; write (samples, channels)."
        )
    raise NwbError(
        f"{path} has {num_channels} channels but its electrodes region has {num_electrodes} rows; "
        "they must agree. Correct the electrodes of the series."
    )


def _named(found: list[Candidate], name: str, file_path: Path | Address) -> Candidate:
    wanted = name.strip("/")
    hits = [c for c in found if c.path == wanted] or [c for c in found if c.series.name == wanted]
    if len(hits) == 1:
        return hits[0]
    problem = f"no series {name!r}" if not hits else f"several series named {name!r}"
    raise NwbError(f"{file_path} has {problem}. Its series: {_listed(found)}. Give one of these paths.")


def _listed(candidates: list[Candidate]) -> str:
    return "; ".join(_describe(c) for c in candidates)


def _describe(candidate: Candidate) -> str:
    shape = candidate.series.data.shape
    channels = shape[1] if len(shape) > 1 else 1
    text = f"{candidate.path} ({channels} channels, {candidate.rate:g} Hz"
    return f"{text}, {candidate.refusal.split(',')[0]})" if candidate.is_lfp else f"{text})"


def _walk(nwbfile: NWBFile) -> Iterator[Candidate]:
    for item in nwbfile.acquisition.values():
        yield from _inside(item, "acquisition", is_lfp=False)
    for module in nwbfile.processing.values():
        for item in module.data_interfaces.values():
            yield from _inside(item, f"processing/{module.name}", is_lfp=False)


def _inside(item: Any, folder: str, *, is_lfp: bool) -> Iterator[Candidate]:
    path = f"{folder}/{item.name}"
    if isinstance(item, ElectricalSeries):
        if not isinstance(item, SpikeEventSeries):
            yield Candidate(path, item, is_lfp, _rate(item))
        return
    for child in getattr(item, "electrical_series", {}).values():
        yield from _inside(child, path, is_lfp=is_lfp or isinstance(item, LFP))


def _rate(series: ElectricalSeries) -> float:
    """Tell the sampling rate (Hz), from the first time stamps where there is no rate."""
    if series.rate is not None:
        return float(series.rate)
    if series.timestamps is None or len(series.timestamps) < 2:
        return float("nan")
    step = float(np.median(np.diff(series.timestamps[:_RATE_STEPS])))
    return 1.0 / step if step > 0 else float("nan")
