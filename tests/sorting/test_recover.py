"""Every planted spike of a recording, once, at its sample; and what is measured on the way."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.params import MatchParams, RunParams, SignalParams
from accm_core.signal.chunks import Block, cut_blocks, read_padded
from accm_core.signal.preprocess import Preprocessor, fit_preprocessor
from accm_core.signal.snippets import cut_snippets
from accm_core.sorting.match import Matches, TemplateBank, build_bank
from accm_core.sorting.rebuild import rebuild
from accm_core.sorting.recover import (
    MAX_RATE,
    MIN_SCALE_STD,
    MIN_SHRUNK,
    drop_doubles,
    find_overlaps,
    find_oversized,
    find_shrinkage,
    measure_log_rate,
    measure_scale_std,
    recover_spikes,
)
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import ArrayRecording, Segment

FS = 10_000
NOISE_UV = 5.0
NUM_BEFORE, NUM_SAMPLES = 10, 30
PARAMS = MatchParams()
WIDE = MatchParams(scale_std=0.3)
PLANTED = [  # sample, unit
    (200, 0),
    (FS - 1, 0),
    (FS, 1),
    (FS + 40, 0),  # overlaps the one after
    (FS + 46, 1),
    (2 * FS - 2, 1),
    (2 * FS + 3, 0),
    (2 * FS + 3, 2),  # on channels of its own
    (2 * FS + 4000, 2),
    (3 * FS - 300, 1),
]
IS_CLEAN = np.array([True, *[False] * 6, True, True, True])  # no other spike on its channels


def spike(unit):
    time = np.arange(-30, 60)[:, None]
    width, place = ((2.0, 0), (3.5, 1), (2.5, 5))[unit]
    spread = np.exp(-np.abs(np.arange(6) - place) / 0.6)
    return -120 * (np.exp(-0.5 * (time / width) ** 2) - 0.3 * np.exp(-0.5 * ((time - 9) / 5) ** 2)) * spread


@dataclass(frozen=True)
class Session:
    recording: ArrayRecording
    preprocessor: Preprocessor
    blocks: list[Block]
    bank: TemplateBank


def make_session(planted=PLANTED, segments=(), duration_s=3):
    traces = np.random.default_rng(0).normal(0, NOISE_UV, (duration_s * FS, 6))
    for sample, unit in planted:
        traces[sample - 30 : sample + 60] += spike(unit)
    recording = ArrayRecording(
        traces=traces.astype(np.float32), sampling_frequency=FS, segments=tuple(segments)
    )
    blocks = cut_blocks(recording.segments, FS)
    raw = [read_padded(recording, b.start - 200, b.stop + 200, b.segment) for b in blocks]
    preprocessor = fit_preprocessor(raw, np.arange(6), np.zeros((6, 6)), SignalParams(), FS)
    clean = np.zeros((2000, 6), np.float32)
    templates = []
    for unit in range(3):
        clean[:] = 0
        clean[970:1060] = spike(unit)
        whitened = preprocessor.whiten(preprocessor.filter(clean, blocks[0]))
        start = 1000 - preprocessor.margin - NUM_BEFORE
        templates.append(whitened[start : start + NUM_SAMPLES])
    templates = np.stack(templates)
    templates[:, :, np.abs(templates).max(axis=(0, 1)) < 0.5] = 0
    templates = np.where(np.abs(templates).max(axis=1, keepdims=True) >= 0.5, templates, 0)
    bank = build_bank(templates.astype(np.float32), NUM_BEFORE, preprocessor.autocovariance, np.full(3, 0.1))
    return Session(recording, preprocessor, blocks, bank)


def recover(session, *, whitened=False, run=None, blocks=None, on_block=None):
    return recover_spikes(
        session.recording,
        session.preprocessor,
        session.blocks if blocks is None else blocks,
        session.bank,
        PARAMS,
        whitened=whitened,
        run=run or RunParams(num_workers=1),
        on_block=on_block,
    )


@pytest.fixture(scope="module")
def session():
    return make_session()


def assert_found(matches, planted):
    """Each spike once; one that overlaps another may be a sample off."""
    samples, units = np.array(planted).T
    assert matches.unit_index.tolist() == units.tolist()
    np.testing.assert_allclose(matches.sample_index, samples, atol=1)


def test_every_spike_once_also_at_the_borders_of_blocks(session):
    matches, _ = recover(session)
    assert_found(matches, PLANTED)
    np.testing.assert_allclose(matches.scale[IS_CLEAN], 1, atol=0.05)
    assert (np.diff(matches.sample_index) >= 0).all()


def test_only_the_blocks_that_are_given(session):
    matches, _ = recover(session, blocks=[session.blocks[1]])
    assert_found(matches, [(s, u) for s, u in PLANTED if FS <= s < 2 * FS])


def test_no_blocks_or_no_spikes(session):
    matches, average = recover(session, blocks=[])
    assert len(matches) == 0
    assert average.counts.tolist() == [0, 0, 0]
    matches, average = recover(make_session([]))
    assert len(matches) == 0
    assert not average.mean().any()


@pytest.mark.parametrize("whitened", [False, True])
def test_the_average_is_that_of_the_clean_spikes(session, whitened):
    _, average = recover(session, whitened=whitened)
    reach = 100 + session.preprocessor.margin
    raw = read_padded(session.recording, -reach, 3 * FS + reach, session.recording.segments[0])
    traces = session.preprocessor.filter(raw, session.blocks[0])
    matches, _ = recover(session)
    if whitened:
        traces = session.preprocessor.whiten(traces)
        others = matches.select(~IS_CLEAN).move(100)
        traces = traces - rebuild(others, session.bank, len(traces))
    tolerance = 0.01 if whitened else 0.001  # a spike that is taken out and put back is interpolated twice
    for unit in range(3):
        own = np.flatnonzero(IS_CLEAN & (matches.unit_index == unit))
        assert average.counts[unit] == len(own)
        waveforms = cut_snippets(
            traces,
            matches.sample_index[own] + 100,
            matches.offset[own],
            np.tile(np.arange(6), (len(own), 1)),
            num_before=NUM_BEFORE,
            num_samples=NUM_SAMPLES,
        )
        expected = waveforms.mean(axis=0)
        np.testing.assert_allclose(average.mean()[unit], expected, atol=tolerance * np.abs(expected).max())


def test_spikes_elsewhere_on_the_probe_do_not_become_part_of_a_template(session):
    together = [spike_ for at in range(300, 3 * FS - 300, 400) for spike_ in ((at, 2), (at + at % 3, 0))]
    session = replace(session, recording=make_session(together).recording)
    assert session.bank.pair_row[0, 2] < 0
    (_, white), (_, microvolts) = (recover(session, whitened=whitened) for whitened in (True, False))
    assert white.counts[2] == microvolts.counts[2] > 60
    own, foreign = (np.abs(session.bank.templates[2]).max(axis=0) > 0, session.bank.templates[0])
    elsewhere = np.abs(white.mean()[2][:, ~own])
    assert elsewhere.max() < 0.1 * np.abs(foreign).max()
    np.testing.assert_allclose(white.mean()[2][:, own], session.bank.templates[2][:, own], atol=1)


@pytest.fixture(scope="module")
def crowded():
    """Unit 1 never fires without unit 0; its template is a collision with some of that one's spike in it."""
    session = make_session(
        [spike_ for at in range(300, 3 * FS - 300, 120) for spike_ in ((at, 0), (at + 4 + at % 7, 1))]
    )

    def mix(size):
        mixed = session.bank.templates.copy()
        mixed[1] = size * (mixed[1] + 0.1 * mixed[0])
        bank = build_bank(mixed, NUM_BEFORE, session.preprocessor.autocovariance, np.full(3, 0.3))
        return replace(session, bank=bank), session.bank.templates[1]

    return mix


