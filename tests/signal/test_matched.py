"""The matched filter: against its definition, and on planted spikes too small for one channel."""

import numpy as np
import pytest

from accm_core.params import DetectParams, RunParams, SignalParams
from accm_core.signal.geometry import channel_distances
from accm_core.signal.matched import MIN_SHAPES, MatchedFilter, measure_matched_filter
from accm_core.signal.preprocess import measure_preprocessor
from accm_core.types import ArrayRecording

FS = 30_000
LOCATIONS = np.array([[0.0, 20.0 * k] for k in range(8)])
COURSE = -np.exp(-0.5 * (np.arange(-30, 60) / 4) ** 2) + 0.3 * np.exp(-0.5 * (np.arange(-50, 40) / 12) ** 2)
SPREAD = np.exp(-0.5 * (np.arange(8) - 3.0) ** 2)  # over the channels around the fourth


def make_recording(heights, duration_s=4, sign=1.0):
    """Spikes of the given heights (in noise levels) at even times on the fourth channel, and their times."""
    traces = np.random.default_rng(0).normal(0, 10, (duration_s * FS, 8))
    samples = np.linspace(500, duration_s * FS - 500, len(heights)).astype(int)
    for sample, height in zip(samples, heights, strict=True):
        traces[sample - 30 : sample + 60] += sign * 10 * height * COURSE[:, None] * SPREAD
    recording = ArrayRecording(
        traces=traces.astype(np.float32), sampling_frequency=FS, channel_locations=LOCATIONS
    )
    return recording, samples


def measure(recording, sign="neg", pitch=1):
    distances = channel_distances(pitch * LOCATIONS, has_geometry=True)
    preprocessor = measure_preprocessor(recording, np.arange(8), distances, SignalParams(reference="none"))
    matched = measure_matched_filter(
        recording, preprocessor, distances, DetectParams(peak_sign=sign), RunParams()
    )
    segment = recording.segments[0]
    raw = np.pad(recording.get_traces(segment.start, segment.stop), ((preprocessor.margin,) * 2, (0, 0)))
    return matched, preprocessor.whiten(preprocessor.filter(raw, None))


@pytest.fixture(scope="module")
def planted():
    heights = np.tile([20.0, 4.0], 60)
    recording, samples = make_recording(heights)
    return *measure(recording), samples[heights == 4.0]


def test_fit_is_the_largest_of_the_weighted_correlations():
    rng = np.random.default_rng(1)
    traces, shape = rng.normal(size=(60, 3)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    alone, joined = (rng.normal(size=size).astype(np.float32) for size in (3, (3, 3)))
    course = np.stack([np.correlate(column, shape, "same") for column in traces.T], axis=1)
    fits = np.stack([course * alone, course @ joined])
    expected = np.take_along_axis(fits, np.abs(fits).argmax(axis=0)[None], axis=0)[0]
    matched = MatchedFilter(shape, alone, joined)
    found = matched.apply(traces)
    assert matched.margin == 2
    np.testing.assert_allclose(found[2:-2], expected[2:-2], atol=1e-4)
    assert not found[:2].any()
    assert not found[-2:].any()


def test_shape_is_that_of_the_large_spikes(planted):
    matched, _, _ = planted
    middle = matched.margin
    assert matched.shape[middle] == 1
    assert matched.shape.argmax() == middle
    expected = COURSE[30 - middle : 31 + middle] / COURSE[30]
    assert np.corrcoef(matched.shape, expected)[0, 1] > 0.95


def test_small_spikes_stand_out_more_than_on_their_channel(planted):
    matched, traces, samples = planted
    fit = matched.apply(traces)
    for alone, joined in ((matched.alone, 0 * matched.joined), (0 * matched.alone, matched.joined)):
        quiet = MatchedFilter(matched.shape, alone, joined).apply(traces)
        assert 1.4826 * np.median(np.abs(quiet)) == pytest.approx(1, abs=0.1)
    near = samples[:, None] + np.arange(-3, 4)
    on_channel = np.median(traces[near, 3].min(axis=1))
    in_fit = np.median(fit[near, 3].min(axis=1))
    assert in_fit < 1.3 * on_channel < 0


@pytest.mark.parametrize("sign", ["pos", "both"])
def test_positive_spikes_have_a_positive_fit(sign):
    recording, samples = make_recording(np.full(60, 20.0), sign=-1.0)
    matched, traces = measure(recording, sign)
    assert (matched.apply(traces)[samples, 3] > 10).all()


def test_no_weight_is_too_small_to_reckon_with_fast():
    matched, _ = measure(make_recording(np.full(40, 20.0), duration_s=1)[0], pitch=2)
    weights = matched.joined[matched.joined > 0]
    assert np.exp(-0.5 * (280 / 20) ** 2) < 1e-40  # of the first channel's spikes on the last
    assert len(weights) < matched.joined.size
    assert weights.min() > 1e-25
    assert (np.diag(matched.joined, 1) > 0.01).all()


def test_without_large_spikes_the_fit_is_the_trace():
    recording, _ = make_recording(np.full(MIN_SHAPES - 1, 20.0))
    matched, traces = measure(recording)
    assert np.count_nonzero(matched.shape) == 1
    alone = MatchedFilter(matched.shape, matched.alone, 0 * matched.joined)
    inside = slice(matched.margin, -matched.margin)
    np.testing.assert_allclose(alone.apply(traces)[inside], traces[inside], rtol=0.1, atol=0.05)
