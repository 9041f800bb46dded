"""Noise levels, bad channels, reference and whitening of noise whose covariance is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import signal

from accm_core.errors import RecordingError
from accm_core.params import SignalParams
from accm_core.signal.chunks import Block
from accm_core.signal.geometry import channel_distances
from accm_core.signal.preprocess import (
    NUM_LAGS,
    TILE,
    find_good_channels,
    fit_preprocessor,
    measure_autocovariance,
    measure_noise,
    measure_whitening,
)
from accm_core.types import Segment

FS = 30_000.0
LINE = channel_distances(np.array([[0.0, 25.0 * k] for k in range(6)]), has_geometry=True)


ANYWHERE = Block(0, 10_000, Segment(0, 10_000))


def correlated_noise(num_samples=60_000, num_channels=6, share=0.6, seed=0):
    """Noise of 5, 6, 7, ... µV that each channel shares with the next."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, 1, (num_samples, num_channels + 1))
    mixed = np.sqrt(1 - share**2) * own[:, :-1] + share * own[:, 1:]
    return (mixed * (5 + np.arange(num_channels))).astype(np.float32)


def fit(blocks, channels=None, distances=None, **params):
    channels = np.arange(blocks[0].shape[1]) if channels is None else channels
    distances = np.zeros((len(channels),) * 2) if distances is None else distances
    return fit_preprocessor(blocks, channels, distances, SignalParams(**params), FS)


def test_noise_level_is_the_standard_deviation_of_gaussian_noise():
    noise = np.random.default_rng(0).normal([100, -5, 0], [4, 10, 0], (100_000, 3)).astype(np.float32)
    levels = measure_noise(noise)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels, [4, 10, 0], rtol=0.02)


def test_spikes_hardly_raise_the_noise_level():
    noise = np.random.default_rng(0).normal(0, 5, (50_000, 1)).astype(np.float32)
    noise[::50] -= 300
    assert measure_noise(noise)[0] == pytest.approx(5, rel=0.05)


@pytest.mark.parametrize(
    ("levels", "good"),
    [
        ([5, 5, 5, 5], [1, 1, 1, 1]),
        ([5, 0, 5, 5], [1, 0, 1, 1]),
        ([5, 0.4, 5, 5], [1, 0, 1, 1]),
        ([5, 0.6, 5, 5], [1, 1, 1, 1]),
        ([5, 26, 5, 5], [1, 0, 1, 1]),
        ([5, 24, 5, 5], [1, 1, 1, 1]),
        ([0, 0, 0, 7], [0, 0, 0, 1]),
        ([0, 0], [0, 0]),
    ],
    ids=["alike", "dead", "nearly-dead", "quiet", "noisy", "loud", "one-alive", "none-alive"],
)
def test_good_channels(levels, good):
    assert find_good_channels(np.array(levels, np.float32)).tolist() == [bool(g) for g in good]


def test_whitened_noise_is_uncorrelated_and_of_level_one():
    noise = correlated_noise()
    assert np.abs(np.corrcoef(noise.T) - np.eye(6)).max() > 0.4, "the planted noise must be correlated"
    white = noise @ measure_whitening(noise, measure_noise(noise), LINE, 1000.0)
    np.testing.assert_allclose(measure_noise(white), 1, rtol=1e-3)
    np.testing.assert_allclose(np.corrcoef(white.T), np.eye(6), atol=0.04)


def test_whitening_reaches_no_farther_than_its_radius():
    noise = correlated_noise()
    whitening = measure_whitening(noise, measure_noise(noise), LINE, 50.0)
    assert whitening.dtype == np.float32
    np.testing.assert_array_equal(whitening != 0, LINE <= 50.0)


def test_spikes_do_not_spoil_the_whitening():
    noise = correlated_noise()
    levels = measure_noise(noise)
    spiky = noise.copy()
    spiky[::100] -= 40 * levels  # on all channels at once
    clean, spoiled = (measure_whitening(traces, levels, LINE, 60.0) for traces in (noise, spiky))
    np.testing.assert_allclose(spoiled, clean, atol=0.05 * np.abs(clean).max())


