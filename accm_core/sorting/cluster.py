"""Embedding to clusters, by binary decisions on whether two of them are one.

The points are cut into many small parcels; then, again and again, the two nearest parcels that have
not been compared are projected on the line that separates them best, and a test of unimodality
decides: one hump, they merge; two, they stay apart and the points between are dealt out anew. The
number of clusters is what remains when every neighbour has been compared.
"""

import warnings
from collections.abc import Callable

import numba
import numpy as np
from scipy.cluster.vq import kmeans2

from accm_core.params import ClusterParams

POINTS_PER_PARCEL = 20
"""Aimed at; fewer make the test of unimodality blind."""
MAX_PARCELS = 128
"""Cost grows with the square."""
MAX_ROUNDS = 200
"""Of comparisons; a few dozen are usual."""
SHRINKAGE = 0.05
"""Share of the mean variance added to the covariance of two clusters before it is inverted."""


def cluster_embedding(embedding: np.ndarray, params: ClusterParams, *, seed: int) -> np.ndarray:
    """Cluster points; their number of clusters is found, not given.

    Parameters
    ----------
    embedding : ndarray of shape (n_spikes, n_dims), float32
    params : ClusterParams
    seed : int
        Of the first parcels.

    Returns
    -------
    ndarray of shape (n_spikes,), int64
        Labels from 0, without holes; -1 for points of clusters below ``params.min_size``.

    References
    ----------
    Magland & Barnett, Unimodal clustering using isotonic regression: ISO-SPLIT, 2015,
    arXiv 1508.04841. Ours differs in the covariance that is shrunk and in small clusters, which
    are left unassigned.
    """
    num_points = len(embedding)
    if num_points < params.min_size:
        return np.full(num_points, -1, dtype=np.int64)
    points = embedding.astype(np.float64)
    labels = _cut_parcels(points, seed)
    compared: set[tuple[int, int]] = set()
    for _ in range(MAX_ROUNDS):
        pairs = _nearest_uncompared(points, labels, compared)
        if not pairs:
            break
        for first, second in pairs:
            _compare(points, labels, first, second, compared, params.split_threshold)
    return number_labels(labels, params.min_size)


