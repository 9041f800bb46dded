"""Spikes to templates: the mean waveform of each unit, on all channels of its shank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from accm_core.params import RunParams
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import LANCZOS_TAPS, lanczos_kernel
from accm_core.types import Recording

MAX_SPIKES = 500
"""Averaged for a template, evenly spread over the recording; its noise is then under 5 % of a spike's."""
MIN_CHANNEL_VISIBILITY = 0.5
"""A template is set to zero on channels where it stays below this height (noise units)."""
NOISE_ERRORS, SPREAD_ERRORS = 4.0, 2.5
"""Standard errors of the mean that it must have, too: those of noise alone, and those of the spikes as they
differ. One large spike of another unit nearby adds one of the latter, however many spikes there are."""


@dataclass(frozen=True)
class Window:
    """Samples before the peak, and in all."""

    num_before: int
    num_samples: int

    @property
    def margin(self) -> int:
        """Samples that must be at hand around a peak."""
        return self.num_samples + LANCZOS_TAPS


@dataclass(frozen=True)
class WaveformSums:
    """Sums over the spikes of some units in one block.

    Attributes
    ----------
    units : ndarray of shape (n,), int64
    total, total_square : ndarray of shape (n, n_samples, n_channels), float32
    counts : ndarray of shape (n,), int64
    """

    units: np.ndarray
    total: np.ndarray
    total_square: np.ndarray
    counts: np.ndarray


def sum_waveforms(
    traces: np.ndarray,
    sample_index: np.ndarray,
    offset: np.ndarray,
    unit_index: np.ndarray,
    window: Window,
    *,
    scale: np.ndarray | None = None,
    templates: np.ndarray | None = None,
) -> WaveformSums:
    """Sum the waveforms of each unit in one stretch of traces.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        With ``window.margin`` samples around each spike.
    sample_index : ndarray of shape (n_spikes,), int64
        Within ``traces``.
    offset : ndarray of shape (n_spikes,), float32
    unit_index : ndarray of shape (n_spikes,), int64
    window : Window
    scale : ndarray of shape (n_spikes,), float32, optional
    templates : ndarray of shape (n_units, n_samples, n_channels), float32, optional
        With both: the traces lack each spike, its unit's template times its scale, and it is put back.
    """
    units, inverse, counts = np.unique(unit_index, return_inverse=True, return_counts=True)
    total = np.zeros((len(units), window.num_samples, traces.shape[1]), dtype=np.float32)
    total_square = np.zeros_like(total)
    lacking = np.zeros((0, *total.shape[1:]), dtype=np.float32)
    if scale is not None and templates is not None:
        lacking = templates[units]
    else:
        scale = np.zeros(0, dtype=np.float32)
    _add_windows(
        traces, sample_index, offset, inverse, scale, lacking, window.num_before, total, total_square
    )
    return WaveformSums(units, total, total_square, counts)


@numba.njit(cache=True, nogil=True)
def _add_windows(traces, sample_index, offset, rows, scale, lacking, num_before, total, total_square):  # type: ignore[no-untyped-def]
    """Add each spike, cut as `cut_snippets` does, to its unit's row; all channels of a sample at once."""
    num_samples, num_channels = total.shape[1:]
    values = np.empty(num_channels, dtype=np.float32)
    for n in range(len(rows)):
        row = rows[n]
        base = int(np.floor(sample_index[n] + offset[n]))
        kernel = lanczos_kernel(sample_index[n] + offset[n] - base)
        first = base - num_before - (LANCZOS_TAPS - 1)
        for t in range(num_samples):
            values[:] = 0.0
            for k in range(2 * LANCZOS_TAPS):
                source = traces[first + t + k]
                for c in range(num_channels):
                    values[c] += kernel[k] * source[c]
            if len(lacking):
                for c in range(num_channels):
                    values[c] += scale[n] * lacking[row, t, c]
            for c in range(num_channels):
                total[row, t, c] += values[c]
                total_square[row, t, c] += values[c] * values[c]


