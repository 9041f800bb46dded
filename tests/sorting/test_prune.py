"""Templates that are no unit: planted sums, weak ones and misfits, among units that must stay."""

from dataclasses import replace

import numpy as np
import pytest

from accm_core.params import MatchParams
from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.prune import (
    MIN_CLOSE,
    MIN_MEDIAN_SCALE,
    find_crowds,
    find_echoes,
    find_far_spikes,
    find_low,
    find_misfits,
    find_piled,
    find_rare,
    find_restless,
    find_sums,
)

NUM_BEFORE, NUM_SAMPLES, NUM_CHANNELS = 30, 90, 8
WHITE = np.r_[1.0, np.zeros(99)]
TIME = np.arange(NUM_SAMPLES) - NUM_BEFORE
OBSERVED = 500_000


def unit(depth, width, place, delay=0.0):
    """A spike of a cell near channel ``place``, ``delay`` samples late."""
    time = (TIME - delay)[:, None]
    spread = np.exp(-np.abs(np.arange(NUM_CHANNELS) - place) / 1.2)
    shape = -np.exp(-0.5 * (time / width) ** 2) + 0.3 * np.exp(-0.5 * ((time - 4 * width) / (3 * width)) ** 2)
    return depth * shape * spread


A, B, C = (12, 3.0, 0), (10, 5.0, 3), (15, 4.0, 7)
UNITS = [unit(*A), unit(*B), unit(*C)]


def make_bank(templates):
    templates = np.stack(templates).astype(np.float32)
    return build_bank(templates, NUM_BEFORE, WHITE, np.full(len(templates), 0.1))


def sums_among(templates, counts=None):
    """The later a template stands, the rarer it is, unless its counts are given."""
    counts = 1000 - np.arange(len(templates)) if counts is None else np.array(counts)
    return find_sums(make_bank(templates), counts, max_lag=30, observed=OBSERVED).tolist()


def test_true_units_are_no_sums():
    assert sums_among(UNITS) == [False] * 3


@pytest.mark.parametrize("delay", [-20, -6, 0, 3, 9, 20])
@pytest.mark.parametrize("position", [0, 3])
def test_a_sum_of_two_is_found_wherever_it_stands(delay, position):
    templates, counts = list(UNITS), [900, 300, 800]
    templates.insert(position, unit(*A) + unit(*B, delay=delay))
    counts.insert(position, 200)
    assert sums_among(templates, counts) == [k == position for k in range(4)]


def test_a_third_unit_that_looks_like_the_sum_does_not_hide_it():
    """Taken apart one after the other, the sum would begin with the third."""
    total = UNITS[0] + UNITS[1]
    third = total + 0.5 * unit(*C, delay=9)
    assert sums_among([*UNITS, third, total]) == [False, False, False, False, True]


def test_what_fires_more_often_than_its_parts_is_no_sum():
    total = UNITS[0] + unit(*B, delay=4)
    assert sums_among([*UNITS, total], [900, 300, 800, 250]) == [False, False, False, True]
    assert sums_among([*UNITS, total], [900, 300, 800, 300]) == [False] * 4


def test_what_fires_far_more_often_than_its_parts_meet_is_no_sum():
    """By chance 900 and 600 spikes are within 30 samples of each other 66 times."""
    total = UNITS[0] + unit(*B, delay=4)
    assert sums_among([*UNITS, total], [900, 600, 800, 590]) == [False, False, False, True]
    bank, counts = make_bank([*UNITS, total]), np.array([900, 600, 800, 590])
    assert find_sums(bank, counts, max_lag=30, observed=600_000).tolist() == [False] * 4


def test_parts_farther_apart_than_the_lag_are_not_tried():
    total = UNITS[0] + unit(*B, delay=20)
    bank, counts = make_bank([*UNITS, total]), np.array([900, 300, 800, 200])
    assert find_sums(bank, counts, max_lag=25, observed=OBSERVED).tolist() == [False, False, False, True]
    assert find_sums(bank, counts, max_lag=15, observed=OBSERVED).tolist() == [False] * 4


def test_several_sums_are_found_and_do_not_explain_each_other_away():
    sums = [unit(*A) + unit(*B, delay=delay) for delay in (4, 12)]
    assert sums_among([*UNITS, *sums]) == [False, False, False, True, True]


