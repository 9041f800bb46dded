"""The short filter against the zero-phase one, and sliding kernels against a convolution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.online.filter import design_filter, slide
from accm_core.params import SignalParams, to_samples
from accm_core.signal.filter import make_bandpass

FS = 30_000.0
BANDPASS = make_bandpass(SignalParams(), FS)


def relative_error(weights, ahead, traces):
    """Of the predicted from the zero-phase traces, away from the ends."""
    wanted = BANDPASS.apply(traces[:, None])[:, 0]
    found = np.convolve(traces, weights[::-1], mode="valid")
    history = len(weights) - 1 - ahead
    inner = slice(BANDPASS.margin, -BANDPASS.margin)
    wanted = wanted[history : len(traces) - ahead][inner]
    return np.std(found[inner] - wanted) / np.std(wanted)


@pytest.mark.parametrize(("ahead_ms", "most"), [(1.0, 0.07), (3.0, 0.02)])
def test_it_predicts_the_offline_traces(ahead_ms, most):
    rng = np.random.default_rng(0)
    time = np.arange(60_000) / FS
    slow = sum(30 * np.sin(2 * np.pi * f * time + f) for f in (1.0, 7.0, 25.0, 60.0))
    traces = (rng.normal(0, 10, len(time)) + slow).astype(np.float32)
    ahead = to_samples(ahead_ms, FS)
    weights = design_filter(BANDPASS, history=to_samples(10.0, FS), ahead=ahead)
    assert len(weights) == 301 + ahead
    assert relative_error(weights, ahead, traces) < most


def test_an_offset_is_taken_out():
    weights = design_filter(BANDPASS, history=300, ahead=30)
    assert abs(weights.sum()) < 1e-3 * np.abs(weights).sum()


@given(
    num_kernels=st.integers(1, 3), length=st.integers(1, 9), steps=st.integers(1, 7), seed=st.integers(0, 99)
)
def test_sliding_is_a_correlation(num_kernels, length, steps, seed):
    rng = np.random.default_rng(seed)
    kernels, traces = rng.normal(size=(num_kernels, length)), rng.normal(size=length + steps - 1)
    found = (slide(kernels, steps) @ traces).reshape(steps, num_kernels)
    wanted = np.stack([np.correlate(traces, kernel, mode="valid") for kernel in kernels], axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
