"""Planted trains with known scores; the scores of SpikeInterface; the files."""

import json

import numpy as np
import pytest

from accm_core.errors import NwbError, ParamsError
from accm_core.evaluate import evaluate
from accm_core.simulate import simulate, truth_path, write_simulation

FS = 30_000.0


def make_train(seed, num_spikes=200, duration_s=60.0):
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(int(duration_s * 100), num_spikes, replace=False)) / 100.0  # a 10 ms grid


def test_planted_units():
    truth = {name: make_train(k) + k * 3e-3 for k, name in enumerate(("whole", "part", "split", "missed"))}
    rng = np.random.default_rng(9)
    found = {
        "w": truth["whole"] + rng.uniform(-0.3e-3, 0.3e-3, 200),  # jitter below the tolerance
        "p": np.sort(
            np.concatenate([truth["part"][:160], make_train(8, 40) + 1.5e-3])
        ),  # 160 TP, 40 FP, 40 FN
        "s1": truth["split"][:150],
        "s2": truth["split"][90:],
        "wrong": make_train(7) + 1.5e-3,
    }
    result = evaluate(found, truth, sampling_frequency=FS)
    assert result.matched_names == ("w", "p", "s1", "")
    np.testing.assert_allclose(result.accuracy, [1.0, 160 / 240, 0.75, 0.0])
    np.testing.assert_allclose(result.precision, [1.0, 0.8, 1.0, 0.0])
    np.testing.assert_allclose(result.recall, [1.0, 0.8, 0.75, 0.0])
    assert result.false_names == ("wrong",)
    assert result.redundant_names == ("s2",)
    assert (result.found_units, result.well_detected) == (5, 1)


@pytest.mark.parametrize(("shift_ms", "is_same"), [(0.3, True), (0.5, False), (-0.3, True), (-0.5, False)])
def test_spikes_match_within_the_tolerance(shift_ms, is_same):
    truth = make_train(0)
    result = evaluate({"a": truth + shift_ms * 1e-3}, {"a": truth}, sampling_frequency=FS)
    assert result.accuracy[0] == float(is_same)


def test_overlap_needs_time_and_place():
    base = np.arange(1, 101) * 0.1
    truth = {
        "a": base,
        "near": base[:40] + 0.9e-3,  # within 1 ms of 40 spikes of a
        "late": base[:60] + 1.2e-3,  # more than 1 ms after a, but 0.3 ms after near
        "far": base[60:] + 0.2e-3,  # at the same time, elsewhere
    }
    places = {"a": (0, 0), "near": (0, 100), "late": (0, 50), "far": (0, 201)}
    found = {"x": base[20:]}  # misses half of the overlapping spikes of a
    result = evaluate(found, truth, sampling_frequency=FS, unit_locations=places)
    assert result.overlap_recall[0] == pytest.approx(0.5)
    assert result.isolated_recall[0] == 1.0
    assert result.overlap_share == pytest.approx((40 + 40 + 40) / 240)
    assert np.isnan(result.overlap_recall[3])
    everywhere = evaluate(found, truth, sampling_frequency=FS)
    assert everywhere.overlap_share == pytest.approx((40 + 40 + 40 + 40 + 40) / 240)


def test_scores_are_spikeinterfaces_on_random_trains():
    from spikeinterface.comparison import compare_sorter_to_ground_truth
    from spikeinterface.core import NumpySorting

    rng = np.random.default_rng(3)
    truth = {f"t{k}": np.sort(rng.uniform(0, 30, 150)) for k in range(5)}
    found = {f"f{k}": np.sort(rng.permutation(truth[f"t{(k + 2) % 5}"])[: 60 + 20 * k]) for k in range(5)}
    sortings = [
        NumpySorting.from_unit_dict({u: np.rint(t * FS).astype(int) for u, t in trains.items()}, FS)
        for trains in (truth, found)
    ]
    theirs = compare_sorter_to_ground_truth(*sortings, exhaustive_gt=True).get_performance()
    ours = evaluate(found, truth, sampling_frequency=FS)
    for name in ("accuracy", "precision", "recall"):
        np.testing.assert_allclose(getattr(ours, name), theirs[name].to_numpy(float), atol=2e-3)


