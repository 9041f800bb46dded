"""Planted extrema, with their names; and all of detection against the definition, written out slowly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accm_core.signal.detect import find_peaks, find_tails

SWEEP = 10
CHAIN = np.abs(np.subtract.outer(np.arange(4), np.arange(4))) <= 1  # each competes with the next
SIGNS = st.sampled_from(["neg", "pos", "both"])


def detect(planted, sign="neg", threshold=5.0, sweep=SWEEP, neighbors=CHAIN):
    """Rows (sample, channel) found among ``planted`` {(sample, channel): value}."""
    traces = np.zeros((120, 4), np.float32)
    for (sample, channel), value in planted.items():
        traces[sample, channel] = value
    peaks = find_peaks(traces, threshold=threshold, neighbors=neighbors, exclude_sweep=sweep, peak_sign=sign)
    np.testing.assert_array_equal(peaks.amplitude, traces[peaks.sample_index, peaks.channel_index])
    return list(zip(peaks.sample_index.tolist(), peaks.channel_index.tolist(), strict=True))


PLANTED = {
    "nothing": ({}, []),
    "one": ({(50, 1): -9}, [(50, 1)]),
    "at-threshold": ({(50, 1): -5}, []),
    "just-above": ({(50, 1): -5.01}, [(50, 1)]),
    "wrong-sign": ({(50, 1): 9}, []),
    "sorted-by-sample-then-channel": ({(80, 0): -9, (30, 3): -9, (30, 0): -8}, [(30, 0), (30, 3), (80, 0)]),
    "neighbour-larger": ({(50, 1): -9, (52, 2): -12}, [(52, 2)]),
    "neighbour-smaller": ({(50, 1): -12, (52, 2): -9}, [(50, 1)]),
    "not-a-neighbour": ({(50, 0): -9, (50, 2): -12}, [(50, 0), (50, 2)]),
    "same-channel-within-sweep": ({(50, 1): -9, (60, 1): -12}, [(60, 1)]),
    "same-channel-beyond-sweep": ({(50, 1): -9, (61, 1): -12}, [(50, 1), (61, 1)]),
    "neighbour-beyond-sweep": ({(50, 1): -9, (61, 2): -12}, [(50, 1), (61, 2)]),
    "tie-in-time-earlier": ({(50, 1): -9, (55, 1): -9}, [(50, 1)]),
    "tie-in-space-lower-channel": ({(50, 2): -9, (50, 1): -9}, [(50, 1)]),
    "tie-in-both-earlier": ({(50, 2): -9, (51, 1): -9}, [(50, 2)]),
    "plateau": ({(50, 1): -9, (51, 1): -9, (52, 1): -9}, [(50, 1)]),
    # the middle one loses to the large one, and still silences the small one
    "chain": ({(50, 0): -8, (50, 1): -9, (50, 2): -12}, [(50, 2)]),
    "large-one-of-the-other-sign-does-not-compete": ({(50, 1): -9, (52, 1): 40}, [(50, 1)]),
    "margin": ({(9, 1): -9, (110, 1): -9}, []),
    "first-and-last-inside": ({(10, 1): -9, (109, 1): -9}, [(10, 1), (109, 1)]),
    "larger-one-in-the-margin": ({(9, 1): -12, (19, 1): -9}, []),
}


@pytest.mark.parametrize(("planted", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_troughs(planted, expected):
    assert detect(planted) == expected


@pytest.mark.parametrize(("planted", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_peaks_are_troughs_upside_down(planted, expected):
    assert detect({place: -value for place, value in planted.items()}, "pos") == expected


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({(50, 1): 9, (80, 1): -9}, [(50, 1), (80, 1)]),
        ({(50, 1): 9, (52, 1): -10}, [(52, 1)]),
        ({(50, 1): 10, (52, 1): -9}, [(50, 1)]),
        ({(50, 1): 9, (52, 1): -9}, [(50, 1)]),
    ],
    ids=["both-signs", "trough-larger", "peak-larger", "tie-earlier"],
)
def test_both_signs(planted, expected):
    assert detect(planted, "both") == expected


@pytest.mark.parametrize(("sweep", "expected"), [(1, [(50, 1), (52, 1)]), (2, [(52, 1)])])
def test_sweep(sweep, expected):
    assert detect({(50, 1): -9, (52, 1): -12}, sweep=sweep) == expected


def test_offset_points_to_the_larger_side():
    traces = np.zeros((60, 1), np.float32)
    traces[29:32, 0] = [-6, -9, -7]
    peaks = find_peaks(traces, threshold=5, neighbors=np.ones((1, 1), bool), exclude_sweep=5, peak_sign="neg")
    assert peaks.offset == pytest.approx([0.1])  # 0.5 (6 - 7) / (6 - 18 + 7)


@pytest.mark.parametrize("num_samples", [0, 5, 20])
def test_traces_shorter_than_the_margins_hold_no_peak(num_samples):
    traces = np.full((num_samples, 2), -9, np.float32)
    near = np.ones((2, 2), bool)
    assert len(find_peaks(traces, threshold=5, neighbors=near, exclude_sweep=SWEEP, peak_sign="neg")) == 0


def find_slowly(traces, threshold, neighbors, sweep, sign):
    """The definition: above the threshold, and the first of the largest within reach."""
    height = {"neg": -traces, "pos": traces, "both": np.abs(traces)}[sign]
    found = []
    for t in range(sweep, len(traces) - sweep):
        for c in range(traces.shape[1]):
            rivals = [
                (-height[s, d], s, d)
                for s in range(t - sweep, t + sweep + 1)
                for d in np.flatnonzero(neighbors[c])
            ]
            if height[t, c] > threshold and min(rivals) == (-height[t, c], t, c):
                found.append((t, c))
    return found


INTEGER_TRACES = hnp.arrays(np.float32, (30, 3), elements=st.integers(-9, 9).map(float))  # many ties
GRAPHS = hnp.arrays(np.bool_, (3, 3)).map(lambda graph: graph | graph.T | np.eye(3, dtype=bool))


@given(traces=INTEGER_TRACES, neighbors=GRAPHS, sweep=st.integers(1, 6), sign=SIGNS)
def test_equals_the_definition(traces, neighbors, sweep, sign):
    peaks = find_peaks(traces, threshold=4, neighbors=neighbors, exclude_sweep=sweep, peak_sign=sign)
    found = list(zip(peaks.sample_index.tolist(), peaks.channel_index.tolist(), strict=True))
    assert found == find_slowly(traces, 4, neighbors, sweep, sign)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)), sign=SIGNS)
def test_permuting_channels_permutes_the_peaks(seed, order, sign):
    traces = np.random.default_rng(seed).normal(0, 3, (400, 4)).astype(np.float32)
    options = {"threshold": 5, "exclude_sweep": 8, "peak_sign": sign}
    there = find_peaks(traces, neighbors=CHAIN, **options)
    back = find_peaks(traces[:, order], neighbors=CHAIN[np.ix_(order, order)], **options)
    assert len(there) > 0
    assert set(zip(there.sample_index, there.channel_index, there.amplitude, strict=True)) == set(
        zip(back.sample_index, np.array(order)[back.channel_index], back.amplitude, strict=True)
    )


@given(seed=st.integers(0, 10_000), delay=st.integers(0, 50))
def test_shifting_time_shifts_the_peaks(seed, delay):
    traces = np.random.default_rng(seed).normal(0, 2, (300, 4)).astype(np.float32)
    traces[:20] = traces[-20:] = 0  # what is lost and gained at the ends holds no peak
    later = np.concatenate([np.zeros((delay, 4), np.float32), traces])
    options = {"threshold": 5, "neighbors": CHAIN, "exclude_sweep": 8, "peak_sign": "neg"}
    first, second = find_peaks(traces, **options), find_peaks(later, **options)
    np.testing.assert_array_equal(second.sample_index, first.sample_index + delay)
    np.testing.assert_array_equal(second.channel_index, first.channel_index)
    np.testing.assert_array_equal(second.offset, first.offset)


TAILS = {  # rows (sample, channel, height), and which of them are tails
    "none": ([], []),
    "alone": ([(50, 0, 9)], [False]),
    "after": ([(50, 0, 50), (80, 0, 12)], [False, True]),
    "too-late": ([(50, 0, 50), (81, 0, 12)], [False, False]),
    "before": ([(40, 0, 12), (50, 0, 50)], [True, False]),
    "too-early": ([(39, 0, 12), (50, 0, 50)], [False, False]),
    "not-so-much-smaller": ([(50, 0, 48), (60, 0, 12)], [False, False]),
    "on-a-channel-in-reach": ([(50, 1, 50), (60, 2, 12)], [False, True]),
    "out-of-reach": ([(50, 0, 50), (60, 2, 12)], [False, False]),
    "same-sample": ([(50, 0, 12), (50, 1, 50)], [True, False]),
    "two-large-ones": ([(0, 0, 50), (60, 0, 12), (65, 0, 50)], [False, True, False]),
    "tail-of-the-first-alone": (
        [(50, 0, 50), (55, 0, 50), (84, 0, 12), (90, 0, 12)],
        [False, False, True, False],
    ),
}


@pytest.mark.parametrize(("rows", "expected"), TAILS.values(), ids=TAILS.keys())
def test_tails(rows, expected):
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    found = find_tails(table[:, 0], table[:, 1], table[:, 2].astype(np.float32), CHAIN, 10, 30, 4.0)
    assert found.tolist() == expected