def autocovariance(traces):
    """Of the traces as they are, cut into blocks of 240 stretches."""
    blocks = np.array_split(traces, range(240 * 256, len(traces), 240 * 256))
    return measure_autocovariance(blocks, np.eye(traces.shape[1], dtype=np.float32))


def test_autocovariance_of_white_and_of_coloured_noise():
    rng = np.random.default_rng(0)
    white = rng.normal(0, 1, (200_000, 2))
    coloured = signal.lfilter([np.sqrt(1 - 0.9**2)], [1, -0.9], white, axis=0).astype(np.float32)
    flat = autocovariance(white.astype(np.float32))
    assert flat.shape == (NUM_LAGS,)
    assert flat[0] == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(flat[1:100], 0, atol=0.03)
    decay = autocovariance(coloured)
    np.testing.assert_allclose(decay[:20], 0.9 ** np.arange(20), atol=0.06)


def test_autocovariance_of_long_memory_is_right_at_every_lag():
    """Waves of random phase: the covariance is a cosine that does not decay."""
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, 4000)
    waves = np.cos(2 * np.pi * 0.01 * np.arange(256) + phases[:, None]).reshape(-1, 1).astype(np.float32)
    expected = 0.5 * np.cos(2 * np.pi * 0.01 * np.arange(NUM_LAGS))
    np.testing.assert_allclose(autocovariance(waves), expected, atol=0.02)


def test_autocovariance_leaves_spikes_out():
    traces = np.random.default_rng(0).normal(0, 0.7, (200_000, 2)).astype(np.float32)
    spiky = traces.copy()
    for start in range(0, 200_000, 2048):
        spiky[start : start + 20] -= 30
    assert autocovariance(spiky)[0] == pytest.approx(0.49, abs=0.02)
    spiky[::64] -= 30  # nowhere is it quiet: then all of it counts
    assert autocovariance(spiky)[0] > 5


def test_bad_channels_are_left_out_and_named():
    raw = correlated_noise(num_channels=8)
    raw[:, 3] = 17.0
    raw[:, 6] *= 40
    preprocessor = fit([raw], channels=np.array([1, 3, 5, 6, 7]))
    np.testing.assert_array_equal(preprocessor.channels, [1, 5, 7])
    np.testing.assert_array_equal(preprocessor.bad_channels, [3, 6])
    assert preprocessor.whitening.shape == (3, 3)
    assert preprocessor.noise_levels_uV.shape == (3,)


def test_whitening_knows_where_the_remaining_channels_are():
    raw = correlated_noise()
    raw[:, [1, 2]] = 0
    preprocessor = fit([raw], distances=LINE, whiten_radius_um=60)
    near = LINE[np.ix_([0, 3, 4, 5], [0, 3, 4, 5])] <= 60
    np.testing.assert_array_equal(preprocessor.whitening != 0, near)


def test_noisy_channels_stay_when_asked_but_dead_ones_cannot():
    raw = correlated_noise(num_channels=6)
    raw[:, 3] = 17.0
    raw[:, 4] *= 40
    preprocessor = fit([raw], detect_bad_channels=False)
    np.testing.assert_array_equal(preprocessor.channels, [0, 1, 2, 4, 5])
    np.testing.assert_array_equal(preprocessor.bad_channels, [3])


def test_constant_channels_alone_are_refused():
    with pytest.raises(RecordingError) as error:
        fit([np.full((5000, 4), 3.0, np.float32)])
    assert str(error.value) == (
        "All 4 channels are constant after the band-pass; there is nothing to sort. "
        "Check that the recording holds neural data and that its conversion is not zero."
    )


