"""Whole sorts of small sessions whose units are known, and of noise, which has none."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from accm_core import pipeline
from accm_core.errors import ParamsError, RecordingError
from accm_core.evaluate import evaluate
from accm_core.params import SorterParams, validate_params
from accm_core.pipeline import STAGES, find_device, sort
from accm_core.signal.chunks import cut_blocks
from accm_core.signal.motion import Motion
from accm_core.simulate import simulate
from accm_core.sorting.drifting import Drift
from accm_core.sorting.place import Place
from accm_core.sorting.sizes import judge_sizes
from accm_core.types import ArrayRecording, Peaks, Segment

FS = 30_000
CLEAR = {
    "probe": "tetrode",
    "num_units": 4,
    "snr": (12, 30),
    "firing": "poisson",
    "rate_hz": 6.0,
    "max_similarity": 0.8,
    "background_units": 10,
}
MIN_ACCURACY = 0.95


def make_params(*, chunk_s=2.0, num_workers=2, num_steps=80, **groups):
    """Quick to train; enough for clear units."""
    learn = {"num_steps": num_steps, "batch_size": 128} | groups.pop("learn", {})
    return SorterParams(learn=learn, run={"chunk_s": chunk_s, "num_workers": num_workers}, **groups)


def make_session(seed=0, duration_s=12, **changes):
    recording, truth = simulate(seed=seed, duration_s=duration_s, **(CLEAR | changes))
    return recording.in_memory(), truth


def make_noise(num_channels, duration_s, seed=0):
    traces = np.random.default_rng(seed).normal(0, 8, (duration_s * FS, num_channels)).astype(np.float32)
    places = np.stack([(np.arange(num_channels) % 2) * 32.0, (np.arange(num_channels) // 2) * 20.0], axis=1)
    return ArrayRecording(traces=traces, sampling_frequency=FS, channel_locations=places)


def trains_of(sorting):
    return {str(u): sorting.spike_times[sorting.unit_index == k] for k, u in enumerate(sorting.unit_ids)}


def assert_same_spikes(first, second):
    for name in ("sample_index", "unit_index", "amplitude_uV", "probability", "is_overlap"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    np.testing.assert_array_equal(first.templates.mean, second.templates.mean)


@pytest.fixture(scope="module")
def session():
    return make_session(duration_s=30)


@pytest.fixture(scope="module")
def sorting(session):
    return sort(session[0], SorterParams(run={"num_workers": 2}), device="cpu")


@pytest.fixture(scope="module")
def short():
    """A session that is sorted in several ways, and how it is sorted plainly."""
    recording, truth = make_session()
    before = recording.traces.copy()
    calls = []
    found = sort(
        recording,
        make_params(),
        device="cpu",
        on_progress=lambda stage, fraction: calls.append((stage, fraction)),
    )
    np.testing.assert_array_equal(recording.traces, before)
    return recording, truth, found, calls


def assert_all_found(found, truth):
    result = evaluate(trains_of(found), truth.trains())
    assert result.accuracy.min() > MIN_ACCURACY, str(result)
    assert result.false_names == (), str(result)
    assert result.redundant_names == (), str(result)


def test_clear_units_are_found(session, sorting):
    assert_all_found(sorting, session[1])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_clear_units_are_found_whatever_the_seed(seed):
    """A faint unit of the background may be found beside them, but is not called good."""
    recording, truth = make_session(seed, duration_s=40)
    found = sort(recording, device="cpu", seed=seed)
    result = evaluate(trains_of(found), truth.trains())
    assert result.accuracy.min() > MIN_ACCURACY, str(result)
    assert found.labels.count("good") == 4, str(result)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_units_of_a_dense_probe_are_found_and_only_they_are_good(seed):
    recording, truth = make_session(seed, duration_s=30, probe="poly32", num_channels=16, num_units=8)
    found = sort(recording, device="cpu")
    result = evaluate(trains_of(found), truth.trains())
    assert result.accuracy.min() > MIN_ACCURACY, str(result)
    good = {str(u) for u, label in zip(found.unit_ids, found.labels, strict=True) if label == "good"}
    assert good.isdisjoint(result.false_names), str(result)


def test_a_neuron_that_keeps_two_templates_is_one_unit(monkeypatch):
    """As drift may leave it: the spikes go to either of two shapes, and no two of them are close."""
    refine, last_step = pipeline._refine_templates, 3

    def refine_and_double(shank, preprocessor, bank, *, step):
        bank = refine(shank, preprocessor, bank, step=step)
        if step < last_step:
            return bank
        change = np.random.default_rng(0).normal(0, 0.06, bank.templates.shape)
        both = np.concatenate([bank.templates + change, bank.templates - change])
        return pipeline._build_bank(shank, preprocessor, both.astype(np.float32))

    monkeypatch.setattr(pipeline, "_refine_templates", refine_and_double)
    monkeypatch.setattr(pipeline, "_find_drift", lambda *args: None)
    recording, truth = make_session(duration_s=30, rate_hz=25.0)
    assert_all_found(sort(recording, make_params(), device="cpu"), truth)


def test_mixtures_are_looked_for_among_the_spikes_of_units_that_fire(monkeypatch):
    looked_at, merge = [], pipeline.merge_duplicates

    def silence_first(*arguments, **options):
        matches, average = merge(*arguments, **options)
        matches = matches.select(matches.unit_index > 0)
        looked_at.append(np.bincount(matches.unit_index)[1:])
        return matches, average

    def compare(recording, preprocessor, blocks, bank, matches, *arguments, **_):
        expected = looked_at[-1]
        assert len(bank.energy) == len(expected) > 0
        np.testing.assert_array_equal(np.bincount(matches.unit_index), expected)
        return np.zeros(len(expected), dtype=bool)

    monkeypatch.setattr(pipeline, "merge_duplicates", silence_first)
    monkeypatch.setattr(pipeline, "find_superfluous", compare)
    sort(make_session()[0], make_params(), device="cpu")
    assert len(looked_at) == 3


@pytest.mark.parametrize(("num_channels", "expected"), [(7, [100]), (8, [])])
def test_units_are_taken_apart_where_channels_are_few(monkeypatch, num_channels, expected):
    calls = []

    def split(recording, preprocessor, blocks, bank, *arguments, **_):
        calls.append(len(blocks))
        return np.zeros((len(bank.energy), 60, num_channels))

    monkeypatch.setattr(pipeline, "split_units", split)
    recording = make_noise(num_channels, duration_s=100)
    shank = SimpleNamespace(recording=recording, params=SorterParams(), report=lambda stage: None)
    bank = SimpleNamespace(energy=np.ones(3))
    preprocessor = SimpleNamespace(channels=np.arange(num_channels))
    assert pipeline._split_templates(shank, preprocessor, bank, step=2) is bank
    assert calls == expected


def test_shuffled_truth_fails_the_same_check(session, sorting):
    truth = session[1]
    shuffled = np.random.default_rng(0).permutation(truth.unit_index)
    trains = {name: truth.spike_times[shuffled == k] for k, name in enumerate(truth.unit_names)}
    result = evaluate(trains_of(sorting), trains)
    assert result.accuracy.max() < 0.5


def test_the_result_describes_the_units(session, sorting):
    recording, truth = session
    assert (np.diff(sorting.sample_index) >= 0).all()
    np.testing.assert_allclose(sorting.spike_times, sorting.sample_index / FS)
    assert sorting.channel_ids == recording.channel_ids
    assert sorting.bad_channel_ids == ()
    assert sorting.labels == ("good",) * 4
    assert sorting.label_reasons == ("",) * 4
    assert ((sorting.probability > 0) & (sorting.probability <= 1)).all()
    assert sorting.probability.mean() > 0.95
    result = evaluate(trains_of(sorting), truth.trains())
    for name, matched in zip(truth.unit_names, result.matched_names, strict=True):
        row, unit = truth.unit_names.index(name), sorting.unit_ids.tolist().index(int(matched))
        assert sorting.templates.main_channel[unit] == truth.templates.main_channel[row]
        depth = truth.templates.mean[row].min()
        # the band-pass takes a little off the peak
        assert sorting.templates.mean[unit].min() == pytest.approx(depth, rel=0.25)
        assert np.median(sorting.amplitude_uV[sorting.spikes_of(unit)]) == pytest.approx(depth, rel=0.25)
    np.testing.assert_array_equal(sorting.quality["num_spikes"], np.bincount(sorting.unit_index))
    np.testing.assert_allclose(sorting.segment_times, [[0, 30]])
    rows = sorting.embedding.spike_index
    assert len(rows) > 0.5 * len(sorting.sample_index)
    assert len(set(rows.tolist())) == len(rows) == len(sorting.embedding.position)
    assert rows.max() < len(sorting.sample_index)


def test_overlapping_spikes_are_marked(session, sorting):
    truth = session[1]
    apart = np.diff(np.sort(truth.spike_times))
    expected = np.mean(np.r_[apart, 1] < 0.001) + np.mean(np.r_[1, apart] < 0.001)
    assert sorting.is_overlap.mean() == pytest.approx(expected, abs=0.02)


def test_the_provenance_is_enough_to_run_it_again(short):
    provenance = short[2].provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert SorterParams.model_validate(provenance["params"]) == make_params()
    assert provenance["seed"] == 0
    assert provenance["device"] == "cpu"
    assert provenance["warnings"] == []


@pytest.mark.parametrize(
    ("chunk_s", "num_workers", "order"), [(2, 2, "C"), (1, 1, "C"), (5, 2, "F")], ids=["again", "1", "5"]
)
def test_same_bytes_again_whatever_the_chunk_and_the_threads(short, chunk_s, num_workers, order):
    recording, _, there, _ = short
    traces = np.asarray(recording.traces, order=order)
    same = ArrayRecording(traces=traces, sampling_frequency=FS, channel_locations=recording.channel_locations)
    back = sort(same, make_params(chunk_s=chunk_s, num_workers=num_workers), device="cpu")
    assert there.num_units > 0
    assert_same_spikes(there, back)
    np.testing.assert_array_equal(there.embedding.position, back.embedding.position)


def test_progress_goes_through_every_stage(short):
    calls = short[3]
    stages = [stage for stage, _ in calls]
    assert list(dict.fromkeys(stages)) == list(STAGES)
    assert stages == sorted(stages, key=STAGES.index)
    for stage in STAGES:
        shares = [fraction for name, fraction in calls if name == stage]
        assert shares == sorted(shares), stage
        assert shares[-1] == pytest.approx(1.0), stage


@pytest.mark.parametrize(
    ("num_channels", "duration_s", "threshold"),
    [(4, 10, 5.0), (4, 10, 3.5), (64, 5, 5.0), (64, 3, 3.5)],
)
def test_noise_has_no_units(num_channels, duration_s, threshold):
    """With a low threshold there are peaks, and even clusters, but still no units."""
    params = make_params(num_steps=40, detect={"threshold": threshold})
    found = sort(make_noise(num_channels, duration_s), params, device="cpu")
    assert found.num_units == 0
    assert len(found.sample_index) == 0
    assert found.templates.mean.shape == (0, 120, num_channels)
    assert len(found.provenance["warnings"]) == 1
    assert found.provenance["warnings"][0].startswith("No units on shank 0: ")


def test_too_few_peaks_are_said():
    found = sort(make_noise(4, 2), make_params(detect={"threshold": 50.0}), device="cpu")
    assert found.num_units == 0
    assert found.provenance["warnings"] == ["No units on shank 0: only 0 peaks found."]


@pytest.mark.parametrize("test", ["low", "rare", "crowds", "misfits", "echoes", "restless"])
def test_what_a_test_finds_to_be_no_unit_is_not_reported(short, monkeypatch, test):
    find = getattr(pipeline, f"find_{test}")
    monkeypatch.setattr(pipeline, f"find_{test}", lambda *a, **k: np.ones_like(find(*a, **k)))
    assert sort(short[0], make_params()).num_units == 0


@pytest.mark.parametrize(("leaves_out", "test"), [("far_spikes", "misfits"), ("piled", "restless")])
def test_far_spikes_tell_nothing_of_a_unit(short, monkeypatch, leaves_out, test):
    """A neuron's own spikes may be fewer than those of another that its template matches too."""
    seen = []
    find, judge = getattr(pipeline, f"find_{leaves_out}"), getattr(pipeline, f"find_{test}")

    def leave_out(matches, *arguments):
        return find(matches, *arguments) | (np.arange(len(matches)) % 3 > 0)

    def judge_rest(matches, bank, energy, *arguments, **options):
        seen.append((len(matches), len(energy)))
        return judge(matches, bank, energy, *arguments, **options)

    whole = len(sort(short[0], make_params()).sample_index)
    monkeypatch.setattr(pipeline, f"find_{leaves_out}", leave_out)
    monkeypatch.setattr(pipeline, f"find_{test}", judge_rest)
    sort(short[0], make_params())
    assert seen[0][0] == seen[0][1] < 0.5 * whole


