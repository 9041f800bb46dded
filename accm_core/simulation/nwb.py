"""Write a simulation: the recording as one NWB file, its units as another beside it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accm_core.errors import NwbError
from accm_core.types import ProgressCallback

if TYPE_CHECKING:
    from pynwb import NWBFile
    from pynwb.misc import Units

    from accm_core.simulation.recording import GroundTruth, SimulatedRecording

UV_PER_COUNT = 0.195  # of Intan's amplifiers
MAX_COUNT = 32_767
HEADROOM = 1.5  # what was not looked at may be this much larger than what was
LOOKED_AT = 8  # seconds of a real recording, to find its range
SESSION_START = datetime(2020, 1, 1, tzinfo=timezone.utc)  # noqa: UP017  any will do; the same bytes each time
CHUNK_CHANNELS = 64
BACKGROUND_MODULE, BACKGROUND_NAME = "ecephys", "background"  # of the cells too small to count on
BACKGROUND_PATH = f"processing/{BACKGROUND_MODULE}/{BACKGROUND_NAME}"
NO_SPECIES = "http://purl.obolibrary.org/obo/NCBITaxon_32644"  # "unidentified"


def truth_path(file_path: str | Path) -> Path:
    """Name of the file with the units that belong to a simulated recording: ``STEM_truth.nwb``."""
    path = Path(file_path)
    return path.with_name(f"{path.stem}_truth.nwb")


def write_simulation(
    file_path: str | Path,
    recording: "SimulatedRecording",
    truth: "GroundTruth",
    *,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> Path:
    """Write a recording, and its units into a file of their own.

    Parameters
    ----------
    file_path : str or Path
        The recording: an int16 ElectricalSeries and the electrodes, no units. Traces are generated and
        written second by second.
    recording : SimulatedRecording
    truth : GroundTruth
    overwrite : bool
        Replace files that exist.
    on_progress : callable, optional
        ``on_progress("write", fraction)``.

    Returns
    -------
    Path
        The file with the units, `truth_path` of the first; the cells of a simulation's background are
        in `BACKGROUND_PATH` there.

    Raises
    ------
    NwbError
        If a file exists, its folder does not, or writing fails. Each file is then whole or absent.

    Notes
    -----
    A count is 0.195 µV, or more where a hybrid's recording has a wider range; what exceeds the range is
    clipped. Of a recording with gaps the segments are written, with a time for each sample.
    """
    target, beside = Path(file_path), truth_path(file_path)
    for path in (target, beside):
        _check_target(path, overwrite)
    identifier = f"{target.stem}-{truth.seed}"
    with _replacing(target) as temporary:
        _write_recording(temporary, identifier, recording, on_progress)
    with _replacing(beside) as temporary:
        _write_truth(temporary, identifier, recording, truth)
    return beside


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise NwbError(f"The folder {path.parent} does not exist. Make it, or choose another.")
    if path.exists() and (path.is_dir() or not overwrite):
        raise NwbError(f"{path} exists. Choose another name, or ask for it to be overwritten.")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a name to write under; rename it to ``target`` when all went well, remove it when not."""
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp.nwb")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise NwbError(
            f"Cannot write {target}: {error.strerror or error}. Check the disk's space and the permissions."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _new_session(identifier: str, recording: "SimulatedRecording") -> "NWBFile":
    from pynwb import NWBFile
    from pynwb.file import Subject

    from accm_core import __version__

    kind = (
        "simulated extracellular recording" if recording.parent is None else "real recording with added units"
    )
    return NWBFile(
        session_description=f"{kind}; its known units are in a file of their own",
        experiment_description="ground truth for spike sorting",
        # no animal, or one that the recording does not tell of
        subject=Subject(subject_id="unknown", species=NO_SPECIES, sex="U", age="P0D/"),
        identifier=identifier,
        session_start_time=SESSION_START,
        file_create_date=SESSION_START,
        keywords=["simulation", "ground truth", "spike sorting"],
        was_generated_by=[["accm simulate", __version__]],
        notes=f"seed={recording.seed} params={recording.params.model_dump_json()}",
    )


def _write_recording(
    path: Path, identifier: str, recording: "SimulatedRecording", on_progress: ProgressCallback | None
) -> None:
    from hdmf.backends.hdf5.h5_utils import H5DataIO
    from pynwb import NWBHDF5IO
    from pynwb.ecephys import ElectricalSeries

    nwbfile = _new_session(identifier, recording)
    num_channels = len(recording.channel_ids)
    num_samples = sum(segment.num_samples for segment in recording.segments)
    step = round(recording.sampling_frequency)
    gain_uV = _choose_gain(recording)
    nwbfile.add_acquisition(
        ElectricalSeries(
            name="ElectricalSeries",
            description="broad-band traces",
            data=H5DataIO(
                shape=(num_samples, num_channels),
                dtype=np.dtype("int16"),
                chunks=(min(num_samples, step), min(num_channels, CHUNK_CHANNELS)),
            ),
            electrodes=_add_electrodes(nwbfile, recording),
            conversion=gain_uV * 1e-6,
            **_clock(recording),
        )
    )
    with NWBHDF5IO(path, "w") as io:
        io.write(nwbfile)
        dataset = nwbfile.acquisition["ElectricalSeries"].data.dataset
        row = 0
        for segment in recording.segments:
            for start in range(segment.start, segment.stop, step):
                traces = recording.get_traces(start, min(start + step, segment.stop))
                counts = np.clip(np.rint(traces / gain_uV), -MAX_COUNT, MAX_COUNT)
                dataset[row : row + len(traces)] = counts.astype(np.int16)
                row += len(traces)
                if on_progress is not None:
                    on_progress("write", row / num_samples)


