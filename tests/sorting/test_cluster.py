"""Planted blobs; the test of unimodality on known distributions and against a brute-force fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import isotonic_regression
from sklearn.metrics import adjusted_rand_score

from accm_core.params import ClusterParams
from accm_core.sorting.cluster import (
    _fit_rise_fall,
    cluster_embedding,
    cluster_neighborhoods,
    measure_bimodality,
    project_on_separation,
)

PARAMS = ClusterParams()
SPLIT = PARAMS.split_threshold
SEEDS = range(5)
FIVE = [(0, 0), (10, 0), (0, 10), (10, 10), (22, 20)]


def make_blobs(sizes, centres, *, seed=0, num_dims=8, stretch=1.0):
    """Points (n, num_dims) of standard deviation 1, ``stretch`` along the first axis; and their blob."""
    rng = np.random.default_rng(seed)
    scale = np.r_[stretch, np.ones(num_dims - 1)]
    parts = [
        rng.normal(0, 1, (size, num_dims)) * scale + np.r_[centre, np.zeros(num_dims - len(centre))]
        for size, centre in zip(sizes, centres, strict=True)
    ]
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("sizes", "centres", "stretch"),
    [
        ([1000], [(0,)], 1),
        ([1000], [(0,)], 10),
        ([60], [(0,)], 1),
        ([500, 500], [(0,), (8,)], 1),
        ([2000, 60], [(0,), (9,)], 1),
        ([600, 600], [(0, 0), (0, 9)], 6),
        ([100, 300, 900, 200, 400], FIVE, 1),
    ],
    ids=["one", "one-long", "one-small", "two", "unequal", "two-long-side-by-side", "five"],
)
def test_as_many_clusters_as_blobs(sizes, centres, stretch, seed):
    points, truth = make_blobs(sizes, centres, seed=seed, stretch=stretch)
    labels = cluster_embedding(points, PARAMS, seed=seed)
    assert labels.dtype == np.int64
    assert sorted(set(labels[labels >= 0].tolist())) == list(range(len(sizes)))
    assert (labels < 0).mean() < 0.02, "a few points between two blobs may be left out"
    assert adjusted_rand_score(truth, labels) > 0.97 or len(sizes) == 1


def test_dense_and_wide_blobs():
    tight, _ = make_blobs([400], [(0,)])
    wide, _ = make_blobs([400], [(0,)], seed=1)
    points = np.concatenate([0.1 * tight, wide + np.float32([5, *[0] * 7])])
    labels = cluster_embedding(points, PARAMS, seed=0)
    assert adjusted_rand_score(np.repeat([0, 1], 400), labels) > 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_permuted_points_give_the_same_partition(seed):
    """The first parcels are drawn by position, so that only points between blobs may change sides."""
    points, _ = make_blobs([300, 500, 200, 300, 100], FIVE)
    order = np.random.default_rng(seed).permutation(len(points))
    there = cluster_embedding(points, PARAMS, seed=0)
    back = cluster_embedding(points[order], PARAMS, seed=seed)
    assert back.max() == there.max()
    assert adjusted_rand_score(there[order], back) > 0.995


@given(
    factor=st.floats(0.01, 100),
    move=hnp.arrays(np.float64, 8, elements=st.floats(-50, 50)),
)
@settings(max_examples=10)
def test_scale_and_place_of_the_embedding_do_not_matter(factor, move):
    points, truth = make_blobs([150, 250], [(0,), (9,)])
    labels = cluster_embedding((factor * (points + move)).astype(np.float32), PARAMS, seed=0)
    assert labels.max() == 1
    assert adjusted_rand_score(truth, labels) > 0.98


def test_same_seed_same_labels():
    points, _ = make_blobs([400, 400], [(0,), (4,)])
    first, second = (cluster_embedding(points, PARAMS, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_small_clusters_are_left_out_and_the_others_numbered_without_holes():
    points, truth = make_blobs([30, 400, 25, 400], [(0, 0), (15, 0), (0, 15), (15, 15)])
    labels = cluster_embedding(points, ClusterParams(min_size=100), seed=0)
    assert (labels[(truth == 0) | (truth == 2)] == -1).all()
    assert sorted(set(labels[(truth == 1) | (truth == 3)].tolist())) == [0, 1]
    assert set(cluster_embedding(points, ClusterParams(min_size=20), seed=0).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("num_points", [0, 1, 29])
def test_fewer_points_than_a_cluster_holds(num_points):
    points = np.zeros((num_points, 8), np.float32)
    np.testing.assert_array_equal(cluster_embedding(points, PARAMS, seed=0), np.full(num_points, -1))


def test_a_cluster_of_just_the_least_size_is_kept():
    points, _ = make_blobs([30], [(0,)])
    np.testing.assert_array_equal(cluster_embedding(points, ClusterParams(min_size=30), seed=0), 0)


@pytest.mark.parametrize("num_places", [1, 2])
def test_points_that_coincide(num_places):
    """k-means then has parcels without a point; nothing is said about it and nothing fails."""
    points = np.repeat(np.eye(8, dtype=np.float32)[:num_places], 100, axis=0)
    labels = cluster_embedding(points, PARAMS, seed=0)
    for place in range(num_places):
        assert len(set(labels[100 * place : 100 * (place + 1)].tolist())) == 1


def test_a_higher_threshold_gives_fewer_clusters():
    points, _ = make_blobs([150, 150], [(0,), (5,)])
    assert cluster_embedding(points, PARAMS, seed=0).max() == 1
    assert cluster_embedding(points, ClusterParams(split_threshold=15), seed=0).max() == 0


def test_the_points_are_left_as_they_are():
    points, _ = make_blobs([150, 150], [(0,), (5,)])
    before = points.copy()
    cluster_embedding(points, PARAMS, seed=0)
    np.testing.assert_array_equal(points, before)


def test_channels_of_a_small_probe_are_clustered_together():
    points, truth = make_blobs([200, 300], [(0,), (9,)])
    channels = np.random.default_rng(0).integers(0, 4, 500)
    whole = np.tile(np.arange(4), (4, 1))
    labels, place = cluster_neighborhoods(points, channels, whole, PARAMS, seed=0)
    assert len(place) == 2
    assert adjusted_rand_score(truth, labels) > 0.98


def test_channels_of_a_large_probe_are_clustered_apart():
    points, truth = make_blobs([200, 300], [(0,), (9,)])
    channels = np.where(np.arange(500) % 5 < 2, 3, 7)
    nearest = (np.arange(9)[:, None] + np.arange(3)) % 9
    labels, place = cluster_neighborhoods(points, channels, nearest, PARAMS, seed=0)
    assert place.tolist() == [3, 3, 7, 7]
    for cluster in range(4):
        assert (channels[labels == cluster] == place[cluster]).all()
    both = 2 * truth + (channels == 7)
    assert adjusted_rand_score(both, labels) > 0.97


def test_a_channel_with_few_spikes_has_no_cluster():
    points, _ = make_blobs([200, 10], [(0,), (9,)])
    channels = np.repeat([0, 1], [200, 10])
    labels, place = cluster_neighborhoods(points, channels, np.array([[0], [1]]), PARAMS, seed=0)
    assert place.tolist() == [0]
    np.testing.assert_array_equal(labels, np.repeat([0, -1], [200, 10]))


def score_of(sample):
    return measure_bimodality(np.sort(sample))


ONE_HUMP = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "uniform": lambda rng, n: rng.random(n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "heavy-tailed": lambda rng, n: rng.standard_t(4, n),
}


@pytest.mark.parametrize("num_points", [50, 1000, 5000])
@pytest.mark.parametrize("name", ONE_HUMP)
def test_one_hump_scores_about_one(name, num_points):
    scores = [score_of(ONE_HUMP[name](np.random.default_rng(k), num_points))[0] for k in range(30)]
    assert np.median(scores) < 1.6
    assert np.mean(np.array(scores) >= SPLIT) <= 0.1


@pytest.mark.parametrize(
    ("sizes", "apart"), [((500, 500), 5), ((1000, 100), 7), ((100, 1000), 7), ((4000, 80), 8)]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_two_humps_score_over_two_and_part_in_the_valley(sizes, apart, seed):
    rng = np.random.default_rng(seed)
    sample = np.concatenate([rng.normal(0, 1, sizes[0]), rng.normal(apart, 1, sizes[1])])
    score, cut = score_of(sample)
    assert score > SPLIT
    wrong = np.mean(sample[: sizes[0]] > cut) + np.mean(sample[sizes[0] :] < cut)
    assert wrong < 0.1


def test_the_score_grows_with_the_distance():
    rng = np.random.default_rng(0)
    halves = rng.normal(0, 1, (2, 500))
    scores = [score_of(np.r_[halves[0], halves[1] + apart])[0] for apart in (2, 4, 6)]
    assert scores[0] < SPLIT < scores[1] < scores[2]


@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100), move=st.floats(-10, 10))
@settings(max_examples=20)
def test_the_score_knows_neither_scale_nor_place_nor_direction(seed, factor, move):
    rng = np.random.default_rng(seed)
    sample = np.r_[rng.normal(0, 1, 200), rng.normal(5, 1, 100)]
    score, cut = score_of(sample)
    moved, moved_cut = score_of(factor * (sample + move))
    assert moved == pytest.approx(score, rel=1e-6)
    assert moved_cut == pytest.approx(factor * (cut + move), rel=1e-6, abs=1e-6 * factor)
    assert score_of(-sample)[0] == pytest.approx(score, rel=0.05)


@pytest.mark.parametrize("sample", [[3.0], [1.0, 2.0], [1.0] * 4, [5.0] * 100])
def test_few_or_equal_values_have_one_hump(sample):
    score, _ = measure_bimodality(np.array(sample))
    assert score < SPLIT


@given(values=hnp.arrays(np.float64, st.integers(1, 25), elements=st.integers(-20, 20).map(float)))
def test_the_unimodal_fit_is_the_best_one(values):
    """Brute force: an increasing and a decreasing regression around every place of the peak."""

    def error(fit):
        return ((fit - values) ** 2).sum()

    candidates = [
        np.r_[
            isotonic_regression(values[:k], increasing=True) if k else [],
            isotonic_regression(values[k:], increasing=False) if k < len(values) else [],
        ]
        for k in range(len(values) + 1)
    ]
    best = min(error(fit) for fit in candidates)
    fit, peak = _fit_rise_fall(values)
    assert error(fit) == pytest.approx(best, abs=1e-6)
    assert (np.diff(fit[: peak + 1]) >= -1e-9).all()
    assert (np.diff(fit[peak:]) <= 1e-9).all()


def test_the_projection_is_fishers():
    """Two clusters that differ along a narrow direction, hidden by a wide one."""
    points, truth = make_blobs([300, 300], [(0, 0), (0, 8)], stretch=50)
    line = project_on_separation(points.astype(np.float64), truth == 1)
    assert line.shape == (600,)
    assert line[truth == 1].mean() > line[truth == 0].mean()
    cut = 0.5 * (line[truth == 1].mean() + line[truth == 0].mean())
    assert ((line > cut) == (truth == 1)).mean() > 0.99
