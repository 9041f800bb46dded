"""Labelled spikes to a model: an encoder for this kind of recording, and one head a unit."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from accm_core import __version__
from accm_core.errors import ModelError
from accm_core.learning.adapt import GRADIENT_LIMIT, MIN_SPIKES, adapt_encoder
from accm_core.learning.checkpoint import Model
from accm_core.learning.device import find_device
from accm_core.learning.encoder import SnippetWindow, SpikeEncoder, fit_encoder, one_thread
from accm_core.learning.examples import ExampleMaker, Examples
from accm_core.learning.heads import Heads, HeadsConfig
from accm_core.learning.labelled import (
    LabelledUnits,
    learn_units,
    mean_waveforms,
    read_stretches,
    template_window,
)
from accm_core.learning.lessons import read_pretrained
from accm_core.params import HeadsParams, SorterParams
from accm_core.signal.survey import Survey, survey_shank
from accm_core.types import ProgressCallback, Recording

MIN_HEIGHT, MIN_HEIGHT_ERRORS = 2.0, 5.0
"""Least peak of a unit's mean waveform: noise levels, and standard errors of that mean."""
CALIBRATION_EXAMPLES = 20_000
"""Fresh ones on which the heads are calibrated."""
STAGES = ("noise", "detect", "motion", "labels", "learn", "heads")
"""In order."""


@dataclass(frozen=True)
class _Shank:
    """A shank with labelled units."""

    channels: np.ndarray
    survey: Survey
    unit_index: np.ndarray
    units: LabelledUnits
    maker: ExampleMaker


def finetune(
    recording: Recording,
    labels: Mapping[str, np.ndarray],
    params: SorterParams | None = None,
    *,
    device: str = "auto",
    seed: int = 0,
    on_progress: ProgressCallback | None = None,
) -> Model:
    """Train a model on labelled spikes; all other spikes of the recording take part without a label.

    Parameters
    ----------
    recording : Recording
    labels : mapping of str to ndarray
        Times of some spikes (s, session clock) by the unit's name: curated units, or a few labelled spikes.
    params : SorterParams, optional
        Defaults when None.
    device : str
        'auto', 'cpu' or 'cuda[:N]'.
    seed : int
        Of all that is random.
    on_progress : callable, optional
        ``on_progress(stage, fraction)``.

    Returns
    -------
    Model
        With a head for each unit that has enough labels; the others are in ``card['left_out']``.

    Raises
    ------
    ModelError
        If a labelled spike is outside the recording, a unit is on no channel, or nothing can be learned.

    Notes
    -----
    Examples are made without end: any place of the recording as it is, with the units' mean waveforms put in
    alone and colliding at all delays, so that the heads learn overlaps of which no label exists. What is
    known of the units' variation, amplitude and timing, is measured on the labelled spikes. The encoder
    starts from one adapted to the recording's unlabelled snippets by contrast.
    """
    params = params or SorterParams()
    torch_device = find_device(device)
    trains, left_out = _find_trains(recording, labels, params.heads.min_labels)
    names = tuple(trains)
    report = _reporter(on_progress)
    shanks = _learn_shanks(recording, trains, params, torch_device, seed, report)
    num_slots = max(shank.survey.neighborhoods.shape[1] for shank in shanks)
    waveforms = _stack([shank.survey.snippets.waveforms for shank in shanks], num_slots)
    noise = _stack([shank.survey.noise for shank in shanks], num_slots)
    fs = recording.sampling_frequency
    snippets = shanks[0].survey.snippets
    window = SnippetWindow(snippets.num_before, snippets.waveforms.shape[1], fs)
    start, trained = None, window
    if params.learn.pretrained:
        pretrained = read_pretrained()
        trained = pretrained.window
        start = fit_encoder(pretrained.encoder, trained, window, num_slots, params.learn.num_dims)
    encoder = adapt_encoder(
        start, waveforms, noise, params.learn, fs, device=torch_device, seed=seed, on_step=report("learn")
    ).encoder
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = HeadsConfig(params.heads.kind, encoder.config.num_features, names)
        heads = Heads(config).to(torch_device)
        _train(encoder, heads, shanks, params.heads, seed, report("heads"))
        _calibrate(encoder, heads, shanks)
    return Model(
        encoder.cpu().eval(),
        heads.cpu().eval(),
        {
            "kind": "finetuned",
            "units": _describe_units(recording, shanks, names, trains),
            "left_out": left_out,
            "training": {
                "labelled_spikes": sum(len(train) for train in trains.values()),
                "unlabelled_snippets": len(waveforms),
                "duration_s": sum(s.num_samples for s in recording.segments) / fs,
            },
            "parameters": params.model_dump(),
            "seed": seed,
            "version": __version__,
            **asdict(trained),
        },
        _cut_templates(shanks, names, num_slots) @ torch.from_numpy(window.resample_to(trained)),
    )


