"""Units of an earlier session found again: what the heads of a fine-tuned model say of spikes and units."""

from dataclasses import replace

import numpy as np
import torch

from accm_core.learning.classify import PlacedHeads, classify_spikes
from accm_core.params import ClusterParams, HeadsParams, RunParams
from accm_core.signal.preprocess import Preprocessor
from accm_core.sorting.cluster import cluster_neighborhoods
from accm_core.sorting.match import Matches, TemplateBank
from accm_core.sorting.recover import MIN_PROBABILITY, drop_doubles, find_clean
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import Recording, Snippets

MIN_SIMILARITY = 0.8
"""Cosine between what is found and what the head's unit looked like; below, it is another one."""
MAX_CHANGE = 2.0
"""Amplitude may have grown or shrunk by this factor since."""
NUM_ASKED = 100
"""Clean spikes of a unit that the heads are asked about, evenly spread."""
MAJORITY = 0.5
"""Share of them that a head must take for its own."""


def claim_peaks(
    placed: PlacedHeads, snippets: Snippets, params: HeadsParams, device: torch.device
) -> np.ndarray:
    """Give detected peaks to the heads that are sure of them.

    Parameters
    ----------
    placed : PlacedHeads
    snippets : Snippets
    params : HeadsParams
    device : torch.device

    Returns
    -------
    ndarray of shape (n_spikes,), int64
        Which of the placed heads takes the peak, -1 for none.

    Notes
    -----
    Heads have only learned to tell their units from what was in their session: a spike must also look
    like the unit, or a new unit would be taken in.
    """
    claimed = np.full(len(snippets), -1, dtype=np.int64)
    num_slots = snippets.channels.shape[1]
    for slots in np.unique(placed.slots, axis=0):
        rows = np.flatnonzero((snippets.channels == slots[:num_slots]).all(axis=1))
        if len(rows) == 0 or (slots[num_slots:] >= 0).any():
            continue
        here = np.flatnonzero((placed.slots == slots).all(axis=1))
        waveforms = snippets.waveforms[rows]
        probability = placed.answer(waveforms, device)[:, here]
        best = probability.argmax(axis=1)
        template = placed.templates[here][:, :, :num_slots]
        length = np.linalg.norm(waveforms, axis=(1, 2))
        product = np.einsum("nts,nts->n", waveforms, template[best])
        size = np.linalg.norm(template, axis=(1, 2))[best]
        # what noise adds to the spike's length must not count against it
        noise = waveforms.shape[1] * np.count_nonzero(slots >= 0)
        length = np.sqrt(np.maximum(length**2 - noise, size**2 / MAX_CHANGE**2))
        alike = product >= MIN_SIMILARITY * size * length
        fits = (product >= size**2 / MAX_CHANGE) & (product <= size**2 * MAX_CHANGE)
        sure = probability.max(axis=1, initial=0.0) >= params.accept
        taken = sure & alike & fits
        claimed[rows[taken]] = here[best[taken]]
    return claimed