@pytest.mark.parametrize(
    "other",
    [
        unit(14, 3.0, 1),
        unit(12, 3.2, 0),
        1.25 * UNITS[0],
        UNITS[0] + 0.5 * UNITS[1],
        unit(*A) + unit(20, 8.0, 5),
    ],
    ids=["neighbour", "alike", "larger", "half-a-partner", "partner-unknown"],
)
def test_what_is_not_the_sum_of_units_stays(other):
    assert sums_among([*UNITS, other]) == [False] * 4


def test_one_unit_or_none():
    assert sums_among(UNITS[:1]) == [False]
    empty = make_bank(UNITS).select(np.zeros(3, bool))
    assert find_sums(empty, np.zeros(0, np.int64), 30, observed=OBSERVED).tolist() == []


def low_among(heights, min_peak):
    """Of units that are that high on one channel whose noise is 4 µV; the others' noise is 8."""
    mean = np.zeros((len(heights), NUM_SAMPLES, NUM_CHANNELS), np.float32)
    mean[:, NUM_BEFORE, 2] = heights
    noise = np.full(NUM_CHANNELS, 8.0)
    noise[2] = 4.0
    return find_low(mean, noise, min_peak).tolist()


def test_low_units_are_told_by_their_height():
    """A unit whose spikes all overlap has no mean waveform; that is no reason to drop it."""
    heights = [-11.9, -12.1, 12.1, -100, 0]
    assert low_among(heights, 3) == [True, False, False, False, False]
    assert low_among(heights, 3.1) == [True, True, True, False, False]
    assert low_among([], 3) == []


FS, NUM_OBSERVED = 10_000, 3_000_000


def bank_of(snrs, scale_std=0.1):
    """Units of these signal-to-noise ratios, all alike."""
    bank = make_bank([unit(*A)] * len(snrs))
    weights = bank.weights * (np.asarray(snrs) / np.sqrt(bank.energy))[:, None, None]
    return bank.reweigh(weights, np.full(len(snrs), scale_std))


def matches_of(bank, sizes, trains=None, params=None):
    """Matches of spikes of these sizes, in noise levels; what is under the threshold is not seen."""
    params = params or MatchParams()
    rng = np.random.default_rng(1)
    fit = np.concatenate(sizes) * np.repeat(np.sqrt(bank.energy), [len(s) for s in sizes])
    units = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    samples = rng.integers(0, NUM_OBSERVED, len(units)) if trains is None else np.concatenate(trains)
    energy, prior = bank.energy[units], bank.prior[units]
    gain = (fit + prior) ** 2 / (energy + prior) - prior
    seen = (gain > params.threshold**2) & (fit > params.min_scale * energy)
    seen = np.flatnonzero(seen)[np.argsort(samples[seen], kind="stable")]
    zeros = np.zeros(len(seen), np.float32)
    scale = ((fit + prior) / (energy + prior)).astype(np.float32)
    return Matches(samples[seen], zeros, units[seen], scale[seen], gain[seen].astype(np.float32), zeros)


def restless_among(snrs, sizes, trains, rate=1.0):
    bank, params = replace(bank_of(snrs), log_rate=np.full(len(snrs), np.log(rate))), MatchParams()
    matches = matches_of(bank, sizes, trains, params)
    energy = bank.energy[matches.unit_index]
    options = {"num_samples": NUM_OBSERVED, "sampling_frequency": FS}
    return find_restless(matches, bank, energy, params, **options).tolist()


