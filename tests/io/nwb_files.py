"""Small NWB files, one feature each, and a small sorting to write into them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hdmf.backends.hdf5 import H5DataIO
from pynwb import NWBHDF5IO, NWBFile
from pynwb.ecephys import LFP, ElectricalSeries
from pynwb.file import Subject

from accm_core.types import EmbeddingSample, Segment, Sorting, Templates

FS = 30000.0
GAIN = 0.195e-6  # V a count, of a common acquisition board


@dataclass
class Shape:
    """What is in the file. One series named ElectricalSeries unless told otherwise."""

    num_channels: int = 4
    num_samples: int = 6000
    groups: Sequence[str] | None = None  # of each electrode
    columns: dict[str, Sequence[Any]] = field(default_factory=dict)  # of the electrodes table
    data: Any = None
    series: dict[str, Any] = field(default_factory=dict)  # arguments of ElectricalSeries
    region: Sequence[int] | None = None  # rows of the electrodes table
    devices: Sequence[Any] = ()  # the groups belong to the first; a plain one when empty
    location: str = "CA1"


def counts(num_samples: int, num_channels: int, seed: int = 0) -> np.ndarray:
    """Noise in int16 counts, no two channels alike."""
    return np.random.default_rng(seed).normal(0, 50, (num_samples, num_channels)).astype(np.int16)


def make_session(shape: Shape) -> NWBFile:
    nwbfile = NWBFile(
        session_description="a small session",
        identifier="small",
        session_start_time=datetime(2024, 1, 1, tzinfo=UTC),
        experimenter=["Doe, Jane"],
        institution="a university",
        lab="a lab",
        experiment_description="none",
        keywords=["test"],
    )
    nwbfile.subject = Subject(
        subject_id="m1", species="Mus musculus", age="P90D", sex="F", description="a mouse"
    )
    names = shape.groups if shape.groups is not None else ["shank0"] * shape.num_channels
    for device in shape.devices:
        nwbfile.add_device(device)
    device = shape.devices[0] if shape.devices else nwbfile.create_device(name="probe", description="a probe")
    groups = {
        name: nwbfile.create_electrode_group(
            name, description="a shank", location=shape.location, device=device
        )
        for name in dict.fromkeys(names)
    }
    for name in names:
        nwbfile.add_electrode(group=groups[name], location=shape.location)
    for name, values in shape.columns.items():
        nwbfile.add_electrode_column(name, description=f"the {name}", data=list(values))
    return nwbfile


def make_series(nwbfile: NWBFile, shape: Shape, name: str = "ElectricalSeries") -> ElectricalSeries:
    rows = list(shape.region if shape.region is not None else range(shape.num_channels))
    arguments = {
        "data": shape.data if shape.data is not None else counts(shape.num_samples, shape.num_channels),
        "conversion": GAIN,
        "rate": FS,
        **shape.series,
    }
    if "timestamps" in arguments:
        arguments.pop("rate")
    region = nwbfile.create_electrode_table_region(rows, "the recorded electrodes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pynwb warns of what is wrong on purpose
        return ElectricalSeries(name=name, description="raw voltage", electrodes=region, **arguments)


def write_session(file_path: Path, nwbfile: NWBFile, *, cache_spec: bool = False) -> Path:
    """Write a session; quicker without the copy of the schema that files usually hold."""
    with NWBHDF5IO(file_path, "w") as io:
        io.write(nwbfile, cache_spec=cache_spec)
    return file_path


def make_file(file_path: Path, **shape: Any) -> Path:
    """A session with one series in acquisition, made as `Shape` says."""
    shaped = Shape(**shape)
    nwbfile = make_session(shaped)
    nwbfile.add_acquisition(make_series(nwbfile, shaped))
    return write_session(file_path, nwbfile)


def add_lfp(nwbfile: NWBFile, shape: Shape) -> None:
    lfp = LFP(name="LFP")
    nwbfile.add_acquisition(lfp)
    lfp.add_electrical_series(make_series(nwbfile, shape))


def packed(data: np.ndarray, **options: Any) -> H5DataIO:
    """Data in chunks of 1000 samples, compressed as told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hdmf recommends gzip
        return H5DataIO(data, chunks=(1000, data.shape[1]), allow_plugin_filters=True, **options)