def cluster_rest(
    claimed: np.ndarray,
    placed: PlacedHeads,
    embedding: np.ndarray,
    channel_index: np.ndarray,
    neighborhoods: np.ndarray,
    params: ClusterParams,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Each head's spikes are a cluster; the others are clustered as always.

    Parameters
    ----------
    claimed : ndarray of shape (n_spikes,), int64
        From `claim_peaks`.
    placed : PlacedHeads
    embedding, channel_index, neighborhoods, params, seed
        As for `cluster_neighborhoods`.

    Returns
    -------
    labels, neighborhood_of
        As from `cluster_neighborhoods`; the heads' clusters come last.
    """
    sizes = np.bincount(claimed[claimed >= 0], minlength=len(placed.used))
    heads = np.flatnonzero(sizes >= params.min_size)
    rest = ~np.isin(claimed, heads)
    labels = np.full(len(claimed), -1, dtype=np.int64)
    labels[rest], neighborhood_of = cluster_neighborhoods(
        embedding[rest], channel_index[rest], neighborhoods, params, seed=seed
    )
    homes = neighborhood_of.tolist()
    for head in heads:
        rows = claimed == head
        slots = placed.slots[head, : neighborhoods.shape[1]]
        labels[rows] = len(homes)
        homes.append(int(np.flatnonzero((neighborhoods == slots).all(axis=1))[0]))
    return labels, np.array(homes, dtype=np.int64)


def identify_units(
    recording: Recording,
    preprocessor: Preprocessor,
    placed: PlacedHeads,
    bank: TemplateBank,
    matches: Matches,
    average: WaveformAverage,
    *,
    refractory: int,
    run: RunParams,
    device: torch.device,
) -> tuple[tuple[str, ...], Matches, WaveformAverage]:
    """Name the units that a head takes for its own; units of one name are joined.

    Parameters
    ----------
    recording, preprocessor
        Where the heads look.
    placed : PlacedHeads
    bank : TemplateBank
    matches : Matches
    average : WaveformAverage
        Of the matches.
    refractory : int
        Samples; of two spikes of joined units that are closer, the earlier is kept.
    run : RunParams
    device : torch.device

    Returns
    -------
    names : tuple of str
        One a template; empty where no head takes the unit.
    matches : Matches
    average : WaveformAverage
        Of the largest unit of each name, with what the others were given to it.
    """
    peak = _peak_offsets(bank)
    counts = np.bincount(matches.unit_index, minlength=len(bank.energy))
    clean = np.flatnonzero((matches.probability > MIN_PROBABILITY) & find_clean(matches, bank))
    asked = [_spread(clean[matches.unit_index[clean] == unit]) for unit in range(len(counts))]
    rows = np.sort(np.concatenate(asked))
    units = matches.unit_index[rows]
    samples = np.rint(matches.sample_index[rows] + matches.offset[rows]).astype(np.int64) + peak[units]
    order = np.argsort(samples, kind="stable")
    answers = np.empty((len(rows), len(placed.used)), dtype=np.float32)
    answers[order] = classify_spikes(
        recording, preprocessor, placed, samples[order], at_peak=True, run=run, device=device
    )
    head_of = np.full(len(counts), -1, dtype=np.int64)
    for unit in np.unique(units):
        share = (answers[units == unit] > MAJORITY).mean(axis=0)
        share[~_look_alike(bank, int(unit), int(peak[unit]), placed)] = 0.0
        if share.max() >= MAJORITY:
            head_of[unit] = share.argmax()
    names = tuple(placed.names[placed.used[head]] if head >= 0 else "" for head in head_of)
    target = np.arange(len(counts))
    for head in np.unique(head_of[head_of >= 0]):
        same = np.flatnonzero(head_of == head)
        target[same] = same[counts[same].argmax()]
    joined = np.flatnonzero(target != np.arange(len(counts)))
    if len(joined) == 0:
        return names, matches, average
    delay = peak - peak[target]
    height = np.abs(bank.templates).max(axis=(1, 2))
    ratio = (height / height[target]).astype(np.float32)
    matches = replace(
        matches,
        sample_index=matches.sample_index + delay[matches.unit_index],
        unit_index=target[matches.unit_index],
        scale=matches.scale * ratio[matches.unit_index],
    )
    matches = matches.select(np.lexsort((matches.unit_index, matches.sample_index)))
    for unit in joined:
        average.give(int(unit), int(target[unit]), delay=-int(delay[unit]))
    starts = np.array([segment.start for segment in recording.segments])
    return names, drop_doubles(matches, refractory, starts), average


def _peak_offsets(bank: TemplateBank) -> np.ndarray:
    """Samples from each unit's matched time to the extremum on its main channel."""
    main = np.abs(bank.templates).max(axis=1).argmax(axis=1)
    course = bank.templates[np.arange(len(main)), :, main]
    return np.abs(course).argmax(axis=1) - bank.num_before


def _look_alike(bank: TemplateBank, unit: int, peak: int, placed: PlacedHeads) -> np.ndarray:
    """Which of the placed heads' units look like this one, (n_used,), bool."""
    num_samples = placed.templates.shape[1]
    steps = bank.num_before + peak - placed.num_before + np.arange(num_samples)
    inside = (steps >= 0) & (steps < bank.num_samples)
    found = np.zeros((num_samples, bank.templates.shape[2] + 1), dtype=np.float32)  # slot -1: zeros
    found[inside, :-1] = bank.templates[unit, steps[inside]]
    views = found[:, placed.slots].transpose(1, 0, 2)
    product = (views * placed.templates).sum(axis=(1, 2))
    lengths = [np.linalg.norm(w, axis=(1, 2)) for w in (views, placed.templates)]
    alike = product >= MIN_SIMILARITY * lengths[0] * lengths[1]
    return alike & (lengths[0] * MAX_CHANGE >= lengths[1]) & (lengths[0] <= MAX_CHANGE * lengths[1])


def _spread(rows: np.ndarray) -> np.ndarray:
    if len(rows) <= NUM_ASKED:
        return rows
    return rows[np.linspace(0, len(rows) - 1, NUM_ASKED).round().astype(int)]
