"""Agreement of two views, against what is known of Gaussians."""

import numpy as np
import pytest

from accm_core.learning.agreement import measure_agreement


def make_views(num_clusters, spread, num_views=600, num_dims=3, seed=0):
    """Two noisy looks at points around ``num_clusters`` centres."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, spread, (num_clusters, num_dims))[rng.integers(0, num_clusters, num_views)]
    return centers + rng.normal(size=centers.shape), centers + rng.normal(size=centers.shape)


def test_twice_as_many_clusters_share_a_bit_more():
    few, many = (measure_agreement(*make_views(n, 1000.0, num_views=1600)) for n in (4, 8))
    assert many - few == pytest.approx(np.log(2), abs=0.05)
    assert 0.5 * np.log(4) < few < np.log(4)


def test_nothing_shared_gives_at_most_nothing():
    first, _ = make_views(1, 0.0, seed=1)
    _, second = make_views(1, 0.0, seed=2)
    assert measure_agreement(first, second) < 0.05


def test_more_noise_agrees_less():
    rng = np.random.default_rng(3)
    first, second = make_views(6, 5.0)
    noisy = [view + rng.normal(0, 4, view.shape) for view in (first, second)]
    assert measure_agreement(first, second) > measure_agreement(*noisy) + 0.3


def test_an_invertible_map_changes_nothing():
    first, second = make_views(6, 4.0)
    matrix = np.random.default_rng(0).normal(size=(3, 3))
    assert measure_agreement(first @ matrix, second @ matrix) == pytest.approx(
        measure_agreement(first, second), abs=1e-3
    )


def test_against_a_loop():
    first, second = make_views(5, 3.0, num_views=40)
    difference = first - second
    inverse = np.linalg.inv(difference.T @ difference / 40)
    critic = np.array([[-0.5 * (a - b) @ inverse @ (a - b) for b in second] for a in first])
    bound = [np.mean([c[k, k] - np.log(np.exp(c[k]).mean()) for k in range(40)]) for c in (critic, critic.T)]
    assert measure_agreement(first, second) == pytest.approx(np.mean(bound), abs=1e-4)


def test_embeddings_that_coincide_are_no_error():
    assert np.isfinite(measure_agreement(np.zeros((20, 3)), np.ones((20, 3))))