def edit(file_path: Path, change: Callable[[h5py.File], None]) -> Path:
    """Change a file behind pynwb's back, for what pynwb refuses to write."""
    with h5py.File(file_path, "a") as file:
        change(file)
    return file_path


def make_sorting(recording: Any, *, num_units: int = 3, spikes_per_unit: int = 40, seed: int = 0) -> Sorting:
    """Spikes at random samples of a recording, with ties, and templates that decay from the main channel."""
    rng = np.random.default_rng(seed)
    num_channels, num_before, num_after = len(recording.channel_ids), 10, 20
    inside = np.concatenate([np.arange(s.start, s.stop) for s in recording.segments])
    sample = rng.choice(inside, (num_units, spikes_per_unit))
    if num_units > 1:
        sample[1, :3] = sample[0, :3]
    sample_index = sample.ravel()
    unit_index = np.repeat(np.arange(num_units), spikes_per_unit)
    order = np.argsort(sample_index, kind="stable")
    sample_index, unit_index = sample_index[order].astype(np.int64), unit_index[order].astype(np.int64)
    num_spikes = len(sample_index)
    main = np.arange(num_units) % max(num_channels, 1)
    mean = np.zeros((num_units, num_before + num_after, num_channels), dtype=np.float32)
    for unit in range(num_units):
        apart = np.abs(np.arange(num_channels) - main[unit])
        mean[unit, num_before] = -100.0 / (1.0 + apart)
    times = recording.sample_to_time(np.array([(s.start, s.stop - 1) for s in recording.segments]))
    times[:, 1] += 1.0 / recording.sampling_frequency
    embedded = (
        np.sort(rng.choice(num_spikes, num_spikes // 2, replace=False)) if num_spikes else np.zeros(0, int)
    )
    return Sorting(
        sampling_frequency=recording.sampling_frequency,
        channel_ids=recording.channel_ids,
        channel_locations=recording.channel_locations,
        channel_groups=recording.channel_groups,
        bad_channel_ids=("17",),
        unit_ids=np.arange(1, num_units + 1, dtype=np.int64),
        sample_index=sample_index,
        spike_times=recording.sample_to_time(sample_index),
        unit_index=unit_index,
        amplitude_uV=rng.normal(-100, 5, num_spikes).astype(np.float32),
        probability=rng.uniform(0.5, 1, num_spikes).astype(np.float32),
        is_overlap=rng.random(num_spikes) < 0.2,
        templates=Templates(mean, np.abs(mean) * 0.1, num_before),
        quality={
            "num_spikes": np.bincount(unit_index, minlength=num_units),
            "firing_rate": np.linspace(1.5, 9.5, num_units),
            "snr": np.linspace(4.5, 8.5, num_units),
            "presence_ratio": np.full(num_units, np.nan),
            "amplitude_cutoff": np.where(np.arange(num_units) == 0, np.nan, 0.25),
        },
        labels=tuple(("good", "mua", "noise")[k % 3] for k in range(num_units)),
        label_reasons=tuple("" if k % 3 == 0 else "isi_violations_ratio 0.7 > 0.5" for k in range(num_units)),
        embedding=EmbeddingSample(
            embedded.astype(np.int64), rng.normal(size=(len(embedded), 2)).astype(np.float32)
        ),
        segments=tuple(Segment(s.start, s.stop) for s in recording.segments),
        segment_times=times,
        provenance={"params": {"detect": {"threshold": 5.0}}, "seed": seed, "warnings": ["a warning"]},
    )
