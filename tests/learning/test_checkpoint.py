"""Models come back as they were saved; whatever else is given is refused by its reason."""

import hashlib
import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from accm_core.errors import ModelError
from accm_core.learning import checkpoint
from accm_core.learning.checkpoint import Model, read_model, save_model
from accm_core.learning.encoder import EncoderConfig, SpikeEncoder
from accm_core.learning.heads import Heads, HeadsConfig

CARD = {
    "kind": "finetuned",
    "seed": 3,
    "training": {"session": "a.nwb"},
    "sampling_frequency": 30000.0,
    "num_before": 21,
}


def make_model(unit_names=("7", "b"), kind="binary", num_channels=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SpikeEncoder(EncoderConfig(num_channels, 60, 8), 2.5)
        heads = Heads(HeadsConfig(kind, encoder.config.num_features, unit_names)) if unit_names else None
    templates = torch.randn(len(unit_names), num_channels, 60) if unit_names else None
    units = [{"name": name, "channels": ["0", None], "peak_delay_ms": 0.1} for name in unit_names]
    return Model(encoder, heads, CARD | {"units": units}, templates)


def outputs(model):
    snippets = torch.randn(5, 4, 60, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = model.encoder.represent(snippets)
        probability = None if model.heads is None else model.heads.probability(features)
        return model.encoder(snippets), probability


@pytest.mark.parametrize(("unit_names", "kind"), [(("7", "b"), "binary"), (("µ 1",), "softmax"), ((), "")])
def test_saved_and_read_it_is_the_same(tmp_path, unit_names, kind):
    model = make_model(unit_names, kind)
    path = save_model(model, tmp_path / "m.safetensors")
    again = read_model(path)
    assert all(again.card[name] == value for name, value in CARD.items())
    assert again.encoder.config == model.encoder.config
    for ours, theirs in zip(outputs(model), outputs(again), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    if unit_names:
        assert torch.equal(again.templates, model.templates)
        assert again.heads.config == model.heads.config
    assert model.sha256 == again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_model(save_model(again, tmp_path / "n.safetensors")).sha256 == model.sha256
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", "n.safetensors"}


def test_another_weight_is_another_hash():
    model, other = make_model(), make_model()
    with torch.no_grad():
        other.encoder.projection.bias[0] += 1
    assert Model(other.encoder, other.heads, model.card, model.templates).sha256 != model.sha256
    assert Model(model.encoder, model.heads, model.card | {"seed": 4}, model.templates).sha256 != model.sha256


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(ModelError, match=r"Cannot write .*m\.safetensors: No space left"):
        save_model(make_model(("x",)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder():
    with pytest.raises(ModelError, match="Cannot write"):
        save_model(make_model(), "/nowhere/m.safetensors")


def test_not_there_and_a_folder(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        read_model(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="is not a file"):
        read_model(tmp_path)


def test_too_large_is_not_read(tmp_path, monkeypatch):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="models have at most"):
        read_model(path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def header(card, **tensors):
    text = json.dumps({"__metadata__": {"card": json.dumps(card)}, **tensors}).encode()
    return struct.pack("<Q", len(text)) + text


GOOD_CARD = CARD | {
    "format": 1,
    "architecture": {"num_channels": 4, "num_samples": 60, "num_dims": 8, "width": 32},
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x00" * 7, "cut short"),
        (b"hello, this is no model at all", "cut short"),
        (struct.pack("<Q", 1 << 60) + b"{}", "cut short"),
        (pickle.dumps(Bomb()), "cut short"),
        (struct.pack("<Q", 4) + b"null" + bytes(8), "no card"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "no card"),
        (struct.pack("<Q", 2) + b"{}", "no card"),
        (header([]), "no format"),
        (header({"format": "1"}), "no format"),
        (header({"format": 99}), "Install a newer accm"),
        (header({"format": 1}), "is no model of accm"),
        (header({"format": 1, "architecture": {"num_channels": 4}}), "is no model of accm"),
        (header({"format": 1, "architecture": GOOD_CARD["architecture"] | {"run": "me"}}), "is no model of"),
        (
            header({"format": 1, "architecture": GOOD_CARD["architecture"] | {"width": 10**9}}),
            "width = 1000000000",
        ),
        (
            header({"format": 1, "architecture": GOOD_CARD["architecture"] | {"num_samples": 60.5}}),
            "60.5",
        ),
        (header(GOOD_CARD), "arrays are missing"),
        (header(GOOD_CARD | {"note": float("nan")}), "not JSON compliant"),
        (header(GOOD_CARD | {"note": "\ud800"}), "surrogates not allowed"),
        (header(GOOD_CARD | {"units": 5}), "describes units, but it has no heads"),
        (header(GOOD_CARD | {"note": "x" * (9 << 20)}), "more than the 8388608 of any model"),
        (header(GOOD_CARD, x={"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}), "is no model of accm"),
        (header(GOOD_CARD, x={"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}) + bytes(16), "is no"),
    ],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_every_truncation_is_refused(tmp_path):
    whole = save_model(make_model(), tmp_path / "m.safetensors").read_bytes()
    path = tmp_path / "short.safetensors"
    for length in [*range(0, 4000, 97), *range(4000, len(whole), 20_011), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="is no model of accm"):
            read_model(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ModelError, match="is no model of accm"):
        read_model(path)


def rewrite(path, change_card=None, change_tensors=None):
    card, tensors = json.loads(checkpoint.json.dumps(read_model(path).card)), load_file(path)
    if change_card is not None:
        change_card(card)
    if change_tensors is not None:
        change_tensors(tensors)
    save_file(tensors, path, {"card": json.dumps(card)})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"kind": "pickle"}, "unknown kind"),
        ({"unit_names": []}, "its 0 heads"),
        ({"unit_names": ["a", "a"]}, "each with a name of its own"),
        ({"unit_names": ["a", ""]}, "text of 1 to"),
        ({"unit_names": ["a", 3]}, "text of 1 to"),
        ({"unit_names": ["a", "b", "c"]}, "describe the unit of each head"),
        ({"num_features": 7}, "take 7 features of 128"),
        ({"unit_names": 3}, "is no model"),
    ],
)
def test_heads_that_do_not_fit(tmp_path, heads, message):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    rewrite(path, lambda card: card["heads"].update(heads))
    with pytest.raises(ModelError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_before": 60}, "num_before = 60"),
        ({"num_before": None}, "num_before = None"),
        ({"sampling_frequency": 0}, "sampling_frequency = 0"),
        ({"sampling_frequency": "fast"}, "sampling_frequency = 'fast'"),
        ({"units": None}, "does not describe"),
        ({"units": [{"name": "7"}]}, "does not describe"),
        ({"units": ["7", "b"]}, "is no model"),
        ({"units": [{"name": "7"}, {"name": "b"}]}, "channels"),
    ],
)
def test_a_card_that_does_not_describe_the_model(tmp_path, change, message):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    rewrite(path, lambda card: card.update(change))
    with pytest.raises(ModelError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": []}, "does not have 1 to 4 channels"),
        ({"channels": ["0"] * 5}, "does not have 1 to 4 channels"),
        ({"channels": [3]}, "named by text"),
        ({"peak_delay_ms": 1e9}, "peak_delay_ms = 1000000000.0"),
        ({"peak_delay_ms": float("nan")}, "peak_delay_ms = nan"),
    ],
)
def test_a_unit_that_looks_nowhere(tmp_path, change, message):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    rewrite(path, lambda card: card["units"][1].update(change))
    with pytest.raises(ModelError, match=message):
        read_model(path)


def drop(tensors):
    del tensors["encoder.projection.bias"]


def add(tensors):
    tensors["encoder.more"] = torch.zeros(3)


def reshape(tensors):
    tensors["encoder.projection.weight"] = tensors["encoder.projection.weight"].T.contiguous()


def cast(tensors):
    tensors["heads.linear.bias"] = tensors["heads.linear.bias"].double()


def spoil(tensors):
    tensors["encoder.scale"] = torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "such as encoder.projection.bias"),
        (add, "such as encoder.more"),
        (reshape, r"float32 of shape \(128, 8\)"),
        (cast, "float64"),
        (spoil, "encoder.scale holds values that are not finite"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, change, message):
    path = save_model(make_model(), tmp_path / "m.safetensors")
    rewrite(path, change_tensors=change)
    with pytest.raises(ModelError, match=message):
        read_model(path)
