"""Peaks and snippets of planted recordings, collected block by block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accm_core.params import DetectParams, RunParams, SignalParams, SnippetParams
from accm_core.signal.chunks import Block, cut_blocks, read_padded
from accm_core.signal.detect import find_peaks, find_tails
from accm_core.signal.geometry import channel_distances, nearest_channels
from accm_core.signal.matched import MatchedFilter
from accm_core.signal.peaks import TAIL_RATIO, collect_snippets
from accm_core.signal.preprocess import fit_preprocessor
from accm_core.types import ArrayRecording, Segment

FS = 10_000
NOISE_UV = 5.0
LOCATIONS = np.array([[0.0, 30.0 * k] for k in range(6)])
SPIKE = -np.exp(-0.5 * (np.arange(-10, 20) / 1.5) ** 2) + 0.3 * np.exp(-0.5 * (np.arange(-17, 13) / 4) ** 2)
ONES = np.ones(6, np.float32)
POINT = MatchedFilter(ONES[:1], ONES, np.diag(ONES))  # the traces themselves
PLACES = {  # sample -> channel
    400: 2,
    3000: 0,
    FS: 4,  # the first sample of a block
    2 * FS - 1: 3,  # the last one
    2 * FS + 5000: 5,
    2 * FS + 5002: 1,  # far enough from the other not to compete
    3 * FS - 400: 2,
}


def make_recording(places=PLACES, duration_s=3, seed=0, order=None, segments=()):
    traces = np.random.default_rng(seed).normal(0, NOISE_UV, (duration_s * FS, 6))
    for sample, channel in places.items():
        spread = np.exp(-np.abs(np.arange(6) - channel) / 0.8)
        traces[sample - 10 : sample + 20] += 150 * SPIKE[:, None] * spread
    order = np.arange(6) if order is None else np.array(order)
    return ArrayRecording(
        traces=traces[:, order].astype(np.float32),
        sampling_frequency=FS,
        channel_locations=LOCATIONS[order],
        segments=segments,
    )


def prepare(recording):
    distances = channel_distances(recording.channel_locations, has_geometry=True)
    blocks = cut_blocks(recording.segments, FS)
    raw = [read_padded(recording, b.start - 300, b.stop + 300, b.segment) for b in blocks]
    return fit_preprocessor(raw, np.arange(6), distances, SignalParams(), FS), distances


def collect(
    recording,
    run=None,
    preprocessor=None,
    threshold=7.0,
    max_spikes=10_000,
    seed=0,
    sign="neg",
    matched=POINT,
):
    fitted, distances = prepare(recording)
    found = collect_snippets(
        recording,
        preprocessor or fitted,
        matched,
        cut_blocks(recording.segments, FS),
        distances,
        nearest_channels(distances, 3, 65.0),
        recording.channel_locations[:, 1],
        detect=DetectParams(threshold=threshold, peak_sign=sign),
        snippet=SnippetParams(),
        max_spikes=max_spikes,
        seed=seed,
        run=run or RunParams(num_workers=1),
    )
    return found.snippets, found.noise


@pytest.fixture(scope="module")
def found():
    return collect(make_recording())


def test_planted_spikes_are_found_once_each_also_at_the_borders_of_blocks(found):
    peaks = found[0].peaks
    rows = list(zip(peaks.sample_index.tolist(), peaks.channel_index.tolist(), strict=True))
    assert rows == list(PLACES.items())
    assert (peaks.amplitude < -15).all()
    assert (np.abs(peaks.offset) < 0.25).all()


def test_snippets_are_aligned_on_the_nearest_channels(found):
    snippets, _ = found
    assert snippets.waveforms.shape == (len(PLACES), 7 + 13, 3)
    assert snippets.waveforms.dtype == np.float32
    assert snippets.num_before == 7
    np.testing.assert_array_equal(snippets.channels[:, 0], snippets.peaks.channel_index)
    troughs = snippets.waveforms[:, :, 0]
    assert (troughs.argmin(axis=1) == snippets.num_before).all()
    np.testing.assert_allclose(troughs.min(axis=1), snippets.peaks.amplitude, rtol=0.03)
    ends = np.isin(snippets.peaks.channel_index, [0, 5])
    assert (snippets.channels[~ends] >= 0).all()
    # within 65 µm of the last channel there are two more
    assert sorted(snippets.channels[snippets.peaks.channel_index == 5][0].tolist()) == [3, 4, 5]


def test_snippets_of_noise_hold_none_of_the_spikes(found):
    _, noise = found
    assert noise.shape[1:] == (20, 3)
    assert 100 < len(noise) <= 180
    assert np.abs(noise).max() < 7.0
    assert noise.std() == pytest.approx(1, abs=0.15)


def test_nothing_is_found_in_noise():
    snippets, noise = collect(make_recording({}))
    assert len(snippets) == 0
    assert snippets.waveforms.shape == (0, 20, 3)
    assert len(noise) > 0


@pytest.mark.parametrize(("sign", "expected"), [("neg", 0), ("pos", 7), ("both", 7)])
def test_sign(sign, expected):
    recording = make_recording()
    upside_down = ArrayRecording(
        traces=-recording.traces, sampling_frequency=FS, channel_locations=recording.channel_locations
    )
    assert len(collect(upside_down, threshold=12, sign=sign)[0]) == expected


def test_peaks_are_those_of_the_fit():
    """A spike too small for its channel, and seen on three, is found with a filter that looks at these."""
    recording = make_recording({})
    traces = recording.traces.copy()
    traces[4990:5020, 1:4] += 26 * SPIKE[:, None]
    recording = ArrayRecording(traces=traces, sampling_frequency=FS, channel_locations=LOCATIONS)
    near = (np.abs(np.subtract.outer(np.arange(6), np.arange(6))) <= 1).astype(np.float32)
    three = MatchedFilter(POINT.shape, ONES, near / np.sqrt(3, dtype=np.float32))
    assert len(collect(recording, threshold=7)[0]) == 0
    peaks = collect(recording, threshold=7, matched=three)[0].peaks
    assert peaks.sample_index.tolist() == [5000]
    assert peaks.channel_index.tolist() == [2]


def test_the_tail_of_a_large_spike_is_no_peak():
    recording = make_recording({5000: 2, 15_000: 2})
    traces = recording.traces.copy()
    small = 34 * SPIKE
    traces[5000 + 15 : 5000 + 45, 2] += small  # 2.5 ms after the large one
    traces[15_000 + 60 : 15_000 + 90, 2] += small  # 7 ms after it
    found = collect(
        ArrayRecording(traces=traces, sampling_frequency=FS, channel_locations=LOCATIONS), threshold=4.5
    )[0]
    samples = found.peaks.sample_index
    assert np.isin([5000, 15_000], samples).all()
    assert not (np.abs(samples - 5025) < 5).any()
    assert (np.abs(samples - 15_070) < 3).any()


def test_the_quota_keeps_the_same_number_of_each_block():
    places = {int(s): int(k) % 6 for k, s in enumerate(np.linspace(300, 3 * FS - 300, 90))}
    recording = make_recording(places)
    everything, some = collect(recording)[0], collect(recording, max_spikes=30)[0]
    assert len(everything) == 90
    np.testing.assert_array_equal(np.bincount(some.peaks.sample_index // FS), [10, 10, 10])
    assert np.isin(some.peaks.sample_index, everything.peaks.sample_index).all()
    again, other = collect(recording, max_spikes=30)[0], collect(recording, max_spikes=30, seed=1)[0]
    np.testing.assert_array_equal(again.peaks.sample_index, some.peaks.sample_index)
    assert not np.array_equal(other.peaks.sample_index, some.peaks.sample_index)


def assert_same(first, second, delay=0):
    for name in ("channel_index", "amplitude", "offset"):
        np.testing.assert_array_equal(getattr(first.peaks, name), getattr(second.peaks, name), err_msg=name)
    np.testing.assert_array_equal(first.peaks.sample_index + delay, second.peaks.sample_index)
    np.testing.assert_array_equal(first.waveforms, second.waveforms)
    np.testing.assert_array_equal(first.channels, second.channels)


@given(chunk_s=st.integers(1, 4), workers=st.integers(1, 3), seed=st.integers(0, 100))
@settings(max_examples=10)
def test_same_bytes_whatever_the_chunk_length_and_the_threads(chunk_s, workers, seed):
    recording = make_recording(seed=seed)
    one, noise = collect(recording, RunParams(chunk_s=1, num_workers=1), threshold=4)
    other, other_noise = collect(recording, RunParams(chunk_s=chunk_s, num_workers=workers), threshold=4)
    assert len(one) >= len(PLACES)
    assert_same(one, other)
    np.testing.assert_array_equal(noise, other_noise)


def test_the_order_in_memory_changes_no_byte():
    recording = make_recording()
    fortran = ArrayRecording(
        traces=np.asfortranarray(recording.traces),
        sampling_frequency=FS,
        channel_locations=recording.channel_locations,
    )
    run = RunParams(chunk_s=3, num_workers=1)
    assert_same(collect(recording, threshold=4)[0], collect(fortran, run, threshold=4)[0])


@given(seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_blocks_find_what_the_whole_holds(seed):
    """Filtering and detecting all at once: the same peaks, up to the rounding of the filter."""
    recording = make_recording(seed=seed)
    preprocessor, distances = prepare(recording)
    snippets, _ = collect(recording, preprocessor=preprocessor, threshold=4)
    margin = preprocessor.margin + 4
    segment = recording.segments[0]
    whole = preprocessor.whiten(
        preprocessor.filter(
            read_padded(recording, -margin, 3 * FS + margin, segment), Block(0, 3 * FS, segment)
        )
    )
    peaks = find_peaks(whole, threshold=4, neighbors=distances <= 75, exclude_sweep=4, peak_sign="neg")
    everywhere, heights = np.ones((6, 6), bool), np.abs(peaks.amplitude)
    tails = find_tails(peaks.sample_index, peaks.channel_index, heights, everywhere, 10, 30, TAIL_RATIO)
    peaks = peaks.select(~tails)
    clear = np.abs(peaks.amplitude) > 4.01
    rows = set(zip(peaks.sample_index - 4, peaks.channel_index, strict=True))
    clear_rows = set(zip(peaks.sample_index[clear] - 4, peaks.channel_index[clear], strict=True))
    in_blocks = dict(
        zip(
            zip(snippets.peaks.sample_index, snippets.peaks.channel_index, strict=True),
            snippets.peaks.amplitude,
            strict=True,
        )
    )
    assert clear_rows <= in_blocks.keys()
    assert {row for row, height in in_blocks.items() if height < -4.01} <= rows
    amplitudes = dict(
        zip(zip(peaks.sample_index - 4, peaks.channel_index, strict=True), peaks.amplitude, strict=True)
    )
    for row in clear_rows:
        assert in_blocks[row] == pytest.approx(amplitudes[row], abs=1e-3)


@given(order=st.permutations(range(6)))
@settings(max_examples=10)
def test_permuting_channels_permutes_the_peaks(order):
    there, back = collect(make_recording())[0], collect(make_recording(order=order))[0]
    rows = set(zip(there.peaks.sample_index.tolist(), there.peaks.channel_index.tolist(), strict=True))
    channel = np.array(order)[back.peaks.channel_index]
    assert rows == set(zip(back.peaks.sample_index.tolist(), channel.tolist(), strict=True))
    for row, sample in enumerate(back.peaks.sample_index):
        twin = np.flatnonzero(there.peaks.sample_index == sample)[0]
        np.testing.assert_allclose(
            back.waveforms[row, :, 0], there.waveforms[twin, :, 0], atol=1e-3, err_msg=str(sample)
        )


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_a_shift_by_whole_blocks_shifts_the_peaks_and_nothing_else(num_blocks):
    recording = make_recording()
    delay = num_blocks * FS
    silence = np.random.default_rng(9).normal(0, NOISE_UV, (delay, 6)).astype(np.float32)
    later = ArrayRecording(
        traces=np.concatenate([silence, recording.traces]),
        sampling_frequency=FS,
        channel_locations=LOCATIONS,
        segments=(Segment(0, delay), Segment(delay, delay + 3 * FS)),
    )
    preprocessor, _ = prepare(recording)
    assert_same(
        collect(recording, preprocessor=preprocessor)[0],
        collect(later, preprocessor=preprocessor)[0],
        delay=delay,
    )


def test_no_peak_across_a_gap():
    """What stands between segments is never looked at, and the jump at a border is no peak."""
    recording = make_recording()
    traces = recording.traces.copy()
    traces[FS : FS + 500] = -30_000
    traces[FS + 500 :] += 400
    gapped = ArrayRecording(
        traces=traces,
        sampling_frequency=FS,
        channel_locations=LOCATIONS,
        segments=(Segment(0, FS), Segment(FS + 500, 3 * FS)),
    )
    peaks = collect(gapped)[0].peaks
    expected = {sample: channel for sample, channel in PLACES.items() if sample != FS}
    assert dict(zip(peaks.sample_index.tolist(), peaks.channel_index.tolist(), strict=True)) == expected


def test_progress_reaches_one():
    recording, shares = make_recording(), []
    preprocessor, distances = prepare(recording)
    collect_snippets(
        recording,
        preprocessor,
        POINT,
        cut_blocks(recording.segments, FS),
        distances,
        nearest_channels(distances, 3, 65.0),
        recording.channel_locations[:, 1],
        detect=DetectParams(),
        snippet=SnippetParams(),
        max_spikes=100,
        seed=0,
        run=RunParams(num_workers=2),
        on_block=shares.append,
    )
    assert shares[-1] == 1.0
