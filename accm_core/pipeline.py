"""``sort``: from a recording to units and spikes, one call a stage."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from accm_core.learning.adapt import MIN_SPIKES, adapt_encoder
from accm_core.learning.checkpoint import Model
from accm_core.learning.classify import PlacedHeads, check_channels, place_heads
from accm_core.learning.device import find_device
from accm_core.learning.encoder import SnippetWindow, SpikeEncoder, embed_snippets, fit_encoder
from accm_core.learning.views import embed_views
from accm_core.models import PRETRAINED, load_model
from accm_core.params import SorterParams, to_samples
from accm_core.signal.chunks import cut_blocks, spread_blocks
from accm_core.signal.motion import can_move
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.survey import Survey, survey_shank
from accm_core.sorting.cluster import cluster_neighborhoods, find_neighborhoods, sees_all
from accm_core.sorting.divide import divide_clusters
from accm_core.sorting.drifting import Drift, cluster_drifting
from accm_core.sorting.identify import claim_peaks, cluster_rest, identify_units
from accm_core.sorting.match import MIN_CHANNELS_TO_TELL, TemplateBank, build_bank
from accm_core.sorting.merge import merge_clusters, merge_duplicates, merge_pieces
from accm_core.sorting.place import read_place
from accm_core.sorting.prune import (
    find_crowds,
    find_echoes,
    find_far_spikes,
    find_low,
    find_misfits,
    find_piled,
    find_rare,
    find_restless,
)
from accm_core.sorting.recover import find_shrinkage, measure_log_rate, measure_scale_std, recover_spikes
from accm_core.sorting.result import ShankResult, build_sorting
from accm_core.sorting.sizes import judge_sizes
from accm_core.sorting.split import split_units
from accm_core.sorting.superfluous import find_superfluous
from accm_core.sorting.templates import (
    Window,
    average_clusters,
    center_templates,
    find_lags,
    silence_channels,
)
from accm_core.sorting.track import bin_times, follow_units
from accm_core.types import ProgressCallback, Recording, Snippets, Sorting

logger = logging.getLogger(__name__)

MIN_NOISE = 2
"""Snippets without a spike that show how noise varies."""
TEMPLATE_BLOCKS = 150
"""Seconds, evenly spread, from which the clusters' templates are made."""
REFINE_BLOCKS, REFINE_STEPS = 80, 5
"""Seconds, evenly spread, on which templates are refined, before and after units are taken apart; all steps,
of which refining takes two each time."""
SPLIT_BLOCKS = 300
"""Seconds, evenly spread, on which units are taken apart; more, as rare ones are to be seen."""
MAX_FOLLOWED = 32
"""Channels up to which units are followed where drift is corrected in space, too: so few contacts are near a
neuron that its shape is mended in part only. Of more it is mended, and following takes time."""
MOVING_POWER = 0.6
"""Of the least expected accuracy, for units that are followed: what their sizes let expect is too much, as
templates that change take in the spikes of several far neurons, each at its place."""
STAGES = ("noise", "detect", "motion", "learn", "cluster", "templates", "refine", "match")
"""In order; each shank goes through all."""


@dataclass(frozen=True)
class _Shank:
    """One shank of a recording on its way through the stages."""

    recording: Recording
    channels: np.ndarray
    params: SorterParams
    device: torch.device
    seed: int
    report: Callable[[str], Callable[[float], None]]
    model: Model | None

    @property
    def gpu(self) -> str | None:
        """Name of the GPU, if there is one; what else is numpy's goes to torch there."""
        return str(self.device) if self.device.type == "cuda" else None


