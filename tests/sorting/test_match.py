"""Matching against direct sums, and planted spikes: between samples, overlapping, too close, too small."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from accm_core.params import MatchParams
from accm_core.sorting.match import (
    MIN_CHANNELS_TO_TELL,
    RIDGE,
    Matches,
    TemplateBank,
    build_bank,
    calibrate,
    fit_templates,
    match_templates,
    pursue_fits,
)
from accm_core.sorting.pursuit import MAX_SCALE
from accm_core.sorting.sizes import find_least

NUM_BEFORE, NUM_SAMPLES, NUM_CHANNELS = 20, 60, 6
REFRACTORY = 24
PARAMS = MatchParams()
WHITE = np.r_[1.0, np.zeros(99)]
COLOURED = 0.8 ** np.arange(100)
CENTRE = 300


def spike(unit, time):
    """Waveform of a unit at ``time`` (samples after its peak), (n, n_channels); smooth and short."""
    depth, width, place, tail = (
        (11, 3.0, 0.0, 0.5),
        (10, 5.0, 1.0, 0.2),
        (12, 4.0, 5.0, 0.4),  # on channels of its own
    )[unit]
    time = np.asarray(time, float)[:, None]
    spread = np.exp(-np.abs(np.arange(NUM_CHANNELS) - place))
    spread[spread < 0.1] = 0.0
    trough = -np.exp(-0.5 * (time / width) ** 2)
    hump = tail * np.exp(-0.5 * ((time - 14) / 6) ** 2)
    return depth * (trough * spread + hump * spread**2)


WINDOW = np.arange(NUM_SAMPLES) - NUM_BEFORE
TEMPLATES = np.stack([spike(unit, WINDOW) for unit in range(3)]).astype(np.float32)


def make_bank(templates=TEMPLATES, autocovariance=WHITE, scale_std=0.1) -> TemplateBank:
    return build_bank(templates, NUM_BEFORE, autocovariance, np.full(len(templates), scale_std))


BANK = make_bank()


def plant(spikes, num_samples=600, noise=0.0, seed=0):
    """Traces with spikes (unit, time, scale), time between samples too."""
    traces = np.random.default_rng(seed).normal(0, 1, (num_samples, NUM_CHANNELS)) * noise
    for unit, time, scale in spikes:
        traces += scale * spike(unit, np.arange(num_samples) - time)
    return traces.astype(np.float32)


def match(traces, bank=BANK, refractory=REFRACTORY, **changes):
    return match_templates(traces, bank, PARAMS.model_copy(update=changes), refractory=refractory)


def rows(matches):
    return list(zip(matches.sample_index.tolist(), matches.unit_index.tolist(), strict=True))


def filters(templates, autocovariance):
    """C^-1 w of each template, the slow way."""
    covariance = toeplitz(autocovariance[:NUM_SAMPLES]) + RIDGE * autocovariance[0] * np.eye(NUM_SAMPLES)
    return np.stack([np.linalg.solve(covariance, template) for template in templates.astype(float)])


def one_course_templates():
    """Templates that three time courses hold exactly, so that the basis drops nothing."""
    rng = np.random.default_rng(0)
    courses = np.linalg.qr(rng.normal(0, 1, (NUM_SAMPLES, 3)))[0]
    return np.stack([courses @ rng.normal(0, 5, (3, NUM_CHANNELS)) for _ in range(4)]).astype(np.float32)


@pytest.mark.parametrize("autocovariance", [WHITE, COLOURED], ids=["white", "coloured"])
def test_fits_are_direct_correlations(autocovariance):
    templates = one_course_templates()
    bank = make_bank(templates, autocovariance)
    traces = np.random.default_rng(1).normal(0, 1, (307, NUM_CHANNELS)).astype(np.float32)
    fits = fit_templates(traces, bank)
    assert fits.shape == (4, 307)
    assert fits.dtype == np.float32
    for unit, matched in enumerate(filters(templates, autocovariance)):
        for sample in range(NUM_SAMPLES, 307 - NUM_SAMPLES):
            start = sample - NUM_BEFORE
            expected = (matched * traces[start : start + NUM_SAMPLES]).sum()
            assert fits[unit, sample] == pytest.approx(expected, abs=2e-3 * np.abs(matched).sum())


def test_frequencies_that_are_left_out_hold_next_to_nothing():
    """Smooth noise and templates: the upper half of the spectrum need not be computed."""
    lags = np.arange(100)
    smooth = 0.99 * np.exp(-0.5 * (lags / 3.0) ** 2) + 0.01 * WHITE
    bank = make_bank(autocovariance=smooth)
    assert 0.1 < bank.bandwidth < 0.3
    assert make_bank(one_course_templates()).bandwidth > 0.45
    kernel = np.exp(-((np.arange(-15, 16) / 3.0) ** 2))
    noise = np.random.default_rng(2).normal(0, 1, (3000, NUM_CHANNELS))
    noise = np.apply_along_axis(np.convolve, 0, noise, kernel / np.linalg.norm(kernel), "same")
    traces = noise.astype(np.float32)
    whole = fit_templates(traces, replace(bank, bandwidth=0.5))
    lost = fit_templates(traces, bank) - whole
    assert (lost.std(axis=1) < 0.05 * whole.std(axis=1)).all()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("num_samples", [307, 4000])
def test_fits_on_a_device_are_those_of_numpy(device, num_samples):
    smooth = 0.99 * np.exp(-0.5 * (np.arange(100) / 3.0) ** 2) + 0.01 * WHITE
    for autocovariance in (smooth, COLOURED):  # some and all of the frequencies
        bank = make_bank(one_course_templates(), autocovariance)
        traces = np.random.default_rng(1).normal(0, 1, (num_samples, NUM_CHANNELS)).astype(np.float32)
        expected, fits = fit_templates(traces, bank), fit_templates(traces, replace(bank, device=device))
        assert (fits.shape, fits.dtype, fits.flags.c_contiguous) == (expected.shape, np.float32, True)
        np.testing.assert_allclose(fits, expected, atol=1e-5 * np.abs(expected).max())
        ours, theirs = (match(traces, b) for b in (replace(bank, device=device), bank))
        assert rows(ours) == rows(theirs)


@pytest.mark.parametrize("autocovariance", [WHITE, COLOURED], ids=["white", "coloured"])
def test_energy_is_the_squared_signal_to_noise_ratio(autocovariance):
    templates = one_course_templates()
    bank = make_bank(templates, autocovariance)
    expected = (filters(templates, autocovariance) * templates).sum(axis=(1, 2))
    np.testing.assert_allclose(bank.energy, expected, rtol=1e-3)
    np.testing.assert_allclose(bank.prior, 100)


def test_the_basis_holds_the_templates_energy():
    exact = (filters(TEMPLATES, WHITE) * TEMPLATES).sum(axis=(1, 2))
    assert (BANK.energy <= 1.001 * exact).all()
    assert (BANK.energy >= 0.98 * exact).all()


@pytest.mark.parametrize("num_channels", [1, 4])
def test_what_tells_alike_units_apart_is_kept(num_channels):
    """Large spikes that differ by three noise levels, 0.03 % of their energy: few channels show no more."""
    large, bump = 60 * -np.exp(-0.5 * (WINDOW / 4) ** 2), np.exp(-0.5 * ((WINDOW - 9) / 2) ** 2)
    course = np.stack([large, large + 3 * bump / np.linalg.norm(bump)])
    bank = make_bank((course[:, :, None] * 0.8 ** np.arange(num_channels)).astype(np.float32))
    change = course[1] - course[0]
    exact = (change**2).sum() * (0.64 ** np.arange(num_channels)).sum() / (1 + RIDGE)
    found = ((bank.weights[1] - bank.weights[0]) ** 2).sum()
    np.testing.assert_allclose(found, exact, rtol=0.1)
    assert len(bank.kernels) == 2


def test_more_courses_where_channels_are_few():
    rng = np.random.default_rng(0)
    for num_channels, expected in ((MIN_CHANNELS_TO_TELL - 1, 10), (MIN_CHANNELS_TO_TELL, 6)):
        bank = make_bank(rng.normal(0, 2, (12, NUM_SAMPLES, num_channels)).astype(np.float32))
        assert len(bank.kernels) == expected


@pytest.mark.parametrize("autocovariance", [WHITE, COLOURED], ids=["white", "coloured"])
def test_cross_correlations_are_the_fits_of_a_template_in_silence(autocovariance):
    """Slow: the traces hold one template and nothing else."""
    templates = one_course_templates()
    bank = make_bank(templates, autocovariance)
    matched = filters(templates, autocovariance)
    assert (bank.pair_row >= 0).all()
    for first in range(4):
        silence = np.zeros((5 * NUM_SAMPLES, NUM_CHANNELS))
        silence[2 * NUM_SAMPLES : 3 * NUM_SAMPLES] = templates[first]
        for second in range(4):
            expected = [
                (silence[start : start + NUM_SAMPLES] * matched[second]).sum()
                for start in range(NUM_SAMPLES + 1, 3 * NUM_SAMPLES)
            ]
            found = bank.correlations[bank.pair_row[first, second]]
            np.testing.assert_allclose(found, expected, atol=1e-3 * bank.energy.max())


def test_units_without_a_common_channel_do_not_interact():
    np.testing.assert_array_equal(BANK.pair_row >= 0, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_a_bank_of_some_units_matches_as_if_built_from_them():
    traces = plant([(1, 200, 1.0), (2, 300, 1.0)], noise=0.3)
    for units in (np.array([2, 1]), np.array([False, True, True])):
        selected = BANK.select(units)
        np.testing.assert_array_equal(selected.templates, TEMPLATES[units])
        np.testing.assert_array_equal(selected.energy, BANK.energy[units])
        for row, unit in enumerate(np.arange(3)[units]):
            for column, other in enumerate(np.arange(3)[units]):
                pair, whole = selected.pair_row[row, column], BANK.pair_row[unit, other]
                assert pair == whole
        assert rows(match(traces, selected)) == [
            (200, list(np.arange(3)[units]).index(1)),
            (300, list(np.arange(3)[units]).index(2)),
        ]
    assert len(BANK.select(np.zeros(3, bool)).energy) == 0


@pytest.mark.parametrize("units", [[0, 1], [2], [2, 0]])
def test_a_bank_of_some_units_on_the_channels_that_see_them_matches_alike(units):
    units = np.array(units)
    traces = plant([(unit, 200 + 130 * row, 1.0) for row, unit in enumerate(units)], noise=0.3)
    channels = np.flatnonzero(TEMPLATES[units].any(axis=(0, 1)))
    narrow = BANK.narrow(units, channels)
    assert narrow.weights.shape[2] == len(channels) < NUM_CHANNELS or len(units) == 2
    assert narrow.num_samples == NUM_SAMPLES
    found, expected = match(traces[:, channels], narrow), match(traces, BANK.select(units))
    assert rows(found) == rows(expected) == [(200 + 130 * row, row) for row in range(len(units))]
    np.testing.assert_allclose(found.gain, expected.gain, rtol=1e-4)


@given(
    unit=st.integers(0, 2),
    offset=st.floats(-0.5, 0.5),
    scale=st.floats(0.75, 1.3),
)
@settings(max_examples=40)
def test_a_spike_between_samples_is_found_with_its_offset_and_scale(unit, offset, scale):
    found = match(plant([(unit, CENTRE + offset, scale)]))
    assert found.unit_index.tolist() == [unit]
    assert found.sample_index[0] + found.offset[0] == pytest.approx(CENTRE + offset, abs=0.05)
    assert abs(found.offset[0]) <= 0.5
    # the prior draws the scale towards 1 by its share of the precision
    energy, prior = BANK.energy[unit], BANK.prior[unit]
    expected = (scale * energy + prior) / (energy + prior)
    assert found.scale[0] == pytest.approx(expected, abs=0.02)
    assert found.probability[0] > 0.99


def test_gain_is_the_likelihood_ratio():
    found = match(plant([(0, CENTRE, 1.2)]))
    energy, prior = BANK.energy[0], BANK.prior[0]
    expected = (1.2 * energy + prior) ** 2 / (energy + prior) - prior
    assert found.gain[0] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("rate", [0.1, 5.0])
def test_gain_counts_how_often_a_unit_fires(rate):
    often = replace(BANK, log_rate=np.log([rate, 1.0, 1.0]))
    (usual,), (gain,) = (match(plant([(0, CENTRE, 1.2)]), bank).gain for bank in (BANK, often))
    assert gain - usual == pytest.approx(2 * np.log(rate), abs=0.01)


@pytest.mark.parametrize(("ratio", "found_from"), [(3.5, None), (3.95, 5.0), (4.25, 1.0), (4.9, 0.1)])
def test_small_spikes_are_looked_for_where_they_are_to_be_expected(ratio, found_from):
    """Of one signal-to-noise ratio, by how often the unit fires in a second."""
    small = TEMPLATES / np.sqrt(BANK.energy)[:, None, None] * np.float32(ratio)
    bank = make_bank(small)
    traces = plant([(0, CENTRE, ratio / np.sqrt(BANK.energy[0]))])
    for rate in (0.1, 1.0, 5.0):
        found = match(traces, replace(bank, log_rate=np.log([rate, 1e-3, 1e-3])))
        assert len(found) == (found_from is not None and rate >= found_from)


@pytest.mark.parametrize("rate", [0.2, 1.0, 5.0])
def test_the_least_fit_is_what_matching_finds(rate):
    size = np.float32(4.6 / np.sqrt(BANK.energy[0]))
    bank = replace(make_bank(TEMPLATES[:1] * size), log_rate=np.log([rate]))
    least = find_least(bank.energy, bank.prior, bank.log_rate, PARAMS)[0] / bank.energy[0]
    for share in (0.98, 1.02):
        assert len(match(plant([(0, CENTRE, share * least * size)]), bank)) == (share > 1)


@pytest.mark.parametrize("frequent", [0, 1])
def test_of_two_units_that_fit_as_well_the_frequent_one_fires(frequent):
    """Also where two spikes are close, which are explained anew together."""
    twins = make_bank(np.stack([TEMPLATES[0], TEMPLATES[0], TEMPLATES[1]]))
    rates = np.where(np.arange(3) == frequent, 2.0, 0.5)
    found = match(
        plant([(0, 150, 1.0), (0, 400, 1.0), (1, 408, 1.0)]), replace(twins, log_rate=np.log(rates))
    )
    assert found.unit_index.tolist() == [frequent, frequent, 2]
    assert found.probability[0] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.45, -0.45])
def test_a_spike_leaves_nothing_behind(offset):
    """Its fits are taken out at its own time and scale, where a wide prior leaves these alone."""
    # two time courses make both templates, so that the basis drops nothing
    bank = make_bank(np.stack([TEMPLATES[0], np.roll(TEMPLATES[0], 1, axis=1)]), scale_std=10.0)
    fits = fit_templates(plant([(0, CENTRE + offset, 1.5)]), bank)
    found = pursue_fits(fits, bank, PARAMS, refractory=REFRACTORY)
    assert rows(found) == [(CENTRE, 0)]
    assert found.scale[0] == pytest.approx(1.5, abs=0.003)
    assert np.abs(fits[1]).max() < 0.01 * bank.energy[1]
    far = np.abs(np.arange(600) - CENTRE) > REFRACTORY
    assert np.abs(fits[0, far]).max() < 0.01 * bank.energy[0]


DELAYS = [-25, -12, -6, -3, 0, 3, 6, 12, 25]


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("seed", range(3))
def test_overlapping_spikes_are_split_into_their_units(delay, seed):
    """The two share their channels: what one takes of the other is given back when both are revised."""
    planted = [(0, CENTRE, 1.0), (1, CENTRE + delay + 0.3, 0.95)]
    found = match(plant(planted, noise=1.0, seed=seed))
    assert sorted(found.unit_index.tolist()) == [0, 1]
    times = dict(zip(found.unit_index.tolist(), found.sample_index + found.offset, strict=True))
    assert times[0] == pytest.approx(CENTRE, abs=0.7)
    assert times[1] == pytest.approx(CENTRE + delay + 0.3, abs=0.7)
    np.testing.assert_allclose(found.scale, 1.0, atol=0.12)


def test_units_far_apart_fire_at_the_same_sample():
    assert rows(match(plant([(0, CENTRE, 1.0), (2, CENTRE, 1.0)]))) == [(CENTRE, 0), (CENTRE, 2)]


def test_three_at_once():
    planted = [(0, CENTRE, 1.0), (1, CENTRE + 9, 1.0), (0, CENTRE + 34, 0.9), (2, CENTRE + 5, 1.0)]
    found = match(plant(planted, noise=0.5))
    order = np.lexsort((found.sample_index, found.unit_index))
    assert found.unit_index[order].tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(found.sample_index[order] - CENTRE, [0, 34, 9, 5], atol=1)


def test_two_spikes_are_not_half_of_a_large_one():
    """The large one explains more of them than either of their own units, and is taken out first."""
    large = 2 * (TEMPLATES[0] + TEMPLATES[1]) + TEMPLATES[2]
    bank = make_bank(np.stack([*TEMPLATES[:2], large]).astype(np.float32))
    both = plant([(0, CENTRE, 1.0), (1, CENTRE, 1.0)], noise=0.5)
    gains = fit_templates(both, bank)[:, CENTRE] ** 2 / bank.energy
    assert gains.argmax() == 2
    assert rows(match(both, bank)) == [(CENTRE, 0), (CENTRE, 1)]
    alone = plant([], noise=0.5)
    alone[CENTRE + WINDOW[0] : CENTRE + WINDOW[-1] + 1] += large
    assert rows(match(alone, bank)) == [(CENTRE, 2)]


@pytest.mark.parametrize(("log_rate", "expected"), [(0.0, [2]), (15.0, [2]), (30.0, [0, 1])])
def test_two_spikes_take_the_place_of_one_where_they_are_likelier(log_rate, expected):
    """Of a large unit's spike, two of usual units, 1.6 times as large each, explain the traces as well."""
    large = np.float32(1.6) * (TEMPLATES[0] + TEMPLATES[1])
    bank = make_bank(np.stack([*TEMPLATES[:2], large]))
    traces = plant([])
    traces[CENTRE + WINDOW[0] : CENTRE + WINDOW[-1] + 1] += large
    found = match(traces, replace(bank, log_rate=np.array([log_rate, log_rate, 0.0])))
    assert found.unit_index.tolist() == expected


