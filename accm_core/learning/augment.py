"""Augmented views of a spike: what may change about it while its neuron stays the same."""

import torch

from accm_core.params import LearnParams, to_samples


class Augmenter:
    """Draws views: amplitude, collision with another spike, jitter, channel dropout, the recording's noise.

    The noise is what teaches the encoder its metric: snippets of the recording itself, at full
    strength, between spikes, so that its covariance over time and channels is the true one.

    Parameters
    ----------
    waveforms : Tensor of shape (n_spikes, n_channels, n_samples)
        Spikes of the recording, noise units: what is augmented, and what collides with it.
    noise : Tensor of shape (n_noise, n_channels, n_samples)
        Snippets of the recording without spikes.
    params : LearnParams
        Strengths.
    sampling_frequency : float
        Hz.
    generator : torch.Generator
        On the device of the tensors.
    """

    def __init__(
        self,
        waveforms: torch.Tensor,
        noise: torch.Tensor,
        params: LearnParams,
        sampling_frequency: float,
        generator: torch.Generator,
    ) -> None:
        self.waveforms = waveforms
        self.noise = noise
        self.params = params
        self.generator = generator
        self.min_shift = to_samples(params.collision_min_ms, sampling_frequency)
        self.max_shift = max(self.min_shift, to_samples(params.collision_max_ms, sampling_frequency))
        self.max_jitter = round(params.jitter_ms * 1e-3 * sampling_frequency)

    def draw_spikes(self, num_spikes: int) -> torch.Tensor:
        """Spikes drawn at random, (n, n_channels, n_samples)."""
        return self.waveforms[self._integers(0, len(self.waveforms), num_spikes)]

    def make_view(self, spikes: torch.Tensor) -> torch.Tensor:
        """One view of each spike, same shape."""
        num_spikes = len(spikes)
        scale = 1.0 + self.params.amplitude_std * self._normal(num_spikes)
        views = spikes * scale[:, None, None]
        hit = self._uniform(num_spikes) < self.params.collision_share
        views[hit] += self._colliding(int(hit.sum()))
        if self.max_jitter > 0:
            views = shift(views, self._integers(-self.max_jitter, self.max_jitter + 1, num_spikes))
        if self.params.channel_dropout > 0:
            kept = self._uniform(num_spikes * views.shape[1]) >= self.params.channel_dropout
            views = views * kept.view(num_spikes, -1, 1)
        return views + self.params.noise_scale * self.noise[self._integers(0, len(self.noise), num_spikes)]

    def _colliding(self, num_spikes: int) -> torch.Tensor:
        """Other spikes, early or late enough that the first one's peak is left alone."""
        delay = self._integers(self.min_shift, self.max_shift + 1, num_spikes)
        side = 2 * self._integers(0, 2, num_spikes) - 1
        return shift(self.draw_spikes(num_spikes), delay * side)

    def _integers(self, low: int, high: int, size: int) -> torch.Tensor:
        return torch.randint(low, high, (size,), generator=self.generator, device=self.waveforms.device)

    def _uniform(self, size: int) -> torch.Tensor:
        return torch.rand(size, generator=self.generator, device=self.waveforms.device)

    def _normal(self, size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.generator, device=self.waveforms.device)


def shift(waveforms: torch.Tensor, delays: torch.Tensor) -> torch.Tensor:
    """Delay each snippet by its own number of samples; what moves in is zero.

    Parameters
    ----------
    waveforms : Tensor of shape (n, n_channels, n_samples)
    delays : Tensor of shape (n,), int64
        Positive moves later.
    """
    num_samples = waveforms.shape[2]
    source = torch.arange(num_samples, device=waveforms.device)[None] - delays[:, None]
    inside = (source >= 0) & (source < num_samples)
    index = source.clamp(0, num_samples - 1)[:, None].expand(-1, waveforms.shape[1], -1)
    return waveforms.gather(2, index) * inside[:, None]
