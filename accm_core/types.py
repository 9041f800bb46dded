"""What flows between the stages: frozen structs of arrays.

Axis order is ``(spikes, samples, channels)`` everywhere. *index* is a position, *id* an
identity; ``sample_index`` counts samples from the start of the series, across its segments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from accm_core.errors import RecordingError

ProgressCallback = Callable[[str, float], None]
"""``on_progress(stage, fraction)`` with fraction of that stage from 0 to 1."""


@dataclass(frozen=True)
class Segment:
    """A gapless stretch of a recording: samples ``start`` to ``stop``, half-open."""

    start: int
    stop: int

    @property
    def num_samples(self) -> int:
        """Length in samples."""
        return self.stop - self.start


class Recording(Protocol):
    """Continuous data of one session, read lazily.

    Attributes
    ----------
    sampling_frequency : float
        Hz.
    channel_ids : tuple of str
        Identity of each channel.
    channel_locations : ndarray of shape (n_channels, 2), float64
        µm on the probe; all zero where ``has_geometry`` is false.
    channel_groups : ndarray of shape (n_channels,), int64
        Shank of each channel. Shanks are sorted apart.
    has_geometry : bool
        False when positions are unknown: the channels of a group are then all neighbours.
    segments : tuple of Segment
        Gapless stretches, in order. Nothing is filtered or cut across a border.
    """

    @property
    def sampling_frequency(self) -> float: ...  # noqa: D102
    @property
    def channel_ids(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def channel_locations(self) -> np.ndarray: ...  # noqa: D102
    @property
    def channel_groups(self) -> np.ndarray: ...  # noqa: D102
    @property
    def has_geometry(self) -> bool: ...  # noqa: D102
    @property
    def segments(self) -> tuple[Segment, ...]: ...  # noqa: D102

    def get_traces(self, start: int, stop: int) -> np.ndarray:
        """Samples ``start`` to ``stop`` (half-open) in µV: (stop - start, n_channels), float32.

        Safe to call from several threads.
        """
        ...

    def sample_to_time(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds on the session clock of each sample index, float64."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArrayRecording:
    """A recording held in memory: for tests, simulations and short clips.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        µV.
    sampling_frequency : float
        Hz.
    channel_locations : ndarray of shape (n_channels, 2), optional
        µm; None where unknown.
    channel_groups : ndarray of shape (n_channels,), optional
        Shank of each channel; one shank when None.
    segments : tuple of Segment, optional
        One gapless segment when None.
    t_start : float
        Seconds on the session clock of sample 0.

    Raises
    ------
    RecordingError
        If shapes disagree or a trace is not finite.
    """

    traces: np.ndarray
    sampling_frequency: float
    channel_locations: np.ndarray = field(default=None)  # type: ignore[arg-type]
    channel_groups: np.ndarray = field(default=None)  # type: ignore[arg-type]
    segments: tuple[Segment, ...] = ()
    t_start: float = 0.0
    has_geometry: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.traces.ndim != 2:
            raise RecordingError(
                f"traces has shape {self.traces.shape}; it needs two axes, (n_samples, n_channels)."
            )
        num_samples, num_channels = self.traces.shape
        # a frozen dataclass fills in its defaults through object.__setattr__
        object.__setattr__(self, "has_geometry", self.channel_locations is not None)
        if self.channel_locations is None:
            object.__setattr__(self, "channel_locations", np.zeros((num_channels, 2)))
        if self.channel_groups is None:
            object.__setattr__(self, "channel_groups", np.zeros(num_channels, dtype=np.int64))
        if not self.segments:
            object.__setattr__(self, "segments", (Segment(0, num_samples),))
        if len(self.channel_locations) != num_channels:
            raise RecordingError(
                f"traces has {num_channels} channels but channel_locations has "
                f"{len(self.channel_locations)} rows; they must agree. Check the probe of this recording."
            )
        if not np.isfinite(self.traces).all():
            bad = np.argwhere(~np.isfinite(self.traces))[0]
            raise RecordingError(
                f"traces is not finite at sample {bad[0]}, channel {bad[1]}. Leave that stretch out."
            )

    @property
    def channel_ids(self) -> tuple[str, ...]:
        """Identity of each channel: its position."""
        return tuple(str(k) for k in range(self.traces.shape[1]))

    def get_traces(self, start: int, stop: int) -> np.ndarray:
        """Samples ``start`` to ``stop`` in µV, float32."""
        return self.traces[start:stop].astype(np.float32, copy=False)

    def sample_to_time(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds on the session clock."""
        return self.t_start + np.asarray(sample_index) / self.sampling_frequency


