"""Two views of each spike in the embedding."""

import numpy as np
import pytest
import torch

from accm_core.learning import views
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, embed_snippets
from accm_core.learning.views import embed_views
from accm_core.params import LearnParams

CPU = torch.device("cpu")
FS = 30_000.0
LEARN = LearnParams()
STILL = LearnParams(amplitude_std=0, collision_share=0, jitter_ms=0, channel_dropout=0, noise_scale=0)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SpikeEncoder(EncoderConfig(4, 60, 8), 1.0)


def make_waveforms(num_spikes, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (num_spikes, 60, 4)).astype(np.float32)


def embed(encoder, waveforms, params=LEARN, seed=0):
    return embed_views(encoder, waveforms, make_waveforms(50, 9), params, FS, device=CPU, seed=seed)


def test_without_augmentation_views_are_the_spikes_themselves(encoder):
    waveforms = make_waveforms(70)
    for view in embed(encoder, waveforms, STILL):
        np.testing.assert_allclose(view, embed_snippets(encoder, waveforms, CPU), atol=1e-5)


def test_views_differ_but_are_of_their_spike(encoder):
    first, second = embed(encoder, 8 * make_waveforms(200))
    assert first.shape == (200, 8)
    assert first.dtype == np.float32
    own = np.linalg.norm(first - second, axis=1)
    others = np.linalg.norm(first - second[::-1], axis=1)
    assert own.min() > 0
    assert np.median(own) < 0.8 * np.median(others)


def test_batches_leave_no_spike_out(encoder, monkeypatch):
    monkeypatch.setattr(views, "VIEW_BATCH", 32)
    waveforms = make_waveforms(70)
    for view in embed(encoder, waveforms, STILL):
        np.testing.assert_allclose(view, embed_snippets(encoder, waveforms, CPU), atol=1e-5)


def test_the_seed_decides(encoder):
    waveforms = make_waveforms(40)
    np.testing.assert_array_equal(embed(encoder, waveforms), embed(encoder, waveforms))
    assert (embed(encoder, waveforms, seed=1)[0] != embed(encoder, waveforms)[0]).any()
