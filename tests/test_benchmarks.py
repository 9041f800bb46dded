"""Rows of measurements to tables and picture; nothing is sorted."""

import inspect
import json
import xml.etree.ElementTree as ET
from argparse import Namespace

import numpy as np
import pytest

from accm_core.params import SorterParams, validate_params
from accm_core.simulate import simulate, write_simulation
from benchmarks.ablations import ABLATIONS
from benchmarks.peers import PEERS, is_installed
from benchmarks.picture import KINDS, Dot, accuracy_ticks, draw_accuracy_speed, place_labels, speed_ticks
from benchmarks.run import (
    CORRECTABLE,
    SETS,
    SORTERS,
    WHAT,
    drifts,
    load_rows,
    make_dots,
    make_section,
    save_row,
    sort_and_score,
    worth_sorting,
)
from benchmarks.stream import cut, load_session
from benchmarks.table import (
    BEGIN,
    DONE,
    END,
    failure_lines,
    set_lines,
    summarise,
    summary_lines,
    write_section,
)


def make_row(name, sorter, seed=0, **changes):
    row = {
        "set": name,
        "sorter": sorter,
        "seed": seed,
        "true_units": 4,
        "status": DONE,
        "accuracy": 0.8,
        "precision": 0.9,
        "recall": 0.85,
        "well_detected": 3,
        "false_units": 1,
        "redundant_units": 0,
        "background_units": 2,
        "overlap_recall": 0.7,
        "isolated_recall": 0.9,
        "times_real_time": 4.0,
        "cpu_share": 0.5,
        "peak_MiB": 500,
    }
    return row | changes


ROWS = [
    make_row("tetrode", "accm", 0, accuracy=0.9, times_real_time=2.0),
    make_row("tetrode", "accm", 1, accuracy=0.7, times_real_time=2.0),
    make_row("wire-easy", "accm", 0, accuracy=0.4, times_real_time=8.0, peak_MiB=700),
    make_row("wire-easy", "accm", 1, accuracy=0.4, times_real_time=8.0),
    make_row(
        "noise-alone", "accm", 0, true_units=0, accuracy=None, overlap_recall=None, times_real_time=99.0
    ),
    make_row("tetrode", "lupin", 0, accuracy=0.6),
    {"set": "wire-easy", "sorter": "lupin", "seed": 0, "true_units": 4, "status": "failed: no probe"},
]


def test_a_sorter_is_summed_up():
    """Recordings of a set first, then sets; the set without units does not count."""
    summary = summarise(ROWS, "accm")
    assert summary.accuracy == pytest.approx((0.8 + 0.4) / 2)
    assert summary.speed == pytest.approx(4.0)  # geometric
    assert (summary.well_detected, summary.true_units, summary.too_many) == (6, 8, 2)
    assert summary.peak_mib == 700


def test_a_failed_sort_found_nothing_and_took_no_time():
    summary = summarise(ROWS, "lupin")
    assert summary.accuracy == pytest.approx(0.3)
    assert summary.speed == pytest.approx(4.0)
    assert (summary.well_detected, summary.true_units) == (3, 8)
    assert np.isnan(summarise(ROWS[-1:], "lupin").speed)


def test_tables():
    lines = summary_lines(ROWS, ["accm", "lupin", "kilosort4", "spikesift"], missing=["kilosort4"])
    assert lines[2:] == [
        "| accm | 60.0 | 6.0 of 8 | 2.0 | 70.0 | 90.0 | 4.0 | 0.50 | 700 |",
        "| lupin | 30.0 | 3.0 of 8 | 1.0 | 35.0 | 45.0 | 4.0 | 0.50 | 500 |",
        "| kilosort4 | not installed | | | | | | | |",
    ]
    lines = set_lines(ROWS, ["tetrode", "wire-easy"], ["accm", "lupin"])
    assert [line.split(" | ")[2] for line in lines[2:]] == [
        "80.0 (70.0 to 90.0)",
        "60.0",
        "40.0 (40.0 to 40.0)",
        "failed",
    ]
    assert {line.count("|") for line in lines[2:5]} == {lines[0].count("|")}
    half = set_lines([make_row("tetrode", "lupin"), ROWS[-1] | {"set": "tetrode"}], ["tetrode"], ["lupin"])
    assert "| 80.0, 1 of 2 failed |" in half[2]
    assert failure_lines(ROWS) == ["- lupin failed: no probe (wire-easy 0)"]


def test_section_is_put_between_its_markers(tmp_path):
    path = tmp_path / "RESULTS.md"
    write_section(path, "one")
    assert path.read_text().startswith("# Benchmarks\n")
    path.write_text(path.read_text() + "\n## Other\n")
    write_section(path, "two")
    assert f"{BEGIN}\ntwo\n{END}\n\n## Other\n" in path.read_text()
    assert "one" not in path.read_text()


def test_rows_are_kept_and_read_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert load_rows(path) == load_rows(None) == {}
    for row in ROWS:
        save_row(path, row)
    kept = load_rows(path)
    assert list(kept.values()) == ROWS
    assert kept["wire-easy", "lupin", 0] == json.loads(path.read_text().splitlines()[-1])


def test_still_and_drifting_sets_are_summed_up_apart():
    rows = [make_row("tetrode", "accm"), make_row("tetrode-drift", "accm", accuracy=0.4)]
    rows = [row | {"commit": "c", "machine": "m"} for row in rows]
    options = Namespace(sets=["tetrode", "tetrode-drift"], sorters=["accm"], seeds=[0], device="cpu")
    lines = [line for line in make_section(rows, [], options).split("\n") if line.startswith("| accm")]
    assert [line.split(" | ")[1] for line in lines] == ["80.0", "40.0"]
    assert [dot.accuracy for dot in make_dots(rows, ["accm"])] == [0.8]