def _clock(recording: "SimulatedRecording") -> dict[str, Any]:
    """Rate and start of a recording without gaps, else a time for each sample."""
    segments = recording.segments
    if len(segments) == 1:
        start = recording.sample_to_time(np.array([segments[0].start]))
        return {"rate": float(recording.sampling_frequency), "starting_time": float(start[0])}
    times = [recording.sample_to_time(np.arange(s.start, s.stop)) for s in segments]
    return {"timestamps": np.concatenate(times)}


def _choose_gain(recording: "SimulatedRecording") -> float:
    """µV a count: fine, but wide enough for the recording."""
    from accm_core.signal.chunks import cut_blocks, spread_blocks

    blocks = spread_blocks(cut_blocks(recording.segments, recording.sampling_frequency), LOOKED_AT)
    largest = max(float(np.abs(recording.get_traces(b.start, b.stop)).max()) for b in blocks)
    return max(UV_PER_COUNT, HEADROOM * largest / MAX_COUNT)


def _add_electrodes(nwbfile: "NWBFile", recording: "SimulatedRecording") -> Any:
    device = nwbfile.create_device(name="probe", description=recording.params.probe)
    groups = {
        int(g): nwbfile.create_electrode_group(
            name=f"shank{g}", description=f"shank {g}", location="unknown", device=device
        )
        for g in np.unique(recording.channel_groups)
    }
    nwbfile.add_electrode_column("channel_name", "name of the channel")
    if recording.has_geometry:
        nwbfile.add_electrode_column("rel_x", "position across the probe (µm)")
        nwbfile.add_electrode_column("rel_y", "position along the probe (µm)")
    for k, name in enumerate(recording.channel_ids):
        x, y = (float(value) for value in recording.channel_locations[k])
        position = {"rel_x": x, "rel_y": y} if recording.has_geometry else {}
        group = groups[int(recording.channel_groups[k])]
        nwbfile.add_electrode(location="unknown", group=group, channel_name=name, **position)
    return nwbfile.create_electrode_table_region(
        list(range(len(recording.channel_ids))), "channels of the series"
    )


def _write_truth(path: Path, identifier: str, recording: "SimulatedRecording", truth: "GroundTruth") -> None:
    from pynwb import NWBHDF5IO

    table = {
        "unit_name": ("name of the unit", np.array(truth.unit_names, dtype=object)),
        "peak_amplitude": ("trough of the mean waveform on the main channel (µV)", truth.peak_amplitude_uV),
        "snr": ("peak on the main channel, in noise levels", truth.snr),
    }
    if recording.has_geometry:
        x, y = truth.main_channel_locations.T
        table["rel_x"] = ("position of the main channel across the probe (µm)", x)
        table["rel_y"] = ("position of the main channel along the probe (µm)", y)
    # `evaluate` reads from the description that the session has other units too
    what = "all units" if recording.parent is None else "injected units; the session has its own besides"
    nwbfile = _new_session(identifier, recording)
    resolution = 1.0 / recording.sampling_frequency
    nwbfile.units = _make_units("units", what, truth.trains(), resolution, table)
    background = recording.background_trains()
    if background:
        module = nwbfile.create_processing_module(BACKGROUND_MODULE, "what need not be found")
        what = "cells too small to count on; to find one is no fault"
        module.add(_make_units(BACKGROUND_NAME, what, background, resolution))
    with NWBHDF5IO(path, "w") as io:
        io.write(nwbfile)


def _make_units(
    name: str,
    description: str,
    trains: dict[str, np.ndarray],
    resolution: float,
    table: dict[str, tuple[str, np.ndarray]] | None = None,
) -> "Units":
    """Units with their spike times (s) and the columns of ``table``: description and values by name."""
    from hdmf.common import VectorData, VectorIndex
    from pynwb.misc import Units

    columns = [VectorData(name=k, description=what, data=data) for k, (what, data) in (table or {}).items()]
    spikes = np.concatenate([*(np.sort(train) for train in trains.values()), np.zeros(0)])
    times = VectorData(name="spike_times", description="times of the spikes (s)", data=spikes)
    ends = np.cumsum([len(train) for train in trains.values()]).astype(np.uint64)
    columns += [times, VectorIndex(name="spike_times_index", data=ends, target=times)]
    ids = np.arange(len(trains))
    return Units(name=name, description=description, id=ids, columns=columns, resolution=resolution)
