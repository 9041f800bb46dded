"""Walk the recording and match: every spike of every unit, and the units' mean waveforms on the way."""

from collections.abc import Callable, Sequence

import numba
import numpy as np

from accm_core.params import MatchParams, RunParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.sorting.match import Matches, TemplateBank, match_templates
from accm_core.sorting.moving import MovingBank
from accm_core.sorting.rebuild import rebuild
from accm_core.sorting.templates import MAX_SPIKES, WaveformAverage, WaveformSums, Window, sum_waveforms
from accm_core.types import Recording

MIN_PROBABILITY = 0.9
"""Of the spikes that a mean waveform is made from."""
MAX_DEVIATION = 0.35
"""Of their scale from 1."""
MAX_LONE, MAX_LONE_SHARE = 30, 1 / 3
"""Spikes without an overlap, and their share of all, up to which a unit hardly ever fires alone."""
MIN_LIKENESS, MAX_SHRINKAGE = 0.8, 0.9
"""Cosine between a template and the mean of its spikes from which on they are one neuron's, and share of the
template under which this mean is when the template is too large."""

OVERLAP_MS = 1.0
"""Spikes of two interacting units overlap within this time."""
MIN_SCALES = 50
"""Spikes from which the spread of a unit's scale is measured."""
UNBIASED, MIN_SHRUNK = 10.0, 20
"""Signal-to-noise ratio of a template from which on noise has had no part in which of its spikes were found;
spikes that show how much smaller one is."""
MAX_RATE = 5.0
"""Spikes a second that count: there is more than noise that a lower threshold would let in."""
MIN_SCALE_STD = 0.03
"""Neurons vary at least a little."""


