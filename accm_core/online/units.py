"""Units that a stream is sorted into, from a sorting."""

import numpy as np

from accm_core.sorting.recover import MIN_SCALES
from accm_core.types import KnownUnits, Sorting


def units_of_sorting(sorting: Sorting) -> KnownUnits:
    """The units of a sorting, noise and multi-unit activity too: they explain what is no other unit's."""
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
    """Signed extremum of each template, (n_units, n_samples, n_channels), on its main channel, (n_units,)."""
    main = main_channels(templates)
    course = templates[np.arange(len(main)), :, main]
    extremum: np.ndarray = course[np.arange(len(main)), np.abs(course).argmax(axis=1)]
    return extremum


def main_channels(templates: np.ndarray) -> np.ndarray:
    """Channel of each template's largest peak-to-peak amplitude, (n_units,), int64."""
    if len(templates) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.ptp(templates, axis=1).argmax(axis=1)