def cluster_neighborhoods(
    embedding: np.ndarray,
    channel_index: np.ndarray,
    neighborhoods: np.ndarray,
    params: ClusterParams,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the spikes of each channel; of the whole shank at once where every channel sees all of it.

    Parameters
    ----------
    embedding : ndarray of shape (n_spikes, n_dims), float32
    channel_index : ndarray of shape (n_spikes,), int64
        Channel of each spike's peak.
    neighborhoods : ndarray of shape (n_channels, n_slots), int64
        Channels of the snippets around each channel, in their order.
    params : ClusterParams
    seed : int

    Returns
    -------
    labels : ndarray of shape (n_spikes,), int64
        From 0; -1 for none.
    neighborhood_of : ndarray of shape (n_clusters,), int64
        Where each cluster was found.
    """
    neighborhood = find_neighborhoods(channel_index, neighborhoods)
    return cluster_each(neighborhood, lambda rows: cluster_embedding(embedding[rows], params, seed=seed))


def cluster_each(
    neighborhood: np.ndarray, cluster: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster each neighbourhood, and number all clusters.

    Parameters
    ----------
    neighborhood : ndarray of shape (n_spikes,), int64
    cluster : callable
        Given some rows, labels from 0; -1 for none.

    Returns
    -------
    labels, neighborhood_of
        As from `cluster_neighborhoods`.
    """
    labels = np.full(len(neighborhood), -1, dtype=np.int64)
    neighborhood_of: list[int] = []
    for place in np.unique(neighborhood):
        rows = np.flatnonzero(neighborhood == place)
        local = cluster(rows)
        labels[rows] = np.where(local >= 0, local + len(neighborhood_of), -1)
        neighborhood_of += [int(place)] * (int(local.max(initial=-1)) + 1)
    return labels, np.array(neighborhood_of, dtype=np.int64)


def find_neighborhoods(channel_index: np.ndarray, neighborhoods: np.ndarray) -> np.ndarray:
    """Where each spike is clustered, (n_spikes,) int64: its channel; 0 where all see the whole shank."""
    return np.zeros_like(channel_index) if sees_all(neighborhoods) else channel_index


def sees_all(neighborhoods: np.ndarray) -> bool:
    """Whether a snippet around any channel holds the whole shank."""
    return bool((neighborhoods == neighborhoods[0]).all())


def take_apart(rows: np.ndarray, decide: Callable[[np.ndarray], np.ndarray | None]) -> list[np.ndarray]:
    """Rows (n,) cut in two, and their parts likewise, until ``decide`` says that each is one.

    ``decide`` is given some of the rows, and returns which of them are the second part's, or None for one.
    """
    undivided, parts = [rows], []
    while undivided:
        own = undivided.pop()
        is_second = decide(own)
        if is_second is None:
            parts.append(own)
        else:
            undivided += [own[is_second], own[~is_second]]
    return parts


def _cut_parcels(points: np.ndarray, seed: int) -> np.ndarray:
    """Label of each of many small parcels of points, (n,) int64, by k-means."""
    num_parcels = int(np.clip(len(points) // POINTS_PER_PARCEL, 1, MAX_PARCELS))
    rng = np.random.default_rng(seed)
    start = points[rng.choice(len(points), num_parcels, replace=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a parcel that loses all its points does no harm
        _, labels = kmeans2(points, start, iter=10, minit="matrix", missing="warn")
    return labels.astype(np.int64)


def _nearest_uncompared(
    points: np.ndarray, labels: np.ndarray, compared: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Pairs of clusters that are each other's nearest among those not yet compared."""
    ids, inverse = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(ids), points.shape[1]))
    np.add.at(sums, inverse, points)
    centroids = sums / np.bincount(inverse)[:, None]
    distances = np.linalg.norm(centroids[:, None] - centroids[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    position = {label: k for k, label in enumerate(ids.tolist())}
    for first, second in compared:
        if first in position and second in position:
            distances[position[first], position[second]] = np.inf
            distances[position[second], position[first]] = np.inf
    nearest = distances.argmin(axis=1)
    return [
        (int(ids[k]), int(ids[other]))
        for k, other in enumerate(nearest)
        if k < other and nearest[other] == k and np.isfinite(distances[k, other])
    ]


def _compare(
    points: np.ndarray,
    labels: np.ndarray,
    first: int,
    second: int,
    compared: set[tuple[int, int]],
    threshold: float,
) -> None:
    """One binary decision; changes ``labels`` and ``compared``."""
    rows = np.flatnonzero((labels == first) | (labels == second))
    is_second = labels[rows] == second
    line = project_on_separation(points[rows], is_second)
    order = np.argsort(line, kind="stable")
    score, cut = measure_bimodality(line[order])
    if score < threshold:
        labels[rows] = first
        # a grown cluster is a new one: compare it again
        compared.difference_update({pair for pair in compared if first in pair})
        return
    compared.add((first, second))
    beyond = line >= cut
    if beyond.any() and not beyond.all():
        labels[rows] = np.where(beyond, second, first)


def project_on_separation(points: np.ndarray, is_second: np.ndarray) -> np.ndarray:
    """Project two clusters on the line that separates them best (Fisher's discriminant).

    Parameters
    ----------
    points : ndarray of shape (n, n_dims), float64
    is_second : ndarray of shape (n,), bool
        Both clusters have a point.

    Returns
    -------
    ndarray of shape (n,), float64
        The second cluster lies higher.
    """
    means = [points[~is_second].mean(axis=0), points[is_second].mean(axis=0)]
    centred = points - np.where(is_second[:, None], means[1], means[0])
    covariance = centred.T @ centred / len(points)
    covariance += (SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))
    direction: np.ndarray = np.linalg.solve(covariance, means[1] - means[0])
    return points @ direction


def number_labels(labels: np.ndarray, min_size: int) -> np.ndarray:
    """Labels from 0 without holes, (n,); -1 for those of too few points and for what was negative."""
    ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (counts >= min_size) & (ids >= 0)
    numbers = np.full(len(ids), -1, dtype=np.int64)
    numbers[kept] = np.arange(kept.sum())
    return numbers[inverse]


@numba.njit(cache=True, nogil=True)
def measure_bimodality(values):  # type: ignore[no-untyped-def]
    """Measure how far sorted values are from a distribution with one hump.

    Parameters
    ----------
    values : ndarray of shape (n,), float64
        In ascending order.

    Returns
    -------
    score : float
        Kolmogorov-Smirnov distance, times the root of the count, between the values and the best
        unimodal fit, over the stretch where it is largest. About 1 for one hump; from 2 on, two.
    cut : float
        Where the two humps part.

    Notes
    -----
    The log density between neighbouring values is fitted by a function that rises and then falls
    (isotonic regression); what the fit misses is searched from both ends towards the peak, in
    stretches of halving length, so that a small second hump is not drowned by a large first one.
    """
    num_gaps = len(values) - 1
    if num_gaps < 4:
        return 0.0, values[0]
    smallest = max((values[-1] - values[0]) * 1e-9, 1e-300)
    gaps = np.maximum(np.diff(values), smallest)
    log_density = -np.log(gaps)
    fit, peak = _fit_rise_fall(log_density)
    expected = np.exp(fit) * gaps
    best, low, high = 0.0, 0, num_gaps
    length = peak + 1
    while length >= 4:
        score = _distance(expected[:length])
        if score > best:
            best, low, high = score, 0, length
        length //= 2
    length = num_gaps - peak
    while length >= 4:
        score = _distance(expected[num_gaps - length :])
        if score > best:
            best, low, high = score, num_gaps - length, num_gaps
        length //= 2
    # the residual's valley: a fall and a rise, that is minus a rise and a fall
    valley, _ = _fit_rise_fall(-(log_density[low:high] - fit[low:high]))
    deepest = low + np.argmax(valley)
    return best, 0.5 * (values[deepest] + values[deepest + 1])


@numba.njit(cache=True, nogil=True)
def _distance(expected):  # type: ignore[no-untyped-def]
    """Scaled Kolmogorov-Smirnov distance between equal weights and expected weights."""
    total = expected.sum()
    count = len(expected)
    running, largest = 0.0, 0.0
    for k in range(count):
        running += expected[k] / total
        largest = max(largest, abs(running - (k + 1) / count))
    return largest * np.sqrt(count)


@numba.njit(cache=True, nogil=True)
def _fit_rise_fall(values):  # type: ignore[no-untyped-def]
    """Least-squares fit that rises up to some place and falls from there, and that place."""
    _, rise_error = _fit_rise(values)
    _, fall_error = _fit_rise(values[::-1])
    count = len(values)
    peak, smallest = 0, np.inf
    for k in range(count):
        error = rise_error[k] + fall_error[count - 1 - k]
        if error < smallest:
            smallest, peak = error, k
    fit = np.empty(count)
    fit[: peak + 1], _ = _fit_rise(values[: peak + 1])
    fall, _ = _fit_rise(values[peak:][::-1])
    fit[peak:] = fall[::-1]
    return fit, peak


@numba.njit(cache=True, nogil=True)
def _fit_rise(values):  # type: ignore[no-untyped-def]
    """Isotonic regression by pooling adjacent violators, and the squared error of each prefix's fit."""
    count = len(values)
    mean = np.empty(count)
    size = np.empty(count, dtype=np.int64)
    error_before = np.empty(count)  # of the pools before this one
    square = np.empty(count)
    errors = np.empty(count)
    top = -1
    for k in range(count):
        top += 1
        mean[top], size[top], square[top] = values[k], 1, values[k] * values[k]
        error_before[top] = 0.0 if top == 0 else errors[k - 1]
        while top > 0 and mean[top - 1] >= mean[top]:
            total = size[top - 1] + size[top]
            mean[top - 1] = (mean[top - 1] * size[top - 1] + mean[top] * size[top]) / total
            size[top - 1] = total
            square[top - 1] += square[top]
            top -= 1
        errors[k] = error_before[top] + max(square[top] - size[top] * mean[top] ** 2, 0.0)
    fit = np.empty(count)
    start = 0
    for pool in range(top + 1):
        fit[start : start + size[pool]] = mean[pool]
        start += size[pool]
    return fit, errors
