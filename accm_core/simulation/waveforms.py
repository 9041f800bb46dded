"""Probes and neurons for simulations: where the contacts are, and what each contact sees of a spike."""

from dataclasses import dataclass

import numpy as np

from accm_core.errors import ParamsError

MS_BEFORE = 1.2  # the window around a spike's trough; what a spike does outside it is below 1 % of its peak
MS_AFTER = 3.0
PHASES = 8  # a spike falls on any eighth of a sample
TAPER = 0.1  # share of the window, at each end, over which waveforms go to exactly zero
SOMA_RADIUS_UM = 10.0  # no contact is nearer to a current source than this
NUM_APICAL = 6
NUM_BASAL = 2
NUM_SOURCES = 1 + NUM_APICAL + NUM_BASAL
MAX_CHANNELS = 48  # a neuron's largest ones; the others see about 1 % of its peak
DEPTH_UM = (8.0, 45.0)  # of a neuron before the probe's face (Henze et al. 2000: seen within 50 µm)
MARGIN_UM = 15.0  # neurons lie up to this far beyond the outer contacts
VELOCITY_UM_PER_MS = (300.0, 800.0)  # back-propagation along the dendrite (Stuart & Sakmann 1994)

NEUROPIXELS_X_UM = (16.0, 48.0, 0.0, 32.0)  # Neuropixels 1.0: two contacts a row, rows staggered
DEFAULT_CHANNELS = {
    "mono": 1,
    "tetrode": 4,
    "linear": 16,
    "poly32": 32,
    "neuropixels": 64,
    "neuropixels2": 64,
}
FIXED_CHANNELS = ("mono", "tetrode")


