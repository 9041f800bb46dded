"""Find templates that are no unit (low, rare, sums, crowds, misfits, echoes, restless), and far spikes."""

from collections.abc import Sequence

import numba
import numpy as np
from scipy.special import pdtrc

from accm_core.params import MatchParams, to_samples
from accm_core.sorting.cluster import measure_bimodality
from accm_core.sorting.match import Matches, TemplateBank
from accm_core.sorting.merge import MIN_EXPECTED, REFRACTORY_MS, follow_in_bursts
from accm_core.sorting.quality import ISI_THRESHOLD_S
from accm_core.sorting.sizes import MIN_OWN, find_least

EXPLAINED = 0.96
"""Share of a template's energy that two other units must explain for it to be their sum."""
MAX_CLOSE_RATIO, MAX_CLOSE_SHARE, MIN_CLOSE = 2.0, 0.05, 20
"""Intervals under ``ISI_THRESHOLD_S`` of a crowd: over what unrelated spikes give, of all, and at least."""
FAR_ABOVE = 3.0
"""Noise levels above the threshold from which on a unit is no small one."""
MAX_RESTLESS, RESTLESS_CHANCE = 0.5, 1e-3
"""Intervals within the refractory time, in shares of what unrelated spikes give, that no neuron reaches, and
probability under which it is not by chance that a unit has more."""
MIN_MEDIAN_SCALE = 0.6
"""A template is the mean of its own spikes: half of them are larger than this, even if others' add to it."""
ECHO_MS, ECHO_ENERGY, MAX_ECHOES = 0.3, 4.0, 0.3
"""Time within which delays to a larger unit's spikes are the same, how many times larger its energy is, and
the share of a unit's spikes, beyond chance, from which on they are what that one's template leaves."""
MIN_GAP_SCORE, MAX_FAR_SIZE, MAX_FAR = 2.0, 0.8, 0.75
"""Score of bimodality from which on a unit's small spikes are another's, the largest of them in shares of the
usual size of the others, and their largest share of all."""
SCALE_TOLERANCE = 0.4
"""In a true sum each of them has about its own amplitude: its scale is this close to 1."""
MAX_SYNCHRONY = 10.0
"""Two neurons fire together up to this many times as often as by chance."""
MIN_DETERMINANT = 1e-3
"""Parts that are more alike than this are one and cannot be fitted both."""


