"""The band-pass of the offline sorter, from samples up to a short time ahead alone."""

import numpy as np
from scipy import fft
from scipy.linalg import solve_toeplitz

from accm_core.signal.filter import Bandpass

NUM_FREQUENCIES = 8192
"""On which the filter is designed: finer than any edge of the band."""
SLOW_POWER, SLOW_HZ, SLOW_SLOPE, SLOWEST_HZ = 5.0, 300.0, 3.0, 3.0
"""What is assumed to come in: white noise of power 1, and slow potentials of power 5 at 300 Hz that grows
with the third power towards slower ones, as local field potentials do, down to 3 Hz."""


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
    The best linear prediction (Wiener 1949) of the offline sorter's traces from what has arrived, so that
    offline templates fit online traces as they are. With 1 ms ahead, white noise is off by 4 % of its
    standard deviation; of an offset 0.01 % are let through, of a hum of 60 Hz 1.2 %. With 3 ms it is 1 %,
    0.00 % and 0.3 %. The offline response itself, cut off at 1 ms, would let through 1.2 % of an offset, at
    2 ms 4.8 %.
    """
    num_samples = 2 * NUM_FREQUENCIES
    frequencies = fft.rfftfreq(num_samples, 1 / bandpass.sampling_frequency)
    power = 1 + SLOW_POWER * (SLOW_HZ / np.maximum(frequencies, SLOWEST_HZ)) ** SLOW_SLOPE
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