def resting_and_unrelated(size, num_spikes=4000):
    """Sizes and trains of two units: one that rests after its spikes, one that does not."""
    rng = np.random.default_rng(0)
    sizes = rng.normal(size, 1, 4000)
    trains = np.cumsum(rng.integers(FS // 200, FS // 7, 4000)), rng.integers(0, NUM_OBSERVED, 4000)
    return [sizes[:num_spikes]] * 2, [train[:num_spikes] for train in trains]


def test_a_weak_unit_that_never_rests_is_of_many_neurons():
    assert restless_among([6, 6], *resting_and_unrelated(6)) == [False, True]
    assert restless_among([6, 6], *resting_and_unrelated(6, num_spikes=200)) == [False, False]
    pairs = np.add.outer(np.arange(1, 21) * FS, [0, 12]).ravel()  # too few spikes to tell
    assert restless_among([6], [np.full(len(pairs), 6.0)], [pairs]) == [False]
    assert restless_among([12, 12], *resting_and_unrelated(12)) == [False, False]
    for rate in (1.0, 5.0):  # smaller spikes are looked for, far from which it is
        found = restless_among([7.6, 7.6], *resting_and_unrelated(7.6), rate=rate)
        assert found == [False, rate == 1.0]
    assert restless_among([6, 6], [np.zeros(0)] * 2, [np.zeros(0, int)] * 2) == [False, False]


def test_misfits_match_what_is_smaller_than_they_are():
    scales = {0: [0.9, 1.0, 1.1], 1: [0.5, 0.55, 1.2], 3: [1.5], 4: [MIN_MEDIAN_SCALE + 0.01]}
    bank = bank_of([15.0] * 5)
    sizes = [np.array(scales.get(unit, []), float) * 15 for unit in range(5)]
    matches = matches_of(bank, sizes)
    energy = bank.energy[matches.unit_index]
    assert find_misfits(matches, bank, energy).tolist() == [False, True, False, False, False]
    assert find_misfits(Matches.empty(), bank, np.zeros(0)).tolist() == [False] * 5


def test_what_a_small_template_matches_leans_most_to_its_size():
    """The scale is that of the match; what the traces alone give is 0.78 and 0.35."""
    bank = bank_of([15.0])
    matches = replace(matches_of(bank, [np.full(10, 15.0)]), scale=np.full(10, 0.85, np.float32))
    assert not find_misfits(matches, bank, np.full(10, 225.0)).any()
    assert find_misfits(matches, bank, np.full(10, 30.0)).all()


def echoes_among(trains, snrs=(10.0, 40.0)):
    bank = bank_of(snrs)
    sizes = [np.full(len(train), snr) for train, snr in zip(trains, snrs, strict=True)]
    matches = matches_of(bank, sizes, trains)
    return find_echoes(matches, bank, num_samples=NUM_OBSERVED, sampling_frequency=FS).tolist()


def test_echoes_follow_a_larger_unit_at_a_fixed_delay():
    rng = np.random.default_rng(0)
    large = np.arange(1000, NUM_OBSERVED - 1000, 500)
    unrelated = rng.integers(0, NUM_OBSERVED, 1000)
    late = np.sort(rng.choice(large, 500, replace=False)) + 25
    assert echoes_among([late, large]) == [True, False]
    assert echoes_among([late, large], snrs=(30, 40)) == [False, False]  # not that much smaller
    assert echoes_among([late + rng.integers(-25, 15, 500), large]) == [False, False]
    assert echoes_among([np.r_[late, unrelated], large]) == [True, False]
    assert echoes_among([np.r_[late[:200], unrelated], large]) == [False, False]
    assert echoes_among([late, large[:0]]) == [False, False]


def test_many_spikes_of_a_larger_unit_make_no_echo():
    """They are near the spikes of any other unit by chance."""
    large = np.arange(1000, NUM_OBSERVED - 1000, 8)
    unrelated = np.random.default_rng(0).integers(0, NUM_OBSERVED, 1000)
    assert echoes_among([unrelated, large]) == [False, False]


def crowds_among(trains):
    samples = np.concatenate([np.asarray(train, np.int64) for train in trains])
    units = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    order = np.argsort(samples, kind="stable")
    zeros = np.zeros(len(samples), np.float32)
    matches = Matches(samples[order], zeros, units[order], zeros, zeros, zeros)
    return find_crowds(matches, len(trains), NUM_OBSERVED, FS).tolist()


def test_crowds_fire_close_to_themselves_more_often_than_chance():
    rng = np.random.default_rng(0)
    unrelated = np.sort(
        rng.choice(NUM_OBSERVED, 12_000, replace=False)
    )  # 40 Hz: 6 % of intervals under 1.5 ms
    neuron = np.arange(0, NUM_OBSERVED, 300)
    doublets = np.sort(np.concatenate([neuron[:3000], neuron[:3000] + 9]))
    assert crowds_among([unrelated, neuron, doublets, []]) == [False, False, True, False]


def test_a_few_close_spikes_make_no_crowd():
    neuron = np.arange(0, NUM_OBSERVED, 3000)
    few = np.sort(np.concatenate([neuron[:300], neuron[: MIN_CLOSE - 1] + 9]))
    more = np.sort(np.concatenate([neuron[:300], neuron[:MIN_CLOSE] + 9]))
    rare = np.sort(np.concatenate([neuron, neuron[:MIN_CLOSE] + 9]))
    assert crowds_among([few, more, rare]) == [False, True, False]


def far_among(samples, scales, duration_s=600.0):
    """Of the spikes of one unit among those of another, which is left alone."""
    order = np.argsort(samples, kind="stable")
    samples, scales = np.asarray(samples)[order], np.asarray(scales, np.float32)[order]
    samples = np.repeat(samples, 2)
    scales = np.stack([scales, np.ones_like(scales)], axis=1).ravel()
    zeros = np.zeros(len(samples), np.float32)
    units = np.tile([1, 0], len(samples) // 2)
    matches = Matches(samples, zeros, units, scales, zeros, zeros)
    found = find_far_spikes(matches, matches.scale, 3, int(duration_s * FS), FS)
    assert not found[units == 0].any()
    return found[units == 1], scales[units == 1]


def spikes_of_two_sizes(small, seed=0, num_small=60):
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 600 * FS, 1000)
    return samples, np.r_[rng.normal(1, 0.1, 1000 - num_small), rng.normal(small, 0.03, num_small)]


@pytest.mark.parametrize("seed", range(3))
def test_small_spikes_behind_a_gap_are_far(seed):
    samples, scales = spikes_of_two_sizes(0.5, seed)
    found, scales = far_among(samples, scales)
    assert (found == (scales < 0.62)).mean() > 0.99
    assert found.sum() > 50


@pytest.mark.parametrize("seed", range(5))
def test_sizes_without_a_gap_are_one_neurons(seed):
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 600 * FS, 1000)
    assert not far_among(samples, rng.normal(1, 0.2, 1000))[0].any()


def test_small_spikes_that_are_nearly_all_stay():
    """Then it is the large ones that are not understood."""
    assert far_among(*spikes_of_two_sizes(0.5, num_small=600))[0].sum() > 580
    assert not far_among(*spikes_of_two_sizes(0.5, num_small=800))[0].any()


def test_a_gap_is_measured_by_the_usual_size_of_the_large_ones():
    """Small spikes in a template make it smaller than the unit: of these, 0.9 is small."""
    samples, scales = spikes_of_two_sizes(0.6)
    assert far_among(samples, 1.5 * scales)[0].sum() > 50


def test_spikes_hardly_smaller_are_not_far():
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 600 * FS, 2000)
    scales = np.r_[rng.normal(1, 0.01, 1000), rng.normal(0.9, 0.01, 1000)]
    scales[-1] = 1.0  # fewer than half are small
    assert not far_among(samples, scales)[0].any()


