"""To and from SpikeInterface."""

from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from accm_core.errors import RecordingError
from accm_core.types import Segment, Sorting


@dataclass(frozen=True, kw_only=True, eq=False)
class SpikeInterfaceRecording:
    """A SpikeInterface recording as a `Recording`: its segments follow one another.

    Attributes
    ----------
    file_path : Path or None
        What it was read from; None where only SpikeInterface knows.
    series_path : str
        Name of the stream, or of the format.
    dtype : str
        Of the samples in the file.
    group_names : tuple of str
        Name of the shank of each channel.
    left_out : tuple of (str, str)
        Id of each channel that is not sorted, and why.
    start_time : datetime or None
        When the recording began, where it is known.
    warnings : tuple of str
        What the user ought to know.
    t_starts : ndarray of shape (n_segments,), float64
        Added to SpikeInterface's times of each segment, s; not zero where its segments overlap in time.
    sampling_frequency, channel_ids, channel_locations, channel_groups, has_geometry, segments
        See `Recording`.
    """

    sampling_frequency: float
    channel_ids: tuple[str, ...]
    channel_locations: np.ndarray
    channel_groups: np.ndarray
    has_geometry: bool
    segments: tuple[Segment, ...]
    file_path: Path | None
    series_path: str
    dtype: str
    group_names: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    start_time: datetime | None
    warnings: tuple[str, ...]
    t_starts: np.ndarray
    _recording: Any
    _scaled: bool
    _numbers: tuple[int, ...]  # SpikeInterface's number of each segment; empty ones are left out
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def num_samples(self) -> int:
        """Samples of all segments."""
        return self.segments[-1].stop

    @property
    def num_channels(self) -> int:
        """Channels that are kept."""
        return len(self.channel_ids)

    @property
    def source_name(self) -> str:
        """What it was read from, for people."""
        return self.file_path.name if self.file_path is not None else "a SpikeInterface recording"

    @property
    def electrode_index(self) -> np.ndarray:
        """Row of each channel in the electrodes table that `write_nwb` makes, int64."""
        return np.arange(self.num_channels)

    @property
    def geometry_source(self) -> str:
        """Where the locations come from; empty where unknown."""
        return "probe" if self.has_geometry else ""

    @property
    def num_bytes(self) -> int:
        """Bytes of it that `write_nwb` copies: none."""
        return 0

    @property
    def has_units(self) -> bool:
        """Whether it has units already; it never has."""
        return False

    @property
    def segment_times(self) -> np.ndarray:
        """Start and stop of each segment, (n_segments, 2), float64, s."""
        times = self.sample_to_time(np.array([(s.start, s.stop - 1) for s in self.segments]))
        times[:, 1] += 1.0 / self.sampling_frequency
        return times

    @property
    def gaps(self) -> tuple[tuple[float, float], ...]:
        """Time before and after each gap, s."""
        starts, stops = self.segment_times.T
        before = stops[:-1] - 1.0 / self.sampling_frequency
        return tuple(zip(before.tolist(), starts[1:].tolist(), strict=True))

    def get_traces(self, start: int, stop: int) -> np.ndarray:
        """Read samples ``start`` to ``stop`` in µV: (stop - start, n_channels), float32.

        Raises
        ------
        RecordingError
            If the range is outside the recording, or a sample is not finite.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise RecordingError(
                f"Samples {start} to {stop} were asked for; the recording has 0 to {self.num_samples}."
            )
        parts = [np.zeros((0, len(self.channel_ids)), dtype=np.float32)]
        for number, segment in enumerate(self.segments):
            first, last = max(start, segment.start), min(stop, segment.stop)
            if first < last:
                parts.append(self._read(number, first - segment.start, last - segment.start))
        traces = parts[1] if len(parts) == 2 else np.concatenate(parts)
        if not np.isfinite(traces).all():
            sample, channel = np.argwhere(~np.isfinite(traces))[0]
            raise RecordingError(
                f"The recording is not finite at sample {start + sample}, channel "
                f"{self.channel_ids[channel]}. Leave that stretch out, or fill it in."
            )
        return traces

    def sample_to_time(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds on the session clock of each sample index, float64."""
        index = np.asarray(sample_index)
        starts = np.array([segment.start for segment in self.segments])
        of_sample = np.clip(np.searchsorted(starts, index, side="right") - 1, 0, len(starts) - 1)
        times = np.empty(index.shape)
        for number, segment in enumerate(self.segments):
            here = of_sample == number
            if here.any():
                within = index[here] - segment.start
                # time vectors end with the last sample; the stop of a segment is one period on
                inside = np.clip(within, 0, segment.num_samples - 1)
                known = self._recording.sample_index_to_time(inside, segment_index=self._numbers[number])
                times[here] = known + self.t_starts[number] + (within - inside) / self.sampling_frequency
        return times

    def _read(self, number: int, start: int, stop: int) -> np.ndarray:
        with self._lock:
            traces = self._recording.get_traces(
                segment_index=self._numbers[number],
                start_frame=start,
                end_frame=stop,
                return_in_uV=self._scaled,
            )
        return np.ascontiguousarray(traces, dtype=np.float32)


