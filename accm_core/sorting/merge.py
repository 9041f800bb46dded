"""Clusters to units: merge what is one unit, drop what is none."""

from dataclasses import replace

import numpy as np
from scipy.special import pdtrc

from accm_core.params import MergeParams, to_samples
from accm_core.signal.motion import Motion
from accm_core.sorting.cluster import measure_bimodality
from accm_core.sorting.match import MIN_CHANNELS_TO_TELL, Matches, TemplateBank
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import Snippets

MAX_PER_CLUSTER = 1000
"""Spikes of a cluster that take part in a comparison."""
MIN_SHIFT = 2
"""Samples from which on two templates of one neighbourhood are aligned otherwise: broad troughs are found
early or late."""
REFRACTORY_MS = 2.0
"""A neuron hardly fires again within this time; the shortest lags are left out, as overlaps blur them."""
AGAIN_MS = 10.0
"""A neuron that bursts fires again within this time."""
BURST_MS, MAX_BURSTS = 20.0, 0.2
"""Time in which the later spikes of a burst follow; share of them, beyond chance, from which on spikes are a
neuron's own, though smaller."""
MIN_EXPECTED, MAX_SHARE = 10, 0.2
"""Pairs that the refractory time must lead to expect for a test, and the share of them one neuron has."""
MIN_PAIRS, PAIRS_CHANCE = 5, 0.01
"""Where fewer are expected, pairs that show two neurons, and how rarely one has as many."""
MAX_SIZE_RATIO, MAX_STILL_RATIO = 4.0, 1.5
"""Of two templates of one neuron: not even in bursts do spikes shrink by more; and where there are none."""
LOST_IN_NOISE = 3.0
"""Difference of two templates, in noise levels, that spikes cannot show."""
ALIKE = 0.96
"""Cosine of two templates, on ``MIN_CHANNELS_TO_TELL``, that no two neurons have: one place holds one."""
ALIKE_IN_TURNS, MIN_TOGETHER, MAX_TOGETHER = 0.94, 20, 0.5
"""The same where the two take turns, as one neuron's templates here and there do when tissue moves. Pairs of
spikes in the same second that chance must give to see that, and the share of them up to which it is so."""
ALIKE_ELSEWHERE, NUM_PLACES, MIN_ELSEWHERE, MAX_SHARED = 0.8, 12, 20, 0.2
"""The same where one fires while the tissue is where it is not when the other does. Places that are told
apart, spikes of each that it takes, and the share of them in places that both have up to which it is so."""


def merge_clusters(
    labels: np.ndarray,
    snippets: Snippets,
    neighborhood_of: np.ndarray,
    bank: TemplateBank,
    params: MergeParams,
    *,
    max_lag: int,
) -> np.ndarray:
    """Merge clusters that one unit was cut into: those of other neighbourhoods, or aligned otherwise.

    Two clusters whose templates are alike after a shift are compared as clusters are: their spikes are
    projected on the difference of the templates, on the channels that both see, and merge when the
    projections have one hump. Groups of clusters merge when that is so of the largest of each, too.

    Parameters
    ----------
    labels : ndarray of shape (n_spikes,), int64
        Clusters; -1 for none.
    snippets : Snippets
    neighborhood_of : ndarray of shape (n_clusters,), int64
        Where each cluster was found; those of one neighbourhood were compared already, but for those whose
        spikes are aligned otherwise.
    bank : TemplateBank
        Template of each cluster.
    params : MergeParams
    max_lag : int
        Largest shift between two templates of one unit, samples.

    Returns
    -------
    ndarray of shape (n_clusters,), int64
        The unit of each cluster, numbered from 0 without holes.
    """
    num_clusters = len(bank.energy)
    parent = np.arange(num_clusters)
    similarity, lag = compare_templates(bank, max_lag)
    pairs = np.argwhere(np.triu(similarity >= params.min_similarity, k=1))
    # the most alike first
    pairs = pairs[np.argsort(-similarity[pairs[:, 0], pairs[:, 1]], kind="stable")]
    rows_of = [_some(np.flatnonzero(labels == k)) for k in range(num_clusters)]
    sizes = np.bincount(labels[labels >= 0], minlength=num_clusters)
    alike = np.zeros((num_clusters, num_clusters), dtype=bool)
    for first, second in pairs:
        if neighborhood_of[first] == neighborhood_of[second] and abs(lag[first, second]) < MIN_SHIFT:
            continue
        values = [
            _project(
                snippets,
                [rows_of[first], rows_of[second]],
                bank,
                first,
                second,
                int(lag[first, second]),
                shifted=shifted,
            )
            for shifted in (False, True)
        ]
        score, _ = measure_bimodality(np.sort(np.concatenate(values)))
        if score < params.split_threshold:
            alike[first, second] = alike[second, first] = True
    # the largest cluster speaks for its group: a small mixed one does not join two neurons
    for first, second in pairs:
        one, other = parent[first], parent[second]
        if alike[first, second] and one != other and alike[one, other]:
            larger, smaller = (one, other) if sizes[one] >= sizes[other] else (other, one)
            parent[parent == smaller] = larger
    _, number = np.unique(parent, return_inverse=True)
    return number


