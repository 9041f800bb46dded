"""Units that a stream is sorted into: known from a sort, or from labelled spikes."""

from dataclasses import dataclass

import numpy as np

from accm_core.sorting.recover import MIN_SCALES
from accm_core.types import Sorting


@dataclass(frozen=True)
class KnownUnits:
    """What must be known of units to find their spikes in later recordings.

    Attributes
    ----------
    names : tuple of str
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Band-passed, µV.
    num_before : int
        Samples before the peak.
    spread : ndarray of shape (n_units,), float32
        By how much the 84th percentile of a unit's amplitudes exceeds their median, as a share of the
        template; NaN where too few spikes are known.
    channel_ids : tuple of str
        The channel axis of ``templates``.
    sampling_frequency : float
        Hz.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    num_before: int
    spread: np.ndarray
    channel_ids: tuple[str, ...]
    sampling_frequency: float

    def __len__(self) -> int:
        return len(self.names)


def units_of_sorting(sorting: Sorting) -> KnownUnits:
    """The units of a sorting, noise and multi-unit activity included: they explain what is no other unit's."""
    height = main_heights(sorting.templates.mean)
    spread = np.full(sorting.num_units, np.nan, dtype=np.float32)
    for unit in range(sorting.num_units):
        rows = sorting.spikes_of(unit)
        if len(rows) >= MIN_SCALES:
            middle, high = np.percentile(sorting.amplitude_uV[rows] / height[unit], [50, 84])
            spread[unit] = high - middle
    return KnownUnits(
        names=sorting.unit_names,
        templates=sorting.templates.mean,
        num_before=sorting.templates.num_before,
        spread=spread,
        channel_ids=sorting.channel_ids,
        sampling_frequency=sorting.sampling_frequency,
    )


def main_heights(templates: np.ndarray) -> np.ndarray:
    """Extremum of each template, (n_units, n_samples, n_channels), on its main channel, (n_units,), signed."""
    main = np.ptp(templates, axis=1).argmax(axis=1)
    course = templates[np.arange(len(main)), :, main]
    extremum: np.ndarray = course[np.arange(len(main)), np.abs(course).argmax(axis=1)]
    return extremum
