"""Train an encoder on many recordings, so that adapting it to one takes seconds."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from accm_core.learning.adapt import Trainer
from accm_core.learning.augment import Augmenter
from accm_core.learning.checkpoint import Model, read_model
from accm_core.learning.encoder import EncoderConfig, SnippetWindow, SpikeEncoder, one_thread, to_tensor
from accm_core.params import LearnParams, SnippetParams, to_samples

SHIPPED = Path(__file__).parent / "weights" / "pretrained.safetensors"
"""The weights that come with the package; their card is beside them."""
WINDOW = SnippetWindow(
    to_samples(SnippetParams().ms_before, 30_000.0),
    to_samples(SnippetParams().ms_before, 30_000.0) + to_samples(SnippetParams().ms_after, 30_000.0),
    30_000.0,
)
"""Of the snippets that pretrained encoders take; those of other rates are resampled."""
NUM_CHANNELS = SnippetParams().num_channels
"""Of the same."""
INPUT_SCALE = 3.0
"""Standard deviation of snippets around peaks over recordings of all kinds, noise units."""
POOL_SIZE = 64
"""Lessons that are drawn from at a time; each new one pushes the oldest out."""


@dataclass(frozen=True)
class Lesson:
    """Snippets of one recording.

    Attributes
    ----------
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Noise units.
    noise : ndarray of shape (n_noise, n_samples, n_channels), float32
        Snippets without spikes.
    window : SnippetWindow
    """

    waveforms: np.ndarray
    noise: np.ndarray
    window: SnippetWindow


def pretrain_encoder(
    recordings: Iterable[list[Lesson]],
    num_recordings: int,
    params: LearnParams,
    *,
    steps_per_recording: int,
    device: torch.device,
    seed: int,
    on_step: Callable[[float], None] | None = None,
) -> SpikeEncoder:
    """Train an encoder by contrast on one recording after another.

    Parameters
    ----------
    recordings : iterable of list of Lesson
        A list a recording, with a lesson a shank; made while it is gone through, so that they may be endless
        in kind.
    num_recordings : int
        How many there are.
    params : LearnParams
        Of the views and the loss; ``num_steps`` does not count.
    steps_per_recording : int
        After each new recording, on lessons drawn from the latest ``POOL_SIZE``.
    device : torch.device
    seed : int
    on_step : callable, optional
        Called with the share of the steps that is done.

    Returns
    -------
    SpikeEncoder
        For ``NUM_CHANNELS`` channels and ``WINDOW``.

    References
    ----------
    Qian et al., An adaptive contrastive learning model for spike sorting, 2022, arXiv 2205.11914.
    """
    total = num_recordings * steps_per_recording
    pool: deque[Augmenter] = deque(maxlen=POOL_SIZE)
    rng = np.random.default_rng(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = EncoderConfig(NUM_CHANNELS, WINDOW.num_samples, params.num_dims)
        encoder = SpikeEncoder(config, INPUT_SCALE).to(device)
        generator = torch.Generator(device).manual_seed(seed)
        trainer = Trainer(encoder, params, total)
        for number, lessons in enumerate(recordings):
            pool.extend(_make_augmenter(lesson, params, generator) for lesson in lessons)
            for step in range(steps_per_recording if pool else 0):
                trainer.step(pool[int(rng.integers(len(pool)))])
                if on_step is not None:
                    on_step((number * steps_per_recording + step + 1) / total)
    return trainer.average


@cache
def read_pretrained() -> Model:
    """The model that comes with the package."""
    return read_model(SHIPPED)


def _make_augmenter(lesson: Lesson, params: LearnParams, generator: torch.Generator) -> Augmenter:
    """Draws views as the encoder takes them: resampled, silent channels added."""

    def fit(waveforms: np.ndarray) -> torch.Tensor:
        tensor = to_tensor(waveforms[:, :, :NUM_CHANNELS], generator.device)
        if lesson.window != WINDOW:
            tensor = tensor @ torch.from_numpy(lesson.window.resample_to(WINDOW)).to(generator.device)
        return torch.nn.functional.pad(tensor, (0, 0, 0, NUM_CHANNELS - tensor.shape[1]))

    return Augmenter(fit(lesson.waveforms), fit(lesson.noise), params, WINDOW.sampling_frequency, generator)