@pytest.mark.parametrize("size", [1.25, 1.8])
def test_a_template_of_collisions_is_made_anew_of_what_is_left_of_its_spikes(crowded, size):
    session, expected = crowded(size)
    matches, average = recover(session, whitened=True)
    assert np.median(matches.scale[matches.unit_index == 1]) == pytest.approx(1 / size, abs=0.1)
    assert average.counts[1] > 100
    before, after = (np.linalg.norm(t - expected) for t in (session.bank.templates[1], average.mean()[1]))
    assert after < 0.6 * before


def test_in_microvolts_only_spikes_that_are_alone_are_averaged(crowded):
    _, average = recover(crowded(1.25)[0])
    assert average.counts[1] == 0


def make_average(counts, mean):
    average = WaveformAverage(len(counts), NUM_SAMPLES, 2)
    average.counts[:] = counts
    average.total[:] = np.array(counts)[:, None, None] * mean
    return average


@pytest.mark.parametrize(
    ("num_lone", "num_all", "size", "other", "is_oversized"),
    [
        (30, 200, 0.8, 0.0, True),
        (31, 200, 0.8, 0.0, False),  # enough that are alone
        (30, 90, 0.8, 0.0, False),  # a unit of few spikes, many of them alone
        (30, 200, 0.95, 0.0, False),  # its spikes are as large as it is
        (30, 200, 0.8, 0.55, True),
        (30, 200, 0.8, 0.65, False),  # its spikes are another's
        (0, 0, 0.0, 0.0, False),
    ],
)
def test_which_templates_are_too_large_for_spikes_that_are_hardly_ever_alone(
    num_lone, num_all, size, other, is_oversized
):
    shapes = np.zeros((2, 1, NUM_SAMPLES, 2))
    shapes[0, :, 10], shapes[1, :, 20] = 5.0, 5.0
    unmixed = make_average([num_all], size * shapes[0] + other * shapes[1])
    found = find_oversized(shapes[0], make_average([num_lone], shapes[0]), unmixed)
    assert found.tolist() == [is_oversized]


