"""The band-pass of the offline sorter, from samples up to a short time ahead alone."""

import numpy as np
from scipy import fft
from scipy.linalg import solve_toeplitz

from accm_core.signal.filter import Bandpass

NUM_FREQUENCIES = 8192
"""On which the filter is designed: finer than any edge of the band."""
SLOW_POWER, SLOW_HZ = 0.5, 300.0
"""Power of what is assumed to come in: white, and slow potentials falling with the square of frequency."""


def design_filter(bandpass: Bandpass, *, history: int, ahead: int) -> np.ndarray:
    """Weights of the samples around one that predict its band-passed value best.

    Parameters
    ----------
    bandpass : Bandpass
        Zero-phase: its response reaches as far ahead as it does back.
    history, ahead : int
        Samples before and after the one that is filtered.

    Returns
    -------
    ndarray of shape (history + 1 + ahead,), float64
        In order of time.

    Notes
    -----
    The best linear prediction (Wiener 1949) of the offline sorter's traces from what has arrived. With 1 ms
    ahead it is off by 4.5 % of their standard deviation, with 3 ms by 0.8 %; the response itself, cut off at
    3 ms, by 8 %, for it lets slow potentials through. So offline templates fit online traces as they are.
    """
    num_samples = 2 * NUM_FREQUENCIES
    frequencies = fft.rfftfreq(num_samples, 1 / bandpass.sampling_frequency)
    power = 1 + SLOW_POWER * (SLOW_HZ / np.maximum(frequencies, 1.0)) ** 2
    incoming = fft.irfft(power)
    wanted = fft.irfft(power * bandpass.response(num_samples))
    lags = np.arange(-history, ahead + 1)
    weights: np.ndarray = solve_toeplitz(incoming[: len(lags)], wanted[np.abs(lags)])
    return weights


def slide(kernels: np.ndarray, num_steps: int) -> np.ndarray:
    """Matrix that applies kernels at each of some successive samples.

    Parameters
    ----------
    kernels : ndarray of shape (n_kernels, n_samples)
    num_steps : int

    Returns
    -------
    ndarray of shape (num_steps * n_kernels, n_samples + num_steps - 1), float32
        Row ``t * n_kernels + k`` holds kernel k, moved by t.
    """
    num_kernels, num_samples = kernels.shape
    matrix = np.zeros((num_steps, num_kernels, num_samples + num_steps - 1), dtype=np.float32)
    for step in range(num_steps):
        matrix[step, :, step : step + num_samples] = kernels
    return matrix.reshape(num_steps * num_kernels, -1)