def merge_duplicates(
    bank: TemplateBank,
    matches: Matches,
    average: WaveformAverage,
    params: MergeParams,
    *,
    observed: int,
    sampling_frequency: float,
    moves: bool = False,
) -> tuple[Matches, WaveformAverage]:
    """Merge units that matching shows to be one neuron: alike in shape and silent after each other's spikes.

    Parameters
    ----------
    bank : TemplateBank
        That gave the matches.
    matches : Matches
    average : WaveformAverage
        Of the matches.
    params : MergeParams
    observed : int
        Samples that were matched.
    sampling_frequency : float
        Hz.
    moves : bool
        Whether the tissue moves, by which one neuron's size changes.

    Returns
    -------
    matches : Matches
        The smaller unit's spikes given to the larger, with their scale in terms of its template.
    average : WaveformAverage
        The smaller unit's added to the larger's.

    Notes
    -----
    Two units fire into each other's refractory time as chance has it, and as often as into the time just
    after where they fire in bursts together; the halves of one neuron do not. Where too few such pairs are
    expected to tell, only templates whose difference is lost in the noise are merged, and those nearly the
    same on many channels: less nearly where the units take turns. Sizes count in that difference, unless the
    tissue moves, the two take turns, or the smaller spikes follow the larger ones in bursts. Units of far
    neurons are silent around much larger spikes, as they are not seen there: that says nothing.
    """
    max_lag = to_samples(params.max_lag_ms, sampling_frequency)
    similarity, lag = compare_templates(bank, max_lag)
    window = (max_lag, to_samples(REFRACTORY_MS, sampling_frequency))
    burst = (window[1], to_samples(AGAIN_MS, sampling_frequency))
    counts = np.bincount(matches.unit_index, minlength=len(bank.energy))
    sizes = np.sqrt(bank.energy)
    large, small = np.maximum(sizes, sizes[:, None]), np.minimum(sizes, sizes[:, None])
    is_like = (similarity >= params.duplicate_similarity) & (large <= MAX_SIZE_RATIO * small)
    pairs = np.argwhere(np.triu(is_like, k=1))
    pairs = pairs[np.argsort(-similarity[pairs[:, 0], pairs[:, 1]], kind="stable")]
    for one, other in pairs:
        larger, smaller = (one, other) if counts[one] >= counts[other] else (other, one)
        if counts[smaller] == 0:
            continue
        trains = [matches.sample_index[matches.unit_index == unit] for unit in (larger, smaller)]
        by_chance = 2 * len(trains[0]) * len(trains[1]) / observed
        in_bursts = count_pairs(trains[0], trains[1], burst) / (burst[1] - burst[0])
        expected = max(by_chance, in_bursts) * (window[1] - window[0])
        num_pairs = count_pairs(trains[0], trains[1], window)
        if expected >= MIN_EXPECTED:
            same = num_pairs <= MAX_SHARE * expected
        elif num_pairs >= MIN_PAIRS and pdtrc(num_pairs - 1, MAX_SHARE * expected) < PAIRS_CHANCE:
            same = False
        else:
            in_turns = _take_turns(trains[0], trains[1], observed, sampling_frequency)
            channels = np.count_nonzero(bank.weights[larger].any(axis=0))
            nearly = similarity[one, other] >= (ALIKE_IN_TURNS if in_turns else ALIKE)
            nearly = nearly and channels >= MIN_CHANNELS_TO_TELL
            weak, strong = trains if bank.energy[larger] <= bank.energy[smaller] else trains[::-1]
            changes_size = moves or in_turns or follow_in_bursts(strong, weak, observed, sampling_frequency)
            of_one_size = large[one, other] <= MAX_STILL_RATIO * small[one, other]
            nearly = nearly and (changes_size or of_one_size)
            difference = _difference(
                bank.energy[[larger, smaller]], similarity[one, other], of_shape=changes_size
            )
            same = bool(nearly or difference <= LOST_IN_NOISE**2)
        if same:
            ratio = similarity[one, other] * np.sqrt(bank.energy[smaller] / bank.energy[larger])
            matches = _give(matches, smaller, larger, ratio)
            average.give(smaller, larger, delay=int(lag[larger, smaller]))
            counts[larger] += counts[smaller]
            counts[smaller] = 0
    return matches, average


