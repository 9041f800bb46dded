"""accm with one stage taken away or replaced: by settings where there are some, else by patches.

The product has no option for this; patches last as long as one sort, in the benchmark's own process.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from types import ModuleType
from unittest.mock import patch

import numba
import numpy as np
import torch
from sklearn.decomposition import PCA

from accm_core import pipeline
from accm_core.learning.encoder import EncoderConfig
from accm_core.params import validate_params
from accm_core.signal import preprocess, survey
from accm_core.signal.matched import MatchedFilter
from accm_core.signal.preprocess import Preprocessor
from accm_core.sorting import match, pursuit, track
from accm_core.sorting.match import Matches
from accm_core.sorting.sizes import Sizes
from accm_core.sorting.templates import WaveformAverage
from accm_core.types import Recording, Snippets, Sorting

Patches = tuple[AbstractContextManager, ...]
MAX_SPIKES = 10_000_000  # all peaks, where there is no matching to find the others


@dataclass(frozen=True)
class Ablation:
    """What is taken away, and how: parameters by group, and a function that makes patches.

    Measured on the sets in moving tissue if that is where it is used, else on the others.
    """

    what: str
    settings: dict[str, dict] = field(default_factory=dict)
    make_patches: Callable[[], Patches] = tuple
    in_drift: bool = False


def sort_ablation(name: str, recording: Recording, *, device: str, seed: int) -> Sorting:
    """Sort without what the ablation takes away."""
    ablation = ABLATIONS[name]
    with ExitStack() as stack:
        for change in ablation.make_patches():
            stack.enter_context(change)
        return pipeline.sort(recording, validate_params(ablation.settings), device=device, seed=seed)


class _Components(torch.nn.Module):
    """Principal components, called as the encoder is."""

    def __init__(self, waveforms: np.ndarray, num_dims: int, seed: int) -> None:
        super().__init__()
        flat = waveforms.transpose(0, 2, 1).reshape(len(waveforms), -1)
        self.pca = PCA(min(num_dims, *flat.shape), random_state=seed).fit(flat)
        self.config = EncoderConfig(waveforms.shape[2], waveforms.shape[1], self.pca.n_components_)

    def forward(self, snippets: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.pca.transform(snippets.reshape(len(snippets), -1).numpy()))


def _use_pca() -> Patches:
    def fit_pca(shank: pipeline._Shank, snippets: Snippets, noise: np.ndarray) -> _Components:
        return _Components(snippets.waveforms, shank.params.learn.num_dims, shank.seed)

    return (patch.object(pipeline, "_adapt_encoder", fit_pca),)


def _keep_clusters() -> Patches:
    """The peaks of each unit's clusters are its spikes; what drops units at the end still does."""
    merge_clusters = pipeline.merge_clusters
    merged: list[Matches] = []

    def merge(labels: np.ndarray, snippets: Snippets, *rest: object, **options: object) -> np.ndarray:
        unit_of = merge_clusters(labels, snippets, *rest, **options)
        rows = np.flatnonzero(labels >= 0)
        ones = np.ones(len(rows), dtype=np.float32)
        peaks = snippets.peaks
        merged.append(
            Matches(peaks.sample_index[rows], peaks.offset[rows], unit_of[labels[rows]], ones, ones, ones)
        )
        return unit_of

    def recover(
        recording: Recording,
        preprocessor: Preprocessor,
        blocks: object,
        bank: match.TemplateBank,
        *_: object,
        **__: object,
    ) -> tuple[Matches, WaveformAverage]:
        average = WaveformAverage(*bank.templates.shape)
        average.total += preprocessor.unwhiten(bank.templates)
        average.counts += 1
        return merged[-1], average

    return (
        patch.object(pipeline, "merge_clusters", merge),
        patch.object(pipeline, "_refine_templates", _leave),
        patch.object(pipeline, "_split_templates", _leave),
        patch.object(pipeline, "_find_drift", lambda *_: None),
        patch.object(pipeline, "recover_spikes", recover),
        # peaks have no size that these could judge
        patch.object(pipeline, "judge_sizes", _judge_nothing),
        patch.object(pipeline, "find_restless", _find_none),
    )


def _replace(module: ModuleType, name: str, stand_in: Callable) -> Callable[[], Patches]:
    """One function by another."""
    return lambda: (patch.object(module, name, stand_in),)


