"""Cutting clusters in two where noise is white: hidden units are found, one unit stays whole."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from accm_core.params import ClusterParams
from accm_core.sorting.bisect import bisect_clusters, unmix_noise

PARAMS = ClusterParams()
NUM_SAMPLES, NUM_CHANNELS = 20, 3
HOME = np.array([3])
TROUGH = -np.exp(-0.5 * ((np.arange(NUM_SAMPLES) - 8) / 2.0) ** 2)
SHAPE = np.outer(TROUGH, [1.0, 0.5, 0.2])
OTHER = np.outer(TROUGH, [0.2, 0.5, 1.0])


def draw_noise(num, seed, correlation=0.8):
    """Noise that is correlated over time."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 1, (num, NUM_SAMPLES + 30, NUM_CHANNELS))
    noise = np.zeros_like(steps)
    for t in range(1, steps.shape[1]):
        noise[:, t] = correlation * noise[:, t - 1] + np.sqrt(1 - correlation**2) * steps[:, t]
    return noise[:, 30:].astype(np.float32)


NOISE = draw_noise(4000, seed=99)
ROOT = np.linalg.norm(SHAPE.ravel() @ unmix_noise(NOISE))


def make_spikes(templates, sizes, seed=0, scale_std=0.08):
    """Snippets of some units, each at ``size`` noise levels, and the unit of each."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    scale = rng.normal(1, scale_std, (len(truth), 1, 1))
    waveforms = np.stack(templates)[truth] * scale + draw_noise(len(truth), seed)
    order = rng.permutation(len(truth))
    return waveforms[order].astype(np.float32), truth[order]


def bisect(waveforms, params=PARAMS, seed=0):
    labels = np.zeros(len(waveforms), dtype=np.int64)
    return bisect_clusters(labels, waveforms, NOISE, HOME, params, seed=seed)


def apart(distance):
    """A second template so many noise levels from the first, which has twelve."""
    first = SHAPE * 12 / ROOT
    direction = OTHER - SHAPE
    return first, first + direction * distance / np.linalg.norm(direction.ravel() @ unmix_noise(NOISE))


def test_noise_becomes_white():
    white = draw_noise(4000, seed=5).reshape(4000, -1) @ unmix_noise(NOISE)
    covariance = np.cov(white.T)
    assert np.diag(covariance) == pytest.approx(1, abs=0.15)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_few", [300, 2000])
def test_a_unit_that_is_hidden_among_another_is_found(num_few, seed):
    waveforms, truth = make_spikes(apart(6.0), [3000, num_few], seed)
    labels, homes = bisect(waveforms)
    assert homes.tolist() == [3, 3]
    assert adjusted_rand_score(truth, labels) > 0.9


def add_collisions(waveforms, num, seed, ratio):
    """The first spikes with another one of a random shape and delay on top."""
    rng = np.random.default_rng(seed)
    for k in range(num):
        delay = int(rng.integers(-8, 9))
        other = np.roll(np.outer(TROUGH, rng.uniform(0, 1, NUM_CHANNELS)), delay, axis=0)
        waveforms[k] += ratio * rng.uniform(0.3, 1) / ROOT * other
    return waveforms


@pytest.mark.parametrize(
    ("sizes", "num_collisions", "ratio", "seed"),
    [
        *(((5000, 400), 500, 60.0, seed) for seed in range(4)),
        *(((2500, 200), 250, 40.0, seed) for seed in (0, 2)),
    ],
)
def test_a_rare_unit_of_the_same_shape_is_found_by_its_size(sizes, num_collisions, ratio, seed):
    template = 9 / 12 * apart(6.0)[0]
    waveforms, truth = make_spikes([template, 1.6 * template], sizes, seed, scale_std=0.05)
    labels, _ = bisect(add_collisions(waveforms, num_collisions, seed, ratio), seed=seed)
    assert adjusted_rand_score(truth[num_collisions:], labels[num_collisions:]) > 0.85


def test_three_units_take_two_decisions():
    first, second = apart(8.0)
    waveforms, truth = make_spikes([first, second, 1.8 * first], [900, 500, 400], scale_std=0.04)
    labels, homes = bisect(waveforms)
    assert len(homes) == 3
    assert adjusted_rand_score(truth, labels) > 0.95


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_spikes", [70, 500, 5000])
def test_one_unit_stays_whole_whatever_its_sizes(num_spikes, seed):
    first, _ = apart(6.0)
    waveforms, _ = make_spikes([4 * first], [num_spikes], seed, scale_std=0.15)
    assert len(bisect(waveforms, seed=seed)[1]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_collisions_at_all_delays_leave_their_unit_whole(seed):
    first, second = apart(30.0)
    waveforms, _ = make_spikes([first], [2000], seed)
    for k in range(150):
        delay = 3 + k % 12
        waveforms[k, delay:] += second[: NUM_SAMPLES - delay].astype(np.float32)
    parts = np.bincount(bisect(waveforms)[0][150:])
    assert parts.max() > 0.99 * parts.sum()


def test_units_that_are_too_near_stay_together():
    waveforms, _ = make_spikes(apart(2.5), [2000, 2000])
    assert len(bisect(waveforms)[1]) == 1


@pytest.mark.parametrize(("min_size", "num_parts"), [(60, 2), (120, 1)])
def test_parts_smaller_than_a_cluster_may_be_are_not_made(min_size, num_parts):
    waveforms, _ = make_spikes(apart(9.0), [600, 90])
    assert len(bisect(waveforms, ClusterParams(min_size=min_size))[1]) == num_parts


def test_what_is_in_no_cluster_stays_so_and_clusters_keep_their_homes():
    waveforms, truth = make_spikes(apart(8.0), [600, 500])
    labels = np.where(np.arange(len(truth)) < 100, -1, 1)
    labels[100:140] = 0
    parts, homes = bisect_clusters(labels, waveforms, NOISE, np.array([5, 7]), PARAMS, seed=0)
    assert (parts[:100] == -1).all()
    assert (parts[100:140] == 0).all()
    assert homes.tolist() == [5, 7, 7]


def test_the_same_seed_gives_the_same_parts():
    waveforms, _ = make_spikes(apart(5.0), [2000, 200])
    assert np.array_equal(bisect(waveforms)[0], bisect(waveforms)[0])