def test_two_spikes_among_alike_units_are_explained_by_their_own():
    """Units of all sizes on the channels of a tetrode: sums of two are much like one large unit."""
    rng = np.random.default_rng(0)
    num_right, num_pairs = 0, 100
    for _ in range(num_pairs):
        widths, tails = rng.uniform(2, 6, (2, 8))
        heights = rng.uniform(3, 25, (8, 4))
        time = WINDOW[None, :, None]
        shapes = np.exp(-0.5 * (time / widths[:, None, None]) ** 2)
        shapes = shapes - 0.1 * tails[:, None, None] * np.exp(-0.5 * ((time - 14) / 6) ** 2)
        templates = np.pad(-shapes * heights[:, None], ((0, 0), (0, 0), (0, NUM_CHANNELS - 4)))
        first, second = rng.choice(8, 2, replace=False)
        delay = rng.integers(-5, 6)
        traces = rng.normal(0, 1, (600, NUM_CHANNELS))
        for unit, sample in ((first, CENTRE), (second, CENTRE + delay)):
            traces[sample + WINDOW[0] : sample + WINDOW[-1] + 1] += templates[unit]
        found = match(traces.astype(np.float32), make_bank(templates.astype(np.float32)))
        num_right += sorted(found.unit_index.tolist()) == sorted([first, second])
    assert num_right >= 80


