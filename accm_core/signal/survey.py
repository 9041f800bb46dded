"""A first look at a shank: its noise, its drift, and snippets of spikes and of noise to learn from."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from accm_core.params import SorterParams
from accm_core.signal.chunks import Block, cut_blocks, spread_blocks
from accm_core.signal.geometry import channel_distances, nearest_channels
from accm_core.signal.matched import measure_matched_filter
from accm_core.signal.motion import Motion, can_move, estimate_motion, shank_axis
from accm_core.signal.peaks import Collected, collect_snippets
from accm_core.signal.preprocess import Preprocessor, measure_preprocessor
from accm_core.types import Recording, Snippets

logger = logging.getLogger(__name__)

LEARN_BLOCKS = 900
"""Seconds of the recording, evenly spread, on which units are learned; spikes are matched in all of it."""


@dataclass(frozen=True)
class Survey:
    """What is known of a shank before anything is learned.

    Attributes
    ----------
    preprocessor : Preprocessor
    neighborhoods : ndarray of shape (n_channels, n_slots), int64
        Channels of a snippet around each channel.
    snippets : Snippets
    noise : ndarray of shape (n_noise, n_samples, n_slots), float32
        Snippets in which nothing exceeds the threshold.
    blocks : list of Block
        Of the recording that were looked at.
    """

    preprocessor: Preprocessor
    neighborhoods: np.ndarray
    snippets: Snippets
    noise: np.ndarray
    blocks: list[Block]


def survey_shank(
    recording: Recording,
    channels: np.ndarray,
    params: SorterParams,
    *,
    seed: int,
    report: Callable[[str], Callable[[float], None]],
    device: str | None = None,
) -> Survey:
    """Measure the noise, detect peaks and cut snippets; again with the drift corrected, if there is any.

    Parameters
    ----------
    recording : Recording
    channels : ndarray of shape (n_channels,), int64
        Of the shank.
    params : SorterParams
    seed : int
    report : callable
        Given 'noise', 'detect' and 'motion', returns what is called with the share of it that is done.
    device : str, optional
        GPU on which to filter; None for this machine's cores.

    Returns
    -------
    Survey
    """
    blocks = spread_blocks(cut_blocks(recording.segments, recording.sampling_frequency), LEARN_BLOCKS)
    all_distances = channel_distances(recording.channel_locations[channels], recording.has_geometry)

    def measure(motion: Motion | None) -> Preprocessor:
        return measure_preprocessor(recording, channels, all_distances, params.signal, motion, device)

    preprocessor = measure(None)
    report("noise")(1.0)
    good = np.isin(channels, preprocessor.channels)
    distances = all_distances[np.ix_(good, good)]
    locations = recording.channel_locations[preprocessor.channels]
    neighborhoods = nearest_channels(distances, params.snippet.num_channels, params.snippet.radius_um)

    def walk(preprocessor: Preprocessor, stage: str) -> Collected:
        return collect_snippets(
            recording,
            preprocessor,
            measure_matched_filter(recording, preprocessor, distances, params.detect, params.run),
            blocks,
            distances,
            neighborhoods,
            locations[:, shank_axis(locations)],
            detect=params.detect,
            snippet=params.snippet,
            max_spikes=params.learn.max_spikes,
            seed=seed,
            run=params.run,
            on_block=report(stage),
        )

    collected = walk(preprocessor, "detect")
    if params.motion.correct == "auto" and can_move(locations, recording.has_geometry):
        centers = np.array([block.middle for block in blocks])
        motion = estimate_motion(collected.depths, centers, locations)
        if motion is not None:
            logger.info("drift of %.0f µm", np.ptp(motion.displacement_um, axis=0).max())
            preprocessor = measure(motion)
            collected = walk(preprocessor, "motion")
            # snippets cut with the first estimate cluster as well; what is matched needs the better one
            preprocessor = measure(estimate_motion(collected.depths, centers, locations, before=motion))
    report("motion")(1.0)
    return Survey(preprocessor, neighborhoods, collected.snippets, collected.noise, blocks)
