"""Spike trains for simulations: when neurons fire, how large each spike is, and who fires together."""

from dataclasses import dataclass

import numpy as np

RATE_SIGMA = 0.9  # of the logarithm: firing rates are log-normal (Mizuseki & Buzsáki 2013)
REGULARITY = (0.7, 2.5)  # shape of the gamma intervals, from irregular over Poisson (1) to regular
BURST_SIZE = (2.2, 4.0)  # mean spikes of a burst, by neuron (Harris et al. 2001)
BURST_INTERVAL_MS = (3.0, 8.0)  # mean, by neuron
BURST_DECAY = (0.65, 0.9)  # amplitude of a spike in a burst, as a share of the one before it
SYNCHRONY_LAG_MS = 0.5  # partners fire this long before or after, at most


@dataclass(frozen=True)
class Trains:
    """Spikes of all units, sorted by time.

    Attributes
    ----------
    time : ndarray of shape (n_spikes,), float64
        Samples of observed time, with a fraction.
    unit : ndarray of shape (n_spikes,), int64
        Unit of each spike.
    scale : ndarray of shape (n_spikes,), float32
        Amplitude, as a share of the unit's mean.
    """

    time: np.ndarray
    unit: np.ndarray
    scale: np.ndarray

    def select(self, rows: np.ndarray) -> "Trains":
        """Keep the spikes at ``rows`` (indices or mask)."""
        return Trains(self.time[rows], self.unit[rows], self.scale[rows])


def draw_rates(
    rng: np.random.Generator, num_units: int, median_hz: float, limits_hz: tuple[float, float]
) -> np.ndarray:
    """Draw a firing rate for each unit from a log-normal cut at ``limits_hz``: (n_units,), float64, Hz."""
    rates = median_hz * np.exp(rng.normal(0.0, RATE_SIGMA, num_units))
    return np.clip(rates, *limits_hz)


def draw_trains(
    rng: np.random.Generator,
    rates_hz: np.ndarray,
    num_samples: int,
    sampling_frequency: float,
    *,
    refractory_ms: float,
    burst_share: float,
    amplitude_std: float,
    poisson: bool,
) -> Trains:
    """Draw the spikes of each unit.

    Parameters
    ----------
    rng : numpy.random.Generator
        Every choice comes from it.
    rates_hz : ndarray of shape (n_units,)
        Mean firing rate, Hz.
    num_samples : int
        Length of the recording.
    sampling_frequency : float
        Hz.
    refractory_ms : float
        Least interval between spikes of a unit, ms.
    burst_share : float
        Share of the units that fire in bursts, with amplitudes that shrink inside a burst.
    amplitude_std : float
        Standard deviation of each spike's amplitude, as a share of its mean.
    poisson : bool
        Intervals are exponential after the refractory period; else gamma, each unit with its regularity.

    Returns
    -------
    Trains

    References
    ----------
    Mizuseki & Buzsáki (2013), Cell Reports 4, 1010: log-normal rates.
    Harris et al. (2001), Neuron 32, 141: complex-spike bursts and their amplitudes.
    """
    duration_s = num_samples / sampling_frequency
    is_bursting = rng.random(len(rates_hz)) < burst_share
    times, units, scales = [], [], []
    for unit, rate_hz in enumerate(rates_hz):
        shape = 1.0 if poisson else rng.uniform(*REGULARITY)
        size = rng.uniform(*BURST_SIZE) if is_bursting[unit] else 1.0
        spikes_s = _renewal(rng, rate_hz / size, duration_s, refractory_ms * 1e-3, shape)
        scale = np.ones(len(spikes_s))
        if is_bursting[unit]:
            spikes_s, scale = _add_bursts(rng, spikes_s, size)
        scale = scale * np.clip(rng.normal(1.0, amplitude_std, len(spikes_s)), 0.3, None)
        times.append(spikes_s * sampling_frequency)
        units.append(np.full(len(spikes_s), unit))
        scales.append(scale.astype(np.float32))
    everything = Trains(
        np.concatenate([*times, np.zeros(0)]),
        np.concatenate([*units, np.zeros(0, np.int64)]),
        np.concatenate([*scales, np.zeros(0, np.float32)]),
    )
    may_go = np.ones(len(everything.time), dtype=bool)
    return _without_violations(everything, may_go, refractory_ms * 1e-3 * sampling_frequency)


