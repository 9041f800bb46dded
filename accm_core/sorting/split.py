"""One unit or two: neurons alike enough to share a cluster are told apart once they are matched.

Once matching has found a unit's spikes, those without an overlap differ by noise and, if they are of several
neurons, by what sets those apart. Where noise is white, two Gaussians of one covariance, beside a broad one
for collisions, are compared with a single one by the Bayesian information criterion (Schwarz 1978); what is
two is looked at again, part by part. So a second neuron is seen that fires thirty times less often than the
first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.special import logsumexp
from scipy.stats.contingency import association
from threadpoolctl import threadpool_limits

from accm_core.params import MatchParams, RunParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import cut_snippets
from accm_core.sorting.cluster import take_apart
from accm_core.sorting.gaussian import log_density
from accm_core.sorting.match import TemplateBank, match_templates, noise_root
from accm_core.sorting.recover import find_clean, first_of_each
from accm_core.types import Recording

MAX_WAVEFORMS, MAX_OF_UNIT = 40_000, 4_000
"""Spikes looked at, in all and of one unit."""
MIN_WAVEFORMS = 100
"""Fewer spikes show no difference that would be worth a unit."""
MS_AFTER = 2.0
"""After the peak, on which they are compared: later there is more noise than neuron."""
NUM_CHANNELS = 6
"""Of the unit's largest, on which its spikes are compared."""
NUM_DIMS = 3
"""Directions of largest variance in which two parts are sought."""
TAILS = (0.03, 0.1, 0.3)
"""Shares of the spikes, at either end of a direction, each of which is tried as the start of a part."""
NUM_TRIED, NUM_STEPS = 10, 60
"""Steps of expectation and maximisation from each start, and from where the best of them led."""
COLLISIONS, BREADTH = 0.05, 9.0
"""Share of the spikes that are collisions, and how many times the variance of a neuron theirs is."""
MIN_EVIDENCE, MIN_SEPARATION, MIN_PART = 30.0, 2.5, 20
"""By which the criterion must fall for two; standard deviations between them; spikes of the smaller part."""
RIDGE = 1e-3
"""Share of the mean variance added to the covariance."""
NUM_PERIODS, MAX_ASSOCIATION = 20, 0.25
"""Periods of the recording, and Cramér's V of part and period above which it is one neuron that moves."""


