"""Labelled spikes of a shank: what each unit looks like, and how much its spikes and their times vary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from accm_core.params import RunParams, to_samples
from accm_core.signal.chunks import cut_blocks, map_blocks, spread_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import LANCZOS_TAPS, cut_snippets
from accm_core.types import Recording

MS_BEFORE, MS_AFTER = 1.5, 2.5
"""Of a template (ms): longer than a snippet, for what collides with a spike from outside of it."""
TAPER_MS = 0.3
"""Over which a template fades in and out (ms)."""
CLEAN_LIMIT = 5.0
"""Noise levels; a spike from which its template leaves more than this collides with another one."""
MIN_CLEAN_SHARE = 0.5
"""Of a unit's spikes; where fewer are clean, the cleanest are taken."""
MAX_LABELS = 300
"""Spikes of each unit that are looked at, evenly spread."""
MAX_TRACE_BYTES = 64 << 20
"""Of traces kept in memory as background."""
NUM_NOISE = 2000
"""Places at which the traces are projected to know what noise alone does."""
IQR_TO_STD = 1 / 1.349
"""Standard deviation of a Gaussian over its interquartile range."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stretches:
    """Whitened traces of some seconds, one after the other.

    Attributes
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Noise units.
    centers : ndarray of shape (n_centers,), int64
        Samples around which a whole template fits without leaving its stretch.
    """

    traces: np.ndarray
    centers: np.ndarray


@dataclass(frozen=True)
class LabelledUnits:
    """Units of one shank, learned from labelled spikes.

    Attributes
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Whitened, noise units, the labelled time at ``num_before``.
    num_before : int
    main_channel : ndarray of shape (n_units,), int64
    peak_offset : ndarray of shape (n_units,), int64
        Samples from the labelled time to the extremum on the main channel.
    scales : tuple of ndarray
        Amplitudes of some spikes of each unit over the template's, without what noise adds to them.
    jitter : float
        Standard deviation of the labelled times about the true ones, samples.
    """

    templates: np.ndarray
    num_before: int
    main_channel: np.ndarray
    peak_offset: np.ndarray
    scales: tuple[np.ndarray, ...]
    jitter: float


def read_stretches(
    recording: Recording, preprocessor: Preprocessor, run: RunParams, num_samples: int
) -> Stretches:
    """Keep some seconds of whitened traces, evenly spread.

    Parameters
    ----------
    num_samples : int
        That must be at hand on both sides of a center.
    """
    fs = recording.sampling_frequency
    blocks = cut_blocks(recording.segments, fs)
    most = max(4, MAX_TRACE_BYTES // int(4 * fs * len(preprocessor.channels)))
    parts = list(
        map_blocks(
            lambda block, raw: preprocessor.whiten(preprocessor.filter(raw, block)),
            recording,
            spread_blocks(blocks, most),
            margin=preprocessor.margin,
            run=run,
        )
    )
    ends = np.cumsum([len(part) for part in parts])
    centers = [
        np.arange(end - len(part) + num_samples, end - num_samples)
        for end, part in zip(ends, parts, strict=True)
    ]
    return Stretches(np.concatenate(parts), np.concatenate(centers))


def mean_waveforms(
    recording: Recording,
    preprocessor: Preprocessor,
    samples: Sequence[np.ndarray],
    run: RunParams,
) -> np.ndarray:
    """Mean whitened waveform of each unit's labelled spikes.

    Parameters
    ----------
    samples : sequence of ndarray
        Of each unit's spikes, sample index, in ascending order.

    Returns
    -------
    ndarray of shape (n_units, n_samples, n_channels), float32
    """
    before, length = template_window(recording.sampling_frequency)
    channels = np.arange(len(preprocessor.channels))[None]

    def add(traces: np.ndarray, local: np.ndarray, units: np.ndarray) -> list[tuple[int, np.ndarray]]:
        return [
            (int(unit), _cut(traces, local[units == unit], channels, before, length).sum(axis=0))
            for unit in np.unique(units)
        ]

    total = np.zeros((len(samples), length, channels.shape[1]))
    for sums in _walk(recording, preprocessor, samples, add, run):
        for unit, waveform in sums:
            total[unit] += waveform
    counts = np.maximum([len(train) for train in samples], 1)
    return (total / np.asarray(counts)[:, None, None]).astype(np.float32)


def learn_units(
    recording: Recording,
    preprocessor: Preprocessor,
    neighborhoods: np.ndarray,
    samples: Sequence[np.ndarray],
    rough: np.ndarray,
    stretches: Stretches,
    *,
    seed: int,
    run: RunParams,
) -> LabelledUnits:
    """Learn units from their labelled spikes.

    Parameters
    ----------
    recording, preprocessor
        Where to look.
    neighborhoods : ndarray of shape (n_channels, n_slots), int64
        Channels of a snippet around each channel.
    samples : sequence of ndarray
        Of each unit's labelled spikes, sample index, in ascending order.
    rough : ndarray of shape (n_units, n_samples, n_channels)
        Their mean waveforms.
    stretches : Stretches
    seed : int
        Of the places where noise is measured.
    run : RunParams

    Notes
    -----
    A spike is cut where its label says: how well the times of labels agree is measured, not assumed. The
    spread of amplitudes, and of times, is what labelled spikes show beyond what the same projections show
    anywhere in the traces.
    """
    before, length = template_window(recording.sampling_frequency)
    samples = [_spread(train) for train in samples]
    main = np.abs(rough).max(axis=1).argmax(axis=1)
    slots = neighborhoods[main]
    snippets = _cut_at(recording, preprocessor, samples, slots, run)
    clean = []
    for unit, waveforms in enumerate(snippets):
        template = np.where(slots[unit] >= 0, rough[unit][:, slots[unit]], 0.0)
        scale = np.einsum("nts,ts->n", waveforms, template) / (template**2).sum()
        left = np.abs(waveforms - scale[:, None, None] * template).max(axis=(1, 2))
        clean.append(left <= max(CLEAN_LIMIT, np.quantile(left, MIN_CLEAN_SHARE)))
    templates = mean_waveforms(
        recording, preprocessor, [t[c] for t, c in zip(samples, clean, strict=True)], run
    )
    templates *= _taper(length, to_samples(TAPER_MS, recording.sampling_frequency))[:, None]
    rng = np.random.default_rng(seed)
    places = rng.choice(stretches.centers, NUM_NOISE)
    noise = stretches.traces[places[:, None] + np.arange(-before, length - before)]
    scales, jitter, weight = [], [], []
    for unit, waveforms in enumerate(snippets):
        template = np.where(slots[unit] >= 0, templates[unit][:, slots[unit]], 0.0)
        slope = np.gradient(template, axis=0)
        own, background = waveforms[clean[unit]], noise[:, :, slots[unit]]
        scale, scale_share = _beyond_noise(own - template, background, template)
        scales.append((1 + scale_share * scale).astype(np.float32))
        shift, shift_share = _beyond_noise(own - template, background, slope)
        jitter.append(shift_share * _spread_of(shift))
        weight.append(len(own) * np.sqrt((slope**2).sum()))
    course = templates[np.arange(len(main)), :, main]
    return LabelledUnits(
        templates=templates,
        num_before=before,
        main_channel=main,
        peak_offset=np.abs(course).argmax(axis=1) - before,
        scales=tuple(scales),
        jitter=float(np.average(jitter, weights=weight)),
    )


def _beyond_noise(
    residuals: np.ndarray, background: np.ndarray, shape: np.ndarray
) -> tuple[np.ndarray, float]:
    """Amount of ``shape`` in each residual, and the share of its spread that is not noise's."""
    energy = max(float((shape**2).sum()), 1e-12)
    amount = np.einsum("nts,ts->n", residuals, shape) / energy
    by_noise = _spread_of(np.einsum("nts,ts->n", background, shape) / energy)
    spread = _spread_of(amount)
    share = np.sqrt(max(spread**2 - by_noise**2, 0.0)) / max(spread, 1e-12)
    return amount, float(share)


