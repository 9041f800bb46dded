"""Online against the truth and against itself: cut differently, over a gap, on two shanks, under drift."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accm_core.evaluate import evaluate
from accm_core.online import sorter as module
from accm_core.online.plan import make_plan, measure_shanks
from accm_core.online.sorter import OnlineSorter, OnlineSpikes
from accm_core.params import SorterParams
from accm_core.sorting.match import match_templates
from accm_core.types import ArrayRecording, KnownUnits

FS = 30_000.0
NAMES = list(OnlineSpikes.__dataclass_fields__)


def sort_pieces(plan, traces, cuts=(), **options):
    """All spikes of a stream that comes in pieces."""
    sorter = OnlineSorter(plan, **options)
    borders = [0, *sorted(cuts), len(traces)]
    found = [sorter.feed(traces[a:b]) for a, b in pairwise(borders)]
    found.append(sorter.end_segment())
    sorter.close()
    return OnlineSpikes.join(found)


def assert_same(found, wanted):
    assert len(wanted) > 0
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def score(spikes, truth, start=0):
    late = spikes.select(spikes.sample_index >= start)
    units = {name: late.sample_index[late.unit_index == k] / FS for k, name in enumerate(truth.unit_names)}
    return evaluate(units, {n: t[t >= start / FS] for n, t in truth.trains().items()}, sampling_frequency=FS)


@pytest.fixture(scope="module")
def plan(stream):
    return stream.plan()


@pytest.fixture(scope="module")
def whole(stream, plan):
    return sort_pieces(plan, stream.traces)


def test_it_is_as_good_as_matching_offline(stream, plan, whole):
    shank, padded = plan.shanks[0], np.pad(stream.traces, ((600, 600), (0, 0)), mode="edge")
    traces = shank.preprocessor.whiten(shank.preprocessor.filter(padded, None))
    offline = match_templates(traces, shank.bank, plan.match, refractory=24)
    online, wanted = score(whole, stream.truth), score(offline, stream.truth)
    assert wanted.accuracy.mean() > 0.9
    assert online.accuracy.mean() > wanted.accuracy.mean() - 0.01
    assert online.total_overlap_recall > wanted.total_overlap_recall - 0.05


def test_spikes_are_described(stream, plan, whole):
    own = whole.unit_index == 2
    height = stream.units.templates[2].min()
    assert np.median(whole.amplitude_uV[own]) == pytest.approx(height, rel=0.1)
    assert set(whole.channel_index[own]) == {stream.truth.templates.main_channel[2]}
    assert ((whole.probability > 0) & (whole.probability <= 1)).all()
    assert 0 < whole.is_overlap.mean() < 0.5
    assert (np.diff(whole.sample_index) >= 0).all()


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 45_000), max_size=30))
def test_the_cuts_change_nothing(stream, plan, cuts):
    traces = stream.traces[:45_000]
    with pytest.MonkeyPatch.context() as patch:  # templates are followed several times within the stretch
        patch.setattr(module, "UPDATE_S", 0.2)
        patch.setattr(module, "SWAP_S", 0.05)
        assert_same(sort_pieces(plan, traces, cuts), sort_pieces(plan, traces))


def test_all_is_given_up_to_the_acknowledged_sample(stream, plan, whole):
    sorter, before = OnlineSorter(plan, first_sample=1000), 1000
    lookahead = plan.lookahead.total
    for length in np.random.default_rng(0).integers(1, 700, 100):
        spikes = sorter.feed(stream.traces[sorter.next_sample - 1000 :][:length])
        assert ((spikes.sample_index >= before) & (spikes.sample_index < sorter.acknowledged)).all()
        inside = (whole.sample_index + 1000 >= before) & (whole.sample_index + 1000 < sorter.acknowledged)
        np.testing.assert_array_equal(spikes.sample_index, whole.sample_index[inside] + 1000)
        assert sorter.acknowledged >= sorter.next_sample - lookahead
        before = sorter.acknowledged
    spikes = sorter.end_segment()
    assert sorter.acknowledged == sorter.next_sample > spikes.sample_index.max(initial=0)
    sorter.close()


def test_a_gap_parts_the_stream(stream, plan):
    first, second = stream.traces[:31_000], stream.traces[60_000:90_017]
    sorter = OnlineSorter(plan, follow=False)
    found = [sorter.feed(first), sorter.end_segment(60_000)]
    assert sorter.next_sample == sorter.acknowledged == 60_000
    found += [sorter.feed(second), sorter.end_segment()]
    apart = sort_pieces(plan, second, first_sample=60_000, follow=False)
    assert_same(OnlineSpikes.join(found[2:]), apart)
    assert_same(OnlineSpikes.join(found[:2]), sort_pieces(plan, first, follow=False))


def test_an_empty_stream_ends(plan):
    sorter = OnlineSorter(plan, first_sample=5)
    assert len(sorter.end_segment()) == 0
    assert sorter.acknowledged == sorter.next_sample == 5
    sorter.close()


def test_two_shanks_are_two_streams(stream, make_stream):
    other = make_stream(duration_s=10, seed=4)
    both = ArrayRecording(
        traces=np.concatenate([stream.traces, other.traces], axis=1),
        sampling_frequency=FS,
        channel_locations=np.tile(stream.recording.channel_locations, (2, 1)),
        channel_groups=np.repeat([0, 1], 4),
    )
    num_units = len(stream.units)
    wide = np.zeros((num_units + len(other.units), stream.units.templates.shape[1], 8), dtype=np.float32)
    wide[:num_units, :, :4], wide[num_units:, :, 4:] = stream.units.templates, other.units.templates
    names = tuple(str(k) for k in range(len(wide)))
    spread = np.full(len(wide), np.nan, dtype=np.float32)
    units = KnownUnits(names, wide, stream.units.num_before, spread, both.channel_ids, FS)
    params = SorterParams()
    together = sort_pieces(make_plan(both, measure_shanks(both, params), units, params), both.traces[:60_000])
    for shank, (apart, first_unit) in enumerate([(stream, 0), (other, num_units)]):
        alone = sort_pieces(apart.plan(), apart.traces[:60_000])
        own = together.select(together.channel_index // 4 == shank)
        np.testing.assert_array_equal(own.sample_index, alone.sample_index)
        np.testing.assert_array_equal(own.unit_index, alone.unit_index + first_unit)


def test_templates_follow_the_drift(make_stream):
    drifting = make_stream(
        duration_s=30, drift_um=40, drift_period_s=60, num_units=4, rate_hz=15, burst_share=0, seed=5
    )
    plan = drifting.plan()
    late = 15 * int(FS)
    missed = [
        1 - score(sort_pieces(plan, drifting.traces, follow=f), drifting.truth, late).accuracy.mean()
        for f in (True, False)
    ]
    assert missed[0] < 0.5 * missed[1]
