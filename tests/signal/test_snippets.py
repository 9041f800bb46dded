"""Sub-sample alignment of known curves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets, find_offsets, lanczos_kernel

OFFSETS = st.floats(-1, 1, width=32)


def pulse(time):
    """A spike of 0.3 ms at 30 kHz: hardly anything above 6 kHz."""
    return -9 * np.exp(-0.5 * (time / 4.0) ** 2)


def cut(traces, sample, offset, channels, num_before=10, num_samples=30):
    return cut_snippets(
        traces,
        np.array([sample]),
        np.array([offset], np.float32),
        np.array([channels]),
        num_before=num_before,
        num_samples=num_samples,
    )[0]


@given(vertex=st.floats(-0.5, 0.5), curvature=st.sampled_from([-2.0, 0.3]))
def test_offset_of_a_parabola_is_exact(vertex, curvature):
    time = np.arange(-3, 4)
    traces = (curvature * (time - vertex) ** 2)[:, None].astype(np.float32)
    assert find_offsets(traces, np.array([3]), np.array([0]))[0] == pytest.approx(vertex, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, -9, 0], 0), ([-9, -9, 0], -0.5), ([0, -9, -9], 0.5), ([-9, -9, -9], 0), ([-1, -2, -3], 0)],
    ids=["even", "half-before", "half-after", "flat", "straight"],
)
def test_offset_of_special_shapes(values, expected):
    traces = np.array(values, np.float32)[:, None]
    found = find_offsets(traces, np.array([1]), np.array([0]))
    assert found.tolist() == [expected]


@given(offset=st.floats(0, 1, exclude_max=True))
def test_the_kernel_sums_to_one_and_mirrors(offset):
    kernel = lanczos_kernel(offset)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    if offset > 0:
        np.testing.assert_allclose(lanczos_kernel(1 - offset), kernel[::-1], atol=1e-5)


def test_the_kernel_without_an_offset_takes_one_sample():
    expected = np.zeros(2 * LANCZOS_TAPS)
    expected[LANCZOS_TAPS - 1] = 1
    np.testing.assert_allclose(lanczos_kernel(0.0), expected, atol=1e-7)


@given(sample=st.integers(30, 60))
def test_without_an_offset_a_snippet_is_a_slice(sample):
    traces = np.random.default_rng(0).normal(0, 1, (100, 3)).astype(np.float32)
    found = cut(traces, sample, 0.0, [2, 0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, traces[sample - 10 : sample + 20][:, [2, 0]], atol=1e-6)


@given(offset=OFFSETS)
def test_an_offset_moves_the_window_along_the_curve(offset):
    traces = pulse(np.arange(100) - 50.0)[:, None].astype(np.float32)
    expected = pulse(np.arange(-10, 20) + float(offset))
    np.testing.assert_allclose(cut(traces, 50, offset, [0])[:, 0], expected, atol=0.02)


@given(shift=st.floats(-0.5, 0.5))
def test_spikes_at_any_time_between_samples_look_the_same(shift):
    traces = pulse(np.arange(100) - 50.0 - shift)[:, None].astype(np.float32)
    offset = find_offsets(traces, np.array([50]), np.array([0]))
    aligned = cut(traces, 50, offset[0], [0])[:, 0]
    np.testing.assert_allclose(aligned, pulse(np.arange(-10, 20)), atol=0.05)


@given(offset=st.floats(-1, 0, width=32))
def test_a_negative_offset_is_a_positive_one_from_the_sample_before(offset):
    traces = np.random.default_rng(1).normal(0, 1, (100, 2)).astype(np.float32)
    there, back = cut(traces, 50, offset, [0, 1]), cut(traces, 49, np.float32(1) + offset, [0, 1])
    np.testing.assert_allclose(there, back, atol=1e-4)


def test_slots_without_a_channel_are_zero():
    found = cut(np.ones((100, 2), np.float32), 50, 0.3, [1, -1, 0])
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_allclose(found[:, [0, 2]], 1, atol=1e-6)


def test_the_window_needs_no_more_than_its_taps():
    """Samples beyond the promised reach do not enter."""
    traces = np.full((100, 1), 1e9, np.float32)
    traces[50 - 10 - LANCZOS_TAPS : 50 + 20 + LANCZOS_TAPS] = 1.0
    for offset in (-1.0, -0.5, 0.0, 0.5, 1.0):
        np.testing.assert_allclose(cut(traces, 50, offset, [0]), 1, atol=1e-5)


def test_each_spike_has_its_own_channels():
    traces = np.tile(np.float32([[1, 2, 3]]), (100, 1))
    found = cut_snippets(
        traces,
        np.array([40, 50]),
        np.zeros(2, np.float32),
        np.array([[0, 1], [2, -1]]),
        num_before=5,
        num_samples=8,
    )
    assert found.shape == (2, 8, 2)
    np.testing.assert_allclose(found[:, 0], [[1, 2], [3, 0]])


def test_no_peaks_give_no_snippets():
    empty = np.zeros(0, np.int64)
    found = cut_snippets(
        np.zeros((50, 2), np.float32),
        empty,
        np.zeros(0, np.float32),
        np.zeros((0, 3), np.int64),
        num_before=5,
        num_samples=8,
    )
    assert found.shape == (0, 8, 3)