def sort(
    recording: Recording,
    params: SorterParams | None = None,
    *,
    model: Model | str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    on_progress: ProgressCallback | None = None,
) -> Sorting:
    """Sort a recording into units.

    Parameters
    ----------
    recording : Recording
        From ``read_nwb``, ``read_spikeinterface`` or ``ArrayRecording``. Shanks are sorted apart.
    params : SorterParams, optional
        Defaults when None.
    model : Model, str or Path, optional
        Fine-tuned or pretrained: the encoder starts from its encoder instead of the shipped one, and units
        that its heads know keep their names. A model, the name of one in the registry, or a file.
    device : str
        'auto' (the GPU when there is one), 'cpu' or 'cuda[:N]': where traces are filtered, the encoder
        is trained and used and templates are fitted; the rest uses the cores.
    seed : int
        Of all that is random. Same input, parameters and seed give the same spikes on a CPU.
    on_progress : callable, optional
        ``on_progress(stage, fraction)``.

    Returns
    -------
    Sorting
        With no units when none is found.

    Raises
    ------
    ModelError
        If the model cannot be read, or has heads of which none is for this probe.
    ParamsError
        If a parameter does not suit the recording, or the device is not there.
    RecordingError
        If there is nothing to sort.

    Examples
    --------
    >>> import accm_core
    >>> recording, truth = accm_core.simulate(duration_s=20)  # doctest: +SKIP
    >>> accm_core.sort(recording).num_units  # doctest: +SKIP
    """
    params = params or SorterParams()
    torch_device = find_device(device)
    if model is None and params.learn.pretrained:
        model = PRETRAINED
    loaded = model if isinstance(model, Model) or model is None else load_model(model)
    if loaded is not None:
        check_channels(loaded, recording.channel_ids)
    groups = np.unique(recording.channel_groups)
    shanks = []
    for number, group in enumerate(groups):

        def report(stage: str, number: int = number) -> Callable[[float], None]:
            def on_fraction(fraction: float) -> None:
                if on_progress is not None:
                    on_progress(stage, (number + fraction) / len(groups))

            return on_fraction

        channels = np.flatnonzero(recording.channel_groups == group)
        shanks.append(_sort_shank(_Shank(recording, channels, params, torch_device, seed, report, loaded)))
    return build_sorting(
        recording,
        shanks,
        params,
        seed=seed,
        device=str(torch_device),
        model=loaded,
        model_name=str(model) if isinstance(model, str | Path) else "",
    )