def merge_pieces(
    bank: TemplateBank,
    matches: Matches,
    average: WaveformAverage,
    motion: Motion,
    params: MergeParams,
    *,
    sampling_frequency: float,
) -> tuple[Matches, WaveformAverage]:
    """Merge units that are one neuron here and there, as correcting drift mends a spike's shape in part only.

    Each piece keeps its template to be matched by; so this comes last.

    Parameters
    ----------
    bank, matches, average, params, sampling_frequency
        As for `merge_duplicates`.
    motion : Motion
        Of the tissue.

    Returns
    -------
    matches, average
        Likewise.

    Notes
    -----
    Two neurons may be that much alike, and may fire in turns; but not in turns as the tissue moves.
    """
    similarity, lag = compare_templates(bank, to_samples(params.max_lag_ms, sampling_frequency))
    channel = np.ptp(bank.templates, axis=1).argmax(axis=1)
    displacement = motion.displacement_of(matches.sample_index, channel[matches.unit_index])
    places = np.linspace(displacement.min(initial=0), displacement.max(initial=0), NUM_PLACES + 1)
    visible = np.count_nonzero(bank.weights.any(axis=1), axis=1) >= MIN_CHANNELS_TO_TELL
    pairs = np.argwhere(np.triu((similarity >= ALIKE_ELSEWHERE) & visible & visible[:, None], k=1))
    for one, other in pairs[np.argsort(-similarity[pairs[:, 0], pairs[:, 1]], kind="stable")]:
        taken = [np.histogram(displacement[matches.unit_index == u], places)[0] for u in (one, other)]
        counts = [int(t.sum()) for t in taken]
        if min(counts) < MIN_ELSEWHERE:
            continue
        if np.minimum(taken[0] / counts[0], taken[1] / counts[1]).sum() <= MAX_SHARED:
            larger, smaller = (one, other) if counts[0] >= counts[1] else (other, one)
            ratio = similarity[one, other] * np.sqrt(bank.energy[smaller] / bank.energy[larger])
            matches = _give(matches, smaller, larger, ratio)
            average.give(smaller, larger, delay=int(lag[larger, smaller]))
    return matches, average


def _give(matches: Matches, source: int, target: int, ratio: float) -> Matches:
    """The spikes of unit ``source`` as those of ``target``, their scales times ``ratio``."""
    rows = matches.unit_index == source
    return replace(
        matches,
        unit_index=np.where(rows, target, matches.unit_index),
        scale=np.where(rows, matches.scale * ratio, matches.scale).astype(np.float32),
    )


def count_pairs(first: np.ndarray, second: np.ndarray, window: tuple[int, int]) -> int:
    """Pairs of spikes, one of each train, further apart than the window's start and no more than its stop."""
    near, far = window
    total = 0
    for low, high in ((near, far), (-far - 1, -near - 1)):
        total += int(
            (
                np.searchsorted(second, first + high, side="right")
                - np.searchsorted(second, first + low, side="right")
            ).sum()
        )
    return total


