"""Two views of each spike in the embedding: what of a spike survives noise, collisions and jitter."""

import numpy as np
import torch

from accm_core.learning.augment import Augmenter
from accm_core.learning.encoder import SpikeEncoder, one_thread, to_tensor
from accm_core.params import LearnParams

VIEW_BATCH = 2000
"""Snippets of which views are made at once."""


def embed_views(
    encoder: SpikeEncoder,
    waveforms: np.ndarray,
    noise: np.ndarray,
    params: LearnParams,
    sampling_frequency: float,
    *,
    device: torch.device,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed two views of each snippet.

    Parameters
    ----------
    encoder : SpikeEncoder
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Noise units.
    noise : ndarray of shape (n_noise, n_samples, n_channels), float32
        Snippets without spikes.
    params : LearnParams
        Strengths of the augmentation, as for training.
    sampling_frequency : float
        Hz.
    device : torch.device
    seed : int

    Returns
    -------
    first, second : ndarray of shape (n_spikes, n_dims), float32
    """
    views = np.zeros((2, len(waveforms), encoder.config.num_dims), dtype=np.float32)
    generator = torch.Generator(device).manual_seed(seed)
    encoder.eval()
    with torch.inference_mode(), one_thread():
        spikes = to_tensor(waveforms, device)
        augmenter = Augmenter(spikes, to_tensor(noise, device), params, sampling_frequency, generator)
        for start in range(0, len(waveforms), VIEW_BATCH):
            batch = slice(start, start + VIEW_BATCH)
            for view in views:
                view[batch] = encoder(augmenter.make_view(spikes[batch])).cpu().numpy()
    return views[0], views[1]