def split_units(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    bank: TemplateBank,
    params: MatchParams,
    *,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Templates of the units, with those of several neurons replaced by their parts.

    Parameters
    ----------
    recording, preprocessor, blocks
        Where to look.
    bank : TemplateBank
    params : MatchParams
    run : RunParams
    on_block : callable, optional
        Called with the share that is done.

    Returns
    -------
    ndarray of shape (n_units_after, n_samples, n_channels), float32
        Those of the bank when all units are one neuron's.
    """
    heights = np.abs(bank.templates).max(axis=1)
    channels = np.argsort(-heights, axis=1, kind="stable")[:, :NUM_CHANNELS]
    refractory = to_samples(params.refractory_ms, recording.sampling_frequency)
    of_unit = min(MAX_OF_UNIT, MAX_WAVEFORMS // max(len(bank.energy), 1))
    quota = -(-of_unit // max(len(blocks), 1))

    def work(block: Block, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        found = match_templates(traces, bank, params, refractory=refractory)
        inside = (found.sample_index >= bank.margin) & (found.sample_index < len(traces) - bank.margin)
        found = found.select(first_of_each(found.unit_index, inside & find_clean(found, bank), quota))
        waveforms = cut_snippets(
            traces,
            found.sample_index,
            found.offset,
            channels[found.unit_index],
            num_before=bank.num_before,
            num_samples=bank.num_samples,
        )
        return found.unit_index, waveforms

    margin = preprocessor.margin + bank.margin
    parts = list(map_blocks(work, recording, blocks, margin=margin, run=run, on_block=on_block))
    unit_index = np.concatenate([part[0] for part in parts])
    waveforms = np.concatenate([part[1] for part in parts])
    period = np.repeat(np.arange(len(parts)) * NUM_PERIODS // len(parts), [len(part[0]) for part in parts])
    shown = min(bank.num_before + to_samples(MS_AFTER, recording.sampling_frequency), bank.num_samples)
    root = noise_root(preprocessor.autocovariance, shown)
    templates = []
    for unit, template in enumerate(bank.templates):
        own = waveforms[unit_index == unit]
        # sums in one order, whatever the number of cores
        with threadpool_limits(1):
            labels = tell_neurons(own[:, :shown], period[unit_index == unit], root)
        for label in range(labels.max(initial=0) + 1):
            part = template.copy()
            if labels.any():
                part[:, channels[unit]] = own[labels == label].mean(axis=0)
            templates.append(part)
    return np.array(templates, dtype=np.float32).reshape(-1, *bank.templates.shape[1:])


def tell_neurons(waveforms: np.ndarray, period: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Assign a unit's spikes to one neuron or several.

    Parameters
    ----------
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Whitened over channels.
    period : ndarray of shape (n_spikes,), int64
        In which part of the recording each is.
    root : ndarray of shape (n_samples, n_samples)
        Lower Cholesky factor of the noise's covariance over time.

    Returns
    -------
    ndarray of shape (n_spikes,), int64
        All zero for one neuron.
    """
    one = np.zeros(len(waveforms), dtype=np.int64)
    if len(waveforms) < MIN_WAVEFORMS:
        return one
    rows = _whiten_time(waveforms, root)
    labels = one.copy()
    for label, part in enumerate(take_apart(np.arange(len(rows)), lambda own: find_second(rows[own]))):
        labels[part] = label
    return one if labels.any() and _follows_time(labels, period) else labels


def find_second(rows: np.ndarray) -> np.ndarray | None:
    """Which spikes are a second neuron's, (n_spikes,) bool; None for one.

    Parameters
    ----------
    rows : ndarray of shape (n_spikes, n_values), float64
        Where noise is white.
    """
    num_spikes, num_values = rows.shape
    if num_spikes < 2 * MIN_PART:
        return None
    rows = rows - rows.mean(axis=0)
    _, axes = linalg.eigh(rows.T @ rows, subset_by_index=[max(num_values - NUM_DIMS, 0), num_values - 1])
    points = rows @ axes
    alone = _fit(points, np.ones((num_spikes, 1)), NUM_STEPS)
    tried = [_fit(points, start, NUM_TRIED) for start in _find_starts(points)]
    two = _fit(points, max(tried, key=lambda fit: fit.log_likelihood).shares, NUM_STEPS)
    # a further mean and a further weight
    evidence = 2 * (two.log_likelihood - alone.log_likelihood) - (points.shape[1] + 1) * np.log(num_spikes)
    is_second = two.shares[:, 1] > two.shares[:, 0]
    is_large = min(is_second.sum(), (~is_second).sum()) >= MIN_PART
    return is_second if is_large and evidence >= MIN_EVIDENCE and two.separation >= MIN_SEPARATION else None


def _find_starts(points: np.ndarray) -> list[np.ndarray]:
    """Shares of two parts in each point, (n_points, 2), to begin with."""
    sides = [
        side
        for line in points.T
        for tail in TAILS
        for side in (line < np.quantile(line, tail), line > np.quantile(line, 1 - tail))
    ]
    return [np.stack([~side, side], axis=1).astype(np.float64) for side in sides]


class _Fit(NamedTuple):
    """One Gaussian or two of one covariance, beside a broad one."""

    shares: np.ndarray
    """Of each, but for the broad one, in each point, (n_points, n_gaussians)."""
    log_likelihood: float
    separation: float
    """Standard deviations between the first and the last."""


def _fit(points: np.ndarray, shares: np.ndarray, num_steps: int) -> _Fit:
    """Fit as many Gaussians as ``shares``, (n_points, n_gaussians), has columns; from there on."""
    num_dims = points.shape[1]
    for _ in range(num_steps):
        weights = np.maximum(shares.sum(axis=0), 1.0)
        means = shares.T @ points / weights[:, None]
        covariance = (points * shares.sum(axis=1)[:, None]).T @ points - (means.T * weights) @ means
        covariance /= weights.sum()
        covariance += RIDGE * np.trace(covariance) / num_dims * np.eye(num_dims)
        middle = weights @ means / weights.sum()
        logs = [log_density(points - mean, covariance) for mean in means]
        logs.append(log_density(points - middle, BREADTH * covariance))
        weighted = np.stack(logs, axis=1)
        weighted += np.log(np.append((1 - COLLISIONS) * weights / weights.sum(), COLLISIONS))
        log_total = logsumexp(weighted, axis=1)
        shares = np.exp(weighted[:, :-1] - log_total[:, None])
    apart = means[-1] - means[0]
    separation = np.sqrt(apart @ np.linalg.solve(covariance, apart))
    return _Fit(shares, float(log_total.sum()), float(separation))


def _follows_time(labels: np.ndarray, period: np.ndarray) -> bool:
    """Whether the parts take turns, as the shapes of one drifting neuron do."""
    table = np.zeros((labels.max() + 1, period.max() + 1), dtype=np.int64)
    np.add.at(table, (labels, period), 1)
    table = table[:, table.any(axis=0)]
    return table.shape[1] > 1 and association(table) > MAX_ASSOCIATION


def _whiten_time(waveforms: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Rows of (n, n_samples, n_channels) in which noise is white, (n, n_channels * n_samples), float64."""
    courses = waveforms.transpose(0, 2, 1).reshape(-1, len(root)).astype(np.float64)
    return linalg.solve_triangular(root, courses.T, lower=True).T.reshape(len(waveforms), -1)