@dataclass(frozen=True)
class Peaks:
    """Detected extrema, sorted by sample then channel.

    Attributes
    ----------
    sample_index : ndarray of shape (n_peaks,), int64
    channel_index : ndarray of shape (n_peaks,), int64
    amplitude : ndarray of shape (n_peaks,), float32
        Noise units (MAD), signed; of the traces in which the peaks were found.
    offset : ndarray of shape (n_peaks,), float32
        Of the extremum between samples from ``sample_index``, -0.5 to 0.5.
    """

    sample_index: np.ndarray
    channel_index: np.ndarray
    amplitude: np.ndarray
    offset: np.ndarray

    def __post_init__(self) -> None:
        num_peaks = self.sample_index.shape
        for name in ("channel_index", "amplitude", "offset"):
            if getattr(self, name).shape != num_peaks:
                raise RecordingError(
                    f"Peaks.{name} has shape {getattr(self, name).shape}; "
                    f"it must be that of sample_index, {num_peaks}."
                )

    def __len__(self) -> int:
        return len(self.sample_index)

    def select(self, rows: np.ndarray) -> "Peaks":
        """The peaks at ``rows`` (indices or mask)."""
        return Peaks(
            self.sample_index[rows], self.channel_index[rows], self.amplitude[rows], self.offset[rows]
        )


@dataclass(frozen=True)
class Snippets:
    """Windows around peaks on the channels nearest to each.

    Attributes
    ----------
    waveforms : ndarray of shape (n_spikes, n_samples, n_neighbors), float32
        Whitened, noise units, aligned to sub-sample precision; slots without a channel are 0.
    channels : ndarray of shape (n_spikes, n_neighbors), int64
        Channel of each slot, nearest first; -1 where there is none.
    peaks : Peaks
        What was cut, row for row.
    num_before : int
        Samples before the peak.
    """

    waveforms: np.ndarray
    channels: np.ndarray
    peaks: Peaks
    num_before: int

    def __len__(self) -> int:
        return len(self.waveforms)


def main_channels(templates: np.ndarray) -> np.ndarray:
    """Channel of each template's largest peak-to-peak amplitude, (n_units,), int64.

    Parameters
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels)
    """
    if len(templates) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.ptp(templates, axis=1).argmax(axis=1)


def main_heights(templates: np.ndarray) -> np.ndarray:
    """Signed extremum of each template, (n_units, n_samples, n_channels), on its main channel, (n_units,)."""
    main = main_channels(templates)
    course = templates[np.arange(len(main)), :, main]
    extremum: np.ndarray = course[np.arange(len(main)), np.abs(course).argmax(axis=1)]
    return extremum


@dataclass(frozen=True)
class Templates:
    """Mean waveform of each unit.

    Attributes
    ----------
    mean : ndarray of shape (n_units, n_samples, n_channels), float32
        Band-passed, µV. All channels of the recording.
    std : ndarray of the same shape, float32
        Standard deviation over spikes, µV.
    num_before : int
        Samples before the peak.
    """

    mean: np.ndarray
    std: np.ndarray
    num_before: int

    @property
    def main_channel(self) -> np.ndarray:
        """Channel index of each unit's largest peak-to-peak amplitude, (n_units,), int64."""
        return main_channels(self.mean)


