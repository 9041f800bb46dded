"""Clusters of neurons that move: shapes as functions of where the tissue is.

On a shank too small to see where the tissue moves to, all of its neurons change at once; on one with few
contacts nearby, correcting drift in space mends shapes in part only. As a function of where the tissue is,
not of time, each neuron's shape changes slowly and comes back to what it was; a mixture of Gaussians whose
means change with the place tells neurons apart that cross each other's ways.
"""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import linalg
from scipy.spatial import cKDTree
from threadpoolctl import threadpool_limits

from accm_core.sorting.cluster import cluster_each, number_labels
from accm_core.sorting.course import (
    average_bins,
    cubic_splines,
    measure_separation,
    penalize_differences,
    unit_length,
)
from accm_core.sorting.gaussian import log_density
from accm_core.sorting.place import Place, find_place
from accm_core.types import Snippets

logger = logging.getLogger(__name__)

NUM_DIMS = 12
"""Principal components of the snippets, whitened by the noise, in which neurons are told apart."""
MAX_POINTS = 20_000
"""Snippets that the mixture is fitted to, evenly spread; the others are dealt out afterwards."""
NOISE_RIDGE = 0.01
"""Share of the mean variance added to the covariance of noise before it is inverted."""
NUM_PLACES = 20
"""Places of the tissue that are told apart."""
NUM_SPLINES, BEND_COST, SLOPE_COST = 6, 3.0, 1.0
"""Of a neuron's way through its shapes; what straightens it where it has few spikes, in spikes."""
USUAL_SIZE, STIFFER = 25.0, (0.1, 3.0)
"""Noise levels; a larger neuron's way bends more, a smaller one's less, as the square of its size within
these bounds."""
MIN_SPIKES, MIN_WEIGHT = 15, 5
"""Spikes that a part of a neuron needs to be one itself, and weight below which a neuron vanishes."""
NUM_ROUNDS, NUM_STEPS = 4, 10
"""Of taking apart and joining, and of expectation and maximisation in each."""
NUM_AXES, CUTS = 4, (0.15, 0.5, 0.85)
"""Main directions of a neuron's spikes along which it is cut for a start, and at which quantiles."""
SURE, SURER = 0.8, 0.9
"""Probability from which on spikes give a neuron's covariance, and that of all neurons."""
FREEDOM = 4
"""Independent shapes on a neuron's way, as the criterion counts them."""
MIN_SEPARATION = 4.0
"""Standard deviations between two neurons at the same place; two halves of one hump are up to 3.5 apart."""
MIN_MEETINGS = 4
"""Spikes (harmonic sum) at the same places to judge that by."""
NEAR = 150.0
"""Squared distance, somewhere, of two neurons that are tried as one."""
POOLED_SPIKES = 60
"""Spikes that the covariance of all neurons counts for in that of each."""
CORE, CORE_LACKS = 0.9, 1.15
"""Share of a neuron's spikes, the nearest, that its covariance is measured on, as others are collisions; and
how much larger the variance of all is."""
ROWS_AT_ONCE = 4096
"""Snippets whitened at once: bounds the memory."""


@dataclass(frozen=True)
class Drift:
    """Clusters of a shank whose tissue moves.

    Attributes
    ----------
    labels : ndarray of shape (n_spikes,), int64
        Neuron of each snippet; -1 for none.
    neighborhood_of : ndarray of shape (n_clusters,), int64
        Where each was found.
    place : Place
        Where the tissue is over time.
    """

    labels: np.ndarray
    neighborhood_of: np.ndarray
    place: Place


@dataclass(frozen=True)
class _Neuron:
    """Mean at each place, (n_places, n_dims), and how its spikes spread around it."""

    course: np.ndarray
    covariance: np.ndarray
    weight: float


