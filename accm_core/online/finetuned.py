"""Units that a stream is sorted into, from a fine-tuned model."""

import numpy as np
import torch

from accm_core.errors import ModelError
from accm_core.learning.checkpoint import Model
from accm_core.learning.classify import check_channels, place_heads
from accm_core.learning.encoder import SnippetWindow
from accm_core.params import SnippetParams, to_samples
from accm_core.signal.preprocess import Preprocessor
from accm_core.types import KnownUnits, Recording


def units_of_model(
    model: Model, recording: Recording, preprocessors: list[Preprocessor], params: SnippetParams
) -> KnownUnits:
    """The units of a model's heads, with the waveforms that the heads learned.

    Parameters
    ----------
    model : Model
        Fine-tuned.
    recording : Recording
        A stretch of the stream.
    preprocessors : list of Preprocessor
        Of its shanks.
    params : SnippetParams

    Raises
    ------
    ModelError
        If the model has no heads, or none for this probe.

    Notes
    -----
    A model holds its units in noise units, whitened; they are taken back to µV with the noise of now.
    """
    if model.heads is None:
        raise ModelError(
            f"The model {model.card.get('name', '')!r} has an encoder alone and knows no units. "
            "Fine-tune one, or calibrate without a model."
        )
    check_channels(model, recording.channel_ids)
    fs = recording.sampling_frequency
    num_before = to_samples(params.ms_before, fs)
    window = SnippetWindow(num_before, num_before + to_samples(params.ms_after, fs), fs)
    names: list[str] = []
    parts = [np.zeros((0, window.num_samples, len(recording.channel_ids)), dtype=np.float32)]
    for preprocessor in preprocessors:
        ids = [recording.channel_ids[channel] for channel in preprocessor.channels]
        placed = place_heads(model, ids, window, torch.device("cpu"))
        if placed is None:
            continue
        whitened = np.zeros((len(placed.used), window.num_samples, len(ids) + 1), dtype=np.float32)
        for row, slots in enumerate(placed.slots):
            whitened[row][:, slots] = placed.templates[row]  # slot -1: the channel that is cut off below
        wide = np.zeros((*whitened.shape[:2], len(recording.channel_ids)), dtype=np.float32)
        wide[:, :, preprocessor.channels] = preprocessor.unwhiten(whitened[:, :, :-1])
        parts.append(wide)
        names += [placed.names[head] for head in placed.used]
    if not names:
        raise ModelError(
            "Every unit of the model is on a channel that is dead or too noisy now. Check the channels, or "
            "calibrate without a model."
        )
    return KnownUnits(
        names=tuple(names),
        templates=np.concatenate(parts),
        num_before=num_before,
        spread=np.full(len(names), np.nan, dtype=np.float32),
        channel_ids=recording.channel_ids,
        sampling_frequency=fs,
    )
