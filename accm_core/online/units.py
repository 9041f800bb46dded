"""Units that a stream is sorted into, from a sorting."""

import numpy as np

from accm_core.sorting.recover import MIN_SCALES
from accm_core.types import KnownUnits, Sorting, main_heights


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