@pytest.mark.parametrize(("apart", "expected"), [(8, 1), (REFRACTORY + 1, 2), (80, 2)])
def test_a_unit_does_not_fire_twice_within_its_refractory_time(apart, expected):
    found = match(plant([(0, CENTRE, 1.0), (0, CENTRE + apart, 1.0)]), BANK.select(np.array([0])))
    assert len(found) == expected
    assert (np.diff(found.sample_index) > REFRACTORY).all()


@given(seed=st.integers(0, 500), refractory=st.integers(1, 60))
@settings(max_examples=20)
def test_the_refractory_time_holds_whatever_is_in_the_traces(seed, refractory):
    rng = np.random.default_rng(seed)
    spikes = zip(rng.integers(0, 3, 40), rng.uniform(70, 530, 40), rng.uniform(0.5, 2, 40), strict=True)
    found = match(plant(list(spikes), noise=1.0, seed=seed), refractory=refractory)
    assert len(found) > 0
    assert rows(found) == sorted(rows(found))
    for unit in range(3):
        assert (np.diff(found.sample_index[found.unit_index == unit]) > refractory).all()
    assert ((found.probability > 0) & (found.probability <= 1)).all()
    assert (found.gain > PARAMS.threshold**2).all()


def test_noise_holds_no_spike():
    noise = np.random.default_rng(0).normal(0, 1, (60_000, NUM_CHANNELS)).astype(np.float32)
    assert len(match(noise)) == 0


