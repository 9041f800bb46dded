"""Follow units whose shape changes slowly, where correcting drift in space cannot mend that.

Clusters of moving neurons give each unit a template for each place of the tissue, smooth along its way. What
is matched with these gives better ones; units that are one neuron are joined, those of several taken apart;
and again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from accm_core.params import MatchParams, MergeParams, RunParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import cut_snippets
from accm_core.sorting.cluster import take_apart
from accm_core.sorting.course import average_bins, smooth_course, unit_length
from accm_core.sorting.link import Spikes, link_units
from accm_core.sorting.match import Matches, TemplateBank, match_templates
from accm_core.sorting.moving import MovingBank
from accm_core.sorting.place import Place
from accm_core.sorting.recover import find_overlaps, first_of_each, measure_log_rate, measure_scale_std
from accm_core.sorting.sizes import judge_sizes
from accm_core.sorting.split import MIN_WAVEFORMS, find_second
from accm_core.sorting.superfluous import find_superfluous
from accm_core.sorting.templates import NOISE_ERRORS, find_lags, silence_channels
from accm_core.types import Peaks, Recording

logger = logging.getLogger(__name__)

BLOCKS_PER_BIN = 5
"""Blocks in a bin of time, for which it is measured where the tissue is."""
NUM_PLACES = 60
"""Places of the tissue, each with its templates: the largest change by a noise level or two in between."""
NUM_ROUNDS = 3
"""Of matching, joining, taking apart and following; in the last nothing is taken apart."""
MAX_LIKENESS = 0.9
"""Cosine between the difference of two parts of a unit and its template, above which they are the larger and
the smaller spikes of one neuron that fires in bursts."""
NUM_STRETCHES = 6
"""Of the way; a template is zero on channels where it stands out of the noise in none of them."""
MIN_SPIKES = 20
"""Fewer spikes show no course: the template stays."""
LIKELY_OWN = 0.8
"""Probability that a spike is its unit's own, above which it is averaged."""
LONE_MS = 1.0
"""Peaks nearer to each other than this are not averaged."""
MAX_VALUES = 16_000_000
"""Of all waveforms kept at once."""
_Finder = Callable[[Block, np.ndarray], tuple[Matches, np.ndarray]]
"""Spikes in a block's traces, margins included, and which of them stand alone."""


