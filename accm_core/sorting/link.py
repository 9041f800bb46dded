"""Whether two units are one neuron that moves: what they look like where they meet.

Two neurons stay as far apart as they are whatever the tissue does. The pieces of one neuron are far apart on
the whole, but where one ends and the other begins they are halves of one hump.
"""

from dataclasses import dataclass, replace

import numpy as np

from accm_core.params import to_samples
from accm_core.sorting.course import Means, average_bins, measure_separation, smooth_course, unit_length
from accm_core.sorting.match import TemplateBank
from accm_core.sorting.merge import REFRACTORY_MS, count_in_same_second, count_pairs

MIN_SIMILARITY = 0.85
"""Cosine of two templates, where they meet, from which on they are compared."""
MAX_SEPARATION = 6.0
"""Standard deviations between two halves of one hump: 1.6 / 0.6 for a Gaussian, root 12 for a flat one; and
what a large neuron moves within a bin."""
MAX_RATIO, MAX_RATIO_ALONE = 0.6, 0.4
"""Squared distance where they meet over that of their means, of one neuron; the second where few meet."""
MIN_MEETINGS, MIN_NEAR = 8, 3
"""Spikes (harmonic sum) in the same bins to judge by separation; and in neighbouring bins to judge at all."""
MAX_SHARE, SLACK = 0.5, 3
"""Pairs in the refractory time, of what chance gives, that one neuron has at most; and some by error."""


@dataclass(frozen=True)
class Spikes:
    """Spikes without overlap, with their waveforms, and all spike trains.

    Attributes
    ----------
    unit_index : ndarray of shape (n,), int64
    bin_index : ndarray of shape (n,), int64
        Where the tissue is at each, in bins.
    delay : ndarray of shape (n,), int64
        Samples from the spike's own peak to that of the unit it has been given to.
    waveforms : ndarray of shape (n, n_samples + 2 max_lag, n_channels), float32
        Whitened over channels.
    trains : tuple of ndarray of int64
        All spikes of each unit, samples.
    num_bins, max_lag : int
    """

    unit_index: np.ndarray
    bin_index: np.ndarray
    delay: np.ndarray
    waveforms: np.ndarray
    trains: tuple[np.ndarray, ...]
    num_bins: int
    max_lag: int

    def select(self, rows: np.ndarray) -> "Spikes":
        """Some of the spikes (indices or mask); the trains stay."""
        return replace(
            self,
            unit_index=self.unit_index[rows],
            bin_index=self.bin_index[rows],
            delay=self.delay[rows],
            waveforms=self.waveforms[rows],
        )

    def project(self, rows: np.ndarray, delay: np.ndarray, bank: TemplateBank) -> np.ndarray:
        """Fit of the bank's kernels to each spike on each channel, (n, n_basis * n_channels), white noise."""
        points = np.zeros((len(rows), len(bank.kernels), self.waveforms.shape[2]), dtype=np.float32)
        for lag in np.unique(delay):
            own = delay == lag
            first = self.max_lag + lag
            points[own] = bank.kernels @ self.waveforms[rows[own], first : first + bank.num_samples]
        return points.reshape(len(rows), len(bank.kernels) * self.waveforms.shape[2])

    def project_unit(self, unit: int, bank: TemplateBank) -> np.ndarray:
        """``project`` for all spikes of a unit."""
        rows = np.flatnonzero(self.unit_index == unit)
        return self.project(rows, self.delay[rows], bank)


@dataclass(frozen=True)
class _Course:
    """One unit: its points, their means in bins, and its smoothed template."""

    points: np.ndarray
    bins: np.ndarray
    in_bins: Means
    smooth: np.ndarray


