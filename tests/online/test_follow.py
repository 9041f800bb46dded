"""Templates move when their spikes do, and stay when they do not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from accm_core.online.follow import Follower, describe_bank

NUM_SPIKES = 400


@pytest.fixture
def shank(stream):
    return stream.plan().shanks[0]


@pytest.fixture
def follower(shank):
    with ThreadPoolExecutor(1) as pool:
        yield Follower(shank.bank, shank.preprocessor, pool)


def give_spikes(follower, shank, weights, rounds=10, seed=0):
    """Spikes of unit 0 around these weights, in noise of unit variance; the bank after some updates."""
    rng = np.random.default_rng(seed)
    taken = None
    for _ in range(rounds):
        points = weights + rng.normal(0, 1, (NUM_SPIKES // rounds, *weights.shape))
        # as the kernels give them: before the channels are whitened
        plain = points @ np.linalg.inv(shank.preprocessor.whitening)
        follower.add(np.zeros(len(points), dtype=np.int64), plain.reshape(len(points), -1))
        follower.begin()
        taken = follower.take()
    return taken


def test_a_template_follows_its_spikes(follower, shank):
    start = shank.bank.weights
    moved = start[0] + 0.2 * (start[1] - start[0])
    taken = give_spikes(follower, shank, moved)
    before, after = (np.linalg.norm(w - moved) for w in (start[0], taken.bank.weights[0]))
    assert after < 0.25 * before
    np.testing.assert_array_equal(taken.bank.weights[1:], start[1:])
    assert taken.bank.energy[0] == pytest.approx((moved**2).sum(), rel=0.1)


def test_a_template_stays_when_its_spikes_do(follower, shank):
    taken = give_spikes(follower, shank, shank.bank.weights[0])
    np.testing.assert_array_equal(taken.bank.weights, shank.bank.weights)


def test_there_is_no_bank_before_one_was_begun(follower):
    assert follower.take() is None


def test_heights_are_in_microvolts(stream, shank):
    described = describe_bank(shank.bank, shank.preprocessor)
    np.testing.assert_array_equal(described.main_channel, stream.truth.templates.main_channel)
    wanted = stream.units.templates.min(axis=(1, 2))
    np.testing.assert_allclose(described.height_uV, wanted, rtol=0.1)