def add_synchrony(
    rng: np.random.Generator,
    trains: Trains,
    neighbors: list[np.ndarray],
    sampling_frequency: float,
    *,
    share: float,
    exact: bool,
    refractory_ms: float,
    amplitude_std: float,
) -> Trains:
    """Give a share of the spikes a partner in a nearby unit.

    Parameters
    ----------
    rng : numpy.random.Generator
    trains : Trains
    neighbors : list of ndarray of int
        Units near each unit; a unit without any gets no partners.
    sampling_frequency : float
        Hz.
    share : float
        Of the spikes of ``trains``, those that get a partner.
    exact : bool
        The partner fires at the very same instant; else within ±0.5 ms.
    refractory_ms : float
        A partner that would break its own unit's refractory period is left out, ms.
    amplitude_std : float
        As in `draw_trains`.

    Returns
    -------
    Trains
        The spikes that were there, all kept, and the partners.
    """
    num_near = np.array([len(near) for near in neighbors], dtype=np.int64)
    rows = np.flatnonzero((rng.random(len(trains.time)) < share) & (num_near[trains.unit] > 0))
    first = np.cumsum(num_near) - num_near
    pick = (rng.random(len(rows)) * num_near[trains.unit[rows]]).astype(np.int64)
    partner = np.concatenate([*neighbors, np.zeros(0, np.int64)])[first[trains.unit[rows]] + pick]
    lag = SYNCHRONY_LAG_MS * 1e-3 * sampling_frequency
    shift = np.zeros(len(rows)) if exact else rng.uniform(-lag, lag, len(rows))
    time = np.concatenate([trains.time, np.maximum(trains.time[rows] + shift, 0.0)])
    unit = np.concatenate([trains.unit, partner])
    scale = np.clip(rng.normal(1.0, amplitude_std, len(rows)), 0.3, None).astype(np.float32)
    is_new = np.arange(len(time)) >= len(trains.time)
    everything = Trains(time, unit, np.concatenate([trains.scale, scale]))
    return _without_violations(everything, is_new, refractory_ms * 1e-3 * sampling_frequency)


def _renewal(
    rng: np.random.Generator, rate_hz: float, duration_s: float, refractory_s: float, shape: float
) -> np.ndarray:
    """Events of a renewal process with gamma intervals after a dead time, s."""
    mean = max(1.0 / rate_hz - refractory_s, 0.1 * refractory_s)
    count = int(rate_hz * duration_s * 1.2 + 10 * np.sqrt(rate_hz * duration_s) + 20)
    gaps = refractory_s + rng.gamma(shape, mean / shape, count)
    times = np.cumsum(gaps) - rng.random() * gaps[0]
    return times[times < duration_s]


def _add_bursts(rng: np.random.Generator, events_s: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn each event into a burst; times and amplitudes of its spikes."""
    sizes = rng.geometric(1.0 / size, len(events_s))
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rank = np.arange(sizes.sum()) - first
    interval_s = rng.uniform(*BURST_INTERVAL_MS) * 1e-3
    gaps = np.where(rank == 0, 0.0, interval_s * rng.uniform(0.7, 1.5, len(rank)))
    inside = np.cumsum(gaps)
    inside -= inside[first] if len(first) else 0.0
    decay = rng.uniform(*BURST_DECAY)
    return np.repeat(events_s, sizes) + inside, np.maximum(decay**rank, 0.4)


def _without_violations(trains: Trains, may_go: np.ndarray, refractory: float) -> Trains:
    """Leave out spikes that ``may_go`` and are too near another of their unit; sort by time."""
    rows = np.lexsort((trains.time, trains.unit))
    while True:
        time, unit, free = trains.time[rows], trains.unit[rows], may_go[rows]
        close = (np.diff(time) < refractory) & (unit[1:] == unit[:-1]) & (free[1:] | free[:-1])
        close[1:] &= ~close[:-1].copy()  # of a run its head alone: the rest may then be far enough
        if not close.any():
            break
        earlier = np.flatnonzero(close)
        rows = np.delete(rows, np.where(free[earlier + 1], earlier + 1, earlier))
    return trains.select(rows[np.lexsort((trains.unit[rows], trains.time[rows]))])
