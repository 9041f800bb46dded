"""One unit or two, once more, where noise is white: clusters in which a small or rare unit hides.

The embedding is made to tell most spikes apart; two units that differ in little, or of which one fires ten
times as often, may share a cluster there. Where noise is white, each neuron's spikes scatter by one noise
level in any direction in which they do not vary themselves. A cluster's spikes are looked at along the lines
on which two Gaussians explain them best, beside a broad one for collisions; two humps that are far enough
apart are two units.
"""

from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from accm_core.params import ClusterParams
from accm_core.signal.preprocess import MAD_TO_SIGMA
from accm_core.sorting.cluster import cut_parcels, measure_bimodality, take_apart

NUM_DIMS = 6
"""Main directions of a cluster's spikes in which two units are sought, beside that of their size."""
CORE = 0.9
"""Share of a cluster's spikes, the nearest to its middle, that the main directions are measured on: others
are collisions."""
MAX_MEASURED = 20_000
"""Spikes, evenly spread, that the main directions are measured on: bounds the memory."""
NUM_PARCELS, TAIL = (2, 16), 0.1
"""Parcels that a cluster's spikes are cut into, few and many, and share of them at either end of a direction;
each is tried as the start of a second unit."""
NUM_STEPS = 15
"""Of expectation and maximisation."""
COLLISIONS, BREADTH = 0.05, 9.0
"""Share of a cluster's spikes that are collisions, and how many times the variance of a unit theirs is."""
MIN_SEPARATION = 4.0
"""Standard deviations between two units' middles on the line; two halves of one hump are up to 3.5 apart."""
MIN_WEIGHT = 5.0
"""Spikes below which a Gaussian vanishes."""
RIDGE, NOISE_RIDGE = 1e-3, 0.01
"""Shares of the mean variance added to the covariance of spikes and of noise before they are inverted."""


