"""A recording that is generated while it is read, and the truth about its units."""

from dataclasses import dataclass

import numpy as np

from accm_core.errors import RecordingError
from accm_core.simulation.firing import Trains
from accm_core.simulation.params import SimulationParams
from accm_core.simulation.traces import Background, Cells, Drift, Noise
from accm_core.types import ArrayRecording, Recording, Segment, Templates

BLOCK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SimulatedRecording:
    """A simulated or hybrid recording: a `Recording`, generated while it is read.

    Traces are the same, to the bit, however they are read; reading whole seconds is cheapest.

    Attributes
    ----------
    params : SimulationParams
    seed : int
    cells : Cells or None
        Units to be found; None without any.
    trains : Trains
        Their spikes, in samples of the recording.
    drift, noise, background : optional
        What a simulation has; not given for a hybrid.
    parent : Recording, optional
        The recording that units are injected into.
    """

    sampling_frequency: float
    channel_ids: tuple[str, ...]
    channel_locations: np.ndarray
    channel_groups: np.ndarray
    has_geometry: bool
    segments: tuple[Segment, ...]
    params: SimulationParams
    seed: int
    cells: Cells | None
    trains: Trains
    drift: Drift | None = None
    noise: Noise | None = None
    background: Background | None = None
    parent: Recording | None = None

    @property
    def num_samples(self) -> int:
        """Samples up to the end of the last segment."""
        return self.segments[-1].stop

    def get_traces(self, start: int, stop: int) -> np.ndarray:
        """Generate samples ``start`` to ``stop`` in µV, float32.

        Raises
        ------
        RecordingError
            If the range is outside the recording.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise RecordingError(
                f"Samples {start} to {stop} were asked for; there are samples 0 to {self.num_samples}. "
                "Ask for samples inside the recording."
            )
        if self.parent is None:
            traces = np.empty((stop - start, len(self.channel_ids)), np.float32)
        else:
            traces = np.array(self.parent.get_traces(start, stop), dtype=np.float32)
        length = self._block_samples
        for block in range(start // length, -(-stop // length)):
            low, high = max(start, block * length), min(stop, (block + 1) * length)
            made = self._make_block(block)[low - block * length : high - block * length]
            if self.parent is None:
                traces[low - start : high - start] = made
            else:
                traces[low - start : high - start] += made
        return traces

    def sample_to_time(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds on the session clock of each sample index, float64."""
        if self.parent is not None:
            return self.parent.sample_to_time(sample_index)
        return np.asarray(sample_index) / self.sampling_frequency

    def in_memory(self) -> ArrayRecording:
        """Generate all of it at once; for short recordings."""
        geometry = {"channel_locations": self.channel_locations} if self.has_geometry else {}
        return ArrayRecording(
            traces=self.get_traces(0, self.num_samples),
            sampling_frequency=self.sampling_frequency,
            channel_groups=self.channel_groups,
            segments=self.segments,
            t_start=float(self.sample_to_time(np.zeros(1, np.int64))[0]),
            **geometry,
        )

    def background_trains(self) -> dict[str, np.ndarray]:
        """Spike times of each background cell, in seconds on the session clock; empty where there is none."""
        if self.background is None:
            return {}
        length, rate = self._block_samples, self.sampling_frequency
        blocks = [
            self.background.trains(self.seed, block, length, rate)
            for block in range(-(-self.num_samples // length))
        ]
        time, unit = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("time", "unit"))
        is_inside = time < self.num_samples
        time, unit = time[is_inside] / rate, unit[is_inside]
        return {str(cell): time[unit == cell] for cell in range(len(self.background.rates_hz))}

    @property
    def _block_samples(self) -> int:
        return round(BLOCK_S * self.sampling_frequency)

    def _make_block(self, block: int) -> np.ndarray:
        length = self._block_samples
        if self.noise is None:
            traces = np.zeros((length, len(self.channel_ids)), np.float32)
        else:
            traces = self.noise.block(self.seed, block, length, self.sampling_frequency)
        if self.background is not None:
            for near in range(max(block - 1, 0), block + 2):
                trains = self.background.trains(self.seed, near, length, self.sampling_frequency)
                self._add(self.background.cells, traces, block * length, trains)
        if self.cells is not None:
            reach = self.cells.num_samples
            around = [block * length - reach, (block + 1) * length + reach]
            low, high = np.searchsorted(self.trains.time, around)
            self._add(self.cells, traces, block * length, self.trains.select(np.arange(low, high)))
        return traces

    def _add(self, cells: Cells, traces: np.ndarray, start: int, trains: Trains) -> None:
        shift_um = None if self.drift is None else self.drift.at(trains.time / self.sampling_frequency)
        cells.add_spikes(traces, start, trains, shift_um)


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The units of a simulation.

    Attributes
    ----------
    unit_names : tuple of str
    sample_index : ndarray of shape (n_spikes,), int64
        Sample nearest to each spike's trough, non-decreasing.
    spike_times : ndarray of shape (n_spikes,), float64
        Seconds on the session clock, exact to an eighth of a sample.
    unit_index : ndarray of shape (n_spikes,), int64
    scale : ndarray of shape (n_spikes,), float32
        Amplitude of each spike, as a share of its unit's mean.
    templates : Templates
        Mean waveforms without drift, µV; ``std`` is that of the amplitudes alone.
    main_channel_locations : ndarray of shape (n_units, 2), float64
        µm; taken as the units' positions.
    snr : ndarray of shape (n_units,), float64
        Peak on the main channel, in noise levels.
    params : SimulationParams
    seed : int
    """

    unit_names: tuple[str, ...]
    sample_index: np.ndarray
    spike_times: np.ndarray
    unit_index: np.ndarray
    scale: np.ndarray
    templates: Templates
    main_channel_locations: np.ndarray
    snr: np.ndarray
    params: SimulationParams
    seed: int

    @property
    def peak_amplitude_uV(self) -> np.ndarray:  # noqa: N802
        """Trough of each unit's mean waveform, (n_units,), µV, negative."""
        return self.templates.mean.min(axis=(1, 2), initial=0.0)

    def trains(self) -> dict[str, np.ndarray]:
        """Spike times of each unit, in seconds on the session clock."""
        return {name: self.spike_times[self.unit_index == k] for k, name in enumerate(self.unit_names)}
