"""Spikes to templates: the mean waveform of each unit, on all channels of its shank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from accm_core.params import RunParams
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets
from accm_core.types import Recording

MAX_SPIKES = 500
"""Averaged for a template, evenly spread over the recording; its noise is then under 5 % of a spike's."""


@dataclass(frozen=True)
class Window:
    """Samples before the peak, and in all."""

    num_before: int
    num_samples: int

    @property
    def margin(self) -> int:
        """Samples that must be at hand around a peak."""
        return self.num_samples + LANCZOS_TAPS


def spread_spikes(unit_index: np.ndarray, num_units: int, max_spikes: int = MAX_SPIKES) -> np.ndarray:
    """Rows of at most ``max_spikes`` spikes of each unit, evenly spread, in ascending order."""
    rows = []
    for unit in range(num_units):
        own = np.flatnonzero(unit_index == unit)
        if len(own) > max_spikes:
            own = own[np.linspace(0, len(own) - 1, max_spikes).round().astype(int)]
        rows.append(own)
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, dtype=np.int64)


def average_waveforms(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    sample_index: np.ndarray,
    offset: np.ndarray,
    unit_index: np.ndarray,
    num_units: int,
    *,
    window: Window,
    whitened: bool,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the waveforms around spikes.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to cut.
    sample_index : ndarray of shape (n_spikes,), int64
        In ascending order; spikes outside the blocks are passed over.
    offset : ndarray of shape (n_spikes,), float32
        Of the extremum from its sample.
    unit_index : ndarray of shape (n_spikes,), int64
    num_units : int
    window : Window
    whitened : bool
        Whitened noise units if true, else band-passed µV.
    run : RunParams
    on_block : callable, optional
        Called with the share that is done.

    Returns
    -------
    mean, std : ndarray of shape (n_units, n_samples, n_channels), float32
        Zero for a unit without spikes.
    """
    num_channels = len(preprocessor.channels)
    margin = window.margin

    def sum_block(block: Block, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        low, high = np.searchsorted(sample_index, [block.start, block.stop])
        units, inverse = np.unique(unit_index[low:high], return_inverse=True)
        shape = (len(units), window.num_samples, num_channels)
        sums, squares = np.zeros(shape), np.zeros(shape)
        if high > low:
            traces = preprocessor.filter(raw)
            if whitened:
                traces = preprocessor.whiten(traces)
            channels = np.broadcast_to(np.arange(num_channels), (high - low, num_channels))
            snippets = cut_snippets(
                traces,
                sample_index[low:high] - block.start + margin,
                offset[low:high],
                channels,
                num_before=window.num_before,
                num_samples=window.num_samples,
            )
            for row, unit in enumerate(inverse):
                sums[unit] += snippets[row]
                squares[unit] += snippets[row] ** 2
        return units, sums, squares, np.bincount(inverse, minlength=len(units))

    total = np.zeros((num_units, window.num_samples, num_channels))
    total_square = np.zeros_like(total)
    counts = np.zeros(num_units)
    for units, sums, squares, count in map_blocks(
        sum_block, recording, blocks, margin=preprocessor.margin + margin, run=run, on_block=on_block
    ):
        total[units] += sums
        total_square[units] += squares
        counts[units] += count
    divisor = np.maximum(counts, 1)[:, None, None]
    mean = total / divisor
    std = np.sqrt(np.maximum(total_square / divisor - mean**2, 0))
    return mean.astype(np.float32), std.astype(np.float32)
