"""Fits of the templates -> spikes, and which of them nothing that comes later will change."""

from typing import NamedTuple

import numba
import numpy as np

from accm_core.signal.snippets import LANCZOS_TAPS, lanczos_kernel
from accm_core.sorting.pursuit import pursue, take_known
from accm_core.sorting.recover import MAX_DEVIATION, MIN_PROBABILITY, mark_overlaps


class Known(NamedTuple):
    """Spikes that were decided lately, in order of time, (n,) each; as in `Matches`."""

    sample_index: np.ndarray
    unit_index: np.ndarray
    offset: np.ndarray
    scale: np.ndarray


NOTHING_KNOWN = Known(
    np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32)
)


@numba.njit(cache=True, nogil=True)
def decide(fits, projected, model, recent, known, until, overlap_reach):  # type: ignore[no-untyped-def]
    """Explain the newest fits, and keep what is old enough: in one call, as each step makes one.

    Parameters
    ----------
    fits : ndarray of shape (n_fits, n_units), float32
        Of the templates, oldest first.
    projected : ndarray of shape (n_rows, n_basis * n_channels), float32
        What the kernels gave, oldest first.
    model : Model
    recent : Known
        Spikes that were decided before.
    known : int
        Sample after the last one of ``fits`` and ``projected``, as spikes are counted.
    until : int
        Spikes before this sample are decided.
    overlap_reach : int
        Samples within which two spikes overlap.

    Returns
    -------
    matches : tuple of ndarray of shape (n,)
        What `Matches` holds, of the spikes that are decided now.
    is_overlap : ndarray of shape (n,), bool
    clean_units : ndarray of shape (n_clean,), int64
        Of the spikes of usual size without another one within a template's length.
    points : ndarray of shape (n_clean, n_basis * n_channels), float32
        What the kernels gave at these.
    recent : Known
        With the spikes that are decided now, without those that are too old to matter.
    """
    left = fits.T.copy()
    blocked = np.zeros(left.shape, dtype=np.uint8)
    origin = known - left.shape[1]
    take_known(
        left, blocked, model, recent.sample_index - origin, recent.unit_index, recent.offset, recent.scale
    )
    # what is not decided yet is explained again in the next step; none moves further than this at once
    revised = until - origin + model.refractory
    found, offset, unit, scale, gain, probability = pursue(left, blocked, model, revised)
    found += origin
    number = np.searchsorted(found, until)
    samples, units = np.concatenate((recent.sample_index, found)), np.concatenate((recent.unit_index, unit))
    # what is decided comes after what was, and before what is not
    first, last = len(recent.sample_index), len(recent.sample_index) + number
    is_overlap = mark_overlaps(samples, units, model.pair_row, overlap_reach)[first:last]
    has_company = mark_overlaps(samples, units, model.pair_row, model.reach)[first:last]
    found, offset, unit, scale = found[:number], offset[:number], unit[:number], scale[:number]
    gain, probability = gain[:number], probability[:number]
    usual = (np.abs(scale - 1) < MAX_DEVIATION) & (probability > MIN_PROBABILITY)
    clean = np.flatnonzero(usual & ~has_company)
    points = _points_at(projected, found[clean] + len(projected) - known, offset[clean])
    oldest = np.searchsorted(samples[:last], until - 2 * model.reach)
    kept = Known(
        samples[oldest:last],
        units[oldest:last],
        np.concatenate((recent.offset, offset))[oldest:],
        np.concatenate((recent.scale, scale))[oldest:],
    )
    return (found, offset, unit, scale, gain, probability), is_overlap, unit[clean], points, kept


@numba.njit(cache=True, nogil=True)
def _points_at(projected, rows, offsets):  # type: ignore[no-untyped-def]
    """What the kernels gave at these rows and offsets, between samples."""
    points = np.zeros((len(rows), projected.shape[1]), dtype=np.float32)
    for n in range(len(rows)):
        base = int(np.floor(offsets[n]))
        kernel = lanczos_kernel(offsets[n] - base)
        first = rows[n] + base - (LANCZOS_TAPS - 1)
        for tap in range(2 * LANCZOS_TAPS):
            row = projected[first + tap]
            for column in range(len(row)):
                points[n, column] += kernel[tap] * row[column]
    return points
