"""The encoder's shapes, and embedding in batches."""

import numpy as np
import pytest
import torch

from accm_core.learning import encoder as module
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, embed_snippets, one_thread, to_tensor

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
