"""Whitened traces to peaks: extrema that are the largest in their neighbourhood."""

import numba
import numpy as np

from accm_core.signal.snippets import find_offsets
from accm_core.types import Peaks


def find_peaks(
    traces: np.ndarray, *, threshold: float, neighbors: np.ndarray, exclude_sweep: int, peak_sign: str
) -> Peaks:
    """Find local extrema that exceed the threshold and everything near them.

    A sample is a peak when it exceeds ``threshold`` and no sample within ``exclude_sweep`` samples on
    a neighbouring channel is larger. Equal values are resolved in favour of the earlier sample, then
    of the lower channel.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Noise units. The first and last ``exclude_sweep`` samples are margin: no peak is found there.
    threshold : float
        Noise units, > 0.
    neighbors : ndarray of shape (n_channels, n_channels), bool
        ``neighbors[i, j]`` is true when j competes with i.
    exclude_sweep : int
        Half-width of the exclusion window, samples, >= 1.
    peak_sign : {'neg', 'pos', 'both'}
        Polarity.

    Returns
    -------
    Peaks
        Sorted by sample, then channel. ``amplitude`` has the sign of the trace.

    Examples
    --------
    >>> traces = np.zeros((100, 2), np.float32)
    >>> traces[50] = [-9, -8]
    >>> near = np.ones((2, 2), bool)
    >>> find_peaks(traces, threshold=5, neighbors=near, exclude_sweep=10, peak_sign="neg").sample_index
    array([50])
    """
    if peak_sign == "neg":
        height = -traces
    elif peak_sign == "pos":
        height = traces
    else:
        height = np.abs(traces)
    samples, channels = _exclusive_maxima(height, np.float32(threshold), neighbors, exclude_sweep)
    return Peaks(samples, channels, traces[samples, channels], find_offsets(traces, samples, channels))


@numba.njit(cache=True, nogil=True)
def find_tails(samples, channels, heights, near, before, after, ratio):  # type: ignore[no-untyped-def]
    """Mask of the peaks that may be what a far larger spike left before and after it, (n_peaks,), bool.

    A large spike's slow end, and what the common reference puts on other channels, would make units.

    Parameters
    ----------
    samples, channels : ndarray of shape (n_peaks,), int64
        In order of time.
    heights : ndarray of shape (n_peaks,), float32
        Without sign.
    near : ndarray of shape (n_channels, n_channels), bool
        Channels that a large spike reaches.
    before, after : int
        Samples that it reaches.
    ratio : float
        A spike so many times larger makes a peak its tail.
    """
    is_tail = np.zeros(len(samples), dtype=np.bool_)
    first = 0
    for k in range(len(samples)):
        while samples[first] < samples[k] - after:
            first += 1
        j = first
        while j < len(samples) and samples[j] <= samples[k] + before:
            if heights[j] > ratio * heights[k] and near[channels[k], channels[j]]:
                is_tail[k] = True
                break
            j += 1
    return is_tail


@numba.njit(cache=True, nogil=True)
def _exclusive_maxima(height, threshold, neighbors, sweep):  # type: ignore[no-untyped-def]
    num_samples, num_channels = height.shape
    samples = [0 for _ in range(0)]  # numba types an empty list by what it would hold
    channels = [0 for _ in range(0)]
    for t in range(sweep, num_samples - sweep):
        for c in range(num_channels):
            value = height[t, c]
            if value <= threshold or value <= height[t - 1, c] or value < height[t + 1, c]:
                continue
            largest = True
            for other in range(num_channels):
                if not neighbors[c, other]:
                    continue
                for s in range(t - sweep, t + sweep + 1):
                    rival = height[s, other]
                    if rival > value or (rival == value and (s < t or (s == t and other < c))):
                        largest = False
                        break
                if not largest:
                    break
            if largest:
                samples.append(t)
                channels.append(c)
    return np.array(samples, dtype=np.int64), np.array(channels, dtype=np.int64)
