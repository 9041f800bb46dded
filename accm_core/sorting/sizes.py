"""Which of a unit's spikes are its own, as their sizes tell.

The templates of small units match the spikes of far neurons too. Those are most frequent at the threshold
and become rarer from there, while the sizes of a unit's own spikes lie around its template's. Where both are
known it is known what share of a unit is its own, and which spikes most likely are.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from accm_core.params import MatchParams
from accm_core.sorting.match import Matches, TemplateBank

NUM_STEPS = 50
"""Of expectation and maximisation."""
MIN_STD, MAX_STD = 0.03, 0.2
"""Bounds of the standard deviation of a unit's scale beyond noise."""
MIN_DECAY, MAX_DECAY = 1.3, 5.0
"""Bounds of how fast far neurons' spikes become rarer with their height, e-folds a noise level."""
FIRST_WEAK, MAX_WEAK = 0.1, 0.5
"""Share of a unit's own spikes that are weak, as later spikes of bursts are: at first, and at most."""
MIN_OWN = 0.3
"""Probability from which on a spike is kept as its unit's own."""
TINY = 1e-300
"""Instead of nothing in a denominator."""


@dataclass(frozen=True)
class Sizes:
    """What the sizes of matches tell.

    Attributes
    ----------
    own : ndarray of shape (n_matches,), float64
        Probability that each is its unit's spike and no far neuron's.
    accuracy : ndarray of shape (n_units,), float64
        Hits over hits, misses and false alarms that are to be expected of each unit if spikes from `MIN_OWN`
        on are kept; 1 for a unit without a match.
    """

    own: np.ndarray
    accuracy: np.ndarray


@dataclass(frozen=True)
class _Heights:
    """Heights of templates and of what is matched with them, noise levels; each of shape (n,), float64.

    Attributes
    ----------
    usual : ndarray
        That of the template.
    least : ndarray
        That a match must have.
    lowest : ndarray
        That the unit's own spikes have at least, seen or not.
    """

    usual: np.ndarray
    least: np.ndarray
    lowest: np.ndarray

    @classmethod
    def of(cls, energy: np.ndarray, prior: float, log_rate: float, params: MatchParams) -> "_Heights":
        """Of a unit's templates, (n,), given their energy."""
        usual = np.sqrt(energy.astype(np.float64))
        return cls(usual, find_least(usual**2, prior, log_rate, params) / usual, params.min_scale * usual)

    @property
    def room(self) -> np.ndarray:
        """Between the lowest and the usual, (n,)."""
        return np.maximum(self.usual - self.lowest, TINY)

    def spread(self, std: float) -> np.ndarray:
        """Standard deviation of a unit's usual spikes, whose scale varies by ``std``, (n,)."""
        return np.sqrt(1 + (std * self.usual) ** 2)


def judge_sizes(
    matches: Matches,
    bank: TemplateBank,
    energy: np.ndarray,
    energy_of_stretch: np.ndarray,
    params: MatchParams,
) -> Sizes:
    """Tell each unit's own spikes from those of far neurons.

    Parameters
    ----------
    matches : Matches
    bank : TemplateBank
        That gave them, or its mean where templates move.
    energy : ndarray of shape (n_matches,)
        Of the template at each match.
    energy_of_stretch : ndarray of shape (n_stretches, n_units)
        Of the templates in stretches of time of the same length.
    params : MatchParams

    Returns
    -------
    Sizes

    Notes
    -----
    A mixture of three for each unit, each as frequent in one stretch as in another whatever the size of the
    template there: its usual spikes, whose heights are Gaussian around the template's; its weak ones, of any
    height below the template's; and far neurons' spikes, whose heights are exponential. Their rates, the
    Gaussian's width and the exponential's decay follow by expectation and maximisation (Dempster, Laird &
    Rubin 1977), with what the threshold hides taken into account.
    """
    height = matches.free_scale(bank, energy) * np.sqrt(energy.astype(np.float64))
    own = np.ones(len(matches))
    accuracy = np.ones(len(bank.energy))
    for unit in np.unique(matches.unit_index):
        rows = matches.unit_index == unit
        prior, log_rate = float(bank.prior[unit]), float(bank.log_rate[unit])
        seen, everywhere = (
            _Heights.of(e, prior, log_rate, params) for e in (energy[rows], energy_of_stretch[:, unit])
        )
        own[rows], accuracy[unit] = _judge_unit(height[rows], seen, everywhere, prior**-0.5)
    return Sizes(own, accuracy)


def find_least(
    energy: np.ndarray, prior: np.ndarray | float, log_rate: np.ndarray | float, params: MatchParams
) -> np.ndarray:
    """Least fit of a match to a template of some energy, with `TemplateBank`'s prior and rate of its unit."""
    least = np.sqrt((params.threshold**2 - 2 * log_rate + prior) * (energy + prior)) - prior
    return np.asarray(np.maximum(least, params.min_scale * energy))


def _judge_unit(
    height: np.ndarray, seen: _Heights, everywhere: _Heights, std: float
) -> tuple[np.ndarray, float]:
    """Probability that each spike, (n,), is the unit's own; and the accuracy to be expected.

    ``seen`` holds the template's heights at each spike, ``everywhere`` those of each stretch; ``std`` is what
    the scale varies by, for a start.
    """
    is_usual = np.where(height > seen.usual - seen.spread(std), 0.9, 0.1)
    is_own, weak = is_usual, FIRST_WEAK
    below = (height > seen.lowest) & (height < seen.usual)
    visible_weak = np.clip((everywhere.usual - everywhere.least) / everywhere.room, 0, 1)
    for _ in range(NUM_STEPS):
        variance = is_usual @ ((height - seen.usual) ** 2 - 1) / max(is_usual @ seen.usual**2, TINY)
        std = np.sqrt(np.clip(variance, MIN_STD**2, MAX_STD**2))
        visible = ndtr((everywhere.usual - everywhere.least) / everywhere.spread(std))
        visible = (1 - weak) * visible + weak * visible_weak
        rate = is_own.sum() / max(visible.sum(), TINY)
        is_far = 1 - is_own
        decay = np.clip(is_far.sum() / max(is_far @ (height - seen.least), TINY), MIN_DECAY, MAX_DECAY)
        far_rate = is_far.sum() / max((np.exp(-decay * everywhere.least) / decay).sum(), TINY)
        spread = seen.spread(std)
        usual = np.exp(-0.5 * ((height - seen.usual) / spread) ** 2) / (np.sqrt(2 * np.pi) * spread)
        parts = np.stack(
            [
                rate * (1 - weak) * usual,
                rate * weak * below / seen.room,
                far_rate * np.exp(-decay * height),
            ]
        )
        is_usual, is_weak, _ = parts / np.maximum(parts.sum(axis=0), TINY)
        is_own = is_usual + is_weak
        weak = min(is_weak.sum() / max(is_own.sum(), TINY), MAX_WEAK)
    kept = is_own >= MIN_OWN
    num_own, num_false = is_own.sum() + rate * (1 - visible).sum(), (1 - is_own[kept]).sum()
    return is_own, float(is_own[kept].sum() / max(num_own + num_false, TINY))
