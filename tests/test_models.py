"""The registry, in Python and on the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from accm_core.cli import app
from accm_core.errors import ModelError
from accm_core.learning.checkpoint import Model, save_model
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder
from accm_core.learning.heads import Heads, HeadsConfig
from accm_core.models import (
    PRETRAINED,
    export_model,
    find_model,
    import_model,
    list_models,
    load_model,
    models_folder,
    remove_model,
    store_model,
)

BAD_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/x",
    ".hidden",
    "a\0b",
    "a b",
    "x" * 101,
    "ü",
    "a\n",
    "m.safetensors",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCM_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "models"


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SpikeEncoder(EncoderConfig(4, 60, 8, width=4), 2.5)
        heads = Heads(HeadsConfig("binary", 16, ("7", "b")))
    units = [
        {"name": n, "labels": 9, "main_channel": "0", "channels": ["0"], "peak_delay_ms": 0} for n in "7b"
    ]
    card = {
        "kind": "finetuned",
        "seed": 3,
        "version": "0.1",
        "units": units,
        "num_before": 21,
        "sampling_frequency": 3e4,
        "training": {"labelled_spikes": 18},
    }
    return Model(encoder, heads, card, torch.zeros(2, 4, 60))


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_the_folder(monkeypatch, folder):
    assert models_folder() == folder
    monkeypatch.delenv("ACCM_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert models_folder().parts[-3:] == ("somewhere", "accm", "models")


def test_stored_listed_loaded_removed(model, folder):
    assert [entry.name for entry in list_models()] == [PRETRAINED]
    path = store_model(model, "mouse-7.day_1")
    assert path == folder / "mouse-7.day_1.safetensors"
    assert [entry.name for entry in list_models()] == [PRETRAINED, "mouse-7.day_1"]
    assert list_models()[1].sha256 == model.sha256 == load_model("mouse-7.day_1").sha256
    assert load_model(path).sha256 == load_model(str(path)).sha256 == model.sha256
    remove_model("mouse-7.day_1")
    assert [entry.name for entry in list_models()] == [PRETRAINED]
    with pytest.raises(ModelError, match=r"There is no model 'mouse-7\.day_1' .*there are: pretrained"):
        load_model("mouse-7.day_1")


def test_a_name_is_taken_once(model, folder):
    store_model(model, "m")
    with pytest.raises(ModelError, match="a model 'm' already"):
        store_model(model, "m")
    other = Model(model.encoder, None, {"kind": "encoder", "num_before": 21, "sampling_frequency": 3e4})
    store_model(other, "m", overwrite=True)
    assert load_model("m").sha256 == other.sha256


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_cannot_leave_the_folder(model, folder, name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"precious")
    for act in (lambda: store_model(model, name), lambda: remove_model(name)):
        with pytest.raises(ModelError, match="is not a name of a model"):
            act()
    assert (tmp_path / "x.safetensors").read_bytes() == b"precious"
    assert not list(folder.glob("**/*"))


def test_the_shipped_model_stays(model):
    assert find_model(PRETRAINED).is_file()
    assert load_model(PRETRAINED).card["kind"] == "encoder"
    with pytest.raises(ModelError, match="cannot be removed"):
        remove_model(PRETRAINED)
    with pytest.raises(ModelError, match="Choose another"):
        store_model(model, PRETRAINED, overwrite=True)
    assert find_model(PRETRAINED).is_file()


def test_export_and_import_keep_every_byte(model, tmp_path, folder):
    store_model(model, "m")
    out = export_model("m", tmp_path / "out.safetensors")
    assert out.read_bytes() == (folder / "m.safetensors").read_bytes()
    with pytest.raises(ModelError, match="exists"):
        export_model("m", out)
    with pytest.raises(ModelError, match="does not end in"):
        export_model("m", tmp_path / "out.pt")
    with pytest.raises(ModelError, match="does not exist"):
        export_model("m", tmp_path / "none" / "out.safetensors")
    import_model(out, "again")
    assert load_model("again").sha256 == model.sha256
    assert {p.name for p in folder.iterdir()} == {"m.safetensors", "again.safetensors"}


def test_a_foreign_file_is_not_imported_and_listed_with_its_problem(tmp_path, folder, model):
    foreign = tmp_path / "f.safetensors"
    foreign.write_bytes(b"\x80\x04 a pickle, perhaps")
    with pytest.raises(ModelError, match="is no model of accm"):
        import_model(foreign, "f")
    assert not folder.exists()
    store_model(model, "m")
    (folder / "f.safetensors").write_bytes(foreign.read_bytes())
    entries = {entry.name: entry for entry in list_models()}
    assert entries["f"].sha256 == ""
    assert "is no model" in entries["f"].problem
    assert entries["m"].problem == ""
    remove_model("f")
    assert not (folder / "f.safetensors").exists()


def test_the_command(model, tmp_path, folder):
    file = save_model(model, tmp_path / "lab.safetensors")
    done = run("models", "import", file, "--json")
    assert json.loads(done.stdout) == {"name": "lab", "file": str(folder / "lab.safetensors")}
    listed = json.loads(run("models", "list", "--json").stdout)
    assert listed["folder"] == str(folder)
    assert [(m["name"], m["kind"], m["units"]) for m in listed["models"]] == [
        ("pretrained", "encoder", None),
        ("lab", "finetuned", 2),
    ]
    assert "2 units" in run("models", "list").stdout
    shown = json.loads(run("models", "show", "lab", "--json").stdout)
    assert shown["sha256"] == model.sha256
    assert shown["card"]["heads"]["unit_names"] == ["7", "b"]
    text = run("models", "show", file).stdout
    assert "unit         7: 9 labels, channel 0" in text
    assert model.sha256 in text
    assert run("models", "export", "lab", tmp_path / "out.safetensors").exit_code == 0
    assert (tmp_path / "out.safetensors").read_bytes() == file.read_bytes()
    assert run("models", "remove", "lab").exit_code == 0
    assert not (folder / "lab.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "none"], "There is no model 'none'"),
        (["remove", "pretrained"], "cannot be removed"),
        (["remove", "../../x"], "is not a name"),
        (["import", "no.safetensors"], "does not exist"),
        (["import", "no.safetensors", "--name", "a/b"], "does not exist"),
        (["export", "none", "x.safetensors"], "There is no model"),
    ],
)
def test_what_the_command_refuses(arguments, words):
    done = run("models", *arguments, "--json")
    assert done.exit_code == 2
    assert words in json.loads(done.stdout)["error"]