def test_dots_are_of_sorters_that_sorted():
    rows = [*ROWS, make_row("tetrode", "accm-pca"), make_row("tetrode", "pca-kmeans")]
    dots = make_dots(rows, ["accm", "accm-pca", "pca-kmeans", "lupin", "kilosort4"])
    assert [(dot.name, dot.kind) for dot in dots] == [
        ("accm", "ours"),
        ("accm-pca", "ablation"),
        ("pca-kmeans", "baseline"),
        ("lupin", "peer"),
    ]
    assert make_dots(ROWS[-1:], ["lupin"]) == []


@pytest.mark.parametrize(
    ("speeds", "ticks"),
    [([1.0, 9.0], [0.5, 1, 2, 5, 10, 20]), ([3.0], [2, 5]), ([0.02, 70.0], None), ([4.2], [2, 5, 10])],
)
def test_speed_ticks_are_around_the_speeds(speeds, ticks):
    found = speed_ticks(speeds)
    assert found[0] < min(speeds)
    assert found[-1] > max(speeds)
    assert ticks is None or found == pytest.approx(ticks)


def test_accuracy_ticks_are_around_the_accuracies():
    assert accuracy_ticks([0.52, 0.8]) == [40, 50, 60, 70, 80, 90]
    assert accuracy_ticks([0.0, 1.0])[0] == 0
    assert accuracy_ticks([0.0, 1.0])[-1] == 100


def test_picture_has_each_dot_in_its_place():
    dots = [
        Dot("accm", 0.9, 4.0, "ours"),
        Dot("accm-a-b", 0.8, 2.0, "ablation"),
        Dot("<x>", 0.5, 8.0, "peer"),
    ]
    root = ET.fromstring(draw_accuracy_speed(dots, "a & b"))
    space = "{http://www.w3.org/2000/svg}"
    circles = [c for c in root.iter(f"{space}circle") if c.get("r") != "5"]  # 5: the legend's
    place = {c.get("class"): (float(c.get("cx")), float(c.get("cy"))) for c in circles}
    assert len(circles) == 3
    assert place["ablation"][0] < place["ours"][0] < place["peer"][0]
    assert place["ours"][1] < place["ablation"][1] < place["peer"][1]
    # equal factors are equal steps
    assert place["peer"][0] - place["ours"][0] == pytest.approx(
        place["ours"][0] - place["ablation"][0], abs=0.2
    )
    words = [text.text for text in root.iter(f"{space}text")]
    assert {"accm", "a b", "<x>", KINDS["peer"]} <= set(words)
    assert KINDS["baseline"] not in words


def test_labels_do_not_cover_each_other_or_a_dot():
    rng = np.random.default_rng(0)
    centers = [tuple(center) for center in rng.uniform([200, 150], [500, 350], (12, 2))]
    dots = [Dot("accm-no-matching", 0.5, 1.0, "ablation")] * 12
    boxes = place_labels(dots, centers)
    for k, box in enumerate(boxes):
        for other in boxes[:k]:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for x, y in centers)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_change_something_that_is_there(name):
    """Settings that are parameters, and patches of functions that exist, undone afterwards."""
    ablation = ABLATIONS[name]
    changes = ablation.make_patches()
    assert validate_params(ablation.settings) != SorterParams() or changes
    for change in changes:
        before = getattr(change.getter(), change.attribute)
        with change as put:
            assert getattr(change.getter(), change.attribute) is put is not before
            if hasattr(before, "py_func"):
                assert inspect.signature(put.py_func) == inspect.signature(before.py_func)
        assert getattr(change.getter(), change.attribute) is before


def test_every_set_says_what_it_is():
    assert set(SETS) == set(WHAT)
    assert len(set(SORTERS)) == len(SORTERS)
    assert set(PEERS) <= set(SORTERS)
    assert [name for name in SETS if not worth_sorting(name, "pca-kmeans")] == ["noise-alone"]
    assert all(worth_sorting(name, "accm") for name in SETS)
    for moving in ("accm-no-drift", "accm-correction-alone", "accm-no-pieces"):
        assert [name for name in SETS if worth_sorting(name, moving)] == [
            name for name in SETS if not worth_sorting(name, "accm-pca")
        ]
    assert set(CORRECTABLE) < {name for name in SETS if drifts(name)}


def test_a_peer_that_is_not_there_is_known(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.peers.find_spec", lambda package: None if package == "kilosort" else "there"
    )
    assert not is_installed("kilosort4")
    assert is_installed("mountainsort5")


def test_a_session_with_known_spikes_can_be_streamed_and_scored(tmp_path):
    recording, truth = simulate(duration_s=1.0, num_units=3)
    session, known = tmp_path / "session.nwb", tmp_path / "truth.npz"
    write_simulation(session, recording, truth)
    np.savez(known, sample_index=truth.sample_index, unit_index=truth.unit_index)
    loaded = load_session(Namespace(session=session, truth=known))
    assert loaded.samples.shape == (recording.num_samples, 4)
    kept = cut(loaded.trains, 0.5, 1.0)
    assert sum(map(len, kept.values())) == (truth.sample_index >= 0.5 * recording.sampling_frequency).sum()


def test_a_sort_that_fails_gives_a_row_with_its_reason(tmp_path, capsys):
    session = tmp_path / "absent.nwb"
    row = sort_and_score("pca-kmeans", session, tmp_path / "truth.nwb", 3, 0, "cpu", correct_drift=False)
    assert list(row) == ["status"]
    assert row["status"].startswith("failed: ")
    assert "absent.nwb" in row["status"]
    assert "NwbError" in capsys.readouterr().err
    assert str(tmp_path) not in row["status"]
