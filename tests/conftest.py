"""Fixtures that several test files share."""

import numpy as np
import pytest
from hypothesis import settings

from accm_core.types import EmbeddingSample, Segment, Sorting, Templates

# the first call of a numba function compiles it
settings.register_profile("accm", deadline=None)
settings.load_profile("accm")

SAMPLING_FREQUENCY = 30_000.0
NUM_BEFORE, NUM_SAMPLES = 20, 60


def build_sorting(
    *,
    num_units: int = 5,
    num_channels: int = 16,
    duration_s: float = 60.0,
    rate_hz: float = 8.0,
    has_geometry: bool = True,
    seed: int = 0,
    warnings: tuple[str, ...] = (),
    bad_channel_ids: tuple[str, ...] = (),
    num_embedded: int = 4000,
) -> Sorting:
    """A sorting with refractory Poisson units of known shape, as the pipeline would give it."""
    rng = np.random.default_rng(seed)
    locations = np.zeros((num_channels, 2))
    if has_geometry:
        locations = np.stack(
            [(np.arange(num_channels) % 2) * 32.0, (np.arange(num_channels) // 2) * 20.0], axis=1
        )
    trains = [_refractory_train(rng, rate_hz * rng.uniform(0.3, 2), duration_s) for _ in range(num_units)]
    samples = np.concatenate([*trains, np.zeros(0, dtype=np.int64)])
    unit_index = np.repeat(np.arange(num_units), [len(train) for train in trains])
    order = np.argsort(samples, kind="stable")
    samples, unit_index = samples[order], unit_index[order]
    mean = _templates(rng, num_units, locations, has_geometry=has_geometry)
    trough = mean.min(axis=(1, 2), initial=0.0)
    amplitude = trough[unit_index] * rng.normal(1, 0.09, len(samples)) if num_units else np.zeros(0)
    embedded = np.sort(rng.permutation(len(samples))[:num_embedded])
    centre = rng.normal(0, 5, (num_units, 2))
    count = np.bincount(unit_index, minlength=num_units)
    labels = tuple(("good", "good", "mua", "good", "noise")[k % 5] for k in range(num_units))
    why = {"good": "", "mua": "isi_violations_ratio 0.71 > 0.5", "noise": "snr 1.42 < 2"}
    num_total = int(duration_s * SAMPLING_FREQUENCY)
    return Sorting(
        sampling_frequency=SAMPLING_FREQUENCY,
        channel_ids=tuple(f"ch{k}" for k in range(num_channels)),
        channel_locations=locations,
        channel_groups=np.zeros(num_channels, dtype=np.int64),
        bad_channel_ids=bad_channel_ids,
        unit_ids=np.arange(num_units, dtype=np.int64) + 1,
        sample_index=samples,
        spike_times=samples / SAMPLING_FREQUENCY,
        unit_index=unit_index,
        amplitude_uV=amplitude.astype(np.float32),
        probability=rng.beta(20, 1, len(samples)).astype(np.float32),
        is_overlap=rng.random(len(samples)) < 0.1,
        templates=Templates(mean, np.full_like(mean, 6.0), NUM_BEFORE),
        quality={
            "num_spikes": count,
            "firing_rate": count / duration_s,
            "snr": -trough / 7.0,
            "amplitude_median": trough.astype(float),
            "isi_violations_ratio": rng.exponential(0.05, num_units),
            "isi_violations_count": rng.integers(0, 3, num_units),
            "presence_ratio": np.full(num_units, 1.0 if duration_s >= 60 else np.nan),
            "amplitude_cutoff": np.full(num_units, np.nan),
        },
        labels=labels,
        label_reasons=tuple(why[label] for label in labels),
        embedding=EmbeddingSample(
            embedded,
            (centre[unit_index[embedded]] + rng.normal(0, 0.7, (len(embedded), 2))).astype(np.float32),
        ),
        segments=(Segment(0, num_total),),
        segment_times=np.array([[0.0, duration_s]]),
        provenance={"seed": seed, "warnings": list(warnings)},
    )


def _refractory_train(rng: np.random.Generator, rate_hz: float, duration_s: float) -> np.ndarray:
    intervals = 0.002 + rng.exponential(1 / rate_hz, int(3 * rate_hz * duration_s) + 50)
    times = np.cumsum(intervals)
    return (times[times < duration_s - 0.01] * SAMPLING_FREQUENCY).astype(np.int64)


def _templates(
    rng: np.random.Generator, num_units: int, locations: np.ndarray, *, has_geometry: bool
) -> np.ndarray:
    time = (np.arange(NUM_SAMPLES) - NUM_BEFORE) / 30.0  # ms
    mean = np.zeros((num_units, NUM_SAMPLES, len(locations)), dtype=np.float32)
    for row in range(num_units):
        width = rng.uniform(0.1, 0.2)
        shape = -np.exp(-((time / width) ** 2)) + 0.35 * np.exp(-(((time - 0.45) / 0.3) ** 2))
        place = rng.uniform(locations.min(axis=0), locations.max(axis=0))
        far = np.hypot(*(locations - place).T) if has_geometry else rng.uniform(0, 50, len(locations))
        mean[row] = rng.uniform(50, 220) * shape[:, None] * np.exp(-far / 28.0)
    return mean


@pytest.fixture
def make_sorting():
    """``build_sorting``, for tests that need a result without the sorter."""
    return build_sorting