@dataclass(frozen=True)
class _Fit:
    """Neurons, their covariance in common, and how points are shared out among them (see `_share_out`)."""

    neurons: list[_Neuron]
    pooled: np.ndarray
    shares: np.ndarray
    log_density: np.ndarray

    @property
    def rows(self) -> list[np.ndarray]:
        """Points that most likely are each neuron's."""
        best = self.shares.argmax(axis=1)
        return [np.flatnonzero(best == number) for number in range(len(self.neurons))]


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
    centers: np.ndarray,
    place: Place | None = None,
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
    centers : ndarray of shape (n_bins,), float64
        Of the bins, samples; between them the tissue moves evenly.
    place : Place, optional
        Where the tissue is, if that is known; found from all spikes of a bin when None.

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
        # what is left over between the neighbourhoods of a larger shank are collisions, no neurons
        has_newborn = place is None
        place = place or find_place(points, labels, bins, centers)
        if place is None:
            return None
        at_place = place.step(snippets.peaks.sample_index, NUM_PLACES)
        found, neighborhood_of = cluster_each(
            neighborhood, lambda rows: _fit_mixture(points[rows], at_place[rows], labels[rows], has_newborn)
        )
    logger.info("tissue moves: %d clusters", len(neighborhood_of))
    return Drift(found, neighborhood_of, place)


def _unmix_noise(noise: np.ndarray) -> np.ndarray:
    """Weights (n_values, n_values) for flattened snippets, float64, after which noise snippets are white."""
    silence = noise.reshape(len(noise), -1).astype(np.float64)
    covariance = np.atleast_2d(np.cov(silence.T))
    covariance += NOISE_RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    variance, axes = np.linalg.eigh(covariance)
    unmix: np.ndarray = axes / np.sqrt(variance)
    return unmix


def _whiten(snippets: Snippets, noise: np.ndarray, neighborhood: np.ndarray) -> np.ndarray:
    """Main directions of each neighbourhood's snippets where noise is white, (n_spikes, n_dims), float64."""
    unmix = _unmix_noise(noise)
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


