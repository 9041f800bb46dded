"""Spikes to traces: what matching has explained."""

import numpy as np

from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets
from accm_core.sorting.match import Matches, TemplateBank


def rebuild(
    matches: Matches, bank: TemplateBank, num_samples: int, channels: np.ndarray | None = None
) -> np.ndarray:
    """What the matches explain: the sum of their templates, on all channels or those given.

    Returns
    -------
    ndarray of shape (num_samples, n_channels), float32
    """
    channels = np.arange(bank.templates.shape[2]) if channels is None else channels
    total = np.zeros((num_samples, len(channels)), dtype=np.float32)
    pad = LANCZOS_TAPS + 1
    length = bank.num_samples + 2 * pad
    for unit in np.unique(matches.unit_index):
        own = matches.select(matches.unit_index == unit)
        template = bank.templates[unit][:, channels]
        visible = np.flatnonzero(template.any(axis=0))
        shifted = cut_snippets(
            np.pad(template, ((2 * pad, 2 * pad), (0, 0))),
            np.full(len(own), 2 * pad + bank.num_before),
            -own.offset,
            np.tile(visible, (len(own), 1)),
            num_before=bank.num_before + pad,
            num_samples=length,
        )
        for sample, scale, waveform in zip(own.sample_index, own.scale, shifted, strict=True):
            first = sample - bank.num_before - pad
            low, high = max(first, 0), min(first + length, num_samples)
            if low < high:
                total[low:high, visible] += scale * waveform[low - first : high - first]
    return total
