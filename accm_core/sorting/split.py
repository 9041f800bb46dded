"""One unit or several: neurons alike enough to share a cluster are told apart by what their template leaves.

Among spikes of one neuron, what is left when its template's size and time are fitted is noise. Among spikes
of several, it also holds their difference. Where noise is white, a Gaussian mixture with one covariance
decides by the Bayesian information criterion (Schwarz 1978) how many there are.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import linalg
from scipy.stats.contingency import association
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from accm_core.params import MatchParams, RunParams, to_samples
from accm_core.signal.chunks import Block, map_blocks
from accm_core.signal.preprocess import Preprocessor
from accm_core.signal.snippets import cut_snippets
from accm_core.sorting.match import TemplateBank, match_templates, noise_root
from accm_core.sorting.prune import FAR_ABOVE
from accm_core.sorting.recover import find_clean, first_of_each
from accm_core.types import Recording

MAX_WAVEFORMS, MAX_OF_UNIT = 40_000, 4_000
"""Spikes looked at, in all and of one unit."""
MIN_WAVEFORMS = 300
"""Fewer spikes show no difference that would be worth a unit."""
MS_AFTER = 2.0
"""After the peak, on which they are compared: later there is more noise than neuron."""
NUM_CHANNELS = 6
"""Of the unit's largest, on which its spikes are compared."""
NUM_DIMS, MAX_PARTS = 2, 4
"""Directions of largest variance in which parts are sought; parts of a unit at most."""
MIN_EVIDENCE = 30.0
"""By which the criterion must fall."""
MIN_SHARE = 0.15
"""Of a unit's spikes that each part must have: fewer are collisions."""
NUM_PERIODS, MAX_ASSOCIATION = 20, 0.25
"""Periods of the recording, and Cramér's V of part and period above which it is one neuron that moves."""


def split_units(
    recording: Recording,
    preprocessor: Preprocessor,
    blocks: Sequence[Block],
    bank: TemplateBank,
    params: MatchParams,
    *,
    seed: int,
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
    seed : int
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
    # of smaller ones a part is under the threshold: what is seen of them is no Gaussian
    is_whole = bank.energy >= (params.threshold + FAR_ABOVE) ** 2

    def work(block: Block, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        traces = preprocessor.whiten(preprocessor.filter(raw, block))
        found = match_templates(traces, bank, params, refractory=refractory)
        inside = (found.sample_index >= bank.margin) & (found.sample_index < len(traces) - bank.margin)
        wanted = inside & is_whole[found.unit_index] & find_clean(found, bank)
        rows = first_of_each(found.unit_index, wanted, quota)
        found = found.select(rows)
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
            labels = tell_neurons(
                own[:, :shown],
                period[unit_index == unit],
                template[:shown, channels[unit]],
                root,
                seed=seed,
            )
        for label in range(labels.max(initial=0) + 1):
            part = template.copy()
            if labels.any():
                part[:, channels[unit]] = own[labels == label].mean(axis=0)
            templates.append(part)
    return np.array(templates, dtype=np.float32).reshape(-1, *bank.templates.shape[1:])


def tell_neurons(
    waveforms: np.ndarray, period: np.ndarray, template: np.ndarray, root: np.ndarray, *, seed: int
) -> np.ndarray:
    """Assign a unit's spikes to one neuron or several.

    Parameters
    ----------
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Whitened over channels.
    period : ndarray of shape (n_spikes,), int64
        In which part of the recording each is.
    template : ndarray of shape (n_samples, n_channels), float32
    root : ndarray of shape (n_samples, n_samples)
        Lower Cholesky factor of the noise's covariance over time.
    seed : int

    Returns
    -------
    ndarray of shape (n_spikes,), int64
        All zero for one neuron.
    """
    one = np.zeros(len(waveforms), dtype=np.int64)
    if len(waveforms) < MIN_WAVEFORMS:
        return one
    rows = _whiten_time(waveforms, root)
    fitted = _whiten_time(np.stack([template, np.gradient(template, axis=0)]), root)
    basis = np.linalg.qr(fitted.T)[0]
    rows -= rows.mean(axis=0)
    rows -= (rows @ basis) @ basis.T
    _, vectors = linalg.eigh(rows.T @ rows, subset_by_index=[rows.shape[1] - NUM_DIMS, rows.shape[1] - 1])
    points = rows @ vectors
    best, labels = -MIN_EVIDENCE, one
    alone = np.inf
    for num_parts in range(1, MAX_PARTS + 1):
        mixture = GaussianMixture(num_parts, covariance_type="tied", n_init=3, random_state=seed).fit(points)
        if num_parts == 1:
            alone = mixture.bic(points)
        elif mixture.bic(points) - alone < best and mixture.weights_.min() >= MIN_SHARE:
            best, labels = mixture.bic(points) - alone, mixture.predict(points)
    return one if labels.any() and _follows_time(labels, period) else labels


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
