"""Drop templates that are no unit: too weak to be told from noise, or the sum of other units."""

from dataclasses import replace

import numpy as np

from accm_core.params import MatchParams
from accm_core.sorting.match import Matches, TemplateBank, pursue_fits

EXPLAINED = 0.97
"""Share of a template's energy that other units, at least two, must explain for it to be their sum."""
MIN_MEDIAN_SCALE = 0.85
"""A template is the mean of its own spikes: half of them are larger than about this."""
SCALE_TOLERANCE = 0.3
"""In a true sum each of them has about its own amplitude: its scale is this close to 1."""


def find_weak(
    bank: TemplateBank,
    mean: np.ndarray,
    noise_levels: np.ndarray,
    params: MatchParams,
) -> np.ndarray:
    """Mask of units too small to be recovered, in all or at their peak.

    Parameters
    ----------
    bank : TemplateBank
    mean : ndarray of shape (n_units, n_samples, n_channels)
        Band-passed mean waveforms, µV; zero for a unit without a clean spike.
    noise_levels : ndarray of shape (n_channels,)
        Of the band-passed traces, µV.
    params : MatchParams

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    heights = (np.abs(mean).max(axis=1) / noise_levels).max(axis=1, initial=0)
    return (np.sqrt(bank.energy) < params.min_snr) | ((heights > 0) & (heights < params.min_peak))


def find_sums(bank: TemplateBank, params: MatchParams) -> np.ndarray:
    """Mask of templates that are sums of others, as clusters of colliding spikes give.

    Parameters
    ----------
    bank : TemplateBank
    params : MatchParams

    Returns
    -------
    ndarray of shape (n_units,), bool

    Notes
    -----
    Each template is itself explained by matching, with all units but itself and those already
    dropped; weaker units are tried first.
    """
    num_units = len(bank.energy)
    # a narrow prior would pull every scale to 1
    bank = replace(bank, prior=np.full(num_units, params.scale_std**-2, dtype=np.float32))
    is_sum = np.zeros(num_units, dtype=bool)
    reach = bank.num_samples
    for unit in np.argsort(bank.energy, kind="stable"):
        others = np.flatnonzero((bank.pair_row[unit] >= 0) & ~is_sum)
        others = others[others != unit]
        if len(others) < 2:
            continue
        # the template stands alone in silence: its fits are the cross-correlations
        fits = np.zeros((num_units, 4 * reach - 1), dtype=np.float32)
        fits[others, reach : 3 * reach - 1] = bank.correlations[bank.pair_row[unit, others]]
        matches = pursue_fits(fits, bank, params, refractory=reach)
        energy = bank.energy[matches.unit_index]
        prior = bank.prior[matches.unit_index]
        fit = matches.scale * (energy + prior) - prior
        explained = (2 * matches.scale * fit - matches.scale**2 * energy).sum()
        several = len(np.unique(matches.unit_index)) >= 2
        own_size = (np.abs(matches.scale - 1) <= SCALE_TOLERANCE).all()
        is_sum[unit] = several and own_size and explained >= EXPLAINED * bank.energy[unit]
    return is_sum


def find_misfits(matches: Matches, num_units: int) -> np.ndarray:
    """Mask of units that mostly match what is smaller than they are, as spikes of far neurons are.

    Parameters
    ----------
    matches : Matches
    num_units : int

    Returns
    -------
    ndarray of shape (n_units,), bool
    """
    medians = np.ones(num_units)
    for unit in np.unique(matches.unit_index):
        medians[unit] = np.median(matches.scale[matches.unit_index == unit])
    return medians < MIN_MEDIAN_SCALE