@pytest.mark.parametrize(("chunk_s", "workers"), [(1, 2), (3, 1), (2, 3)])
def test_same_bytes_whatever_the_chunk_length_and_the_threads(session, chunk_s, workers):
    one, one_average = recover(session, run=RunParams(chunk_s=1, num_workers=1))
    other, other_average = recover(session, run=RunParams(chunk_s=chunk_s, num_workers=workers))
    for name in Matches.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(one_average.mean(), other_average.mean())


def test_spikes_beside_a_gap_are_found_and_none_in_it():
    segments = (Segment(0, FS + 20), Segment(FS + 60, 3 * FS))
    session = make_session([(FS + 2, 0), (FS + 40, 1), (FS + 85, 1), (2 * FS, 2)], segments)
    matches, _ = recover(session)
    assert_found(matches, [(FS + 2, 0), (FS + 85, 1), (2 * FS, 2)])


def test_progress_reaches_one(session):
    shares = []
    recover(session, on_block=shares.append)
    assert shares[-1] == 1.0


def make_matches(samples, units, scale=None):
    samples, units = np.asarray(samples, np.int64), np.asarray(units, np.int64)
    zeros = np.zeros(len(samples), np.float32)
    scale = np.ones(len(samples)) if scale is None else scale
    return Matches(samples, zeros, units, scale.astype(np.float32), zeros, zeros)


def test_doubles_at_the_border_of_two_blocks_are_dropped():
    """The same spike, a sample apart, from both blocks; other units and later spikes stay."""
    matches = make_matches([10, 100, 103, 104, 111, 300, 301], [0, 0, 0, 2, 0, 1, 2])
    kept = drop_doubles(matches, 8, np.array([0]))
    assert list(zip(kept.sample_index.tolist(), kept.unit_index.tolist(), strict=True)) == [
        (10, 0),
        (100, 0),
        (104, 2),
        (111, 0),
        (300, 1),
        (301, 2),
    ]


def test_spikes_on_both_sides_of_a_gap_both_stay():
    matches = make_matches([98, 102], [0, 0])
    assert len(drop_doubles(matches, 8, np.array([0, 100]))) == 2
    assert len(drop_doubles(matches, 8, np.array([0, 103]))) == 1


