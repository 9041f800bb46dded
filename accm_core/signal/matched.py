"""Whitened traces to how much they look like a spike, which lifts small spikes out of the noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from accm_core.params import DetectParams, RunParams, to_samples
from accm_core.signal.chunks import Block, cut_blocks, map_blocks, spread_blocks
from accm_core.signal.detect import find_peaks
from accm_core.signal.preprocess import Preprocessor, measure_noise
from accm_core.types import Recording

SHAPE_BLOCKS = 20
"""Seconds, evenly spread, on which the usual shape of a spike is measured."""
HALF_MS = 0.35
"""What the shape holds on each side of the peak; what comes later adds as much noise as spike."""
SHAPE_THRESHOLD = 6.0
"""Noise levels that a spike exceeds whose shape counts."""
MIN_SHAPES = 20
"""Spikes that are needed for a usual shape."""
WIDTH_UM = 20.0
"""Reach of a spike over the channels around its own (standard deviation of a Gaussian)."""
NO_WEIGHT = 1e-20
"""Weight that adds nothing; many processors take thirty times as long for the smallest numbers there are."""
STRIDE = 5
"""Of the samples that the noise is measured on."""


@dataclass(frozen=True)
class MatchedFilter:
    """How well a spike of the usual shape fits at each sample and channel.

    Attributes
    ----------
    shape : ndarray of shape (n_samples,), float32
        Of a spike on its channel, 1 at the peak; ``n_samples`` is odd.
    alone : ndarray of shape (n_channels,), float32
        Weight of each channel where a spike is on it alone.
    joined : ndarray of shape (n_channels, n_channels), float32
        Weights of the channels around each one, in its column, where they see the spike too.
    """

    shape: np.ndarray
    alone: np.ndarray
    joined: np.ndarray

    @property
    def margin(self) -> int:
        """Samples at each end of the traces for which there is no fit."""
        return len(self.shape) // 2

    def apply(self, traces: np.ndarray) -> np.ndarray:
        """Fit of the shape on each channel alone or with its neighbours, whichever is larger.

        Parameters
        ----------
        traces : ndarray of shape (n_samples, n_channels), float32
            Whitened, noise units.

        Returns
        -------
        ndarray of shape (n_samples, n_channels), float32
            In units of its own noise, with the sign of the spike; 0 in the margin.
        """
        course = _correlate(traces, self.shape)
        best: np.ndarray = course * self.alone
        _keep_larger(best, course @ self.joined)
        return best


def measure_matched_filter(
    recording: Recording,
    preprocessor: Preprocessor,
    distances: np.ndarray,
    params: DetectParams,
    run: RunParams,
) -> MatchedFilter:
    """Measure the usual shape of a spike, and what noise makes of it.

    Parameters
    ----------
    recording, preprocessor
        Where to look.
    distances : ndarray of shape (n_channels, n_channels)
        µm.
    params : DetectParams
    run : RunParams

    Returns
    -------
    MatchedFilter
        Of a single sample, where fewer than ``MIN_SHAPES`` spikes stand out.

    Notes
    -----
    White noise on so many samples and channels adds up to less than a spike does that is seen on all of
    them: the fit of a spike stands out of its noise by 1.3 times more than the spike's peak on one channel,
    and by 1.5 to 1.9 times more when its neighbours see it too. SpikeInterface's ``matched_filtering`` does
    the same (Yger et al. 2018, eLife 7:e34518, on templates; here on one usual shape).
    """
    fs = recording.sampling_frequency
    half = to_samples(HALF_MS, fs)
    near, sweep = distances <= params.radius_um, to_samples(params.exclude_ms, fs)
    blocks = spread_blocks(cut_blocks(recording.segments, fs), SHAPE_BLOCKS)

    def walk(look_at: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        def work(block: Block, raw: np.ndarray) -> np.ndarray:
            return look_at(preprocessor.whiten(preprocessor.filter(raw, block)))

        return np.concatenate(list(map_blocks(work, recording, blocks, margin=preprocessor.margin, run=run)))

    found = walk(lambda traces: _cut_shapes(traces, near, sweep, half, params.peak_sign))
    if len(found) >= MIN_SHAPES:
        shape = np.median(found, axis=0).astype(np.float32)
    else:
        shape = (np.arange(-half, half + 1) == 0).astype(np.float32)
    # read twice, as whitened traces of many channels would fill the memory
    thinned = walk(lambda traces: _correlate(traces, shape)[half : len(traces) - half : STRIDE])
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        joined = np.exp(-0.5 * (distances / WIDTH_UM) ** 2).astype(np.float32)
        joined[joined < NO_WEIGHT] = 0
        joined /= measure_noise(thinned @ joined)
    return MatchedFilter(shape, 1 / measure_noise(thinned), joined)


def _cut_shapes(traces: np.ndarray, near: np.ndarray, sweep: int, half: int, peak_sign: str) -> np.ndarray:
    """Each large spike on its channel, 1 at the peak, (n_spikes, 2 half + 1)."""
    margin = max(half, sweep)
    peaks = find_peaks(
        traces[margin - sweep : len(traces) - margin + sweep],
        threshold=SHAPE_THRESHOLD,
        neighbors=near,
        exclude_sweep=sweep,
        peak_sign=peak_sign,
    )
    steps = peaks.sample_index[:, None] + margin - sweep + np.arange(-half, half + 1)
    shapes: np.ndarray = traces[steps, peaks.channel_index[:, None]] / peaks.amplitude[:, None]
    return shapes


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _correlate(traces, shape):  # type: ignore[no-untyped-def]
    """Sum over the shape around each sample, 0 where it would reach beyond the traces."""
    num_samples, num_channels = traces.shape
    half = len(shape) // 2
    sums = np.zeros((num_samples, num_channels), dtype=np.float32)
    for t in range(half, num_samples - half):
        for k in range(len(shape)):
            for c in range(num_channels):
                sums[t, c] += shape[k] * traces[t - half + k, c]
    return sums


@numba.njit(cache=True, nogil=True)
def _keep_larger(best, rival):  # type: ignore[no-untyped-def]
    """Replace each value by the rival's where that is larger without its sign."""
    for t in range(best.shape[0]):
        for c in range(best.shape[1]):
            if abs(rival[t, c]) > abs(best[t, c]):
                best[t, c] = rival[t, c]