def _spread_of(values: np.ndarray) -> float:
    low, high = np.percentile(values, [25, 75])
    return float((high - low) * IQR_TO_STD)


def template_window(sampling_frequency: float) -> tuple[int, int]:
    """Samples of a template before the labelled time, and in all."""
    before = to_samples(MS_BEFORE, sampling_frequency)
    return before, before + to_samples(MS_AFTER, sampling_frequency)


def _taper(length: int, rise: int) -> np.ndarray:
    ramp = np.sin(0.5 * np.pi * (np.arange(rise) + 0.5) / rise) ** 2
    weights = np.ones(length, dtype=np.float32)
    weights[:rise] = ramp
    weights[-rise:] = ramp[::-1]
    return weights


def _spread(train: np.ndarray) -> np.ndarray:
    if len(train) <= MAX_LABELS:
        return train
    return train[np.linspace(0, len(train) - 1, MAX_LABELS).round().astype(int)]


def _cut(
    traces: np.ndarray, local: np.ndarray, channels: np.ndarray, num_before: int, num_samples: int
) -> np.ndarray:
    return cut_snippets(
        traces,
        local,
        np.zeros(len(local), dtype=np.float32),
        np.broadcast_to(channels, (len(local), channels.shape[-1])),
        num_before=num_before,
        num_samples=num_samples,
    )


def _cut_at(
    recording: Recording,
    preprocessor: Preprocessor,
    samples: Sequence[np.ndarray],
    slots: np.ndarray,
    run: RunParams,
) -> list[np.ndarray]:
    """Snippets of each unit's spikes on the unit's channels."""
    before, length = template_window(recording.sampling_frequency)

    def cut(traces: np.ndarray, local: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return units, _cut(traces, local, slots[units], before, length)

    parts = list(_walk(recording, preprocessor, samples, cut, run))
    units = np.concatenate([part[0] for part in parts])
    waveforms = np.concatenate([part[1] for part in parts])
    return [waveforms[units == unit] for unit in range(len(samples))]


def _walk(
    recording: Recording,
    preprocessor: Preprocessor,
    samples: Sequence[np.ndarray],
    work: Callable[[np.ndarray, np.ndarray, np.ndarray], Result],
    run: RunParams,
) -> list[Result]:
    """Call ``work(whitened traces, samples within them, units)`` for each block with labelled spikes."""
    _, length = template_window(recording.sampling_frequency)
    margin = length + LANCZOS_TAPS
    flat = np.concatenate(samples)
    units = np.repeat(np.arange(len(samples)), [len(train) for train in samples])
    order = np.argsort(flat, kind="stable")
    flat, units = flat[order], units[order]
    blocks = [
        block
        for block in cut_blocks(recording.segments, recording.sampling_frequency)
        if np.searchsorted(flat, block.start) < np.searchsorted(flat, block.stop)
    ]

    def run_block(block, raw):  # type: ignore[no-untyped-def]
        low, high = np.searchsorted(flat, [block.start, block.stop])
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        return work(traces, flat[low:high] - block.start + margin, units[low:high])

    return list(map_blocks(run_block, recording, blocks, margin=preprocessor.margin + margin, run=run))