def link_units(
    spikes: Spikes, bank: TemplateBank, max_lag: int, sampling_frequency: float
) -> tuple[Spikes, np.ndarray]:
    """Join units that are one moving neuron, the most alike first.

    Parameters
    ----------
    spikes : Spikes
    bank : TemplateBank
        For its basis.
    max_lag : int
        Largest shift between two templates of one unit, samples.
    sampling_frequency : float
        Hz.

    Returns
    -------
    spikes : Spikes
        With the unit and the delay of each.
    unit_of : ndarray of shape (n_units,), int64
        The unit that each was given to: itself, where it stands alone.
    """
    num_units = len(spikes.trains)
    unit_of = np.arange(num_units)
    trains = list(spikes.trains)
    products = _lag_products(bank, max_lag)
    derive = bank.kernels @ np.gradient(bank.courses, axis=1).T
    courses = {u: _make_course(spikes, u, bank) for u in np.unique(spikes.unit_index).tolist()}
    meetings: dict[tuple[int, int], tuple[float, np.ndarray] | None] = {}
    joined = True
    while joined:
        for one in courses:
            for other in courses:
                if one < other and (one, other) not in meetings:
                    pair = _by_size(one, other, courses)
                    meetings[one, other] = _meet(spikes, bank, *pair, courses, products, derive)
        joined = False
        same = [(met[0], pair, met[1]) for pair, met in meetings.items() if met is not None]
        for _, pair, moved in sorted(same, key=lambda s: s[:2]):
            larger, smaller = _by_size(*pair, courses)
            if not _is_silent(trains[larger], trains[smaller], sampling_frequency):
                continue
            rows = spikes.unit_index == smaller
            delay = spikes.delay.copy()
            delay[rows] = moved
            spikes = replace(spikes, unit_index=np.where(rows, larger, spikes.unit_index), delay=delay)
            unit_of[unit_of == smaller] = larger
            trains[larger] = np.sort(np.concatenate([trains[larger], trains[smaller]]))
            del courses[smaller]
            courses[larger] = _make_course(spikes, larger, bank)
            meetings = {p: m for p, m in meetings.items() if not {larger, smaller} & set(p)}
            joined = True
            break
    return spikes, unit_of


def _lag_products(bank: TemplateBank, max_lag: int) -> np.ndarray:
    """Fit of each kernel to each course at each lag, (n_lags, n_basis, n_basis)."""
    middle, num_basis = bank.num_samples - 1, len(bank.kernels)
    products = np.empty((2 * max_lag + 1, num_basis, num_basis))
    for r in range(num_basis):
        for s in range(num_basis):
            full = np.correlate(bank.courses[r], bank.kernels[s], mode="full")
            products[:, r, s] = full[middle - max_lag : middle + max_lag + 1]
    return products


def _make_course(spikes: Spikes, unit: int, bank: TemplateBank) -> _Course:
    rows = np.flatnonzero(spikes.unit_index == unit)
    points = spikes.project_unit(unit, bank)
    return _average_course(points, spikes.bin_index[rows], spikes)


def _average_course(points: np.ndarray, bins: np.ndarray, spikes: Spikes) -> _Course:
    in_bins = average_bins(points, bins, spikes.num_bins)
    return _Course(points, bins, in_bins, smooth_course(in_bins))


def _by_size(one: int, other: int, courses: dict[int, _Course]) -> tuple[int, int]:
    return (one, other) if len(courses[one].points) >= len(courses[other].points) else (other, one)


def _meet(
    spikes: Spikes,
    bank: TemplateBank,
    larger: int,
    smaller: int,
    courses: dict[int, _Course],
    products: np.ndarray,
    derive: np.ndarray,
) -> tuple[float, np.ndarray] | None:
    """Compare two units where they meet; None for two neurons.

    Returns
    -------
    ratio : float
        Squared distance where they meet over that of their means.
    delay : ndarray of shape (n_spikes_of_smaller,), int64
        At which the smaller unit's spikes fit the larger unit.
    """
    own, other = courses[larger], courses[smaller]
    similarity, lag = _compare_courses(own, other, products)
    if similarity < MIN_SIMILARITY:
        return None
    rows = np.flatnonzero(spikes.unit_index == smaller)
    delay = np.clip(spikes.delay[rows] - lag, -spikes.max_lag, spikes.max_lag)
    moved = _average_course(spikes.project(rows, delay, bank), other.bins, spikes)
    ratio, num_near, separation, num_meetings = _measure(own, moved, derive)
    if num_meetings >= MIN_MEETINGS:
        same = separation <= MAX_SEPARATION and ratio <= MAX_RATIO
    else:
        same = num_near >= MIN_NEAR and ratio <= MAX_RATIO_ALONE
    return (ratio, delay) if same else None


