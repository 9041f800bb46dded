"""Read a session from NWB, lazily: what is in it is looked at once, the traces when asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from pynwb.ecephys import ElectricalSeries

from accm_core.errors import NwbError, RecordingError
from accm_core.io.nwb_clock import Clock, read_clock
from accm_core.io.nwb_electrodes import Electrodes, find_left_out, read_electrodes
from accm_core.io.nwb_file import OpenNwb, explain_read
from accm_core.io.nwb_geometry import Geometry, read_geometry
from accm_core.io.nwb_series import check_layout, choose_series
from accm_core.io.nwb_signal import find_dead, look_at
from accm_core.io.remote import Address
from accm_core.types import Segment

MICROVOLTS_PER_VOLT = 1e6


@dataclass(frozen=True, kw_only=True, eq=False)
class NwbRecording:
    """An ElectricalSeries of an NWB file, as a `Recording`. A context manager.

    Attributes
    ----------
    file_path : Path or Address
    series_path : str
        ``acquisition/NAME``.
    dtype : str
        Of the samples in the file.
    gain_to_uV, offset_to_uV : ndarray of shape (n_channels,), float64
        µV = stored value * gain + offset.
    electrode_index : ndarray of shape (n_channels,), int64
        Row of each channel in the electrodes table.
    group_names : tuple of str
        Name of the shank of each channel.
    geometry_source : str
        Where the locations come from; empty where unknown.
    left_out : tuple of (str, str)
        Id of each channel that is not sorted, and why.
    gaps : tuple of (float, float)
        Time before and after each gap, s.
    has_units : bool
        Whether the file has a Units table.
    warnings : tuple of str
        What the user ought to know.
    channel_ids, channel_locations, channel_groups, has_geometry
        See `Recording`.
    """

    file_path: Path | Address
    series_path: str
    dtype: str
    gain_to_uV: np.ndarray  # noqa: N815  the unit's symbol
    offset_to_uV: np.ndarray  # noqa: N815
    channel_ids: tuple[str, ...]
    channel_locations: np.ndarray
    channel_groups: np.ndarray
    group_names: tuple[str, ...]
    has_geometry: bool
    geometry_source: str
    electrode_index: np.ndarray
    left_out: tuple[tuple[str, str], ...]
    has_units: bool
    warnings: tuple[str, ...]
    clock: Clock
    _columns: np.ndarray
    _dataset: Any
    _source: OpenNwb
    _lock: Lock = field(repr=False)

    @property
    def sampling_frequency(self) -> float:
        """Hz."""
        return self.clock.sampling_frequency

    @property
    def num_samples(self) -> int:
        """Samples in the series, those outside the segments too."""
        return self.clock.num_samples

    @property
    def source_name(self) -> str:
        """What it was read from, for people."""
        return self.file_path.name if isinstance(self.file_path, Path) else str(self.file_path)

    @property
    def raw_path(self) -> Path | Address:
        """File that the samples lie in: another one where the session links to them."""
        return self.file_path if isinstance(self.file_path, Address) else Path(self._dataset.file.filename)

    @property
    def num_bytes(self) -> int:
        """Size of the session's file."""
        return self._source.num_bytes

    def reopen(self) -> OpenNwb:
        """Open the session once more, as pynwb has it."""
        return self._source.reopen()

    @property
    def dataset_name(self) -> str:
        """Path of the samples in their HDF5 file."""
        return str(self._dataset.name)

    @property
    def num_channels(self) -> int:
        """Channels that are kept."""
        return len(self.channel_ids)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Gapless stretches."""
        return self.clock.segments

    @property
    def gaps(self) -> tuple[tuple[float, float], ...]:
        """Time before and after each gap, s."""
        return self.clock.gaps

    @property
    def t_start(self) -> float:
        """Seconds on the session clock of sample 0."""
        return self.clock.t_start

    @property
    def duration(self) -> float:
        """Seconds of data, without the gaps."""
        return self.num_samples / self.sampling_frequency

    def get_traces(self, start: int, stop: int) -> np.ndarray:
        """Read samples ``start`` to ``stop`` of the kept channels in µV: (n, n_channels), float32.

        Raises
        ------
        RecordingError
            If the range is outside the recording, or a sample is not finite.
        NwbError
            If the file is damaged there or was closed.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise RecordingError(
                f"Samples {start} to {stop} were asked for; {self.series_path} has 0 to {self.num_samples}."
            )
        raw = self._read(start, stop)
        if raw.dtype.kind == "f":
            self._check_finite(raw, start)
        # 16 bits are exact in float32, which is quicker; more bits may need the offset off before they fit
        dtype = np.dtype(np.float32 if raw.dtype.itemsize <= 2 else np.float64)
        traces: np.ndarray = raw.astype(dtype)
        traces *= self.gain_to_uV.astype(dtype)
        if self.offset_to_uV.any():
            traces += self.offset_to_uV.astype(dtype)
        return traces.astype(np.float32, copy=False)

    def sample_to_time(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds on the session clock of each sample index, float64.

        The stop of a segment that a gap follows has the time of the first sample after the gap; use
        `segment_times` for the end of what was observed.
        """
        return self.clock.times(sample_index)

    @property
    def segment_times(self) -> np.ndarray:
        """Start and stop of each segment, (n_segments, 2), float64, s."""
        ends = np.array([(s.start, s.stop - 1) for s in self.segments], dtype=np.int64).reshape(-1, 2)
        times = self.clock.times(ends)
        times[:, 1] += 1.0 / self.sampling_frequency
        return times

    def close(self) -> None:
        """Close the file. Closing twice does no harm."""
        with self._lock:
            self._source.close()

    def __enter__(self) -> "NwbRecording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Read the stored values of the kept channels, (stop - start, n_channels)."""
        with self._lock:
            if not self._dataset:
                raise NwbError(f"{self.file_path} was closed; read it again with read_nwb.")
            with explain_read(self.file_path, f"samples {start} to {stop} of {self.series_path}"):
                return _select(self._dataset, start, stop, self._columns)

    def _check_finite(self, raw: np.ndarray, start: int) -> None:
        if raw.size == 0 or (np.isfinite(raw.min()) and np.isfinite(raw.max())):  # NaN passes through both
            return
        sample, channel = np.argwhere(~np.isfinite(raw))[0]
        raise RecordingError(
            f"{self.series_path} is not finite at sample {start + sample}, "
            f"channel {self.channel_ids[channel]}. Leave that stretch out, or fill it in, when converting."
        )


def read_nwb(
    file_path: str | Path | Address, *, series: str | None = None, probe: str | Path | None = None
) -> NwbRecording:
    """Open a session for sorting.

    Parameters
    ----------
    file_path : str, Path or Address
        NWB file (HDF5), or its ``http(s)://`` address. It is never changed.
    series : str, optional
        ``acquisition/NAME`` of the ElectricalSeries; needed where there are several.
    probe : str or Path, optional
        probeinterface JSON with the positions of the channels; wins over positions in the file.

    Returns
    -------
    NwbRecording
        Close it, or use it in a ``with``.

    Raises
    ------
    NwbError
        If the file cannot be read or holds nothing that can be sorted, with the reason and what to do.
    """
    source = OpenNwb(file_path)
    try:
        with explain_read(source.file_path, "the series"):
            return _read_series(source, series, probe)
    except BaseException:
        source.close()
        raise


def _read_series(source: OpenNwb, name: str | None, probe: str | Path | None) -> NwbRecording:
    chosen, warnings = choose_series(source.nwbfile, name, source.file_path)
    series, path = chosen.series, chosen.path
    missing = source.find_missing(f"{path}/data")
    if missing:
        if isinstance(source.file_path, Address):
            raise NwbError(
                f"The samples of {path} lie in another file, {missing}, which cannot be read from "
                f"{source.file_path}. Download both."
            )
        raise NwbError(
            f"The samples of {path} lie in {missing}, which is not there. Put it where the link in "
            f"{source.file_path} expects it, relative to that file."
        )
    check_layout(series, path)
    lock = Lock()
    clock = read_clock(series, path, source.file_path, lock)
    gain, offset = _scaling(series, path, warnings)
    electrodes = read_electrodes(series, path)
    left_out = _find_left_out(series, clock, electrodes, path, source.file_path)
    kept = np.array([k for k in range(len(gain)) if k not in left_out], dtype=np.int64)
    geometry = read_geometry(source.nwbfile, electrodes, kept, probe)
    return NwbRecording(
        file_path=source.file_path,
        series_path=path,
        dtype=str(series.data.dtype),
        gain_to_uV=gain[kept],
        offset_to_uV=np.full(len(kept), offset),
        channel_ids=tuple(electrodes.channel_ids[k] for k in kept),
        channel_locations=geometry.locations,
        channel_groups=_number(geometry),
        group_names=geometry.group_names,
        has_geometry=bool(geometry.source),
        geometry_source=geometry.source,
        electrode_index=electrodes.rows[kept],
        left_out=tuple((electrodes.channel_ids[k], reason) for k, reason in sorted(left_out.items())),
        has_units=source.nwbfile.units is not None,
        warnings=(*warnings, *clock.warnings, *geometry.warnings),
        clock=clock,
        _columns=kept,
        _dataset=series.data,
        _source=source,
        _lock=lock,
    )


def _find_left_out(
    series: ElectricalSeries, clock: Clock, electrodes: Electrodes, path: str, file_path: Path | Address
) -> dict[int, str]:
    """Channels not to sort, with the reason, by position: by what is said of them, then by what they hold."""
    left_out = find_left_out(electrodes)
    everything = np.arange(len(electrodes.rows))
    with explain_read(file_path, f"the samples of {path}"):
        look = look_at(
            lambda start, stop: _select(series.data, start, stop, everything),
            clock.num_samples,
            clock.sampling_frequency,
        )
    left_out |= find_dead(look, path, electrodes.channel_ids, left_out)
    if len(left_out) < len(everything):
        return left_out
    named = [f"{electrodes.channel_ids[k]} {reason}" for k, reason in sorted(left_out.items())[:3]]
    raise NwbError(
        f"All {len(everything)} channels of {path} are left out: {'; '.join(named)}. Nothing is left to sort."
    )


def _scaling(series: ElectricalSeries, path: str, warnings: list[str]) -> tuple[np.ndarray, float]:
    """Gain of each channel and offset, in µV."""
    num_channels = series.data.shape[1] if series.data.ndim == 2 else 1
    gain = np.full(num_channels, float(series.conversion))
    if series.channel_conversion is not None:
        by_channel = np.asarray(series.channel_conversion[:], dtype=np.float64)
        if by_channel.shape != gain.shape:
            raise NwbError(
                f"{path} has {num_channels} channels but channel_conversion has shape {by_channel.shape}; "
                "it needs one value a channel. Correct it in the file."
            )
        gain = gain * by_channel
    elif series.conversion == 1.0 and series.data.dtype.kind in "iu":
        warnings.append(
            f"{path} holds integers and its conversion is 1: amplitudes in µV will be wrong. "
            "Write the conversion to volts into the file."
        )
    offset = float(series.offset or 0.0)
    if not (np.isfinite(gain).all() and (gain != 0).all() and np.isfinite(offset)):
        raise NwbError(
            f"{path} has gains of {gain.min():g} to {gain.max():g} V (conversion, channel_conversion) and "
            f"offset {offset:g} V; gains must be finite and not 0. Correct them in the file."
        )
    return gain * MICROVOLTS_PER_VOLT, offset * MICROVOLTS_PER_VOLT


def _select(dataset: Any, start: int, stop: int, columns: np.ndarray) -> np.ndarray:
    """Rows ``start`` to ``stop`` and the given columns (ascending), (n, n_columns).

    HDF5 reads a rectangle quickly and single columns slowly, so the rectangle is read and then cut.
    """
    if dataset.ndim == 1:
        return dataset[start:stop][:, np.newaxis]
    first, last = int(columns[0]), int(columns[-1]) + 1
    block = dataset[start:stop, first:last] if last - first < dataset.shape[1] else dataset[start:stop]
    return block if block.shape[1] == len(columns) else block[:, columns - first]


def _number(geometry: Geometry) -> np.ndarray:
    """Give each channel the number of its shank, in order of appearance, int64."""
    order = {name: k for k, name in enumerate(dict.fromkeys(geometry.group_names))}
    return np.array([order[name] for name in geometry.group_names], dtype=np.int64)