def test_units_are_looked_for_as_often_as_they_fired_before(short, monkeypatch):
    recover, merge, rates, fired = pipeline.recover_spikes, pipeline.merge_duplicates, [], []

    def recover_spikes(recording, preprocessor, blocks, bank, *arguments, **options):
        rates.append(np.exp(bank.log_rate))
        return recover(recording, preprocessor, blocks, bank, *arguments, **options)

    def merge_duplicates(bank, *arguments, observed, **options):
        matches, average = merge(bank, *arguments, observed=observed, **options)
        counts = np.bincount(matches.unit_index, minlength=len(bank.energy))
        fired.append(counts / (observed / short[0].sampling_frequency))
        return matches, average

    monkeypatch.setattr(pipeline, "recover_spikes", recover_spikes)
    monkeypatch.setattr(pipeline, "merge_duplicates", merge_duplicates)
    monkeypatch.setattr("accm_core.sorting.recover.MAX_RATE", 1000.0)
    monkeypatch.setattr(pipeline, "find_superfluous", lambda *a, **k: np.zeros(len(a[3].energy), dtype=bool))
    sort(short[0], make_params())
    assert (rates[0] == 1).all()
    np.testing.assert_allclose(rates[-1], fired[-2], rtol=1e-5)


def test_templates_of_few_spikes_shrink_to_them(short, monkeypatch):
    recover, templates = pipeline.recover_spikes, []

    def recover_few(recording, preprocessor, blocks, bank, *arguments, **options):
        templates.append(bank.templates)
        matches, average = recover(recording, preprocessor, blocks, bank, *arguments, **options)
        average.counts[:] = 0
        return matches, average

    monkeypatch.setattr(pipeline, "recover_spikes", recover_few)
    monkeypatch.setattr(pipeline, "find_shrinkage", lambda matches, bank: np.full(len(bank.energy), 0.9))
    monkeypatch.setattr(pipeline, "find_superfluous", lambda *a, **k: np.zeros(len(a[3].energy), dtype=bool))
    sort(short[0], make_params())
    np.testing.assert_allclose(templates[1], 0.9 * templates[0], rtol=1e-5)