def test_small_spikes_of_a_burst_are_the_neurons_own():
    rng = np.random.default_rng(0)
    first = np.sort(rng.integers(0, 600 * FS, 900))
    second = first[:90] + FS // 200
    samples = np.r_[first, second]
    scales = np.r_[rng.normal(1, 0.1, 900), rng.normal(0.5, 0.03, 90)]
    assert not far_among(samples, scales)[0].any()
    moved = np.r_[first, rng.integers(0, 600 * FS, 90)]
    assert far_among(moved, scales)[0].any()


def piled_among(samples, own):
    """Of the spikes of the first of three units, all of the second's being its own."""
    order = np.argsort(samples, kind="stable")
    samples = np.repeat(np.asarray(samples)[order], 2)
    units = np.tile([0, 1], len(order))
    own = np.where(units == 0, np.repeat(np.asarray(own)[order], 2), 1.0)
    zeros = np.zeros(len(samples), np.float32)
    found = find_piled(Matches(samples, zeros, units, zeros, zeros, zeros), own, 3, 600 * FS, FS)
    assert not found[units == 1].any()
    return found[units == 0][np.argsort(order)]


def test_what_is_not_a_units_own_is_piled_unless_it_follows_in_bursts():
    rng = np.random.default_rng(0)
    first = np.sort(rng.integers(0, 600 * FS, 900))
    is_own = np.arange(1000) < 900
    apart = np.r_[first, rng.integers(0, 600 * FS, 100)]
    np.testing.assert_array_equal(piled_among(apart, np.where(is_own, 0.31, 0.29)), ~is_own)
    assert not piled_among(np.r_[first, first[:100] + FS // 200], is_own.astype(float)).any()
    assert piled_among(apart, np.zeros(1000)).all()
    assert not piled_among(apart, np.ones(1000)).any()


def test_no_spikes_are_not_far():
    assert find_piled(Matches.empty(), np.zeros(0), 2, FS, FS).tolist() == []
    assert find_far_spikes(Matches.empty(), np.zeros(0), 2, FS, FS).tolist() == []


def test_rare_units_are_none_unless_they_have_a_name():
    counts = [30, 29, 29, 0]
    units = np.repeat(np.arange(4), counts)
    zeros = np.zeros(len(units), np.float32)
    matches = Matches(np.arange(len(units)), zeros, units, zeros + 1, zeros, zeros + 1)
    assert find_rare(matches, ("", "", "CA1-7", ""), 30).tolist() == [False, True, False, True]
