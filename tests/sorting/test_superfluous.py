"""Templates of spikes that collide with now this, now that unit are found; units that look like sums stay."""

from dataclasses import replace

import numpy as np
import pytest

from accm_core.params import MatchParams, RunParams, SignalParams
from accm_core.signal.chunks import cut_blocks, read_padded
from accm_core.signal.preprocess import fit_preprocessor
from accm_core.sorting import superfluous
from accm_core.sorting.match import Matches, build_bank, match_templates
from accm_core.sorting.moving import MovingBank
from accm_core.sorting.place import Place
from accm_core.sorting.superfluous import find_superfluous
from accm_core.types import ArrayRecording

FS, DURATION_S, NUM_CHANNELS = 10_000, 12, 6
NUM_BEFORE, NUM_SAMPLES = 10, 30
SPACING = 160
TIME = np.arange(-30, 60)[:, None]


def spike(height, width, place):
    spread = np.exp(-np.abs(np.arange(NUM_CHANNELS) - place) / 1.0)
    shape = np.exp(-0.5 * (TIME / width) ** 2) - 0.3 * np.exp(-0.5 * ((TIME - 9) / 5) ** 2)
    return -height * shape * spread


A, B, C = spike(120, 2.0, 1), spike(110, 3.5, 3), spike(110, 3.0, 5)
MIXTURE = A + 0.5 * B + 0.5 * C
ALIKE = 0.8 * A + 0.7 * spike(110, 2.2, 3)
"""A neuron that A and B explain in part."""


def find(last, spikes, num_workers=1, order=None, moves=False):
    """Of a bank of A, B, C and ``last``, or in another order, in a recording of these spikes in turn.

    If it moves, the mean templates are others than those of either place, which are the same.
    """
    last = last if isinstance(last, list) else [last]
    traces = np.random.default_rng(0).normal(0, 5, (DURATION_S * FS, NUM_CHANNELS))
    fired = []
    for turn, place in enumerate(range(300, DURATION_S * FS - 300, SPACING)):
        waveform, units = spikes[turn % len(spikes)]
        traces[place - 30 : place + 60] += waveform
        fired += [(place, unit) for unit in units]
    sample_index, unit_index = np.array(fired).T
    unknown = np.zeros(len(fired), np.float32)
    matches = Matches(sample_index, unknown, unit_index, unknown, unknown, unknown)
    recording = ArrayRecording(traces=traces.astype(np.float32), sampling_frequency=FS)
    blocks = cut_blocks(recording.segments, FS)
    raw = [read_padded(recording, b.start - 200, b.stop + 200, b.segment) for b in blocks]
    preprocessor = fit_preprocessor(
        raw, np.arange(NUM_CHANNELS), 1e3 * (1 - np.eye(NUM_CHANNELS)), SignalParams(), FS
    )
    clean = np.zeros((2000, NUM_CHANNELS), np.float32)
    templates = []
    for waveform in (A, B, C, *last):
        clean[970:1060] = waveform
        start = 1000 - preprocessor.margin - NUM_BEFORE
        whitened = preprocessor.whiten(preprocessor.filter(clean, blocks[0]))
        templates.append(whitened[start : start + NUM_SAMPLES])
    bank = build_bank(
        np.stack(templates), NUM_BEFORE, preprocessor.autocovariance, np.full(3 + len(last), 0.1)
    )
    order = np.arange(3 + len(last)) if order is None else np.array(order)
    bank, matches = bank.select(order), replace(matches, unit_index=np.argsort(order)[matches.unit_index])
    moving = None
    if moves:
        mean = bank.reweigh(bank.weights[::-1], np.full(len(order), 0.1))
        place = Place(np.array([0.0, DURATION_S * FS]), np.array([0.0, 1.0]))
        moving, bank = MovingBank(mean, place, np.stack([bank.weights] * 2)), mean
    return find_superfluous(
        recording,
        preprocessor,
        blocks,
        bank,
        matches,
        MatchParams(),
        max_lag=NUM_BEFORE,
        run=RunParams(num_workers=num_workers),
        moving=moving,
    ).tolist()


ALONE = [(A, [0]), (B, [1]), (C, [2])]
COLLIDING = [*ALONE, (A + B, [0, 1, 3]), (A, [0]), (B, [1]), (C, [2]), (A + C, [0, 2, 3])]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_mixture_of_collisions_is_found(num_workers):
    assert find(MIXTURE, COLLIDING, num_workers) == [False, False, False, True]


