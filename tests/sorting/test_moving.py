"""The course of a template over time, and the bank of each stretch."""

import numpy as np

from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.moving import Means, MovingBank, average_bins, smooth_course


def make_points(course, per_bin, seed=0):
    rng = np.random.default_rng(seed)
    bins = np.repeat(np.arange(len(course)), per_bin)
    return course[bins] + rng.normal(0, 1, (len(bins), course.shape[1])), bins


def test_means_of_bins():
    points = np.array([[1.0], [3.0], [7.0]])
    means = average_bins(points, np.array([0, 0, 2]), 3)
    assert means.counts.tolist() == [2, 0, 1]
    assert means.mean[:, 0].tolist() == [2.0, 0.0, 7.0]
    assert means.scatter == 2.0  # two squared distances of 1, one degree of freedom
    assert means.overall[0] == 11 / 3


def test_a_template_that_stays_has_its_mean_everywhere():
    course = np.tile([3.0, -2.0, 1.0, 5.0], (40, 1))
    means = average_bins(*make_points(course, 10), 40)
    assert np.abs(smooth_course(means) - means.overall).max() < 0.25
    assert abs(means.stray()) < 0.1


def test_a_moving_template_is_followed_closer_than_by_its_means():
    course = 4 * np.sin(np.linspace(0, 6, 60))[:, None] * np.ones(5)
    means = average_bins(*make_points(course, 4), 60)
    smooth = smooth_course(means)
    assert ((smooth - course) ** 2).mean() < 0.7 * ((means.mean - course) ** 2).mean()
    assert means.stray() > 20


def test_silent_bins_lie_between_their_neighbours():
    means = Means(np.array([50, 0, 0, 50]), np.array([[0.0], [0], [0], [30.0]]), 1.0)
    np.testing.assert_allclose(smooth_course(means)[:, 0], [0, 10, 20, 30], atol=0.2)


def test_one_bin_is_its_mean():
    np.testing.assert_allclose(smooth_course(Means(np.array([5]), np.array([[2.0]]), 1.0)), [[2.0]])


def test_the_bank_of_a_stretch_and_scales_in_terms_of_the_mean():
    templates = np.zeros((1, 30, 2), np.float32)
    templates[0, 8:12] = 4.0
    bank = build_bank(templates, 10, np.r_[1.0, np.zeros(30)], np.array([0.1]))
    weights = np.stack([bank.weights, 0.5 * bank.weights])
    moving = MovingBank(bank, np.array([100, 1000]), weights)
    for sample, size in ((0, 1.0), (999, 1.0), (1000, 0.5), (5000, 0.5)):
        np.testing.assert_allclose(moving.at(sample).energy, size**2 * bank.energy, rtol=1e-5)
        np.testing.assert_allclose(
            moving.at(sample).templates, size * bank.reweigh(bank.weights, [0.1]).templates
        )
    zeros = np.zeros(2, np.float32)
    matches = Matches(
        np.array([500, 1500]), zeros, np.zeros(2, np.int64), np.ones(2, np.float32), zeros, zeros
    )
    np.testing.assert_allclose(moving.rescale(matches).scale, [1.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(moving.energy_at(matches), bank.energy[0] * np.array([1, 0.25]), rtol=1e-5)
