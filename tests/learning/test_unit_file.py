"""Units in a file: there and back, in the registry, and files that are something else."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from accm_core.cli import app
from accm_core.errors import ModelError
from accm_core.learning.unit_file import read_units, save_units
from accm_core.models import (
    export_model,
    import_model,
    list_models,
    load_any,
    load_model,
    remove_model,
    store_units,
)
from accm_core.types import KnownUnits

CARD = {"session": "day 1", "training": {"duration_s": 120.0}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCM_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "models"


@pytest.fixture
def units():
    templates = np.random.default_rng(0).normal(0, 9, (3, 50, 4)).astype(np.float32)
    templates[:, 20, 1] = -90
    spread = np.array([0.07, np.nan, 0.0], dtype=np.float32)
    return KnownUnits(("0", "b", "new-1"), templates, 20, spread, ("a", "b", "c", "d"), 30_000.0)


def tamper(path, tensors=None, **changes):
    """Write the file anew, with some of its card or its arrays changed."""
    card = read_units(path).card | changes
    save_file(tensors or load_file(path), path, {"card": json.dumps(card)})


def test_there_and_back(tmp_path, units):
    path = save_units(units, tmp_path / "u.safetensors", CARD)
    again = read_units(path)
    np.testing.assert_array_equal(again.units.templates, units.templates)
    np.testing.assert_array_equal(again.units.spread, units.spread)
    for name in ("names", "num_before", "channel_ids", "sampling_frequency"):
        assert getattr(again.units, name) == getattr(units, name)
    assert again.card["kind"] == "units"
    assert again.card["session"] == "day 1"
    assert [unit["main_channel"] for unit in again.card["units"]] == ["b", "b", "b"]
    assert save_units(again.units, tmp_path / "v.safetensors", CARD).read_bytes() == path.read_bytes()


def test_in_the_registry(tmp_path, units):
    store_units(units, "day1", CARD)
    with pytest.raises(ModelError, match="There is a model 'day1' already"):
        store_units(units, "day1", CARD)
    entry = list_models()[1]
    assert (entry.name, entry.problem, entry.card["kind"]) == ("day1", "", "units")
    assert entry.sha256 == load_any("day1").sha256
    export_model("day1", tmp_path / "out.safetensors")
    import_model(tmp_path / "out.safetensors", "copy")
    assert load_any("copy").sha256 == entry.sha256
    remove_model("copy")
    with pytest.raises(ModelError, match="holds units for a stream, and no encoder"):
        load_model("day1")


def test_on_the_command_line(units):
    store_units(units, "day1", CARD)
    shown = CliRunner().invoke(app, ["models", "list", "--json"])
    rows = {row["name"]: row for row in json.loads(shown.stdout)["models"]}
    assert (rows["day1"]["kind"], rows["day1"]["units"], rows["day1"]["problem"]) == ("units", 3, "")
    text = CliRunner().invoke(app, ["models", "show", "day1"]).stdout
    assert "kind         units" in text
    assert "unit         new-1: channel b" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "finetuned"}, "its card says it is 'finetuned', not 'units'"),
        ({"format": 2}, "has format 2; this accm reads up to 1"),
        ({"num_samples": 49}, "templates is torch.float32 of shape"),
        ({"num_samples": 10**9}, "num_samples = 1000000000 is not within 2 to 4096"),
        ({"num_before": 49}, "num_before = 49 is not within its templates of 50"),
        ({"num_before": True}, "num_before = True"),
        ({"sampling_frequency": 1e9}, "sampling_frequency = 1000000000.0 is not within"),
        ({"sampling_frequency": None}, "sampling_frequency = None"),
        ({"channel_ids": ["a", "a", "b", "c"]}, "its channel_ids must be"),
        ({"channel_ids": "abcd"}, "its channel_ids must be"),
        ({"channel_ids": [["x"], "b", "c", "d"]}, "its channel_ids must be"),
        ({"units": []}, "its units must be"),
        ({"units": 3}, "its units must be"),
        ({"units": [{"name": "x"}]}, "main_channel"),
        ({"units": [{"name": "x", "main_channel": "z", "spread": 1}]}, "main channel is not among"),
        ({"units": [{"name": "x", "main_channel": "a", "spread": -1}]}, "below 0 or not finite"),
        ({"units": [{"name": "x", "main_channel": "a", "spread": "y"}]}, "could not convert"),
        ({"units": [{"name": "x", "main_channel": "a", "spread": 10**400}]}, "too large"),
        ({"units": [{"name": "x", "main_channel": "a", "spread": None}]}, "its card calls for float32"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path, units, changes, message):
    path = save_units(units, tmp_path / "u.safetensors", CARD)
    tamper(path, **changes)
    with pytest.raises(ModelError, match=message):
        read_units(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"templates": torch.full((3, 50, 4), torch.nan)},
        {"templates": torch.zeros(3, 50, 4, dtype=torch.float64)},
        {"templates": torch.zeros(3, 50, 4), "more": torch.zeros(1)},
        {"other": torch.zeros(3, 50, 4)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, units, tensors):
    path = save_units(units, tmp_path / "u.safetensors", CARD)
    tamper(path, tensors)
    with pytest.raises(ModelError, match="is no model of accm"):
        read_units(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 9, b"junk" * 100])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "u.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is no model of accm"):
        read_units(path)
