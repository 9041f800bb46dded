"""Motion that is estimated, corrected, and estimated once more on what the correction left."""

import numpy as np
import pytest

from accm_core.params import SorterParams
from accm_core.signal import survey
from accm_core.simulate import simulate
from accm_core.simulation.traces import Drift

FS, DURATION_S, DRIFT_UM = 30_000, 60, 40.0


@pytest.mark.slow
def test_motion_is_estimated_twice(monkeypatch):
    recording, _ = simulate(
        probe="neuropixels",
        num_channels=32,
        num_units=15,
        duration_s=DURATION_S,
        drift_um=DRIFT_UM,
        drift_period_s=DURATION_S,
        seed=1,
    )
    estimate, estimates = survey.estimate_motion, []

    def keep(*arguments, **options):
        estimates.append(estimate(*arguments, **options))
        return estimates[-1]

    monkeypatch.setattr(survey, "estimate_motion", keep)
    found = survey.survey_shank(
        recording, np.arange(32), SorterParams(), seed=0, report=lambda stage: lambda share: None
    )
    seconds = np.arange(DURATION_S) + 0.5
    planted = Drift(DRIFT_UM, DURATION_S).at(seconds)
    first, second = (
        np.std([motion.displacement_at(FS * s)[16] for s in seconds] - planted) for motion in estimates
    )
    assert found.preprocessor.motion is estimates[1]
    assert second < 0.8 * first
    assert second < 2.0