def _sort_shank(shank: _Shank) -> ShankResult:
    """All stages, for one shank."""
    params, recording = shank.params, shank.recording
    fs = recording.sampling_frequency
    blocks = cut_blocks(recording.segments, fs)
    survey = survey_shank(
        recording, shank.channels, params, seed=shank.seed, report=shank.report, device=shank.gpu
    )
    preprocessor, snippets, noise = survey.preprocessor, survey.snippets, survey.noise
    logger.info("%d peaks on %d channels", len(snippets), len(preprocessor.channels))
    if len(snippets) < MIN_SPIKES:
        return ShankResult.without_units(preprocessor, f"only {len(snippets)} peaks found")
    if len(noise) < MIN_NOISE:
        return ShankResult.without_units(preprocessor, "no stretch between the peaks to learn the noise from")

    encoder = _adapt_encoder(shank, snippets, noise)
    embedding = embed_snippets(encoder, snippets.waveforms, shank.device)
    placed = _place_heads(shank, preprocessor, snippets)
    labels, neighborhood_of = _cluster_snippets(shank, survey, embedding, placed)
    drift = _find_drift(shank, survey, labels)
    if drift is not None:
        labels, neighborhood_of = drift.labels, drift.neighborhood_of
    else:
        labels, neighborhood_of = _divide_clusters(shank, survey, encoder, embedding, labels, neighborhood_of)
    shank.report("cluster")(1.0)
    logger.info("%d clusters", len(neighborhood_of))
    if len(neighborhood_of) == 0:
        return ShankResult.without_units(preprocessor, "no cluster is large enough")

    bank, labels = _learn_templates(
        shank, preprocessor, snippets, labels, neighborhood_of, moves=drift is not None
    )
    moving = None
    if drift is None:
        bank = _refine_templates(shank, preprocessor, bank, step=0)
        bank = _split_templates(shank, preprocessor, bank, step=2)
        bank = _refine_templates(shank, preprocessor, bank, step=3)
    else:
        moving = follow_units(
            recording,
            preprocessor,
            survey.blocks,
            bank,
            snippets.peaks,
            labels,
            drift.place,
            params.match,
            params.merge,
            run=params.run,
            on_block=shank.report("refine"),
        )
        bank = moving.mean
    shank.report("refine")(1.0)
    matches, average = recover_spikes(
        recording,
        preprocessor,
        blocks,
        bank,
        params.match,
        whitened=False,
        run=params.run,
        moving=moving,
        on_block=shank.report("match"),
    )
    num_observed = sum(block.stop - block.start for block in blocks)
    matches, average = merge_duplicates(
        bank,
        matches,
        average,
        params.merge,
        observed=num_observed,
        sampling_frequency=fs,
        moves=moving is not None or preprocessor.motion is not None,
    )
    if preprocessor.motion is not None and moving is None:
        matches, average = merge_pieces(
            bank, matches, average, preprocessor.motion, params.merge, sampling_frequency=fs
        )
    names: tuple[str, ...] = ("",) * len(bank.energy)
    if placed is not None:
        names, matches, average = identify_units(
            recording,
            preprocessor,
            placed,
            bank,
            matches,
            average,
            refractory=to_samples(params.match.refractory_ms, fs),
            run=params.run,
            device=shank.device,
        )
    low = find_low(average.mean(), preprocessor.noise_levels_uV, params.match.min_peak)
    crowds = find_crowds(matches, len(bank.energy), num_observed, fs)
    energy = bank.energy[matches.unit_index] if moving is None else moving.energy_at(matches)
    echoes = find_echoes(matches, bank, num_samples=num_observed, sampling_frequency=fs)
    is_far = find_far_spikes(matches, matches.free_scale(bank, energy), len(bank.energy), num_observed, fs)
    matches, energy = matches.select(~is_far), energy[~is_far]
    misfits = find_misfits(matches, bank, energy)
    sizes = judge_sizes(
        matches, bank, energy, bank.energy[None] if moving is None else moving.energy_over_time, params.match
    )
    least = params.match.min_accuracy
    unsure = sizes.accuracy < (least if moving is None else least**MOVING_POWER)
    is_piled = find_piled(matches, sizes.own, len(bank.energy), num_observed, fs)
    matches, energy = matches.select(~is_piled), energy[~is_piled]
    restless = find_restless(
        matches, bank, energy, params.match, num_samples=num_observed, sampling_frequency=fs
    )
    rare = find_rare(matches, names, params.cluster.min_size)
    is_unit = ~(low | rare | crowds | misfits | echoes | unsure | restless)
    matches = matches if moving is None else moving.rescale(matches)
    logger.info("%d units of %d templates", is_unit.sum(), len(is_unit))
    if not is_unit.any():
        return ShankResult.without_units(preprocessor, "no template stands out of the noise")
    return ShankResult(preprocessor, bank, is_unit, names, matches, average, snippets, embedding, "")


def _adapt_encoder(shank: _Shank, snippets: Snippets, noise: np.ndarray) -> SpikeEncoder:
    """From the model's encoder, or from random weights, to one for this shank."""
    params, fs = shank.params.learn, shank.recording.sampling_frequency
    start = None
    if shank.model is not None:
        num_channels = snippets.waveforms.shape[2]
        window = _window_of(shank, snippets)
        start = fit_encoder(shank.model.encoder, shank.model.window, window, num_channels, params.num_dims)
    adaptation = adapt_encoder(
        start,
        snippets.waveforms,
        noise,
        params,
        fs,
        device=shank.device,
        seed=shank.seed,
        on_step=shank.report("learn"),
    )
    logger.info(
        "views agree by %.2f nats after %d steps; %.2f before, %.2f in principal components",
        adaptation.agreement,
        adaptation.num_steps,
        adaptation.agreement_before,
        adaptation.agreement_pca,
    )
    return adaptation.encoder


def _window_of(shank: _Shank, snippets: Snippets) -> SnippetWindow:
    return SnippetWindow(snippets.num_before, snippets.waveforms.shape[1], shank.recording.sampling_frequency)