@given(data=st.data(), reach=st.integers(0, 40))
def test_overlaps_as_by_two_loops(session, data, reach):
    spikes = data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2)), max_size=25).map(sorted))
    samples, units = np.array(spikes, dtype=np.int64).reshape(-1, 2).T
    touches = session.bank.pair_row >= 0
    expected = [
        any(
            j != i and abs(samples[i] - samples[j]) <= reach and touches[units[i], units[j]]
            for j in range(len(samples))
        )
        for i in range(len(samples))
    ]
    assert find_overlaps(make_matches(samples, units), session.bank, reach).tolist() == expected


@pytest.fixture(scope="module")
def weak_bank(session):
    """Units of signal-to-noise ratio 10: noise alone spreads their scales by 0.1."""
    return replace(session.bank, energy=np.full(3, 100.0), prior=np.full(3, 60.0))


def draw_scales(bank, unit, std, num_spikes=4000):
    """Fitted scales of a unit: its own spread, the noise of the fit, and the prior's pull."""
    rng = np.random.default_rng(0)
    energy, prior = float(bank.energy[unit]), float(bank.prior[unit])
    free = rng.normal(1, std, num_spikes) + rng.normal(0, energy**-0.5, num_spikes)
    return (free * energy + prior) / (energy + prior)


@pytest.mark.parametrize("std", [0.08, 0.15, 0.25])
def test_the_spread_of_scales_is_measured_without_noise_and_prior(weak_bank, std):
    scale = draw_scales(weak_bank, 1, std)
    matches = make_matches(np.arange(len(scale)), np.ones(len(scale)), scale)
    found = measure_scale_std(matches, weak_bank, WIDE)
    assert found[1] == pytest.approx(std, rel=0.1)
    np.testing.assert_allclose(found[[0, 2]], 0.3)


def test_small_spikes_of_far_neurons_do_not_widen_the_spread(weak_bank):
    scale = np.r_[draw_scales(weak_bank, 1, 0.15), np.linspace(0.4, 0.7, 400)]
    matches = make_matches(np.arange(len(scale)), np.ones(len(scale)), scale)
    assert measure_scale_std(matches, weak_bank, WIDE)[1] == pytest.approx(0.15, rel=0.25)


@pytest.mark.parametrize(
    ("num_spikes", "std", "expected"),
    [(49, 0.15, 0.3), (4000, 0.0, MIN_SCALE_STD), (4000, 1.5, 0.3), (0, 0, 0.3)],
    ids=["few", "none", "wild", "no-spikes"],
)
def test_bounds_of_the_spread(weak_bank, num_spikes, std, expected):
    scale = draw_scales(weak_bank, 2, std, num_spikes)
    matches = make_matches(np.arange(num_spikes), np.full(num_spikes, 2), scale)
    assert measure_scale_std(matches, weak_bank, WIDE)[2] == pytest.approx(expected)


def test_rates_are_spikes_a_second_up_to_what_counts():
    found = np.exp(measure_log_rate(np.array([0, 1, 30, 80, 4000]), 20.0))
    np.testing.assert_allclose(found, [0.05, 0.05, 1.5, 4.0, MAX_RATE])


@pytest.mark.parametrize(
    ("energy", "num_spikes", "size", "expected"),
    [
        (81, 60, 0.6, 0.6),
        (81, 60, 1.2, 1.0),
        (110, 60, 0.6, 1.0),
        (81, MIN_SHRUNK - 1, 0.6, 1.0),
        (81, 0, 1, 1.0),
    ],
    ids=["too-large", "too-small", "large-spikes", "few-spikes", "no-spikes"],
)
def test_a_small_template_shrinks_to_its_spikes(session, energy, num_spikes, size, expected):
    """By what the traces say of their size, not by what the prior makes of it."""
    bank = replace(session.bank, energy=np.array([500.0, energy, 500.0]), prior=np.full(3, 60.0))
    free = size + np.random.default_rng(0).normal(0, 0.05, num_spikes)
    scale = (free * energy + 60.0) / (energy + 60.0)
    share = find_shrinkage(make_matches(np.arange(num_spikes), np.ones(num_spikes), scale), bank)
    np.testing.assert_allclose(share, [1.0, expected, 1.0], atol=0.03)