def _fit_mixture(values: np.ndarray, place: np.ndarray, labels: np.ndarray, has_newborn: bool) -> np.ndarray:
    """Neuron of each point, from 0 without holes; -1 for none or for one of too few points."""
    if len(values) < MIN_SPIKES:
        return np.full(len(values), -1, dtype=np.int64)
    # what is no neuron's lies anywhere that spikes lie, and a little beyond
    density = log_density(values - values.mean(axis=0), 1.5 * np.cov(values.T))
    everything = _Points(values, place, density)
    rows = np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).round().astype(np.int64)
    points, start = everything.select(rows), labels[rows]
    pooled = 1.5 * np.eye(values.shape[1])
    neurons = [
        _fit_neuron(points, (start == cluster).astype(np.float64), pooled)
        for cluster in range(start.max(initial=-1) + 1)
        if np.count_nonzero(start == cluster) >= MIN_WEIGHT
    ]
    fit = _improve(points, neurons, pooled, NUM_STEPS, pool=True)
    for _ in range(NUM_ROUNDS):
        neurons = _take_apart(points, fit) + (_find_newborn(points, fit) if has_newborn else [])
        fit = _improve(points, neurons, fit.pooled, NUM_STEPS, pool=True)
        fit = _improve(points, _join(points, fit), fit.pooled, NUM_STEPS // 2, pool=True)
    shares, _ = _share_out(everything, fit.neurons)
    best = shares.argmax(axis=1)
    return number_labels(np.where(best < len(fit.neurons), best, -1), MIN_SPIKES)


def _fit_neuron(points: _Points, weights: np.ndarray, pooled: np.ndarray) -> _Neuron:
    """One neuron from the points that are its own by their weights, (n,)."""
    course = _fit_course(points, weights)
    own = np.flatnonzero(weights > SURE)
    rest = _core(points.values[own] - course[points.place[own]], pooled)
    covariance = (CORE_LACKS * rest.T @ rest + POOLED_SPIKES * pooled) / (len(rest) + POOLED_SPIKES)
    return _Neuron(course, covariance, weights.sum() / len(weights))


def _fit_course(points: _Points, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of points as a smooth function of their place, (n_places, n_dims): a penalised spline."""
    basis, penalty = _spline_basis()
    splines = basis[points.place]
    weighted = (weights[:, None] * splines).T
    mean = weights @ points.values / max(weights.sum(), 1e-12)
    stiffness = np.clip(USUAL_SIZE**2 / max(mean @ mean, 1e-12), *STIFFER)
    ways = np.linalg.solve(weighted @ splines + stiffness * penalty, weighted @ points.values)
    return np.asarray(basis @ ways)


@lru_cache
def _spline_basis() -> tuple[np.ndarray, np.ndarray]:
    """Cubic splines at each place, (n_places, n_splines), and what bends and slopes cost."""
    slope, bend = (penalize_differences(NUM_SPLINES, order) for order in (1, 2))
    return cubic_splines(np.linspace(0, 1, NUM_PLACES), NUM_SPLINES), SLOPE_COST * slope + BEND_COST * bend


def _core(rest: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Those of some distances from the mean, (n, n_dims), that are the nearest."""
    if len(rest) < MIN_WEIGHT:
        return rest[:0]
    distance = np.einsum("nd,nd->n", rest @ np.linalg.inv(covariance), rest)
    return rest[distance <= np.quantile(distance, CORE)]


def _share_out(points: _Points, neurons: list[_Neuron]) -> tuple[np.ndarray, np.ndarray]:
    """Probability that each point is each neuron's or, in the last column, none's; and its log density."""
    logs = np.empty((len(points.values), len(neurons) + 1))
    for column, neuron in enumerate(neurons):
        rest = points.values - neuron.course[points.place]
        logs[:, column] = log_density(rest, neuron.covariance) + np.log(neuron.weight)
    left = max(1.0 - sum(neuron.weight for neuron in neurons), 1e-3)
    logs[:, -1] = points.stray_density + np.log(left)
    largest = logs.max(axis=1, keepdims=True)
    shares = np.exp(logs - largest)
    total = shares.sum(axis=1, keepdims=True)
    return shares / total, (largest + np.log(total))[:, 0]


def _improve(
    points: _Points, neurons: list[_Neuron], pooled: np.ndarray, num_steps: int, *, pool: bool = False
) -> _Fit:
    """Expectation and maximisation."""
    for _ in range(num_steps):
        shares, _ = _share_out(points, neurons)
        kept = np.flatnonzero(shares[:, :-1].sum(axis=0) >= MIN_WEIGHT)
        neurons = [_fit_neuron(points, shares[:, k], pooled) for k in kept]
        if pool:
            pooled = _pool_covariance(points, neurons, shares[:, kept], pooled)
    return _Fit(neurons, pooled, *_share_out(points, neurons))


def _pool_covariance(
    points: _Points, neurons: list[_Neuron], shares: np.ndarray, pooled: np.ndarray
) -> np.ndarray:
    """Covariance of the spikes that surely are some neuron's, around its course."""
    rests = []
    for neuron, share in zip(neurons, shares.T, strict=True):
        own = np.flatnonzero(share > SURER)
        rests.append(_core(points.values[own] - neuron.course[points.place[own]], pooled))
    rest = np.concatenate([*rests, np.zeros((0, points.values.shape[1]))])
    if len(rest) < POOLED_SPIKES:
        return pooled
    return np.asarray(CORE_LACKS * rest.T @ rest / len(rest) + 0.05 * np.eye(rest.shape[1]))


def _take_apart(points: _Points, fit: _Fit) -> list[_Neuron]:
    """Each neuron, or the two that explain its points better and are far enough apart."""
    result: list[_Neuron] = []
    for neuron, rows in zip(fit.neurons, fit.rows, strict=True):
        own = points.select(rows)
        pair = _split(own, fit.pooled) if len(own.values) >= 2 * MIN_SPIKES else None
        result += [neuron] if pair is None else [replace(n, weight=n.weight * neuron.weight) for n in pair]
    return result


def _split(own: _Points, pooled: np.ndarray) -> list[_Neuron] | None:
    """The best two neurons that some points may come from; None when one explains them as well."""
    alone = _improve(own, [_fit_neuron(own, np.ones(len(own.values)), pooled)], pooled, 2)
    if not alone.neurons:
        return None
    rest = own.values - alone.neurons[0].course[own.place]
    _, axes = linalg.eigh(rest.T @ rest)
    best, pair = 0.0, None
    for axis in axes.T[::-1][:NUM_AXES]:
        along = rest @ axis
        for cut in np.quantile(along, CUTS):
            beyond = along > cut
            halves = [_fit_neuron(own, side.astype(np.float64), pooled) for side in (~beyond, beyond)]
            fit = _improve(own, halves, pooled, NUM_STEPS)
            fewer = fit.shares[:, :-1].sum(axis=0).min(initial=np.inf)
            if len(fit.neurons) < 2 or fewer < MIN_SPIKES:
                continue
            gain = fit.log_density.sum() - alone.log_density.sum() - _cost(own, fewer)
            is_second = fit.shares[:, 1] > fit.shares[:, 0]
            if gain > best and _separation(own, is_second, pooled) >= MIN_SEPARATION:
                best, pair = gain, fit.neurons
    return pair


def _cost(points: _Points, num_spikes: float) -> float:
    """By which one more neuron must raise the log likelihood (Schwarz 1978)."""
    return 0.5 * FREEDOM * points.values.shape[1] * float(np.log(max(num_spikes, 2.0)))


def _separation(points: _Points, is_second: np.ndarray, pooled: np.ndarray) -> float:
    """Distance of two groups at the same place, in standard deviations; infinite where they hardly meet."""
    if is_second.all() or not is_second.any():
        return 0.0
    sides = (~is_second, is_second)
    courses = [_fit_course(points, own.astype(np.float64)) for own in sides]
    axis = unit_length((courses[1] - courses[0]) @ np.linalg.inv(pooled))
    along = (points.values * axis[points.place]).sum(axis=1, keepdims=True)
    separation, num_meetings = measure_separation(
        *(average_bins(along[own], points.place[own], NUM_PLACES) for own in sides)
    )
    return separation if num_meetings >= MIN_MEETINGS else np.inf


def _find_newborn(points: _Points, fit: _Fit) -> list[_Neuron]:
    """A neuron where the points that are none's lie densest, if there are enough."""
    stray = np.flatnonzero(fit.shares[:, -1] > 0.5)
    if len(stray) <= MIN_SPIKES:
        return []
    own = points.select(stray)
    spots = np.column_stack([own.values, own.place])
    distance, _ = cKDTree(spots).query(spots, k=MIN_SPIKES)
    densest = distance[:, -1].argmin()
    near = np.linalg.norm(spots - spots[densest], axis=1) <= distance[densest, -1]
    newborn = _fit_neuron(own, near.astype(np.float64), fit.pooled)
    return [replace(newborn, weight=near.sum() / len(points.values))]


def _join(points: _Points, fit: _Fit) -> list[_Neuron]:
    """Neurons of which one explains the points as well as two, joined, the nearest first."""
    groups = dict(enumerate(zip(fit.neurons, fit.rows, strict=True)))
    distances = {
        (one, other): _nearest(points, groups[one], groups[other]) for one, other in combinations(groups, 2)
    }
    next_number = len(groups)
    while distances:
        pair = min(distances, key=lambda numbers: (distances[numbers], numbers))
        if distances.pop(pair) >= NEAR:
            break
        rows = np.sort(np.concatenate([groups[number][1] for number in pair]))
        if len(rows) < MIN_WEIGHT:
            continue
        own = points.select(rows)
        neurons = [groups[number][0] for number in pair]
        weight = sum(neuron.weight for neuron in neurons)
        two = _improve(own, [replace(n, weight=n.weight / weight) for n in neurons], fit.pooled, 3)
        one = _improve(own, [_fit_neuron(own, np.ones(len(rows)), fit.pooled)], fit.pooled, 5)
        gain = two.log_density.sum() - one.log_density.sum()
        fewer = min(len(groups[number][1]) for number in pair)
        if one.neurons and gain < _cost(points, fewer):
            groups = {number: group for number, group in groups.items() if number not in pair}
            distances = {other: d for other, d in distances.items() if not set(other) & set(pair)}
            joined = (replace(one.neurons[0], weight=weight), rows)
            distances |= {
                (number, next_number): _nearest(points, group, joined) for number, group in groups.items()
            }
            groups[next_number] = joined
            next_number += 1
    return [neuron for neuron, _ in groups.values()]


def _nearest(points: _Points, one: tuple[_Neuron, np.ndarray], other: tuple[_Neuron, np.ndarray]) -> float:
    """Least squared distance of two neurons at a place where both fire, or next to it."""
    apart = ((one[0].course - other[0].course) ** 2).sum(axis=1)
    around = [
        np.convolve(np.bincount(points.place[rows], minlength=NUM_PLACES), np.ones(3))[1:-1]
        for _, rows in (one, other)
    ]
    both = (around[0] > 0) & (around[1] > 0)
    return float(apart[both].min() if both.any() else apart.min())