def _place_heads(shank: _Shank, preprocessor: Preprocessor, snippets: Snippets) -> PlacedHeads | None:
    """The model's heads for this shank, if any."""
    if shank.model is None:
        return None
    ids = [shank.recording.channel_ids[k] for k in preprocessor.channels]
    return place_heads(shank.model, ids, _window_of(shank, snippets), shank.device)


def _cluster_snippets(
    shank: _Shank, survey: Survey, embedding: np.ndarray, placed: PlacedHeads | None
) -> tuple[np.ndarray, np.ndarray]:
    """Label of each snippet, and where each cluster was found; what heads claim is not clustered anew."""
    channels, hoods, params = survey.snippets.peaks.channel_index, survey.neighborhoods, shank.params
    if placed is None:
        return cluster_neighborhoods(embedding, channels, hoods, params.cluster, seed=shank.seed)
    claimed = claim_peaks(placed, survey.snippets, params.heads, shank.device)
    return cluster_rest(claimed, placed, embedding, channels, hoods, params.cluster, seed=shank.seed)


def _find_drift(shank: _Shank, survey: Survey, labels: np.ndarray) -> Drift | None:
    """Clusters that move, where correcting drift in space does not mend that; None where nothing moves."""
    recording, snippets = shank.recording, survey.snippets
    motion = survey.preprocessor.motion
    locations = recording.channel_locations[survey.preprocessor.channels]
    if shank.params.motion.correct == "off":
        return None
    if motion is None and can_move(locations, recording.has_geometry):
        return None
    if motion is not None and not (motion.is_rigid and len(locations) <= MAX_FOLLOWED):
        return None
    place = None if motion is None else read_place(motion)
    bins, centers = bin_times(snippets.peaks.sample_index, survey.blocks)
    neighborhood = find_neighborhoods(snippets.peaks.channel_index, survey.neighborhoods)
    return cluster_drifting(snippets, survey.noise, labels, neighborhood, bins, centers, place)


