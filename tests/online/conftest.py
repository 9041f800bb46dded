"""A simulated stream and what is known of its units."""

from dataclasses import dataclass

import numpy as np
import pytest

from accm_core.online.plan import StreamPlan, make_plan, measure_shanks
from accm_core.params import SorterParams
from accm_core.signal.filter import make_bandpass
from accm_core.simulate import GroundTruth, simulate
from accm_core.types import ArrayRecording, KnownUnits

PARAMS = SorterParams()


@dataclass(frozen=True)
class Stream:
    """Traces in memory, the truth, and the true units as a sort would know them."""

    recording: ArrayRecording
    truth: GroundTruth
    units: KnownUnits

    @property
    def traces(self) -> np.ndarray:
        return self.recording.traces

    def plan(self) -> StreamPlan:
        return make_plan(self.recording, measure_shanks(self.recording, PARAMS), self.units, PARAMS)


def filter_templates(truth: GroundTruth, sampling_frequency: float) -> np.ndarray:
    """What the offline band-pass makes of the true waveforms."""
    bandpass = make_bandpass(PARAMS.signal, sampling_frequency)
    wide = np.pad(truth.templates.mean, ((0, 0), (bandpass.margin, bandpass.margin), (0, 0)))
    return np.stack([bandpass.apply(w)[bandpass.margin : -bandpass.margin] for w in wide])


def build_stream(**changes) -> Stream:
    simulated, truth = simulate(**{"probe": "tetrode", "snr": (10, 25), "rate_hz": 12, "seed": 1} | changes)
    recording = simulated.in_memory()
    filtered = filter_templates(truth, simulated.sampling_frequency)
    units = KnownUnits(
        names=truth.unit_names,
        templates=filtered,
        num_before=truth.templates.num_before,
        spread=np.full(len(filtered), np.nan, dtype=np.float32),
        channel_ids=recording.channel_ids,
        sampling_frequency=recording.sampling_frequency,
    )
    return Stream(recording, truth, units)


@pytest.fixture(scope="session")
def make_stream():
    """``build_stream``, for tests that need one of their own."""
    return build_stream


@pytest.fixture(scope="session")
def stream() -> Stream:
    return build_stream(duration_s=10)
