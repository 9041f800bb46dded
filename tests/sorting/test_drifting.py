"""Where the tissue moves, neurons are told apart by their shape as a function of its place."""

import numpy as np
import pytest

from accm_core.sorting.drifting import NUM_PLACES, _fit_course, _Points, _unmix_noise, cluster_drifting
from accm_core.sorting.place import Place
from accm_core.types import Peaks, Snippets

NUM_SAMPLES, NUM_CHANNELS, NUM_BINS = 20, 4, 40
NUM_SAMPLES_IN_ALL = 120_000
TIME = np.arange(NUM_SAMPLES) - 8
DEPTHS = np.array([0.0, 1.0, 2.0, 3.0])


def shape(depth, width, height):
    """On four channels, each of which sees what is near its depth; depth (n,) to (n, n_samples, 4)."""
    course = -height * np.exp(-0.5 * (TIME / width) ** 2)
    return course[None, :, None] * np.exp(-0.5 * ((DEPTHS - np.asarray(depth)[:, None, None]) / 1.2) ** 2)


NEURONS = [(0.3, 1.5, 14.0), (1.3, 1.5, 14.0), (1.8, 3.0, 12.0)]
"""Depth, width and height; the first ends where the second begins."""


def to_and_fro(sample):
    """Where the tissue is: there and back, twice."""
    return 0.5 - 0.5 * np.cos(4 * np.pi * np.asarray(sample) / NUM_SAMPLES_IN_ALL)