def read_spikeinterface(
    recording: Any,
    *,
    file_path: Path | None = None,
    series_path: str = "recording",
    left_out: tuple[tuple[str, str], ...] = (),
    start_time: datetime | None = None,
    warnings: tuple[str, ...] = (),
) -> SpikeInterfaceRecording:
    """Adapt any SpikeInterface recording, lazily.

    Parameters
    ----------
    recording : spikeinterface.core.BaseRecording
        Positions come from its probe, shanks from its channel groups.
    file_path, series_path, left_out, start_time, warnings
        What is known of it besides, for the file that `write_nwb` writes: see `SpikeInterfaceRecording`.

    Raises
    ------
    RecordingError
        If it has no channels or no samples.

    Notes
    -----
    Segments that overlap in time, as those that all start at 0, are placed one after another, with a warning.
    """
    lengths = [recording.get_num_samples(segment_index=k) for k in range(recording.get_num_segments())]
    num_channels = recording.get_num_channels()
    if num_channels == 0 or sum(lengths) == 0:
        raise RecordingError(
            f"The recording has {num_channels} channels and {sum(lengths)} samples: nothing to sort. "
            "Give one with data."
        )
    numbers = tuple(k for k, length in enumerate(lengths) if length > 0)
    edges = [0, *np.cumsum([lengths[k] for k in numbers]).tolist()]
    t_starts = _place_in_time(recording, numbers, lengths)
    told = list(warnings)
    if t_starts.any():
        told.append("The segments overlap in time; they are placed one after another.")
    scaled = bool(recording.has_scaleable_traces())
    if not scaled:
        told.append(
            "The recording has no gains: its values are taken as µV. Set them with set_channel_gains."
        )
    of_channel = recording.get_channel_groups()
    names, groups = np.unique(
        np.zeros(num_channels, dtype=np.int64) if of_channel is None else of_channel, return_inverse=True
    )
    has_geometry = bool(recording.has_channel_location())
    if has_geometry:
        locations = np.asarray(recording.get_channel_locations(), dtype=np.float64)[:, :2]
        places = np.column_stack([groups, locations])
        if not np.isfinite(locations).all() or len(np.unique(places, axis=0)) < num_channels:
            told.append("Channels share a position or have none; the positions are not used.")
            has_geometry = False
    elif num_channels > 1:
        told.append("The recording has no probe: the channels of a group are all taken as neighbours.")
    return SpikeInterfaceRecording(
        sampling_frequency=float(recording.get_sampling_frequency()),
        channel_ids=tuple(str(channel) for channel in recording.get_channel_ids()),
        channel_locations=locations if has_geometry else np.zeros((num_channels, 2)),
        channel_groups=groups.astype(np.int64),
        has_geometry=has_geometry,
        segments=tuple(Segment(start, stop) for start, stop in pairwise(edges)),
        file_path=file_path,
        series_path=series_path,
        dtype=str(recording.get_dtype()),
        group_names=tuple(str(names[group]) for group in groups),
        left_out=left_out,
        start_time=start_time,
        warnings=tuple(told),
        t_starts=t_starts,
        _recording=recording,
        _scaled=scaled,
        _numbers=numbers,
    )


def sorting_to_spikeinterface(sorting: Sorting, *, split: bool = False) -> Any:
    """Return the units as a SpikeInterface ``NumpySorting``.

    Unit ids are kept; labels become the property ``quality``, and the metrics properties of their names.

    Parameters
    ----------
    split : bool
        One segment of the result for each of the sorting, as for a SpikeInterface recording of several
        segments; by default a single one, with samples counted from the start, as SpikeInterface
        reads NWB.
    """
    from spikeinterface.core import NumpySorting

    samples, labels = [], []
    whole = (Segment(0, int(np.iinfo(np.int64).max)),)
    for segment in sorting.segments if split else whole:
        inside = (sorting.sample_index >= segment.start) & (sorting.sample_index < segment.stop)
        samples.append(sorting.sample_index[inside] - segment.start)
        labels.append(sorting.unit_ids[sorting.unit_index[inside]])
    converted = NumpySorting.from_samples_and_labels(
        samples, labels, sorting.sampling_frequency, unit_ids=sorting.unit_ids
    )
    if sorting.num_units > 0:
        converted.set_property("quality", np.array(sorting.labels))
        for name, values in sorting.quality.items():
            converted.set_property(name, np.asarray(values))
    return converted


def _place_in_time(recording: Any, numbers: tuple[int, ...], lengths: list[int]) -> np.ndarray:
    """Seconds to add to each segment's times, so that none begins before the one before it ends."""
    period = 1.0 / recording.get_sampling_frequency()
    shifts = np.zeros(len(numbers))
    end = -np.inf
    for row, number in enumerate(numbers):
        first, last = recording.sample_index_to_time(np.array([0, lengths[number] - 1]), segment_index=number)
        if first < end - period / 2:
            shifts[row] = end - first
        end = last + shifts[row] + period
    return shifts
