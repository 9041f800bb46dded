"""Clusters of neurons that move: shapes as functions of where the tissue is.

On a shank too small to see where the tissue moves to, all of its neurons change at once. Their common course
over time, up to its scale, says where the tissue is. In the order of that place, not of time, each neuron's
shape changes slowly and comes back to what it was; a mixture of Gaussians whose means change with the place
tells neurons apart that cross each other's ways.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import linalg
from scipy.interpolate import BSpline
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from accm_core.sorting.moving import average_bins, smooth_course
from accm_core.types import Snippets

logger = logging.getLogger(__name__)

NUM_DIMS = 12
"""Principal components of the snippets, whitened by the noise, in which neurons are told apart."""
MAX_POINTS = 20_000
"""Snippets that the mixture is fitted to, evenly spread; the others are dealt out afterwards."""
MIN_STRAY, MIN_OF_CLUSTER = 4.0, 60
"""Mean squared distance of a cluster from its mean, over time, that matters (two noise levels), and spikes of
a cluster that shows it."""
NUM_PLACES, OUTERMOST = 20, (0.02, 0.98)
"""Places of the tissue that are told apart, and the quantiles of all bins between which they lie."""
NUM_SPLINES, BEND_COST, SLOPE_COST = 5, 3.0, 1.0
"""Of a neuron's way through its shapes; what straightens it where it has few spikes, in spikes."""
MIN_SPIKES, MIN_WEIGHT = 15, 5
"""Spikes that a part of a neuron needs to be one itself, and weight below which a neuron vanishes."""
NUM_ROUNDS, NUM_STEPS = 4, 10
"""Of taking apart and joining, and of expectation and maximisation in each."""
FREEDOM = 4
"""Independent shapes on a neuron's way, as the criterion counts them."""
MIN_SEPARATION = 4.0
"""Standard deviations between two neurons at the same place; two halves of one hump are up to 3.5 apart."""
NEAR = 150.0
"""Squared distance, somewhere, of two neurons that are tried as one."""
POOLED_SPIKES = 60
"""Spikes that the covariance of all neurons counts for in that of each."""
CORE, CORE_LACKS = 0.9, 1.15
"""Share of a neuron's spikes, the nearest, that its covariance is measured on, as others are collisions; and
how much larger the variance of all is."""
ROWS_AT_ONCE = 4096
"""Snippets whitened at once: bounds the memory."""
RIDGE = 0.01
"""Share of the noise's mean variance added to its covariance before it is inverted."""


@dataclass(frozen=True)
class Drift:
    """Clusters of a shank whose tissue moves.

    Attributes
    ----------
    labels : ndarray of shape (n_spikes,), int64
        Neuron of each snippet; -1 for none.
    neighborhood_of : ndarray of shape (n_clusters,), int64
        Where each was found.
    place : ndarray of shape (n_bins,), float64
        Where the tissue is in each bin of time; what it is in micrometres is not known.
    """

    labels: np.ndarray
    neighborhood_of: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class _Neuron:
    """Mean at each place, (n_places, n_dims), and how its spikes spread around it."""

    course: np.ndarray
    covariance: np.ndarray
    weight: float


@dataclass(frozen=True)
class _Points:
    """What is shared out: points, (n, n_dims), their place, (n,), and the density of what is no neuron's."""

    values: np.ndarray
    place: np.ndarray
    stray_density: np.ndarray

    def select(self, rows: np.ndarray) -> "_Points":
        return _Points(self.values[rows], self.place[rows], self.stray_density[rows])


