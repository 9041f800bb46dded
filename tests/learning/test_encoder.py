"""The encoder's shapes, and embedding in batches."""

import numpy as np
import pytest
import torch

from accm_core.learning import encoder as module
from accm_core.learning.encoder import (
    EncoderConfig,
    SnippetWindow,
    SpikeEncoder,
    embed_snippets,
    fit_encoder,
    one_thread,
    to_tensor,
)

CPU = torch.device("cpu")


def make_encoder(num_channels=4, num_samples=60, num_dims=8, scale=2.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SpikeEncoder(EncoderConfig(num_channels, num_samples, num_dims), scale)


def make_snippets(num_spikes=50, num_samples=60, num_channels=4):
    return np.random.default_rng(0).normal(0, 2, (num_spikes, num_samples, num_channels)).astype(np.float32)


@pytest.mark.parametrize("num_samples", [8, 20, 33, 60, 120])
@pytest.mark.parametrize(("num_channels", "num_dims"), [(1, 2), (10, 8), (64, 64)])
def test_any_shape_of_snippet(num_channels, num_samples, num_dims):
    embedding = make_encoder(num_channels, num_samples, num_dims)(torch.zeros(3, num_channels, num_samples))
    assert embedding.shape == (3, num_dims)


def test_to_tensor_swaps_time_and_channels():
    snippets = make_snippets()
    tensor = to_tensor(snippets, CPU)
    assert tensor.shape == (50, 4, 60)
    np.testing.assert_array_equal(tensor[7, 2].numpy(), snippets[7, :, 2])


def test_snippets_are_seen_at_the_scale_given():
    snippets, encoder = make_snippets(), make_encoder(scale=2.0)
    there = embed_snippets(encoder, snippets, CPU)
    encoder.scale.fill_(20.0)
    np.testing.assert_allclose(embed_snippets(encoder, 10 * snippets, CPU), there, atol=1e-5)


def test_embedding_is_the_encoders_output_row_for_row(monkeypatch):
    snippets, encoder = make_snippets(), make_encoder()
    whole = embed_snippets(encoder, snippets, CPU)
    assert whole.dtype == np.float32
    with torch.inference_mode():
        np.testing.assert_allclose(whole, encoder(to_tensor(snippets, CPU)).numpy(), atol=1e-6)
    monkeypatch.setattr(module, "EMBED_BATCH", 7)
    np.testing.assert_allclose(embed_snippets(encoder, snippets, CPU), whole, atol=1e-5)


def test_embedding_keeps_the_length():
    """What is clustered is not normalised."""
    lengths = np.linalg.norm(embed_snippets(make_encoder(), make_snippets(), CPU), axis=1)
    assert lengths.std() > 0.01 * lengths.mean()


def test_no_snippets():
    assert embed_snippets(make_encoder(), make_snippets(0), CPU).shape == (0, 8)


def test_one_thread_gives_the_threads_back_also_after_an_error():
    def fail():
        with one_thread():
            raise ValueError(f"inside: {torch.get_num_threads()}")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="inside: 1"):
            fail()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


WINDOW = SnippetWindow(21, 60, 30_000.0)


def test_fitting_to_the_same_snippets_changes_nothing():
    snippets, encoder = make_snippets(), make_encoder()
    fitted = fit_encoder(encoder, WINDOW, WINDOW, 4, 8)
    np.testing.assert_array_equal(
        embed_snippets(fitted, snippets, CPU), embed_snippets(encoder, snippets, CPU)
    )
    assert fitted.resampling is None


@pytest.mark.parametrize(("fewer", "more"), [(4, 10), (10, 4)])
def test_silent_channels_make_no_difference(fewer, more):
    """Channels that are missing count as silent; channels that are too many count for nothing."""
    few, many = make_snippets(num_channels=min(fewer, more)), make_snippets(num_channels=max(fewer, more))
    many[:, :, : few.shape[2]] = few
    encoder = make_encoder(num_channels=fewer)
    if fewer > more:
        many[:, :, more:] = 0
    own, other = (few, many) if fewer < more else (many, few)
    fitted = fit_encoder(encoder, WINDOW, WINDOW, more, 8)
    np.testing.assert_allclose(
        embed_snippets(fitted, other, CPU), embed_snippets(encoder, own, CPU), atol=1e-5
    )


@pytest.mark.parametrize("window", [SnippetWindow(14, 40, 20_000.0), SnippetWindow(40, 100, 40_000.0)])
def test_snippets_of_another_rate_and_window_embed_alike(window):
    def sample(of):
        time = (np.arange(of.num_samples) - of.num_before) / of.sampling_frequency * 1e3
        shapes = [-8 * np.exp(-(((time - 0.02 * k) / 0.2) ** 2)) for k in range(5)]
        return np.repeat(np.stack(shapes)[:, :, None], 4, axis=2).astype(np.float32)

    encoder = make_encoder()
    fitted = fit_encoder(encoder, WINDOW, window, 4, 8)
    there, here = embed_snippets(fitted, sample(window), CPU), embed_snippets(encoder, sample(WINDOW), CPU)
    np.testing.assert_allclose(there, here, atol=0.02 * np.abs(here).max())


def test_what_lies_outside_the_window_is_silent():
    weights = SnippetWindow(10, 20, 30_000.0).resample_to(WINDOW)
    assert weights.shape == (20, 60)
    assert not weights[:, :11].any()
    assert not weights[:, 31:].any()
    np.testing.assert_allclose(weights[:, 11:31], np.eye(20), atol=1e-6)


def test_another_size_of_embedding_keeps_what_comes_before_the_projection():
    snippets, encoder = to_tensor(make_snippets(), CPU), make_encoder()
    fitted = fit_encoder(encoder, WINDOW, WINDOW, 4, 3)
    assert fitted(snippets).shape == (50, 3)
    torch.testing.assert_close(fitted.represent(snippets), encoder.represent(snippets))
