"""The band-pass against SciPy's forward-backward filter, and block by block against the whole."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from accm_core.errors import ParamsError
from accm_core.params import SignalParams
from accm_core.signal.filter import ORDER, Bandpass, make_bandpass

FS = 30_000.0
BANDPASS = make_bandpass(SignalParams(), FS)
MARGIN = BANDPASS.margin


def apply_inside(traces, bandpass=BANDPASS):
    return bandpass.apply(traces)[bandpass.margin : len(traces) - bandpass.margin]


def white_noise(num_samples, num_channels=2, seed=0):
    return np.random.default_rng(seed).normal(0, 10, (num_samples, num_channels)).astype(np.float32)


@pytest.mark.parametrize(
    ("freq_hz", "low", "high"),
    [
        (0, 0, 1e-6),
        (20, 0, 1e-5),
        (100, 0, 0.01),
        (300, 0.45, 0.55),  # half amplitude at the edge: filtered twice
        (1000, 0.99, 1.0),
        (3000, 0.95, 1.0),
        (6000, 0.45, 0.55),
        (12_000, 0, 0.01),
    ],
)
def test_gain_and_phase(freq_hz, low, high):
    phase = 2 * np.pi * freq_hz * np.arange(12_000) / FS
    traces = np.stack([np.cos(phase), np.sin(phase)], axis=1).astype(np.float32)
    filtered = apply_inside(traces)
    expected = traces[MARGIN:-MARGIN]
    gain = (filtered * expected).sum() / max((expected**2).sum(), 1)
    assert low <= gain <= high + 1e-3
    # what is left after that gain is what a phase shift or a distortion gives
    assert np.abs(filtered - gain * expected).max() < 2e-3


def test_equals_forward_backward_filtering():
    traces = white_noise(30_000)
    sos = signal.butter(ORDER, [300, 6000], btype="bandpass", output="sos", fs=FS)
    oracle = signal.sosfiltfilt(sos, traces.astype(np.float64), axis=0)
    filtered = BANDPASS.apply(traces)
    assert filtered.dtype == np.float32
    inner = slice(MARGIN, -MARGIN)
    np.testing.assert_allclose(filtered[inner], oracle[inner], atol=1e-3 * oracle.std())


@given(cuts=st.lists(st.integers(1, 14_999), min_size=1, max_size=5, unique=True).map(sorted))
@settings(max_examples=15, deadline=None)
def test_chunked_equals_whole(cuts):
    traces = white_noise(15_000 + 2 * MARGIN)
    whole = apply_inside(traces)
    edges = [0, *cuts, 15_000]
    pieces = [apply_inside(traces[a : b + 2 * MARGIN]) for a, b in pairwise(edges)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-3 * whole.std())


def test_an_offset_of_volts_changes_nothing():
    """Amplifiers have offsets a thousand times the spikes."""
    traces = white_noise(9000)
    shifted = apply_inside(traces + np.float32([50_000, -200_000]))
    np.testing.assert_allclose(shifted, apply_inside(traces), atol=0.05)


def test_channels_are_filtered_apart():
    traces = white_noise(9000, 3)
    filtered = apply_inside(traces)
    for channel in range(3):
        alone = apply_inside(traces[:, [channel]])
        np.testing.assert_allclose(filtered[:, [channel]], alone, atol=1e-4)


def test_the_input_is_left_as_it_is():
    traces = white_noise(6000)
    before = traces.copy()
    BANDPASS.apply(traces)
    np.testing.assert_array_equal(traces, before)


@pytest.mark.parametrize(
    ("freq_min_hz", "rate", "freq_max_hz", "margin"),
    [(300, 30_000, 6000, 600), (300, 10_000, 4500, 200), (100, 30_000, 6000, 1800), (500, 30_000, 6000, 600)],
)
def test_edges_follow_the_sampling_frequency(freq_min_hz, rate, freq_max_hz, margin):
    bandpass = make_bandpass(SignalParams(freq_min_hz=freq_min_hz), rate)
    assert bandpass == Bandpass(rate, freq_min_hz, freq_max_hz)
    assert bandpass.margin == margin


def test_an_empty_band_is_refused():
    with pytest.raises(ParamsError) as error:
        make_bandpass(SignalParams(freq_min_hz=700), 1500.0)
    assert str(error.value) == (
        "signal.freq_min_hz is 700 Hz, but the upper edge is 675 Hz at a sampling frequency of 1500 Hz. "
        "Lower signal.freq_min_hz."
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_filtering_on_a_device_is_that_of_scipy(device):
    traces = white_noise(31_207)
    traces[:, 1] += 300
    filtered = replace(BANDPASS, device=device).apply(traces)
    assert filtered.flags.c_contiguous
    assert filtered.dtype == np.float32
    np.testing.assert_allclose(filtered, BANDPASS.apply(traces), atol=1e-3)
