"""Clusters and units that are one neuron, and those that only look alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.params import MergeParams
from accm_core.signal.motion import Motion
from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.merge import (
    compare_templates,
    count_pairs,
    merge_clusters,
    merge_duplicates,
    merge_pieces,
)
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import Peaks, Snippets

FS = 30_000
NUM_BEFORE, NUM_SAMPLES, NUM_CHANNELS = 30, 90, 6
SNIPPET_BEFORE, SNIPPET_SAMPLES = 21, 60
MAX_LAG = 15
TIME = np.arange(NUM_SAMPLES) - NUM_BEFORE
WHITE = np.r_[1.0, np.zeros(99)]
NEAR = np.array([[0, 1, 2, -1], [1, 0, 2, 3], [2, 1, 3, 0], [3, 2, 4, 1], [4, 3, 5, 2], [5, 4, 3, -1]])


def unit(depth=12, width=4.0, place=1.5, delay=0):
    time = (TIME - delay)[:, None]
    spread = np.exp(-0.5 * ((np.arange(NUM_CHANNELS) - place) / 0.8) ** 2)
    spread[spread < 0.01] = 0
    return (
        depth * (-np.exp(-0.5 * (time / width) ** 2) + 0.4 * np.exp(-0.5 * ((time - 16) / 8) ** 2)) * spread
    )


def make_bank(templates):
    templates = np.stack(templates).astype(np.float32)
    return build_bank(templates, NUM_BEFORE, WHITE, np.full(len(templates), 0.1))


@pytest.mark.parametrize("delay", [-10, -3, 0, 1, 7])
def test_a_delayed_template_is_the_same_at_its_lag(delay):
    """The second must be read ``delay`` samples earlier to lie on the first."""
    similarity, lag = compare_templates(make_bank([unit(), 2 * unit(delay=delay)]), MAX_LAG)
    np.testing.assert_allclose(similarity, 1, atol=0.02)
    np.testing.assert_array_equal(lag, [[0, -delay], [delay, 0]])


@pytest.mark.parametrize("delay", [-0.5, 0.5])
def test_a_delay_of_part_of_a_sample_makes_no_other_template(delay):
    """Spikes of a neuron that two channels see equally well are aligned to one or the other."""
    templates = [unit(width=2.0), unit(width=2.0, delay=delay)]
    flat = np.stack(templates).reshape(2, -1)
    assert flat[0] @ flat[1] / np.linalg.norm(flat, axis=1).prod() < 0.996
    bank = make_bank(templates)
    similarity, _ = compare_templates(bank, MAX_LAG)
    unmoved = bank.correlations[bank.pair_row[0, 1]].max() / np.sqrt(bank.energy.prod())
    assert 1 - similarity[0, 1] < 0.2 * (1 - unmoved)


def test_similarity_is_the_cosine():
    templates = [unit(place=0), unit(place=0.8), unit(12, 7.0, 0), unit(place=5)]
    similarity, _ = compare_templates(make_bank(templates), 0)
    flat = np.stack(templates).reshape(4, -1)
    lengths = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(similarity, flat @ flat.T / lengths / lengths[:, None], atol=0.03)
    assert similarity[0, 3] == 0


def test_the_lag_keeps_within_its_limit():
    _, lag = compare_templates(make_bank([unit(), unit(delay=12)]), 5)
    assert np.abs(lag).max() == 5


def make_clusters(clusters, num_spikes=300, noise=1.0, seed=0):
    """Snippets of clusters given as (template, channel whose neighbourhood cuts them, delay)."""
    rng = np.random.default_rng(seed)
    start = NUM_BEFORE - SNIPPET_BEFORE
    waveforms, channels = [], []
    for template, channel, delay in clusters:
        slots = NEAR[channel]
        window = template[start + delay : start + delay + SNIPPET_SAMPLES]
        cut = np.where(slots >= 0, window[:, slots], 0.0)
        waveforms.append(cut + noise * rng.normal(0, 1, (num_spikes, *cut.shape)) * (slots >= 0))
        channels.append(np.tile(slots, (num_spikes, 1)))
    count = num_spikes * len(clusters)
    place = np.repeat([channel for _, channel, _ in clusters], num_spikes)
    zeros = np.zeros(count, np.float32)
    peaks = Peaks(np.arange(count), place, zeros, zeros)
    snippets = Snippets(
        np.concatenate(waveforms).astype(np.float32), np.concatenate(channels), peaks, SNIPPET_BEFORE
    )
    return np.repeat(np.arange(len(clusters)), num_spikes), snippets


def merge(clusters, **changes):
    """Units of clusters given as (template, channel[, delay of the peak within it])."""
    clusters = [(*cluster, 0)[:3] for cluster in clusters]
    labels, snippets = make_clusters(clusters)
    bank = make_bank([np.roll(template, -delay, axis=0) for template, _, delay in clusters])
    where = np.array([channel for _, channel, _ in clusters])
    return merge_clusters(labels, snippets, where, bank, MergeParams(**changes), max_lag=MAX_LAG).tolist()


A = unit()
CASES = {
    "one-unit-on-two-channels": ([(A, 1), (A, 2)], [0, 0]),
    "on-three": ([(A, 1), (A, 2), (A, 0)], [0, 0, 0]),
    "peaks-at-other-times": ([(A, 1), (A, 2, 6)], [0, 0]),
    "earlier": ([(A, 1), (A, 2, -6)], [0, 0]),
    "same-place-was-compared-before": ([(A, 1), (A, 1)], [0, 1]),
    "same-place-aligned-otherwise": ([(A, 1), (A, 1, 6)], [0, 0]),
    "same-place-two-aligned-otherwise": ([(A, 1), (unit(width=5.5, place=1.9), 1, 6)], [0, 1]),
    "alike-but-two": ([(A, 1), (unit(width=5.5, place=1.9), 2)], [0, 1]),
    "mirror-images": ([(unit(place=1.2), 1), (unit(place=1.8), 2)], [0, 1]),
    "one-is-smaller": ([(A, 1), (0.7 * A, 2)], [0, 1]),
    "far-apart": ([(unit(place=0), 0), (unit(place=5), 5)], [0, 1]),
    "two-units-of-two": ([(A, 1), (unit(place=4.5), 4), (A, 2), (unit(place=4.5), 5)], [0, 1, 0, 1]),
    "only-one": ([(A, 1)], [0]),
}


@pytest.mark.parametrize(("clusters", "expected"), CASES.values(), ids=CASES.keys())
def test_clusters_of_one_unit_are_merged_and_others_not(clusters, expected):
    if expected == [0, 1] and len(clusters) == 2 and clusters[0][1] != clusters[1][1]:
        # the planted pair must be alike enough to be compared, or have nothing in common
        similarity, _ = compare_templates(make_bank([clusters[0][0], clusters[1][0]]), MAX_LAG)
        assert similarity[0, 1] > MergeParams().min_similarity or similarity[0, 1] == 0
    assert merge(clusters) == expected


@pytest.mark.parametrize("present", [(0, 2), (1, 2), (0, 1, 2)])
def test_a_small_cluster_of_two_units_goes_to_one_and_does_not_join_them(present):
    other = unit(width=5.5, place=1.9)
    templates = [A, other, (A + other) / 2]
    labels, snippets = make_clusters(list(zip(templates, (1, 2, 0), (0, 0, 0), strict=True)))
    rows = np.flatnonzero(np.isin(labels, present) & ((labels < 2) | (np.arange(len(labels)) % 8 == 0)))
    snippets = Snippets(
        snippets.waveforms[rows], snippets.channels[rows], snippets.peaks.select(rows), SNIPPET_BEFORE
    )
    units = merge_clusters(
        np.searchsorted(present, labels[rows]),
        snippets,
        np.array([1, 2, 0])[list(present)],
        make_bank([templates[k] for k in present]),
        MergeParams(split_threshold=2.5),
        max_lag=MAX_LAG,
    )
    assert len(np.unique(units)) == len(present) - 1


def test_parameters_of_merging():
    pair = [(A, 1), (unit(width=5.5, place=1.9), 2)]
    assert merge(pair, split_threshold=20) == [0, 0]
    assert merge(pair, split_threshold=20, min_similarity=0.999) == [0, 1]


def refractory_train(rng, num_spikes, mean_ms=20.0, refractory_ms=3.0):
    intervals = refractory_ms + rng.exponential(mean_ms - refractory_ms, num_spikes)
    return (np.cumsum(intervals) * FS / 1000).astype(np.int64)


def make_matches(trains, scales=None):
    samples = np.concatenate(trains)
    units = np.repeat(np.arange(len(trains)), [len(t) for t in trains])
    scale = np.ones(len(samples)) if scales is None else np.array(scales)[units]
    order = np.lexsort((units, samples))
    zeros = np.zeros(len(samples), np.float32)
    return Matches(samples[order], zeros, units[order], scale[order].astype(np.float32), zeros, zeros)


def merge_trains(templates, trains, scales=None, **options):
    matches = make_matches(trains, scales)
    average = WaveformAverage(len(templates), NUM_SAMPLES, NUM_CHANNELS)
    average.counts += [len(t) for t in trains]
    average.total += np.stack(templates) * average.counts[:, None, None]
    observed = max(int(t.max(initial=0)) for t in trains) + 1
    return merge_duplicates(
        make_bank(templates),
        matches,
        average,
        MergeParams(),
        observed=observed,
        sampling_frequency=FS,
        **options,
    )


def halves(rng, num_spikes=3000, share=0.6, refractory_ms=3.0):
    train = refractory_train(rng, num_spikes, refractory_ms=refractory_ms)
    first = rng.random(num_spikes) < share
    return [train[first], train[~first]]


@pytest.mark.parametrize("seed", range(3))
def test_halves_of_one_neuron_are_merged(seed):
    trains = halves(np.random.default_rng(seed))
    matches, average = merge_trains([A, 0.8 * A], trains)
    assert (matches.unit_index == 0).all()
    np.testing.assert_array_equal(matches.sample_index, np.sort(np.concatenate(trains)))
    # what was 1 of the smaller template is 0.8 of the larger
    assert sorted(set(matches.scale.round(2).tolist())) == [np.float32(0.8).round(2), 1.0]
    assert average.counts.tolist() == [3000, 0]
    share = len(trains[0]) / 3000
    np.testing.assert_allclose(average.mean()[0], A * (share + 0.8 * (1 - share)), atol=0.01)
    assert not average.mean()[1].any()


@pytest.mark.parametrize(("size", "merged"), [(0.3, True), (0.2, False)])
def test_far_spikes_that_are_not_seen_beside_large_ones_are_no_half(size, merged):
    for order in (1, -1):
        trains = halves(np.random.default_rng(0))[::order]
        matches, _ = merge_trains([A, size * A][::order], trains)
        assert (len(set(matches.unit_index.tolist())) == 1) is merged


def test_halves_that_never_burst_are_merged_though_they_differ():
    matches, _ = merge_trains([A, unit(width=5.0)], halves(np.random.default_rng(0), refractory_ms=12.0))
    assert (matches.unit_index == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_two_neurons_of_the_same_shape_are_not(seed):
    rng = np.random.default_rng(seed)
    trains = [refractory_train(rng, 1500, 20), refractory_train(rng, 1500, 20)]
    matches, average = merge_trains([A, A], trains)
    assert np.bincount(matches.unit_index).tolist() == [1500, 1500]
    assert average.counts.tolist() == [1500, 1500]


@pytest.mark.parametrize(
    ("other", "merged"), [(A, True), (1.05 * A, True), (1.5 * A, False), (unit(width=5.0), False)]
)
def test_with_few_spikes_what_noise_does_not_hide_counts(other, merged):
    rng = np.random.default_rng(0)
    trains = [refractory_train(rng, 40, 400), refractory_train(rng, 30, 400)]
    similarity, _ = compare_templates(make_bank([A, other]), MAX_LAG)
    assert similarity[0, 1] > MergeParams().duplicate_similarity
    matches, _ = merge_trains([A, other], trains)
    assert (len(set(matches.unit_index.tolist())) == 1) is merged


@pytest.mark.parametrize(("smaller", "follows"), [(0, 1), (1, 0), (0, 0)])
def test_with_few_spikes_sizes_do_not_count_where_the_smaller_follow_in_bursts(smaller, follows):
    """The first spikes of some bursts, and the later, smaller ones, whichever are more."""
    rng = np.random.default_rng(0)
    bursts = np.sort(rng.choice(120 * FS // 1000, 50, replace=False) * 1000)
    leading, following = bursts, bursts[:35] + 15 * FS // 1000
    trains = [leading, following] if follows == 1 else [following, leading]
    templates = [A, 1.5 * A] if smaller == 0 else [1.5 * A, A]
    matches, _ = merge_trains(templates, trains)
    assert (len(set(matches.unit_index.tolist())) == 1) is (smaller == follows)


def test_sizes_do_not_count_where_the_tissue_moves():
    rng = np.random.default_rng(0)
    trains = [refractory_train(rng, 40, 400), refractory_train(rng, 30, 400)]
    for moves in (False, True):
        matches, _ = merge_trains([A, 1.5 * A], trains, moves=moves)
        assert (len(set(matches.unit_index.tolist())) == 1) is moves


@pytest.mark.parametrize(("rests", "merged"), [(True, True), (False, False)])
def test_with_few_spikes_bursts_tell_whether_two_rest_together(rests, merged):
    """The later spikes of one neuron's bursts, smaller; and two neurons that fire in the same bursts."""
    rng = np.random.default_rng(0)
    bursts = np.sort(rng.choice(120 * FS // 1000, 100, replace=False) * 1000)
    delay_ms = rng.uniform(2.5, 9.5, 100) if rests else rng.uniform(-9.5, 9.5, 100)
    trains = [bursts, bursts + (delay_ms * FS / 1000).astype(np.int64)]
    other = unit(width=5.0)
    matches, _ = merge_trains([A, other], trains)
    assert (len(set(matches.unit_index.tolist())) == 1) is merged
    alone, _ = merge_trains([A, other], [bursts, bursts + 600])
    assert len(set(alone.unit_index.tolist())) == 2


@pytest.mark.parametrize(("num_pairs", "merged"), [(0, True), (4, True), (9, False)])
def test_with_few_spikes_pairs_still_tell_that_two_do_not_rest_together(num_pairs, merged):
    """Alike and lost in the noise, and fewer than ten pairs to be expected; with nine they are two."""
    rng = np.random.default_rng(0)
    one = np.sort(rng.choice(120 * FS // 1000, 100, replace=False) * 1000)
    other = np.sort(rng.choice(120 * FS // 1000, 100, replace=False) * 1000 + 500)
    other[:num_pairs] = one[:num_pairs] + int(1.2 * FS / 1000)
    matches, _ = merge_trains([A, 1.05 * A], [one, np.sort(other)])
    assert (len(set(matches.unit_index.tolist())) == 1) is merged


@pytest.mark.parametrize(
    ("num_channels", "width", "cosine", "size", "merged"),
    [
        (4, 4.5, 0.995, 1.0, False),
        (10, 4.5, 0.995, 1.0, True),
        (10, 5.7, 0.97, 1.0, True),
        (10, 5.7, 0.97, 1.3, True),
        (10, 5.7, 0.97, 2.5, False),
        (10, 6.2, 0.95, 1.0, False),
    ],
)
def test_with_few_spikes_many_channels_tell_that_nearly_the_same_is_one(
    num_channels, width, cosine, size, merged
):
    rng = np.random.default_rng(0)
    trains = [refractory_train(rng, 40, 400), refractory_train(rng, 30, 400)]
    one = 40 * np.outer(-np.exp(-0.5 * (TIME / 4.0) ** 2), np.linspace(1, 0.5, num_channels))
    other = 40 * size * np.outer(-np.exp(-0.5 * (TIME / width) ** 2), np.linspace(1, 0.4, num_channels))
    bank = make_bank([one, other])
    similarity, _ = compare_templates(bank, MAX_LAG)
    assert similarity[0, 1] == pytest.approx(cosine, abs=0.005)
    average = WaveformAverage(2, NUM_SAMPLES, num_channels)
    average.counts += [40, 30]
    observed = max(int(t.max()) for t in trains) + 1
    matches, _ = merge_duplicates(
        bank, make_matches(trains), average, MergeParams(), observed=observed, sampling_frequency=FS
    )
    assert (len(set(matches.unit_index.tolist())) == 1) is merged


@pytest.mark.parametrize(
    ("in_turns", "num_spikes", "merged"), [(True, 160, True), (False, 160, False), (True, 40, False)]
)
def test_units_that_take_turns_may_be_less_alike(in_turns, num_spikes, merged):
    """One neuron that moves to and fro, 20 s here and 20 s there; and two that fire all the time."""
    rng = np.random.default_rng(0)
    samples = np.sort(rng.choice(120 * FS // 90, 2 * num_spikes, replace=False) * 90)
    here = samples // (20 * FS) % 2 == 0 if in_turns else rng.random(2 * num_spikes) < 0.5
    one = 40 * np.outer(-np.exp(-0.5 * (TIME / 4.0) ** 2), np.linspace(1, 0.5, 10))
    other = 40 * np.outer(-np.exp(-0.5 * (TIME / 5.7) ** 2), np.linspace(1, 0.2, 10))
    bank = make_bank([one, other])
    similarity, _ = compare_templates(bank, MAX_LAG)
    assert 0.95 < similarity[0, 1] < 0.98
    average = WaveformAverage(2, NUM_SAMPLES, 10)
    average.counts += [here.sum(), (~here).sum()]
    matches, _ = merge_duplicates(
        bank,
        make_matches([samples[here], samples[~here]]),
        average,
        MergeParams(),
        observed=120 * FS,
        sampling_frequency=FS,
    )
    assert (len(set(matches.unit_index.tolist())) == 1) is merged


SWAY_SECONDS = np.arange(0, 121, 1.0)
SWAY = Motion(
    SWAY_SECONDS * FS,
    np.array([0.0]),
    15 * np.sin(2 * np.pi * SWAY_SECONDS / 40)[:, None],
    np.column_stack([np.zeros(10), 20.0 * np.arange(10)]),
    axis=1,
)


def piece(slope, num_channels=10):
    return 40 * np.outer(-np.exp(-0.5 * (TIME / 4.0) ** 2), np.linspace(1, slope, num_channels))


def merge_in_places(is_first, templates, num_spikes=200):
    """Of evenly spread spikes, those at some places (µm) and times (s) are the first template's."""
    samples = np.linspace(0, 120 * FS - 1, num_spikes).astype(np.int64)
    first = is_first(SWAY.displacement_of(samples, np.zeros(num_spikes, np.int64)), samples / FS)
    trains = [samples[first], samples[~first]]
    average = WaveformAverage(2, NUM_SAMPLES, templates[0].shape[1])
    average.counts += [len(train) for train in trains]
    average.total += np.stack(templates) * average.counts[:, None, None]
    matches, average = merge_pieces(
        make_bank(templates), make_matches(trains), average, SWAY, MergeParams(), sampling_frequency=FS
    )
    return trains, matches, average


@pytest.mark.parametrize(
    "is_first",
    [lambda place, time: place > -1, lambda place, time: np.abs(place) > 8],
    ids=["here", "around"],
)
def test_pieces_of_a_neuron_here_and_there_are_merged(is_first):
    templates = [piece(0.9), 0.5 * piece(0.05)]
    similarity, _ = compare_templates(make_bank(templates), MAX_LAG)
    assert 0.8 < similarity[0, 1] < 0.9
    trains, matches, average = merge_in_places(is_first, templates)
    assert len(trains[0]) > len(trains[1]) > 40
    assert (matches.unit_index == 0).all()
    np.testing.assert_array_equal(matches.sample_index, np.sort(np.concatenate(trains)))
    assert average.counts.tolist() == [200, 0]
    ratio = similarity[0, 1] * np.linalg.norm(templates[1]) / np.linalg.norm(templates[0])
    np.testing.assert_allclose(np.unique(matches.scale), [ratio, 1], atol=0.01)


@pytest.mark.parametrize(
    ("is_first", "second", "num_spikes"),
    [
        (lambda place, time: time % 0.02 < 0.01, piece(0.05), 200),
        (lambda place, time: time % 80 < 40, piece(0.05), 200),
        (lambda place, time: place > 0, piece(-0.3), 200),
        (lambda place, time: place > 0, piece(0.05), 30),
    ],
    ids=["everywhere", "in turns", "unlike", "few"],
)
def test_units_that_do_not_take_turns_as_the_tissue_moves_stay(is_first, second, num_spikes):
    trains, matches, _ = merge_in_places(is_first, [piece(0.9), second], num_spikes)
    assert np.bincount(matches.unit_index).tolist() == [len(train) for train in trains]
    assert min(len(train) for train in trains) > 10


def test_on_few_channels_neurons_may_be_alike():
    trains, matches, _ = merge_in_places(lambda place, time: place > 0, [piece(0.9, 7), piece(0.2, 7)])
    assert np.bincount(matches.unit_index).tolist() == [len(train) for train in trains]


def test_the_smaller_goes_to_the_larger_wherever_it_stands():
    trains = halves(np.random.default_rng(0), share=0.2)
    matches, average = merge_trains([A, A], trains)
    assert (matches.unit_index == 1).all()
    assert average.counts.tolist() == [0, 3000]


def test_delayed_halves_are_averaged_in_time():
    delay = 6
    _, average = merge_trains([A, unit(delay=delay)], halves(np.random.default_rng(0)))
    np.testing.assert_allclose(average.mean()[0][:-delay], A[:-delay], atol=0.3)


def test_units_of_other_shapes_and_without_spikes_are_left_alone():
    trains = [*halves(np.random.default_rng(0)), np.zeros(0, np.int64)]
    matches, average = merge_trains([A, unit(width=7, place=2.5), A], trains)
    assert average.counts.tolist() == [len(t) for t in trains]
    np.testing.assert_array_equal(np.bincount(matches.unit_index, minlength=3), average.counts)


TRAINS = st.lists(st.integers(0, 300), max_size=30).map(lambda t: np.array(sorted(t), dtype=np.int64))


@given(first=TRAINS, second=TRAINS, near=st.integers(0, 20), far=st.integers(20, 80))
def test_pairs_are_counted_as_by_two_loops(first, second, near, far):
    expected = sum(near < abs(int(a) - int(b)) <= far for a in first for b in second)
    assert count_pairs(first, second, (near, far)) == expected