def find_samples(recording: Recording, times: np.ndarray) -> np.ndarray:
    """Sample nearest to each time (s, session clock), (n,), int64; -1 outside the recording's segments."""
    samples = np.full(len(times), -1, dtype=np.int64)
    half = 0.5 / recording.sampling_frequency
    for segment in recording.segments:
        low = np.full(len(times), segment.start, dtype=np.int64)
        high = np.full(len(times), segment.stop - 1, dtype=np.int64)
        edges = recording.sample_to_time(np.array([segment.start, segment.stop - 1]))
        inside = (times >= edges[0] - half) & (times <= edges[1] + half)
        while (low < high).any():  # the last sample that is not later than half a sample after the time
            middle = (low + high + 1) // 2
            later = recording.sample_to_time(middle) > times + half
            high = np.where(later, middle - 1, high)
            low = np.where(later, low, middle)
        samples[inside] = low[inside]
    return samples


def _find_trains(
    recording: Recording, labels: Mapping[str, np.ndarray], min_labels: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    trains, left_out = {}, {}
    for name, times in labels.items():
        samples = find_samples(recording, np.sort(np.asarray(times, dtype=np.float64)))
        if (samples < 0).any():
            edges = recording.sample_to_time(
                np.array([recording.segments[0].start, recording.segments[-1].stop - 1])
            )
            first = float(np.sort(times)[np.flatnonzero(samples < 0)[0]])
            raise ModelError(
                f"{(samples < 0).sum()} of {len(samples)} labelled spikes of unit {name!r} are outside the "
                f"recording or in a gap, the first at {first:.6g} s; it was recorded from {edges[0]:.6g} to "
                f"{edges[1]:.6g} s. Give labels of this session."
            )
        samples = np.unique(samples)
        if len(samples) < min_labels:
            left_out[name] = f"{len(samples)} labelled spikes; {min_labels} are needed"
        else:
            trains[name] = samples
    if not trains:
        raise ModelError(
            f"None of {len(labels)} units has the {min_labels} labelled spikes that a head needs. "
            "Label more spikes, or lower heads.min_labels."
        )
    return trains, left_out


def _learn_shanks(
    recording: Recording,
    trains: Mapping[str, np.ndarray],
    params: SorterParams,
    device: torch.device,
    seed: int,
    report: Callable[[str], Callable[[float], None]],
) -> list[_Shank]:
    """Survey the shanks, give each unit to the one it is largest on, and learn what the units look like."""
    groups = np.unique(recording.channel_groups)
    channels = [np.flatnonzero(recording.channel_groups == group) for group in groups]
    surveys = [survey_shank(recording, own, params, seed=seed, report=report) for own in channels]
    samples = list(trains.values())
    means = [mean_waveforms(recording, s.preprocessor, samples, params.run) for s in surveys]
    heights = np.stack([np.abs(mean).max(axis=(1, 2)) for mean in means])
    counts = np.array([len(train) for train in samples])
    for name, height, count in zip(trains, heights.max(axis=0), counts, strict=True):
        least = max(MIN_HEIGHT, MIN_HEIGHT_ERRORS / np.sqrt(count))
        if height < least:
            raise ModelError(
                f"Unit {name!r} is on no channel: its {count} labelled spikes average to {height:.1f} noise "
                f"levels, {least:.1f} are needed. Check that the labels are of this session."
            )
    report("labels")(0.3)
    home = heights.argmax(axis=0)
    shanks = []
    for number in np.unique(home):
        survey, own = surveys[number], np.flatnonzero(home == number)
        if len(survey.snippets) < MIN_SPIKES or len(survey.noise) == 0:
            raise ModelError(
                f"The shank of unit {list(trains)[own[0]]!r} has {len(survey.snippets)} peaks above "
                f"{params.detect.threshold:g} noise levels and {len(survey.noise)} stretches of noise; "
                f"{MIN_SPIKES} and 1 are needed. Lower detect.threshold."
            )
        stretches = read_stretches(
            recording, survey.preprocessor, params.run, template_window(recording.sampling_frequency)[1]
        )
        own_samples = [samples[k] for k in own]
        units = learn_units(
            recording,
            survey.preprocessor,
            survey.neighborhoods,
            own_samples,
            means[number][own],
            stretches,
            seed=seed,
            run=params.run,
        )
        maker = ExampleMaker(
            units,
            counts[own],
            stretches,
            survey.neighborhoods[units.main_channel],
            num_before=survey.snippets.num_before,
            num_samples=survey.snippets.waveforms.shape[1],
            sampling_frequency=recording.sampling_frequency,
            params=params.heads,
            generator=torch.Generator(device).manual_seed(seed),
            device=device,
        )
        shanks.append(_Shank(channels[number], survey, own, units, maker))
    report("labels")(1.0)
    return shanks


def _train(
    encoder: SpikeEncoder,
    heads: Heads,
    shanks: list[_Shank],
    params: HeadsParams,
    seed: int,
    on_step: Callable[[float], None],
) -> None:
    weights = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=params.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=params.num_steps
    )
    share = np.array([len(shank.unit_index) for shank in shanks], dtype=np.float64)
    order = np.random.default_rng(seed).choice(len(shanks), params.num_steps, p=share / share.sum())
    encoder.train()
    for step, number in enumerate(order):
        examples = draw_examples(shanks[number], encoder, heads, params.batch_size)
        loss = heads.loss(encoder.represent(examples.waveforms), examples.fired, examples.counts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, GRADIENT_LIMIT)
        optimizer.step()
        schedule.step()
        on_step((step + 1) / params.num_steps)


