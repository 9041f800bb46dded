"""Dividing clusters by what two views of their spikes agree on."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from accm_core.params import ClusterParams
from accm_core.sorting.divide import divide_clusters, find_cut

PARAMS = ClusterParams()
HOME = np.array([3])


def make_cluster(sizes, centers, scatter, noise, seed=0):
    """Points of some units, two views of each, which noise tells apart, and the unit of each."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    points = np.asarray(centers, dtype=float)[truth] + rng.normal(0, scatter, (len(truth), len(centers[0])))
    views = tuple((points + rng.normal(0, noise, points.shape)).astype(np.float32) for _ in range(2))
    return points.astype(np.float32), views, truth


def draw_waveforms(truth):
    """Spikes of each unit on a channel of its own, (n, 20, 4)."""
    return np.eye(4, dtype=np.float32)[truth][:, None] * np.hanning(20)[None, :, None]


def divide(points, views, truth, params=PARAMS):
    labels = np.zeros(len(points), dtype=np.int64)
    return divide_clusters(labels, draw_waveforms(truth), points, views, HOME, params)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_unit_beside_a_large_one_is_found(seed):
    centers = [(0, 0, 0, 0), (4, 3, 0, 0)]
    points, views, truth = make_cluster([900, 90], centers, 0.8, 0.5, seed)
    labels, homes = divide(points, views, truth)
    assert homes.tolist() == [3, 3]
    assert adjusted_rand_score(truth, labels) > 0.9


def test_three_units_take_two_decisions():
    points, views, truth = make_cluster([400, 300, 200], [(0, 0, 0), (6, 0, 0), (0, 7, 0)], 0.8, 0.5)
    labels, homes = divide(points, views, truth)
    assert len(homes) == 3
    assert adjusted_rand_score(truth, labels) > 0.95


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_points", [80, 400, 3000])
@pytest.mark.parametrize("noise", [0.6, 1.0])
def test_one_unit_stays_whole(num_points, noise, seed):
    points, views, truth = make_cluster([num_points], [(0, 0, 0, 0)], (1.2, 1, 1, 0.5), noise, seed)
    assert len(divide(points, views, truth)[1]) == 1


def test_humps_that_noise_makes_are_no_units():
    """Two humps in the embedding on which the views do not agree."""
    rng = np.random.default_rng(0)
    points, _, truth = make_cluster([500, 500], [(0, 0), (5, 0)], 0.5, 0)
    views = tuple(points[rng.permutation(1000)] for _ in range(2))
    assert len(divide(points, views, truth)[1]) == 1


@pytest.mark.parametrize(("min_size", "num_parts"), [(80, 2), (95, 1)])
def test_parts_smaller_than_a_cluster_may_be_are_not_made(min_size, num_parts):
    points, views, truth = make_cluster([500, 90], [(0, 0), (9, 0)], 0.5, 0.3)
    assert len(divide(points, views, truth, ClusterParams(min_size=min_size))[1]) == num_parts


def test_spikes_of_two_sizes_and_one_shape_are_one_neurons():
    points, views, truth = make_cluster([500, 300], [(0, 0), (9, 0)], 0.5, 0.3)
    labels = np.zeros(len(points), dtype=np.int64)
    waveforms = draw_waveforms(np.zeros_like(truth)) * (1 + truth)[:, None, None]
    assert len(divide_clusters(labels, waveforms, points, views, HOME, PARAMS)[1]) == 1
    waveforms[truth == 1, :, 1] += 1  # with another shape they are two
    assert len(divide_clusters(labels, waveforms, points, views, HOME, PARAMS)[1]) == 2


def test_sizes_of_one_neuron_hide_no_other():
    """The views agree best on the sizes; each of them has spikes of the other neuron beside it."""
    centers = [(0, 0, 0), (20, 0, 0), (0, 6, 0), (20, 6, 0)]
    points, views, truth = make_cluster([400, 400, 100, 100], centers, 0.8, 0.5)
    waveforms = draw_waveforms(truth // 2) * (1 + truth % 2)[:, None, None]
    labels, homes = divide_clusters(np.zeros(len(points), np.int64), waveforms, points, views, HOME, PARAMS)
    assert homes.tolist() == [3, 3]
    assert adjusted_rand_score(truth // 2, labels) > 0.95


def test_clusters_are_divided_apart_and_what_has_no_cluster_keeps_none():
    near, near_views, near_truth = make_cluster([300, 200], [(0, 0), (7, 0)], 0.5, 0.3)
    far, far_views, _ = make_cluster([300], [(50, 50)], 0.5, 0.3, seed=1)
    points = np.concatenate([near, far])
    views = tuple(np.concatenate(pair) for pair in zip(near_views, far_views, strict=True))
    labels = np.repeat([1, 0], [500, 300])
    labels[::50] = -1
    waveforms = draw_waveforms(np.concatenate([near_truth, np.full(300, 2)]))
    parts, homes = divide_clusters(labels, waveforms, points, views, np.array([5, 8]), PARAMS)
    assert sorted(homes.tolist()) == [5, 8, 8]
    np.testing.assert_array_equal(parts == -1, labels == -1)
    assert len(set(parts[labels == 0])) == 1
    assert not set(parts[labels == 0]) & set(parts[labels == 1])
    assert adjusted_rand_score(near_truth[labels[:500] == 1], parts[:500][labels[:500] == 1]) > 0.95


def test_no_cluster():
    points, views, truth = make_cluster([50], [(0, 0)], 1, 1)
    nowhere = np.zeros(0, np.int64)
    parts, homes = divide_clusters(np.full(50, -1), draw_waveforms(truth), points, views, nowhere, PARAMS)
    assert (parts == -1).all()
    assert len(homes) == 0


def test_the_cut_is_where_the_views_agree():
    points, views, truth = make_cluster([300, 700], [(0, 0, 0), (0, 8, 0)], 1, 0.5)
    direction, cut, shared = find_cut(*(view.astype(float) for view in views))
    is_beyond = points @ direction > cut
    assert max((is_beyond == truth).mean(), (is_beyond != truth).mean()) > 0.99
    assert shared > 0.9


@pytest.mark.parametrize(("agreement", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_what_views_share_is_a_share(agreement, expected):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4000, 2))
    second = first if agreement else rng.normal(size=(4000, 2))
    assert find_cut(first, second)[2] == pytest.approx(expected, abs=0.01)
