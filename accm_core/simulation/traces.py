"""Traces of a simulation, one second at a time: noise, small background spikes, slow potentials, spikes.

Every one-second block is computed whole and from its own seeds, so that traces do not depend on how they are
read, and a long recording takes no memory.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from accm_core.simulation.firing import Trains
from accm_core.simulation.waveforms import MAX_CHANNELS, PHASES, Neuron, source_gains

NOISE_REACH_UM = 30.0  # neighbouring contacts of a dense probe share about half of their noise
SHARED_NOISE = 0.7  # share of the noise power that is tissue, not amplifier
COLOUR_MS = 0.12  # time constant of the noise's slower part
COLOUR_WEIGHT = 0.35  # of that part against the white one
LFP_HZ = (1.0, 80.0)  # below the band-pass of any spike sorter
LFP_COMPONENTS = 24
LFP_REACH_UM = 1500.0  # least wavelength along the probe
BACKGROUND_STD = 0.2  # amplitude of background spikes, as a share of their mean
WHITE, TAIL, BACKGROUND = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class Cells:
    """Neurons stacked, each on its own channels.

    Attributes
    ----------
    currents : ndarray of shape (n_cells, PHASES, n_samples, n_sources), float32
    sources : ndarray of shape (n_cells, n_sources, 3), float64
        µm.
    channels : tuple of ndarray of int64
        Channels of each cell, all of one shank.
    channel_locations : ndarray of shape (n_channels, 2), float64
        µm.
    num_before : int
        Samples before the trough.
    """

    currents: np.ndarray
    sources: np.ndarray
    channels: tuple[np.ndarray, ...]
    channel_locations: np.ndarray
    num_before: int

    @property
    def num_samples(self) -> int:
        """Length of a waveform."""
        return self.currents.shape[2]

    @cached_property
    def resting_gains(self) -> tuple[np.ndarray, ...]:
        """Gains of each cell's sources on its channels, without drift: (n_its_channels, n_sources) each."""
        return tuple(
            source_gains(sources, self.channel_locations[channels])
            for sources, channels in zip(self.sources, self.channels, strict=True)
        )

    def templates(self) -> np.ndarray:
        """Waveform of each cell on all channels, without drift: (n_cells, n_samples, n_channels), µV."""
        templates = np.zeros((len(self.channels), self.num_samples, len(self.channel_locations)), np.float32)
        for cell, channels in enumerate(self.channels):
            templates[cell][:, channels] = self.currents[cell, 0] @ self.resting_gains[cell].T
        return templates

    def add_spikes(
        self, traces: np.ndarray, start: int, trains: Trains, shift_um: np.ndarray | None = None
    ) -> None:
        """Add spikes to ``traces``, whose first row is sample ``start``; ``shift_um`` moves each along y."""
        ticks = np.rint(trains.time * PHASES).astype(np.int64)
        onset, phase = ticks // PHASES - self.num_before - start, ticks % PHASES
        for row, cell in enumerate(trains.unit):
            low, high = max(-onset[row], 0), min(len(traces) - onset[row], self.num_samples)
            if low >= high:
                continue
            channels = self.channels[cell]
            gains = self.resting_gains[cell]
            if shift_um is not None:
                sources = self.sources[cell] + [0.0, shift_um[row], 0.0]
                gains = source_gains(sources, self.channel_locations[channels])
            wave = self.currents[cell, phase[row], low:high] @ (trains.scale[row] * gains.T)
            traces[onset[row] + low : onset[row] + high, channels] += wave


def stack_cells(
    neurons: list[Neuron], allowed: list[np.ndarray], channel_locations: np.ndarray, num_before: int
) -> Cells:
    """Stack neurons, each on the largest of its ``allowed`` channels."""
    channels = []
    for neuron, mine in zip(neurons, allowed, strict=True):
        seen = np.ptp(neuron.waveform(channel_locations[mine]), axis=0)
        channels.append(np.sort(mine[np.argsort(-seen, kind="stable")[:MAX_CHANNELS]]))
    return Cells(
        np.stack([n.currents for n in neurons]),
        np.stack([n.sources for n in neurons]),
        tuple(channels),
        channel_locations,
        num_before,
    )


@dataclass(frozen=True)
class Drift:
    """Rigid movement along y: a zigzag of ``peak_to_peak_um``, starting from the middle."""

    peak_to_peak_um: float
    period_s: float

    def at(self, time_s: np.ndarray) -> np.ndarray:
        """Displacement at each time, µm."""
        cycle = np.mod(np.asarray(time_s) / self.period_s - 0.25, 1.0)
        return self.peak_to_peak_um * (2.0 * np.abs(cycle - 0.5) - 0.5)