def find_low(mean: np.ndarray, noise_levels: np.ndarray, min_peak: float) -> np.ndarray:
    """Mask of units whose mean waveform is too low at its peak.

    Parameters
    ----------
    mean : ndarray of shape (n_units, n_samples, n_channels)
        Band-passed mean waveforms, µV; zero for a unit without a clean spike.
    noise_levels : ndarray of shape (n_channels,)
        Of the band-passed traces, µV.
    min_peak : float
        In noise levels.

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    heights = (np.abs(mean).max(axis=1) / noise_levels).max(axis=1, initial=0)
    return (heights > 0) & (heights < min_peak)


def find_restless(
    matches: Matches,
    bank: TemplateBank,
    energy: np.ndarray,
    params: MatchParams,
    *,
    num_samples: int,
    sampling_frequency: float,
) -> np.ndarray:
    """Mask of the small units that do not rest after their spikes, as any neuron does: of many far neurons.

    Parameters
    ----------
    matches : Matches
        In order of time.
    bank : TemplateBank
    energy : ndarray of shape (n,)
        Of the template at each match: the bank's where it does not move.
    params : MatchParams
    num_samples : int
        That were observed.
    sampling_frequency : float
        Hz.

    Returns
    -------
    ndarray of shape (n_units,), bool
        False where there are too few spikes to tell.
    """
    units = matches.unit_index
    least = find_least(energy, bank.prior[units], bank.log_rate[units], params)
    height = (matches.free_scale(bank, energy) * energy - least) / np.sqrt(energy)
    shortest = to_samples(params.refractory_ms, sampling_frequency)
    rest = to_samples(REFRACTORY_MS, sampling_frequency)
    is_restless = np.zeros(len(bank.energy), dtype=bool)
    for unit in np.unique(matches.unit_index):
        rows = matches.unit_index == unit
        intervals = np.diff(matches.sample_index[rows])
        num_close = np.count_nonzero((intervals > shortest) & (intervals < rest))
        by_chance = np.count_nonzero(rows) ** 2 * (rest - shortest) / num_samples
        never_rests = pdtrc(num_close - 1, MAX_RESTLESS * by_chance) < RESTLESS_CHANCE
        is_small = np.median(height[rows]) < FAR_ABOVE
        is_restless[unit] = is_small and by_chance >= MIN_EXPECTED and never_rests
    return is_restless


def find_sums(
    bank: TemplateBank,
    counts: np.ndarray,
    max_lag: int,
    *,
    observed: int | None = None,
    explained: float = EXPLAINED,
) -> np.ndarray:
    """Mask of templates that are sums of two others, as clusters of colliding spikes give.

    Parameters
    ----------
    bank : TemplateBank
    counts : ndarray of shape (n_units,), int64
        Spikes of each unit. Two neurons fire together less often than either does.
    max_lag : int
        Largest delay between the template and either part, samples.
    observed : int, optional
        Samples in which the spikes were counted: sums are no more frequent than chance allows. Without it, no
        more frequent than their parts.
    explained : float
        Share of a template's energy that the others must explain.

    Returns
    -------
    ndarray of shape (n_units,), bool

    Notes
    -----
    All pairs of more frequent units are tried at all delays, each part with the scale that fits best: a sum
    taken apart one unit after the other often begins with a third that looks like it.
    """
    is_sum = np.zeros(len(bank.energy), dtype=bool)
    meetings = np.inf if observed is None else MAX_SYNCHRONY * (2 * max_lag + 1) / observed
    for unit in np.argsort(counts, kind="stable"):
        parts = np.flatnonzero((bank.pair_row[unit] >= 0) & (counts > counts[unit]) & ~is_sum)
        if len(parts) >= 2:
            least = counts[unit] / meetings
            held = _explain_by_pair(
                unit,
                parts,
                counts,
                least,
                bank.energy,
                bank.pair_row,
                bank.correlations,
                max_lag,
                SCALE_TOLERANCE,
            )
            is_sum[unit] = held >= explained * bank.energy[unit]
    return is_sum


@numba.njit(cache=True, nogil=True)
def _explain_by_pair(unit, parts, counts, least, energy, pair_row, correlations, max_lag, tolerance):  # type: ignore[no-untyped-def]
    """Energy of the unit's template that the best sum of two parts explains."""
    middle = correlations.shape[1] // 2
    best = 0.0
    for i in range(len(parts)):
        first = parts[i]
        own = energy[first]
        for j in range(i):
            second = parts[j]
            if counts[first] * counts[second] < least:
                continue
            other, row = energy[second], pair_row[first, second]
            for lag in range(-max_lag, max_lag + 1):
                fit = correlations[pair_row[unit, first], middle + lag]
                if fit <= 0:
                    continue
                for other_lag in range(-max_lag, max_lag + 1):
                    other_fit = correlations[pair_row[unit, second], middle + other_lag]
                    if other_fit <= 0:
                        continue
                    apart = middle + other_lag - lag
                    shared = 0.0
                    if row >= 0 and 0 <= apart < correlations.shape[1]:
                        shared = correlations[row, apart]
                    determinant = own * other - shared * shared
                    if determinant <= MIN_DETERMINANT * own * other:
                        continue
                    scale = (fit * other - shared * other_fit) / determinant
                    other_scale = (other_fit * own - shared * fit) / determinant
                    if abs(scale - 1) <= tolerance and abs(other_scale - 1) <= tolerance:
                        best = max(best, scale * fit + other_scale * other_fit)
    return best


def find_misfits(matches: Matches, bank: TemplateBank, energy: np.ndarray) -> np.ndarray:
    """Mask of units that mostly match what is much smaller than they are.

    Parameters
    ----------
    matches : Matches
    bank : TemplateBank
    energy : ndarray of shape (n,)
        Of the template at each match.

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    scale = matches.free_scale(bank, energy)
    medians = np.ones(len(bank.energy))
    for unit in np.unique(matches.unit_index):
        medians[unit] = np.median(scale[matches.unit_index == unit])
    return medians < MIN_MEDIAN_SCALE


def find_echoes(
    matches: Matches, bank: TemplateBank, *, num_samples: int, sampling_frequency: float
) -> np.ndarray:
    """Mask of units whose spikes often come at one and the same delay to those of a much larger unit.

    Where a template ends before its spikes do, or does not fit them all, what is left of them looks like the
    spikes of another unit.

    Parameters
    ----------
    matches : Matches
        In order of time.
    bank : TemplateBank
    num_samples : int
        That were observed.
    sampling_frequency : float
        Hz.

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    width = to_samples(ECHO_MS, sampling_frequency)
    trains = [matches.sample_index[matches.unit_index == unit] for unit in range(len(bank.energy))]
    is_echo = np.zeros(len(trains), dtype=bool)
    for unit, train in enumerate(trains):
        larger = (bank.pair_row[unit] >= 0) & (bank.energy > ECHO_ENERGY * bank.energy[unit])
        for other in np.flatnonzero(larger) if len(train) else ():
            by_chance = len(train) * len(trains[other]) * width / num_samples
            delays = _count_delays(train, trains[other], bank.num_samples)
            most = np.convolve(delays, np.ones(width)).max()
            is_echo[unit] |= most - by_chance > MAX_ECHOES * len(train)
    return is_echo


