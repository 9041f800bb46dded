"""A unit's own spikes told from far neurons' by their sizes: planted mixtures of both."""

from dataclasses import replace

import numpy as np
import pytest

from accm_core.params import MatchParams
from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.sizes import MIN_OWN, find_least, judge_sizes

WHITE = np.r_[1.0, np.zeros(99)]
SCALE_STD = 0.1


def make_bank(num_units=1):
    """All alike, of energy 1."""
    course = -np.exp(-0.5 * ((np.arange(60) - 20) / 3.0) ** 2)
    templates = np.repeat(course[None, :, None], num_units, axis=0).astype(np.float32)
    bank = build_bank(templates, 20, WHITE, np.full(num_units, SCALE_STD))
    scaled = bank.weights / np.sqrt(bank.energy)[:, None, None]
    return bank.reweigh(scaled, np.full(num_units, SCALE_STD))


def judge(parts, usual_of_stretch=None, params=None, log_rate=0.0):
    """Judge a unit whose spikes are given as heights and what the template's is there.

    Returns whether each that is seen is held for its own, its part, and the accuracy to be expected.
    """
    params = params or MatchParams()
    bank, prior = replace(make_bank(), log_rate=np.array([log_rate])), SCALE_STD**-2
    height, usual = (np.concatenate([np.broadcast_to(p[k], len(p[0])) for p in parts]) for k in (0, 1))
    part = np.repeat(np.arange(len(parts)), [len(p[0]) for p in parts])
    energy = usual.astype(np.float64) ** 2
    seen = height > find_least(energy, prior, log_rate, params) / usual
    height, energy, part = height[seen], energy[seen], part[seen]
    scale = (height * np.sqrt(energy) + prior) / (energy + prior)
    zeros = np.zeros(len(scale), np.int64)
    floats = zeros.astype(np.float32)
    matches = Matches(np.arange(len(scale)), floats, zeros, scale.astype(np.float32), floats, floats)
    stretches = np.unique(usual) if usual_of_stretch is None else np.asarray(usual_of_stretch)
    sizes = judge_sizes(matches, bank, energy, stretches[:, None] ** 2, params)
    return sizes.own >= MIN_OWN, part, float(sizes.accuracy[0])


def own_spikes(rng, usual, num_spikes, std=0.05):
    return rng.normal(1, std, num_spikes) * usual + rng.normal(0, 1, num_spikes), usual


def far_spikes(rng, usual, num_spikes, decay=1.5):
    return 4 + rng.exponential(1 / decay, num_spikes), usual


def accuracy_of(is_own, part, num_true):
    hits = (is_own & (part == 0)).sum()
    return hits / (num_true + (is_own & (part != 0)).sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("usual", "least"), [(7.5, 0.8), (9.0, 0.93), (11.0, 0.98)])
def test_own_spikes_are_told_from_a_pile_and_the_accuracy_is_known(seed, usual, least):
    rng = np.random.default_rng(seed)
    is_own, part, expected = judge([own_spikes(rng, usual, 800), far_spikes(rng, usual, 2000)])
    accuracy = accuracy_of(is_own, part, 800)
    assert accuracy > least > accuracy_of(np.ones_like(is_own), part, 800) + 0.1
    assert abs(accuracy - expected) < 0.06


@pytest.mark.parametrize("usual", [5.5, 8.0, 40.0])
def test_spikes_of_a_unit_without_a_pile_are_its_own(usual):
    is_own, _, accuracy = judge([own_spikes(np.random.default_rng(0), usual, 1000)])
    assert is_own.mean() > 0.97
    assert accuracy > (0.75 if usual < 6 else 0.97)


@pytest.mark.parametrize("log_rate", [-1.0, 0.0, 1.6])
@pytest.mark.parametrize(("usual", "most"), [(4.2, 0.55), (4.6, 0.7), (5.0, 0.8), (5.5, 0.9)])
def test_what_the_threshold_hides_of_a_unit_is_missed(usual, most, log_rate):
    """As a unit is expected to fire more often, it hides less."""
    is_own, _, accuracy = judge([own_spikes(np.random.default_rng(0), usual, 4000)], log_rate=log_rate)
    most += 0.07 * max(log_rate, 0)
    assert is_own.all()
    assert len(is_own) / 4000 < most
    assert abs(accuracy - len(is_own) / 4000) < 0.03


def test_a_pile_alone_is_no_accurate_unit():
    for seed in range(5):
        assert judge([far_spikes(np.random.default_rng(seed), 5.3, 4000)])[2] < 0.6


def test_weak_spikes_of_a_unit_are_its_own():
    """Of a neuron that fires in bursts; none is near the threshold more often than elsewhere."""
    rng = np.random.default_rng(0)
    weak = 20 * rng.uniform(0.5, 0.9, 300) + rng.normal(0, 1, 300), 20.0
    is_own, _, accuracy = judge([own_spikes(rng, 20.0, 700), weak])
    assert is_own.mean() > 0.97
    assert accuracy > 0.9


@pytest.mark.parametrize("min_scale", [0.0, 1.0])
def test_any_least_scale_is_allowed(min_scale):
    own = own_spikes(np.random.default_rng(0), 12.0, 500)
    is_own, _, accuracy = judge([own], params=MatchParams(min_scale=min_scale))
    assert is_own.all()
    assert abs(accuracy - len(is_own) / 500) < 0.05


def test_where_a_moving_template_is_small_far_spikes_are_known_by_where_it_is_large():
    """200 of 1000 are to be expected where the template is hardly larger than what far neurons give."""
    rng = np.random.default_rng(0)
    parts = [own_spikes(rng, usual, 200) for usual in (5.3, 8.0, 12.0, 12.0, 12.0)]
    parts += [far_spikes(rng, usual, 1000) for usual in (5.3, 8.0)]
    is_own, part, _ = judge(parts, [5.3, 8.0, 12.0, 12.0, 12.0])
    assert is_own[(part >= 2) & (part < 5)].mean() > 0.99
    assert is_own[part == 5].mean() < 0.3
    assert is_own[part == 6].mean() < 0.3


def test_units_are_judged_each_for_itself_and_one_without_matches_is_accurate():
    bank = make_bank(3)
    rng = np.random.default_rng(0)
    own, far = own_spikes(rng, 10.0, 300)[0], far_spikes(rng, 10.0, 300)[0]
    height = np.concatenate([own, own[:200], far[:100]])
    unit = np.repeat([0, 2], 300)
    order = rng.permutation(600)
    prior, energy = bank.prior[0], np.full(600, 100.0)
    scale = ((10 * height + prior) / (100 + prior)).astype(np.float32)[order]
    floats = np.zeros(600, np.float32)
    matches = Matches(np.arange(600), floats, unit[order], scale, floats, floats)
    sizes = judge_sizes(matches, bank, energy, np.full((1, 3), 100.0), MatchParams())
    is_far = order >= 500
    assert sizes.own[~is_far].mean() > 0.98
    assert sizes.own[is_far].mean() < 0.05
    assert sizes.accuracy[0] > sizes.accuracy[2] > 0.9
    assert sizes.accuracy[1] == 1
    nothing = judge_sizes(Matches.empty(), bank, np.zeros(0), np.full((1, 3), 100.0), MatchParams())
    assert nothing.own.shape == (0,)
    assert nothing.accuracy.tolist() == [1, 1, 1]
