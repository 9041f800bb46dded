"""Recordings that are not NWB: SpikeInterface writes them, we read them and write new NWB files."""

import json
import pickle
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pynwb
import pytest
from nwb_files import make_sorting
from nwbinspector import Importance, inspect_nwbfile
from probeinterface import generate_linear_probe, write_probeinterface
from pynwb import NWBHDF5IO
from spikeinterface.core import NumpyRecording, NumpySorting, write_binary_recording
from spikeinterface.extractors import read_nwb_sorting

from accm_core.errors import AccmError, NwbError, ParamsError, RecordingError
from accm_core.io.formats import list_formats, read_format
from accm_core.io.nwb_units import read_sorting
from accm_core.io.nwb_write import write_nwb
from accm_core.report import write_report

FS, GAIN, OFFSET = 30_000.0, 0.195, 3.0
# SpikeInterface's, when it saves what is in memory
pytestmark = [
    pytest.mark.filterwarnings("ignore:The extractor is not serializable"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
BINARY = {"sampling_frequency": FS, "num_channels": 4, "dtype": "int16"}


def make_traces(*, dead=None, lengths=(6000,)):
    rng = np.random.default_rng(0)
    traces = [rng.normal(0, 50, (length, 4)).astype(np.int16) for length in lengths]
    for part in traces:
        part[:, [] if dead is None else dead] = 7
    return traces


def make_recording(traces, *, t_starts=None):
    recording = NumpyRecording(traces, FS, t_starts=t_starts, channel_ids=[f"c{k}" for k in range(4)])
    recording.set_channel_gains(GAIN)
    recording.set_channel_offsets(OFFSET)
    probe = generate_linear_probe(num_elec=4, ypitch=25.0)
    probe.set_device_channel_indices(np.arange(4))
    recording.set_probe(probe)
    return recording


def write_open_ephys(folder: Path, traces: np.ndarray) -> Path:
    """Two streams of Open Ephys' binary format: one of neural data, one of an accelerometer."""
    folder = folder / "Record Node 101" / "experiment1" / "recording1"
    streams = [("probe", 4, FS, traces), ("accelerometer", 2, 1000.0, traces[:200, :2])]
    entries = []
    for name, num_channels, rate, data in streams:
        stream = folder / "continuous" / name
        stream.mkdir(parents=True)
        data.tofile(stream / "continuous.dat")
        np.save(stream / "sample_numbers.npy", np.arange(len(data)))
        np.save(stream / "timestamps.npy", np.arange(len(data)) / rate)
        channels = [
            {
                "channel_name": f"CH{k + 1}",
                "units": "uV",
                "bit_volts": GAIN,
                "description": "",
                "identifier": "",
            }
            for k in range(num_channels)
        ]
        entries.append(
            {
                "folder_name": f"{name}/",
                "stream_name": name,
                "sample_rate": rate,
                "source_processor_name": "Source",
                "source_processor_id": 100,
                "num_channels": num_channels,
                "channels": channels,
            }
        )
    oebin = {"GUI version": "0.6.7", "continuous": entries, "events": [], "spikes": []}
    (folder / "structure.oebin").write_text(json.dumps(oebin))
    return folder.parents[2]


def make_probe_file(folder: Path) -> Path:
    probe = generate_linear_probe(num_elec=4, ypitch=40.0)
    probe.set_device_channel_indices(np.arange(4))
    write_probeinterface(folder / "probe.json", probe)
    return folder / "probe.json"


def inspect(file_path):
    """What nwbinspector says that is a violation or worse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nwbinspector opens files in ways that h5py deprecates
        found = list(inspect_nwbfile(nwbfile_path=file_path))
    return [
        m.check_function_name for m in found if m.importance.value >= Importance.BEST_PRACTICE_VIOLATION.value
    ]


def expected(traces):
    return np.concatenate(traces).astype(np.float32) * np.float32(GAIN) + np.float32(OFFSET)


@pytest.fixture
def saved(tmp_path):
    """The same recording of two segments as a folder, a Zarr store and JSON that points to the folder."""
    traces = make_traces(lengths=(4000, 3000))
    recording = make_recording(traces, t_starts=[1.0, 60.0])
    folder = recording.save(folder=tmp_path / "folder", progress_bar=False, verbose=False)
    recording.save(folder=tmp_path / "store.zarr", format="zarr", progress_bar=False, verbose=False)
    folder.dump_to_json(tmp_path / "recording.json")
    return tmp_path, traces


class TestReading:
    @pytest.mark.parametrize("name", ["folder", "store.zarr", "recording.json"])
    def test_what_spikeinterface_saved(self, saved, name):
        folder, traces = saved
        read = read_format(folder / name, "spikeinterface")
        np.testing.assert_allclose(read.get_traces(0, 7000), expected(traces), rtol=1e-6)
        assert (read.channel_ids, read.dtype) == (("c0", "c1", "c2", "c3"), "int16")
        np.testing.assert_array_equal(read.channel_locations[:, 1], [0, 25, 50, 75])
        np.testing.assert_allclose(read.segment_times, [[1.0, 1.0 + 4000 / FS], [60.0, 60.1]])
        np.testing.assert_allclose(read.gaps, [(1.0 + 3999 / FS, 60.0)])
        assert read.source_name == name

    def test_binary_with_options_and_probe(self, tmp_path):
        traces = make_traces()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SpikeInterface's about its own defaults
            write_binary_recording(
                make_recording(traces), tmp_path / "raw.bin", progress_bar=False, verbose=False
            )
        options = {**BINARY, "gain_to_uV": GAIN, "offset_to_uV": OFFSET}
        read = read_format(tmp_path / "raw.bin", "binary", options=options, probe=make_probe_file(tmp_path))
        np.testing.assert_allclose(read.get_traces(0, 6000), expected(traces), rtol=1e-6)
        np.testing.assert_array_equal(read.channel_locations[:, 1], [0, 40, 80, 120])
        assert len(read.warnings) == 1
        assert "does not tell when it began" in read.warnings[0]

    def test_streams(self, tmp_path):
        traces = make_traces()
        folder = write_open_ephys(tmp_path, traces[0])
        names = "Record Node 101#accelerometer, Record Node 101#probe"
        with pytest.raises(RecordingError, match=f"2 streams: {names}. Name one, as in --series"):
            read_format(folder.parent, "openephysbinary")
        with pytest.raises(RecordingError, match=f"no stream 'imec0.ap'. Its streams: {names}"):
            read_format(folder.parent, "openephysbinary", stream="imec0.ap")
        read = read_format(folder.parent, "openephysbinary", stream="Record Node 101#probe")
        by_id = read_format(folder.parent, "openephysbinary", stream="1")
        for recording in (read, by_id):
            np.testing.assert_allclose(recording.get_traces(0, 6000), traces[0] * GAIN, rtol=1e-5)
            assert recording.series_path == "Record Node 101#probe"

    def test_the_start_of_the_recording_is_taken_from_its_files(self, tmp_path, monkeypatch):
        from neo.rawio.openephysbinaryrawio import OpenEphysBinaryRawIO

        parse = OpenEphysBinaryRawIO._parse_header

        def parse_and_date(self):
            parse(self)
            self.raw_annotations["blocks"][0]["rec_datetime"] = datetime(2023, 5, 4, 12, tzinfo=UTC)

        monkeypatch.setattr(OpenEphysBinaryRawIO, "_parse_header", parse_and_date)
        folder = write_open_ephys(tmp_path, make_traces()[0])
        read = read_format(folder.parent, "openephysbinary", stream="Record Node 101#probe")
        assert read.start_time == datetime(2023, 5, 4, 12, tzinfo=UTC)
        assert not any("began" in warning for warning in read.warnings)

    def test_dead_channels_are_left_out(self, tmp_path):
        traces = make_traces(dead=2)
        make_recording(traces).save(folder=tmp_path / "r", progress_bar=False, verbose=False)
        read = read_format(tmp_path / "r", "spikeinterface")
        assert read.channel_ids == ("c0", "c1", "c3")
        assert read.left_out[0][0] == "c2"
        assert "always 7" in read.left_out[0][1]
        np.testing.assert_allclose(read.get_traces(0, 100), expected(traces)[:100, [0, 1, 3]], rtol=1e-6)

    def test_formats_are_those_of_spikeinterface(self):
        known = list_formats()
        assert {"spikeglx", "openephysbinary", "intan", "binary", "zarr", "spikeinterface"} <= set(known)
        assert not {"nwb", "numpy"} & set(known)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "options", "stream", "message"),
        [
            ("kilosort9", {}, None, "'kilosort9' is not known. Use one of: alphaomega, .*spikeglx"),
            ("nwb", {}, None, "NWB needs no --format"),
            (
                "binary",
                {},
                None,
                "needs sampling_frequency, dtype: say --format-option sampling_frequency=VALUE",
            ),
            ("binary", {**BINARY, "nchan": 4}, None, "no option 'nchan'. It has: sampling_frequency"),
            ("binary", BINARY, "ap", "binary has no streams"),
            ("spikeglx", {"stream_id": "imec0.ap"}, None, "Name the stream with --series"),
            ("spikeinterface", {"a": 1}, None, "no streams and no options"),
        ],
    )
    def test_of_arguments(self, tmp_path, name, options, stream, message):
        (tmp_path / "raw.bin").write_bytes(bytes(100))
        with pytest.raises(ParamsError, match=message):
            read_format(tmp_path / "raw.bin", name, options=options, stream=stream)

    def test_of_what_is_not_there_or_not_that_format(self, tmp_path):
        with pytest.raises(RecordingError, match=r"There is no .*gone"):
            read_format(tmp_path / "gone", "spikeglx")
        (tmp_path / "text.rhd").write_text("no Intan file")
        with pytest.raises(RecordingError, match=r"text.rhd cannot be read as intan: .*Check the format"):
            read_format(tmp_path / "text.rhd", "intan")
        (tmp_path / "empty").mkdir()
        with pytest.raises(RecordingError, match="empty cannot be read as spikeinterface"):
            read_format(tmp_path / "empty", "spikeinterface")

    def test_of_a_sorting(self, tmp_path):
        sorting = NumpySorting.from_samples_and_labels([np.arange(5)], [np.zeros(5, int)], FS)
        sorting.save(folder=tmp_path / "sorting")
        with pytest.raises(RecordingError, match=r"Sorting.*, not a recording"):
            read_format(tmp_path / "sorting", "spikeinterface")

    def test_of_pickles(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "exploded",))

        (tmp_path / "folder").mkdir()
        for name in ("recording.pkl", "folder/cached.pkl"):
            (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
            with pytest.raises(RecordingError, match="pickle, which can run any code"):
                read_format(
                    (tmp_path / name) if name.startswith("r") else tmp_path / "folder", "spikeinterface"
                )
        assert not (tmp_path / "exploded").exists()

    def test_without_signal(self, tmp_path):
        np.full((6000, 4), 7, np.int16).tofile(tmp_path / "raw.bin")
        with pytest.raises(AccmError, match=r"Every channel of .* is constant"):
            read_format(tmp_path / "raw.bin", "binary", options=BINARY)

    def test_of_a_probe_file(self, tmp_path):
        make_traces()[0].tofile(tmp_path / "raw.bin")
        with pytest.raises(NwbError, match="There is no probe file"):
            read_format(tmp_path / "raw.bin", "binary", options=BINARY, probe=tmp_path / "gone.json")
        (tmp_path / "bad.json").write_text("{}")
        with pytest.raises(NwbError, match="cannot be used for this recording"):
            read_format(tmp_path / "raw.bin", "binary", options=BINARY, probe=tmp_path / "bad.json")


class TestWriting:
    @pytest.mark.parametrize("num_units", [3, 0])
    def test_a_new_session_with_the_units(self, saved, num_units):
        folder, _ = saved
        read = read_format(folder / "folder", "spikeinterface")
        sorting = make_sorting(read, num_units=num_units)
        out = write_nwb(sorting, read, folder / "out.nwb")
        assert inspect(out) == []
        assert pynwb.validate(path=out) == []
        with NWBHDF5IO(out, "r") as io:
            nwbfile = io.read()
            assert nwbfile.session_start_time == read.start_time
            assert nwbfile.session_description == "units sorted from spikeinterface of folder"
            electrodes = nwbfile.electrodes.to_dataframe()
            assert list(electrodes["channel_name"]) == ["c0", "c1", "c2", "c3"]
            assert list(electrodes["rel_y"]) == [0, 25, 50, 75]
            assert set(electrodes["group_name"]) == {"shank0"}
            assert not nwbfile.acquisition
            if num_units:
                table = nwbfile.units.to_dataframe()
                np.testing.assert_allclose(table["obs_intervals"].iloc[0], read.segment_times)
                np.testing.assert_array_equal(
                    table["spike_times"].iloc[1], sorting.spike_times[sorting.unit_index == 1]
                )
        back = read_sorting(out)
        np.testing.assert_array_equal(back.sample_index, sorting.sample_index)
        np.testing.assert_allclose(back.templates.mean, sorting.templates.mean, rtol=1e-5)
        write_report(back, folder / "out.html", title="a title")
        assert (folder / "out.html").stat().st_size > 1000

    def test_spikeinterface_reads_the_same_trains(self, tmp_path):
        make_recording(make_traces()).save(folder=tmp_path / "r", progress_bar=False, verbose=False)
        read = read_format(tmp_path / "r", "spikeinterface")
        sorting = make_sorting(read)
        out = write_nwb(sorting, read, tmp_path / "out.nwb")
        back = read_nwb_sorting(out, sampling_frequency=FS, t_start=0.0)
        for row, unit in enumerate(back.unit_ids):
            np.testing.assert_array_equal(
                back.get_unit_spike_train(unit), sorting.sample_index[sorting.spikes_of(row)]
            )

    def test_nothing_to_link_to_and_nothing_half_written(self, saved, monkeypatch):
        folder, _ = saved
        read = read_format(folder / "folder", "spikeinterface")
        before = sorted(path.name for path in folder.iterdir())
        with pytest.raises(NwbError, match="folder is not NWB: there are no raw data to link to"):
            write_nwb(make_sorting(read), read, folder / "out.nwb", link=True)

        def fail(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(NWBHDF5IO, "write", fail)
        with pytest.raises(NwbError, match="No space left"):
            write_nwb(make_sorting(read), read, folder / "out.nwb")
        assert sorted(path.name for path in folder.iterdir()) == before
