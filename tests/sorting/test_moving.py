"""The bank of each place of the tissue."""

import numpy as np
import pytest

from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.moving import MovingBank
from accm_core.sorting.place import Place

PLACE = Place(np.array([100.0, 1100.0]), np.array([0.0, 1.0]))


@pytest.fixture
def bank():
    templates = np.zeros((1, 30, 2), np.float32)
    templates[0, 8:12] = 4.0
    return build_bank(templates, 10, np.r_[1.0, np.zeros(30)], np.array([0.1]))


@pytest.fixture
def moving(bank):
    """Twice as large as the mean in the first half of the way, half as large in the second."""
    return MovingBank(bank, PLACE, np.stack([2 * bank.weights, 0.5 * bank.weights]))


def test_the_bank_of_a_time(bank, moving):
    for sample, size in ((0, 2.0), (599, 2.0), (601.5, 0.5), (5000, 0.5)):
        np.testing.assert_allclose(moving.at(sample).energy, size**2 * bank.energy, rtol=1e-5)
        np.testing.assert_allclose(
            moving.at(sample).templates, size * bank.reweigh(bank.weights, [0.1]).templates
        )


def test_scales_and_energies_of_matches(bank, moving):
    zeros = np.zeros(2, np.float32)
    matches = Matches(
        np.array([500, 700]), zeros, np.zeros(2, np.int64), np.ones(2, np.float32), zeros, zeros
    )
    np.testing.assert_allclose(moving.rescale(matches).scale, [2.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(moving.energy_at(matches), bank.energy[0] * np.array([4, 0.25]), rtol=1e-5)
    np.testing.assert_allclose(moving.energy_over_time[:, 0], bank.energy[0] * np.array([4, 0.25]), rtol=1e-5)


def test_some_of_the_units(bank):
    weights = np.arange(1.0, 7.0)[:, None, None] * np.ones((6, *bank.weights.shape[1:]))
    mean = bank.reweigh(weights[:3], np.full(3, 0.1), np.log([0.5, 1.0, 4.0]))
    three = MovingBank(mean, PLACE, np.stack([weights[:3], weights[3:]]))
    some = three.select(np.array([True, False, True]))
    np.testing.assert_array_equal(some.at(0).weights, weights[[0, 2]])
    np.testing.assert_array_equal(some.at(5000).weights, weights[[3, 5]])
    np.testing.assert_array_equal(some.mean.weights, weights[[0, 2]])
    for bank_of_some in (some.mean, some.at(5000)):
        np.testing.assert_allclose(np.exp(bank_of_some.log_rate), [0.5, 4.0], rtol=1e-6)
