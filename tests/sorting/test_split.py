"""Units of several neurons: taken apart when there are two humps, left alone when they only vary or move."""

import numpy as np
import pytest

from accm_core.params import MatchParams, RunParams, SignalParams
from accm_core.signal.chunks import cut_blocks, read_padded
from accm_core.signal.preprocess import fit_preprocessor
from accm_core.sorting.match import build_bank, noise_root
from accm_core.sorting.split import MIN_PART, MIN_WAVEFORMS, split_units, tell_neurons
from accm_core.types import ArrayRecording

NUM_BEFORE, NUM_SAMPLES = 20, 60
TIME = np.arange(NUM_SAMPLES) - NUM_BEFORE
WHITE = np.r_[1.0, np.zeros(NUM_SAMPLES)]
ROOT = noise_root(WHITE, NUM_SAMPLES)


def spike(width, tail, time=TIME):
    """Same depth, another width and after-potential, (n, 2)."""
    shape = -np.exp(-0.5 * (time / width) ** 2) + tail * np.exp(-0.5 * ((time - 15) / 7) ** 2)
    return 6 * shape[:, None] * [1.0, 0.6]


FIRST, SECOND = spike(4.0, 0.2), spike(5.5, 0.55)


def make_waveforms(templates, sizes=600, scale_std=0.0, jitter=0.0, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(templates)), sizes))
    rows = []
    for neuron in truth:
        moved = templates[neuron] + rng.normal(0, jitter) * np.gradient(templates[neuron], axis=0)
        rows.append(rng.normal(1, scale_std) * moved + rng.normal(0, 1, moved.shape))
    return np.stack(rows).astype(np.float32), truth


def tell(waveforms, period=None):
    period = np.arange(len(waveforms)) * 20 // len(waveforms) if period is None else period
    return tell_neurons(waveforms, period, ROOT)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("other", "least"), [(SECOND, 0.9), (0.6 * FIRST + 0.4 * SECOND, 0.8)], ids=["other", "alike"]
)
def test_two_neurons_are_told_apart(other, least, seed):
    waveforms, truth = make_waveforms([FIRST, other], seed=seed)
    labels = tell(waveforms)
    assert set(labels) == {0, 1}
    agreement = np.mean(labels == truth)
    assert max(agreement, 1 - agreement) > least


def assert_rare_one_found(labels, truth):
    """The smallest part holds nearly all spikes of neuron 1, and hardly any other."""
    is_rare = labels == np.bincount(labels).argmin()
    assert is_rare[truth == 1].mean() > 0.9
    assert truth[is_rare].mean() > 0.9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("other", [SECOND, 1.35 * FIRST], ids=["shape", "size"])
def test_a_neuron_that_fires_thirty_times_less_often_is_found(other, seed):
    waveforms, truth = make_waveforms([FIRST, other], [3000, 100], scale_std=0.03, seed=seed)
    labels = tell(waveforms)
    assert np.bincount(labels).shape == (2,)
    assert_rare_one_found(labels, truth)


def test_a_neuron_is_found_among_spikes_of_varying_size():
    waveforms, truth = make_waveforms([FIRST, SECOND], [1000, 100], scale_std=0.2)
    assert_rare_one_found(tell(waveforms), truth)


@pytest.mark.parametrize(("num_rare", "found"), [(MIN_PART - 5, False), (MIN_PART + 5, True)])
def test_a_part_has_a_least_number_of_spikes(num_rare, found):
    waveforms, _ = make_waveforms([FIRST, 2 * SECOND], [500, num_rare])
    assert tell(waveforms).any() == found


def add_collisions(waveforms, num, largest, seed):
    """The first spikes with another one of a random shape, size and delay on top."""
    rng = np.random.default_rng(seed)
    for waveform in waveforms[:num]:
        other = np.exp(-0.5 * ((TIME - rng.uniform(-15, 30)) / rng.uniform(2, 8)) ** 2)
        waveform += 6 * rng.uniform(0.5, largest) * rng.uniform(-1, 1, 2) * other[:, None]


@pytest.mark.parametrize("seed", range(3))
def test_collisions_are_no_neuron(seed):
    waveforms, _ = make_waveforms([FIRST], 2000, seed=seed)
    add_collisions(waveforms, 150, 2.0, seed)
    assert not tell(waveforms).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_rare_neuron_is_found_among_collisions(seed):
    waveforms, truth = make_waveforms([FIRST, SECOND], [2000, 80], seed=seed)
    add_collisions(waveforms, 80, 4.0, seed)
    assert_rare_one_found(tell(waveforms)[80:], truth[80:])


