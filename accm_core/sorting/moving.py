"""Templates that change slowly over time: a bank for each stretch of the recording."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solveh_banded

from accm_core.sorting.match import Matches, TemplateBank

MIN_STEP = 1e-6
"""Least variance of a template's step from one stretch to the next, as a share of its spikes'."""


@dataclass(frozen=True)
class MovingBank:
    """Units whose templates differ from stretch to stretch.

    Attributes
    ----------
    mean : TemplateBank
        With each unit's mean template.
    starts : ndarray of shape (n_stretches,), int64
        Sample at which each stretch begins, in ascending order.
    weights : ndarray of shape (n_stretches, n_units, n_basis, n_channels), float32
        Of the templates, in the basis of ``mean``.
    """

    mean: TemplateBank
    starts: np.ndarray
    weights: np.ndarray

    def at(self, sample: int) -> TemplateBank:
        """The bank of the stretch that ``sample`` lies in."""
        return self.mean.reweigh(self.weights[self._stretch_of(sample)], self.mean.prior**-0.5)

    @property
    def energy(self) -> np.ndarray:
        """Of each template in each stretch, (n_stretches, n_units), float32."""
        return np.asarray((self.weights**2).sum(axis=(2, 3)))

    def energy_at(self, matches: Matches) -> np.ndarray:
        """Energy of each match's template at its time, (n,), float32."""
        return np.asarray(self.energy[self._stretch_of(matches.sample_index), matches.unit_index])

    def rescale(self, matches: Matches) -> Matches:
        """The matches with their scale in terms of the mean template, not that of their stretch."""
        along = np.einsum("sukc,ukc->su", self.weights, self.mean.weights)
        along /= np.maximum(self.mean.energy, 1e-12)
        share = along[self._stretch_of(matches.sample_index), matches.unit_index]
        return replace(matches, scale=(matches.scale * share).astype(np.float32))

    def _stretch_of(self, sample: int | np.ndarray) -> np.ndarray:
        return np.maximum(np.searchsorted(self.starts, sample, side="right") - 1, 0)


@dataclass(frozen=True)
class Means:
    """Mean of some points in each bin of time.

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


def smooth_course(means: Means) -> np.ndarray:
    """Most likely course of a template that takes random steps, given its mean in each bin.

    Parameters
    ----------
    means : Means
        With a point in at least one bin.

    Returns
    -------
    ndarray of shape (n_bins, n_dims), float64
        Bins without points lie between their neighbours.

    Notes
    -----
    A Gaussian random walk seen through noise (Kalman 1960); the mode of all its steps at once solves one
    tridiagonal system. The steps' variance is what neighbouring means differ by, beyond their noise: a
    template that stays has its overall mean in all bins.
    """
    if len(means.counts) == 1:
        return means.mean
    filled = np.flatnonzero(means.counts)
    step = 0.0
    if len(filled) > 1:
        before, after = means.counts[filled[:-1]], means.counts[filled[1:]]
        noise = 1 / before + 1 / after
        apart = (np.diff(means.mean[filled], axis=0) ** 2).sum(axis=1) - means.scatter * noise
        step = (apart / noise).sum() / (np.diff(filled) / noise).sum()
    step = max(step, MIN_STEP * means.scatter)
    precision = means.counts / means.scatter
    diagonal = precision + 2 / step
    diagonal[[0, -1]] -= 1 / step
    banded = np.stack([np.full(len(diagonal), -1 / step), diagonal])
    return np.asarray(solveh_banded(banded, precision[:, None] * means.mean))