def test_a_mixture_is_found_wherever_it_stands():
    assert find(MIXTURE, COLLIDING, order=[1, 3, 2, 0]) == [False, True, False, False]


def test_a_mixture_is_found_where_tissue_moves():
    assert find(MIXTURE, COLLIDING, moves=True) == [False, False, False, True]
    assert find(ALIKE, [*ALONE, *ALONE, (ALIKE, [3])], moves=True) == [False] * 4


def test_where_tissue_moves_all_templates_are_looked_at(monkeypatch):
    """Though those of one time say nothing of a sum, and few spikes decide nothing."""
    monkeypatch.setattr(superfluous, "SUSPECT", 2.0)
    assert find(MIXTURE, COLLIDING, moves=True) == [False, False, False, True]
    monkeypatch.setattr(superfluous, "MIN_LOOKED_AT", 10_000)
    assert find(A + B, [*ALONE, *ALONE, *ALONE, (A + B, [3])], moves=True) == [False] * 4


def test_a_mixture_of_one_neuron_with_little_of_many_is_found():
    """No second unit is in it with about its own size."""
    spikes = [*ALONE, (A, [0]), (A + B, [0, 1, 3]), (A, [0]), (B, [1]), (C, [2]), (A + C, [0, 2, 3])]
    assert find(A + 0.25 * B + 0.25 * C, spikes) == [False, False, False, True]


def test_a_neuron_that_looks_like_a_sum_stays():
    assert find(ALIKE, [*ALONE, *ALONE, (ALIKE, [3])]) == [False] * 4


def test_a_suspect_is_not_explained_by_a_rarer_one(monkeypatch):
    """Else two that explain each other would both go. The rarer one, of which hardly more is left, does."""
    copy, banks = ALIKE + 0.05 * B, set()

    def match(traces, bank, params, *, refractory):
        banks.add(len(bank.energy))
        return match_templates(traces, bank, params, refractory=refractory)

    monkeypatch.setattr(superfluous, "match_templates", match)
    spikes = [*ALONE, *ALONE, *ALONE, (ALIKE, [3]), (ALIKE, [3]), (copy, [4])]
    assert find([ALIKE, copy], spikes) == [False] * 4 + [True]
    assert banks == {5, 4, 3}  # all; without the copy; without both


@pytest.mark.parametrize(
    ("changed", "goes"), [({}, False), ({"MIN_LOSS_OF_ONE": 0.03}, True), ({"MIN_CHANNELS_TO_TELL": 3}, True)]
)
def test_of_two_neurons_much_alike_both_stay(monkeypatch, changed, goes):
    """One spike, not a sum, explains the other's: hardly more is left, but that is how they differ."""
    twin = ALIKE + 0.24 * B
    for name, value in changed.items():
        monkeypatch.setattr(superfluous, name, value)
    spikes = [*ALONE, *ALONE, *ALONE, (ALIKE, [3]), (ALIKE, [3]), (twin, [4])]
    assert find([ALIKE, twin], spikes) == [False] * 4 + [goes]


def test_a_sum_that_leaves_hardly_more_goes():
    """Of which hardly more is left, too, but two spikes stand for each of its own."""
    total = A + B + 0.22 * C
    assert find(total, [*ALONE, *ALONE, *ALONE, (total, [3])]) == [False] * 3 + [True]


def test_what_no_units_explain_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(superfluous, "map_blocks", None)
    far = spike(110, 9.0, 0)
    assert find(far, [*ALONE, *ALONE, (far, [3])]) == [False] * 4


def test_spikes_that_its_template_does_not_match_decide_nothing():
    """With it and without it the same is left of them."""
    assert find(MIXTURE, [*ALONE, *ALONE, (0 * A, [3])]) == [False] * 4


def test_a_few_spikes_decide_nothing_but_that_two_units_sum_up_to_it(monkeypatch):
    monkeypatch.setattr(superfluous, "MIN_LOOKED_AT", 10_000)
    assert find(MIXTURE, COLLIDING) == [False] * 4
    assert find(A + B, [*ALONE, *ALONE, *ALONE, (A + B, [3])]) == [False] * 3 + [True]


def test_a_neuron_that_two_others_nearly_sum_up_to_stays():
    """97 % of it are explained, but spike by spike more is left without it."""
    near = A + B + 0.3 * C
    assert find(near, [*ALONE, *ALONE, *ALONE, (near, [3])]) == [False] * 4
