"""Find templates without which their spikes are explained as well: mixtures of what fires together.

A cluster of spikes that collide with now this, now that other unit gives a template that no two units sum up
to. Spike by spike, though, the units explain what it stands for, and leave less than it does, or hardly more.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import linalg

from accm_core.params import MatchParams, RunParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.sorting.match import MIN_CHANNELS_TO_TELL, Matches, TemplateBank, match_templates, noise_root
from accm_core.sorting.merge import compare_templates
from accm_core.sorting.moving import MovingBank
from accm_core.sorting.prune import SCALE_TOLERANCE, find_sums
from accm_core.sorting.rebuild import rebuild
from accm_core.sorting.recover import first_of_each
from accm_core.types import Recording

SUSPECT = 0.4
"""Share of a template's energy that more frequent units, one or two, must explain for it to be looked at."""
MIN_LOSS, MIN_LOSS_OF_ONE = 0.015, 0.01
"""Share of a template's energy that must be left more without it than with it; the latter where one other
spike stands for each of its own on few channels: two neurons may be nearly as much alike as that there."""
MAX_LOOKED_AT = 160
"""Spikes of a template on which it is decided."""
MIN_LOOKED_AT = 10
"""With fewer, the template goes where it is the sum of two others."""


def find_superfluous(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    bank: TemplateBank,
    matches: Matches,
    params: MatchParams,
    *,
    max_lag: int,
    run: RunParams,
    moving: MovingBank | None = None,
    on_block: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Mask of the templates that leave as much of their own spikes as the others do without them, or more.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to look.
    bank : TemplateBank
    matches : Matches
        Of the units in the blocks; by which of their templates does not matter.
    params : MatchParams
    max_lag : int
        As for `find_sums`.
    run : RunParams
    moving : MovingBank, optional
        The same units, where their templates change over time; then all are looked at.
    on_block : callable, optional
        Called with the share that is done.

    Returns
    -------
    ndarray of shape (n_units,), bool

    Notes
    -----
    The traces around some of a template's spikes are explained with it and without it, by the units that
    touch it and those that touch these; the probe's other units are not looked at. What either leaves on the
    template's channels, where noise is white, is compared; the median decides. On still recordings with
    ground truth, 2 to 90 % more of a neuron's energy is left without its template, and 1 % more or less than
    with it for most mixtures.
    """
    counts = np.bincount(matches.unit_index, minlength=len(bank.energy))
    observed = sum(block.stop - block.start for block in blocks)
    if moving is None:
        superfluous = find_sums(bank, counts, max_lag, observed=observed)
        suspects = superfluous | find_sums(bank, counts, max_lag, explained=SUSPECT)
        suspects |= _find_copies(bank, counts, max_lag)
    else:  # a mixture's template is the sum of its parts' at one place or another, and of them all at none
        superfluous, suspects = np.zeros(len(counts), dtype=bool), np.ones(len(counts), dtype=bool)
    if not suspects.any():
        return suspects
    refractory = to_samples(params.refractory_ms, recording.sampling_frequency)
    root = noise_root(preprocessor.autocovariance, bank.num_samples)
    quota = -(-MAX_LOOKED_AT // len(blocks))
    reach, touches = bank.margin, bank.pair_row >= 0

    def explain(traces: np.ndarray, shapes: TemplateBank, units: np.ndarray) -> Matches:
        channels = np.flatnonzero(shapes.weights[units].any(axis=(0, 1)))
        found = match_templates(
            traces[:, channels], shapes.narrow(units, channels), params, refractory=refractory
        )
        return replace(found, unit_index=units[found.unit_index])

    def work(block: Block, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, last = np.searchsorted(matches.sample_index, [block.start, block.stop])
        here = matches.select(np.arange(first, last)).move(-block.start)
        looked_at = here.select(first_of_each(here.unit_index, suspects[here.unit_index], quota))
        shapes = bank if moving is None else moving.at(block.middle)
        lost, num_instead = np.full(len(looked_at), np.nan), np.zeros(len(looked_at))
        traces = preprocessor.whiten(preprocessor.filter(raw, block)) if len(looked_at) else raw
        for row, (sample, unit) in enumerate(zip(looked_at.sample_index, looked_at.unit_index, strict=True)):
            window = traces[sample : sample + 2 * reach]
            local = np.flatnonzero(touches[touches[unit]].any(axis=0))
            # without rarer suspects, so that of two that explain each other the more frequent one stays
            others = local[~suspects[local] | (counts[local] > counts[unit])]
            with_it, without = explain(window, shapes, local), explain(window, shapes, others)
            near = [np.abs(found.sample_index - reach) <= max_lag for found in (with_it, without)]
            if unit in with_it.unit_index[near[0]]:
                left = [_energy_left(window, found, shapes, unit, root) for found in (with_it, without)]
                lost[row] = (left[1] - left[0]) / shapes.energy[unit]
                num_instead[row] = 1 + np.count_nonzero(near[1]) - np.count_nonzero(near[0])
            elif near[0].any():  # others explain it, and not worse
                lost[row] = 0.0
        is_seen = ~np.isnan(lost)
        return looked_at.unit_index[is_seen], lost[is_seen], num_instead[is_seen]

    margin = preprocessor.margin + reach
    parts = list(map_blocks(work, recording, blocks, margin=margin, run=run, on_block=on_block))
    unit_index, lost, num_instead = (np.concatenate([part[k] for part in parts]) for k in range(3))
    visible = np.count_nonzero(bank.weights.any(axis=1), axis=1)
    for unit in np.flatnonzero(suspects):
        rows = unit_index == unit
        if rows.sum() >= MIN_LOOKED_AT:
            may_be_alike = np.median(num_instead[rows]) <= 1 and visible[unit] < MIN_CHANNELS_TO_TELL
            least = MIN_LOSS_OF_ONE if may_be_alike else MIN_LOSS
            superfluous[unit] = np.median(lost[rows]) < least
    return superfluous


def _find_copies(bank: TemplateBank, counts: np.ndarray, max_lag: int) -> np.ndarray:
    """Mask of the units that one more frequent unit of its usual size explains in part, (n_units,), bool."""
    similarity, _ = compare_templates(bank, max_lag)
    scale = similarity * np.sqrt(bank.energy[:, None] / np.maximum(bank.energy, 1e-12))
    explains = (similarity**2 >= SUSPECT) & (np.abs(scale - 1) <= SCALE_TOLERANCE)
    return np.asarray((explains & (counts > counts[:, None])).any(axis=1))


def _energy_left(
    traces: np.ndarray, matches: Matches, bank: TemplateBank, unit: int, root: np.ndarray
) -> float:
    """What matches leave in the middle, where the unit's template is seen, in squared noise levels."""
    channels = np.flatnonzero(bank.templates[unit].any(axis=0))
    left = traces[:, channels] - rebuild(matches, bank, len(traces), channels)
    first = len(traces) // 2 - bank.num_before
    part = left[first : first + bank.num_samples]
    return float((linalg.solve_triangular(root, part, lower=True) ** 2).sum())