def _compare_courses(own: _Course, other: _Course, products: np.ndarray) -> tuple[float, int]:
    """Cosine of two templates where both fire or nearly so, at their best lag, and that lag."""
    num_basis = products.shape[1]
    around = [np.convolve(c.in_bins.counts, np.ones(3))[1:-1] for c in (own, other)]
    both = np.flatnonzero((around[0] > 0) & (around[1] > 0))
    if len(both) == 0:
        return 0.0, 0
    weight = 1 / (1 / around[0][both] + 1 / around[1][both])
    first, second = (c.smooth[both].reshape(len(both), num_basis, -1) for c in (own, other))
    joint = np.einsum("t,trc,tsc->rs", weight, first, second, optimize=True)
    fits = np.einsum("lrs,rs->l", products, joint)
    length = np.sqrt((first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2)))
    best = int(fits.argmax())
    return float(fits[best] / max(weight @ length, 1e-12)), best - len(products) // 2


def _measure(own: _Course, other: _Course, derive: np.ndarray) -> tuple[float, float, float, float]:
    """How far apart two units are where they meet; what a shift in time could explain is left out.

    Returns
    -------
    ratio : float
        Squared distance in the same and neighbouring bins over that of the means of all their spikes.
    num_near : float
        Harmonic sum of the spikes that it rests on.
    separation : float
        Distance within bins along the difference of the smoothed templates, in standard deviations.
    num_meetings : float
        Harmonic sum of the spikes that it rests on.
    """
    num_bins = len(own.in_bins.counts)
    middle = 0.5 * (own.smooth + other.smooth)
    slope = np.einsum("rs,tsc->trc", derive, middle.reshape(len(middle), len(derive), -1))
    slope = unit_length(slope.reshape(middle.shape))
    axis = unit_length(_leave_out(own.smooth - other.smooth, slope))
    means = [_leave_out(c.in_bins.mean, slope) for c in (own, other)]
    counts = [c.in_bins.counts for c in (own, other)]
    total = num_near = 0.0
    for step in (-1, 0, 1):
        first = np.arange(max(0, -step), num_bins - max(0, step))
        first = first[(counts[0][first] > 0) & (counts[1][first + step] > 0)]
        noise = own.in_bins.scatter / counts[0][first] + other.in_bins.scatter / counts[1][first + step]
        weight = 1 / (1 / counts[0][first] + 1 / counts[1][first + step])
        apart = ((means[0][first] - means[1][first + step]) ** 2).sum(axis=1) - noise
        total += weight @ apart
        num_near += weight.sum()
    overall = ((own.in_bins.overall - other.in_bins.overall) ** 2).sum()
    ratio = total / max(num_near, 1e-12) / max(overall, 1e-12) if num_near > 0 else np.inf
    along = [
        average_bins((c.points * axis[c.bins]).sum(axis=1, keepdims=True), c.bins, num_bins)
        for c in (own, other)
    ]
    return float(ratio), float(num_near), *measure_separation(*along)


def _leave_out(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Vectors without their part along a direction of unit length."""
    return vectors - (vectors * direction).sum(axis=-1, keepdims=True) * direction


def _is_silent(first: np.ndarray, second: np.ndarray, sampling_frequency: float) -> bool:
    """Whether two trains keep out of each other's refractory time, given when each fires."""
    near, far = to_samples(0.5, sampling_frequency), to_samples(REFRACTORY_MS, sampling_frequency)
    together = count_in_same_second(first, second, sampling_frequency)
    expected = 2 * together * (far - near) / sampling_frequency
    return bool(count_pairs(first, second, (near, far)) <= MAX_SHARE * expected + SLACK)