@numba.njit(cache=True, nogil=True)
def _count_delays(first, second, reach):  # type: ignore[no-untyped-def]
    """Pairs of spikes, one of each train, by what the first comes after the second, from -reach to reach."""
    counts = np.zeros(2 * reach + 1, dtype=np.int64)
    begin = 0
    for sample in first:
        while begin < len(second) and second[begin] < sample - reach:
            begin += 1
        k = begin
        while k < len(second) and second[k] <= sample + reach:
            counts[sample - second[k] + reach] += 1
            k += 1
    return counts


def find_rare(matches: Matches, names: Sequence[str], min_size: int) -> np.ndarray:
    """Mask of units without a name that have fewer spikes in all than a cluster must have in part, bool.

    Such a template is what is left of a cluster whose spikes others explain better.
    """
    counts = np.bincount(matches.unit_index, minlength=len(names))
    return (counts < min_size) & (np.array(names, dtype=object) == "")


def find_far_spikes(
    matches: Matches, sizes: np.ndarray, num_units: int, num_samples: int, sampling_frequency: float
) -> np.ndarray:
    """Mask of the spikes of far neurons: a unit's small ones, where a gap parts them from the others.

    Parameters
    ----------
    matches : Matches
        In order of time.
    sizes : ndarray of shape (n,)
        Scale that the traces alone give each (`Matches.free_scale`); that of matching leans towards 1, which
        closes gaps.
    num_units : int
    num_samples : int
        That were observed.
    sampling_frequency : float
        Hz.

    Returns
    -------
    ndarray of shape (n,), bool

    Notes
    -----
    Neurons that fire in bursts have small spikes of their own, but these follow their large ones.
    """
    is_small = np.zeros(len(matches), dtype=bool)
    for unit in range(num_units):
        rows = np.flatnonzero(matches.unit_index == unit)
        size = sizes[rows].astype(np.float64)
        score, cut = measure_bimodality(np.sort(size)) if len(rows) else (0.0, 0.0)
        small = size < cut
        if score < MIN_GAP_SCORE or not small.any() or small.mean() > MAX_FAR:
            continue
        if cut > MAX_FAR_SIZE * np.median(size[~small]):
            continue
        is_small[rows] = small
    return _spare_bursts(matches, is_small, num_units, num_samples, sampling_frequency)


def find_piled(
    matches: Matches, own: np.ndarray, num_units: int, num_samples: int, sampling_frequency: float
) -> np.ndarray:
    """Mask of the spikes that most likely are far neurons', as the sizes of a unit's spikes tell.

    Parameters
    ----------
    matches, num_units, num_samples, sampling_frequency
        As for `find_far_spikes`.
    own : ndarray of shape (n,), float64
        Probability that each is its unit's (`judge_sizes`).

    Returns
    -------
    ndarray of shape (n,), bool
        As there, none where small spikes follow large ones in bursts.
    """
    return _spare_bursts(matches, own < MIN_OWN, num_units, num_samples, sampling_frequency)


def _spare_bursts(
    matches: Matches, is_small: np.ndarray, num_units: int, num_samples: int, sampling_frequency: float
) -> np.ndarray:
    """``is_small``, (n,), without the spikes of units whose small ones follow the others in bursts."""
    is_far = is_small.copy()
    for unit in range(num_units):
        own = matches.unit_index == unit
        large, small = (matches.sample_index[own & side] for side in (~is_small, is_small))
        if len(large) and len(small):
            is_far[own] &= not follow_in_bursts(large, small, num_samples, sampling_frequency)
    return is_far


def find_crowds(matches: Matches, num_units: int, num_samples: int, sampling_frequency: float) -> np.ndarray:
    """Mask of units with more intervals under ``ISI_THRESHOLD_S`` than unrelated spikes would give.

    Far neurons that fire together, or one spike found twice, give such trains; no neuron does.

    Parameters
    ----------
    matches : Matches
        In order of time.
    num_units : int
    num_samples : int
        That were observed.
    sampling_frequency : float
        Hz.

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    is_crowd = np.zeros(num_units, dtype=bool)
    close = ISI_THRESHOLD_S * sampling_frequency
    for unit in range(num_units):
        samples = matches.sample_index[matches.unit_index == unit]
        num_close = int((np.diff(samples) < close).sum())
        by_chance = len(samples) ** 2 * close / num_samples
        is_crowd[unit] = (
            num_close >= MIN_CLOSE
            and num_close > MAX_CLOSE_RATIO * by_chance
            and num_close > MAX_CLOSE_SHARE * len(samples)
        )
    return is_crowd