class WaveformAverage:
    """Collects the sums of the blocks, in order, into mean and standard deviation."""

    def __init__(self, num_units: int, num_samples: int, num_channels: int) -> None:
        self.total = np.zeros((num_units, num_samples, num_channels))
        self.total_square = np.zeros_like(self.total)
        self.counts = np.zeros(num_units, dtype=np.int64)

    def add(self, sums: WaveformSums) -> None:
        """Add one block."""
        self.total[sums.units] += sums.total
        self.total_square[sums.units] += sums.total_square
        self.counts[sums.units] += sums.counts

    def give(self, source: int, target: int, *, delay: int) -> None:
        """Move the sums of unit ``source``, ``delay`` samples later, over to ``target``."""
        for sums in (self.total, self.total_square):
            sums[target] += np.roll(sums[source], delay, axis=0)
            sums[source] = 0
        self.counts[target] += self.counts[source]
        self.counts[source] = 0

    def replace(self, units: np.ndarray, other: "WaveformAverage") -> None:
        """Take the sums of some units (mask) from another average."""
        for name in ("total", "total_square", "counts"):
            getattr(self, name)[units] = getattr(other, name)[units]

    def mean(self) -> np.ndarray:
        """Mean waveforms, (n_units, n_samples, n_channels), float32; zero for a unit without spikes."""
        return (self.total / self._divisor()).astype(np.float32)

    def std(self) -> np.ndarray:
        """Standard deviation over spikes, same shape."""
        divisor = self._divisor()
        variance = self.total_square / divisor - (self.total / divisor) ** 2
        return np.sqrt(np.maximum(variance, 0)).astype(np.float32)

    def least_height(self) -> np.ndarray:
        """Height from which on the mean of whitened waveforms is not by chance, same shape, noise units."""
        errors: np.ndarray = np.maximum(NOISE_ERRORS, SPREAD_ERRORS * self.std())
        return errors / np.sqrt(self._divisor())

    def _divisor(self) -> np.ndarray:
        return np.maximum(self.counts, 1)[:, None, None]


def average_clusters(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    sample_index: np.ndarray,
    offset: np.ndarray,
    labels: np.ndarray,
    *,
    window: Window,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> WaveformAverage:
    """Average the whitened waveforms of each cluster, in noise units.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to cut.
    sample_index : ndarray of shape (n_spikes,), int64
        In ascending order.
    offset : ndarray of shape (n_spikes,), float32
        Of the extremum from its sample.
    labels : ndarray of shape (n_spikes,), int64
        From 0; -1 for none.
    window : Window
    run : RunParams
    on_block : callable, optional
        Called with the share that is done.

    Returns
    -------
    WaveformAverage
        Of at most ``MAX_SPIKES`` spikes of each cluster, evenly spread.
    """
    num_clusters = int(labels.max(initial=-1)) + 1
    rows = _spread_spikes(labels, num_clusters)
    sample_index, offset, labels = sample_index[rows], offset[rows], labels[rows]
    margin = window.margin

    def sum_block(block: Block, raw: np.ndarray) -> WaveformSums:
        low, high = np.searchsorted(sample_index, [block.start, block.stop])
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        local = sample_index[low:high] - block.start + margin
        return sum_waveforms(traces, local, offset[low:high], labels[low:high], window)

    average = WaveformAverage(num_clusters, window.num_samples, len(preprocessor.channels))
    for sums in map_blocks(
        sum_block, recording, blocks, margin=preprocessor.margin + margin, run=run, on_block=on_block
    ):
        average.add(sums)
    return average


def find_lags(templates: np.ndarray, num_before: int, max_lag: int) -> np.ndarray:
    """Find the templates whose largest extremum is far from ``num_before``, and how far.

    Peaks found on a side lobe of a larger unit's waveform give such templates.

    Parameters
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Noise units.
    num_before : int
        Samples before the peak.
    max_lag : int
        Samples that are not far.

    Returns
    -------
    ndarray of shape (n_units,), int64
        Samples from ``num_before`` to the extremum; 0 where it is not far.
    """
    largest = np.ptp(templates, axis=1).argmax(axis=1)
    courses = templates[np.arange(len(templates)), :, largest]
    lags = np.abs(courses).argmax(axis=1) - num_before
    return np.where(np.abs(lags) > max_lag, lags, 0)


def center_templates(templates: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Move templates to have their extremum where it belongs; centred, a side lobe is seen to be its unit.

    Parameters
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
    lags : ndarray of shape (n_units,), int64
        See `find_lags`.

    Returns
    -------
    ndarray of the shape of ``templates``
        What moves in is zero.
    """
    centered = templates.copy()
    for unit in np.flatnonzero(lags):
        lag = int(lags[unit])
        centered[unit] = np.roll(templates[unit], -lag, axis=0)
        centered[unit, slice(-lag, None) if lag > 0 else slice(0, -lag)] = 0
    return centered


def silence_channels(templates: np.ndarray, least: np.ndarray | float = 0.0) -> np.ndarray:
    """Set templates to zero on channels where they do not stand out.

    Parameters
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Noise units.
    least : ndarray of the same shape, or float
        Height that a value must have, too; see `WaveformAverage.least_height`.
    """
    stands_out = np.abs(templates) >= np.maximum(least, MIN_CHANNEL_VISIBILITY)
    return np.where(stands_out.any(axis=1, keepdims=True), templates, np.float32(0.0))


def _spread_spikes(labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """Rows of at most ``MAX_SPIKES`` spikes of each cluster, evenly spread, in ascending order."""
    rows = [np.zeros(0, dtype=np.int64)]
    for cluster in range(num_clusters):
        own = np.flatnonzero(labels == cluster)
        if len(own) > MAX_SPIKES:
            own = own[np.linspace(0, len(own) - 1, MAX_SPIKES).round().astype(int)]
        rows.append(own)
    return np.sort(np.concatenate(rows))
