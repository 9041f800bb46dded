"""Blocks tile the segments; what a block sees depends on neither the chunk length nor the threads."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accm_core.params import RunParams
from accm_core.signal.chunks import Block, cut_blocks, map_blocks, read_padded, spread_blocks
from accm_core.types import ArrayRecording, Segment

FS = 1000.0
BORDERS = st.lists(st.integers(1, 2500), min_size=1, max_size=4)


def make_recording(segments=None, num_samples=5500, num_channels=3):
    traces = np.random.default_rng(0).normal(0, 10, (num_samples, num_channels)).astype(np.float32)
    return ArrayRecording(traces=traces, sampling_frequency=FS, segments=segments or ())


@dataclass(frozen=True)
class CountingRecording:
    """Counts what was read."""

    inner: ArrayRecording
    reads: list[int] = field(default_factory=list)

    def get_traces(self, start, stop):
        self.reads.append(start)
        return self.inner.get_traces(start, stop)


def make_segments(lengths, gap=0):
    starts = np.cumsum([gap, *(n + gap for n in lengths)])
    return tuple(Segment(int(s), int(s) + n) for s, n in zip(starts, lengths, strict=False))


@pytest.mark.parametrize(
    ("segments", "borders"),
    [
        ([(0, 1000)], [(0, 1000)]),
        ([(0, 2500)], [(0, 1000), (1000, 2000), (2000, 2500)]),
        ([(5, 7)], [(5, 7)]),
        ([(300, 1400), (1400, 1500)], [(300, 1300), (1300, 1400), (1400, 1500)]),
    ],
    ids=["one", "short-last", "two-samples", "grid-starts-anew"],
)
def test_blocks(segments, borders):
    blocks = cut_blocks([Segment(*s) for s in segments], FS)
    assert [(b.start, b.stop) for b in blocks] == borders
    assert all(b.segment.start <= b.start < b.stop <= b.segment.stop for b in blocks)


@given(lengths=BORDERS, gap=st.integers(0, 500))
def test_blocks_tile_the_segments(lengths, gap):
    segments = make_segments(lengths, gap)
    for segment in segments:
        inside = [b for b in cut_blocks(segments, FS) if b.segment == segment]
        covered = np.concatenate([np.arange(b.start, b.stop) for b in inside])
        np.testing.assert_array_equal(covered, np.arange(segment.start, segment.stop))


@given(num_all=st.integers(1, 200), num_wanted=st.integers(1, 50))
def test_spread_blocks_are_even_and_in_order(num_all, num_wanted):
    blocks = cut_blocks([Segment(0, num_all * 1000)], FS)
    spread = spread_blocks(blocks, num_wanted)
    starts = [b.start for b in spread]
    assert len(spread) == min(num_all, num_wanted)
    assert starts == sorted(set(starts))
    assert spread[0] == blocks[0]
    if len(spread) > 1:
        assert spread[-1] == blocks[-1]
        assert np.ptp(np.diff(starts)) <= 1000


def test_padding_continues_a_ramp_and_never_looks_across_the_border():
    """Odd reflection of a straight line is the line itself."""
    ramp = np.arange(1000, dtype=np.float32)[:, None] * [1.0, -2.0] + [3.0, 0.0]
    traces = ramp.astype(np.float32)
    traces[:200], traces[700:] = 1e6, -1e6
    recording = ArrayRecording(traces=traces, sampling_frequency=FS)
    padded = read_padded(recording, 100, 800, Segment(200, 700))
    assert padded.dtype == np.float32
    np.testing.assert_allclose(padded, ramp[100:800], rtol=1e-6)
    np.testing.assert_array_equal(read_padded(recording, 300, 400, Segment(200, 700)), traces[300:400])


@pytest.mark.parametrize("length", [1, 2, 30])
def test_padding_of_a_segment_shorter_than_the_margin(length):
    segment = Segment(50, 50 + length)
    padded = read_padded(make_recording(), 50 - 100, 50 + length + 100, segment)
    assert padded.shape == (length + 200, 3)
    assert np.isfinite(padded).all()


@given(
    lengths=BORDERS,
    gap=st.sampled_from([0, 7]),
    margin=st.integers(0, 120),
    chunk_s=st.integers(1, 6),
    workers=st.integers(1, 4),
)
@settings(max_examples=40)
def test_a_block_sees_itself_and_its_margin_whatever_the_chunk(lengths, gap, margin, chunk_s, workers):
    segments = make_segments(lengths, gap)
    recording = make_recording(segments, num_samples=segments[-1].stop)
    blocks = cut_blocks(segments, FS)
    run = RunParams(chunk_s=chunk_s, num_workers=workers)
    seen = list(map_blocks(lambda b, raw: (b, raw.copy()), recording, blocks, margin=margin, run=run))
    assert [b for b, _ in seen] == blocks
    for block, raw in seen:
        alone = read_padded(recording, block.start - margin, block.stop + margin, block.segment)
        np.testing.assert_array_equal(raw, alone)


def test_blocks_far_apart_are_read_one_by_one():
    recording = CountingRecording(make_recording())
    blocks = spread_blocks(cut_blocks([Segment(0, 5500)], FS), 3)
    run = RunParams(chunk_s=5, num_workers=1)
    for block, raw in map_blocks(lambda b, raw: (b, raw), recording, blocks, margin=0, run=run):
        np.testing.assert_array_equal(raw, recording.inner.traces[block.start : block.stop])
    assert recording.reads == [block.start for block in blocks]


def test_progress_rises_to_one():
    recording, shares = make_recording(), []
    blocks = cut_blocks(recording.segments, FS)
    run = RunParams(chunk_s=2, num_workers=2)
    list(map_blocks(lambda b, raw: None, recording, blocks, margin=0, run=run, on_block=shares.append))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_no_blocks_give_nothing():
    assert list(map_blocks(lambda b, raw: b, make_recording(), [], margin=9, run=RunParams())) == []


def test_an_error_in_a_block_is_raised():
    def fail(block: Block, raw: np.ndarray) -> None:
        if block.start == 2000:
            raise ValueError("block 2")

    recording = make_recording()
    blocks = cut_blocks(recording.segments, FS)
    with pytest.raises(ValueError, match="block 2"):
        list(map_blocks(fail, recording, blocks, margin=0, run=RunParams(chunk_s=1, num_workers=2)))


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_is_read_than_twice_the_threads_ahead(workers):
    recording = CountingRecording(make_recording(num_samples=40_000))
    blocks = cut_blocks([Segment(0, 40_000)], FS)
    run = RunParams(chunk_s=1, num_workers=workers)
    for number, _ in enumerate(map_blocks(lambda b, raw: b, recording, blocks, margin=0, run=run), start=1):
        assert len(recording.reads) <= number + 2 * workers
    assert len(recording.reads) == 40