def test_noise_of_long_memory_holds_no_spike_once_its_covariance_is_known():
    rng = np.random.default_rng(0)
    noise = np.zeros((60_000, NUM_CHANNELS))
    drive = rng.normal(0, np.sqrt(1 - 0.8**2), noise.shape)
    for t in range(1, len(noise)):
        noise[t] = 0.8 * noise[t - 1] + drive[t]
    banks = [make_bank(0.2 * TEMPLATES, autocovariance, 1.0) for autocovariance in (WHITE, COLOURED)]
    counts = [len(match(noise.astype(np.float32), bank)) for bank in banks]
    assert counts[0] > 50
    assert counts[1] == 0


@pytest.mark.parametrize(("scale", "expected"), [(0.3, 0), (0.38, 0), (0.45, 1), (1.0, 1), (2.5, 1)])
def test_too_small_is_not_the_unit(scale, expected):
    found = match(plant([(0, CENTRE, scale)]), BANK.select(np.array([0])), min_scale=0.4)
    assert len(found) == expected


@pytest.mark.parametrize("scale", [5.0, 40.0, 1e6])
def test_no_more_is_taken_out_at_once_than_a_spike_may_be(scale):
    found = match(plant([(0, CENTRE, scale)]), make_bank(scale_std=1.0))
    assert found.scale.max() == pytest.approx(min(scale, MAX_SCALE), rel=0.05)