def cluster_drifting(
    snippets: Snippets,
    noise: np.ndarray,
    labels: np.ndarray,
    neighborhood: np.ndarray,
    bins: np.ndarray,
    num_bins: int,
) -> Drift | None:
    """Cluster snippets anew where the tissue moves.

    Parameters
    ----------
    snippets : Snippets
    noise : ndarray of shape (n_noise, n_samples, n_slots), float32
        Snippets without a spike.
    labels : ndarray of shape (n_spikes,), int64
        Clusters to begin with; -1 for none.
    neighborhood : ndarray of shape (n_spikes,), int64
        Those of different neighbourhoods are not compared.
    bins : ndarray of shape (n_spikes,), int64
        Of time, a few seconds each.
    num_bins : int

    Returns
    -------
    Drift or None
        None where the tissue rests: half of the clusters keep their shape.

    References
    ----------
    A mixture of drifting distributions: Shan, Lubenov & Siapas, J. Neurosci. Methods 2017; there neurons
    drift in time, here with the tissue. Penalised splines: Eilers & Marx, Statistical Science 1996.
    """
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        points = _whiten(snippets, noise, neighborhood)
        place = _find_place(points, labels, bins, num_bins)
        if place is None:
            return None
        low, high = np.quantile(place, OUTERMOST)
        step = np.floor(NUM_PLACES * (place - low) / max(high - low, 1e-12))
        at_place = np.clip(step, 0, NUM_PLACES - 1).astype(np.int64)[bins]
        found = np.full(len(labels), -1, dtype=np.int64)
        neighborhood_of: list[int] = []
        for hood in np.unique(neighborhood):
            rows = np.flatnonzero(neighborhood == hood)
            local = _fit_mixture(points[rows], at_place[rows], labels[rows])
            found[rows] = np.where(local >= 0, local + len(neighborhood_of), -1)
            neighborhood_of += [int(hood)] * (int(local.max(initial=-1)) + 1)
    logger.info("tissue moves: %d clusters", len(neighborhood_of))
    return Drift(found, np.array(neighborhood_of, dtype=np.int64), place)


def _whiten(snippets: Snippets, noise: np.ndarray, neighborhood: np.ndarray) -> np.ndarray:
    """Main directions of each neighbourhood's snippets where noise is white, (n_spikes, n_dims), float64."""
    silence = noise.reshape(len(noise), -1).astype(np.float64)
    covariance = np.atleast_2d(np.cov(silence.T))
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    variance, axes = linalg.eigh(covariance)
    unmix = axes / np.sqrt(variance)
    flat = snippets.waveforms.reshape(len(snippets), -1)
    points = np.empty((len(flat), min(NUM_DIMS, flat.shape[1])))
    for hood in np.unique(neighborhood):
        rows = np.flatnonzero(neighborhood == hood)
        parts = [rows[k : k + ROWS_AT_ONCE] for k in range(0, len(rows), ROWS_AT_ONCE)]
        second = np.zeros((len(unmix), len(unmix)))
        for part in parts:
            own = flat[part].astype(np.float64)
            second += own.T @ own
        _, main = linalg.eigh(unmix.T @ second @ unmix)
        project = unmix @ main[:, ::-1][:, : points.shape[1]]
        for part in parts:
            points[part] = flat[part] @ project
    return points


def _find_place(points: np.ndarray, labels: np.ndarray, bins: np.ndarray, num_bins: int) -> np.ndarray | None:
    """First principal component of the clusters' courses over time, each of the same length."""
    courses, strays = [], []
    for cluster in range(labels.max(initial=-1) + 1):
        rows = labels == cluster
        if rows.sum() < MIN_OF_CLUSTER:
            continue
        means = average_bins(points[rows], bins[rows], num_bins)
        strays.append(means.stray())
        course = smooth_course(means)
        course = course - means.counts @ course / means.counts.sum()
        courses.append(course / max(float(np.linalg.norm(course)), 1e-12))
    if not strays or np.mean(np.array(strays) > MIN_STRAY) < 0.5:
        return None
    together = np.concatenate(courses, axis=1)
    left, _, _ = linalg.svd(together - together.mean(axis=0), full_matrices=False)
    place: np.ndarray = left[:, 0] * np.sign(left[np.abs(left[:, 0]).argmax(), 0])
    return place