def bin_times(sample_index: np.ndarray, blocks: Sequence[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Bin of time that each spike of some blocks lies in, (n_spikes,), and the bins' middles, (n_bins,)."""
    starts = np.array([block.start for block in blocks])
    block = np.searchsorted(starts, sample_index, side="right") - 1
    parts = [blocks[k : k + BLOCKS_PER_BIN] for k in range(0, len(blocks), BLOCKS_PER_BIN)]
    centers = [np.mean([block.middle for block in part]) for part in parts]
    return block // BLOCKS_PER_BIN, np.array(centers)


def follow_units(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    bank: TemplateBank,
    peaks: Peaks,
    unit_of_peak: np.ndarray,
    place: Place,
    params: MatchParams,
    merge: MergeParams,
    *,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> MovingBank:
    """Follow each unit's template along the tissue's way, join units that are one moving neuron, part others.

    What is left out in the end are templates without which their spikes are explained as well.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to look.
    bank : TemplateBank
        Mean template of each unit.
    peaks : Peaks
    unit_of_peak : ndarray of shape (n_peaks,), int64
        From clustering; -1 for none.
    place : Place
        Where the tissue is over time.
    params : MatchParams
    merge : MergeParams
    run : RunParams
    on_block : callable, optional
        Called with the share that is done.
    """
    max_lag = to_samples(merge.max_lag_ms, recording.sampling_frequency)
    bank, find = _read_peaks(bank, peaks, unit_of_peak, max_lag, recording.sampling_frequency)
    observed = sum(block.stop - block.start for block in blocks)
    moving = MovingBank(bank, place, np.repeat(bank.weights[None], NUM_PLACES, axis=0))
    scale_std = np.full(len(bank.energy), params.scale_std)
    refractory = to_samples(params.refractory_ms, recording.sampling_frequency)

    def report(number: int) -> Callable[[float], None]:
        return lambda share: None if on_block is None else on_block((number + share) / (NUM_ROUNDS + 2))

    for number in range(NUM_ROUNDS + 1):
        matches, kept, spikes = _collect_spikes(
            recording, preprocessor, blocks, moving, max_lag, find, run=run, on_block=report(number)
        )
        if number > 0:  # peaks have no size that would tell
            sizes = judge_sizes(kept, moving.mean, moving.energy_at(kept), moving.energy_over_time, params)
            spikes = spikes.select(sizes.own > LIKELY_OWN)
            scale_std = measure_scale_std(matches, moving.mean, params)
        counts = np.bincount(matches.unit_index, minlength=len(scale_std))
        linked, unit_of = link_units(spikes, moving.mean, max_lag, observed, recording.sampling_frequency)
        if 0 < number < NUM_ROUNDS:  # clusters of peaks were taken apart before
            linked, whole = _take_apart(linked, moving.mean)
            unit_of = np.r_[unit_of, len(unit_of) + np.arange(len(whole))]
            scale_std, counts = np.r_[scale_std, scale_std[whole]], np.r_[counts, counts[whole]]
        counts = np.bincount(unit_of, counts)[unit_of]
        log_rate = measure_log_rate(counts, observed / recording.sampling_frequency)
        moving = _follow(moving, linked, unit_of, scale_std, log_rate)
        find = _matcher(moving, params, refractory)
        logger.info("%d units followed", len(moving.mean.energy))
    _, number_of = np.unique(unit_of, return_inverse=True)
    superfluous = find_superfluous(
        recording,
        preprocessor,
        blocks,
        moving.mean,
        replace(matches, unit_index=number_of[matches.unit_index]),
        params,
        max_lag=to_samples(params.ms_before, recording.sampling_frequency),
        run=run,
        moving=moving,
        on_block=report(NUM_ROUNDS + 1),
    )
    return moving.select(~superfluous)


def _read_peaks(
    bank: TemplateBank, peaks: Peaks, unit_of_peak: np.ndarray, max_lag: int, sampling_frequency: float
) -> tuple[TemplateBank, _Finder]:
    """The bank of the units that peaks show, and what finds their peaks in a block.

    Peaks on a side lobe move to where the template's extremum is; a unit of such peaks is left out when
    nearly all of them have another beside them, which is the extremum's own.
    """
    far = np.diff(peaks.sample_index) > to_samples(LONE_MS, sampling_frequency)
    is_lone = np.r_[True, far] & np.r_[far, True]
    lags = find_lags(bank.templates, bank.num_before, max_lag)
    num_lone = np.bincount(unit_of_peak[is_lone & (unit_of_peak >= 0)], minlength=len(lags))
    is_unit = (lags == 0) | (num_lone >= MIN_SPIKES)
    units = np.flatnonzero(is_unit | ~is_unit.any())
    rows = np.flatnonzero(np.isin(unit_of_peak, units))
    times = peaks.sample_index[rows] + lags[unit_of_peak[rows]]
    order = np.argsort(times, kind="stable")
    times, rows = times[order], rows[order]

    def find(block: Block, traces: np.ndarray) -> tuple[Matches, np.ndarray]:
        inside = slice(*np.searchsorted(times, [block.start, block.stop]))
        own = rows[inside]
        ones = np.ones(len(own), dtype=np.float32)
        at = times[inside] - block.start + bank.margin
        number = np.searchsorted(units, unit_of_peak[own])
        return Matches(at, peaks.offset[own], number, ones, ones, ones), is_lone[own]

    return bank.select(units), find


def _matcher(moving: MovingBank, params: MatchParams, refractory: int) -> _Finder:
    """Finds a block's spikes by matching."""

    def find(block: Block, traces: np.ndarray) -> tuple[Matches, np.ndarray]:
        bank = moving.at(block.middle)
        found = match_templates(traces, bank, params, refractory=refractory)
        return found, ~find_overlaps(found, bank, bank.num_samples)

    return find


def _collect_spikes(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    moving: MovingBank,
    max_lag: int,
    find: _Finder,
    *,
    run: RunParams,
    on_block: Callable[[float], None],
) -> tuple[Matches, Matches, Spikes]:
    """Find spikes, and cut out those that stand alone: of each unit in each block as memory allows.

    Returns all that were found, those that were cut out, and their waveforms.
    """
    bank = moving.mean
    num_samples, num_channels = bank.num_samples + 2 * max_lag, bank.weights.shape[2]
    most = MAX_VALUES // (num_samples * num_channels)
    quota = -(-most // (len(blocks) * len(bank.energy)))
    channels = np.arange(num_channels)

    def work(block: Block, raw: np.ndarray) -> tuple[Matches, Matches, np.ndarray]:
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        found, is_lone = find(block, traces)
        inside = (found.sample_index >= bank.margin) & (found.sample_index < len(traces) - bank.margin)
        kept = found.select(first_of_each(found.unit_index, inside & is_lone, quota))
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
    spikes = Spikes(
        unit_index=kept.unit_index,
        bin_index=moving.place.step(kept.sample_index, NUM_PLACES),
        delay=np.zeros(len(kept), dtype=np.int64),
        waveforms=np.concatenate([part[2] for part in parts]),
        trains=tuple(matches.sample_index[matches.unit_index == unit] for unit in range(len(bank.energy))),
        num_bins=NUM_PLACES,
        max_lag=max_lag,
    )
    return matches, kept, spikes


def _take_apart(spikes: Spikes, bank: TemplateBank) -> tuple[Spikes, np.ndarray]:
    """Make further units of the parts of those that are several neurons; and tell of which unit each was."""
    unit_index = spikes.unit_index.copy()
    whole: list[int] = []
    for unit in np.unique(spikes.unit_index).tolist():
        rows = np.flatnonzero(spikes.unit_index == unit)
        if len(rows) < MIN_WAVEFORMS:
            continue
        points, bins = spikes.project_unit(unit, bank).astype(np.float64), spikes.bin_index[rows]
        find_part = partial(_find_part, points, bins, spikes.num_bins)
        for part in take_apart(np.arange(len(rows)), find_part)[1:]:
            unit_index[rows[part]] = len(spikes.trains) + len(whole)
            whole.append(unit)
    return replace(spikes, unit_index=unit_index), np.array(whole, dtype=np.int64)


def _find_part(points: np.ndarray, bins: np.ndarray, num_bins: int, own: np.ndarray) -> np.ndarray | None:
    """Which of a unit's ``own`` points are a second neuron's, beside the way of all; None for one neuron."""
    points, bins = points[own], bins[own]
    way = smooth_course(average_bins(points, bins, num_bins))[bins]
    rest = points - way
    with threadpool_limits(1):  # sums in one order, whatever the number of cores
        is_second = find_second(rest)
    if is_second is None:
        return None
    apart = rest[is_second].mean(axis=0) - rest[~is_second].mean(axis=0)
    likeness = unit_length(apart) @ unit_length(way.mean(axis=0))
    return None if abs(likeness) > MAX_LIKENESS else is_second


def _follow(
    moving: MovingBank, spikes: Spikes, unit_of: np.ndarray, scale_std: np.ndarray, log_rate: np.ndarray
) -> MovingBank:
    """The bank of the joined units, their templates smooth along the way; few or faint spikes leave it."""
    bank = moving.mean
    weights, overall, widths, rates = [], [], [], []
    for unit in np.unique(unit_of):
        points, bins = spikes.project_unit(unit, bank), spikes.bin_index[spikes.unit_index == unit]
        is_seen = _find_channels(points, NUM_STRETCHES * bins // spikes.num_bins, bank)
        if len(points) >= MIN_SPIKES and is_seen.any():
            means = average_bins(points, bins, spikes.num_bins)
            course = smooth_course(means).reshape(-1, *bank.weights.shape[1:]) * is_seen
            mean = means.overall.reshape(bank.weights.shape[1:]) * is_seen
        else:
            course, mean = moving.weights[:, unit].astype(np.float64), bank.weights[unit]
        weights.append(course)
        overall.append(mean)
        widths.append(scale_std[unit_of == unit].max())
        rates.append(log_rate[unit])
    return MovingBank(
        bank.reweigh(np.array(overall), np.array(widths), np.array(rates)),
        moving.place,
        np.stack(weights, axis=1).astype(np.float32),
    )


def _find_channels(points: np.ndarray, stretch: np.ndarray, bank: TemplateBank) -> np.ndarray:
    """Channels, (n_channels,), on which a unit's points stand out of the noise in some stretch of the way."""
    means = average_bins(points, stretch, NUM_STRETCHES)
    shapes = means.mean.reshape(NUM_STRETCHES, *bank.weights.shape[1:])
    templates = np.einsum("skc,kt->stc", shapes, bank.courses)
    least = NOISE_ERRORS / np.sqrt(np.maximum(means.counts, 1))
    return np.asarray(silence_channels(templates, least[:, None, None]).any(axis=(0, 1)))