def make_snippets(
    num_spikes=(400, 400, 400), travel=1.0, spread=0.05, seed=0, num_bins=NUM_BINS, neurons=NEURONS
):
    """Spikes of neurons on a way to and fro; their neuron, bin, the bins' middles and the place in each."""
    rng = np.random.default_rng(seed)
    samples = np.sort(rng.integers(0, NUM_SAMPLES_IN_ALL, sum(num_spikes)))
    neuron = rng.permutation(np.repeat(np.arange(len(num_spikes)), num_spikes))
    place = travel * to_and_fro(samples)
    waveforms = np.empty((len(neuron), NUM_SAMPLES, NUM_CHANNELS))
    for which, (depth, width, height) in enumerate(neurons[: len(num_spikes)]):
        rows = neuron == which
        waveforms[rows] = shape(depth + place[rows], width, height)
    waveforms *= 1 + spread * np.sqrt(12) * rng.uniform(-0.5, 0.5, len(neuron))[:, None, None]
    waveforms += rng.normal(0, 1, waveforms.shape)
    noise = rng.normal(0, 1, (500, NUM_SAMPLES, NUM_CHANNELS)).astype(np.float32)
    zeros = np.zeros(len(neuron), np.int64)
    peaks = Peaks(samples, zeros, zeros.astype(np.float32), zeros.astype(np.float32))
    channels = np.tile(np.arange(NUM_CHANNELS), (len(neuron), 1))
    snippets = Snippets(waveforms.astype(np.float32), channels, peaks, 8)
    length = NUM_SAMPLES_IN_ALL / num_bins
    centers = length * (np.arange(num_bins) + 0.5)
    bins = (samples // length).astype(np.int64)
    return snippets, noise, neuron, bins, centers, travel * to_and_fro(centers)


def cluster(made, labels, neighborhood=None, place=None):
    snippets, noise, _, bins, centers, _ = made
    where = np.zeros(len(snippets), np.int64) if neighborhood is None else neighborhood
    return cluster_drifting(snippets, noise, labels, where, bins, centers, place)


def assert_same(labels, neuron):
    """One cluster for each neuron; collisions do not exist here, so nearly all spikes are somebody's."""
    assert len(np.unique(labels[labels >= 0])) == len(np.unique(neuron))
    for which in np.unique(neuron):
        own = np.bincount(labels[(neuron == which) & (labels >= 0)]).argmax()
        hits = np.sum((labels == own) & (neuron == which))
        assert hits > 0.97 * np.sum((labels == own) | (neuron == which))


@pytest.fixture(scope="module")
def moving():
    return make_snippets()


@pytest.fixture(scope="module")
def crossed(moving):
    """Clusters that see shapes only: the first two neurons are mixed where each comes by the same place."""
    _, _, neuron, bins, _, place = moving
    depth = np.array([n[0] for n in NEURONS])[neuron] + place[bins]
    labels = np.where(neuron == 2, 2, (depth > 1.0).astype(np.int64))
    return labels, cluster(moving, labels)


def test_neurons_that_come_by_the_same_place_are_told_apart(moving, crossed):
    before, drift = crossed
    with pytest.raises(AssertionError):
        assert_same(before, moving[2])
    assert_same(drift.labels, moving[2])
    assert drift.neighborhood_of.tolist() == [0, 0, 0]


def test_the_place_of_the_tissue_is_found_up_to_its_scale(moving, crossed):
    place = crossed[1].place.values
    assert abs(np.corrcoef(place, moving[5])[0, 1]) > 0.98


@pytest.fixture(scope="module")
def known(moving):
    """Where the tissue is, as drift along a large shank tells."""
    return Place(moving[4], moving[5])


def test_neurons_are_told_apart_at_a_place_that_is_known(moving, crossed, known):
    drift = cluster(moving, crossed[0], place=known)
    assert drift.place is known
    assert_same(drift.labels, moving[2])
    elsewhere = Place(known.centers, np.random.default_rng(0).permutation(known.values))
    with pytest.raises(AssertionError):
        assert_same(cluster(moving, crossed[0], place=elsewhere).labels, moving[2])


def test_what_no_cluster_holds_is_no_neuron_where_the_place_is_known(moving, known):
    neuron = moving[2]
    labels = cluster(moving, np.where(neuron == 2, -1, neuron), place=known).labels
    assert len(np.unique(labels[labels >= 0])) == 2


def test_a_cluster_of_two_neurons_is_taken_apart(moving):
    assert_same(cluster(moving, (moving[2] == 2).astype(np.int64)).labels, moving[2])


def test_a_neuron_that_no_cluster_holds_is_found(moving):
    neuron = moving[2]
    assert_same(cluster(moving, np.where(neuron == 2, -1, neuron)).labels, neuron)


def test_pieces_of_neurons_are_joined(moving):
    _, _, neuron, bins, _, place = moving
    second = np.random.default_rng(1).random(len(neuron)) < 0.3 + 0.4 * place[bins]
    assert_same(cluster(moving, 2 * neuron + second).labels, neuron)


def test_neurons_of_all_sizes_are_not_taken_apart():
    made = make_snippets(spread=0.15)
    assert_same(cluster(made, made[2]).labels, made[2])


@pytest.mark.parametrize("seed", range(3))
def test_neurons_of_few_spikes_are_not_taken_apart(seed):
    made = make_snippets(num_spikes=(400, 400, 45), seed=seed)
    assert_same(cluster(made, made[2]).labels, made[2])


def test_tissue_that_rests_is_left_alone():
    made = make_snippets(travel=0.0)
    assert cluster(made, made[2]) is None


def test_few_spikes_move_nothing():
    made = make_snippets(num_spikes=(20, 20, 20))
    assert cluster(made, made[2]) is None


def test_neighborhoods_are_clustered_apart(moving):
    neuron = moving[2]
    drift = cluster(moving, neuron, neighborhood=np.where(neuron == 2, 3, 1))
    assert sorted(drift.neighborhood_of.tolist()) == [1, 1, 3]
    assert_same(drift.labels, neuron)
    assert (drift.neighborhood_of[drift.labels[(neuron == 2) & (drift.labels >= 0)]] == 3).all()


def test_a_neighborhood_of_few_spikes_or_no_cluster_does_no_harm(moving):
    neuron = moving[2]
    neighborhood = np.where(neuron == 2, 3, 1)
    neighborhood[:5] = 2
    drift = cluster(moving, np.where(neuron == 2, -1, neuron), neighborhood)
    assert (drift.labels[:5] == -1).all()
    assert_same(drift.labels[5:], neuron[5:])


def test_the_same_spikes_give_the_same_clusters(moving, crossed):
    before, drift = crossed
    again = cluster(moving, before)
    np.testing.assert_array_equal(again.labels, drift.labels)
    np.testing.assert_array_equal(again.place.values, drift.place.values)


@pytest.mark.parametrize("seed", range(2))
def test_tissue_moves_within_a_bin_of_time(seed):
    """In a bin each neuron moves about as far as the two are apart; they are told apart nevertheless."""
    near = [(0.8, 1.5, 20.0), (1.1, 1.5, 20.0)]
    made = make_snippets(num_spikes=(600, 600), seed=seed, num_bins=12, neurons=near)
    assert_same(cluster(made, np.zeros(1200, np.int64)).labels, made[2])


def test_the_way_of_a_large_neuron_is_less_stiff():
    """With the same stiffness a way ten times as large would be off by ten times as much."""

    def misfit(size):
        place = np.arange(0, NUM_PLACES, 2)
        way = size * np.stack([2 + np.cos(place / 4), np.sin(place / 4)], axis=1)
        points = _Points(way, place, np.zeros(len(place)))
        return np.abs(_fit_course(points, np.ones(len(place)))[place] - way).max()

    assert misfit(100.0) < 5 * misfit(10.0)


def test_noise_becomes_white():
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 1, (8000, 20, 3))
    for t in range(1, 20):  # correlated over time
        noise[:, t] = 0.8 * noise[:, t - 1] + 0.6 * noise[:, t]
    white = noise[4000:].reshape(4000, -1) @ _unmix_noise(noise[:4000].astype(np.float32))
    covariance = np.cov(white.T)
    assert np.diag(covariance) == pytest.approx(1, abs=0.15)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.15