@pytest.mark.parametrize(("threshold", "expected"), [(5.0, 1), (20.0, 1), (50.0, 0)])
def test_threshold(threshold, expected):
    assert 20**2 < BANK.energy[0] < 50**2
    assert len(match(plant([(0, CENTRE, 1.0)]), threshold=threshold)) == expected


def test_an_upside_down_spike_is_not_the_unit():
    assert len(match(-plant([(0, CENTRE, 1.0)]))) == 0


@pytest.mark.parametrize("time", [0, NUM_SAMPLES - 1, 600 - NUM_SAMPLES, 599])
def test_nothing_is_matched_within_a_template_of_the_ends(time):
    found = match(plant([(0, time, 1.0)])).sample_index
    assert ((found >= NUM_SAMPLES) & (found < 600 - NUM_SAMPLES)).all()


def test_probability_is_low_between_two_units_that_are_alike():
    twin = TEMPLATES[0] * np.float32(1.02)
    bank = make_bank(np.stack([TEMPLATES[0], twin, TEMPLATES[2]]))
    between = plant([(0, 200, 1.01), (2, 400, 1.0)], noise=0.1)
    found = match(between, bank)
    assert found.probability[found.unit_index < 2] == pytest.approx([0.5], abs=0.2)
    assert found.probability[found.unit_index == 2] > 0.99


