"""Peaks to snippets: windows on the nearest channels, aligned to sub-sample precision."""

import numba
import numpy as np

LANCZOS_TAPS = 6
"""Half-width of the interpolation kernel, samples; what a window needs beyond its ends."""


def find_offsets(traces: np.ndarray, sample_index: np.ndarray, channel_index: np.ndarray) -> np.ndarray:
    """Offset of each peak's true extremum from its sample: where a parabola through three samples turns.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
    sample_index, channel_index : ndarray of shape (n_peaks,), int64

    Returns
    -------
    ndarray of shape (n_peaks,), float32
        Samples, -0.5 to 0.5.
    """
    before, middle, after = (traces[sample_index + k, channel_index] for k in (-1, 0, 1))
    curvature = before - 2 * middle + after
    curvature[curvature == 0] = np.inf
    return np.clip(0.5 * (before - after) / curvature, -0.5, 0.5)


def cut_snippets(
    traces: np.ndarray,
    sample_index: np.ndarray,
    offsets: np.ndarray,
    channels: np.ndarray,
    *,
    num_before: int,
    num_samples: int,
) -> np.ndarray:
    """Cut a window around each peak, resampled so that its extremum is at ``num_before`` exactly.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
    sample_index : ndarray of shape (n_peaks,), int64
        Within ``traces``; the caller provides ``LANCZOS_TAPS`` samples beyond each window.
    offsets : ndarray of shape (n_peaks,), float32
        Of the extremum from its sample, -1 to 1.
    channels : ndarray of shape (n_peaks, n_slots), int64
        Channels of each snippet; -1 gives zeros.
    num_before, num_samples : int
        Samples before the peak, and in all.

    Returns
    -------
    ndarray of shape (n_peaks, num_samples, n_slots), float32
    """
    snippets = np.zeros((len(sample_index), num_samples, channels.shape[1]), dtype=np.float32)
    if len(sample_index):
        _cut(traces, sample_index, offsets, channels, num_before, snippets)
    return snippets


@numba.njit(cache=True, nogil=True)
def lanczos_kernel(offset):  # type: ignore[no-untyped-def]
    """Weights of the 12 samples around a point ``offset`` samples after the 6th of them, summing to 1."""
    kernel = np.empty(2 * LANCZOS_TAPS, dtype=np.float32)
    total = 0.0
    for k in range(2 * LANCZOS_TAPS):
        x = k - (LANCZOS_TAPS - 1) - offset
        kernel[k] = 1.0 if abs(x) < 1e-6 else np.sinc(x) * np.sinc(x / LANCZOS_TAPS)
        total += kernel[k]
    for k in range(2 * LANCZOS_TAPS):
        kernel[k] /= total
    return kernel


@numba.njit(cache=True, nogil=True)
def _cut(traces, sample_index, offsets, channels, num_before, snippets):  # type: ignore[no-untyped-def]
    num_samples = snippets.shape[1]
    source = np.empty(num_samples + 2 * LANCZOS_TAPS - 1, dtype=np.float32)
    course = np.empty(num_samples, dtype=np.float32)
    for n in range(len(sample_index)):
        base = int(np.floor(sample_index[n] + offsets[n]))
        kernel = lanczos_kernel(sample_index[n] + offsets[n] - base)
        first = base - num_before - (LANCZOS_TAPS - 1)
        for slot in range(channels.shape[1]):
            channel = channels[n, slot]
            if channel < 0:
                continue
            for t in range(len(source)):
                source[t] = traces[first + t, channel]
            course[:] = 0.0
            for k in range(2 * LANCZOS_TAPS):
                for t in range(num_samples):  # innermost and without gaps: the compiler makes vectors of it
                    course[t] += kernel[k] * source[t + k]
            for t in range(num_samples):
                snippets[n, t, slot] = course[t]
