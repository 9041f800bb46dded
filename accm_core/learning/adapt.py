"""Train the encoder on the recording itself, so that views of one spike agree."""

import copy
from collections.abc import Callable

import numpy as np
import torch

from accm_core.learning.augment import Augmenter
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, one_thread, to_tensor
from accm_core.learning.loss import nt_xent
from accm_core.params import LearnParams

GRADIENT_LIMIT = 1.0
"""Gradients longer than this are shortened; keeps the first steps of the one-cycle schedule stable."""


def adapt_encoder(
    waveforms: np.ndarray,
    noise: np.ndarray,
    params: LearnParams,
    sampling_frequency: float,
    *,
    device: torch.device,
    seed: int,
    start: SpikeEncoder | None = None,
    on_step: Callable[[float], None] | None = None,
) -> SpikeEncoder:
    """Train an encoder by contrast between spikes.

    Parameters
    ----------
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Snippets, noise units.
    noise : ndarray of shape (n_noise, n_samples, n_channels), float32
        Snippets without spikes.
    params : LearnParams
    sampling_frequency : float
        Hz.
    device : torch.device
    seed : int
    start : SpikeEncoder, optional
        Left as it is; from scratch when None, or when it is of another shape than this recording's.
    on_step : callable, optional
        Called with the share of the steps that is done.

    Returns
    -------
    SpikeEncoder
        On ``device``.

    References
    ----------
    Qian et al., An adaptive contrastive learning model for spike sorting, 2022, arXiv 2205.11914.
    Only its abstract was at hand: the loss is NT-Xent, the network and augmentations are ours.
    """
    _, num_samples, num_channels = waveforms.shape
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = EncoderConfig(num_channels, num_samples, params.num_dims)
        if start is not None and start.config == config:
            encoder = copy.deepcopy(start).to(device)
        else:
            encoder = SpikeEncoder(config, float(waveforms.std())).to(device)
        generator = torch.Generator(device).manual_seed(seed)
        augmenter = Augmenter(
            to_tensor(waveforms, device), to_tensor(noise, device), params, sampling_frequency, generator
        )
        _train(encoder, augmenter, params, on_step)
    return encoder


def _train(
    encoder: SpikeEncoder,
    augmenter: Augmenter,
    params: LearnParams,
    on_step: Callable[[float], None] | None,
) -> None:
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=params.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=params.num_steps
    )
    for step in range(params.num_steps):
        spikes = augmenter.draw_spikes(params.batch_size)
        views = torch.cat([augmenter.make_view(spikes), augmenter.make_view(spikes)])
        first, second = encoder(views).chunk(2)
        loss = nt_xent(first, second, params.temperature)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), GRADIENT_LIMIT)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step((step + 1) / params.num_steps)