def bisect_clusters(
    labels: np.ndarray,
    waveforms: np.ndarray,
    noise: np.ndarray,
    neighborhood_of: np.ndarray,
    params: ClusterParams,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut clusters in two, again and again, where their spikes have two humps.

    Parameters
    ----------
    labels : ndarray of shape (n_spikes,), int64
        From 0; -1 for none.
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Snippets.
    noise : ndarray of shape (n_noise, n_samples, n_channels), float32
        Snippets without a spike.
    neighborhood_of : ndarray of shape (n_clusters,), int64
        Where each cluster was found.
    params : ClusterParams
    seed : int
        Of the parcels.

    Returns
    -------
    labels, neighborhood_of
        Likewise, of the parts; a cluster that is not cut keeps its spikes.

    References
    ----------
    The test is that of `cluster_embedding` (Magland & Barnett 2015, arXiv 1508.04841), the lines are those
    of mixtures of two Gaussians with one covariance (Dempster, Laird & Rubin 1977).
    """
    parts = np.full(len(labels), -1, dtype=np.int64)
    homes: list[int] = []
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        unmix = unmix_noise(noise)
        flat = waveforms.reshape(len(waveforms), -1)
        for cluster, home in enumerate(neighborhood_of.tolist()):
            rows = np.flatnonzero(labels == cluster)
            for part in take_apart(rows, lambda own: find_second(flat[own], unmix, params, seed=seed)):
                parts[part] = len(homes)
                homes.append(home)
    return parts, np.array(homes, dtype=np.int64)


def unmix_noise(noise: np.ndarray) -> np.ndarray:
    """Weights (n_values, n_values) for flattened snippets, float64, after which noise snippets are white."""
    silence = noise.reshape(len(noise), -1).astype(np.float64)
    covariance = np.atleast_2d(np.cov(silence.T))
    covariance += NOISE_RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    variance, axes = np.linalg.eigh(covariance)
    unmix: np.ndarray = axes / np.sqrt(variance)
    return unmix


def find_second(
    snippets: np.ndarray, unmix: np.ndarray, params: ClusterParams, *, seed: int
) -> np.ndarray | None:
    """Which spikes are a second unit's, (n_spikes,) bool; None for one unit.

    Parameters
    ----------
    snippets : ndarray of shape (n_spikes, n_values), float32
        Of a cluster, flattened.
    unmix : ndarray of shape (n_values, n_values)
        From `unmix_noise`.
    params : ClusterParams
    seed : int
        Of the parcels.
    """
    if len(snippets) < 2 * params.min_size:
        return None
    points = _main_directions(snippets, unmix)
    best, is_second = params.split_threshold, None
    for start in _find_starts(points, seed):
        direction = _separate(points, start.astype(np.float64))
        if direction is None:
            continue
        line = points @ direction
        score, cut = measure_bimodality(np.sort(line))
        is_beyond = line >= cut
        is_large = min(is_beyond.sum(), (~is_beyond).sum()) >= params.min_size
        if score >= best and is_large and _separation(line, is_beyond) >= MIN_SEPARATION:
            best, is_second = score, is_beyond
    return is_second


def _find_starts(points: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    for line in points.T:
        low, high = np.quantile(line, [TAIL, 1 - TAIL])
        yield line < low
        yield line > high
    for max_parcels in NUM_PARCELS:
        parcels = cut_parcels(points, seed, max_parcels)
        for parcel in range(parcels.max() + 1):
            yield parcels == parcel


def _main_directions(snippets: np.ndarray, unmix: np.ndarray) -> np.ndarray:
    """Snippets where noise is white, in the directions in which they may differ, (n_spikes, n_dims).

    Those are the size of the spikes and where most vary most. A unit of another size may be too far from most
    to be seen in the latter.
    """
    rows = np.linspace(0, len(snippets) - 1, min(len(snippets), MAX_MEASURED)).round().astype(np.int64)
    points = snippets[rows] @ unmix
    middle = np.median(points, axis=0)
    points -= middle
    distance = (points**2).sum(axis=1)
    core = points[distance <= np.quantile(distance, CORE)]
    _, axes = np.linalg.eigh(core.T @ core)
    directions, _ = np.linalg.qr(np.column_stack([middle, axes[:, : -NUM_DIMS - 1 : -1]]))
    main = snippets @ (unmix @ directions).astype(np.float32)
    return np.asarray(main - np.median(main, axis=0), dtype=np.float64)


def _separate(points: np.ndarray, share: np.ndarray) -> np.ndarray | None:
    """Line between two Gaussians of one covariance that explain the points; None where one vanishes.

    ``share``, (n_points,), is that of the second Gaussian in each point at the beginning. A third one, broad
    and around both, takes the collisions, which would draw the second to themselves.
    """
    num_points, num_dims = points.shape
    shares = np.stack([1 - share, share], axis=1)
    fixed = np.log(COLLISIONS) - 0.5 * num_dims * np.log(BREADTH)
    direction = None
    for _ in range(NUM_STEPS):
        weights = shares.sum(axis=0)
        if weights.min() < MIN_WEIGHT:
            return None
        means = shares.T @ points / weights[:, None]
        covariance = (points * shares.sum(axis=1)[:, None]).T @ points - (means.T * weights) @ means
        covariance /= weights.sum()
        covariance += RIDGE * np.trace(covariance) / num_dims * np.eye(num_dims)
        inverse = np.linalg.inv(covariance)
        direction = inverse @ (means[1] - means[0])
        centers = np.vstack([means, weights @ means / weights.sum()])
        log_density = points @ (inverse @ centers.T) - 0.5 * ((centers @ inverse) * centers).sum(axis=1)
        log_density -= 0.5 * ((points @ inverse) * points).sum(axis=1, keepdims=True)
        log_density[:, 2] = log_density[:, 2] / BREADTH + fixed
        log_density[:, :2] += np.log(weights / num_points)
        density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        shares = density[:, :2] / density.sum(axis=1, keepdims=True)
    return direction


def _separation(line: np.ndarray, is_beyond: np.ndarray) -> float:
    """Distance of the medians of two sides of a line, in standard deviations as most spikes show them."""
    middles = np.median(line[~is_beyond]), np.median(line[is_beyond])
    off = np.abs(line - np.where(is_beyond, middles[1], middles[0]))
    return float((middles[1] - middles[0]) / max(MAD_TO_SIGMA * np.median(off), 1e-12))
