"""Templates that move with the tissue: a bank for each place it may be at."""

from dataclasses import dataclass, replace

import numpy as np

from accm_core.sorting.match import Matches, TemplateBank
from accm_core.sorting.place import Place


@dataclass(frozen=True)
class MovingBank:
    """Units whose templates differ from place to place.

    Attributes
    ----------
    mean : TemplateBank
        With each unit's mean template.
    place : Place
        Where the tissue is over time.
    weights : ndarray of shape (n_places, n_units, n_basis, n_channels), float32
        Of the templates, in the basis of ``mean``.
    """

    mean: TemplateBank
    place: Place
    weights: np.ndarray

    def at(self, sample: float) -> TemplateBank:
        """The bank of where the tissue is at ``sample``."""
        return self.mean.reweigh(self.weights[self._place_at(sample)])

    def select(self, units: np.ndarray) -> "MovingBank":
        """The bank of some of the units (indices or mask)."""
        return replace(self, mean=self.mean.select(units), weights=self.weights[:, units])

    @property
    def energy_over_time(self) -> np.ndarray:
        """Of each template in bins of time of the same length, (n_bins, n_units), float32."""
        return self._energy[self._place_at(self.place.centers)]

    def energy_at(self, matches: Matches) -> np.ndarray:
        """Energy of each match's template at its time, (n,), float32."""
        return self._energy[self._place_at(matches.sample_index), matches.unit_index]

    def rescale(self, matches: Matches) -> Matches:
        """The matches with their scale in terms of the mean template, not that of their place."""
        along = np.einsum("sukc,ukc->su", self.weights, self.mean.weights)
        along /= np.maximum(self.mean.energy, 1e-12)
        share = along[self._place_at(matches.sample_index), matches.unit_index]
        return replace(matches, scale=(matches.scale * share).astype(np.float32))

    @property
    def _energy(self) -> np.ndarray:
        return np.asarray((self.weights**2).sum(axis=(2, 3)))

    def _place_at(self, sample: np.ndarray | float) -> np.ndarray:
        return self.place.step(sample, len(self.weights))
