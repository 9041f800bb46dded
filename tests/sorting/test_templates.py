"""Mean waveforms against NumPy's mean over the windows themselves."""

import numpy as np
import pytest

from accm_core.params import RunParams, SignalParams
from accm_core.signal.chunks import cut_blocks, read_padded
from accm_core.signal.preprocess import fit_preprocessor
from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets
from accm_core.sorting import templates as module
from accm_core.sorting.templates import (
    WaveformAverage,
    Window,
    average_clusters,
    center_templates,
    find_lags,
    silence_channels,
    sum_waveforms,
)
from accm_core.types import ArrayRecording

FS = 10_000
WINDOW = Window(num_before=10, num_samples=30)


def make_traces(num_samples=2000, num_channels=3, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (num_samples, num_channels)).astype(np.float32)


def cut_slowly(traces, samples):
    return np.stack([traces[s - 10 : s + 20] for s in samples])


def test_the_margin_holds_the_window_and_its_interpolation():
    assert WINDOW.margin == 30 + LANCZOS_TAPS


def test_sums_of_each_unit():
    traces = make_traces()
    samples = np.array([100, 150, 160, 700, 900])
    units = np.array([4, 2, 4, 7, 4])
    sums = sum_waveforms(traces, samples, np.zeros(5, np.float32), units, WINDOW)
    assert sums.units.tolist() == [2, 4, 7]
    assert sums.counts.tolist() == [1, 3, 1]
    for row, unit in enumerate(sums.units):
        waveforms = cut_slowly(traces, samples[units == unit])
        np.testing.assert_allclose(sums.total[row], waveforms.sum(axis=0), atol=1e-5)
        np.testing.assert_allclose(sums.total_square[row], (waveforms**2).sum(axis=0), atol=1e-4)


def test_spikes_that_were_taken_out_are_put_back():
    traces, templates = make_traces(), make_traces(2 * 30).reshape(2, 30, 3)
    samples, units, scale = np.array([100, 105, 700]), np.array([0, 1, 1]), np.float32([0.8, 1.1, 0.9])
    sums = sum_waveforms(
        traces, samples, np.zeros(3, np.float32), units, WINDOW, scale=scale, templates=templates
    )
    whole = cut_slowly(traces, samples) + scale[:, None, None] * templates[units]
    np.testing.assert_allclose(sums.total, [whole[0], whole[1] + whole[2]], atol=1e-5)
    np.testing.assert_allclose(sums.total_square, [whole[0] ** 2, whole[1] ** 2 + whole[2] ** 2], atol=1e-4)


def test_spikes_are_aligned_between_samples():
    time = np.arange(400)[:, None]
    offset = np.float32([0.4, -0.3])
    traces = sum(-9 * np.exp(-0.5 * ((time - t) / 4) ** 2) for t in (100.4, 299.7)).astype(np.float32)
    sums = sum_waveforms(traces, np.array([100, 300]), offset, np.zeros(2, int), WINDOW)
    expected = -9 * np.exp(-0.5 * ((np.arange(30) - 10) / 4) ** 2)
    np.testing.assert_allclose(sums.total[0, :, 0] / 2, expected, atol=0.03)


def test_no_spikes_give_no_sums():
    empty = np.zeros(0, np.int64)
    sums = sum_waveforms(make_traces(), empty, np.zeros(0, np.float32), empty, WINDOW)
    assert sums.total.shape == (0, 30, 3)
    assert len(sums.units) == len(sums.counts) == 0