def test_units_that_are_expected_less_accurate_than_asked_are_not_reported(short, monkeypatch):
    def judge(*arguments):
        sizes = judge_sizes(*arguments)
        most = 0.6 + 0.1 * (np.arange(len(sizes.accuracy)) > 0)
        return replace(sizes, accuracy=np.minimum(sizes.accuracy, most))

    whole = sort(short[0], make_params()).num_units
    monkeypatch.setattr(pipeline, "judge_sizes", judge)
    found = [
        sort(short[0], make_params(match={"min_accuracy": least})).num_units for least in (0.6, 0.65, 0.71)
    ]
    assert found == [whole, whole - 1, 0]


def test_more_is_expected_of_units_that_are_followed(short, monkeypatch):
    def follow(shank, survey, labels):
        clusters = np.zeros(labels.max() + 1, np.int64)
        return Drift(labels, clusters, Place(np.array([0.0, 12.0 * FS]), np.zeros(2)))

    def judge(accuracy):
        return lambda *arguments: replace(
            judge_sizes(*arguments), accuracy=np.full(len(arguments[1].energy), accuracy)
        )

    monkeypatch.setattr(pipeline, "_find_drift", follow)
    found = []
    for accuracy in (0.65, 0.67):
        monkeypatch.setattr(pipeline, "judge_sizes", judge(accuracy))
        found.append(sort(short[0], make_params()).num_units)
    assert found[0] == 0
    assert found[1] > 0