def probe_locations(probe: str, num_channels: int | None = None, pitch_um: float | None = None) -> np.ndarray:
    """Contact positions of a probe.

    Parameters
    ----------
    probe : str
        'mono' (one wire), 'tetrode' (2 x 2, 20 µm), 'linear' (one column, 25 µm), 'poly32' (three columns
        18 µm apart, 25 µm), 'neuropixels' (1.0: four staggered columns, 20 µm) or 'neuropixels2' (2.0: two
        columns 32 µm apart, 15 µm).
    num_channels : int, optional
        1, 4, 16, 32, 64 and 64 when None; fixed for 'mono' and 'tetrode'.
    pitch_um : float, optional
        Distance between rows, µm, instead of the one above.

    Returns
    -------
    ndarray of shape (num_channels, 2), float64
        x and y, µm.

    Raises
    ------
    ParamsError
        If the probe is unknown or cannot have that many channels.
    """
    if probe not in DEFAULT_CHANNELS:
        raise ParamsError(f"Unknown probe {probe!r}. Known: {', '.join(DEFAULT_CHANNELS)}.")
    count = DEFAULT_CHANNELS[probe] if num_channels is None else num_channels
    if probe in FIXED_CHANNELS and count != DEFAULT_CHANNELS[probe]:
        raise ParamsError(
            f"Probe {probe!r} has {DEFAULT_CHANNELS[probe]} channels, not {count}. "
            "Leave the number out, or use probe 'linear'."
        )
    k = np.arange(count)
    x: np.ndarray
    y: np.ndarray
    if probe in ("mono", "linear"):
        x, y = np.zeros(count), k * (pitch_um or 25.0)
    elif probe == "tetrode":
        pitch = pitch_um or 20.0
        x, y = k % 2 * pitch, k // 2 * pitch
    elif probe == "poly32":  # the middle column is staggered
        x, y = k % 3 * 18.0, (k // 3 + (k % 3 == 1) * 0.5) * (pitch_um or 25.0)
    elif probe == "neuropixels":
        x, y = np.array(NEUROPIXELS_X_UM)[k % 4], k // 2 * (pitch_um or 20.0)
    else:
        x, y = k % 2 * 32.0, k // 2 * (pitch_um or 15.0)
    return np.stack([x, y], axis=1).astype(np.float64)


@dataclass(frozen=True)
class Neuron:
    """One neuron: point sources of current, each with its time course.

    Attributes
    ----------
    currents : ndarray of shape (PHASES, n_samples, NUM_SOURCES), float32
        Scaled so that potentials are in µV; phase p is the spike ``p / PHASES`` of a sample later.
    sources : ndarray of shape (NUM_SOURCES, 3), float64
        Position of each source, the soma first, µm; the contacts lie in the plane z = 0.
    """

    currents: np.ndarray
    sources: np.ndarray

    def waveform(self, channel_locations: np.ndarray, phase: int = 0) -> np.ndarray:
        """Potential at each contact: (n_samples, n_channels), float32, µV."""
        return self.currents[phase] @ source_gains(self.sources, channel_locations).T

    def scaled(self, factor: float) -> "Neuron":
        """Multiply all currents by ``factor``."""
        return Neuron((self.currents * factor).astype(np.float32), self.sources)


def source_gains(sources: np.ndarray, channel_locations: np.ndarray) -> np.ndarray:
    """Potential at each contact of a unit current at each source, without the constant 1 / (4 pi sigma).

    Parameters
    ----------
    sources : ndarray of shape (..., n_sources, 3), float64
        µm.
    channel_locations : ndarray of shape (..., n_channels, 2), float64
        µm.

    Returns
    -------
    ndarray of shape (..., n_channels, n_sources), float32
        1/µm.
    """
    across = channel_locations[..., :, None, :] - sources[..., None, :, :2]
    squared = (across**2).sum(axis=-1) + sources[..., None, :, 2] ** 2 + SOMA_RADIUS_UM**2
    return (1.0 / np.sqrt(squared)).astype(np.float32)


def window_samples(sampling_frequency: float) -> tuple[int, int]:
    """Count the samples of a waveform before its trough, and from the trough on."""
    return round(MS_BEFORE * 1e-3 * sampling_frequency), round(MS_AFTER * 1e-3 * sampling_frequency)


def draw_neuron(rng: np.random.Generator, channel_locations: np.ndarray, sampling_frequency: float) -> Neuron:
    """Draw a neuron near the contacts, with a trough of -1 µV at the contact where it is largest.

    Parameters
    ----------
    rng : numpy.random.Generator
        Every choice comes from it.
    channel_locations : ndarray of shape (n_channels, 2), float64
        µm.
    sampling_frequency : float
        Hz.

    Returns
    -------
    Neuron
        Its trough on the main channel lies at the sample that ``window_samples`` gives.

    Notes
    -----
    A spike is a sequence of membrane currents at the soma: a capacitive source, the sodium sink, the
    potassium source (Gold et al. 2006). It travels up the apical dendrite, slower and weaker as it goes; what
    enters the cell at one place leaves it at the others, so that currents sum to zero at every instant. The
    contacts see the sum of point sources in a uniform medium (Holt & Koch 1999): 1/r at the soma, 1/r² far
    away, an inverted and later wave along the dendrite. Three kinds of cells differ in widths: broad (trough
    to peak 0.45 to 0.9 ms), narrow (0.2 to 0.4 ms; Barthó et al. 2004), and a few with a large first peak, as
    axons have. Neurons whose largest deflection would be positive are drawn again.

    References
    ----------
    Gold, Henze, Koch & Buzsáki (2006), J. Neurophysiol. 95, 3113.
    Holt & Koch (1999), J. Comput. Neurosci. 6, 169.
    Henze et al. (2000), J. Neurophysiol. 84, 390.
    Barthó et al. (2004), J. Neurophysiol. 92, 600.
    Stuart & Sakmann (1994), Nature 367, 69.
    """
    num_before, num_after = window_samples(sampling_frequency)
    while True:
        broad = rng.random() < 0.65  # excitatory cells are the majority
        sources, distances = _draw_sources(rng, channel_locations, broad)
        shape = _draw_shape(rng, broad)
        active = rng.uniform(0.1, 0.6) if broad else rng.uniform(0.0, 0.2)
        velocity = rng.uniform(*VELOCITY_UM_PER_MS)
        mixing = _mixing(distances, reach_um=rng.uniform(30.0, 90.0))
        gains = source_gains(sources, channel_locations)

        # a fine first look finds where the trough falls and how deep it is
        fine_ms = np.arange(-0.4, 0.6, 0.005)
        seen = _currents(fine_ms, shape, active, distances, velocity, mixing) @ gains.T
        row, channel = np.unravel_index(np.abs(seen).argmax(), seen.shape)
        if seen[row, channel] < 0 and 0 < row < len(fine_ms) - 1:
            break
    step_ms = 1e3 / sampling_frequency
    samples = np.arange(-num_before, num_after) - np.arange(PHASES)[:, None] / PHASES
    times_ms = samples * step_ms + fine_ms[row]
    currents = _currents(times_ms.ravel(), shape, active, distances, velocity, mixing) / -seen[row, channel]
    currents = currents.reshape(PHASES, num_before + num_after, NUM_SOURCES)
    currents *= _taper(num_before + num_after)[None, :, None]
    return Neuron(currents.astype(np.float32), sources)


@dataclass(frozen=True)
class _Shape:
    """Time course of the current at the soma: widths and delays in ms, heights as shares of the sink."""

    rise: float
    fall: float
    hump_height: float
    hump_delay: float
    hump_width: float
    first_height: float
    first_lead: float
    first_width: float

    def at(self, t: np.ndarray) -> np.ndarray:
        sink = np.exp(-0.5 * (t / np.where(t < 0, self.rise, self.fall)) ** 2)
        # the potassium current sets in faster than it fades
        width = np.where(t < self.hump_delay, 0.7 * self.hump_width, 1.3 * self.hump_width)
        hump = np.exp(-0.5 * ((t - self.hump_delay) / width) ** 2)
        first = np.exp(-0.5 * ((t + self.first_lead) / self.first_width) ** 2)
        return self.hump_height * hump + self.first_height * first - sink


def _draw_shape(rng: np.random.Generator, broad: bool) -> _Shape:
    axonal = rng.random() < 0.1
    return _Shape(
        rise=rng.uniform(0.06, 0.12) if broad else rng.uniform(0.05, 0.09),
        fall=rng.uniform(0.09, 0.22) if broad else rng.uniform(0.06, 0.12),
        hump_height=rng.uniform(0.1, 0.45) if broad else rng.uniform(0.2, 0.6),
        hump_delay=rng.uniform(0.45, 0.9) if broad else rng.uniform(0.2, 0.4),
        hump_width=rng.uniform(0.2, 0.4) if broad else rng.uniform(0.1, 0.2),
        first_height=rng.uniform(0.3, 0.7) if axonal else rng.uniform(0.0, 0.25),
        first_lead=rng.uniform(0.18, 0.35),
        first_width=rng.uniform(0.06, 0.12),
    )


def _draw_sources(
    rng: np.random.Generator, channel_locations: np.ndarray, broad: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (NUM_SOURCES, 3) µm, and signed distance of each from the soma along the cell's axis, µm."""
    low, high = channel_locations.min(axis=0) - MARGIN_UM, channel_locations.max(axis=0) + MARGIN_UM
    soma = np.array([*rng.uniform(low, high), rng.uniform(*DEPTH_UM)])
    if broad:  # apical dendrites run towards the surface, along the probe
        axis = np.array([rng.normal(0, 0.25), 1.0, rng.normal(0, 0.25)])
        length = rng.uniform(80.0, 250.0)
    else:
        axis = rng.normal(0, 1.0, 3)
        length = rng.uniform(40.0, 100.0)
    axis /= np.linalg.norm(axis)
    apical = length * np.arange(1, NUM_APICAL + 1) / NUM_APICAL
    basal = -rng.uniform(30.0, 60.0) * np.arange(1, NUM_BASAL + 1) / NUM_BASAL
    distances = np.concatenate([[0.0], apical, basal])
    sources = soma + distances[:, None] * axis
    sources[:, 2] = np.maximum(np.abs(sources[:, 2]), DEPTH_UM[0])  # nothing grows through the probe
    return sources, distances


def _mixing(distances: np.ndarray, reach_um: float) -> np.ndarray:
    """Give each source's current to itself and, inverted, to the others: (n_sources, n_sources)."""
    apart = np.abs(distances[:, None] - distances[None])
    share = np.exp(-apart / reach_um)
    np.fill_diagonal(share, 0.0)
    return np.eye(len(distances)) - share / share.sum(axis=0, keepdims=True)


def _currents(
    times_ms: np.ndarray,
    shape: _Shape,
    active: float,
    distances: np.ndarray,
    velocity: float,
    mixing: np.ndarray,
) -> np.ndarray:
    """Compute each source's current at each time, (n_times, NUM_SOURCES); every row sums to zero."""
    far = np.clip(distances, 0.0, None)
    strength = np.where(distances > 0, active * np.exp(-far / 150.0), 0.0)  # weaker over 150 µm
    strength[0] = 1.0
    slowing = 1.0 + far / 250.0  # broader on the way
    own = np.zeros((len(times_ms), len(distances)))
    for k in np.flatnonzero(strength):
        own[:, k] = strength[k] * shape.at((times_ms - far[k] / velocity) / slowing[k])
    return own @ mixing.T


def _taper(num_samples: int) -> np.ndarray:
    """Window that is 1 in the middle and falls to 0 at both ends."""
    num_edge = round(TAPER * num_samples)
    ramp = 0.5 - 0.5 * np.cos(np.pi * np.arange(num_edge) / num_edge)
    return np.concatenate([ramp, np.ones(num_samples - 2 * num_edge), ramp[::-1]])
