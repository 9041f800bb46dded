"""Where the tissue is: one number for all neurons of a shank.

On shanks too small to see it move, all spikes of a few seconds together are one point of a high-dimensional
space. As the tissue moves the points run along a curve, and where it comes back they do too. The place is how
far along the curve a point lies.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import linalg

from accm_core.signal.motion import Motion
from accm_core.sorting.course import average_bins, cubic_splines, penalize_differences

MIN_STRAY, MIN_OF_CLUSTER = 4.0, 60
"""Mean squared distance of a cluster from its mean, over time, that matters (two noise levels), and spikes of
a cluster that shows it."""
NUM_FEATURES, BANDWIDTH, WIDER = 500, 5.0, (2.0, 4.0, 8.0)
"""Random directions in which spikes are compared, distance of two up to which they look alike, noise levels,
and how many times that to put the bins in order for a start."""
BINS_PER_SPLINE, MIN_SPLINES, MAX_SPLINES = 4, 4, 12
"""Bins for each spline of the curve, and bounds of their number."""
BEND_COST = 0.3
"""Of the curve; what straightens it where it has few points, in points."""
NUM_NEIGHBORS, NEXT_IN_TIME = (3, 6), 0.3
"""Of a bin, that look alike: so few and so many are tried; and how much alike a bin and the next one are at
least."""
NUM_POINTS, NUM_STEPS = 400, 20
"""Of the curve to which the bins are compared; and of fitting it and placing the bins on it."""


@dataclass(frozen=True)
class Place:
    """Where the tissue is over time.

    Attributes
    ----------
    centers : ndarray of shape (n_bins,), float64
        Samples, ascending; between them the tissue moves evenly.
    values : ndarray of shape (n_bins,), float64
        From 0 to 1, from one end of the way to the other.
    """

    centers: np.ndarray
    values: np.ndarray

    def step(self, sample: np.ndarray | float, num_steps: int) -> np.ndarray:
        """Which of so many steps from 0 to 1 the tissue is at, int64 of the shape of ``sample``."""
        at = np.interp(sample, self.centers, self.values)
        return np.clip(num_steps * at, 0, num_steps - 1).astype(np.int64)


def read_place(motion: Motion) -> Place:
    """Where the tissue is by its displacement, on a shank along which all moves alike."""
    return Place(motion.sample_index, _from_end_to_end(motion.displacement_um.mean(axis=1)))


def find_place(points: np.ndarray, labels: np.ndarray, bins: np.ndarray, centers: np.ndarray) -> Place | None:
    """Follow the tissue by what all spikes look like.

    Parameters
    ----------
    points : ndarray of shape (n_spikes, n_dims), float64
        Spikes, in order of time, where noise is white.
    labels : ndarray of shape (n_spikes,), int64
        Clusters to begin with; -1 for none.
    bins : ndarray of shape (n_spikes,), int64
        Of time, a few seconds each.
    centers : ndarray of shape (n_bins,), float64
        Of the bins, samples.

    Returns
    -------
    Place or None
        None where the tissue rests: half of the clusters keep their shape.

    References
    ----------
    A principal curve (Hastie & Stuetzle, JASA 1989) of the bins' mean embeddings (Smola et al., ALT 2007)
    in random Fourier features (Rahimi & Recht, NeurIPS 2007), begun in the order of the Fiedler vector
    (Atkins, Boman & Hendrickson, SIAM J. Comput. 1998) at several bandwidths; the best curve is kept.
    """
    if not _is_moving(points, labels, bins, len(centers)):
        return None
    means, counts = _embed_bins(points, bins, len(centers))
    wider = [_embed_bins(points / times, bins, len(centers)) for times in WIDER]
    starts = (_order_bins(m, n, neighbors) for (m, n), neighbors in product(wider, NUM_NEIGHBORS))
    values, _ = min((_fit_curve(means, counts, start) for start in starts), key=lambda fit: fit[1])
    return Place(centers, values)


def _is_moving(points: np.ndarray, labels: np.ndarray, bins: np.ndarray, num_bins: int) -> bool:
    """Whether half of the clusters or more change over time."""
    strays = [
        average_bins(points[rows], bins[rows], num_bins).stray()
        for rows in (labels == cluster for cluster in range(labels.max(initial=-1) + 1))
        if rows.sum() >= MIN_OF_CLUSTER
    ]
    return len(strays) > 0 and float(np.mean(np.array(strays) > MIN_STRAY)) >= 0.5


def _embed_bins(points: np.ndarray, bins: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the features of each bin's spikes, (n_bins, n_features), and how many there are, (n_bins,)."""
    directions = np.random.default_rng(0).normal(0, 1 / BANDWIDTH, (points.shape[1], NUM_FEATURES))
    total = np.zeros((num_bins, 2, NUM_FEATURES))
    counts = np.bincount(bins, minlength=num_bins)
    for sums, own in zip(total, np.split(points, counts.cumsum()[:-1]), strict=True):
        angles = own @ directions
        sums[:] = np.cos(angles).sum(axis=0), np.sin(angles).sum(axis=0)
    return total.reshape(num_bins, -1) / np.maximum(counts, 1)[:, None], counts


def _order_bins(means: np.ndarray, counts: np.ndarray, num_neighbors: int) -> np.ndarray:
    """An order in which bins that are alike or follow each other are near, (n_bins,): the Fiedler vector."""
    own = (means**2).sum(axis=1) - 1 / np.maximum(counts, 1)  # without what chance adds to a distance
    apart = np.maximum(own[:, None] + own - 2 * means @ means.T, 0)
    reach = np.sqrt(np.sort(apart, axis=1)[:, min(num_neighbors, len(apart) - 1)])
    alike = np.exp(-apart / np.maximum(reach[:, None] * reach, 1e-12))
    alike += NEXT_IN_TIME * (np.eye(len(alike), k=1) + np.eye(len(alike), k=-1))
    root = np.sqrt(alike.sum(axis=1))
    _, vectors = linalg.eigh(alike / root[:, None] / root)
    return np.asarray(vectors[:, -2] / root)


def _fit_curve(means: np.ndarray, counts: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """How far along their curve the bins lie, (n_bins,), from 0 to 1, and how far from it, given a start."""
    num_splines = int(np.clip(len(means) // BINS_PER_SPLINE, MIN_SPLINES, MAX_SPLINES))
    penalty = BEND_COST * np.median(counts) * penalize_differences(num_splines, 2)
    along = cubic_splines(np.linspace(0, 1, NUM_POINTS), num_splines)
    place = start
    for _ in range(NUM_STEPS):
        place = _from_end_to_end(place)
        splines = cubic_splines(place, num_splines)
        weighted = counts * splines.T
        curve = along @ linalg.solve(weighted @ splines + penalty, weighted @ means, assume_a="sym")
        nearest = ((curve**2).sum(axis=1) - 2 * means @ curve.T).argmin(axis=1)
        way = np.r_[0.0, np.linalg.norm(np.diff(curve, axis=0), axis=1).cumsum()]
        place = way[nearest] / max(way[-1], 1e-12)
    off = counts @ ((means - curve[nearest]) ** 2).sum(axis=1)
    return _from_end_to_end(place), float(off)


def _from_end_to_end(values: np.ndarray) -> np.ndarray:
    """Values moved and scaled to lie from 0 to 1."""
    return np.asarray((values - values.min()) / max(np.ptp(values), 1e-12))
