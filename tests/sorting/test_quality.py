"""Metrics against SpikeInterface's own on the same input; labels against planted tables."""

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording, NumpySorting, create_sorting_analyzer
from spikeinterface.metrics.quality.misc_metrics import (
    amplitude_cutoff,
    compute_isi_violations,
    compute_presence_ratios,
)
from spikeinterface.metrics.spiketrain.metrics import compute_firing_rates

from accm_core.sorting.quality import compute_quality, label_units
from accm_core.types import Segment, Templates

FS = 32_768.0  # a power of two: SpikeInterface's seconds are then exact
METRICS = {
    "num_spikes",
    "firing_rate",
    "snr",
    "amplitude_median",
    "isi_violations_ratio",
    "isi_violations_count",
    "presence_ratio",
    "amplitude_cutoff",
}
LONG = 150  # seconds
LAST_EDGE = int(120 * FS)


def make_templates(num_units, num_channels=2):
    rng = np.random.default_rng(5)
    mean = rng.normal(0, 30, (num_units, 20, num_channels)).astype(np.float32)
    return Templates(mean=mean, std=np.ones_like(mean), num_before=8)


def make_trains(segments, rates=(3.0, 40.0, 0.05, 0.0, 0.0), seed=0):
    """Unsorted spikes of some units, with bursts that break the refractory period, inside the segments."""
    rng = np.random.default_rng(seed)
    samples, units = [], []
    for unit, rate in enumerate(rates):
        for segment in segments:
            n = rng.poisson(rate * segment.num_samples / FS)
            train = rng.integers(segment.start, segment.stop, n)
            samples.append(train)
            units.append(np.full(n, unit))
    if segments[-1].stop > LAST_EDGE:  # unit 4 fires once, on the edge of the last whole bin
        samples.append([LAST_EDGE])
        units.append([4])
    order = rng.permutation(sum(map(len, samples)))
    return np.concatenate(samples)[order], np.concatenate(units)[order]


def compute(samples, units, amplitudes, segments, num_units, templates=None, noise=(4.0, 8.0)):
    return compute_quality(
        sample_index=samples,
        unit_index=units,
        num_units=num_units,
        amplitude_uV=amplitudes,
        templates=make_templates(num_units) if templates is None else templates,
        noise_levels_uV=np.array(noise),
        segments=segments,
        sampling_frequency=FS,
    )


@pytest.mark.parametrize(
    "segments",
    [
        (Segment(0, int(LONG * FS)),),
        (Segment(0, int(70 * FS)), Segment(int(70 * FS), int(LONG * FS))),
        (Segment(1000, int(40 * FS)), Segment(int(90 * FS), int(LONG * FS))),
        tuple(Segment(int(k * FS), int((k + 15) * FS)) for k in (0, 15, 30)),
    ],
    ids=["one", "two", "gap-and-offset", "short"],
)
@pytest.mark.filterwarnings("ignore:Bin duration:UserWarning")  # SpikeInterface's own words on the short one
def test_spike_train_metrics_are_spikeinterfaces(segments):
    samples, units = make_trains(segments)
    amplitudes = np.random.default_rng(1).normal(-80, 12, len(samples)).astype(np.float32)
    ours = compute(samples, units, amplitudes, segments, 5)

    trains = [
        {
            str(u): np.sort(samples[(units == u) & (samples >= s.start) & (samples < s.stop)]) - s.start
            for u in range(5)
        }
        for s in segments
    ]
    sorting = NumpySorting.from_unit_dict(trains, FS)
    recording = NumpyRecording([np.zeros((s.num_samples, 2), np.int8) for s in segments], FS)
    recording.set_dummy_probe_from_locations(np.array([[0.0, 0.0], [0.0, 20.0]]))
    analyzer = create_sorting_analyzer(
        sorting, recording, sparse=False, return_in_uV=False, main_channel_indices=np.zeros(5, int)
    )
    theirs = {
        "firing_rate": compute_firing_rates(analyzer),
        "presence_ratio": compute_presence_ratios(analyzer),
        "isi_violations_ratio": compute_isi_violations(analyzer).isi_violations_ratio,
        "isi_violations_count": compute_isi_violations(analyzer).isi_violations_count,
        "num_spikes": sorting.count_num_spikes_per_unit(),
    }
    assert set(ours) == METRICS
    assert ours["isi_violations_count"].max() > 10, "the planted trains must break the refractory period"
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], list(values.values()), err_msg=name, rtol=1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_amplitude_metrics_are_spikeinterfaces(sign):
    rng = np.random.default_rng(2)
    amplitudes = rng.normal(80, 15, 9000)
    amplitudes[3000:6000] = np.abs(rng.normal(0, 30, 3000)) + 60.0  # cut at its threshold
    units = np.repeat([0, 1, 2, 3], [3000, 3000, 2999, 1])
    amplitudes, samples = sign * amplitudes, np.arange(9000) * 100
    shuffle = rng.permutation(9000)
    segments = (Segment(0, int(LONG * FS)),)
    ours = compute(samples[shuffle], units[shuffle], amplitudes[shuffle], segments, 5)
    for unit in range(4):
        own = amplitudes[units == unit]
        expected = amplitude_cutoff(sign * own, num_histogram_bins=500)
        np.testing.assert_allclose(ours["amplitude_cutoff"][unit], expected, err_msg=str(unit))
        np.testing.assert_allclose(ours["amplitude_median"][unit], np.median(own))
    assert ours["amplitude_cutoff"][1] > 0.3 > 0.05 > ours["amplitude_cutoff"][0]
    assert np.isnan(ours["amplitude_cutoff"][3:]).all()