@dataclass(frozen=True)
class EmbeddingSample:
    """Embeddings of some of the spikes, for pictures.

    Attributes
    ----------
    spike_index : ndarray of shape (n,), int64
        Row in the sorting.
    position : ndarray of shape (n, 2), float32
        Two dimensions of the embedding.
    """

    spike_index: np.ndarray
    position: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sorting:
    """The result: spikes and units.

    Attributes
    ----------
    sampling_frequency : float
        Hz.
    channel_ids : tuple of str
        Channels that were sorted: the channel axis of ``templates``.
    channel_locations : ndarray of shape (n_channels, 2), float64
        µm.
    channel_groups : ndarray of shape (n_channels,), int64
        Shank of each channel.
    bad_channel_ids : tuple of str
        Channels of the recording that the sorter found bad and left out.
    unit_ids : ndarray of shape (n_units,), int64
        Identity of each unit.
    unit_names : tuple of str
        What a fine-tuned model calls each unit; its id as text where there was none.
    sample_index : ndarray of shape (n_spikes,), int64
        Non-decreasing.
    spike_times : ndarray of shape (n_spikes,), float64
        Seconds on the session clock.
    unit_index : ndarray of shape (n_spikes,), int64
        Row of ``unit_ids``.
    amplitude_uV : ndarray of shape (n_spikes,), float32
        Negative for a trough: the template's extremum on its main channel times the spike's scale.
    probability : ndarray of shape (n_spikes,), float32
        That the spike is this unit's, 0 to 1.
    is_overlap : ndarray of shape (n_spikes,), bool
        True where the spike overlaps another spike on its channels.
    templates : Templates
    quality : mapping of str to ndarray of shape (n_units,)
        SpikeInterface's metric names: num_spikes, firing_rate, snr, ...
    labels : tuple of str
        'good', 'mua' or 'noise', one a unit.
    label_reasons : tuple of str
        Why, one a unit; empty for a good one.
    embedding : EmbeddingSample
    segments : tuple of Segment
        What was observed.
    segment_times : ndarray of shape (n_segments, 2), float64
        Start and stop of each segment, seconds on the session clock.
    provenance : mapping of str to anything JSON holds
        Parameters, seed, versions, model hash, warnings.
    """

    sampling_frequency: float
    channel_ids: tuple[str, ...]
    channel_locations: np.ndarray
    channel_groups: np.ndarray
    bad_channel_ids: tuple[str, ...]
    unit_ids: np.ndarray
    sample_index: np.ndarray
    spike_times: np.ndarray
    unit_index: np.ndarray
    amplitude_uV: np.ndarray  # noqa: N815  the unit's symbol
    probability: np.ndarray
    is_overlap: np.ndarray
    templates: Templates
    quality: Mapping[str, np.ndarray]
    labels: tuple[str, ...]
    label_reasons: tuple[str, ...]
    embedding: EmbeddingSample
    segments: tuple[Segment, ...]
    segment_times: np.ndarray
    provenance: Mapping[str, Any]
    unit_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.unit_names:
            object.__setattr__(self, "unit_names", tuple(str(unit) for unit in self.unit_ids))

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.unit_ids)

    def spikes_of(self, unit_index: int) -> np.ndarray:
        """Rows of one unit's spikes, (n,), int64."""
        return np.flatnonzero(self.unit_index == unit_index)

    def to_spikeinterface(self) -> Any:
        """Return a SpikeInterface ``NumpySorting``; unit ids are kept, labels become ``quality``."""
        from accm_core.io.spikeinterface import sorting_to_spikeinterface

        return sorting_to_spikeinterface(self)


@dataclass(frozen=True)
class KnownUnits:
    """What must be known of units to find their spikes in later recordings.

    Attributes
    ----------
    names : tuple of str
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Band-passed, µV.
    num_before : int
        Samples before the peak.
    spread : ndarray of shape (n_units,), float32
        By how much the 84th percentile of a unit's amplitudes exceeds their median, as a share of the
        template; NaN where too few spikes are known.
    channel_ids : tuple of str
        The channel axis of ``templates``.
    sampling_frequency : float
        Hz.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    num_before: int
    spread: np.ndarray
    channel_ids: tuple[str, ...]
    sampling_frequency: float

    def __len__(self) -> int:
        return len(self.names)
