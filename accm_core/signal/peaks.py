"""Walk the recording once: detect peaks, keep snippets of some of them and of the noise between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from accm_core.params import DetectParams, RunParams, SnippetParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.detect import find_peaks, find_tails
from accm_core.signal.matched import MatchedFilter
from accm_core.signal.motion import PeakDepths, locate_peaks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets
from accm_core.types import Peaks, Recording, Snippets

NOISE_TRIES, MAX_NOISE_TRIES = 60, 18_000
"""Places drawn for snippets of noise in each block and in all; those near a peak are given up."""

TAIL_RATIO, TAIL_UM, TAIL_MS = 4.0, 250.0, (1.0, 3.0)
"""A peak so many times smaller than another, so near it and so shortly before or after it may be its tail."""

MAX_DEPTHS = 2000
"""Peaks of each block whose depth is kept."""


@dataclass(frozen=True)
class Collected:
    """What one walk over the blocks gives.

    Attributes
    ----------
    snippets : Snippets
    noise : ndarray of shape (n_noise, n_samples, n_slots), float32
        Snippets in which nothing exceeds the threshold.
    depths : PeakDepths
        Of all peaks, not only of those whose snippet is kept.
    """

    snippets: Snippets
    noise: np.ndarray
    depths: PeakDepths


def collect_snippets(
    recording: Recording,
    preprocessor: Preprocessor,
    matched: MatchedFilter,
    blocks: Sequence[Block],
    distances: np.ndarray,
    neighborhoods: np.ndarray,
    depth_of: np.ndarray,
    *,
    detect: DetectParams,
    snippet: SnippetParams,
    max_spikes: int,
    seed: int,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> Collected:
    """Detect peaks in the blocks and cut snippets.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to look.
    matched : MatchedFilter
        Whose fit has the peaks.
    distances : ndarray of shape (n_channels, n_channels)
        µm.
    neighborhoods : ndarray of shape (n_channels, n_slots), int64
        Channels of a snippet around each channel.
    depth_of : ndarray of shape (n_channels,), float64
        Of each channel along the shank, µm.
    detect, snippet : params
    max_spikes : int
        Kept at most, the same number from each block.
    seed : int
    run : RunParams
    on_block : callable, optional

    Returns
    -------
    Collected
    """
    fs = recording.sampling_frequency
    num_before = to_samples(snippet.ms_before, fs)
    num_samples = num_before + to_samples(snippet.ms_after, fs)
    sweep = to_samples(detect.exclude_ms, fs)
    near = distances <= detect.radius_um
    reached, tail_reach = distances <= TAIL_UM, [to_samples(ms, fs) for ms in TAIL_MS]
    lead = max(tail_reach)
    margin = num_samples + LANCZOS_TAPS + sweep + lead + matched.margin
    quota = -(-max_spikes // max(len(blocks), 1))
    noise_quota = min(NOISE_TRIES, -(-MAX_NOISE_TRIES // max(len(blocks), 1)))

    def work(block: Block, raw: np.ndarray) -> tuple[Peaks, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, block.start])
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        start = margin - lead - sweep
        peaks = find_peaks(
            matched.apply(traces)[start : len(traces) - start],
            threshold=detect.threshold,
            neighbors=near,
            exclude_sweep=sweep,
            peak_sign=detect.peak_sign,
        )
        heights = np.abs(peaks.amplitude)
        tails = find_tails(peaks.sample_index, peaks.channel_index, heights, reached, *tail_reach, TAIL_RATIO)
        local = peaks.sample_index + start
        kept = np.flatnonzero(~tails & (local >= margin) & (local < len(traces) - margin))
        some = kept[:MAX_DEPTHS]
        depths = locate_peaks(
            traces, local[some], peaks.channel_index[some], neighborhoods, depth_of.astype(np.float64), sweep
        )
        heights = heights[some]
        if len(kept) > quota:
            kept = np.sort(rng.choice(kept, quota, replace=False))
        peaks, local = peaks.select(kept), local[kept]

        def cut(samples: np.ndarray, offsets: np.ndarray, channels: np.ndarray) -> np.ndarray:
            return cut_snippets(
                traces,
                samples,
                offsets,
                neighborhoods[channels],
                num_before=num_before,
                num_samples=num_samples,
            )

        waveforms = cut(local, peaks.offset, peaks.channel_index)
        places = rng.integers(margin, len(traces) - margin, noise_quota)
        noise = cut(places, rng.random(noise_quota), rng.integers(0, traces.shape[1], noise_quota))
        noise = noise[np.abs(noise).max(axis=(1, 2)) < detect.threshold]
        peaks = Peaks(local - margin + block.start, peaks.channel_index, peaks.amplitude, peaks.offset)
        return peaks, waveforms, noise, depths, heights

    parts = list(
        map_blocks(work, recording, blocks, margin=preprocessor.margin + margin, run=run, on_block=on_block)
    )
    peaks = Peaks(
        *(
            np.concatenate([getattr(part[0], name) for part in parts])
            for name in ("sample_index", "channel_index", "amplitude", "offset")
        )
    )
    waveforms, noise, depths, heights = (np.concatenate([part[k] for part in parts]) for k in (1, 2, 3, 4))
    block_index = np.repeat(np.arange(len(parts)), [len(part[3]) for part in parts])
    return Collected(
        Snippets(waveforms, neighborhoods[peaks.channel_index], peaks, num_before),
        noise,
        PeakDepths(block_index, depths, heights),
    )