def test_shanks_are_sorted_apart(short):
    """One shank's spikes are the same with and without the other."""
    one, truth, alone, _ = short
    other = make_noise(3, 12)
    place = np.array([5, 0, 2, 6])  # of the session's channels among the noise's
    far = np.setdiff1d(np.arange(7), place)
    traces, locations = np.zeros((12 * FS, 7), np.float32), np.zeros((7, 2))
    traces[:, place], traces[:, far] = one.traces, other.traces
    locations[place], locations[far] = one.channel_locations, other.channel_locations
    both = ArrayRecording(
        traces=traces,
        sampling_frequency=FS,
        channel_locations=locations,
        channel_groups=np.where(np.isin(np.arange(7), far), 4, 9),
    )
    # the shank's channels keep their order
    order = np.argsort(place)
    reordered = ArrayRecording(
        traces=np.ascontiguousarray(one.traces[:, order]),
        sampling_frequency=FS,
        channel_locations=one.channel_locations[order],
    )
    expected = sort(reordered, make_params(), device="cpu")
    calls = []
    found = sort(
        both, make_params(), device="cpu", on_progress=lambda stage, share: calls.append((stage, share))
    )
    assert expected.num_units == alone.num_units
    np.testing.assert_array_equal(found.sample_index, expected.sample_index)
    np.testing.assert_array_equal(found.unit_index, expected.unit_index)
    np.testing.assert_array_equal(found.templates.mean[:, :, np.sort(place)], expected.templates.mean)
    assert not found.templates.mean[:, :, far].any()
    np.testing.assert_array_equal(found.channel_groups, both.channel_groups)
    assert found.provenance["warnings"][0].startswith("No units on shank 0: ")
    assert_all_found(found, truth)
    assert [share for stage, share in calls if stage == "noise"] == [0.5, 1.0]


