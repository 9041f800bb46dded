"""What a plan is made of, and units it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from accm_core.errors import ModelError
from accm_core.online.lookahead import make_lookahead
from accm_core.online.plan import make_plan, measure_shanks
from accm_core.online.units import units_of_sorting
from accm_core.params import SorterParams
from accm_core.sorting.recover import MIN_SCALE_STD
from accm_core.types import ArrayRecording

PARAMS = SorterParams()


def plan_of(recording, units):
    return make_plan(recording, measure_shanks(recording, PARAMS), units, PARAMS)


def test_the_look_ahead_is_five_milliseconds():
    assert make_lookahead(30_000, 60).total == 150
    assert make_lookahead(30_000, 30).total == 135  # templates that end 1 ms after their peak


def test_the_scale_is_as_wide_as_the_amplitudes_were(stream):
    spread = np.full(len(stream.units), np.nan, dtype=np.float32)
    spread[:3] = [0.0, 0.08, 0.5]
    bank = plan_of(stream.recording, replace(stream.units, spread=spread)).shanks[0].bank
    noise = 1 / bank.energy[1]
    wanted = [MIN_SCALE_STD, np.sqrt(0.08**2 - noise), PARAMS.match.scale_std, PARAMS.match.scale_std]
    np.testing.assert_allclose(bank.prior[:4] ** -0.5, wanted, rtol=1e-4)


def test_a_dead_channel_is_left_out(stream):
    traces = stream.traces.copy()
    traces[:, 1] = 0
    recording = replace(stream.recording, traces=traces)
    shank = plan_of(recording, stream.units).shanks[0]
    assert shank.preprocessor.channels.tolist() == [0, 2, 3]
    assert shank.bank.templates.shape[2] == 3
    lost = stream.truth.templates.main_channel == 1
    assert shank.unit_index.tolist() == np.flatnonzero(~lost).tolist()


def test_what_a_median_leaves_outside_the_band_counts_as_noise(stream):
    """Online nothing band-passes the median: what a unit has where only that has power counts for less."""
    preprocessors = measure_shanks(stream.recording, PARAMS)
    assert not preprocessors[0].use_median
    referenced = [replace(preprocessor, use_median=True) for preprocessor in preprocessors]
    plain, counted = (
        make_plan(stream.recording, each, stream.units, PARAMS).shanks[0].bank.energy
        for each in (preprocessors, referenced)
    )
    assert (counted < 0.995 * plain).all()
    assert (counted > 0.9 * plain).all()


def test_units_may_know_fewer_channels_than_there_are(stream):
    known = replace(stream.units, templates=stream.units.templates[:, :, 1:], channel_ids=("1", "2", "3"))
    bank = plan_of(stream.recording, known).shanks[0].bank
    assert bank.templates.shape[2] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"channel_ids": ("0", "1", "2", "9")},
            "The model is for another probe: 1 of its 4 channels, such as '9', are not among the 4 of this "
            "stream. Calibrate on this probe, or give channel_ids as they were.",
        ),
        (
            {"sampling_frequency": 25_000.0},
            "The model is for 25000 Hz and the stream has 30000 Hz; they may differ by 0.1%. Calibrate at "
            "this sampling frequency.",
        ),
    ],
)
def test_units_of_another_probe_are_refused(stream, change, message):
    with pytest.raises(ModelError) as error:
        plan_of(stream.recording, replace(stream.units, **change))
    assert str(error.value) == message


def test_units_of_a_sorting(make_sorting):
    sorting = make_sorting(num_units=4, num_channels=6, duration_s=30)
    few = np.flatnonzero((sorting.unit_index != 1) | (np.arange(len(sorting.sample_index)) < 40))
    rows = {name: getattr(sorting, name)[few] for name in ("sample_index", "unit_index", "amplitude_uV")}
    units = units_of_sorting(replace(sorting, **rows))
    assert units.names == ("1", "2", "3", "4")
    assert units.channel_ids == sorting.channel_ids
    assert np.isnan(units.spread).tolist() == [False, True, False, False]
    np.testing.assert_allclose(units.spread[[0, 2, 3]], 0.09, atol=0.03)


def test_noise_units_of_no_use_make_an_empty_plan(stream):
    none = replace(
        stream.units, names=(), templates=stream.units.templates[:0], spread=stream.units.spread[:0]
    )
    assert plan_of(stream.recording, none).shanks == ()


def test_it_needs_a_recording_of_noise():
    flat = ArrayRecording(traces=np.zeros((60_000, 4), np.float32), sampling_frequency=30_000.0)
    with pytest.raises(ValueError, match="All 4 channels are constant"):
        measure_shanks(flat, PARAMS)
