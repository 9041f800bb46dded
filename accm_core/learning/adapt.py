"""Adapt an encoder to a recording: train it until views of one spike agree no better."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA

from accm_core.learning.agreement import measure_agreement
from accm_core.learning.augment import Augmenter
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, one_thread, to_tensor
from accm_core.learning.loss import nt_xent
from accm_core.params import LearnParams

MIN_SPIKES = 100
"""Fewer peaks than this on a shank teach an encoder nothing."""
GRADIENT_LIMIT = 1.0
"""Gradients longer than this are shortened; keeps the first steps stable."""
WARM_UP_STEPS = 20
"""Over which the learning rate rises."""
AVERAGE_STEPS = 20
"""Steps over which weights are averaged (exponentially): what is used is steadier than what is trained."""
CHECK_STEPS, CHECK_SPIKES = 25, 1000
"""How often, and on how many spikes, the views' agreement is measured."""


@dataclass(frozen=True)
class Adaptation:
    """An encoder, and how training went.

    Attributes
    ----------
    encoder : SpikeEncoder
    num_steps : int
        After which it was at its best.
    agreement, agreement_before, agreement_pca : float
        Of views of spikes (nats): in this embedding, in that of the encoder it started from, and in as many
        principal components.
    """

    encoder: SpikeEncoder
    num_steps: int
    agreement: float
    agreement_before: float
    agreement_pca: float


class Trainer:
    """Takes steps of contrastive training, and keeps a running average of the weights.

    Parameters
    ----------
    encoder : SpikeEncoder
        Is trained in place.
    params : LearnParams
    total_steps : int, optional
        The learning rate falls to zero until then; stays when None.
    """

    def __init__(self, encoder: SpikeEncoder, params: LearnParams, total_steps: int | None = None) -> None:
        self.encoder = encoder
        self.average = copy.deepcopy(encoder)
        self.params = params
        self.total_steps = total_steps
        self.num_steps = 0
        self._optimizer = torch.optim.AdamW(encoder.parameters(), lr=params.learning_rate)

    def step(self, augmenter: Augmenter) -> None:
        """Draw spikes, and pull the two views of each together."""
        spikes = augmenter.draw_spikes(self.params.batch_size)
        views = torch.cat([augmenter.make_view(spikes), augmenter.make_view(spikes)])
        first, second = self.encoder(views).chunk(2)
        loss = nt_xent(first, second, self.params.temperature)
        self._optimizer.param_groups[0]["lr"] = self.params.learning_rate * self._share_of_rate()
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), GRADIENT_LIMIT)
        self._optimizer.step()
        self.num_steps += 1
        weight = max(1 / AVERAGE_STEPS, 1 / self.num_steps)
        with torch.no_grad():
            for kept, trained in zip(self.average.parameters(), self.encoder.parameters(), strict=True):
                kept.lerp_(trained, weight)

    def _share_of_rate(self) -> float:
        share = min(1.0, (self.num_steps + 1) / WARM_UP_STEPS)
        if self.total_steps is not None:
            share *= 0.5 * (1 + np.cos(np.pi * self.num_steps / self.total_steps))
        return share


def adapt_encoder(
    start: SpikeEncoder | None,
    waveforms: np.ndarray,
    noise: np.ndarray,
    params: LearnParams,
    sampling_frequency: float,
    *,
    device: torch.device,
    seed: int,
    on_step: Callable[[float], None] | None = None,
) -> Adaptation:
    """Train an encoder by contrast between the spikes of a recording.

    Parameters
    ----------
    start : SpikeEncoder or None
        Fitted to these snippets; from random weights when None. Is left as it is.
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Snippets, noise units.
    noise : ndarray of shape (n_noise, n_samples, n_channels), float32
        Snippets without spikes.
    params : LearnParams
    sampling_frequency : float
        Hz.
    device : torch.device
    seed : int
    on_step : callable, optional
        Called with the share of the steps that is done.

    Returns
    -------
    Adaptation
        With the encoder on ``device``: the best that was met, the start included.

    Notes
    -----
    Training ends after ``params.num_steps`` or, from a trained start, when views agree hardly better than
    ``CHECK_STEPS`` before (``params.min_gain``), but not before they agree better than in as many principal
    components. Agreement is measured on views that training does not see.

    References
    ----------
    Qian et al., An adaptive contrastive learning model for spike sorting, 2022, arXiv 2205.11914.
    Only its abstract was at hand: the loss is NT-Xent; the network, augmentations and when to stop are ours.
    """
    _, num_samples, num_channels = waveforms.shape
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = to_tensor(waveforms, device), to_tensor(noise, device)
        if start is None:
            config = EncoderConfig(num_channels, num_samples, params.num_dims)
            encoder = SpikeEncoder(config, float(waveforms.std())).to(device)
        else:
            encoder = copy.deepcopy(start).to(device)
        judge = _Judge(Augmenter(*tensors, params, sampling_frequency, _generator(device, seed + 1)))
        before, pca = judge.rate(encoder), judge.rate_pca(waveforms, params.num_dims)
        best, best_steps, highest = encoder, 0, before
        trainer = Trainer(copy.deepcopy(encoder), params, None if start is not None else params.num_steps)
        augmenter = Augmenter(*tensors, params, sampling_frequency, _generator(device, seed))
        for step in range(1, params.num_steps + 1):
            trainer.step(augmenter)
            if on_step is not None:
                on_step(step / params.num_steps)
            if step % CHECK_STEPS == 0 or step == params.num_steps:
                agreement = judge.rate(trainer.average)
                gain = agreement - highest
                if gain > 0:
                    best, best_steps, highest = copy.deepcopy(trainer.average), step, agreement
                if start is not None and gain < params.min_gain and highest > pca:
                    break
    if on_step is not None:
        on_step(1.0)
    return Adaptation(best, best_steps, highest, before, pca)


class _Judge:
    """Rates embeddings by how well they tell which two views are of one spike; the same views each time."""

    def __init__(self, augmenter: Augmenter) -> None:
        spikes = augmenter.draw_spikes(CHECK_SPIKES)
        self.views = augmenter.make_view(spikes), augmenter.make_view(spikes)

    def rate(self, encoder: SpikeEncoder) -> float:
        with torch.inference_mode():
            first, second = (encoder(view).cpu().numpy() for view in self.views)
        return measure_agreement(first, second)

    def rate_pca(self, waveforms: np.ndarray, num_dims: int) -> float:
        first, second = (view.cpu().numpy().transpose(0, 2, 1).reshape(len(view), -1) for view in self.views)
        flat = waveforms.reshape(len(waveforms), -1)
        components = PCA(min(num_dims, flat.shape[1]), svd_solver="covariance_eigh").fit(flat)
        return measure_agreement(components.transform(first), components.transform(second))


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)