def test_permuting_channels_and_units_permutes_the_matches():
    spikes = [(0, 150, 1.0), (1, 160.4, 1.1), (2, 300, 0.9), (0, 420.2, 1.0)]
    traces = plant(spikes, noise=1.0)
    channels, units = np.array([3, 1, 5, 0, 2, 4]), np.array([2, 0, 1])
    there = match(traces)
    back = match(traces[:, channels], make_bank(TEMPLATES[units][:, :, channels]))
    as_before = sorted((int(s), int(units[u])) for s, u in rows(back))
    assert as_before == rows(there)


@given(delay=st.integers(0, 200))
@settings(max_examples=15)
def test_shifting_time_shifts_the_matches(delay):
    spikes = [(0, 150, 1.0), (1, 160.4, 1.1), (2, 300, 0.9)]
    there = match(plant(spikes))
    back = match(plant([(u, t + delay, s) for u, t, s in spikes]))
    np.testing.assert_array_equal(back.sample_index, there.sample_index + delay)
    np.testing.assert_array_equal(back.unit_index, there.unit_index)
    np.testing.assert_allclose(back.scale, there.scale, atol=1e-3)


def test_same_traces_same_bytes():
    traces = plant([(0, 150, 1.0), (1, 160.4, 1.1), (2, 300, 0.9)], noise=1.0)
    before = traces.copy()
    first, second = match(traces), match(traces)
    np.testing.assert_array_equal(traces, before)
    for name in Matches.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_matches_are_selected_moved_and_joined():
    found = match(plant([(0, 150, 1.0), (2, 300, 0.9)]))
    assert rows(found.select(np.array([1]))) == [(300, 2)]
    assert rows(found.select(found.unit_index == 0).move(-50)) == [(100, 0)]
    joined = Matches.join([Matches.empty(), found, Matches.empty(), found.move(1000)])
    assert rows(joined) == [(150, 0), (300, 2), (1150, 0), (1300, 2)]
    assert joined.sample_index.dtype == np.int64
    assert joined.scale.dtype == np.float32
    assert len(Matches.empty()) == 0
    assert rows(joined.of_units(np.array([1, 2]))) == [(300, 1), (1300, 1)]
    assert rows(joined.of_units(np.array([0, 2]))) == [(150, 0), (300, 1), (1150, 0), (1300, 1)]
    assert len(joined.of_units(np.array([1]))) == 0


def test_probabilities_are_less_sure_than_matching_but_keep_their_order():
    sure = np.array([0.0, 0.2, 0.5, 0.7, 0.999, 1.0], dtype=np.float32)
    meant = calibrate(sure)
    assert meant.dtype == np.float32
    np.testing.assert_array_equal(meant[[0, 2, 5]], [0, 0.5, 1])
    odds = sure[[1, 3, 4]] / (1 - sure[[1, 3, 4]])
    np.testing.assert_allclose(meant[[1, 3, 4]] / (1 - meant[[1, 3, 4]]), odds**0.6, rtol=1e-3)