def count_in_same_second(first: np.ndarray, second: np.ndarray, sampling_frequency: float) -> int:
    """Pairs of spikes, one of each train, in the same second."""
    seconds = [np.asarray(train // sampling_frequency, dtype=np.int64) for train in (first, second)]
    length = 1 + max(int(s.max(initial=0)) for s in seconds)
    return int(np.bincount(seconds[0], minlength=length) @ np.bincount(seconds[1], minlength=length))


def _difference(energy: np.ndarray, similarity: float, *, of_shape: bool) -> float:
    """Squared difference of two templates, in noise levels, from energies and cosine; or of shape alone."""
    if of_shape:
        return float(energy[1] * (1 - similarity**2))
    return float(energy.sum() - 2 * similarity * np.sqrt(energy.prod()))


def follow_in_bursts(
    leading: np.ndarray, following: np.ndarray, num_samples: int, sampling_frequency: float
) -> bool:
    """Whether spikes follow others as the later spikes of a neuron's bursts do, beyond chance.

    Parameters
    ----------
    leading, following : ndarray of shape (n,), int64
        Samples, in ascending order; at least one each.
    num_samples : int
        That were observed.
    sampling_frequency : float
        Hz.
    """
    reach = BURST_MS / 1000 * sampling_frequency
    before = np.searchsorted(leading, following) - 1
    follows = (before >= 0) & (following - leading[before] < reach)
    by_chance = 1 - np.exp(-len(leading) * reach / num_samples)
    return bool(follows.mean() > by_chance + MAX_BURSTS)


def _take_turns(first: np.ndarray, second: np.ndarray, observed: int, sampling_frequency: float) -> bool:
    """Whether two trains fire in the same second much less often than chance has it."""
    together = count_in_same_second(first, second, sampling_frequency)
    expected = len(first) * len(second) * sampling_frequency / observed
    return bool(expected >= MIN_TOGETHER and together <= MAX_TOGETHER * expected)


def compare_templates(bank: TemplateBank, max_lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of each pair of templates at their best lag, and that lag to the nearest sample.

    Returns
    -------
    similarity : ndarray of shape (n_units, n_units), float32
    lag : ndarray of shape (n_units, n_units), int64
        Samples by which the second template comes after the first when they fit best.
    """
    num_units = len(bank.energy)
    similarity = np.zeros((num_units, num_units), dtype=np.float32)
    lag = np.zeros((num_units, num_units), dtype=np.int64)
    middle = bank.num_samples - 1
    for first in range(num_units):
        others = np.flatnonzero(bank.pair_row[first] >= 0)
        correlations = bank.correlations[bank.pair_row[first, others]]
        best = correlations[:, middle - max_lag : middle + max_lag + 1].argmax(axis=1) + middle - max_lag
        # the highest place is between samples, where a parabola through three of them turns
        before, at, after = (correlations[np.arange(len(others)), best + k] for k in (-1, 0, 1))
        offset = 0.5 * (after - before) / np.maximum(2 * at - before - after, 1e-12)
        highest = at + 0.25 * (after - before) * np.clip(offset, -0.5, 0.5)
        length = np.sqrt(bank.energy[first] * bank.energy[others])
        similarity[first, others] = highest / np.maximum(length, 1e-12)
        lag[first, others] = best - middle
    return similarity, lag


def _some(rows: np.ndarray) -> np.ndarray:
    if len(rows) <= MAX_PER_CLUSTER:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MAX_PER_CLUSTER).round().astype(int)]


def _project(
    snippets: Snippets,
    rows: list[np.ndarray],
    bank: TemplateBank,
    first: int,
    second: int,
    lag: int,
    *,
    shifted: bool,
) -> np.ndarray:
    """Project the spikes of one of two clusters on the difference of their templates.

    Only on channels that both neighbourhoods hold. ``lag`` is where the first template must be read,
    relative to the second's peak, to fit it; ``shifted`` takes the second cluster's spikes.
    """
    both = [snippets.channels[r[0]] for r in rows]
    channels = both[1] if shifted else both[0]
    shared = (channels >= 0) & np.isin(channels, both[0 if shifted else 1])
    num_samples = snippets.waveforms.shape[1]
    start = bank.num_before - snippets.num_before
    own, other = (second, first) if shifted else (first, second)
    move = lag if shifted else -lag
    template = bank.templates[own][start : start + num_samples]
    rival = _window(bank.templates[other], start + move, num_samples)
    difference = (template - rival) * (-1.0 if shifted else 1.0)
    weights = np.where(shared, difference[:, channels], 0.0)
    return np.einsum("nts,ts->n", snippets.waveforms[rows[1 if shifted else 0]], weights)


def _window(template: np.ndarray, start: int, num_samples: int) -> np.ndarray:
    """Rows ``start`` to ``start + num_samples`` of a template, zero beyond its ends."""
    window = np.zeros((num_samples, template.shape[1]), dtype=template.dtype)
    low, high = max(start, 0), min(start + num_samples, len(template))
    if high > low:
        window[low - start : high - start] = template[low:high]
    return window
