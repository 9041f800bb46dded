"""Pretraining on planted shapes: it teaches something that holds for recordings it has not seen."""

import numpy as np
import torch

from accm_core.learning.adapt import adapt_encoder
from accm_core.learning.encoder import SnippetWindow, fit_encoder
from accm_core.learning.lessons import NUM_CHANNELS, WINDOW, Lesson, pretrain_encoder
from accm_core.params import LearnParams

CPU = torch.device("cpu")
PARAMS = LearnParams(batch_size=64)


def make_lesson(seed, num_channels=4, window=WINDOW, num_spikes=400):
    """Six shapes at random places in noise."""
    rng = np.random.default_rng(seed)
    time = (np.arange(window.num_samples) - window.num_before)[:, None] / window.sampling_frequency * 1e3
    place = np.arange(num_channels)
    shapes = np.stack(
        [
            -rng.uniform(8, 16)
            * np.exp(-((time / rng.uniform(0.1, 0.4)) ** 2))
            * np.exp(-((place - rng.uniform(0, num_channels)) ** 2) / 3)
            for _ in range(6)
        ]
    )
    waveforms = shapes[rng.integers(0, 6, num_spikes)] + rng.normal(
        0, 1, (num_spikes, window.num_samples, num_channels)
    )
    noise = rng.normal(0, 1, (200, window.num_samples, num_channels))
    return Lesson(waveforms.astype(np.float32), noise.astype(np.float32), window)


def pretrain(recordings, steps=30, seed=0, **options):
    return pretrain_encoder(
        recordings, len(recordings), PARAMS, steps_per_recording=steps, device=CPU, seed=seed, **options
    )


def rate(encoder, lesson):
    """Agreement of views in the encoder as it is, and in principal components."""
    num_channels = lesson.waveforms.shape[2]
    start = fit_encoder(encoder, WINDOW, lesson.window, num_channels, PARAMS.num_dims)
    result = adapt_encoder(
        start,
        lesson.waveforms,
        lesson.noise,
        LearnParams(num_steps=0),
        lesson.window.sampling_frequency,
        device=CPU,
        seed=0,
    )
    return result.agreement, result.agreement_pca


def test_what_is_learned_holds_for_another_recording():
    untrained = pretrain([[make_lesson(0)]], steps=1)
    trained = pretrain([[make_lesson(seed)] for seed in range(6)])
    unseen = make_lesson(100)
    assert rate(trained, unseen)[0] > rate(untrained, unseen)[0] + 0.1


def test_any_number_of_channels_rate_and_shanks():
    slow = SnippetWindow(14, 40, 20_000.0)
    encoder = pretrain([[make_lesson(0, 1), make_lesson(1, 12)], [], [make_lesson(2, 4, slow)]], steps=2)
    assert (encoder.config.num_channels, encoder.config.num_samples) == (NUM_CHANNELS, WINDOW.num_samples)
    for lesson in (make_lesson(3, 1), make_lesson(4, 12), make_lesson(5, 4, slow)):
        assert np.isfinite(rate(encoder, lesson)).all()


def test_same_seed_same_weights_and_progress_to_the_end():
    shares = []
    first = pretrain([[make_lesson(0)], [make_lesson(1)]], steps=3, on_step=shares.append)
    second, other = (pretrain([[make_lesson(0)], [make_lesson(1)]], steps=3, seed=s) for s in (0, 1))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.projection.weight, other.projection.weight)
    np.testing.assert_allclose(shares, np.arange(1, 7) / 6)
