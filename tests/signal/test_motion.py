"""Motion: planted displacements found, fields interpolated back to rest, still tissue left alone."""

import numpy as np
import pytest
from spikeinterface.sortingcomponents.motion import dredge

from accm_core.signal.chunks import Block
from accm_core.signal.motion import (
    MAX_TIMES,
    MIN_CHANNELS,
    Motion,
    PeakDepths,
    can_move,
    estimate_motion,
    locate_peaks,
)
from accm_core.types import Segment

LOCATIONS = np.array([[16.0 * (k % 2), 20.0 * (k // 2)] for k in range(32)])
SEGMENT = Segment(0, 10_000_000)


def zigzag(times, height=20.0, period=60.0):
    phase = (times / period) % 1
    return height * np.select([phase < 0.25, phase < 0.75], [4 * phase, 2 - 4 * phase], 4 * phase - 4)


def make_depths(displacement, num_blocks=120, num_neurons=25, seed=0):
    """Neurons at depths of their own that all move by ``displacement`` (n_blocks,)."""
    rng = np.random.default_rng(seed)
    places, heights = rng.uniform(0, 300, num_neurons), rng.uniform(8, 40, num_neurons)
    neuron = rng.integers(0, num_neurons, (num_blocks, 100))
    depth = places[neuron] + displacement[:, None] + rng.normal(0, 2, neuron.shape)
    height = heights[neuron] * rng.normal(1, 0.1, neuron.shape)
    block = np.repeat(np.arange(num_blocks), 100)
    return PeakDepths(block, depth.ravel().astype(np.float32), height.ravel().astype(np.float32))


CENTERS = 30_000 * (np.arange(120) + 0.5)


def test_a_planted_displacement_is_found():
    planted = zigzag(np.arange(120))
    motion = estimate_motion(make_depths(planted), CENTERS, LOCATIONS)
    assert motion is not None
    found = np.stack([motion.displacement_at(center) for center in CENTERS])
    assert found.shape == (120, 32)
    error = found - planted[:, None]
    assert np.std(error - np.median(error)) < 2.0


@pytest.mark.parametrize("seed", [0, 1])
def test_depths_drawn_to_the_channels_and_uneven_rates_do_little_harm(seed):
    """The image of depth over time then looks alike after a shift by the channels' pitch."""
    rng = np.random.default_rng(seed)
    planted = zigzag(np.arange(120))
    depths = make_depths(planted, num_neurons=40, seed=seed)
    places = np.random.default_rng(seed).uniform(0, 300, 40)
    neuron = np.abs((depths.depth_um - planted[depths.block_index])[:, None] - places).argmin(axis=1)
    rates = np.exp(rng.normal(0, 0.5, 40))
    kept = rng.random(len(neuron)) < rates[neuron] / rates.max()
    drawn = depths.depth_um - 2.5 * np.sin(2 * np.pi * depths.depth_um / 20)
    uneven = PeakDepths(depths.block_index[kept], drawn[kept], depths.height[kept])
    motion = estimate_motion(uneven, CENTERS, LOCATIONS)
    assert motion is not None
    error = np.array([motion.displacement_at(center)[16] for center in CENTERS]) - planted
    assert np.std(error) < 1.4


def test_what_a_first_estimate_leaves_is_added_to_it():
    planted = zigzag(np.arange(120))
    first = estimate_motion(make_depths(planted), CENTERS, LOCATIONS)
    left = 0.2 * planted[::2]
    depths = make_depths(np.repeat(left, 2), seed=1)
    # every other block is empty: times are fewer than before
    kept = depths.block_index % 2 == 0
    thinned = PeakDepths(depths.block_index[kept], depths.depth_um[kept], depths.height[kept])
    second = estimate_motion(thinned, CENTERS, LOCATIONS, before=first)
    assert first is not None
    assert second is not None
    assert len(second.sample_index) < len(first.sample_index)
    added = [second.displacement_at(c)[16] - first.displacement_at(c)[16] for c in CENTERS]
    assert np.std(added - 0.2 * planted) < 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_few_peaks_make_no_drift_up_and_still_show_it(seed):
    rng, num_blocks = np.random.default_rng(seed), 200
    centers = 30_000 * (np.arange(num_blocks) + 0.5)

    def thin(depths):
        kept = rng.random(len(depths.depth_um)) < 0.1
        noise = rng.random(kept.sum()) < 0.3
        depth = np.where(noise, rng.uniform(0, 300, kept.sum()), depths.depth_um[kept])
        return PeakDepths(depths.block_index[kept], depth.astype(np.float32), depths.height[kept])

    assert estimate_motion(thin(make_depths(np.zeros(num_blocks), num_blocks)), centers, LOCATIONS) is None
    planted = zigzag(np.arange(num_blocks), period=200.0)
    motion = estimate_motion(thin(make_depths(planted, num_blocks)), centers, LOCATIONS)
    assert motion is not None
    error = np.array([motion.displacement_at(center)[16] for center in centers]) - planted
    assert np.std(error) < 6.0


def test_hardly_any_peaks_tell_of_no_motion():
    few = make_depths(zigzag(np.arange(10)), 10)
    rows = slice(0, 1000, 100)
    few = PeakDepths(few.block_index[rows], few.depth_um[rows], few.height[rows])
    assert estimate_motion(few, CENTERS[:10], LOCATIONS) is None


def test_a_long_recording_takes_no_more_memory(monkeypatch):
    correlate, compared = dredge.normxcorr1d, []

    def spy(template, x, **options):
        compared.append(max(len(template), len(x)))
        return correlate(template, x, **options)

    monkeypatch.setattr(dredge, "normxcorr1d", spy)
    num_blocks = 2 * MAX_TIMES + 1
    planted, centers = zigzag(np.arange(num_blocks)), 30_000 * (np.arange(num_blocks) + 0.5)
    motion = estimate_motion(make_depths(planted, num_blocks), centers, LOCATIONS)
    assert 1 < max(compared) <= MAX_TIMES
    assert motion is not None
    error = np.array([motion.displacement_at(center)[16] for center in centers]) - planted
    assert np.std(error) < 1.0


def test_the_longer_side_of_the_shank_is_its_axis():
    planted = zigzag(np.arange(120))
    motion = estimate_motion(make_depths(planted), CENTERS, LOCATIONS[:, ::-1].copy())
    assert motion is not None
    assert motion.axis == 0
    assert motion.displacement_at(CENTERS[15])[0] - motion.displacement_at(CENTERS[45])[0] == pytest.approx(
        40, abs=6
    )


@pytest.mark.parametrize("height", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_still_tissue_gives_no_motion(height, seed):
    assert estimate_motion(make_depths(zigzag(np.arange(120), height), seed=seed), CENTERS, LOCATIONS) is None


def test_the_same_peaks_give_the_same_motion():
    first, second = (
        estimate_motion(make_depths(zigzag(np.arange(120))), CENTERS, LOCATIONS) for _ in range(2)
    )
    np.testing.assert_array_equal(first.displacement_um, second.displacement_um)


def field(locations, depth):
    """A spike's spread over the channels; smooth at the scale of their pitch."""
    square = ((locations - [8.0, depth]) ** 2).sum(axis=1)
    return 100 * np.exp(-square / (2 * 35.0**2))


def make_motion(displacement):
    return Motion(np.array([0.0]), np.array([0.0]), np.array([[displacement]]), LOCATIONS, axis=1)


@pytest.mark.parametrize("displacement", [-17.0, -4.0, 0.0, 7.5, 20.0])
def test_traces_are_moved_back_to_rest(displacement):
    block = Block(0, 100, SEGMENT)
    moved = np.tile(field(LOCATIONS, 150.0 + displacement), (5, 1)).astype(np.float32)
    corrected = make_motion(displacement).correct(moved, block)
    assert corrected.dtype == np.float32
    np.testing.assert_allclose(corrected, np.tile(field(LOCATIONS, 150.0), (5, 1)), atol=2.0)
    if displacement:
        assert np.abs(moved - field(LOCATIONS, 150.0)).max() > 4.0


def test_displacement_between_times_and_windows():
    motion = Motion(
        np.array([0.0, 100.0]),
        np.array([0.0, 300.0]),
        np.array([[0.0, 10.0], [20.0, 30.0]]),
        LOCATIONS,
        axis=1,
    )
    np.testing.assert_allclose(motion.displacement_at(50.0)[0], 10.0)
    np.testing.assert_allclose(motion.displacement_at(50.0)[30], 20.0)
    np.testing.assert_allclose(motion.displacement_at(25.0)[14], 5.0 + 10 * 140 / 300)
    np.testing.assert_allclose(motion.displacement_at(-500.0)[0], 0.0)
    np.testing.assert_allclose(motion.displacement_at(500.0)[0], 20.0)
    spikes = np.array([50, 25, 50, -500]), np.array([0, 14, 30, 14])
    each = [motion.displacement_at(sample)[channel] for sample, channel in zip(*spikes, strict=True)]
    np.testing.assert_allclose(motion.displacement_of(*spikes), each)


@pytest.mark.parametrize(
    ("locations", "has_geometry", "expected"),
    [
        (LOCATIONS, True, True),
        (LOCATIONS, False, False),
        (LOCATIONS[: MIN_CHANNELS - 1], True, False),
        (LOCATIONS / 4, True, False),
        (LOCATIONS[:, ::-1], True, True),
    ],
)
def test_what_can_be_corrected(locations, has_geometry, expected):
    assert can_move(locations, has_geometry) is expected


def test_the_depth_of_a_peak_follows_its_heights():
    traces = np.zeros((60, 4), np.float32)
    depth_of = np.array([0.0, 20.0, 40.0, 60.0])
    hoods = np.array([[0, 1, -1], [1, 0, 2], [2, 1, 3], [3, 2, -1]])
    traces[20, 1] = -13  # alone on its channel
    traces[40, 1:4] = [-8, -13, -8]  # as much above as below
    traces[50, 0], traces[50, 1] = -13, -8  # four times the weight at depth 0
    samples, channels = np.array([20, 40, 50]), np.array([1, 2, 0])
    depths = locate_peaks(traces, samples, channels, hoods, depth_of, 5)
    np.testing.assert_allclose(depths, [20.0, 40.0, 20.0 * 25 / 125], rtol=1e-5)
    faint = locate_peaks(traces / 10, samples, channels, hoods, depth_of, 5)
    np.testing.assert_allclose(faint, depth_of[channels])