def test_three_neurons_are_told_apart():
    labels = tell(make_waveforms([FIRST, SECOND, spike(4.0, 0.8)])[0])
    assert set(labels) == {0, 1, 2}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale_std", "jitter"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.5)])
def test_one_neuron_of_varying_size_and_time_stays_one(scale_std, jitter, seed):
    waveforms, _ = make_waveforms([FIRST], sizes=1200, scale_std=scale_std, jitter=jitter, seed=seed)
    assert not tell(waveforms).any()


def test_shapes_that_take_turns_are_one_neuron_that_moves():
    waveforms, truth = make_waveforms([FIRST, SECOND])
    assert tell(waveforms).any()
    order = np.argsort(truth, kind="stable")  # the one in the first half, the other in the second
    assert not tell(waveforms[order]).any()


def test_few_spikes_stay_together():
    waveforms, _ = make_waveforms([FIRST, 3 * SECOND], sizes=MIN_WAVEFORMS // 2 - 1)
    assert not tell(waveforms).any()
    assert len(tell_neurons(waveforms[:0], np.zeros(0, np.int64), ROOT)) == 0


FS = 10_000


def make_session(templates, duration_s=30, seed=0, size=12, partner=None):
    """Of one unit, which now and then fires just before another one, ``partner``."""
    rng = np.random.default_rng(seed)
    traces = rng.normal(0, 5, (duration_s * FS, 2))
    places = np.arange(200, duration_s * FS - 200, 250)
    neuron = rng.integers(0, len(templates), len(places))
    for place, which in zip(places, neuron, strict=True):
        traces[place - NUM_BEFORE : place - NUM_BEFORE + NUM_SAMPLES] += size * templates[which]
    for place in [] if partner is None else places[::4]:
        traces[place : place + NUM_SAMPLES] += size * partner
    recording = ArrayRecording(traces=traces.astype(np.float32), sampling_frequency=FS)
    blocks = cut_blocks(recording.segments, FS)
    raw = [read_padded(recording, b.start - 200, b.stop + 200, b.segment) for b in blocks]
    preprocessor = fit_preprocessor(raw, np.arange(2), np.zeros((2, 2)), SignalParams(), FS)
    units = []
    for unit in [np.mean(templates, axis=0)] + ([] if partner is None else [partner]):
        clean = np.zeros((1000, 2), np.float32)
        clean[500 - NUM_BEFORE : 500 - NUM_BEFORE + NUM_SAMPLES] = size * unit
        start = 500 - preprocessor.margin - NUM_BEFORE
        units.append(preprocessor.whiten(preprocessor.filter(clean, blocks[0]))[start : start + NUM_SAMPLES])
    scale_std = np.full(len(units), 0.1)
    bank = build_bank(np.stack(units), NUM_BEFORE, preprocessor.autocovariance, scale_std)
    return recording, preprocessor, blocks, bank


def split(session, num_workers=1, **changes):
    recording, preprocessor, blocks, bank = session
    params, run = MatchParams(**changes), RunParams(num_workers=num_workers)
    return split_units(recording, preprocessor, blocks, bank, params, run=run)


def test_a_unit_of_two_neurons_gets_two_templates():
    session = make_session([FIRST, SECOND])
    templates = split(session)
    assert templates.shape == (2, NUM_SAMPLES, 2)
    assert np.abs(templates[0] - templates[1]).max() > 0.5
    np.testing.assert_array_equal(split(session, num_workers=2), templates)


def test_a_unit_of_one_neuron_keeps_its_template():
    session = make_session([FIRST])
    np.testing.assert_array_equal(split(session), session[3].templates)


def test_spikes_that_overlap_with_another_units_are_no_other_neuron():
    session = make_session([FIRST], partner=1.5 * spike(2.5, 0.0)[:, ::-1])
    np.testing.assert_array_equal(split(session), session[3].templates)


def test_what_comes_late_tells_no_neurons_apart():
    """More than 2 ms after the peak it is other neurons that differ."""
    late = FIRST.copy()
    late[47:] += 2.5
    assert len(split(make_session([FIRST, late]))) == 1


def test_no_units_give_no_templates():
    recording, preprocessor, blocks, bank = make_session([FIRST])
    empty = bank.select(np.zeros(1, bool))
    assert split((recording, preprocessor, blocks, empty)).shape == (0, NUM_SAMPLES, 2)