def _leave_clusters(labels: np.ndarray, *rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return labels, rest[3]  # where each was found


def _leave_pieces(
    bank: match.TemplateBank, matches: Matches, average: WaveformAverage, *_: object, **__: object
) -> tuple[Matches, WaveformAverage]:
    return matches, average


def _leave(
    shank: pipeline._Shank, preprocessor: object, bank: match.TemplateBank, *, step: int
) -> match.TemplateBank:
    return bank


def _find_none(*arguments: object, **_: object) -> np.ndarray:
    """None of the units in the bank, wherever that is among the arguments."""
    bank = next(argument for argument in arguments if isinstance(argument, match.TemplateBank))
    return np.zeros(len(bank.energy), dtype=bool)


def _judge_nothing(matches: Matches, bank: match.TemplateBank, *_: object) -> Sizes:
    """All spikes are their unit's own."""
    return Sizes(np.ones(len(matches)), np.ones(len(bank.energy)))


def _find_no_spikes(matches: Matches, *_: object) -> np.ndarray:
    return np.zeros(len(matches), dtype=bool)


def _look_at_points(
    recording: Recording, preprocessor: object, distances: np.ndarray, *_: object
) -> MatchedFilter:
    ones = np.ones(len(distances), np.float32)
    return MatchedFilter(np.ones(1, np.float32), ones, np.diag(ones))


@numba.njit(cache=True, nogil=True)
def _pursue_once(fits, blocked, model, until):  # type: ignore[no-untyped-def]
    """``match.pursue`` without its revisions: a constant of a compiled function cannot be patched."""
    best_gain = np.zeros(fits.shape[1], dtype=np.float32)
    best_unit = np.zeros(fits.shape[1], dtype=np.int32)
    pursuit._refresh(fits, blocked, model, 0, fits.shape[1], best_gain, best_unit)
    samples = [np.int64(0) for _ in range(0)]
    units = [np.int64(0) for _ in range(0)]
    values = [(np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)) for _ in range(0)]
    pursuit._take_all(fits, blocked, model, best_gain, best_unit, samples, units, values)
    return pursuit.in_order(samples, units, values, len(model.energy))


ABLATIONS = {
    "accm-no-pretraining": Ablation(
        "trained on the recording from random weights", {"learn": {"pretrained": False}}
    ),
    "accm-no-adaptation": Ablation("the shipped weights as they are", {"learn": {"num_steps": 0}}),
    "accm-no-collisions": Ablation(
        "no collisions among the views while adapting (the shipped weights have seen some)",
        {"learn": {"collision_share": 0.0}},
    ),
    "accm-always-median": Ablation(
        "a median over 16 channels or more is subtracted, whether or not far ones share noise",
        make_patches=_replace(preprocess, "share_noise", lambda *_: True),
    ),
    "accm-no-matched-filter": Ablation(
        "peaks of the whitened traces themselves",
        make_patches=_replace(survey, "measure_matched_filter", _look_at_points),
    ),
    "accm-pca": Ablation("as many principal components instead of the embedding", make_patches=_use_pca),
    "accm-no-dividing": Ablation(
        "clusters are not divided where views agree on two",
        make_patches=_replace(pipeline, "divide_clusters", _leave_clusters),
    ),
    "accm-no-matching": Ablation(
        "the detected peaks of a unit's clusters are its spikes",
        {"learn": {"max_spikes": MAX_SPIKES}},
        _keep_clusters,
    ),
    "accm-no-overlap-revision": Ablation(
        "overlapping spikes stay as first explained",
        make_patches=_replace(match, "pursue", _pursue_once),
    ),
    "accm-no-splitting": Ablation(
        "units are not taken apart after matching",
        make_patches=_replace(pipeline, "_split_templates", _leave),
    ),
    "accm-no-mixtures": Ablation(
        "templates without which their spikes are explained as well stay",
        make_patches=_replace(pipeline, "find_superfluous", _find_none),
    ),
    "accm-no-gaps": Ablation(
        "small spikes behind a gap in a unit's sizes stay",
        make_patches=_replace(pipeline, "find_far_spikes", _find_no_spikes),
    ),
    "accm-no-echoes": Ablation(
        "units that are the ends of larger units' templates stay",
        make_patches=_replace(pipeline, "find_echoes", _find_none),
    ),
    "accm-no-least-accuracy": Ablation(
        "units of which hardly half is to be expected right stay", {"match": {"min_accuracy": 0.0}}
    ),
    "accm-no-drift": Ablation(
        "drift is neither corrected nor followed", {"motion": {"correct": "off"}}, in_drift=True
    ),
    "accm-correction-alone": Ablation(
        "where drift is corrected in space, units are not followed as well",
        make_patches=_replace(pipeline, "MAX_FOLLOWED", 0),
        in_drift=True,
    ),
    "accm-no-sizes": Ablation(
        "far neurons' spikes are not told from a unit's own by all sizes together",
        make_patches=lambda: tuple(
            patch.object(module, "judge_sizes", _judge_nothing) for module in (pipeline, track)
        ),
        in_drift=True,
    ),
    "accm-no-pieces": Ablation(
        "units that are one neuron here and there in moving tissue stay apart",
        make_patches=_replace(pipeline, "merge_pieces", _leave_pieces),
        in_drift=True,
    ),
}