def test_snr_is_the_extremum_on_the_main_channel():
    mean = np.zeros((2, 10, 3), np.float32)
    mean[0, 4, 1], mean[0, 6, 1], mean[0, 4, 2] = -100, 30, 110  # channel 1 has the larger peak-to-peak
    mean[1, 3, 0] = 50
    templates = Templates(mean=mean, std=mean, num_before=4)
    samples, units = np.array([10, 500]), np.array([0, 1])
    ours = compute(
        samples, units, np.ones(2), (Segment(0, 32768),), 2, templates=templates, noise=(5.0, 10.0, 1.0)
    )
    np.testing.assert_allclose(ours["snr"], [10.0, 10.0])


def test_unit_without_spikes_is_nan_and_intervals_do_not_cross_gaps():
    segments = (Segment(0, 1000), Segment(1000, 2000))
    samples, units = np.array([999, 1001, 1005, 1010]), np.zeros(4, int)
    ours = compute(samples, units, -np.ones(4), segments, 2)
    assert ours["isi_violations_count"].tolist() == [2, -1]
    assert ours["num_spikes"].tolist() == [4, 0]
    for name in METRICS - {"num_spikes", "isi_violations_count"}:
        assert np.isnan(ours[name][1]), name


def test_no_units_at_all():
    empty = np.zeros(0, np.int64)
    ours = compute(empty, empty, np.zeros(0, np.float32), (Segment(0, 1000),), 0)
    assert all(len(values) == 0 for values in ours.values())
    assert label_units(ours) == ((), ())


GOOD = {
    "num_spikes": 3000,
    "firing_rate": 5.0,
    "snr": 9.0,
    "amplitude_median": -80.0,
    "isi_violations_ratio": 0.1,
    "isi_violations_count": 3,
    "presence_ratio": 1.0,
    "amplitude_cutoff": 0.01,
}


@pytest.mark.parametrize(
    ("change", "label", "reason"),
    [
        ({}, "good", ""),
        ({"amplitude_cutoff": np.nan, "presence_ratio": np.nan}, "good", ""),
        ({"snr": 3.0}, "mua", "snr 3.00 < 5"),
        ({"isi_violations_ratio": 0.8}, "mua", "isi_violations_ratio 0.80 > 0.5"),
        ({"isi_violations_ratio": 9.0, "isi_violations_count": 1}, "good", ""),
        ({"presence_ratio": 0.5}, "mua", "presence_ratio 0.50 < 0.7"),
        ({"presence_ratio": 0.5, "firing_rate": 25.0}, "good", ""),  # 120 s: too short to ask
        ({"amplitude_cutoff": 0.3, "snr": 4.0}, "mua", "snr 4.00 < 5; amplitude_cutoff 0.30 > 0.2"),
        ({"num_spikes": 30}, "mua", "num_spikes 30 < 50"),
        ({"num_spikes": 4}, "noise", "num_spikes 4 < 10"),
        ({"snr": 1.5, "isi_violations_ratio": 2.0}, "noise", "snr 1.50 < 2"),
        ({"snr": np.nan}, "noise", "snr nan < 2"),
        ({"num_spikes": 0, "firing_rate": np.nan}, "noise", "num_spikes 0 < 10"),
    ],
)
def test_labels(change, label, reason):
    quality = {name: np.array([value]) for name, value in (GOOD | change).items()}
    assert label_units(quality) == ((label,), (reason,))
