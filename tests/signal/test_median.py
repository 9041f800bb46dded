"""The sorting network against numpy's median."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accm_core.signal.median import TILE, median_over_channels


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 100, 384])
@pytest.mark.parametrize("num_samples", [1, TILE - 1, TILE, 700])
def test_equals_numpy(num_samples, num_channels):
    traces = np.random.default_rng(num_channels).normal(0, 50, (num_samples, num_channels))
    for rounded in (traces, traces.round(-1)):  # with equal values too
        rounded = rounded.astype(np.float32)
        np.testing.assert_array_equal(median_over_channels(rounded), np.median(rounded, axis=1))


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.integers(0, 1).map(float),
    )
)
def test_sorts_zeros_and_ones_and_so_anything(traces):
    """The zero-one principle: a network that sorts these sorts every input."""
    np.testing.assert_array_equal(median_over_channels(traces), np.median(traces, axis=1))


def test_the_input_stays_and_its_order_in_memory_does_not_matter():
    traces = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    kept = traces.copy()
    median = median_over_channels(traces)
    np.testing.assert_array_equal(traces, kept)
    np.testing.assert_array_equal(median_over_channels(np.asfortranarray(traces)), median)
    np.testing.assert_array_equal(median_over_channels(np.tile(traces, 2)[:, :20]), median)
