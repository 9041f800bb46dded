"""Whether two units are one neuron that moves: what they look like where they meet.

Two neurons stay as far apart as they are whatever the tissue does. The pieces of one neuron are far apart on
the whole, but where one ends and the other begins they are halves of one hump.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from accm_core.params import to_samples
from accm_core.sorting.course import Means, average_bins, measure_separation, smooth_course, unit_length
from accm_core.sorting.match import TemplateBank
from accm_core.sorting.merge import (
    REFRACTORY_MS,
    count_in_same_second,
    count_pairs,
    follow_in_bursts,
)

MIN_SIMILARITY = 0.85
"""Cosine of two templates, where they meet, from which on they are compared."""
MAX_SEPARATION = 6.0
"""Standard deviations between units of one neuron where they meet: what a large one moves within a bin."""
HALVES_SIMILARITY, HALVES_SEPARATION = 0.97, 3.5
"""Cosine from which on, and standard deviations up to which, two units are halves of one hump wherever they
meet: 1.6 / 0.6 for a Gaussian, root 12 for a flat one."""
MAX_RATIO, MAX_RATIO_ALONE = 0.6, 0.4
"""Squared distance where they meet over that of their means, of one neuron; the second where few meet."""
MIN_MEETINGS, MIN_NEAR = 8, 3
"""Spikes (harmonic sum) in the same bins to judge by separation; and in neighbouring bins to judge at all."""
MIN_EXPECTED, MAX_MET = 10.0, 0.3
"""Spikes (harmonic sum) in the same bins if both units fired everywhere alike, from which on it shows whether
they take turns along the way, as the pieces of one neuron do; and the share of them up to which they do."""
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
    """One unit: its points, their means in bins, its smoothed template, and all of its spikes in samples."""

    points: np.ndarray
    bins: np.ndarray
    in_bins: Means
    smooth: np.ndarray
    train: np.ndarray


class _Meeting(NamedTuple):
    """How far apart two units are where they meet; what a shift in time could explain is left out."""

    ratio: float
    """Squared distance in the same and neighbouring bins over that of the means of all their spikes."""
    num_near: float
    """Harmonic sum of the spikes that it rests on."""
    separation: float
    """Distance within bins along the difference of the smoothed templates, in standard deviations."""
    num_meetings: float
    """Harmonic sum of the spikes that it rests on."""


def link_units(
    spikes: Spikes, bank: TemplateBank, max_lag: int, observed: int, sampling_frequency: float
) -> tuple[Spikes, np.ndarray]:
    """Join units that are one moving neuron, the most alike first.

    Parameters
    ----------
    spikes : Spikes
    bank : TemplateBank
        For its basis.
    max_lag : int
        Largest shift between two templates of one unit, samples.
    observed : int
        Samples that the trains are of.
    sampling_frequency : float
        Hz.

    Returns
    -------
    spikes : Spikes
        With the unit and the delay of each.
    unit_of : ndarray of shape (n_units,), int64
        The unit that each was given to: itself, where it stands alone.

    Notes
    -----
    Of two units that are alike and silent after each other's spikes, one neuron are those that are halves of
    one hump, those that come near each other where one ends and the other begins, those that take turns along
    the way, and those of which the smaller follows the larger in bursts.
    """
    unit_of = np.arange(len(spikes.trains))
    products = _lag_products(bank, max_lag)
    derive = bank.kernels @ np.gradient(bank.courses, axis=1).T
    found = np.unique(spikes.unit_index).tolist()
    courses = {unit: _make_course(spikes, unit, bank, spikes.trains[unit]) for unit in found}
    verdicts: dict[tuple[int, int], tuple[float, np.ndarray] | None] = {}
    joined = True
    while joined:
        for one in courses:
            for other in courses:
                if one < other and (one, other) not in verdicts:
                    verdicts[one, other] = _meet(
                        spikes,
                        bank,
                        *_by_size(one, other, courses),
                        courses,
                        products,
                        derive,
                        observed,
                        sampling_frequency,
                    )
        joined = False
        same = [(met[0], pair, met[1]) for pair, met in verdicts.items() if met is not None]
        for _, pair, moved in sorted(same, key=lambda s: s[:2]):
            larger, smaller = _by_size(*pair, courses)
            if not _is_silent(courses[larger].train, courses[smaller].train, sampling_frequency):
                continue
            rows = spikes.unit_index == smaller
            delay = spikes.delay.copy()
            delay[rows] = moved
            spikes = replace(spikes, unit_index=np.where(rows, larger, spikes.unit_index), delay=delay)
            unit_of[unit_of == smaller] = larger
            train = np.sort(np.concatenate([courses[larger].train, courses.pop(smaller).train]))
            courses[larger] = _make_course(spikes, larger, bank, train)
            verdicts = {p: m for p, m in verdicts.items() if not {larger, smaller} & set(p)}
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


def _make_course(spikes: Spikes, unit: int, bank: TemplateBank, train: np.ndarray) -> _Course:
    bins = spikes.bin_index[spikes.unit_index == unit]
    return _average_course(spikes.project_unit(unit, bank), bins, spikes.num_bins, train)


def _average_course(points: np.ndarray, bins: np.ndarray, num_bins: int, train: np.ndarray) -> _Course:
    in_bins = average_bins(points, bins, num_bins)
    return _Course(points, bins, in_bins, smooth_course(in_bins), train)


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
    observed: int,
    sampling_frequency: float,
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
    moved = _average_course(spikes.project(rows, delay, bank), other.bins, spikes.num_bins, other.train)
    meeting = _measure(own, moved, derive)
    same = (
        _are_near(meeting, similarity)
        or _take_turns(meeting, own, moved)
        or _are_of_bursts(meeting, own, moved, observed, sampling_frequency)
    )
    return (meeting.ratio, delay) if same else None


def _are_near(meeting: _Meeting, similarity: float) -> bool:
    """Whether two units are halves of one hump, or near each other where one ends and the other begins."""
    if meeting.num_meetings < MIN_MEETINGS:
        return meeting.num_near >= MIN_NEAR and meeting.ratio <= MAX_RATIO_ALONE
    are_halves = similarity >= HALVES_SIMILARITY and meeting.separation <= HALVES_SEPARATION
    return are_halves or (meeting.separation <= MAX_SEPARATION and meeting.ratio <= MAX_RATIO)


def _take_turns(meeting: _Meeting, own: _Course, other: _Course) -> bool:
    """Whether one unit hardly fires while the tissue is where the other does."""
    expected = 1 / (1 / len(own.points) + 1 / len(other.points))
    return expected >= MIN_EXPECTED and meeting.num_meetings <= MAX_MET * expected


def _are_of_bursts(
    meeting: _Meeting, own: _Course, other: _Course, observed: int, sampling_frequency: float
) -> bool:
    """Whether the smaller spikes are those that follow the larger in a neuron's bursts."""
    if meeting.num_meetings < MIN_MEETINGS or meeting.separation > MAX_SEPARATION:
        return False
    weak, strong = sorted((own, other), key=lambda course: np.linalg.norm(course.in_bins.overall))
    return follow_in_bursts(strong.train, weak.train, observed, sampling_frequency)


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


def _measure(own: _Course, other: _Course, derive: np.ndarray) -> _Meeting:
    """Compare two units where they meet."""
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
    return _Meeting(float(ratio), float(num_near), *measure_separation(*along))


def _leave_out(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Vectors without their part along a direction of unit length."""
    return vectors - (vectors * direction).sum(axis=-1, keepdims=True) * direction


def _is_silent(first: np.ndarray, second: np.ndarray, sampling_frequency: float) -> bool:
    """Whether two trains keep out of each other's refractory time, given when each fires."""
    near, far = to_samples(0.5, sampling_frequency), to_samples(REFRACTORY_MS, sampling_frequency)
    together = count_in_same_second(first, second, sampling_frequency)
    expected = 2 * together * (far - near) / sampling_frequency
    return bool(count_pairs(first, second, (near, far)) <= MAX_SHARE * expected + SLACK)