def recover_spikes(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    bank: TemplateBank,
    params: MatchParams,
    *,
    whitened: bool,
    run: RunParams,
    moving: MovingBank | None = None,
    on_block: Callable[[float], None] | None = None,
) -> tuple[Matches, WaveformAverage]:
    """Match the templates in the blocks.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to look.
    bank : TemplateBank
    params : MatchParams
    whitened : bool
        Average whitened waveforms (noise units) if true, else band-passed ones (µV).
    run : RunParams
    moving : MovingBank, optional
        The same units, where their templates change over time.
    on_block : callable, optional
        Called with the share that is done.

    Returns
    -------
    matches : Matches
        In order of time, ``sample_index`` counted in the recording.
    average : WaveformAverage
        Of some of each unit's spikes: those without an overlap and with a high probability, if any. Of
        whitened waveforms, all other spikes are taken out where some units do not touch each other, as
        those that fire at the same time elsewhere on the probe would become part of the template; and for
        a unit that has hardly any without an overlap and a template too large for its spikes, it is that of
        all with a high probability, of whatever size: a template made of collisions would stay one.
    """
    refractory = to_samples(params.refractory_ms, recording.sampling_frequency)
    window = Window(bank.num_before, bank.num_samples)
    margin = max(bank.margin, window.margin)
    quota = -(-MAX_SPIKES // max(len(blocks), 1))

    def work(block: Block, raw: np.ndarray) -> tuple[Matches, WaveformSums, WaveformSums | None]:
        filtered = preprocessor.filter(raw, block)
        traces = preprocessor.whiten(filtered)
        local = bank if moving is None else moving.at(block.middle)
        found = match_templates(traces, local, params, refractory=refractory)
        inside = (found.sample_index >= margin) & (found.sample_index < len(traces) - margin)
        sure = inside & (found.probability > MIN_PROBABILITY)
        lone = found.select(first_of_each(found.unit_index, sure & find_clean(found, local), quota))
        kept = found.select(inside).move(block.start - margin)
        if not whitened:
            return kept, _sum_alone(filtered, lone, window), None
        some = found.select(first_of_each(found.unit_index, sure, quota))
        left = traces - rebuild(found, local, len(traces))
        touch = bool((local.pair_row >= 0).all())
        sums = _sum_alone(traces, lone, window) if touch else _sum_unmixed(left, lone, local, window)
        return kept, sums, _sum_unmixed(left, some, local, window)

    average, unmixed = (
        WaveformAverage(len(bank.energy), bank.num_samples, len(preprocessor.channels)) for _ in range(2)
    )
    parts = [Matches.empty()]
    for matches, sums, sums_unmixed in map_blocks(
        work, recording, blocks, margin=preprocessor.margin + margin, run=run, on_block=on_block
    ):
        parts.append(matches)
        average.add(sums)
        if sums_unmixed is not None:
            unmixed.add(sums_unmixed)
    if whitened:
        average.replace(find_oversized(bank.templates, average, unmixed), unmixed)
    starts = np.array([segment.start for segment in recording.segments])
    return drop_doubles(Matches.join(parts), refractory, starts), average


def measure_scale_std(matches: Matches, bank: TemplateBank, params: MatchParams) -> np.ndarray:
    """Standard deviation of each unit's scale beyond what noise gives it, within bounds.

    Parameters
    ----------
    matches : Matches
    bank : TemplateBank
        That gave the matches.
    params : MatchParams
        ``scale_std`` is the upper bound, and for units with few spikes the value.

    Returns
    -------
    ndarray of shape (n_units,), float64

    Notes
    -----
    The fitted scale is shrunk towards 1 by the prior p: its spread is that of the free fit times
    energy / (energy + p), and the free fit's noise variance is 1 / energy. Only the upper half is
    looked at: small spikes of far neurons sit in the lower one.
    """
    scale_std = np.full(len(bank.energy), params.scale_std)
    for unit in range(len(scale_std)):
        scale = matches.scale[matches.unit_index == unit]
        if len(scale) >= MIN_SCALES:
            middle, high = np.percentile(scale, [50, 84])
            free = (high - middle) * (1 + bank.prior[unit] / bank.energy[unit])
            scale_std[unit] = np.sqrt(max(free**2 - 1 / bank.energy[unit], 0))
    return np.clip(scale_std, MIN_SCALE_STD, params.scale_std)


def measure_log_rate(counts: np.ndarray, seconds: float) -> np.ndarray:
    """Logarithm of how often units of so many spikes, (n_units,), fire in a second, as matching takes it."""
    return np.log(np.minimum(np.maximum(counts, 1) / seconds, MAX_RATE))


def find_shrinkage(matches: Matches, bank: TemplateBank) -> np.ndarray:
    """Share of each template that its spikes have, (n_units,), float32, where it is small; elsewhere 1.

    Of a small neuron's spikes those are found first that noise makes larger.
    """
    share = np.ones(len(bank.energy), dtype=np.float32)
    scale = matches.free_scale(bank)
    for unit in np.flatnonzero(bank.energy < UNBIASED**2):
        rows = matches.unit_index == unit
        if np.count_nonzero(rows) >= MIN_SHRUNK:
            share[unit] = min(np.median(scale[rows]), 1.0)
    return share


def find_clean(matches: Matches, bank: TemplateBank) -> np.ndarray:
    """Mask of the spikes of usual size without another one within a template's length, (n,), bool."""
    usual: np.ndarray = np.abs(matches.scale - 1) < MAX_DEVIATION
    return usual & ~find_overlaps(matches, bank, bank.num_samples)


def find_oversized(templates: np.ndarray, lone: WaveformAverage, unmixed: WaveformAverage) -> np.ndarray:
    """Mask of the units that hardly ever fire alone and whose template is larger than their spikes.

    Parameters
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels)
    lone : WaveformAverage
        Of spikes without an overlap.
    unmixed : WaveformAverage
        Of all, the spikes that they overlap with taken out.

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    means = unmixed.mean()
    shared, energy = (np.einsum("utc,utc->u", templates, other) for other in (means, templates))
    is_rare = (lone.counts <= MAX_LONE) & (lone.counts < MAX_LONE_SHARE * unmixed.counts)
    is_alike = shared > MIN_LIKENESS * np.sqrt(energy * np.einsum("utc,utc->u", means, means))
    return np.asarray(is_rare & is_alike & (shared < MAX_SHRINKAGE * energy))


def _sum_alone(traces: np.ndarray, wanted: Matches, window: Window) -> WaveformSums:
    """Sum the waveforms of the wanted spikes as they are."""
    return sum_waveforms(traces, wanted.sample_index, wanted.offset, wanted.unit_index, window)


def _sum_unmixed(left: np.ndarray, wanted: Matches, bank: TemplateBank, window: Window) -> WaveformSums:
    """Sum the waveforms of the wanted spikes, all others that were found taken out."""
    return sum_waveforms(
        left,
        wanted.sample_index,
        wanted.offset,
        wanted.unit_index,
        window,
        scale=wanted.scale,
        templates=bank.templates,
    )


def find_overlaps(matches: Matches, bank: TemplateBank, reach: int) -> np.ndarray:
    """Mask of the spikes that have another interacting unit's spike within ``reach`` samples, (n,), bool."""
    return mark_overlaps(matches.sample_index, matches.unit_index, bank.pair_row, reach)


@numba.njit(cache=True, nogil=True)
def mark_overlaps(sample_index, unit_index, pair_row, reach):  # type: ignore[no-untyped-def]
    """As `find_overlaps`, in the form that numba takes."""
    overlaps = np.zeros(len(sample_index), dtype=np.bool_)
    for k in range(len(sample_index)):
        j = k + 1
        while j < len(sample_index) and sample_index[j] - sample_index[k] <= reach:
            if pair_row[unit_index[j], unit_index[k]] >= 0:
                overlaps[j] = overlaps[k] = True
            j += 1
    return overlaps


def first_of_each(unit_index: np.ndarray, mask: np.ndarray, quota: int) -> np.ndarray:
    """Rows of the first ``quota`` spikes of each unit within the mask."""
    rows = np.flatnonzero(mask)
    order = np.argsort(unit_index[rows], kind="stable")
    sorted_units = unit_index[rows][order]
    starts = np.searchsorted(sorted_units, sorted_units)
    return np.sort(rows[order[np.arange(len(rows)) - starts < quota]])


def drop_doubles(matches: Matches, refractory: int, segment_starts: np.ndarray) -> Matches:
    """Drop spikes that two neighbouring blocks of a segment both found at their border."""
    order = np.lexsort((matches.sample_index, matches.unit_index))
    samples, units = matches.sample_index[order], matches.unit_index[order]
    segments = np.searchsorted(segment_starts, samples, side="right")
    doubled = (np.diff(units) == 0) & (np.diff(samples) < refractory) & (np.diff(segments) == 0)
    kept = np.ones(len(matches), dtype=bool)
    kept[order[1:][doubled]] = False
    return matches.select(kept)
