"""Files that no honest program writes: models, HDF5 files, and NWB files that lie about what they hold."""

import io
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from h5py import h5d, h5p, h5s, h5t
from hostile_requests import Pickled
from safetensors.torch import load, save

from accm_core.learning.lessons import SHIPPED

SERIES = "acquisition/ElectricalSeries"
TERA = 1 << 40


def make_model(change: Callable[[dict, dict], None], card_text: Callable[[dict], str] = json.dumps) -> bytes:
    """The model of the package, with its card and arrays changed."""
    content = SHIPPED.read_bytes()
    length = int.from_bytes(content[:8], "little")
    card = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["card"])
    tensors = dict(load(content))
    change(card, tensors)
    return save(tensors, {"card": card_text(card)})


def change_card(**values):
    return make_model(lambda card, tensors: card.update(values))


def change_architecture(**values):
    return make_model(lambda card, tensors: card["architecture"].update(values))


def change_array(change):
    def apply(card, tensors):
        name = next(iter(tensors))
        tensors[name] = change(tensors[name]).contiguous()

    return make_model(apply)


def header(text: bytes, more: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + more


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, file)
    return file.getvalue()


MODELS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"this is no model",
    "a pickle": lambda: pickle.dumps(Pickled()),
    "a file of torch.save": torch_file,
    "an HDF5 file": lambda: b"\x89HDF\r\n\x1a\n" + bytes(1000),
    "half a model": lambda: SHIPPED.read_bytes()[:-1000],
    "a header that says 2^60 bytes": lambda: struct.pack("<Q", 1 << 60) + b"{}",
    "a header of 20 MB": lambda: header(b'{"a":[' + b"[]," * 7_000_000 + b"[]]}"),
    "a header 100,000 deep": lambda: header(b"[" * 100_000),
    "another format": lambda: change_card(format=99),
    "no card": lambda: save({"a": torch.zeros(3)}),
    "an encoder of a million channels": lambda: change_architecture(num_channels=1_000_000),
    "another encoder than its arrays": lambda: change_architecture(width=64),
    "a field that is unknown": lambda: change_architecture(path="/etc/passwd"),
    "an array that is missing": lambda: make_model(lambda card, tensors: tensors.popitem()),
    "an array of another shape": lambda: change_array(lambda array: array.flatten()[:-1]),
    "an array of NaN": lambda: change_array(lambda array: array * np.nan),
    "an array of integers": lambda: change_array(lambda array: array.to(torch.int64)),
    "a card with NaN": lambda: change_card(note=np.nan),
    "a card with half a surrogate": lambda: change_card(note="\ud800"),
    "units without heads": lambda: change_card(units=5),
    "heads without units": lambda: change_card(
        heads={"kind": "binary", "num_features": 5, "unit_names": ["a"]}
    ),
    "a sampling frequency of -1": lambda: change_card(sampling_frequency=-1.0),
    "a window outside": lambda: change_card(num_before=10_000),
}


def write(path: Path, build: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "w") as file:
        build(file)
    return path