def test_two_shanks_with_units(short):
    one, truth, _, _ = short
    two, other = make_session(5)
    both = ArrayRecording(
        traces=np.concatenate([one.traces, two.traces], axis=1),
        sampling_frequency=FS,
        channel_locations=np.concatenate([one.channel_locations] * 2),  # on top of each other
        channel_groups=np.repeat([0, 1], 4),
    )
    found = sort(both, make_params(), device="cpu")
    assert found.num_units == 8
    on_second = found.templates.main_channel >= 4
    assert not found.templates.mean[on_second][:, :, :4].any()
    assert not found.templates.mean[~on_second][:, :, 4:].any()
    trains = trains_of(found)
    for shank, known in ((~on_second, truth), (on_second, other)):
        result = evaluate({str(u): trains[str(u)] for u in found.unit_ids[shank]}, known.trains())
        assert result.accuracy.min() > MIN_ACCURACY, str(result)
    assert found.unit_ids.tolist() == list(range(8))


def test_nothing_in_a_gap_and_nothing_lost_beside_it(short):
    """What is between the segments is noise a thousand times too large, and never looked at."""
    recording, truth, _, _ = short
    gap = (int(5.31 * FS), int(6.02 * FS))
    traces = recording.traces.copy()
    traces[slice(*gap)] = np.random.default_rng(0).normal(0, 1e4, (gap[1] - gap[0], 4))
    segments = (Segment(0, gap[0]), Segment(gap[1], len(traces)))
    gapped = ArrayRecording(
        traces=traces,
        sampling_frequency=FS,
        channel_locations=recording.channel_locations,
        segments=segments,
        t_start=100.0,
    )
    found = sort(gapped, make_params(), device="cpu")
    inside = (found.sample_index >= gap[0]) & (found.sample_index < gap[1])
    assert not inside.any()
    observed = (truth.sample_index < gap[0]) | (truth.sample_index >= gap[1])
    trains = {
        name: 100.0 + truth.spike_times[observed & (truth.unit_index == k)]
        for k, name in enumerate(truth.unit_names)
    }
    result = evaluate(trains_of(found), trains)
    assert result.accuracy.min() > MIN_ACCURACY, str(result)
    # whole spikes within 200 ms of a border: each has a found spike within 0.4 ms
    to_border = np.abs(truth.sample_index[:, None] - np.r_[0, gap, len(traces)]).min(axis=1)
    beside = truth.sample_index[observed & (to_border < 0.2 * FS) & (to_border > 0.003 * FS)]
    assert len(beside) > 8
    apart = np.abs(beside[:, None] - found.sample_index).min(axis=1)
    assert (apart < 12).mean() > 0.9
    np.testing.assert_allclose(found.spike_times, 100.0 + found.sample_index / FS)
    expected = 100.0 + np.array([[0, gap[0]], [gap[1], len(traces)]]) / FS
    np.testing.assert_allclose(found.segment_times, expected)


def test_a_dead_channel_is_left_out_and_named(short):
    recording, _, without, _ = short
    traces = np.insert(recording.traces, 1, 7.0, axis=1)
    locations = np.insert(recording.channel_locations, 1, [5.0, 900.0], axis=0)
    found = sort(
        ArrayRecording(traces=traces, sampling_frequency=FS, channel_locations=locations),
        make_params(),
        device="cpu",
    )
    assert found.bad_channel_ids == ("1",)
    assert found.channel_ids == ("0", "2", "3", "4")
    np.testing.assert_array_equal(found.channel_locations, recording.channel_locations)
    assert_same_spikes(found, without)