def _divide_clusters(
    shank: _Shank,
    survey: Survey,
    encoder: SpikeEncoder,
    embedding: np.ndarray,
    labels: np.ndarray,
    neighborhood_of: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters in which others were hidden, divided."""
    if not sees_all(survey.neighborhoods):
        # what hides among the spikes of one channel is seen on the next; more parts would be collisions
        return labels, neighborhood_of
    waveforms = survey.snippets.waveforms
    views = embed_views(
        encoder,
        waveforms,
        survey.noise,
        shank.params.learn,
        shank.recording.sampling_frequency,
        device=shank.device,
        seed=shank.seed,
    )
    return divide_clusters(labels, waveforms, embedding, views, neighborhood_of, shank.params.cluster)


def _learn_templates(
    shank: _Shank,
    preprocessor: Preprocessor,
    snippets: Snippets,
    labels: np.ndarray,
    neighborhood_of: np.ndarray,
    *,
    moves: bool,
) -> tuple[TemplateBank, np.ndarray]:
    """Templates of the clusters, with those of one unit merged; and the unit of each snippet."""
    recording, params = shank.recording, shank.params
    fs = recording.sampling_frequency
    num_before = to_samples(params.match.ms_before, fs)
    window = Window(num_before, num_before + to_samples(params.match.ms_after, fs))
    max_lag = to_samples(params.merge.max_lag_ms, fs)
    blocks = spread_blocks(cut_blocks(recording.segments, fs), TEMPLATE_BLOCKS)
    average = average_clusters(
        recording,
        preprocessor,
        blocks,
        snippets.peaks.sample_index,
        snippets.peaks.offset,
        labels,
        window=window,
        run=params.run,
        on_block=shank.report("templates"),
    )
    bank = _build_bank(shank, preprocessor, silence_channels(average.mean(), average.least_height()))
    unit_of = merge_clusters(
        labels,
        snippets,
        neighborhood_of,
        bank,
        params.merge,
        max_lag=max_lag,
    )
    # a unit keeps the template of its largest cluster until it is refined
    sizes = np.bincount(labels[labels >= 0], minlength=len(unit_of))
    order = np.lexsort((-sizes, unit_of))
    _, first = np.unique(unit_of[order], return_index=True)
    templates = bank.templates[order[first]]
    if not moves:  # following moves the peaks, and cuts no end off
        templates = center_templates(templates, find_lags(templates, num_before, max_lag))
    units = np.where(labels >= 0, unit_of[labels], -1)
    return _build_bank(shank, preprocessor, templates), units


def _refine_templates(
    shank: _Shank, preprocessor: Preprocessor, bank: TemplateBank, *, step: int
) -> TemplateBank:
    """Match on part of the recording, merge what is one unit, average the matched spikes anew, drop sums.

    Templates too weak to be units stay: they explain the small spikes that others would take for theirs.
    """
    recording, params = shank.recording, shank.params
    blocks = spread_blocks(cut_blocks(recording.segments, recording.sampling_frequency), REFINE_BLOCKS)
    matches, average = recover_spikes(
        recording,
        preprocessor,
        blocks,
        bank,
        params.match,
        whitened=True,
        run=params.run,
        on_block=_report_step(shank, step),
    )
    observed = sum(block.stop - block.start for block in blocks)
    matches, average = merge_duplicates(
        bank,
        matches,
        average,
        params.merge,
        observed=observed,
        sampling_frequency=recording.sampling_frequency,
        moves=preprocessor.motion is not None,
    )
    refined = average.counts > params.cluster.min_size
    means = silence_channels(average.mean(), average.least_height())
    shrunk = find_shrinkage(matches, bank)[:, None, None] * bank.templates
    templates = np.where(refined[:, None, None], means, shrunk)
    scale_std = measure_scale_std(matches, bank, params.match)
    counts = np.bincount(matches.unit_index, minlength=len(bank.energy))
    fires = counts > 0
    log_rate = measure_log_rate(counts, observed / recording.sampling_frequency)
    bank = _build_bank(shank, preprocessor, templates[fires], scale_std[fires], log_rate[fires])
    max_lag = to_samples(params.match.ms_before, recording.sampling_frequency)
    superfluous = find_superfluous(
        recording,
        preprocessor,
        blocks,
        bank,
        matches.of_units(np.flatnonzero(fires)),
        params.match,
        max_lag=max_lag,
        run=params.run,
        on_block=_report_step(shank, step + 1),
    )
    return bank.select(~superfluous)


def _split_templates(
    shank: _Shank, preprocessor: Preprocessor, bank: TemplateBank, *, step: int
) -> TemplateBank:
    """Take units of several neurons apart; many channels have told them apart by their places before."""
    recording, params = shank.recording, shank.params
    if len(preprocessor.channels) >= MIN_CHANNELS_TO_TELL:
        return bank
    templates = split_units(
        recording,
        preprocessor,
        spread_blocks(cut_blocks(recording.segments, recording.sampling_frequency), SPLIT_BLOCKS),
        bank,
        params.match,
        run=params.run,
        on_block=_report_step(shank, step),
    )
    if len(templates) == len(bank.energy):
        return bank
    logger.info("%d units taken apart into %d", len(bank.energy), len(templates))
    return _build_bank(shank, preprocessor, templates)


def _report_step(shank: _Shank, step: int) -> Callable[[float], None]:
    """Report the share of one step as one of the whole stage."""
    on_share = shank.report("refine")
    return lambda share: on_share((step + share) / REFINE_STEPS)


def _build_bank(
    shank: _Shank,
    preprocessor: Preprocessor,
    templates: np.ndarray,
    scale_std: np.ndarray | None = None,
    log_rate: np.ndarray | None = None,
) -> TemplateBank:
    params = shank.params.match
    if scale_std is None:
        scale_std = np.full(len(templates), params.scale_std)
    num_before = to_samples(params.ms_before, shank.recording.sampling_frequency)
    return build_bank(templates, num_before, preprocessor.autocovariance, scale_std, log_rate, shank.gpu)
