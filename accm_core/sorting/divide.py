"""One unit or two: binary decisions on which two views of a spike agree.

A cluster of many small spikes can hide small units: it has one hump in every direction in which clusters
are usually compared. What noise does to a spike differs between its two views, what neuron it is of does
not; so the line on which the views agree most is the one to look along for a second neuron. A cut across
that line is a binary decision on each view, and the best cut is the one whose decisions on the two views
share the most information. Parts that differ in size alone are joined again.
"""

import numpy as np
from scipy import linalg
from scipy.sparse.csgraph import connected_components
from scipy.special import xlogy

from accm_core.params import ClusterParams
from accm_core.sorting.cluster import take_apart

MIN_SHARED = 0.4
"""Share of a decision's information that it must have in common with the one on the other view."""
MAX_COSINE = 0.95
"""Of two parts' mean waveforms; beyond, they are spikes of one neuron at two sizes, as in bursts."""
NUM_CUTS, EDGE = 33, 0.03
"""Places on a line where it may be cut, evenly spread over the spikes but for this share at each end."""
RIDGE = 1e-4
"""Share of the mean variance added before the covariance is inverted."""


def divide_clusters(
    labels: np.ndarray,
    waveforms: np.ndarray,
    embedding: np.ndarray,
    views: tuple[np.ndarray, np.ndarray],
    neighborhood_of: np.ndarray,
    params: ClusterParams,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide clusters, again and again, where the views of their spikes agree on it.

    Parameters
    ----------
    labels : ndarray of shape (n_spikes,), int64
        From 0; -1 for none.
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Snippets.
    embedding : ndarray of shape (n_spikes, n_dims), float32
    views : pair of ndarray of shape (n_spikes, n_dims), float32
        Of each spike, from `embed_views`.
    neighborhood_of : ndarray of shape (n_clusters,), int64
        Where each cluster was found.
    params : ClusterParams

    Returns
    -------
    labels, neighborhood_of
        Likewise, of the parts; a cluster that is not divided keeps its spikes.

    References
    ----------
    Ji et al., Invariant information clustering, 2019, arXiv 1807.06653, for deciding by the mutual
    information of two views. The line and the cut are found in closed form here, by canonical correlation
    (Hotelling, Relations between two sets of variates, 1936).
    """
    parts = np.full(len(labels), -1, dtype=np.int64)
    homes: list[int] = []
    for cluster, home in enumerate(neighborhood_of.tolist()):
        found = take_apart(
            np.flatnonzero(labels == cluster),
            lambda rows: _decide(embedding[rows], views[0][rows], views[1][rows], params.min_size),
        )
        neuron = _join_alike([waveforms[rows].mean(axis=0).ravel() for rows in found])
        for rows, number in zip(found, neuron, strict=True):
            parts[rows] = len(homes) + number
        homes += [home] * (max(neuron) + 1)
    return parts, np.array(homes, dtype=np.int64)


def _decide(points: np.ndarray, first: np.ndarray, second: np.ndarray, min_size: int) -> np.ndarray | None:
    """Which spikes are the second unit's, (n,) bool; None for one unit."""
    if len(points) < 2 * min_size:
        return None
    direction, cut, shared = find_cut(first.astype(np.float64), second.astype(np.float64))
    is_beyond = points @ direction > cut
    is_large = min(is_beyond.sum(), (~is_beyond).sum()) >= min_size
    return is_beyond if is_large and shared >= MIN_SHARED else None


def _join_alike(means: list[np.ndarray]) -> list[int]:
    """Number of the neuron that each mean waveform is of: the same where they differ in size alone."""
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    directions = np.array(means) / np.maximum(lengths, 1e-12)
    _, neuron = connected_components(directions @ directions.T > MAX_COSINE, directed=False)
    numbers: list[int] = neuron.tolist()
    return numbers


def find_cut(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The cut on which two views of the same spikes agree best.

    Parameters
    ----------
    first, second : ndarray of shape (n_spikes, n_dims), float64

    Returns
    -------
    direction : ndarray of shape (n_dims,), float64
        Of the line.
    cut : float
        Where on it.
    shared : float
        Mutual information of the two views' decisions over the entropy of one of them, 0 to 1.
    """
    center = 0.5 * (first.mean(axis=0) + second.mean(axis=0))
    left, right = first - center, second - center
    covariance = 0.5 * (left.T @ left + right.T @ right) / len(first)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    crossed = left.T @ right / len(first)
    _, lines = linalg.eigh(0.5 * (crossed + crossed.T), covariance)
    best = (lines[:, 0], 0.0, 0.0)
    most = -np.inf
    for line in lines.T:
        on_line = left @ line, right @ line
        cuts = np.quantile(np.concatenate(on_line), np.linspace(EDGE, 1 - EDGE, NUM_CUTS))
        information, entropy = _share_information(*on_line, cuts)
        at = int(information.argmax())
        if information[at] > most:
            most = information[at]
            best = (line, cuts[at] + center @ line, information[at] / max(entropy[at], 1e-12))
    return best


def _share_information(
    first: np.ndarray, second: np.ndarray, cuts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information of being beyond each cut, and the entropy of that for one view, nats, (n_cuts,)."""
    is_first, is_second = first[:, None] > cuts, second[:, None] > cuts
    both = (is_first & is_second).mean(axis=0)
    one = 0.5 * (is_first ^ is_second).mean(axis=0)
    neither = 1 - both - 2 * one
    beyond = both + one
    entropy = -(xlogy(beyond, beyond) + xlogy(1 - beyond, 1 - beyond))
    joint = -(xlogy(both, both) + 2 * xlogy(one, one) + xlogy(neither, neither))
    return 2 * entropy - joint, entropy