def test_constant_channels_alone_are_refused():
    silent = ArrayRecording(traces=np.zeros((2 * FS, 4), np.float32), sampling_frequency=FS)
    with pytest.raises(RecordingError, match="All 4 channels are constant after the band-pass"):
        sort(silent, device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:99", "Device 'cuda:99' is not there: torch sees "),
        ("tpu", "Device 'tpu' is not known. Use auto, cpu, cuda or cuda:N."),
        ("cuda:x", "Device 'cuda:x' is not known. Use auto, cpu, cuda or cuda:N."),
        ("", "Device '' is not known. Use auto, cpu, cuda or cuda:N."),
    ],
)
def test_unknown_devices_are_refused_before_anything_is_read(name, message):
    with pytest.raises(ParamsError) as error:
        sort(None, device=name)
    assert str(error.value).startswith(message)


def test_known_devices():
    assert find_device("cpu").type == "cpu"
    assert find_device("auto").type in ("cpu", "cuda")


@pytest.mark.slow
def test_drift_is_corrected():
    """A probe on which the neurons move by more than a pitch, up and down: more whole units with it."""
    session = make_session(
        seed=3,
        duration_s=60,
        probe="poly32",
        num_channels=32,
        num_units=14,
        rate_hz=15.0,
        drift_um=40,
        drift_period_s=60,
    )
    recording, truth = session
    mended = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    left = sort(recording, validate_params({"motion": {"correct": "off"}}), device="cpu")
    broken = evaluate(trains_of(left), truth.trains())
    assert mended.accuracy.mean() > 0.7, str(mended)
    assert mended.accuracy.mean() > broken.accuracy.mean() + 0.2, f"{mended}\n{broken}"


@pytest.mark.slow
def test_pieces_of_a_neuron_in_moving_tissue_are_one_unit(monkeypatch):
    drift = {"drift_um": 40.0, "drift_period_s": 60.0}
    recording, truth = simulate(seed=0, duration_s=120, probe="neuropixels", num_units=30, **drift)
    recording = recording.in_memory()
    whole = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    monkeypatch.setattr(pipeline, "merge_pieces", lambda bank, matches, average, *_, **__: (matches, average))
    pieces = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    assert len(whole.redundant_names) == 0, str(whole)
    assert len(pieces.redundant_names) >= 3, str(pieces)
    assert whole.accuracy.mean() > pieces.accuracy.mean() + 0.03, f"{whole}\n{pieces}"


@pytest.mark.slow
def test_units_are_followed_where_correcting_drift_does_not_mend_their_shape(monkeypatch):
    """Contacts 50 µm apart do not tell what is between them."""
    probe = {"probe": "linear", "num_channels": 16, "pitch_um": 50.0, "num_units": 8, "burst_share": 0.0}
    recording, truth = simulate(seed=0, duration_s=120, drift_um=40.0, drift_period_s=60.0, **probe)
    recording = recording.in_memory()
    followed = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    monkeypatch.setattr(pipeline, "MAX_FOLLOWED", 0)
    pieces = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    assert followed.accuracy.mean() > 0.8, str(followed)
    assert followed.accuracy.mean() > pieces.accuracy.mean() + 0.1, f"{followed}\n{pieces}"


@pytest.mark.parametrize(
    ("num_channels", "num_windows", "correct", "is_followed"),
    [(32, 1, "auto", True), (33, 1, "auto", False), (32, 2, "auto", False), (32, 1, "off", False)],
)
def test_what_is_followed_though_drift_is_corrected(
    num_channels, num_windows, correct, is_followed, monkeypatch
):
    locations = np.column_stack([np.zeros(num_channels), 25.0 * np.arange(num_channels)])
    times = FS * np.array([1.0, 2.0])
    displacement = np.repeat([[0.0], [20.0]], num_windows, axis=1)
    motion = Motion(times, np.linspace(0, 1000, num_windows), displacement, locations, 1)
    zeros = np.zeros(4, np.int64)
    peaks = Peaks(zeros, zeros, zeros.astype(np.float32), zeros.astype(np.float32))
    survey = SimpleNamespace(
        preprocessor=SimpleNamespace(motion=motion, channels=np.arange(num_channels)),
        snippets=SimpleNamespace(peaks=peaks),
        noise=None,
        blocks=cut_blocks((Segment(0, 3 * FS),), FS),
        neighborhoods=np.tile(np.arange(num_channels), (num_channels, 1)),
    )
    recording = SimpleNamespace(channel_locations=locations, has_geometry=True)
    shank = SimpleNamespace(recording=recording, params=validate_params({"motion": {"correct": correct}}))
    places = []
    monkeypatch.setattr(pipeline, "cluster_drifting", lambda *arguments: places.append(arguments[-1]))
    pipeline._find_drift(shank, survey, zeros)
    assert [place.values.tolist() for place in places] == ([[0.0, 1.0]] if is_followed else [])


