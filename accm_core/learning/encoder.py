"""The convolutional encoder: snippets to embeddings."""

import numpy as np
import torch
from torch import nn

EMBED_BATCH = 4096
"""Snippets embedded at once."""


class SpikeEncoder(nn.Module):
    """Three convolutions over time, a linear layer, and a projection head of ``num_dims`` outputs.

    The contrastive loss sees the head's output at unit length; what is clustered is the same output
    at its own length, which keeps how far a spike stands out of the noise.

    Parameters
    ----------
    num_channels, num_samples : int
        Of a snippet.
    num_dims : int
        Of the embedding.
    scale : float
        Snippets are divided by this, so that the network sees values of about one.
    width : int
        Features of the first convolution; the others have twice as many.
    """

    def __init__(
        self, num_channels: int, num_samples: int, num_dims: int, scale: float, width: int = 32
    ) -> None:
        super().__init__()
        self.scale = scale
        self.convolutions = nn.Sequential(
            nn.Conv1d(num_channels, width, 7, padding=3),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.Conv1d(width, 2 * width, 5, padding=2),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.Conv1d(2 * width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
        )
        self.representation = nn.Sequential(nn.Linear(2 * width * (num_samples // 8), 4 * width), nn.GELU())
        self.projection = nn.Linear(4 * width, num_dims)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Embed snippets of shape (n, n_channels, n_samples), noise units; returns (n, n_dims)."""
        embedding: torch.Tensor = self.projection(self.representation(self.convolutions(waveforms / self.scale)))
        return embedding


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
    encoder.eval()
    embedding = np.zeros((len(waveforms), encoder.projection.out_features), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(waveforms), EMBED_BATCH):
            batch = to_tensor(waveforms[start : start + EMBED_BATCH], device)
            embedding[start : start + EMBED_BATCH] = encoder(batch).cpu().numpy()
    return embedding


def to_tensor(waveforms: np.ndarray, device: torch.device) -> torch.Tensor:
    """Snippets (n, n_samples, n_channels) as a tensor (n, n_channels, n_samples) on the device."""
    return torch.from_numpy(np.ascontiguousarray(waveforms.transpose(0, 2, 1))).to(device)
