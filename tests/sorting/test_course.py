"""The course of a template, and how it is told from its means in bins."""

import numpy as np

from accm_core.sorting.course import Means, average_bins, smooth_course


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
    assert ((smooth - course) ** 2).mean() < 0.3 * ((means.mean - course) ** 2).mean()
    assert means.stray() > 20


def test_silent_bins_lie_between_their_neighbours():
    means = Means(np.array([50, 0, 0, 50]), np.array([[0.0], [0], [0], [30.0]]), 1.0)
    np.testing.assert_allclose(smooth_course(means)[:, 0], [0, 10, 20, 30], atol=0.2)


def test_bins_beyond_the_last_points_go_on_with_the_slope():
    course = np.linspace(0, 40, 40)[:, None] * np.ones(3)
    points, bins = make_points(course, 10)
    seen = bins < 30
    smooth = smooth_course(average_bins(points[seen], bins[seen], 40))
    assert np.abs(smooth - course).max() < 1.5


def test_one_or_two_bins_are_their_mean():
    np.testing.assert_allclose(smooth_course(Means(np.array([5]), np.array([[2.0]]), 1.0)), [[2.0]])
    two = Means(np.array([1, 3]), np.array([[2.0], [6.0]]), 1.0)
    np.testing.assert_allclose(smooth_course(two), [[5.0], [5.0]])