@pytest.mark.slow
def test_units_of_a_tetrode_are_followed_where_they_move():
    """Four channels do not show where the tissue is, but all neurons together do."""
    recording, truth = make_session(
        seed=2, duration_s=120, num_units=5, rate_hz=8.0, burst_share=0.0, drift_um=40, drift_period_s=60
    )
    followed = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    left = sort(recording, validate_params({"motion": {"correct": "off"}}), device="cpu")
    broken = evaluate(trains_of(left), truth.trains())
    assert followed.accuracy.mean() > 0.8, str(followed)
    assert followed.accuracy.mean() > broken.accuracy.mean() + 0.2, f"{followed}\n{broken}"


def test_clusters_of_moving_tissue_replace_those_before(session, monkeypatch):
    def find_nothing(shank, survey, labels):
        return Drift(np.full(len(labels), -1), np.zeros(0, np.int64), np.zeros(1))

    monkeypatch.setattr(pipeline, "_find_drift", find_nothing)
    assert sort(session[0], make_params(), device="cpu").num_units == 0


def test_templates_that_are_followed_keep_their_ends(session, monkeypatch):
    class Followed(Exception):  # noqa: N818  the end of the test, not an error
        pass

    def pretend(shank, survey, labels):
        return Drift(labels, np.zeros(labels.max() + 1, np.int64), np.zeros(100))

    def follow(*arguments, **options):
        raise Followed

    centered = []
    monkeypatch.setattr(pipeline, "_find_drift", pretend)
    monkeypatch.setattr(pipeline, "follow_units", follow)
    monkeypatch.setattr(pipeline, "center_templates", lambda templates, *_: centered.append(templates))
    with pytest.raises(Followed):
        sort(session[0], make_params(), device="cpu")
    assert not centered


@pytest.mark.slow
def test_units_hidden_in_a_cluster_are_found(monkeypatch):
    recording, truth = simulate(seed=1, duration_s=120, probe="tetrode", num_units=8)
    recording = recording.in_memory()
    divided = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    monkeypatch.setattr(pipeline, "divide_clusters", lambda labels, *rest: (labels, rest[3]))
    hidden = evaluate(trains_of(sort(recording, device="cpu")), truth.trains())
    assert divided.accuracy.mean() > 0.85, str(divided)
    assert divided.accuracy.mean() > hidden.accuracy.mean() + 0.1, f"{divided}\n{hidden}"


def test_divided_clusters_replace_those_before(session, monkeypatch):
    def find_nothing(labels, *_, **__):
        return np.full(len(labels), -1), np.zeros(0, np.int64)

    monkeypatch.setattr(pipeline, "divide_clusters", find_nothing)
    assert sort(session[0], make_params(), device="cpu").num_units == 0


@pytest.mark.parametrize("num_noise", [0, 1, 2])
def test_without_noise_to_learn_from_nothing_is_sorted(session, monkeypatch, num_noise):
    survey_shank = pipeline.survey_shank

    def survey(*arguments, **options):
        found = survey_shank(*arguments, **options)
        return replace(found, noise=found.noise[:num_noise])

    monkeypatch.setattr(pipeline, "survey_shank", survey)
    warnings = sort(session[0], make_params(), device="cpu").provenance["warnings"]
    assert any("to learn the noise from" in warning for warning in warnings) is (num_noise < 2)


def test_clusters_of_single_channels_are_not_divided():
    survey = SimpleNamespace(neighborhoods=np.array([[0, 1], [1, 0], [2, 1]]))
    labels, homes = np.array([0, 1, -1]), np.array([0, 2])
    found = pipeline._divide_clusters(None, survey, None, None, labels, homes)
    assert found == (labels, homes)