def test_shuffled_labels_fail():
    rng = np.random.default_rng(1)
    truth = {name: make_train(k) for k, name in enumerate("abc")}
    times = np.concatenate(list(truth.values()))
    labels = rng.integers(0, 3, len(times))
    result = evaluate({str(k): times[labels == k] for k in range(3)}, truth, sampling_frequency=FS)
    assert result.accuracy.max() < 0.4
    assert result.well_detected == 0


@pytest.mark.parametrize("offset_s", [0.0, 1e6])
def test_clock_that_starts_late(offset_s):
    truth = {"a": make_train(0) + offset_s}
    assert evaluate(truth, truth, sampling_frequency=FS).accuracy.tolist() == [1.0]


def test_nothing_found_and_nothing_true():
    truth = {"a": make_train(0), "b": make_train(1)}
    nothing = evaluate({}, truth)
    assert nothing.accuracy.tolist() == [0.0, 0.0]
    assert nothing.total_isolated_recall == 0.0
    noise = evaluate(truth, {})
    assert noise.false_names == ("a", "b")
    empty = evaluate({"x": np.zeros(0)}, truth)
    assert empty.false_names == ("x",)
    for result in (nothing, noise, empty, evaluate({}, {})):
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["found_units"] == result.found_units
        assert "well detected" in str(result)


def test_a_cell_of_the_background_is_no_false_unit():
    truth, cell = {"a": make_train(0)}, make_train(1) + 3e-3
    elsewhere = make_train(2) + 6e-3
    found = {
        "a": truth["a"],
        "cell": np.concatenate([cell[:80], elsewhere[:120]]),  # agreement 80 of 320
        "hardly": np.concatenate([cell[80:150], elsewhere[120:]]),  # 70 of 280
        "few": np.concatenate([cell[150:], elsewhere[:150] + 2e-3]),  # 50 of 350
    }
    result = evaluate(found, truth, background_trains={"x": elsewhere + 1.5e-3, "y": cell})
    assert result.background_names == ("cell", "hardly")
    assert result.false_names == ("few",)
    assert result.to_dict()["background_units"] == 2
    assert "background     2 (cells too small to count on)" in str(result).splitlines()
    assert evaluate(found, truth).false_names == ("cell", "hardly", "few")
    assert evaluate(found, {}, background_trains=truth).background_names == ("a",)


def test_table_and_dict_say_the_same():
    truth = {"u one": make_train(0), "u two": make_train(1) + 3e-3}
    result = evaluate({"7": truth["u one"][:100]}, truth, exhaustive=False)
    summary = result.to_dict()
    assert summary["false_units"] is None
    assert summary["units"][0]["recall"] == 0.5
    assert summary["units"][1]["matched_name"] is None
    table = str(result).splitlines()
    assert table[1].split() == [
        "u",
        "one",
        "7",
        "200",
        "50.0",
        "%",
        "100.0",
        "%",
        "50.0",
        "%",
        "-",
        "50.0",
        "%",
    ]
    assert "false          unknown" in table


def test_a_missing_position_is_refused():
    truth = {"a": make_train(0), "b": make_train(1)}
    with pytest.raises(ParamsError, match=r"True unit 'b' has no position"):
        evaluate(truth, truth, unit_locations={"a": (0, 0)})


def test_files(tmp_path):
    recording, truth = simulate(probe="tetrode", duration_s=2, num_units=3, background_units=0, seed=2)
    write_simulation(tmp_path / "a.nwb", recording, truth)
    result = evaluate(truth.trains(), truth_path(tmp_path / "a.nwb"))
    assert result.accuracy.tolist() == [1.0, 1.0, 1.0]
    assert result.is_overlap_known_by_place
    assert result.false_names == ()
    assert evaluate(truth_path(tmp_path / "a.nwb"), str(truth_path(tmp_path / "a.nwb"))).well_detected == 3
    with pytest.raises(NwbError, match="no Units"):
        evaluate(truth.trains(), tmp_path / "a.nwb")