def _gzip_bomb(file):
    data = file.create_dataset("data", (TERA // 8, 8), "i1", chunks=(1 << 20, 8), compression="gzip")
    data[: 1 << 20] = 0


def _giant_chunk(file):
    file.create_dataset("data", (1 << 30, 4), "i2", chunks=(1 << 29, 4), compression="gzip")


def _twice_packed(file):
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((1 << 20,))
    properties.set_deflate(9)
    properties.set_deflate(9)
    h5d.create(file.id, b"data", h5t.STD_I8LE, h5s.create_simple((1 << 20,)), properties)


def _raw_outside(file):
    file.create_dataset("data", (100,), "i1", external=[("/etc/passwd", 0, 100)])


def _virtual_outside(file):
    layout = h5py.VirtualLayout((10,), "i1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (10,))
    file.create_virtual_dataset("data", layout)


def _link_outside(file):
    file["acquisition"] = h5py.ExternalLink("/var/lib/other.h5", "/")


def _link_beside(file):
    file["acquisition"] = h5py.ExternalLink("session.nwb", "/acquisition")


def _circle(file):
    group = file.create_group("a/b")
    group["c"] = file["a"]


def _many_ways(file):
    for k in range(30):
        group = file.require_group(f"{k}")
        group["a"] = group["b"] = file.require_group(f"{k + 1}")


def _deep(file):
    file.create_group("/".join("a" * 100))


def _no_hdf5(path: Path) -> None:
    path.write_bytes(b"<html>" * 1000)


def _cut(path: Path, session: Path) -> None:
    path.write_bytes(session.read_bytes()[:-5000])


def _head_alone(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + os.urandom(4096))


REFUSED: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda path, session: path.write_bytes(b""),
    "no HDF5": lambda path, session: _no_hdf5(path),
    "HDF5's first bytes and noise": lambda path, session: _head_alone(path),
    "a session cut short": _cut,
    "1 TB of packed zeros": lambda path, session: write(path, _gzip_bomb),
    "chunks of 4 GB": lambda path, session: write(path, _giant_chunk),
    "packed twice": lambda path, session: write(path, _twice_packed),
    "samples in /etc/passwd": lambda path, session: write(path, _raw_outside),
    "a virtual array of /etc/passwd": lambda path, session: write(path, _virtual_outside),
    "a link to a file elsewhere": lambda path, session: write(path, _link_outside),
    "a link to a file beside it": lambda path, session: write(path, _link_beside),
    "groups in a circle": lambda path, session: write(path, _circle),
    "few groups in 2^30 ways": lambda path, session: write(path, _many_ways),
    "groups 100 deep": lambda path, session: write(path, _deep),
}
"""Refused when they are to be sorted; each is given its own path and that of a good session."""


def lie(change: Callable[[h5py.Group], None]) -> Callable[[Path, Path], object]:
    """A good session whose series is changed."""

    def make(path: Path, session: Path) -> None:
        shutil.copyfile(session, path)
        with h5py.File(path, "r+") as file:
            change(file[SERIES])

    return make


def replace(name: str, data: object, **attributes: object) -> Callable[[h5py.Group], None]:
    def change(series):
        old = dict(series[name].attrs) if name in series else {}
        if name in series:
            del series[name]
        series[name] = data
        series[name].attrs.update({**old, **attributes})

    return change


def set_attribute(name: str, key: str, value: object) -> Callable[[h5py.Group], None]:
    return lambda series: series[name].attrs.__setitem__(key, value)


def _timestamps(values):
    def change(series):
        del series["starting_time"]
        replace("timestamps", values, unit="seconds", interval=1)(series)

    return change


def _no_electrodes(series):
    del series.file["general/extracellular_ephys/electrodes"]


_noise = np.random.default_rng(0).normal(0, 50, (300_000, 4)).astype("i2")
LIES: dict[str, Callable[[Path, Path], object]] = {
    "no series": lambda path, session: write(path, lambda file: file.create_dataset("x", data=1)),
    "a rate of -30 kHz": lie(set_attribute("starting_time", "rate", -30_000.0)),
    "a rate of NaN": lie(set_attribute("starting_time", "rate", np.nan)),
    "a rate of 1e308 Hz": lie(set_attribute("starting_time", "rate", 1e308)),
    "a rate that is text": lie(set_attribute("starting_time", "rate", "fast")),
    "a start at NaN": lie(replace("starting_time", np.nan)),
    "a conversion of NaN": lie(set_attribute("data", "conversion", np.nan)),
    "a conversion of 0": lie(set_attribute("data", "conversion", 0.0)),
    "a conversion of 1e300": lie(set_attribute("data", "conversion", 1e300)),
    "an offset of infinity": lie(set_attribute("data", "offset", np.inf)),
    "zero channels": lie(replace("data", np.zeros((300_000, 0), "i2"))),
    "zero samples": lie(replace("data", np.zeros((0, 4), "i2"))),
    "ten samples": lie(replace("data", np.zeros((10, 4), "i2"))),
    "all zeros": lie(replace("data", np.zeros((300_000, 4), "i2"))),
    "all NaN": lie(replace("data", np.full((300_000, 4), np.nan, "f4"))),
    "some infinity": lie(replace("data", np.where(_noise > 100, np.inf, _noise).astype("f4"))),
    "values of 1e38": lie(replace("data", np.where(_noise > 0, 3e38, -3e38).astype("f4"))),
    "more channels than electrodes": lie(replace("data", np.tile(_noise, 2))),
    "three axes": lie(replace("data", _noise.reshape(-1, 2, 2))),
    "text for samples": lie(replace("data", np.array([b"a", b"b"]))),
    "complex samples": lie(replace("data", _noise.astype("c8"))),
    "records for samples": lie(replace("data", np.zeros(100, [("a", "i2")]))),
    "electrodes that are not there": lie(replace("electrodes", np.array([900, 901, 902, 903]))),
    "no table of electrodes": lie(_no_electrodes),
    "times that go back": lie(_timestamps(np.linspace(10, 0, 300_000))),
    "times of NaN": lie(_timestamps(np.full(300_000, np.nan))),
    "a last time of infinity": lie(_timestamps(np.append(np.arange(299_999) / 30_000, np.inf))),
    "fewer times than samples": lie(_timestamps(np.arange(100) / 30_000)),
}
"""Accepted, as HDF5 they are in order; what they say of themselves is not true, and the job fails."""
