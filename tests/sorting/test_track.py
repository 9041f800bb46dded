"""Units that move slowly are followed, and their pieces joined."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from accm_core.params import MatchParams, MergeParams, RunParams, SignalParams
from accm_core.signal.chunks import Block, cut_blocks, read_padded
from accm_core.signal.preprocess import Preprocessor, fit_preprocessor
from accm_core.sorting import track
from accm_core.sorting.link import Spikes, link_units
from accm_core.sorting.match import TemplateBank, build_bank
from accm_core.sorting.moving import MovingBank
from accm_core.sorting.place import Place
from accm_core.sorting.recover import recover_spikes
from accm_core.sorting.track import bin_times, follow_units
from accm_core.types import ArrayRecording, Peaks

FS = 10_000
NUM_BEFORE, NUM_SAMPLES = 10, 30
DURATION_S = 55
TIME = np.arange(-20, 40)[:, None]
PLACES = np.array([0.0, 1.0, 2.0, 3.0])


def shape(place, width=2.0, height=70.0):
    """Largest on the channel nearest to ``place``, (60, 4), µV."""
    course = np.exp(-0.5 * (TIME / width) ** 2) - 0.3 * np.exp(-0.5 * ((TIME - 9) / 5) ** 2)
    return -height * course * np.exp(-0.5 * ((PLACES - place) / 1.2) ** 2)


def zigzag(sample):
    """From 0 to 1 and back, once in the recording."""
    return 1 - np.abs(2 * sample / (DURATION_S * FS) - 1)


@dataclass(frozen=True)
class Session:
    recording: ArrayRecording
    preprocessor: Preprocessor
    blocks: list[Block]
    samples: np.ndarray
    neuron: np.ndarray

    def bank(self, shapes):
        """Templates of some shapes, whitened."""
        templates = []
        for one in shapes:
            clean = np.zeros((1000, 4), np.float32)
            clean[480:540] = one
            start = 500 - self.preprocessor.margin - NUM_BEFORE
            white = self.preprocessor.whiten(self.preprocessor.filter(clean, self.blocks[0]))
            templates.append(white[start : start + NUM_SAMPLES])
        return build_bank(
            np.array(templates), NUM_BEFORE, self.preprocessor.autocovariance, np.full(len(shapes), 0.1)
        )

    def follow(self, bank, unit_of_peak, num_workers=2):
        zeros = np.zeros(len(self.samples), np.int64)
        _, centers = bin_times(self.samples, self.blocks)
        return follow_units(
            self.recording,
            self.preprocessor,
            self.blocks,
            bank,
            Peaks(self.samples, zeros, zeros.astype(np.float32), zeros.astype(np.float32)),
            unit_of_peak,
            Place(centers, zigzag(centers)),
            MatchParams(),
            MergeParams(),
            run=RunParams(num_workers=num_workers),
        )


def make_session(shapes_at, seed=0):
    """Neurons in turn, ``shapes_at(neuron, sample)`` each time; None is silent."""
    rng = np.random.default_rng(seed)
    traces = rng.normal(0, 5, (DURATION_S * FS, 4))
    samples = np.arange(300, len(traces) - 300, 300)
    samples = samples + rng.integers(-60, 60, len(samples))
    neuron = rng.integers(0, 2, len(samples))
    fired = np.ones(len(samples), bool)
    for row, (sample, which) in enumerate(zip(samples, neuron, strict=True)):
        one = shapes_at(which, sample)
        if one is None:
            fired[row] = False
        else:
            traces[sample - 20 : sample + 40] += one
    recording = ArrayRecording(traces=traces.astype(np.float32), sampling_frequency=FS)
    blocks = cut_blocks(recording.segments, FS)
    raw = [read_padded(recording, b.start - 200, b.stop + 200, b.segment) for b in blocks[::10]]
    preprocessor = fit_preprocessor(raw, np.arange(4), np.zeros((4, 4)), SignalParams(), FS)
    return Session(recording, preprocessor, blocks, samples[fired], neuron[fired])


@pytest.fixture(scope="module")
def drifting():
    """Two neurons of different width that both move by a channel and back."""
    return make_session(lambda which, sample: shape(which + 1.2 * zigzag(sample), (1.5, 3.5)[which]))


@pytest.fixture(scope="module")
def pieces(drifting):
    """The first neuron where it begins and where it turns, the second in the middle."""
    return drifting.bank([shape(0, 1.5), shape(1.2, 1.5), shape(1.6, 3.5)])


def follow_pieces(drifting, pieces, num_workers=2):
    """From clusters that cut the first neuron in two and do not hold every tenth spike."""
    far = zigzag(drifting.samples) > 0.5
    unit_of_peak = np.where(drifting.neuron == 1, 2, far.astype(np.int64))
    unit_of_peak[::10] = -1
    return drifting.follow(pieces, unit_of_peak, num_workers)


@pytest.fixture(scope="module")
def followed(drifting, pieces):
    return follow_pieces(drifting, pieces)


def test_pieces_of_a_moving_neuron_are_joined(followed):
    assert isinstance(followed, MovingBank)
    assert followed.weights.shape[:2] == (track.NUM_PLACES, 2)


def test_the_rate_of_a_unit_is_that_of_all_its_pieces(drifting, monkeypatch):
    """Also of the matches of the last round, in which pieces were joined before."""
    monkeypatch.setattr("accm_core.sorting.recover.MAX_RATE", 1000.0)
    bank = drifting.bank([shape(0, 1.5), shape(1.2, 1.5), shape(1.6, 3.5)])
    for num_rounds in (0, 1):
        monkeypatch.setattr(track, "NUM_ROUNDS", num_rounds)
        rate = np.exp(follow_pieces(drifting, bank).mean.log_rate)
        np.testing.assert_allclose(rate, np.bincount(drifting.neuron) / DURATION_S, rtol=0.15)


def test_templates_follow_the_neuron(drifting, followed):
    for sample in (5 * FS, 35 * FS, 52 * FS):
        moved = zigzag(sample)
        expected = drifting.bank([shape(1.2 * moved, 1.5), shape(1 + 1.2 * moved, 3.5)]).templates
        found = followed.at(sample).templates
        for truth in expected:
            off = ((found - truth) ** 2).sum(axis=(1, 2)) / (truth**2).sum()
            assert off.min() < 0.02


def test_spikes_of_a_moving_neuron_are_one_unit_and_fit_better(drifting, pieces, followed):
    def match(bank, moving):
        matches, _ = recover_spikes(
            drifting.recording,
            drifting.preprocessor,
            drifting.blocks,
            bank,
            MatchParams(),
            whitened=True,
            run=RunParams(),
            moving=moving,
        )
        first = drifting.samples[drifting.neuron == 0]
        near = first + np.arange(-2, 3)[:, None]
        recalls = [
            np.isin(near, matches.sample_index[matches.unit_index == unit]).any(axis=0).mean()
            for unit in range(len(bank.energy))
        ]
        return max(recalls), np.median(matches.gain)

    still, gain_still = match(pieces, None)
    recall, gain = match(followed.mean, followed)
    assert still < 0.8
    assert recall > 0.97
    assert gain > 1.03 * max(gain_still, match(followed.mean, None)[1])


def test_followed_units_do_not_depend_on_the_threads(drifting, pieces, followed):
    again = follow_pieces(drifting, pieces, num_workers=1)
    np.testing.assert_array_equal(again.weights, followed.weights)
    np.testing.assert_array_equal(again.mean.energy, followed.mean.energy)


def test_clusters_alone_give_the_course(drifting, monkeypatch):
    monkeypatch.setattr(track, "NUM_ROUNDS", 0)
    near = drifting.bank([shape(0.6, 1.5), shape(1.6, 3.5)])
    followed = drifting.follow(near, drifting.neuron)
    still = 0.0
    for sample in (5 * FS, 26 * FS):
        moved = zigzag(sample)
        truth = drifting.bank([shape(1.2 * moved, 1.5), shape(1 + 1.2 * moved, 3.5)]).templates
        off = ((followed.at(sample).templates - truth) ** 2).sum() / (truth**2).sum()
        still = max(still, ((near.templates - truth) ** 2).sum() / (truth**2).sum())
        assert off < 0.02
    assert still > 0.1


def test_far_neurons_do_not_shrink_a_template():
    """A small neuron far away fires as often, and its spikes are matched too."""
    rng = np.random.default_rng(1)
    own = shape(1, 2.0)
    session = make_session(lambda which, sample: rng.normal(1, 0.05) * own if which else 0.45 * own)
    bank = session.bank([own])
    followed = session.follow(bank, np.where(session.neuron == 1, 0, -1))
    ratio = np.sqrt(followed.mean.energy / bank.energy)
    assert 0.95 < ratio < 1.05


def test_a_unit_without_spikes_keeps_its_template(drifting, pieces):
    unseen = drifting.bank([shape(0, 1.5), shape(1, 3.5), shape(0, 1.5, height=5000)])
    followed = drifting.follow(unseen, drifting.neuron)
    kept = np.abs(followed.weights - unseen.weights[2]).max(axis=(0, 2, 3)).argmin()
    np.testing.assert_allclose(
        followed.weights[:, kept], np.tile(unseen.weights[2], (track.NUM_PLACES, 1, 1)), rtol=1e-5
    )


def test_templates_are_silent_on_channels_that_a_neuron_never_reaches():
    def at(which, sample):
        """On the first two channels; the second neuron, at the end of its way, on the third as well."""
        return shape(which) * [1, 1, which * (zigzag(sample) > 0.85), 0]

    session = make_session(at)
    followed = session.follow(session.bank([shape(0), shape(1)]), session.neuron)
    energy = (followed.weights**2).sum(axis=(0, 2))
    energy = energy[energy[:, 2].argsort()]
    assert (energy > 0).tolist() == [[True, True, False, False], [True, True, True, False]]


def test_a_faint_unit_of_few_spikes_keeps_its_template(drifting, monkeypatch):
    """In no stretch of the way do so few of them stand out of the noise."""
    monkeypatch.setattr(track, "NUM_ROUNDS", 0)
    rare = np.flatnonzero(drifting.neuron == 0)[::40]
    assert len(rare) >= track.MIN_SPIKES
    beside = replace(drifting, samples=np.sort(drifting.samples[rare] + 120), neuron=np.zeros(len(rare)))
    bank = drifting.bank([shape(0, 1.5, height=8)])
    followed = beside.follow(bank, np.zeros(len(rare), np.int64))
    np.testing.assert_allclose(followed.mean.energy, bank.energy, rtol=1e-5)


SIDE_LOBE = 8
"""Samples after the extremum, further than two templates of one unit are off."""


def add_side_lobe(bank):
    """With the first template as peaks of a side lobe show it."""
    lobe = np.roll(bank.templates[0], -SIDE_LOBE, axis=0)
    autocovariance = np.r_[1.0, np.zeros(NUM_SAMPLES)]
    return build_bank(np.r_[bank.templates, lobe[None]], NUM_BEFORE, autocovariance, np.full(3, 0.1))


def test_peaks_on_a_side_lobe_move_to_the_extremum(drifting, monkeypatch):
    monkeypatch.setattr(track, "NUM_ROUNDS", 0)  # matching would find what is left out here
    bank = add_side_lobe(drifting.bank([shape(0.6, 1.5), shape(1.6, 3.5)])).select(np.array([2, 1]))
    late = replace(drifting, samples=drifting.samples + SIDE_LOBE * (drifting.neuron == 0))
    templates = late.follow(bank, drifting.neuron).at(5 * FS).templates
    at = np.abs(templates).max(axis=2).argmax(axis=1)
    assert len(at) == 2
    assert np.abs(at - NUM_BEFORE).max() <= 2


def test_a_unit_of_side_lobes_beside_their_extremum_is_left_out(drifting):
    bank = add_side_lobe(drifting.bank([shape(0.6, 1.5), shape(1.6, 3.5)]))
    samples = np.concatenate([drifting.samples, drifting.samples[drifting.neuron == 0] + SIDE_LOBE])
    unit = np.r_[drifting.neuron, np.full(len(samples) - len(drifting.samples), 2)]
    order = np.argsort(samples)
    unit = unit[order]
    twice = replace(drifting, samples=samples[order])
    assert len(twice.follow(bank, unit).mean.energy) == 2
    alone = twice.follow(bank.select(np.array([2])), np.where(unit == 2, 0, -1))
    assert len(alone.mean.energy) > 0  # nothing else is there


def test_neurons_that_take_turns_without_meeting_stay_apart():
    def at(which, sample):
        return shape(2 * which, 1.5 + which) if which == (zigzag(sample) > 0.5) else None

    session = make_session(at)
    followed = session.follow(session.bank([shape(0, 1.5), shape(2, 2.5)]), session.neuron)
    assert len(followed.mean.energy) == 2


def test_bins_count_the_blocks_that_are_at_hand(drifting):
    every_other = drifting.blocks[::2]
    samples = np.array([every_other[0].start, every_other[4].stop - 1, every_other[5].start])
    bins, centers = bin_times(samples, every_other)
    assert bins.tolist() == [0, 0, 1]
    assert len(centers) == 6
    middle = every_other[2]
    assert centers[0] == 0.5 * (middle.start + middle.stop)


NUM_BINS = 12


def make_bank():
    """One shape at some lags, which gives a basis that holds it at each of them."""
    course = -8 * np.exp(-0.5 * ((np.arange(NUM_SAMPLES) - NUM_BEFORE) / 2.5) ** 2)
    templates = np.stack([np.roll(course, lag) for lag in (0, -4, -2, 2, 4)])[:, :, None]
    return build_bank(
        templates.astype(np.float32), NUM_BEFORE, np.r_[1.0, np.zeros(NUM_SAMPLES)], np.full(5, 0.1)
    )


def make_spikes(bank: TemplateBank, sizes, units, trains, delay=0, seed=0, num=10):
    """Spikes of the first template with the size of each (n_bins, n_units), ``num`` a bin; 0 is silent."""
    rng = np.random.default_rng(seed)
    max_lag = 5
    rows = [
        (u, b, sizes[b][u]) for b in range(NUM_BINS) for u in range(units) if sizes[b][u] for _ in range(num)
    ]
    waveforms = rng.normal(0, 1, (len(rows), NUM_SAMPLES + 2 * max_lag, 1)).astype(np.float32)
    for row, (unit, _, size) in enumerate(rows):
        first = max_lag + delay * unit
        waveforms[row, first : first + NUM_SAMPLES] += size * bank.templates[0]
    return Spikes(
        unit_index=np.array([r[0] for r in rows]),
        bin_index=np.array([r[1] for r in rows]),
        delay=np.zeros(len(rows), np.int64),
        waveforms=waveforms,
        trains=trains,
        num_bins=NUM_BINS,
        max_lag=max_lag,
    )


APART = (np.arange(100) * 1000, np.arange(100) * 1000 + 500)
TURNS = [(1.0 - 0.05 * b, 0) if b < 6 else (0, 1.0 - 0.05 * b) for b in range(NUM_BINS)]


@pytest.mark.parametrize("delay", [0, 3, -3])
def test_units_that_become_each_other_are_joined_at_their_lag(delay):
    bank = make_bank()
    linked, unit_of = link_units(make_spikes(bank, TURNS, 2, APART, delay), bank, 5, DURATION_S * FS, FS)
    assert len(set(unit_of)) == 1
    kept = unit_of[0]
    assert set(linked.unit_index) == {kept}
    other = linked.delay[linked.bin_index >= 6] - linked.delay[0]
    assert (other == delay).all()


def test_units_that_fire_together_at_different_sizes_stay_apart():
    bank = make_bank()
    spikes = make_spikes(bank, [(1.0, 0.7)] * NUM_BINS, 2, APART)
    assert link_units(spikes, bank, 5, DURATION_S * FS, FS)[1].tolist() == [0, 1]


@pytest.mark.parametrize(("size", "num_left"), [(0.85, 1), (0.75, 2)])
def test_halves_of_one_hump_are_joined_wherever_they_meet(size, num_left):
    """A standard deviation of noise is a twentieth of the template."""
    bank = make_bank()
    assert 15 < np.sqrt(bank.energy[0]) < 25
    spikes = make_spikes(bank, [(1.0, size)] * NUM_BINS, 2, APART)
    assert len(set(link_units(spikes, bank, 5, DURATION_S * FS, FS)[1])) == num_left


def test_small_neurons_of_different_shapes_are_no_halves():
    """Though noise hides what they differ in."""
    bank = make_bank()
    size, broad = 0.35, 0.5 * (bank.templates[1] + bank.templates[3])
    spikes = make_spikes(bank, [(size, size)] * NUM_BINS, 2, APART)
    waveforms = spikes.waveforms.copy()
    waveforms[spikes.unit_index == 1, 5 : 5 + NUM_SAMPLES] += size * (broad - bank.templates[0])
    spikes = replace(spikes, waveforms=waveforms)
    assert len(set(link_units(spikes, bank, 5, DURATION_S * FS, FS)[1])) == 2


def test_what_is_joined_keeps_the_spikes_of_both_in_sight():
    """The third is silent around the first's spikes, not the second's."""
    bank = make_bank()
    spikes = make_spikes(bank, [(1.0, 0.99, 0.98)] * NUM_BINS, 3, (*APART, APART[1] + 15))
    assert len(set(link_units(spikes, bank, 5, DURATION_S * FS, FS)[1])) == 2


@pytest.mark.parametrize(("num", "met", "num_left"), [(10, 0, 1), (3, 0, 2), (10, 2, 1), (10, 3, 2)])
def test_units_that_take_turns_along_the_way_are_joined(num, met, num_left):
    """Though they are far apart where one ends; not if they are few, or in the same bins too often."""
    bank = make_bank()
    sizes = [(1.0 if b < 6 + met else 0, 0.5 if b >= 6 else 0) for b in range(NUM_BINS)]
    spikes = make_spikes(bank, sizes, 2, APART, num=num)
    assert len(set(link_units(spikes, bank, 5, DURATION_S * FS, FS)[1])) == num_left


@pytest.mark.parametrize(
    ("lag_ms", "first_size", "num_left"), [(5, 1.0, 1), (5, 0.7, 2), (50, 1.0, 2), (5, 1.25, 2)]
)
def test_smaller_spikes_that_follow_larger_ones_are_of_their_bursts(lag_ms, first_size, num_left):
    """Not those that come first, come later by chance, or are too far apart."""
    bank = make_bank()
    trains = (APART[0], APART[0] + lag_ms * FS // 1000)
    spikes = make_spikes(bank, [(first_size, 1.7 - first_size)] * NUM_BINS, 2, trains)
    assert len(set(link_units(spikes, bank, 5, DURATION_S * FS, FS)[1])) == num_left


def test_halves_and_the_later_spikes_of_their_bursts_become_one_unit():
    """The later spikes follow each half of the larger ones every other time; none is dropped."""
    bank = make_bank()
    first = np.arange(600) * 900
    trains = (first[::2], first[1::2], first + 5 * FS // 1000)
    spikes = make_spikes(bank, [(1.0, 0.98, 0.75)] * NUM_BINS, 3, trains)
    linked, unit_of = link_units(spikes, bank, 5, DURATION_S * FS, FS)
    assert len(set(unit_of)) == 1
    assert len(linked.unit_index) == len(spikes.unit_index)


@pytest.mark.parametrize("sizes", [[(1.0, 1.0)] * NUM_BINS, [(1 - 0.04 * b,) * 2 for b in range(NUM_BINS)]])
def test_a_unit_of_two_neurons_is_taken_apart_beside_their_way(sizes):
    bank = make_bank()
    spikes = make_spikes(bank, sizes, 2, APART, delay=2)
    mixed = replace(spikes, unit_index=np.zeros_like(spikes.unit_index), trains=(np.concatenate(APART),))
    parted, whole = track._take_apart(mixed, bank)
    assert whole.tolist() == [0]
    assert set(parted.unit_index) == {0, 1}
    assert abs(np.mean(parted.unit_index == spikes.unit_index) - 0.5) > 0.48


def test_few_spikes_of_two_neurons_stay_together():
    bank = make_bank()
    spikes = make_spikes(bank, [(1.0, 1.0)] * NUM_BINS, 2, APART, delay=2, num=4)
    mixed = replace(spikes, unit_index=np.zeros_like(spikes.unit_index), trains=(np.concatenate(APART),))
    assert len(track._take_apart(mixed, bank)[1]) == 0


@pytest.mark.parametrize(
    "sizes",
    [[(1.0, 0.55)] * NUM_BINS, [(1 - 0.05 * b,) * 2 for b in range(NUM_BINS)], [(1.0, 1.0)] * NUM_BINS],
    ids=["bursts", "moves", "rests"],
)
def test_a_neuron_that_moves_or_bursts_stays_whole(sizes):
    bank = make_bank()
    spikes = make_spikes(bank, sizes, 2, APART)
    one = replace(spikes, unit_index=np.zeros_like(spikes.unit_index), trains=(np.concatenate(APART),))
    parted, whole = track._take_apart(one, bank)
    assert len(whole) == 0
    np.testing.assert_array_equal(parted.unit_index, 0)


def test_a_followed_unit_of_two_neurons_is_taken_apart(drifting):
    """Clusters of peaks have both in one; the first differs from the second by its width."""
    followed = drifting.follow(drifting.bank([shape(0.8, 2.0)]), np.zeros(len(drifting.samples), np.int64))
    assert len(followed.mean.energy) == 2


def test_superfluous_templates_are_left_out(drifting, pieces, followed, monkeypatch):
    given = []

    def find(recording, preprocessor, blocks, bank, matches, params, *, moving, **rest):
        given.append((bank, matches, moving))
        return np.arange(len(bank.energy)) == 0

    monkeypatch.setattr(track, "find_superfluous", find)
    left = follow_pieces(drifting, pieces)
    ((bank, matches, moving),) = given
    assert bank is moving.mean
    np.testing.assert_array_equal(moving.weights, followed.weights)
    np.testing.assert_array_equal(left.weights, followed.weights[:, 1:])
    np.testing.assert_array_equal(left.mean.energy, followed.mean.energy[1:])
    # whose spikes they are, by the number of the unit they were given to
    for unit in range(2):
        own = matches.sample_index[matches.unit_index == unit]
        found = np.isin(drifting.samples + np.arange(-2, 3)[:, None], own).any(axis=0)
        shares = [found[drifting.neuron == neuron].mean() for neuron in range(2)]
        assert max(shares) > 0.9
        assert min(shares) < 0.1


def test_units_that_fire_into_each_others_refractory_time_stay_apart():
    bank = make_bank()
    near = (APART[0], APART[0] + 15)
    assert link_units(make_spikes(bank, TURNS, 2, near), bank, 5, DURATION_S * FS, FS)[1].tolist() == [0, 1]


def test_a_unit_without_a_spike_alone_is_left_as_it_is():
    bank = make_bank()
    spikes = make_spikes(bank, [(1.0,)] * NUM_BINS, 1, (APART[0], np.arange(3)))
    assert spikes.project_unit(1, bank).shape == (0, len(bank.kernels))
    assert link_units(spikes, bank, 5, DURATION_S * FS, FS)[1].tolist() == [0, 1]