def _fit_mixture(values: np.ndarray, place: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Neuron of each point, from 0 without holes; -1 for none or for one of too few points."""
    if len(values) < MIN_SPIKES:
        return np.full(len(values), -1, dtype=np.int64)
    # what is no neuron's lies anywhere that spikes lie, and a little beyond
    density = _log_density(values - values.mean(axis=0), 1.5 * np.cov(values.T))
    everything = _Points(values, place, density)
    rows = np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).round().astype(np.int64)
    points, start = everything.select(rows), labels[rows]
    pooled = 1.5 * np.eye(values.shape[1])
    neurons = [
        _fit_neuron(points, (start == cluster).astype(np.float64), pooled)
        for cluster in range(start.max(initial=-1) + 1)
        if np.count_nonzero(start == cluster) >= MIN_WEIGHT
    ]
    neurons, shares, pooled = _improve(points, neurons, pooled, NUM_STEPS, pool=True)
    for _ in range(NUM_ROUNDS):
        neurons = _take_apart(points, neurons, shares, pooled)
        neurons += _find_newborn(points, shares, pooled)
        neurons, shares, pooled = _improve(points, neurons, pooled, NUM_STEPS, pool=True)
        neurons = _join(points, neurons, shares, pooled)
        neurons, shares, pooled = _improve(points, neurons, pooled, NUM_STEPS // 2, pool=True)
    shares, _ = _share_out(everything, neurons)
    best = shares.argmax(axis=1)
    ids, inverse, counts = np.unique(best, return_inverse=True, return_counts=True)
    kept = (counts >= MIN_SPIKES) & (ids < len(neurons))
    numbers = np.full(len(ids), -1, dtype=np.int64)
    numbers[kept] = np.arange(kept.sum())
    return np.asarray(numbers[inverse])


def _fit_neuron(points: _Points, weights: np.ndarray, pooled: np.ndarray) -> _Neuron:
    """One neuron from the points that are its own by their weights, (n,)."""
    course = _fit_course(points, weights)
    own = np.flatnonzero(weights > 0.8)
    rest = _core(points.values[own] - course[points.place[own]], pooled)
    covariance = (CORE_LACKS * rest.T @ rest + POOLED_SPIKES * pooled) / (len(rest) + POOLED_SPIKES)
    return _Neuron(course, covariance, weights.sum() / len(weights))


def _fit_course(points: _Points, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of points as a smooth function of their place, (n_places, n_dims): a penalised spline."""
    counts = np.bincount(points.place, weights, minlength=NUM_PLACES)
    total = np.empty((NUM_PLACES, points.values.shape[1]))
    for column, values in enumerate(points.values.T):
        total[:, column] = np.bincount(points.place, weights * values, minlength=NUM_PLACES)
    basis, penalty = _spline_basis()
    fitted = basis.T @ (counts[:, None] * basis) + penalty
    return np.asarray(basis @ np.linalg.solve(fitted, basis.T @ total))


@lru_cache
def _spline_basis() -> tuple[np.ndarray, np.ndarray]:
    """Cubic splines at each place, (n_places, n_splines), and what bends and slopes cost."""
    knots = np.r_[[0.0] * 3, np.linspace(0, 1, NUM_SPLINES - 2), [1.0] * 3]
    basis = BSpline.design_matrix(np.linspace(0, 1, NUM_PLACES), knots, 3).toarray()
    slope, bend = (np.diff(np.eye(NUM_SPLINES), order, axis=0) for order in (1, 2))
    return basis, SLOPE_COST * slope.T @ slope + BEND_COST * bend.T @ bend


def _core(rest: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Those of some distances from the mean, (n, n_dims), that are the nearest."""
    if len(rest) < MIN_WEIGHT:
        return rest[:0]
    distance = ((rest @ np.linalg.inv(covariance)) * rest).sum(axis=1)
    return rest[distance <= np.quantile(distance, CORE)]


def _log_density(rest: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Of a Gaussian, at distances from its mean, (n,)."""
    root = linalg.cholesky(covariance, lower=True)
    white = linalg.solve_triangular(root, rest.T, lower=True)
    size = np.log(np.diag(root)).sum() + 0.5 * len(root) * np.log(2 * np.pi)
    return np.asarray(-0.5 * (white**2).sum(axis=0) - size)


def _share_out(points: _Points, neurons: list[_Neuron]) -> tuple[np.ndarray, np.ndarray]:
    """Probability that each point is each neuron's or, in the last column, none's; and its log density."""
    logs = np.empty((len(points.values), len(neurons) + 1))
    for column, neuron in enumerate(neurons):
        rest = points.values - neuron.course[points.place]
        logs[:, column] = _log_density(rest, neuron.covariance) + np.log(neuron.weight)
    left = max(1.0 - sum(neuron.weight for neuron in neurons), 1e-3)
    logs[:, -1] = points.stray_density + np.log(left)
    largest = logs.max(axis=1, keepdims=True)
    shares = np.exp(logs - largest)
    total = shares.sum(axis=1, keepdims=True)
    return shares / total, (largest + np.log(total))[:, 0]


def _improve(
    points: _Points, neurons: list[_Neuron], pooled: np.ndarray, num_steps: int, *, pool: bool = False
) -> tuple[list[_Neuron], np.ndarray, np.ndarray]:
    """Expectation and maximisation: neurons, shares as they end, and their common covariance."""
    for _ in range(num_steps):
        shares, _ = _share_out(points, neurons)
        kept = np.flatnonzero(shares[:, :-1].sum(axis=0) >= MIN_WEIGHT)
        neurons = [_fit_neuron(points, shares[:, k], pooled) for k in kept]
        if pool:
            pooled = _pool_covariance(points, neurons, shares[:, kept], pooled)
    shares, _ = _share_out(points, neurons)
    return neurons, shares, pooled


def _pool_covariance(
    points: _Points, neurons: list[_Neuron], shares: np.ndarray, pooled: np.ndarray
) -> np.ndarray:
    """Covariance of the spikes that surely are some neuron's, around its course."""
    rests = []
    for neuron, share in zip(neurons, shares.T, strict=True):
        own = np.flatnonzero(share > 0.9)
        rests.append(_core(points.values[own] - neuron.course[points.place[own]], pooled))
    rest = np.concatenate([*rests, np.zeros((0, points.values.shape[1]))])
    if len(rest) < POOLED_SPIKES:
        return pooled
    return np.asarray(CORE_LACKS * rest.T @ rest / len(rest) + 0.05 * np.eye(rest.shape[1]))


def _take_apart(
    points: _Points, neurons: list[_Neuron], shares: np.ndarray, pooled: np.ndarray
) -> list[_Neuron]:
    """Each neuron, or the two that explain its points better and are far enough apart."""
    best = shares.argmax(axis=1)
    result: list[_Neuron] = []
    for number, neuron in enumerate(neurons):
        own = points.select(np.flatnonzero(best == number))
        pair = _split(own, pooled) if len(own.values) >= 2 * MIN_SPIKES else None
        scale = neuron.weight
        result += (
            [neuron] if pair is None else [_Neuron(p.course, p.covariance, p.weight * scale) for p in pair]
        )
    return result


def _split(own: _Points, pooled: np.ndarray) -> list[_Neuron] | None:
    """The best two neurons that some points may come from; None when one explains them as well."""
    everyone = np.ones(len(own.values))
    alone, _, _ = _improve(own, [_fit_neuron(own, everyone, pooled)], pooled, 2)
    if not alone:
        return None
    _, before = _share_out(own, alone)
    rest = own.values - alone[0].course[own.place]
    _, axes = linalg.eigh(rest.T @ rest)
    best, pair = 0.0, None
    for axis in axes.T[::-1][:4]:
        along = rest @ axis
        for cut in np.quantile(along, (0.15, 0.5, 0.85)):
            beyond = along > cut
            halves = [_fit_neuron(own, side.astype(np.float64), pooled) for side in (~beyond, beyond)]
            halves, shares, _ = _improve(own, halves, pooled, NUM_STEPS)
            if len(halves) < 2 or shares[:, :2].sum(axis=0).min() < MIN_SPIKES:
                continue
            _, after = _share_out(own, halves)
            fewer = shares[:, :2].sum(axis=0).min()
            gain = after.sum() - before.sum() - _cost(own, fewer)
            if gain > best and _separation(own, shares[:, 1] > shares[:, 0], pooled) >= MIN_SEPARATION:
                best, pair = gain, halves
    return pair


def _cost(points: _Points, num_spikes: float) -> float:
    """By which one more neuron must raise the log likelihood (Schwarz 1978)."""
    return 0.5 * FREEDOM * points.values.shape[1] * float(np.log(max(num_spikes, 2.0)))


def _separation(points: _Points, is_second: np.ndarray, pooled: np.ndarray) -> float:
    """Distance of two groups at the same place, in standard deviations; infinite where they never meet."""
    sides = []
    for own in (~is_second, is_second):
        means = average_bins(points.values[own], points.place[own], NUM_PLACES)
        if not means.counts.any():
            return 0.0
        sides.append((own, _fit_course(points, own.astype(np.float64))))
    axis = (sides[1][1] - sides[0][1]) @ np.linalg.inv(pooled)
    axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    along = (points.values * axis[points.place]).sum(axis=1, keepdims=True)
    first, second = (average_bins(along[own], points.place[own], NUM_PLACES) for own, _ in sides)
    shared = np.flatnonzero((first.counts > 0) & (second.counts > 0))
    if len(shared) == 0:
        return float(np.inf)
    weight = 1 / (1 / first.counts[shared] + 1 / second.counts[shared])
    apart = weight @ (second.mean[shared, 0] - first.mean[shared, 0]) / weight.sum()
    spread = np.sqrt(0.5 * (first.scatter + second.scatter))
    return float(abs(apart) / spread) if weight.sum() >= 4 else float(np.inf)


def _find_newborn(points: _Points, shares: np.ndarray, pooled: np.ndarray) -> list[_Neuron]:
    """A neuron where the points that are none's lie densest, if there are enough."""
    stray = np.flatnonzero(shares[:, -1] > 0.5)
    if len(stray) <= MIN_SPIKES:
        return []
    own = points.select(stray)
    spots = np.column_stack([own.values, own.place])
    distance, _ = cKDTree(spots).query(spots, k=MIN_SPIKES)
    densest = distance[:, -1].argmin()
    near = np.linalg.norm(spots - spots[densest], axis=1) <= distance[densest, -1]
    newborn = _fit_neuron(own, near.astype(np.float64), pooled)
    return [_Neuron(newborn.course, newborn.covariance, near.sum() / len(points.values))]


def _join(points: _Points, neurons: list[_Neuron], shares: np.ndarray, pooled: np.ndarray) -> list[_Neuron]:
    """Neurons of which one explains the points as well as two, joined, the nearest first."""
    best = shares.argmax(axis=1)
    groups = {number: (neuron, np.flatnonzero(best == number)) for number, neuron in enumerate(neurons)}
    tried: set[tuple[int, int]] = set()
    while True:
        near = [
            (distance, one, other)
            for one in groups
            for other in groups
            if one < other
            and (one, other) not in tried
            and (distance := _nearest(points, groups[one], groups[other])) < NEAR
        ]
        if not near:
            return [neuron for neuron, _ in groups.values()]
        _, one, other = min(near)
        tried.add((one, other))
        rows = np.sort(np.concatenate([groups[one][1], groups[other][1]]))
        if len(rows) < MIN_WEIGHT:
            continue
        own = points.select(rows)
        pair = [groups[number][0] for number in (one, other)]
        weight = sum(neuron.weight for neuron in pair)
        pair = [_Neuron(n.course, n.covariance, n.weight / weight) for n in pair]
        pair, _, _ = _improve(own, pair, pooled, 3)
        single, _, _ = _improve(own, [_fit_neuron(own, np.ones(len(rows)), pooled)], pooled, 5)
        gain = _share_out(own, pair)[1].sum() - _share_out(own, single)[1].sum()
        fewer = min(len(groups[one][1]), len(groups[other][1]))
        if single and gain < _cost(points, fewer):
            del groups[one], groups[other]
            joined = _Neuron(single[0].course, single[0].covariance, weight)
            groups[len(neurons) + len(tried)] = (joined, rows)


def _nearest(points: _Points, one: tuple[_Neuron, np.ndarray], other: tuple[_Neuron, np.ndarray]) -> float:
    """Least squared distance of two neurons at a place where both fire, or next to it."""
    apart = ((one[0].course - other[0].course) ** 2).sum(axis=1)
    around = [
        np.convolve(np.bincount(points.place[rows], minlength=NUM_PLACES), np.ones(3))[1:-1]
        for _, rows in (one, other)
    ]
    both = (around[0] > 0) & (around[1] > 0)
    return float(apart[both].min() if both.any() else apart.min())