@pytest.mark.parametrize(
    ("num_channels", "pitch", "shared", "reference", "expected"),
    [
        (16, 40, 0.5, "auto", True),
        (16, 40, 0.2, "auto", False),  # far channels share 4 % of their noise
        (16, 9, 0.0, "auto", True),  # no two of them are far from each other
        (15, 40, 0.5, "auto", False),
        (4, 40, 0.0, "median", True),
        (32, 40, 0.5, "none", False),
    ],
)
def test_when_the_median_is_subtracted(num_channels, pitch, shared, reference, expected):
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 8, (60_000, num_channels)) + shared * rng.normal(0, 8, (60_000, 1))
    raw[::300, : num_channels // 2] -= 400  # large spikes on half of the channels are not shared noise
    line = np.column_stack([np.zeros(num_channels), pitch * np.arange(num_channels)])
    distances = channel_distances(line, has_geometry=True)
    fitted = fit([raw.astype(np.float32)], distances=distances, reference=reference)
    assert fitted.use_median is expected


def test_the_reference_removes_what_all_channels_share():
    raw = correlated_noise(12_000, 16)
    hum = (200 * np.sin(2 * np.pi * 1000 * np.arange(12_000) / FS)).astype(np.float32)[:, None]
    preprocessor = fit([raw])
    with_hum, without = preprocessor.filter(raw + hum, ANYWHERE), preprocessor.filter(raw, ANYWHERE)
    np.testing.assert_allclose(with_hum, without, atol=0.02)


def test_nothing_is_left_outside_the_band():
    """A median of band-passed channels has parts above the band, the same on all channels."""
    raw = np.random.default_rng(0).normal(0, 8, (60_000, 32)).astype(np.float32)
    preprocessor = fit([raw])
    assert preprocessor.use_median
    filtered = preprocessor.filter(raw, ANYWHERE)
    frequencies, power = signal.welch(filtered.mean(axis=1), FS, nperseg=512)
    assert power[frequencies > 10_000].max() < 1e-3 * power[frequencies < 5_000].max()


def test_filtered_and_whitened_traces():
    raw = [correlated_noise(seed=k) for k in range(2)]
    preprocessor = fit(raw, distances=LINE)
    filtered = [preprocessor.filter(block, ANYWHERE) for block in raw]
    assert filtered[0].shape == (60_000 - 2 * preprocessor.margin, 6)
    levels = measure_noise(np.concatenate(filtered))
    np.testing.assert_allclose(levels, preprocessor.noise_levels_uV, rtol=0.03)
    white = preprocessor.whiten(np.concatenate(filtered))
    assert white.dtype == np.float32
    np.testing.assert_allclose(measure_noise(white), 1, rtol=0.03)
    assert preprocessor.autocovariance[0] == pytest.approx(1, rel=0.05)


def test_a_long_probe_is_whitened_in_parts():
    """In whatever order its channels come."""
    rng = np.random.default_rng(0)
    where = rng.permutation(3 * TILE + 10)
    near = np.abs(where[:, None] - where) < 5
    whitening = np.where(near, rng.normal(size=near.shape), 0).astype(np.float32)
    preprocessor = replace(fit([correlated_noise()], distances=LINE), channels=where, whitening=whitening)
    filtered = rng.normal(size=(100, len(where))).astype(np.float32)
    np.testing.assert_allclose(preprocessor.whiten(filtered), filtered @ whitening, atol=1e-5)
    stacked = filtered.reshape(4, 25, -1)
    np.testing.assert_allclose(preprocessor.whiten(stacked), stacked @ whitening, atol=1e-5)
    straight = np.argsort(where)
    in_order = replace(preprocessor, whitening=whitening[np.ix_(straight, straight)])
    np.testing.assert_allclose(
        in_order.whiten(filtered[:, straight]), filtered[:, straight] @ in_order.whitening, atol=1e-5
    )


def test_permuting_channels_permutes_everything():
    raw, order = correlated_noise(30_000), np.array([3, 0, 5, 1, 4, 2])
    there = fit([raw], distances=LINE, whiten_radius_um=60)
    back = fit([raw[:, order]], distances=LINE[np.ix_(order, order)], whiten_radius_um=60)
    np.testing.assert_allclose(back.noise_levels_uV, there.noise_levels_uV[order], rtol=1e-5)
    np.testing.assert_allclose(back.whitening, there.whitening[np.ix_(order, order)], atol=1e-4)
    np.testing.assert_allclose(back.autocovariance, there.autocovariance, atol=1e-4)