def test_average_of_several_blocks():
    traces, rng = make_traces(), np.random.default_rng(1)
    samples, units = np.sort(rng.integers(50, 1900, 60)), rng.integers(0, 3, 60)
    average = WaveformAverage(5, 30, 3)
    for rows in np.array_split(np.arange(60), 4):
        offset = np.zeros(len(rows), np.float32)
        average.add(sum_waveforms(traces, samples[rows], offset, units[rows], WINDOW))
    assert average.counts.tolist() == [*np.bincount(units, minlength=3), 0, 0]
    mean, std = average.mean(), average.std()
    assert mean.shape == std.shape == (5, 30, 3)
    assert mean.dtype == std.dtype == np.float32
    for unit in range(3):
        waveforms = cut_slowly(traces, samples[units == unit])
        np.testing.assert_allclose(mean[unit], waveforms.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(std[unit], waveforms.std(axis=0), atol=1e-4)
    assert not mean[3:].any()
    assert not std[3:].any()


def test_equal_waveforms_have_no_spread():
    """Rounding must not make a variance negative."""
    traces = np.tile(np.random.default_rng(0).normal(0, 100, (100, 2)), (30, 1)).astype(np.float32)
    average, samples = WaveformAverage(1, 30, 2), np.arange(150, 2800, 100)
    count = len(samples)
    average.add(sum_waveforms(traces, samples, np.zeros(count, np.float32), np.zeros(count, int), WINDOW))
    assert np.isfinite(average.std()).all()
    assert average.std().max() < 0.5


def test_a_units_sums_are_given_to_another():
    traces, samples = make_traces(), np.array([100, 250, 400, 700])
    units = np.array([0, 1, 1, 2])
    average = WaveformAverage(3, 30, 3)
    average.add(sum_waveforms(traces, samples, np.zeros(4, np.float32), units, WINDOW))
    average.give(1, 0, delay=2)
    assert average.counts.tolist() == [3, 0, 1]
    assert not average.mean()[1].any()
    waveforms = cut_slowly(traces, np.array([100, 248, 398]))
    np.testing.assert_allclose(average.mean()[0, 2:], waveforms.mean(axis=0)[2:], atol=1e-5)
    np.testing.assert_allclose(average.std()[0, 2:], waveforms.std(axis=0)[2:], atol=1e-4)
    np.testing.assert_allclose(average.mean()[2], cut_slowly(traces, [700])[0], atol=1e-5)


@pytest.fixture(scope="module")
def session():
    """A recording of noise, its preprocessor and its blocks."""
    traces = make_traces(3 * FS, 4) * 7
    recording = ArrayRecording(traces=traces, sampling_frequency=FS)
    blocks = cut_blocks(recording.segments, FS)
    raw = [read_padded(recording, b.start - 200, b.stop + 200, b.segment) for b in blocks]
    return recording, fit_preprocessor(raw, np.arange(4), np.zeros((4, 4)), SignalParams(), FS), blocks


def average(session, samples, labels, run=None):
    recording, preprocessor, blocks = session
    offset = np.linspace(-0.5, 0.5, len(samples)).astype(np.float32)
    found = average_clusters(
        recording,
        preprocessor,
        blocks,
        samples,
        offset,
        labels,
        window=WINDOW,
        run=run or RunParams(num_workers=1),
    )
    return found.mean(), offset


def whitened(session, margin=100):
    recording, preprocessor, blocks = session
    reach = margin + preprocessor.margin
    raw = read_padded(recording, -reach, 3 * FS + reach, recording.segments[0])
    return preprocessor.whiten(preprocessor.filter(raw, blocks[0]))


def test_clusters_are_averaged_on_whitened_traces_also_at_borders(session):
    samples = np.array([0, 3, 500, FS - 1, FS, FS + 1, 2 * FS + 77, 3 * FS - 1])
    labels = np.array([0, 1, -1, 0, 1, 1, 0, 1])
    found, offset = average(session, samples, labels)
    assert found.shape == (2, 30, 4)
    assert found.dtype == np.float32
    whole = whitened(session)
    channels = np.tile(np.arange(4), (8, 1))
    waveforms = cut_snippets(whole, samples + 100, offset, channels, num_before=10, num_samples=30)
    for label in range(2):
        np.testing.assert_allclose(found[label], waveforms[labels == label].mean(axis=0), atol=2e-3)


def test_at_most_some_spikes_evenly_spread_are_averaged(session, monkeypatch):
    monkeypatch.setattr(module, "MAX_SPIKES", 3)
    samples = np.arange(1000, 29_000, 1000)
    found, offset = average(session, samples, np.zeros(len(samples), int))
    rows = [0, 14, 27]  # first, middle and last of 28
    channels = np.tile(np.arange(4), (3, 1))
    waveforms = cut_snippets(
        whitened(session), samples[rows] + 100, offset[rows], channels, num_before=10, num_samples=30
    )
    np.testing.assert_allclose(found[0], waveforms.mean(axis=0), atol=2e-3)


def test_no_clusters(session):
    found, _ = average(session, np.array([100, 200]), np.array([-1, -1]))
    assert found.shape == (0, 30, 4)


@pytest.mark.parametrize(("chunk_s", "workers"), [(1, 2), (3, 1), (2, 3)])
def test_same_bytes_whatever_the_chunk_length_and_the_threads(session, chunk_s, workers):
    rng = np.random.default_rng(0)
    samples, labels = np.sort(rng.integers(0, 3 * FS, 300)), rng.integers(-1, 4, 300)
    one, _ = average(session, samples, labels, RunParams(chunk_s=1, num_workers=1))
    other, _ = average(session, samples, labels, RunParams(chunk_s=chunk_s, num_workers=workers))
    np.testing.assert_array_equal(one, other)


def test_a_template_of_a_side_lobe_is_centred():
    templates = np.zeros((3, 30, 2), np.float32)
    templates[0, [10, 25], 1] = -3, 9  # aligned to the small trough; the extremum comes 15 samples later
    templates[1, [10, 12], 0] = -3, 9  # within the lag: stays
    templates[2, [2, 10], 0] = -9, 3
    lags = find_lags(templates, 10, max_lag=5)
    assert lags.tolist() == [15, 0, -8]
    found = center_templates(templates, lags)
    assert np.argwhere(found[0]).tolist() == [[10, 1]]
    assert found[0, 10, 1] == 9
    np.testing.assert_array_equal(found[1], templates[1])
    assert found[2, [10, 18], 0].tolist() == [-9, 3]
    assert np.count_nonzero(found[2]) == 2


def test_templates_are_silent_where_they_do_not_stand_out():
    templates = np.zeros((2, 5, 3), np.float32)
    templates[0, 2] = [-6.0, 0.49, -0.5]
    templates[1, 1] = [0.1, 0.2, 9.0]
    expected = np.zeros_like(templates)
    expected[0, 2] = [-6.0, 0, -0.5]
    expected[1, 1] = [0, 0, 9.0]
    np.testing.assert_array_equal(silence_channels(templates), expected)


def test_the_noise_of_few_spikes_does_not_stand_out():
    traces = make_traces(30 * 60 + 100, 20)
    average, samples = WaveformAverage(1, 30, 20), 80 + 60 * np.arange(30)
    average.add(sum_waveforms(traces, samples, np.zeros(30, np.float32), np.zeros(30, int), WINDOW))
    visible = [silence_channels(average.mean(), least).any(axis=1) for least in (0.0, average.least_height())]
    assert visible[0].sum() > 5
    assert visible[1].sum() <= 1


def test_what_a_few_large_spikes_leave_in_a_mean_does_not_stand_out():
    """A large spike beside one spike in fifty is no part of the template; what all spikes hold is."""
    rng = np.random.default_rng(0)
    traces = rng.normal(0, 1, (50 * 60 + 100, 3)).astype(np.float32)
    samples = 80 + 60 * np.arange(50)
    traces[samples, 0] -= 8
    traces[samples, 1] -= 1.5
    traces[samples[7] + 4, 2] -= 60
    average = WaveformAverage(1, 30, 3)
    average.add(sum_waveforms(traces, samples, np.zeros(50, np.float32), np.zeros(50, int), WINDOW))
    assert np.abs(average.mean()[0, :, 2]).max() > 1
    visible = silence_channels(average.mean(), average.least_height()).any(axis=1)[0]
    assert visible.tolist() == [True, True, False]
    assert silence_channels(average.mean()).any(axis=1)[0].all()
