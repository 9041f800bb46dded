"""Shanks to the final result: one list of units and spikes, with amplitudes, quality and provenance."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from typing import Any

import numpy as np

from accm_core import __version__
from accm_core.learning.checkpoint import Model
from accm_core.params import SorterParams, to_samples
from accm_core.signal.preprocess import Preprocessor
from accm_core.sorting.match import Matches, TemplateBank, calibrate
from accm_core.sorting.quality import compute_quality, label_units
from accm_core.sorting.recover import OVERLAP_MS, find_overlaps
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import (
    EmbeddingSample,
    Recording,
    Snippets,
    Sorting,
    Templates,
    main_channels,
    main_heights,
)

MAX_EMBEDDED = 20_000
"""Spikes whose embedding is kept, for pictures."""
EMBEDDED_WITHIN_MS = 0.3
"""A detected peak and a matched spike this close are the same."""
PACKAGES = ("numpy", "scipy", "numba", "torch", "h5py", "hdmf", "pynwb", "spikeinterface")
"""Whose versions are written down: they can change the spikes, or how they are read and written."""


@dataclass(frozen=True)
class ShankResult:
    """What the stages found on one shank.

    Attributes
    ----------
    preprocessor : Preprocessor
    bank : TemplateBank or None
        None without units; the fields after it are None then too.
    is_unit : ndarray of shape (n_templates,), bool, or None
        False for templates that only explain what is no unit's.
    names : tuple of str
        What a fine-tuned model calls each template's unit; empty where it has no name for it.
    matches : Matches or None
    average : WaveformAverage or None
        Band-passed, µV.
    snippets : Snippets or None
    embedding : ndarray of shape (n_snippets, n_dims) or None
    why_empty : str
        Why there are no units.
    """

    preprocessor: Preprocessor
    bank: TemplateBank | None
    is_unit: np.ndarray | None
    names: tuple[str, ...]
    matches: Matches | None
    average: WaveformAverage | None
    snippets: Snippets | None
    embedding: np.ndarray | None
    why_empty: str

    @staticmethod
    def without_units(preprocessor: Preprocessor, why: str) -> "ShankResult":
        """A shank on which nothing was found."""
        return ShankResult(preprocessor, None, None, (), None, None, None, None, why)


@dataclass(frozen=True)
class _Units:
    """Units and spikes of one shank, on the channels of the whole recording."""

    names: list[str]
    mean: np.ndarray
    std: np.ndarray
    matches: Matches
    amplitude: np.ndarray
    is_overlap: np.ndarray
    embedded_spike: np.ndarray
    embedded_position: np.ndarray


def build_sorting(
    recording: Recording,
    shanks: Sequence[ShankResult],
    params: SorterParams,
    *,
    seed: int,
    device: str,
    model: Model | None = None,
    model_name: str = "",
) -> Sorting:
    """Join the shanks into one result.

    Parameters
    ----------
    recording : Recording
    shanks : sequence of ShankResult
    params : SorterParams
    seed : int
    device : str
        Written down.
    model : Model, optional
        That the encoder started from; written down.
    model_name : str
        As it was asked for.
    """
    fs = recording.sampling_frequency
    channels = np.sort(np.concatenate([shank.preprocessor.channels for shank in shanks]))
    bad = np.sort(np.concatenate([shank.preprocessor.bad_channels for shank in shanks]))
    noise_levels = np.zeros(len(channels), dtype=np.float32)
    for shank in shanks:
        noise_levels[np.searchsorted(channels, shank.preprocessor.channels)] = (
            shank.preprocessor.noise_levels_uV
        )
    num_before = to_samples(params.match.ms_before, fs)
    num_samples = num_before + to_samples(params.match.ms_after, fs)
    parts = [_collect_units(shank, channels, fs) for shank in shanks if shank.bank is not None]

    num_units = sum(len(part.mean) for part in parts)
    first_unit = np.cumsum([0, *(len(part.mean) for part in parts)])
    first_spike = np.cumsum([0, *(len(part.matches) for part in parts)])
    matches = Matches.join([Matches.empty(), *(part.matches for part in parts)])
    unit_index = _join([p.matches.unit_index + first_unit[k] for k, p in enumerate(parts)], np.int64)
    templates = Templates(
        _join([p.mean for p in parts], np.float32, (0, num_samples, len(channels))),
        _join([p.std for p in parts], np.float32, (0, num_samples, len(channels))),
        num_before,
    )
    order = np.lexsort((unit_index, matches.sample_index))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    sample_index, unit_index = matches.sample_index[order], unit_index[order]
    amplitude = _join([p.amplitude for p in parts], np.float32)[order]
    quality = compute_quality(
        sample_index=sample_index,
        unit_index=unit_index,
        num_units=num_units,
        amplitude_uV=amplitude,
        templates=templates,
        noise_levels_uV=noise_levels,
        segments=recording.segments,
        sampling_frequency=fs,
    )
    labels, reasons = label_units(quality)
    embedded = [rank[p.embedded_spike + first_spike[k]] for k, p in enumerate(parts)]
    return Sorting(
        sampling_frequency=fs,
        channel_ids=tuple(recording.channel_ids[k] for k in channels),
        channel_locations=recording.channel_locations[channels],
        channel_groups=recording.channel_groups[channels],
        bad_channel_ids=tuple(recording.channel_ids[k] for k in bad),
        unit_ids=np.arange(num_units, dtype=np.int64),
        unit_names=_name_units([name for part in parts for name in part.names]),
        sample_index=sample_index,
        spike_times=recording.sample_to_time(sample_index),
        unit_index=unit_index,
        amplitude_uV=amplitude,
        probability=calibrate(matches.probability[order]),
        is_overlap=_join([p.is_overlap for p in parts], np.bool_)[order],
        templates=templates,
        quality=quality,
        labels=labels,
        label_reasons=reasons,
        embedding=EmbeddingSample(
            _join(embedded, np.int64), _join([p.embedded_position for p in parts], np.float32, (0, 2))
        ),
        segments=tuple(recording.segments),
        segment_times=_segment_times(recording),
        provenance=_describe_run(
            shanks, params, seed=seed, device=device, model=_describe_model(model, model_name)
        ),
    )


def _join(parts: Sequence[np.ndarray], dtype: Any, empty_shape: tuple[int, ...] = (0,)) -> np.ndarray:
    return np.concatenate([np.zeros(empty_shape, dtype=dtype), *parts]).astype(dtype, copy=False)


def _collect_units(shank: ShankResult, channels: np.ndarray, sampling_frequency: float) -> _Units:
    """Units of one shank that have spikes, with their templates in µV."""
    bank, is_unit, matches, average = shank.bank, shank.is_unit, shank.matches, shank.average
    if bank is None or is_unit is None or matches is None or average is None:
        raise ValueError("a shank without units has nothing to collect")
    mean, std = average.mean(), average.std()
    # a unit whose spikes all overlap has no clean mean: its matching template, back in µV
    unwhitened = shank.preprocessor.unwhiten(bank.templates)
    mean = np.where((average.counts > 0)[:, None, None], mean, unwhitened)
    kept = is_unit & (np.bincount(matches.unit_index, minlength=len(mean)) > 0)
    matches = matches.select(kept[matches.unit_index])
    is_overlap = find_overlaps(matches, bank, to_samples(OVERLAP_MS, sampling_frequency))
    scale = matches.free_scale(bank)
    mean, std = mean[kept], std[kept]
    matches = replace(matches, unit_index=(np.cumsum(kept) - 1)[matches.unit_index])
    main, extremum = main_channels(mean), main_heights(mean)
    place = np.searchsorted(channels, shank.preprocessor.channels)
    wide = np.zeros((len(mean), mean.shape[1], len(channels)), dtype=np.float32)
    wide[:, :, place] = mean
    wide_std = np.zeros_like(wide)
    wide_std[:, :, place] = std
    embedded, position = _place_embedding(shank, matches, main, sampling_frequency)
    amplitude = scale * extremum[matches.unit_index]
    names = [shank.names[k] for k in np.flatnonzero(kept)]
    return _Units(names, wide, wide_std, matches, amplitude, is_overlap, embedded, position)


def _place_embedding(
    shank: ShankResult, matches: Matches, main: np.ndarray, sampling_frequency: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spikes whose peak was embedded, and two principal dimensions of their embeddings."""
    snippets, embedding = shank.snippets, shank.embedding
    if snippets is None or embedding is None or len(matches) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.float32)
    rows = np.linspace(0, len(snippets) - 1, min(MAX_EMBEDDED, len(snippets))).round().astype(int)
    samples = snippets.peaks.sample_index[rows]
    reach = to_samples(EMBEDDED_WITHIN_MS, sampling_frequency)
    nearest = np.full(len(rows), -1, dtype=np.int64)
    distance = np.full(len(rows), reach + 1, dtype=np.int64)
    start = np.searchsorted(matches.sample_index, samples - reach)
    # a spike counts when its unit's main channel is among the snippet's; of several, the nearest in time
    for step in range(8):
        spike = np.minimum(start + step, len(matches) - 1)
        apart = np.abs(matches.sample_index[spike] - samples)
        seen = (snippets.channels[rows] == main[matches.unit_index[spike]][:, None]).any(axis=1)
        closer = seen & (apart < distance)
        nearest[closer], distance[closer] = spike[closer], apart[closer]
    found, first = np.unique(nearest, return_index=True)
    found, first = found[found >= 0], first[found >= 0]
    points = embedding[rows[first]]
    centred = points - points.mean(axis=0) if len(points) else points
    axes = (
        np.linalg.svd(centred, full_matrices=False)[2][:2]
        if len(points) > 1
        else np.zeros((2, points.shape[1]))
    )
    return found, (centred @ axes.T).astype(np.float32)


