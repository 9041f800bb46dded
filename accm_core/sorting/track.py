"""Follow units whose shape changes slowly, on shanks too small to see where the tissue moves to.

A drifting neuron's spikes are cut into several units that take turns, and each has one template for a shape
that changes. Here units that are one neuron on the move are joined, and each unit's template is followed from
stretch to stretch; what is matched with these gives better ones, a few times over.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from accm_core.params import MatchParams, MergeParams, RunParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import cut_snippets
from accm_core.sorting.link import Spikes, cut_jumps, link_units
from accm_core.sorting.match import Matches, TemplateBank, match_templates
from accm_core.sorting.moving import MovingBank, average_bins, smooth_course
from accm_core.sorting.recover import find_overlaps, first_of_each, measure_scale_std
from accm_core.types import Recording

logger = logging.getLogger(__name__)

STRETCH_BLOCKS = 10
"""Blocks looked at in a stretch, for which a template stays: tissue moves by a few micrometres meanwhile."""
BINS_PER_STRETCH = 2
"""Shorter bins in which units are compared while they meet."""
NUM_ROUNDS = 4
"""Of matching, joining and following."""
MIN_STRAY = 4.0
"""Mean squared distance of a template from its mean, over time, that matters: two noise levels."""
MIN_SPIKES = 20
"""Fewer spikes show no course: the template stays."""
MAX_VALUES = 16_000_000
"""Of all waveforms kept at once."""


def follow_units(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    bank: TemplateBank,
    params: MatchParams,
    merge: MergeParams,
    *,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> MovingBank | None:
    """Join units that are one moving neuron and follow each template over time.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to look.
    bank : TemplateBank
    params : MatchParams
    merge : MergeParams
    run : RunParams
    on_block : callable, optional
        Called with the share that is done.

    Returns
    -------
    MovingBank or None
        None when the units stay as they are: then ``bank`` is all there is to know.
    """
    if len(bank.energy) == 0:
        return None
    num_stretches = -(-len(blocks) // STRETCH_BLOCKS)
    moving = MovingBank(
        bank,
        np.array([block.start for block in blocks[::STRETCH_BLOCKS]]),
        np.repeat(bank.weights[None], num_stretches, axis=0),
    )
    max_lag = to_samples(merge.max_lag_ms, recording.sampling_frequency)
    for number in range(NUM_ROUNDS):

        def on_share(share: float, number: int = number) -> None:
            if on_block is not None:
                on_block((number + share) / NUM_ROUNDS)

        matches, spikes = _match_blocks(
            recording, preprocessor, blocks, moving, params, max_lag, run=run, on_block=on_share
        )
        scale_std = measure_scale_std(matches, moving.mean, params)
        source = np.arange(len(scale_std))
        if number > 0:
            spikes, source = cut_jumps(spikes, moving.mean)
        linked, unit_of = link_units(spikes, moving.mean, max_lag, recording.sampling_frequency)
        if number == 0 and len(np.unique(unit_of)) == len(unit_of) and not _moves(linked, bank):
            return None
        moving = _follow(moving, linked, unit_of, source, scale_std)
        logger.info("%d units followed", len(moving.mean.energy))
    return moving


def _match_blocks(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    moving: MovingBank,
    params: MatchParams,
    max_lag: int,
    *,
    run: RunParams,
    on_block: Callable[[float], None],
) -> tuple[Matches, Spikes]:
    """Match, and cut out the spikes without overlap, as many of each unit in each block as memory allows."""
    bank = moving.mean
    refractory = to_samples(params.refractory_ms, recording.sampling_frequency)
    num_samples, num_channels = bank.num_samples + 2 * max_lag, bank.weights.shape[2]
    most = MAX_VALUES // (num_samples * num_channels)
    quota = -(-most // (len(blocks) * len(bank.energy)))
    channels = np.arange(num_channels)

    def work(block: Block, raw: np.ndarray) -> tuple[Matches, Matches, np.ndarray]:
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        local = moving.at(block.start)
        found = match_templates(traces, local, params, refractory=refractory)
        inside = (found.sample_index >= bank.margin) & (found.sample_index < len(traces) - bank.margin)
        lone = inside & ~find_overlaps(found, local, bank.num_samples)
        kept = found.select(first_of_each(found.unit_index, lone, quota))
        waveforms = cut_snippets(
            traces,
            kept.sample_index,
            kept.offset,
            np.broadcast_to(channels, (len(kept), num_channels)),
            num_before=bank.num_before + max_lag,
            num_samples=num_samples,
        )
        delay = block.start - bank.margin
        return found.select(inside).move(delay), kept.move(delay), waveforms

    margin = preprocessor.margin + bank.margin
    parts = list(map_blocks(work, recording, blocks, margin=margin, run=run, on_block=on_block))
    matches = Matches.join([part[0] for part in parts])
    kept = Matches.join([part[1] for part in parts])
    block_of = np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])
    per_bin = STRETCH_BLOCKS // BINS_PER_STRETCH
    spikes = Spikes(
        unit_index=kept.unit_index,
        bin_index=block_of // per_bin,
        delay=np.zeros(len(kept), dtype=np.int64),
        waveforms=np.concatenate([part[2] for part in parts]),
        trains=tuple(matches.sample_index[matches.unit_index == unit] for unit in range(len(bank.energy))),
        kept_samples=kept.sample_index,
        num_bins=-(-len(blocks) // per_bin),
        bins_per_stretch=BINS_PER_STRETCH,
        max_lag=max_lag,
    )
    return matches, spikes


def _follow(
    moving: MovingBank, spikes: Spikes, unit_of: np.ndarray, source: np.ndarray, scale_std: np.ndarray
) -> MovingBank:
    """The bank of the joined units, each template followed over time; with few spikes it stays as it is."""
    bank = moving.mean
    weights, means, widths = [], [], []
    for unit in np.unique(unit_of):
        rows = spikes.unit_index == unit
        course = moving.weights[:, source[unit]].astype(np.float64)
        mean = bank.weights[source[unit]]
        if rows.sum() >= MIN_SPIKES:
            points = spikes.project_unit(unit, bank)
            in_stretches = average_bins(points, spikes.stretch[rows], spikes.num_stretches)
            course = smooth_course(in_stretches).reshape(course.shape)
            mean = in_stretches.overall.reshape(mean.shape)
        weights.append(course)
        means.append(mean)
        widths.append(scale_std[source[unit_of == unit]].max())
    return MovingBank(
        bank.reweigh(np.array(means), np.array(widths)),
        moving.starts,
        np.stack(weights, axis=1).astype(np.float32),
    )


def _moves(spikes: Spikes, bank: TemplateBank) -> bool:
    """Whether half of the units stray from their mean template: tissue moves all of its neurons."""
    strays = []
    for unit in np.unique(spikes.unit_index):
        rows = spikes.unit_index == unit
        if rows.sum() >= MIN_SPIKES:
            points = spikes.project_unit(unit, bank)
            strays.append(average_bins(points, spikes.stretch[rows], spikes.num_stretches).stray())
    return bool(np.mean(np.array(strays) > MIN_STRAY) >= 0.5) if strays else False
