"""What matches explain, against the sum of their waveforms."""

import numpy as np

from accm_core.sorting.match import Matches, build_bank
from accm_core.sorting.rebuild import rebuild

NUM_BEFORE, NUM_SAMPLES = 10, 30


def test_matches_are_rebuilt_as_they_are():
    """At their times between samples and with their sizes; what is beyond the end is left out."""
    rng = np.random.default_rng(0)
    course = np.exp(-0.5 * ((np.arange(NUM_SAMPLES) - NUM_BEFORE) / 3) ** 2)
    templates = (course[:, None] * rng.normal(size=(2, 1, 3))).astype(np.float32)
    templates[1, :, 2] = 0
    bank = build_bank(templates, NUM_BEFORE, np.r_[1.0, np.zeros(99)], np.full(2, 0.1))
    samples, offsets, scales = np.array([4, 60, 65, 118]), np.array([0.0, 0.3, -0.45, 0.2]), [1, 0.9, 1.2, 1]
    units = np.array([0, 0, 1, 1])
    nothing = np.zeros(4, np.float32)
    matches = Matches(
        samples, offsets.astype(np.float32), units, np.array(scales, np.float32), nothing, nothing
    )
    expected = np.zeros((120, 3))
    for sample, offset, unit, scale in zip(samples, offsets, units, scales, strict=True):
        peak = sample + offset
        shape = np.exp(-0.5 * ((np.arange(120) - peak) / 3) ** 2)
        expected += scale * shape[:, None] * templates[unit, NUM_BEFORE]
    assert np.abs(rebuild(matches, bank, 120) - expected).max() < 0.03
    np.testing.assert_array_equal(
        rebuild(matches, bank, 120, np.array([2, 0])), rebuild(matches, bank, 120)[:, [2, 0]]
    )
