"""Where the tissue is, from what its spikes look like."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from accm_core.signal.motion import Motion
from accm_core.sorting.place import Place, find_place, read_place

NUM_BINS, PER_BIN = 60, 40
CENTERS = 1000.0 * np.arange(NUM_BINS) + 500


def triangle(bins):
    """From 0 to 1 and back, twice."""
    return np.abs((2 * np.asarray(bins) / (NUM_BINS / 2) + 1) % 2 - 1)


def make_spikes(way, spread=30.0, num_neurons=6, seed=0):
    """Points of neurons that turn around in their own planes as the tissue is at ``way``, (n_bins,)."""
    rng = np.random.default_rng(seed)
    bins = np.repeat(np.arange(NUM_BINS), PER_BIN)
    neuron = rng.integers(0, num_neurons, len(bins))
    first, second = rng.normal(0, 1, (2, num_neurons, 12))
    at = way[bins, None]
    points = spread / 5 * (np.cos(2 * at) * first[neuron] + np.sin(2 * at) * second[neuron])
    return (
        points + 10 * rng.normal(0, 1, (num_neurons, 12))[neuron] + rng.normal(0, 1, points.shape),
        neuron,
        bins,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spread", [15.0, 60.0])
def test_the_place_is_found_whether_spikes_move_little_or_far(spread, seed):
    way = triangle(np.arange(NUM_BINS))
    points, neuron, bins = make_spikes(way, spread, seed=seed)
    place = find_place(points, neuron, bins, CENTERS)
    assert place.values.min() == 0.0
    assert place.values.max() == 1.0
    assert abs(spearmanr(place.values, way)[0]) > 0.97


def test_tissue_that_comes_back_is_at_the_same_place():
    """Closer than the order of the bins alone would tell, 0.017 on average."""
    way = triangle(np.arange(NUM_BINS))
    offs = []
    for seed in range(4):
        points, neuron, bins = make_spikes(way, seed=seed)
        first, second = np.split(find_place(points, neuron, bins, CENTERS).values, 2)
        offs.append(np.sqrt(np.mean((first - second) ** 2)))
    assert np.mean(offs) < 0.013


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_stretch_that_the_tissue_passes_fast_does_not_fold_the_way(seed):
    """Bins of either side are alike among themselves alone; those that follow each other tell the order."""
    way = triangle(np.arange(NUM_BINS))
    points, neuron, bins = make_spikes(way + (way > 0.45), seed=seed)
    assert abs(spearmanr(find_place(points, neuron, bins, CENTERS).values, way)[0]) > 0.97


def test_bins_without_a_spike_do_no_harm():
    way = triangle(np.arange(NUM_BINS))
    points, neuron, bins = make_spikes(way)
    seen = (bins != 7) & (bins != NUM_BINS - 1)
    place = find_place(points[seen], neuron[seen], bins[seen], CENTERS)
    filled = np.unique(bins[seen])
    assert abs(spearmanr(place.values[filled], way[filled])[0]) > 0.98


def test_tissue_that_rests_has_no_place():
    points, neuron, bins = make_spikes(np.zeros(NUM_BINS))
    assert find_place(points, neuron, bins, CENTERS) is None


def test_steps_between_and_beyond_the_bins():
    place = Place(np.array([100.0, 200.0]), np.array([0.0, 1.0]))
    assert place.step(np.array([0, 100, 149, 151, 200, 900]), 2).tolist() == [0, 0, 0, 1, 1, 1]
    assert place.step(151.0, 2) == 1


def test_a_displacement_gives_the_place():
    times = np.array([100.0, 200.0, 300.0])
    displacement = np.array([[5.0], [-15.0], [25.0]])
    place = read_place(Motion(times, np.array([50.0]), displacement, np.zeros((2, 2)), 1))
    np.testing.assert_array_equal(place.centers, times)
    assert place.values.tolist() == [0.5, 0.0, 1.0]
