"""Means of points that change slowly: their course, and how far apart two are."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline
from scipy.linalg import cho_solve_banded, cholesky_banded

VARIANCES = np.geomspace(1e-6, 1e3, 28)
"""Of a bend, in shares of that of a point around the course: what is tried."""
TINY = 1e-9
"""Precision of bins without points, in shares of the highest."""


@dataclass(frozen=True)
class Means:
    """Mean of some points in each bin: of time, or of where the tissue is.

    Attributes
    ----------
    counts : ndarray of shape (n_bins,), int64
    mean : ndarray of shape (n_bins, n_dims), float64
        Zero in bins without points.
    scatter : float
        Mean squared distance of a point from the mean of its bin.
    """

    counts: np.ndarray
    mean: np.ndarray
    scatter: float

    @property
    def overall(self) -> np.ndarray:
        """Mean of all points, (n_dims,)."""
        return self.counts @ self.mean / max(self.counts.sum(), 1)

    def stray(self) -> float:
        """Mean squared distance of the bins' means from that of all, beyond what chance gives."""
        apart = self.counts @ ((self.mean - self.overall) ** 2).sum(axis=1)
        by_chance = self.scatter * (np.count_nonzero(self.counts) - 1)
        return float((apart - by_chance) / max(self.counts.sum(), 1))


def average_bins(points: np.ndarray, bins: np.ndarray, num_bins: int) -> Means:
    """Average points, (n, n_dims), by their bin, (n,)."""
    counts = np.bincount(bins, minlength=num_bins)
    total = np.zeros((num_bins, points.shape[1]))
    np.add.at(total, bins, points)
    mean = total / np.maximum(counts, 1)[:, None]
    degrees = len(points) - np.count_nonzero(counts)
    scatter = ((points - mean[bins]) ** 2).sum() / degrees if degrees > 0 else float(points.shape[1])
    return Means(counts, mean, scatter)


def measure_separation(first: Means, second: Means) -> tuple[float, float]:
    """Distance of two groups of numbers within the same bins.

    Parameters
    ----------
    first, second : Means
        Of one dimension.

    Returns
    -------
    separation : float
        In standard deviations; infinite where the two never share a bin.
    num_meetings : float
        Harmonic sum of the points that it rests on.
    """
    shared = np.flatnonzero((first.counts > 0) & (second.counts > 0))
    if len(shared) == 0:
        return np.inf, 0.0
    weight = 1 / (1 / first.counts[shared] + 1 / second.counts[shared])
    apart = weight @ (first.mean[shared, 0] - second.mean[shared, 0]) / weight.sum()
    spread = np.sqrt(0.5 * (first.scatter + second.scatter))
    return float(abs(apart) / spread), float(weight.sum())


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors along the last axis, scaled to length 1; zero stays zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def cubic_splines(at: np.ndarray, num_splines: int) -> np.ndarray:
    """Values of splines over 0 to 1 at some points, (n, n_splines)."""
    knots = np.r_[[0.0] * 3, np.linspace(0, 1, num_splines - 2), [1.0] * 3]
    return np.asarray(BSpline.design_matrix(at, knots, 3).toarray())


def penalize_differences(num: int, order: int) -> np.ndarray:
    """Quadratic form, (num, num), that is the sum of the squared differences of some order: 2 for bends."""
    difference = np.diff(np.eye(num), order, axis=0)
    return np.asarray(difference.T @ difference)


def smooth_course(means: Means) -> np.ndarray:
    """Most likely course of points that change slowly and evenly, given their mean in each bin.

    Parameters
    ----------
    means : Means
        With a point in at least one bin.

    Returns
    -------
    ndarray of shape (n_bins, n_dims), float64
        Bins without points lie between their neighbours, or beyond them on a line.

    Notes
    -----
    Bends, the second differences from bin to bin, are Gaussian and of one variance: that under which the
    means are most likely, bends and all straight lines integrated out (restricted maximum likelihood; Wahba,
    Annals of Statistics 1985).
    """
    num_bins, num_dims = means.mean.shape
    if num_bins <= 2:
        return np.tile(means.overall, (num_bins, 1))
    bends = penalize_differences(num_bins, 2)
    bends = np.array([np.r_[np.diagonal(bends, k), np.zeros(k)] for k in range(3)])
    precision = num_dims * means.counts / means.scatter
    weighted = precision[:, None] * means.mean
    best, course = -np.inf, means.mean
    for variance in VARIANCES * means.scatter / num_dims:
        banded = bends / variance
        banded[0] += precision + TINY * precision.max()
        root = cholesky_banded(banded, lower=True)
        fitted = cho_solve_banded((root, True), weighted)
        log_determinant = (num_bins - 2) * np.log(variance) + 2 * np.log(root[0]).sum()
        likelihood = (weighted * fitted).sum() - num_dims * log_determinant
        if likelihood > best:
            best, course = likelihood, fitted
    return np.asarray(course)