def _name_units(names: list[str]) -> tuple[str, ...]:
    """The model's names; the others are new when there are such, else called by their ids."""
    if not any(names):
        return tuple(str(unit) for unit in range(len(names)))
    free = (name for k in count() if (name := f"new-{k}") not in names)
    return tuple(name or next(free) for name in names)


def _describe_model(model: Model | None, name: str) -> dict[str, str] | None:
    """Which model the encoder started from; None for random weights."""
    if model is None:
        return None
    return {
        "name": name or str(model.card.get("name", "")),
        "kind": str(model.card["kind"]),
        "sha256": model.sha256,
    }


def _segment_times(recording: Recording) -> np.ndarray:
    """Start and stop of each segment on the session clock, (n_segments, 2)."""
    starts = recording.sample_to_time(np.array([s.start for s in recording.segments]))
    last = recording.sample_to_time(np.array([s.stop - 1 for s in recording.segments]))
    return np.stack([starts, last + 1 / recording.sampling_frequency], axis=1)


def _describe_run(
    shanks: Sequence[ShankResult],
    params: SorterParams,
    *,
    seed: int,
    device: str,
    model: dict[str, str] | None,
) -> dict[str, Any]:
    """All that is needed to run the sort again."""
    warnings = [
        f"No units on shank {number}: {shank.why_empty}."
        for number, shank in enumerate(shanks)
        if shank.why_empty
    ]
    return {
        "sorter": "accm",
        "params": params.model_dump(),
        "seed": seed,
        "device": device,
        "model": model,
        "versions": {"accm": __version__, **{name: version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "warnings": warnings,
    }
