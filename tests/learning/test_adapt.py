"""Training on planted shapes: it learns, it is repeatable, it leaves nothing behind."""

import numpy as np
import pytest
import torch

from accm_core.learning import adapt as module
from accm_core.learning.adapt import adapt_encoder
from accm_core.learning.augment import Augmenter
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, embed_snippets, to_tensor
from accm_core.learning.loss import nt_xent
from accm_core.params import LearnParams

CPU = torch.device("cpu")
FS = 30_000.0
SHORT = LearnParams(num_steps=40, batch_size=64)


def make_spikes(num_spikes=600, num_channels=4, seed=0):
    """Three shapes in noise, and the noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(-21, 39)[:, None] / 30  # ms
    shapes = np.stack(
        [
            -12 * np.exp(-((time / width) ** 2)) * np.exp(-((np.arange(num_channels) - place) ** 2) / 3)
            for width, place in ((0.15, 0), (0.15, 2), (0.3, 1))
        ]
    )
    labels = rng.integers(0, 3, num_spikes)
    waveforms = shapes[labels] + rng.normal(0, 1, (num_spikes, 60, num_channels))
    noise = rng.normal(0, 1, (300, 60, num_channels))
    return waveforms.astype(np.float32), noise.astype(np.float32), labels


def adapt(waveforms, noise, params=SHORT, seed=0, start=None, **options):
    return adapt_encoder(start, waveforms, noise, params, FS, device=CPU, seed=seed, **options)


def train(*arguments, **options):
    return adapt(*arguments, **options).encoder


def contrast(encoder, waveforms, noise, params):
    """The loss on views that the training has not seen."""
    generator = torch.Generator().manual_seed(999)
    augmenter = Augmenter(to_tensor(waveforms, CPU), to_tensor(noise, CPU), params, FS, generator)
    with torch.inference_mode():
        spikes = augmenter.draw_spikes(256)
        views = [encoder(augmenter.make_view(spikes)) for _ in range(2)]
        return float(nt_xent(*views, params.temperature))


def test_training_lowers_the_loss_and_tells_the_shapes_apart():
    waveforms, noise, labels = make_spikes()
    encoder = train(waveforms, noise)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = SpikeEncoder(EncoderConfig(4, 60, SHORT.num_dims), float(waveforms.std()))
    before, after = (contrast(e, waveforms, noise, SHORT) for e in (untrained, encoder))
    assert after < before - 0.5
    embedding = embed_snippets(encoder, waveforms, CPU)
    centres = np.stack([embedding[labels == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(embedding[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == labels).mean() > 0.99
    shuffled = np.random.default_rng(0).permutation(labels)
    assert (nearest == shuffled).mean() < 0.5


def weights(encoder):
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def test_a_trained_start_is_left_alone_and_ends_when_little_is_gained():
    waveforms, noise, _ = make_spikes()
    start = train(waveforms, noise, LearnParams(num_steps=100, batch_size=64))
    before, shares = weights(start), []
    params = LearnParams(num_steps=100, batch_size=64, min_gain=10)
    result = adapt(waveforms, noise, params, 1, start=start, on_step=shares.append)
    assert torch.equal(weights(start), before)
    assert len(shares) == module.CHECK_STEPS + 1
    assert shares[-1] == 1.0
    assert result.agreement >= result.agreement_before


def test_training_that_does_harm_gives_back_the_start():
    waveforms, noise, _ = make_spikes()
    start = train(waveforms, noise, LearnParams(num_steps=100, batch_size=64))
    harm = LearnParams(num_steps=30, batch_size=64, learning_rate=1.0)
    result = adapt(waveforms, noise, harm, start=start)
    assert result.num_steps == 0
    assert torch.equal(weights(result.encoder), weights(start))
    assert result.agreement == result.agreement_before


def test_no_steps_give_the_start():
    waveforms, noise, _ = make_spikes(100)
    start = train(waveforms, noise)
    assert torch.equal(
        weights(train(waveforms, noise, LearnParams(num_steps=0), start=start)), weights(start)
    )


@pytest.mark.parametrize(("pca", "num_steps"), [(-np.inf, 25), (np.inf, 75)])
def test_training_goes_on_while_principal_components_agree_better(monkeypatch, pca, num_steps):
    waveforms, noise, _ = make_spikes(200)
    start, shares = train(waveforms, noise, LearnParams(num_steps=10, batch_size=32)), []
    monkeypatch.setattr(module._Judge, "rate_pca", lambda *_: pca)
    params = LearnParams(num_steps=75, batch_size=32, min_gain=10)
    adapt(waveforms, noise, params, start=start, on_step=shares.append)
    assert len(shares) == num_steps + 1


def test_same_seed_same_weights_and_another_seed_others():
    waveforms, noise, _ = make_spikes(200)
    params = LearnParams(num_steps=10, batch_size=32)
    first, second, other = (weights(train(waveforms, noise, params, seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_number_of_threads_changes_no_weight():
    waveforms, noise, _ = make_spikes(200)
    params = LearnParams(num_steps=10, batch_size=256)
    found, before = [], torch.get_num_threads()
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            found.append(weights(train(waveforms, noise, params)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_the_global_generator_and_the_spikes_are_left_alone():
    waveforms, noise, _ = make_spikes(100)
    before = waveforms.copy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        state = torch.random.get_rng_state()
        train(waveforms, noise, LearnParams(num_steps=10, batch_size=16))
        assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(waveforms, before)


def test_progress_rises_to_one():
    waveforms, noise, _ = make_spikes(100)
    shares = []
    train(waveforms, noise, LearnParams(num_steps=10, batch_size=16), on_step=shares.append)
    np.testing.assert_allclose(shares, [*np.arange(1, 11) / 10, 1.0])


@pytest.mark.parametrize("num_channels", [1, 16])
def test_fewer_spikes_than_a_batch(num_channels):
    waveforms, noise, _ = make_spikes(20, num_channels)
    encoder = train(waveforms, noise[:1], LearnParams(num_steps=10, batch_size=64, num_dims=3))
    embedding = embed_snippets(encoder, waveforms, CPU)
    assert embedding.shape == (20, 3)
    assert np.isfinite(embedding).all()
