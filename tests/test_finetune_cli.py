"""Labels in, model out, identities carried over to a later session: the commands as a user runs them."""

import json

import numpy as np
import pytest
from nwb_files import make_file
from pynwb import NWBHDF5IO, read_nwb
from typer.testing import CliRunner

from accm_core.cli import app
from accm_core.io.nwb_units import read_sorting
from accm_core.models import load_model
from accm_core.simulate import simulate, truth_path, write_simulation
from accm_core.simulation.params import SimulationParams

QUICK = ("--set", "heads.num_steps=150", "--set", "heads.batch_size=256", "--set", "learn.num_steps=50")
UNITS = SimulationParams(
    probe="tetrode", num_units=4, firing="poisson", rate_hz=10.0, snr=(10.0, 25.0), max_similarity=0.8
)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Two sessions with the same units, firing at other times in other noise; models go to a folder here."""
    folder = tmp_path_factory.mktemp("days")
    for name, duration in (("monday", 40.0), ("friday", 50.0)):
        recording, truth = simulate(UNITS, seed=4, duration_s=duration)
        write_simulation(folder / f"{name}.nwb", recording, truth)
    return folder


@pytest.fixture(autouse=True)
def registry(days, monkeypatch):
    monkeypatch.setenv("ACCM_DATA", str(days / "data"))


def write_labels(days, path, *, without=(), share=0.5, quality=None):
    """Some true spikes of each unit, named as a curator would."""
    with NWBHDF5IO(truth_path(days / "monday.nwb"), "r") as io:
        trains = [np.asarray(train) for train in io.read().units["spike_times"][:]]
    target = make_file(path, num_channels=4, num_samples=100)
    with NWBHDF5IO(target, "r+") as io:
        nwbfile = io.read()
        nwbfile.add_unit_column("unit_name", "name")
        nwbfile.add_unit_column("quality", "curated")
        for k, train in enumerate(trains):
            if k not in without:
                some = train[np.random.default_rng(k).random(len(train)) < share]
                label = (quality or {}).get(k, "good")
                nwbfile.add_unit(spike_times=some, unit_name=f"cell {'ABCD'[k]}", quality=label)
        io.write(nwbfile)
    return target


@pytest.fixture(scope="module")
def tuned(days, tmp_path_factory):
    """Fine-tuned on three of the four units; the fourth is called noise."""
    labels = write_labels(days, days / "labels.nwb", quality={3: "noise"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCM_DATA", str(days / "data"))
        done = run("finetune", days / "monday.nwb", "--labels", labels, "--name", "mouse", "--json", *QUICK)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_finetune_tells_what_it_did(tuned, days):
    assert tuned["units"] == ["cell A", "cell B", "cell C"]
    assert tuned["left_out"] == {}
    model = load_model("mouse")
    assert model.sha256 == tuned["sha256"]
    assert (model.card["session"], model.card["labels"]) == ("monday.nwb", "labels.nwb")
    listed = json.loads(run("models", "list", "--json").stdout)["models"]
    assert [(m["name"], m["units"]) for m in listed] == [("pretrained", None), ("mouse", 3)]


def true_trains(path):
    units = read_nwb(truth_path(path)).units
    return [np.asarray(train) for train in units["spike_times"][:]]


def agreement(found, true):
    after = np.clip(np.searchsorted(found, true), 1, len(found) - 1)
    apart = np.minimum(np.abs(found[after] - true), np.abs(found[after - 1] - true))
    hits = (apart < 4e-4).sum()
    return hits / (len(found) + len(true) - hits)


def test_identities_carry_over_to_a_later_session(tuned, days):
    done = run("sort", days / "friday.nwb", "--model", "mouse", "--json", "--device", "cpu", *QUICK)
    assert done.exit_code == 0, done.output
    sorting = read_sorting(days / "friday_sorted.nwb")
    trains = dict(zip("ABCD", true_trains(days / "friday.nwb"), strict=True))
    assert set(sorting.unit_names) >= {"cell A", "cell B", "cell C", "new-0"}
    for row, name in enumerate(sorting.unit_names):
        cell = name.removeprefix("cell ") if name.startswith("cell") else "D"
        scores = {
            key: agreement(sorting.spike_times[sorting.spikes_of(row)], train)
            for key, train in trains.items()
        }
        if name.startswith("cell") or name == "new-0":
            assert max(scores, key=scores.get) == cell
            assert scores[cell] > 0.9
    model = sorting.provenance["model"]
    assert model == {"name": "mouse", "kind": "finetuned", "sha256": tuned["sha256"]}
    again = read_nwb(days / "friday_sorted.nwb").units
    assert list(again["unit_name"][:]) == list(sorting.unit_names)


def test_without_the_model_there_are_no_names(days, tmp_path):
    out = tmp_path / "plain.nwb"
    assert run("sort", days / "friday.nwb", "-o", out, "--no-report", *QUICK).exit_code == 0
    sorting = read_sorting(out)
    assert sorting.unit_names == tuple(str(k) for k in range(sorting.num_units))
    assert sorting.provenance["model"]["name"] == "pretrained"


def test_a_name_that_is_taken_is_refused_before_the_work(tuned, days):
    done = run("finetune", days / "monday.nwb", "--labels", days / "labels.nwb", "--name", "mouse", "--json")
    assert done.exit_code == 2
    assert "a model 'mouse' already" in json.loads(done.stdout)["error"]


def test_a_later_session_on_another_probe_is_refused(tuned, tmp_path):
    session = make_file(tmp_path / "other.nwb", num_channels=2, num_samples=30_000)
    done = run("sort", session, "--model", "mouse", "--json")
    assert done.exit_code == 2
    assert "for another probe" in json.loads(done.stdout)["error"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.nwb"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--labels", "none.nwb", "--name", "x"], "none.nwb does not exist"),
        (["--labels", "monday.nwb", "--name", "x"], "has no Units"),
        (["--labels", "labels.nwb", "--name", "../x"], "is not a name"),
        (["--labels", "labels.nwb", "--name", "pretrained"], "Choose another"),
        (["--labels", "labels.nwb", "--name", "x", "--set", "heads.kind=svm"], "heads.kind"),
        (["--labels", "labels.nwb", "--name", "x", "--set", "heads.min_labels=100000"], "None of 3 units"),
    ],
)
def test_what_finetune_refuses(tuned, days, monkeypatch, arguments, words):
    monkeypatch.chdir(days)
    done = run("finetune", "monday.nwb", *arguments, "--json")
    assert done.exit_code == 2, done.output
    assert words in json.loads(done.stdout)["error"]
    assert not (days / "data" / "models" / "x.safetensors").exists()
