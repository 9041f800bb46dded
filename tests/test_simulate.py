"""Simulated recordings: what was planted is there, the same every time, and nothing else."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accm_core.errors import NwbError, ParamsError, RecordingError
from accm_core.evaluate import evaluate
from accm_core.io.nwb_read import read_nwb
from accm_core.io.nwb_units import read_spike_trains
from accm_core.simulate import (
    hybrid_recording,
    make_simulation_params,
    simulate,
    truth_path,
    write_simulation,
)
from accm_core.simulation.traces import Drift, make_noise
from accm_core.simulation.waveforms import DEFAULT_CHANNELS, draw_neuron, probe_locations, window_samples
from accm_core.types import ArrayRecording, Segment

FS = 30_000
QUIET = {"noise_uV": 1e-3, "noise_level": 1e-5, "lfp_uV": 0.0, "background_units": 0, "amplitude_std": 0.0}


def intervals(truth):
    """Intervals between spikes of the same unit, ms."""
    order = np.lexsort((truth.spike_times, truth.unit_index))
    gaps = np.diff(truth.spike_times[order])
    return 1e3 * gaps[np.diff(truth.unit_index[order]) == 0]


@pytest.fixture(scope="module")
def poly():
    return simulate(probe="poly32", num_channels=12, duration_s=4, drift_um=20, drift_period_s=4, seed=5)


@given(cuts=st.lists(st.integers(0, 3 * FS), min_size=1, max_size=4).map(sorted))
@settings(max_examples=6, deadline=None)
def test_chunked_equals_whole(poly, cuts):
    recording, _ = poly
    edges = [0, *cuts, 3 * FS]
    pieces = [recording.get_traces(a, b) for a, b in pairwise(edges)]
    whole = recording.get_traces(0, 3 * FS)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_same_seed_same_bytes_and_another_seed_another_recording():
    first, second, other = (simulate(probe="tetrode", duration_s=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0].get_traces(0, FS), second[0].get_traces(0, FS))
    np.testing.assert_array_equal(first[1].spike_times, second[1].spike_times)
    assert not np.array_equal(first[0].get_traces(0, FS), other[0].get_traces(0, FS))
    assert len(first[1].spike_times) != len(other[1].spike_times)


def test_a_longer_recording_begins_the_same_way():
    """Noise and background depend on absolute time alone."""
    short, long = (simulate(num_units=0, duration_s=d, seed=1)[0] for d in (2, 3))
    np.testing.assert_array_equal(short.get_traces(0, 2 * FS), long.get_traces(0, 2 * FS))


def test_without_noise_the_traces_are_the_templates_at_the_spikes():
    params = {"probe": "linear", "num_channels": 6, "num_units": 3, "duration_s": 4, "rate_hz": 3.0}
    recording, truth = simulate(seed=4, **params, **QUIET, burst_share=0.0)
    traces = recording.get_traces(0, 4 * FS)
    rebuilt = np.zeros_like(traces)
    templates, num_before = truth.templates.mean, truth.templates.num_before
    for sample, unit in zip(truth.sample_index, truth.unit_index, strict=True):
        start = sample - num_before
        rebuilt[start : start + templates.shape[1]] += templates[unit]
    assert np.abs(rebuilt).max() == pytest.approx(100.0, rel=0.5)
    # a spike falls between samples; up to half a sample of shift is left
    assert np.abs(traces - rebuilt).max() < 20.0
    assert np.corrcoef(traces.ravel(), rebuilt.ravel())[0, 1] > 0.99


def test_the_trough_lies_at_the_spike_time():
    recording, truth = simulate(probe="mono", duration_s=10, noise_level=0.05, lfp_uV=0.0, seed=3)
    traces = recording.get_traces(0, 10 * FS)[:, 0]
    for unit in range(3):
        at = truth.sample_index[truth.unit_index == unit]
        mean = np.mean([traces[k - 20 : k + 21] for k in at[5:-5]], axis=0)
        assert abs(int(mean.argmin()) - 20) <= 1
        assert mean.min() == pytest.approx(truth.peak_amplitude_uV[unit], rel=0.1)


@pytest.mark.parametrize("noise_level", [0.05, 0.2])
def test_one_wire_is_wave_clus_like(noise_level):
    recording, truth = simulate(probe="mono", duration_s=60, noise_level=noise_level, lfp_uV=0.0, seed=1)
    np.testing.assert_allclose(truth.peak_amplitude_uV, truth.peak_amplitude_uV[0], rtol=1e-5)
    assert len(truth.unit_names) == 3
    counts = np.bincount(truth.unit_index)
    assert np.all(np.abs(counts - 1200) < 4 * np.sqrt(1200))
    assert intervals(truth).min() >= 2.0
    silent = simulate(probe="mono", duration_s=10, num_units=0, noise_level=noise_level, lfp_uV=0.0, seed=1)[
        0
    ]
    measured = silent.get_traces(0, 10 * FS).std() / -truth.peak_amplitude_uV[0]
    assert measured == pytest.approx(noise_level, rel=0.1)
    assert recording.background is not None


def test_noise_level_correlation_and_colour():
    recording, truth = simulate(
        probe="neuropixels", num_units=0, duration_s=6, lfp_uV=0.0, noise_uV=10.0, seed=2
    )
    traces = recording.get_traces(0, 6 * FS)
    assert len(truth.unit_names) == 0
    assert traces.std() == pytest.approx(10.0, rel=0.1)
    correlation = np.corrcoef(traces.T)
    assert correlation[0, 1] > 0.15
    assert abs(correlation[0, 63]) < 0.05
    lag = [np.corrcoef(traces[:-k, 0], traces[k:, 0])[0, 1] for k in (1, 60)]
    assert lag[0] > 0.2
    assert abs(lag[1]) < 0.05


def test_no_seam_in_the_noise_where_blocks_meet():
    where = np.stack([np.zeros(8), 1000.0 * np.arange(8)], axis=1)
    noise = make_noise(np.random.default_rng(0), where, float(FS), std_uV=1.0, lfp_uV=0.0)
    traces = np.concatenate([noise.block(0, block, 100, float(FS)) for block in range(400)])
    across = np.mean(traces[99:-1:100] * traces[100::100])
    assert across == pytest.approx(np.mean(traces[:-1] * traces[1:]), rel=0.15)


def test_background_spikes_go_on_in_the_next_block():
    recording, _ = simulate(probe="tetrode", num_units=0, duration_s=3, seed=1)
    background = recording.background
    expected = np.zeros((3 * FS, 4), np.float32)
    for block in range(4):
        trains = background.trains(1, block, FS, float(FS))
        background.cells.add_spikes(expected, 0, trains)
    alone = replace(recording, noise=None).get_traces(0, 3 * FS)
    np.testing.assert_allclose(alone, expected, atol=1e-3)
    assert len(background.trains(1, 0, FS, float(FS)).time) > 100


def test_slow_potentials_are_below_the_pass_band():
    kept = {"num_units": 0, "background_units": 0, "duration_s": 4, "noise_uV": 0.01, "seed": 3}
    traces = simulate(probe="tetrode", lfp_uV=50.0, **kept)[0].get_traces(0, 4 * FS)
    power = np.abs(np.fft.rfft(traces[:, 0] * np.hanning(len(traces)))) ** 2
    hz = np.fft.rfftfreq(len(traces), 1 / FS)
    assert power[hz > 100].sum() < 1e-4 * power.sum()
    assert 15 < traces.std() < 100


@pytest.mark.parametrize("probe", list(DEFAULT_CHANNELS))
def test_every_probe(probe):
    recording, truth = simulate(probe=probe, duration_s=1, seed=1)
    where = recording.channel_locations
    assert len(where) == DEFAULT_CHANNELS[probe] == recording.get_traces(0, 100).shape[1]
    assert len(np.unique(where, axis=0)) == len(where)
    distance = np.linalg.norm(truth.main_channel_locations[:, None] - where[None], axis=-1).min(axis=1)
    assert distance.max() == 0.0
    low, high = recording.params.snr if probe != "mono" else (10, 10)
    assert np.all((truth.snr >= low - 1e-6) & (truth.snr <= high + 1e-6))


def test_neurons_are_plausible_and_diverse():
    rng = np.random.default_rng(0)
    where = probe_locations("neuropixels", 48)
    num_before, _ = window_samples(FS)
    widths, half_distance = [], []
    for _ in range(40):
        neuron = draw_neuron(rng, where, FS)
        np.testing.assert_allclose(
            neuron.currents.sum(axis=2), 0.0, atol=1e-3 * np.abs(neuron.currents).max()
        )
        wave = neuron.waveform(where)
        main = wave.min(axis=0).argmin()
        assert wave.min() == pytest.approx(-1.0, abs=0.02)
        assert abs(wave[:, main].argmin() - num_before) <= 1
        assert np.abs(wave[[0, -1]]).max() < 1e-3
        widths.append((wave[num_before:, main].argmax()) / FS * 1e3)
        far = np.linalg.norm(where - where[main], axis=1)
        half_distance.append(np.abs(wave).max(axis=0)[(far > 55) & (far < 65)].mean())
    assert min(widths) < 0.4 < 0.6 < max(widths)
    assert 0.05 < np.median(half_distance) < 0.4


@pytest.mark.parametrize("exact", [False, True])
def test_synchrony(exact):
    asked = {"probe": "poly32", "num_units": 10, "duration_s": 60, "seed": 6}
    _, plain = simulate(**asked)
    _, paired = simulate(**asked, synchrony=0.4, exact_synchrony=exact)
    added = len(paired.spike_times) / len(plain.spike_times) - 1
    assert 0.3 < added <= 0.41
    assert set(zip(plain.spike_times, plain.unit_index, strict=True)) <= set(
        zip(paired.spike_times, paired.unit_index, strict=True)
    )
    assert intervals(paired).min() >= 2.0 - 1e-6
    gap = np.diff(paired.spike_times)
    together = (gap == 0) if exact else (gap <= 0.5e-3)
    assert together.mean() > 0.2


def test_bursts_shrink():
    asked = {"probe": "tetrode", "duration_s": 60, "amplitude_std": 0.0, "seed": 2}
    _, steady = simulate(**asked, burst_share=0.0)
    _, bursting = simulate(**asked, burst_share=1.0)
    assert np.all(steady.scale == 1.0)
    assert 0.4 <= bursting.scale.min() < 0.8
    assert bursting.scale.max() == 1.0
    assert np.mean(intervals(bursting) < 12) > 2 * np.mean(intervals(steady) < 12)
    gaps = intervals(bursting)
    order = np.lexsort((bursting.spike_times, bursting.unit_index))
    scale = bursting.scale[order][1:][np.diff(bursting.unit_index[order]) == 0]
    assert scale[gaps < 5].mean() < 0.9 < scale[gaps > 50].mean()


def test_drift_is_a_zigzag_that_moves_the_traces():
    drift = Drift(20.0, 4.0)
    np.testing.assert_allclose(drift.at(np.arange(5)), [0, 10, 0, -10, 0], atol=1e-12)
    asked = {"probe": "linear", "num_units": 4, "duration_s": 4, "seed": 3, "drift_period_s": 4.0} | QUIET
    still, moving = (simulate(**asked, drift_um=um)[0].get_traces(0, 4 * FS) for um in (0, 40))
    difference = np.abs(still - moving).max(axis=1)
    assert difference[FS - 6000 : FS + 6000].max() > 3.0  # moved by 20 µm
    assert difference.max() < 300.0


def test_similar_units():
    _, truth = simulate(probe="mono", duration_s=1, min_similarity=0.9, max_similarity=0.97, seed=1)
    shapes = truth.templates.mean.reshape(3, -1)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    cosine = shapes @ shapes.T
    np.fill_diagonal(cosine, -1)
    assert np.all((cosine.max(axis=1) > 0.899) & (cosine.max(axis=1) < 0.971))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_uV": -1}, r"noise_uV = -1 is refused: Input should be greater than 0"),
        ({"colour": 1}, r"Unknown simulation parameter 'colour'. Known: probe, "),
        ({"probe": "octrode"}, r"probe = 'octrode' is refused"),
        ({"probe": "tetrode", "num_channels": 5}, r"'tetrode' has 4 channels, not 5"),
        ({"snr": (10, 5)}, r"the least comes first"),
        ({"min_similarity": 0.9, "max_similarity": 0.5}, r"min_similarity = 0.9 is above"),
        ({"num_units": 40, "min_distance_um": 40.0}, r"Found only \d+ of 40 units"),
        ({"seed": -1}, r"seed = -1 is refused"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ParamsError, match=message):
        simulate(duration_s=1, **changes)


def test_samples_outside_are_refused(poly):
    with pytest.raises(RecordingError, match="Samples 0 to 120001 were asked for"):
        poly[0].get_traces(0, 120_001)


def test_params_are_filled_in_by_probe():
    assert make_simulation_params(probe="mono").model_dump(include={"num_units", "firing", "rate_hz"}) == {
        "num_units": 3,
        "firing": "poisson",
        "rate_hz": 20.0,
    }
    assert make_simulation_params(make_simulation_params(probe="mono"), num_units=2).num_units == 2


def make_parent(*, has_geometry=True, t_start=100.0):
    rng = np.random.default_rng(1)
    level = np.array([5.0, 10.0, 20.0, 0.0, 5.0, 5.0])  # channel 3 is dead
    place = {"channel_locations": np.array([[0, 0], [0, 25], [0, 50], [0, 75], [400, 0], [400, 25]], float)}
    return ArrayRecording(
        traces=(rng.standard_normal((4 * FS, 6)) * level).astype(np.float32),
        sampling_frequency=float(FS),
        channel_groups=np.array([0, 0, 0, 0, 1, 1]),
        segments=(Segment(0, FS), Segment(FS + 5000, 4 * FS)),
        t_start=t_start,
        **(place if has_geometry else {}),
    )


@pytest.mark.parametrize("has_geometry", [True, False])
def test_hybrid_adds_spikes_to_what_was_there(has_geometry):
    parent = make_parent(has_geometry=has_geometry)
    hybrid, truth = hybrid_recording(parent, num_units=6, rate_hz=8.0, seed=3)
    added = hybrid.get_traces(0, 4 * FS) - parent.traces
    assert truth.spike_times.min() > 100.0
    np.testing.assert_allclose(truth.sample_index / FS + 100.0, truth.spike_times, atol=1 / FS)
    assert hybrid.has_geometry == has_geometry
    # nothing on the dead channel, in the gap, or on both shanks
    assert np.abs(added[:, 3]).max() == 0.0
    np.testing.assert_allclose(added[FS : FS + 5000], 0.0, atol=1e-4)
    by_shank = np.abs(truth.templates.mean).max(axis=1)
    assert np.all((by_shank[:, :4].max(axis=1) > 0) != (by_shank[:, 4:].max(axis=1) > 0))
    # peaks follow the noise of each main channel (band-passed noise is about 0.6 of white noise)
    noise = truth.peak_amplitude_uV / truth.snr
    main = truth.templates.mean.min(axis=1).argmin(axis=1)
    np.testing.assert_allclose(-noise, 0.62 * np.array([5, 10, 20, 0, 5, 5])[main], rtol=0.1)


def test_hybrid_of_a_silent_recording_is_refused():
    parent = ArrayRecording(traces=np.zeros((FS, 4), np.float32), sampling_frequency=float(FS))
    with pytest.raises(RecordingError, match="All 4 channels are constant"):
        hybrid_recording(parent, num_units=1)


def test_files_round_trip(tmp_path):
    recording, truth = simulate(probe="neuropixels", num_channels=8, duration_s=2.5, drift_um=10, seed=7)
    seen = []
    beside = write_simulation(
        tmp_path / "a.nwb", recording, truth, on_progress=lambda stage, share: seen.append(share)
    )
    assert beside == truth_path(tmp_path / "a.nwb") == tmp_path / "a_truth.nwb"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nwb", "a_truth.nwb"]
    assert seen[-1] == 1.0
    with read_nwb(tmp_path / "a.nwb") as read:
        assert not read.has_units
        np.testing.assert_allclose(read.channel_locations, recording.channel_locations)
        difference = read.get_traces(0, read.num_samples) - recording.get_traces(0, recording.num_samples)
    assert np.abs(difference).max() <= 0.195 / 2 + 1e-3
    trains = read_spike_trains(beside)
    assert trains.sampling_frequency == pytest.approx(FS)
    for name, times in truth.trains().items():
        np.testing.assert_array_equal(trains[name], times)
    with pytest.raises(NwbError, match=r"a\.nwb exists"):
        write_simulation(tmp_path / "a.nwb", recording, truth)
    write_simulation(tmp_path / "a.nwb", recording, truth, overwrite=True)
    with pytest.raises(NwbError, match="does not exist"):
        write_simulation(tmp_path / "no" / "a.nwb", recording, truth)


def test_background_cells_lie_beside_the_truth(tmp_path):
    recording, truth = simulate(probe="tetrode", duration_s=20.5, num_units=1, lfp_uV=0.0, seed=1)
    beside = write_simulation(tmp_path / "a.nwb", recording, truth)
    assert list(read_spike_trains(beside)) == ["0"]
    trains = read_spike_trains(beside, "processing/ecephys/background")
    cells = recording.background.cells
    assert len(trains) == len(cells.channels) == 38
    shape = cells.templates()[7]
    num_before = cells.num_before
    traces = recording.get_traces(0, recording.num_samples)
    samples = np.rint(trains["7"] * FS).astype(int)
    around = [
        traces[s - num_before : s - num_before + len(shape)] for s in samples if num_before < s < 20 * FS
    ]
    mean = np.mean(around, axis=0)
    assert (mean * shape).sum() == pytest.approx((shape**2).sum(), rel=0.25)
    found = {"unit": truth.trains()["0"], "cell": trains["7"], "wrong": trains["7"] + 5e-3}
    result = evaluate(found, beside)
    assert (result.false_names, result.background_names) == (("wrong",), ("cell",))
    assert evaluate(found, truth.trains()).false_names == ("cell", "wrong")


def test_file_without_units(tmp_path):
    recording, truth = simulate(probe="tetrode", duration_s=1, num_units=0, seed=1)
    beside = write_simulation(tmp_path / "noise.nwb", recording, truth)
    assert read_spike_trains(beside) == {}
    assert evaluate({"a": np.array([0.1])}, beside).false_names == ("a",)


def test_hybrid_file_with_a_gap(tmp_path):
    parent = make_parent()
    hybrid, truth = hybrid_recording(parent, num_units=2, seed=3)
    beside = write_simulation(tmp_path / "h.nwb", hybrid, truth)
    with read_nwb(tmp_path / "h.nwb") as read:
        assert len(read.segments) == 2
        assert read.channel_groups.tolist() == [0, 0, 0, 1, 1]  # the reader leaves out the dead channel
        assert read.sample_to_time(np.zeros(1, int))[0] == pytest.approx(100.0)
        expected = np.delete(hybrid.get_traces(FS + 5000, FS + 5010), 3, axis=1)
        np.testing.assert_allclose(read.get_traces(FS, FS + 10), expected, atol=0.11)
    result = evaluate({"0": truth.trains()["0"], "own": np.arange(10) + 100.3}, beside)
    assert result.false_names is None  # the session has units of its own
    assert result.accuracy[0] == 1.0


def test_failed_write_leaves_nothing(tmp_path):
    recording, truth = simulate(probe="mono", duration_s=2, seed=1)

    def stop(stage, share):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_simulation(tmp_path / "a.nwb", recording, truth, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_nwbinspector_finds_nothing_critical(tmp_path):
    from nwbinspector import Importance, inspect_nwbfile

    recording, truth = simulate(probe="tetrode", duration_s=1, seed=1)
    beside = write_simulation(tmp_path / "a.nwb", recording, truth)
    for path in (tmp_path / "a.nwb", beside):
        found = list(
            inspect_nwbfile(nwbfile_path=str(path), importance_threshold=Importance.BEST_PRACTICE_VIOLATION)
        )
        assert [message.message for message in found] == []
