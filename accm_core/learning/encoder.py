"""The convolutional encoder: snippets to embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import nn

EMBED_BATCH = 4096
"""Snippets embedded at once."""


@dataclass(frozen=True)
class EncoderConfig:
    """What decides the shapes of an encoder's weights.

    Parameters
    ----------
    num_channels, num_samples : int
        Of a snippet.
    num_dims : int
        Of the embedding.
    width : int
        Features of the first convolution; the others have twice as many.
    """

    num_channels: int
    num_samples: int
    num_dims: int
    width: int = 32

    @property
    def num_features(self) -> int:
        """Of the representation, which the projection head turns into the embedding."""
        return 4 * self.width


class SpikeEncoder(nn.Module):
    """Three strided convolutions over time, a linear layer, and a projection head of ``num_dims`` outputs.

    The contrastive loss sees the head's output at unit length; what is clustered is the same output
    at its own length, which keeps how far a spike stands out of the noise.

    Parameters
    ----------
    config : EncoderConfig
    scale : float
        Snippets are divided by this, so that the network sees values of about one.
    resampling : Tensor of shape (n_samples, num_samples), optional
        Turns a recording's snippets into those the network was made for; not part of its weights.
    """

    scale: torch.Tensor
    resampling: torch.Tensor | None

    def __init__(self, config: EncoderConfig, scale: float, resampling: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("resampling", resampling, persistent=False)
        width = config.width
        self.convolutions = nn.Sequential(
            nn.Conv1d(config.num_channels, width, 8, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(width, 2 * width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            num_flat = self.convolutions(torch.zeros(1, config.num_channels, config.num_samples)).shape[1]
        self.representation = nn.Sequential(nn.Linear(num_flat, config.num_features), nn.ReLU())
        self.projection = nn.Linear(config.num_features, config.num_dims)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Embed snippets of shape (n, n_channels, n_samples), noise units; returns (n, n_dims)."""
        embedding: torch.Tensor = self.projection(self.represent(waveforms))
        return embedding

    def represent(self, waveforms: torch.Tensor) -> torch.Tensor:
        """What the projection and the units' heads act on, (n, n_features)."""
        if self.resampling is not None:
            waveforms = waveforms @ self.resampling
        features: torch.Tensor = self.representation(self.convolutions(waveforms / self.scale))
        return features


@dataclass(frozen=True)
class SnippetWindow:
    """When a snippet is sampled.

    Attributes
    ----------
    num_before, num_samples : int
        Samples before the peak, and in all.
    sampling_frequency : float
        Hz.
    """

    num_before: int
    num_samples: int
    sampling_frequency: float

    def resample_to(self, other: "SnippetWindow") -> np.ndarray:
        """Weights (num_samples, num_samples of the other) that interpolate snippets; nothing lies outside."""
        times = (np.arange(other.num_samples) - other.num_before) / other.sampling_frequency
        places = self.num_before + times * self.sampling_frequency
        weights = CubicSpline(np.arange(self.num_samples), np.eye(self.num_samples))(places).T
        inside = (places > -0.5) & (places < self.num_samples - 0.5)
        return (weights * inside).astype(np.float32)


def fit_encoder(
    encoder: SpikeEncoder, trained: SnippetWindow, window: SnippetWindow, num_channels: int, num_dims: int
) -> SpikeEncoder:
    """Copy an encoder for snippets of another window and number of channels, and an embedding of other size.

    Channels come nearest first. Fewer than it was trained on do as well as the same with silent ones added;
    those beyond count for nothing until training teaches it otherwise. An embedding of another size starts
    from a random projection.
    """
    resampling = None if trained == window else torch.from_numpy(window.resample_to(trained))
    config = replace(encoder.config, num_channels=num_channels, num_dims=num_dims)
    fitted = SpikeEncoder(config, 1.0, resampling)
    state = dict(encoder.state_dict())
    first = state["convolutions.0.weight"]
    filters = first.new_zeros(first.shape[0], num_channels, first.shape[2])
    shared = min(num_channels, first.shape[1])
    filters[:, :shared] = first[:, :shared]
    state["convolutions.0.weight"] = filters
    if num_dims != encoder.config.num_dims:
        state = {name: value for name, value in state.items() if not name.startswith("projection.")}
    fitted.load_state_dict(state, strict=False)
    return fitted


def embed_snippets(encoder: SpikeEncoder, waveforms: np.ndarray, device: torch.device) -> np.ndarray:
    """Embed snippets in batches.

    Parameters
    ----------
    encoder : SpikeEncoder
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Noise units.
    device : torch.device

    Returns
    -------
    ndarray of shape (n_spikes, n_dims), float32
    """
    embedding = np.zeros((len(waveforms), encoder.config.num_dims), dtype=np.float32)
    encoder.eval()
    with torch.inference_mode(), one_thread():
        for start in range(0, len(waveforms), EMBED_BATCH):
            batch = to_tensor(waveforms[start : start + EMBED_BATCH], device)
            embedding[start : start + EMBED_BATCH] = encoder(batch).cpu().numpy()
    return embedding


def to_tensor(waveforms: np.ndarray, device: torch.device) -> torch.Tensor:
    """Snippets (n, n_samples, n_channels) as a tensor (n, n_channels, n_samples) on the device."""
    return torch.from_numpy(np.ascontiguousarray(waveforms.transpose(0, 2, 1))).to(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one CPU thread, so that its sums do not depend on the number of cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