@dataclass(frozen=True)
class Background:
    """Many cells too small to be sorted, firing at random.

    Attributes
    ----------
    cells : Cells
    rates_hz : ndarray of shape (n_cells,)
    """

    cells: Cells
    rates_hz: np.ndarray

    def power(self, sampling_frequency: float) -> np.ndarray:
        """Variance that the background gives each channel (shot noise), (n_channels,), µV²."""
        energy = (self.cells.templates() ** 2).sum(axis=1)
        return (1.0 + BACKGROUND_STD**2) * (self.rates_hz @ energy) / sampling_frequency

    def trains(self, seed: int, block: int, block_samples: int, sampling_frequency: float) -> Trains:
        """Draw the spikes that fall into one block, in time order."""
        rng = np.random.default_rng([seed, BACKGROUND, block])
        counts = rng.poisson(self.rates_hz * block_samples / sampling_frequency)
        unit = np.repeat(np.arange(len(counts)), counts)
        time = (block + rng.random(len(unit))) * block_samples
        scale = np.clip(rng.normal(1.0, BACKGROUND_STD, len(unit)), 0.2, None).astype(np.float32)
        order = np.argsort(time, kind="stable")
        return Trains(time[order], unit[order], scale[order])


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, correlated between near channels and slightly coloured in time, and slow potentials.

    Attributes
    ----------
    std_uV : float
        Of each channel, µV.
    mixing : ndarray of shape (n_channels, n_channels), float32
        Cholesky factor of the correlation.
    kernel : ndarray of shape (n_taps,), float32
        Causal filter that colours; of unit energy.
    lfp_hz, lfp_phase : ndarray of shape (LFP_COMPONENTS,), float64
        Frequencies, and phases in cycles.
    lfp_weights : ndarray of shape (2 * LFP_COMPONENTS, n_channels), float32
        µV of each component's cosine, then sine, on each channel.
    """

    std_uV: float  # noqa: N815  the unit's symbol
    mixing: np.ndarray
    kernel: np.ndarray
    lfp_hz: np.ndarray
    lfp_phase: np.ndarray
    lfp_weights: np.ndarray

    def block(self, seed: int, block: int, block_samples: int, sampling_frequency: float) -> np.ndarray:
        """One block of noise, (block_samples, n_channels), float32, µV."""
        num_channels, num_tail = len(self.mixing), len(self.kernel) - 1
        parts = [
            np.random.default_rng([seed, stream, index]).standard_normal((length, num_channels), np.float32)
            for stream, index, length in (
                (TAIL, block, num_tail),  # the end of the block before
                (WHITE, block, block_samples - num_tail),
                (TAIL, block + 1, num_tail),
            )
        ]
        white = np.concatenate(parts) @ (self.std_uV * self.mixing.T)
        traces = self.kernel[0] * white[num_tail:]
        for lag in range(1, num_tail + 1):
            traces += self.kernel[lag] * white[num_tail - lag : -lag]
        time_s = (block * block_samples + np.arange(block_samples)) / sampling_frequency
        cycles = self.lfp_hz * time_s[:, None] + self.lfp_phase
        angle = (2 * np.pi * (cycles - np.floor(cycles))).astype(np.float32)  # late times lose no precision
        traces += np.concatenate([np.cos(angle), np.sin(angle)], axis=1) @ self.lfp_weights
        return traces


def make_noise(
    rng: np.random.Generator,
    channel_locations: np.ndarray,
    sampling_frequency: float,
    std_uV: float,  # noqa: N803
    lfp_uV: float,  # noqa: N803
) -> Noise:
    """Make the noise of a probe; ``lfp_uV`` is the standard deviation of the slow potentials."""
    distances = np.linalg.norm(channel_locations[:, None] - channel_locations[None], axis=-1)
    correlation = SHARED_NOISE * np.exp(-distances / NOISE_REACH_UM)
    np.fill_diagonal(correlation, 1.0)
    lag_ms = np.arange(round(3 * COLOUR_MS * 1e-3 * sampling_frequency) + 1) / sampling_frequency * 1e3
    kernel = np.where(lag_ms == 0, 1.0, COLOUR_WEIGHT * np.exp(-lag_ms / COLOUR_MS))
    hz = np.exp(rng.uniform(np.log(LFP_HZ[0]), np.log(LFP_HZ[1]), LFP_COMPONENTS))
    amplitude = 1.0 / np.sqrt(hz)  # power falls with 1/f
    amplitude *= lfp_uV * np.sqrt(2.0 / (amplitude**2).sum())
    wave_number = rng.uniform(-2 * np.pi, 2 * np.pi, LFP_COMPONENTS) / LFP_REACH_UM
    along = wave_number[:, None] * channel_locations[:, 1]
    return Noise(
        std_uV,
        np.linalg.cholesky(correlation).astype(np.float32),
        (kernel / np.linalg.norm(kernel)).astype(np.float32),
        hz,
        rng.uniform(0, 1, LFP_COMPONENTS),
        np.concatenate([amplitude[:, None] * np.cos(along), -amplitude[:, None] * np.sin(along)]).astype(
            np.float32
        ),
    )
