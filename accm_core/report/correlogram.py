"""Correlograms and interval histograms of spike trains."""

import numpy as np

MAX_PAIRS = 2_000_000  # pairs of spikes held at once, which bounds memory


def auto_correlogram(spike_times: np.ndarray, *, window_s: float, bin_s: float) -> np.ndarray:
    """Count the intervals between all spikes of one unit, both ways.

    Parameters
    ----------
    spike_times : ndarray of shape (n_spikes,), float64
        Seconds, non-decreasing.
    window_s : float
        Largest interval, in seconds; a whole number of bins.
    bin_s : float
        Bin width in seconds.

    Returns
    -------
    ndarray of shape (2 * window_s / bin_s,), int64
        Symmetric; zero lag is the border between the two middle bins. No spike is paired with itself.

    Examples
    --------
    >>> auto_correlogram(np.array([0.0, 0.0015]), window_s=0.003, bin_s=0.001).tolist()
    [0, 1, 0, 0, 1, 0]
    """
    after = _count_lags(spike_times, spike_times, window_s=window_s, bin_s=bin_s, only_later=True)
    return np.concatenate([after[::-1], after])


def cross_correlogram(
    spike_times: np.ndarray, other_times: np.ndarray, *, window_s: float, bin_s: float
) -> np.ndarray:
    """Count the lags of another unit's spikes from those of one unit.

    Parameters
    ----------
    spike_times, other_times : ndarray of shape (n,), float64
        Seconds, non-decreasing.
    window_s, bin_s : float
        As for ``auto_correlogram``.

    Returns
    -------
    ndarray of shape (2 * window_s / bin_s,), int64
        Lags ``other - spike``; zero lag is the border between the two middle bins and counts to the right.

    Examples
    --------
    >>> cross_correlogram(np.array([1.0]), np.array([1.0015]), window_s=0.003, bin_s=0.001).tolist()
    [0, 0, 0, 0, 1, 0]
    """
    return _count_lags(spike_times, other_times, window_s=window_s, bin_s=bin_s, only_later=False)


def interval_histogram(spike_times: np.ndarray, edges_s: np.ndarray) -> np.ndarray:
    """Count the intervals between consecutive spikes of one unit, (n_edges - 1,), int64.

    Parameters
    ----------
    spike_times : ndarray of shape (n_spikes,), float64
        Seconds, non-decreasing.
    edges_s : ndarray of shape (n_edges,), float64
        Borders of the bins in seconds. What lies outside is counted in the first or last bin.
    """
    inside = np.clip(np.diff(spike_times), edges_s[0], np.nextafter(edges_s[-1], 0))
    return np.histogram(inside, edges_s)[0]


def _count_lags(
    times: np.ndarray, others: np.ndarray, *, window_s: float, bin_s: float, only_later: bool
) -> np.ndarray:
    num_half = round(window_s / bin_s)
    num_bins = num_half if only_later else 2 * num_half
    start_s = 0.0 if only_later else -window_s
    counts = np.zeros(num_bins, dtype=np.int64)
    first = np.arange(1, len(times) + 1) if only_later else np.searchsorted(others, times - window_s)
    last = np.maximum(np.searchsorted(others, times + window_s), first)
    num_pairs = np.concatenate([[0], np.cumsum(last - first)])
    row = 0
    while row < len(times):
        stop = max(row + 1, int(np.searchsorted(num_pairs, num_pairs[row] + MAX_PAIRS, side="right")) - 1)
        repeats = (last - first)[row:stop]
        within = np.arange(repeats.sum()) - np.repeat(num_pairs[row:stop] - num_pairs[row], repeats)
        lag_s = others[np.repeat(first[row:stop], repeats) + within] - np.repeat(times[row:stop], repeats)
        bins = np.floor((lag_s - start_s) / bin_s).astype(np.int64)
        counts += np.bincount(bins[(bins >= 0) & (bins < num_bins)], minlength=num_bins)
        row = stop
    return counts
