"""A fine-tuned model on a recording: which of its units fired at given times."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from accm_core.errors import ModelError
from accm_core.learning.checkpoint import Model
from accm_core.learning.encoder import SnippetWindow, SpikeEncoder, fit_encoder
from accm_core.learning.heads import Heads, classify_snippets
from accm_core.params import RunParams
from accm_core.signal.chunks import Block, cut_blocks, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets
from accm_core.types import Recording


@dataclass(frozen=True)
class PlacedHeads:
    """The heads of a model that this shank has all channels for.

    Attributes
    ----------
    encoder : SpikeEncoder
        On the device where it is to work, as `heads`.
    heads : Heads
    names : tuple of str
        Of all heads.
    used : ndarray of shape (n_used,), int64
        Columns of the heads that are here.
    slots : ndarray of shape (n_used, n_slots), int64
        Channels of the shank in the order that each wants them, -1 for none.
    templates : ndarray of shape (n_used, n_samples, n_slots), float32
        Each unit in a snippet, noise units.
    peak_offset : ndarray of shape (n_used,), int64
        Samples from a labelled time to where the head looks.
    num_before, num_samples : int
        Of a snippet: before that, and in all.
    """

    encoder: SpikeEncoder
    heads: Heads
    names: tuple[str, ...]
    used: np.ndarray
    slots: np.ndarray
    templates: np.ndarray
    peak_offset: np.ndarray
    num_before: int
    num_samples: int

    def answer(self, waveforms: np.ndarray, device: torch.device) -> np.ndarray:
        """Probability of each used head, (n, n_used), for snippets (n, n_samples, n_slots) of one place."""
        missing = self.encoder.config.num_channels - waveforms.shape[2]
        padded = np.pad(waveforms, ((0, 0), (0, 0), (0, missing)))
        return classify_snippets(self.encoder, self.heads, padded, device)[:, self.used]


def place_heads(
    model: Model, channel_ids: Sequence[str], window: SnippetWindow, device: torch.device
) -> PlacedHeads | None:
    """Find the heads whose channels are all among a shank's; None where there are none.

    Parameters
    ----------
    model : Model
        Fine-tuned.
    channel_ids : sequence of str
        Of the channels in use, in their order.
    window : SnippetWindow
        Of this recording's snippets.
    device : torch.device
    """
    if model.heads is None or model.templates is None:
        return None
    row = {name: k for k, name in enumerate(channel_ids)}
    units = model.card["units"]
    used = [k for k, unit in enumerate(units) if all(c is None or c in row for c in unit["channels"])]
    if not used:
        return None
    width = model.encoder.config.num_channels
    slots = np.full((len(used), width), -1, dtype=np.int64)
    for k, unit in enumerate(used):
        names = units[unit]["channels"]
        slots[k, : len(names)] = [-1 if name is None else row[name] for name in names]
    encoder = fit_encoder(model.encoder, model.window, window, width, model.encoder.config.num_dims)
    templates = model.templates[used] @ torch.from_numpy(model.window.resample_to(window))
    delays = np.array([units[k]["peak_delay_ms"] for k in used])
    return PlacedHeads(
        encoder.to(device),
        copy.deepcopy(model.heads).to(device),
        model.heads.config.unit_names,
        np.array(used, dtype=np.int64),
        slots,
        templates.permute(0, 2, 1).numpy(),
        np.rint(1e-3 * delays * window.sampling_frequency).astype(np.int64),
        window.num_before,
        window.num_samples,
    )


def list_channels(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Channels that a model's heads look at, from its card, in alphabetical order; none without heads."""
    named = (name for unit in card.get("units", ()) for name in unit.get("channels", ()))
    return tuple(sorted({name for name in named if name is not None}))


def classify_columns(placed: PlacedHeads, waveforms: np.ndarray, device: torch.device) -> np.ndarray:
    """Probability that each of the placed units fired at the peak of snippets on all channels.

    Parameters
    ----------
    placed : PlacedHeads
    waveforms : ndarray of shape (n, n_samples, n_channels), float32
        The channels for which the heads were placed, in that order; filtered, referenced and whitened as a
        sort does it, noise units, with ``placed.num_before`` samples before the peak.
    device : torch.device

    Returns
    -------
    ndarray of shape (n, n_used), float32
        As `classify_spikes` answers for peaks.
    """
    places, place_of = np.unique(placed.slots, axis=0, return_inverse=True)
    padded = np.pad(waveforms, ((0, 0), (0, 0), (0, 1)))  # a silent channel, for slots without one (-1)
    probability = np.zeros((len(waveforms), len(placed.used)), dtype=np.float32)
    for place, slots in enumerate(places):
        here = place_of.ravel() == place
        probability[:, here] = placed.answer(padded[:, :, slots], device)[:, here]
    return probability


def check_channels(model: Model, channel_ids: Sequence[str]) -> None:
    """Refuse a model with heads, where none of them finds its channels in the recording.

    Raises
    ------
    ModelError
    """
    if model.heads is None:
        return
    wanted = [{c for c in unit["channels"] if c is not None} for unit in model.card["units"]]
    if not any(channels <= set(channel_ids) for channels in wanted):
        missing = sorted(set().union(*wanted) - set(channel_ids))
        raise ModelError(
            f"The model is for another probe: its heads look at channels such as {missing[0]!r}, which are "
            f"not among the {len(channel_ids)} of this recording. Fine-tune one on a session of this probe."
        )


def classify_spikes(
    recording: Recording,
    preprocessor: Preprocessor,
    placed: PlacedHeads,
    sample_index: np.ndarray,
    *,
    at_peak: bool = False,
    run: RunParams,
    device: torch.device,
) -> np.ndarray:
    """Probability that each of the placed units fired at each of the given samples.

    Parameters
    ----------
    recording, preprocessor
        Where to look.
    placed : PlacedHeads
    sample_index : ndarray of shape (n_spikes,), int64
        In ascending order; as the labels that the model learned from give the times of spikes.
    at_peak : bool
        The samples are those of the peaks.
    run : RunParams
    device : torch.device

    Returns
    -------
    ndarray of shape (n_spikes, n_used), float32
        0 for samples outside the segments.
    """
    num_samples = placed.num_samples
    delay = np.zeros_like(placed.peak_offset) if at_peak else placed.peak_offset
    margin = num_samples + LANCZOS_TAPS + int(np.abs(delay).max())
    blocks = [
        block
        for block in cut_blocks(recording.segments, recording.sampling_frequency)
        if np.searchsorted(sample_index, block.start) < np.searchsorted(sample_index, block.stop)
    ]
    keys, place_of = np.unique(np.column_stack([placed.slots, delay]), axis=0, return_inverse=True)

    def cut(block: Block, raw: np.ndarray) -> tuple[int, list[np.ndarray]]:
        low, high = np.searchsorted(sample_index, [block.start, block.stop])
        local = sample_index[low:high] - block.start + margin
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        return int(low), [
            cut_snippets(
                traces,
                local + key[-1],
                np.zeros(len(local), dtype=np.float32),
                np.broadcast_to(key[:-1], (len(local), len(key) - 1)),
                num_before=placed.num_before,
                num_samples=num_samples,
            )
            for key in keys
        ]

    probability = np.zeros((len(sample_index), len(placed.used)), dtype=np.float32)
    for first, snippets in map_blocks(cut, recording, blocks, margin=preprocessor.margin + margin, run=run):
        for place, waveforms in enumerate(snippets):
            here = place_of.ravel() == place
            rows = slice(first, first + len(waveforms))
            probability[rows, here] = placed.answer(waveforms, device)[:, here]
    return probability