def draw_examples(
    shank: _Shank, encoder: SpikeEncoder, heads: Heads, num_examples: int, *, as_recorded: bool = False
) -> Examples:
    """Examples of one shank for the heads of all: other shanks' heads are not asked."""
    own = shank.maker.draw(num_examples, as_recorded=as_recorded)
    num_heads = len(heads.config.unit_names)
    columns = torch.from_numpy(shank.unit_index).to(own.fired.device)
    fired = own.fired.new_zeros(num_examples, num_heads).index_copy(1, columns, own.fired)
    counts = own.counts.new_zeros(num_examples, num_heads).index_copy(1, columns, own.counts)
    missing = encoder.config.num_channels - own.waveforms.shape[1]
    return Examples(torch.nn.functional.pad(own.waveforms, (0, 0, 0, missing)), fired, counts)


def _calibrate(encoder: SpikeEncoder, heads: Heads, shanks: list[_Shank]) -> None:
    encoder.eval()
    features, fired, counts = [], [], []
    with torch.no_grad():
        for shank in shanks:
            for _ in range(max(1, CALIBRATION_EXAMPLES // (1000 * len(shanks)))):
                examples = draw_examples(shank, encoder, heads, 1000, as_recorded=True)
                features.append(encoder.represent(examples.waveforms))
                fired.append(examples.fired)
                counts.append(examples.counts)
    heads.calibrate(torch.cat(features), torch.cat(fired), torch.cat(counts))


def _describe_units(
    recording: Recording, shanks: list[_Shank], names: tuple[str, ...], trains: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """What later sessions must know of each head: its name, its channels, and where in time it looks."""
    described: dict[int, dict[str, object]] = {}
    for shank in shanks:
        ids = [recording.channel_ids[k] for k in shank.survey.preprocessor.channels]
        for row, unit in enumerate(shank.unit_index):
            main = int(shank.units.main_channel[row])
            slots = shank.survey.neighborhoods[main]
            described[int(unit)] = {
                "name": names[unit],
                "labels": len(trains[names[unit]]),
                "main_channel": ids[main],
                "channels": [ids[k] if k >= 0 else None for k in slots],
                "peak_delay_ms": 1e3 * float(shank.units.peak_offset[row]) / recording.sampling_frequency,
            }
    return [described[unit] for unit in range(len(names))]


def _cut_templates(shanks: list[_Shank], names: tuple[str, ...], num_slots: int) -> torch.Tensor:
    """Each unit as a snippet around its peak, (n_units, n_slots, n_samples)."""
    num_samples = shanks[0].survey.snippets.waveforms.shape[1]
    templates = np.zeros((len(names), num_slots, num_samples), dtype=np.float32)
    for shank in shanks:
        for row, unit in enumerate(shank.unit_index):
            slots = shank.survey.neighborhoods[shank.units.main_channel[row]]
            first = shank.units.num_before + shank.units.peak_offset[row] - shank.survey.snippets.num_before
            steps = np.arange(first, first + num_samples)
            inside = (steps >= 0) & (steps < shank.units.templates.shape[1])
            for slot in np.flatnonzero(slots >= 0):
                templates[unit, slot, inside] = shank.units.templates[row, steps[inside], slots[slot]]
    return torch.from_numpy(templates)


def _stack(parts: list[np.ndarray], num_slots: int) -> np.ndarray:
    """Snippets of all shanks, with empty channels where a shank has fewer."""
    return np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, num_slots - part.shape[2]))) for part in parts])


def _reporter(on_progress: ProgressCallback | None) -> Callable[[str], Callable[[float], None]]:
    def report(stage: str) -> Callable[[float], None]:
        return lambda fraction: None if on_progress is None else on_progress(stage, fraction)

    return report
