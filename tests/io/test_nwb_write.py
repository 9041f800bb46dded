import dataclasses
import errno
import json
import os
import warnings

import h5py
import numpy as np
import pynwb
import pytest
from nwb_files import Shape, counts, make_file, make_series, make_session, make_sorting, packed, write_session
from nwbinspector import Importance, inspect_nwbfile
from pynwb import NWBHDF5IO
from spikeinterface.extractors import read_nwb_recording, read_nwb_sorting

import accm_core
from accm_core.errors import NwbError
from accm_core.io import nwb_write
from accm_core.io.nwb_read import read_nwb
from accm_core.io.nwb_units import read_sorting, read_spike_trains
from accm_core.io.nwb_write import write_nwb

LINE = {"rel_x": [0.0] * 4, "rel_y": [0.0, 20.0, 40.0, 60.0]}
SERIES = "acquisition/ElectricalSeries"


@pytest.fixture
def source(tmp_path):
    return make_file(tmp_path / "session.nwb", columns=LINE)


def write(source, name="out.nwb", *, num_units=3, **options):
    with read_nwb(source) as recording:
        sorting = make_sorting(recording, num_units=num_units)
        return sorting, write_nwb(sorting, recording, source.parent / name, **options)


def opened(file_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pynwb's about the schema's age
        return NWBHDF5IO(file_path, "r")


def with_units(file_path, *, generated_by=None):
    """A session with two units of somebody else."""
    nwbfile = make_session(Shape(columns=LINE))
    nwbfile.add_acquisition(make_series(nwbfile, Shape()))
    for times in ([0.01, 0.05], [0.02, 0.1]):
        nwbfile.add_unit(spike_times=times)
    if generated_by:
        nwbfile.was_generated_by = generated_by
    return write_session(file_path, nwbfile)


def folder(file_path):
    return sorted(path.name for path in file_path.parent.iterdir())


def inspect(file_path):
    """What nwbinspector says that is a violation or worse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nwbinspector opens files in ways that h5py deprecates
        found = list(inspect_nwbfile(nwbfile_path=file_path))
    return [
        m.check_function_name for m in found if m.importance.value >= Importance.BEST_PRACTICE_VIOLATION.value
    ]


class TestUnits:
    def test_columns(self, source):
        sorting, out = write(source)
        with opened(out) as io:
            units = io.read().units
            table = units.to_dataframe()
        assert list(table.index) == [1, 2, 3]
        assert list(table["unit_name"]) == ["1", "2", "3"]
        assert list(table["quality"]) == ["good", "mua", "noise"]
        assert list(table["quality_reason"]) == list(sorting.label_reasons)
        for row in range(3):
            spikes = sorting.spikes_of(row)
            unit = table.iloc[row]
            np.testing.assert_array_equal(unit["spike_times"], sorting.spike_times[spikes])
            np.testing.assert_array_equal(unit["spike_amplitudes"], sorting.amplitude_uV[spikes])
            np.testing.assert_array_equal(unit["spike_probability"], sorting.probability[spikes])
            np.testing.assert_array_equal(unit["spike_overlaps"], sorting.is_overlap[spikes])
            np.testing.assert_array_equal(unit["spike_samples"], sorting.sample_index[spikes])
            np.testing.assert_array_equal(unit["obs_intervals"], sorting.segment_times)
            electrodes = list(unit["electrodes"].index)
            assert electrodes[0] == row  # the main channel first
            np.testing.assert_allclose(
                unit["waveform_mean"], sorting.templates.mean[row][:, electrodes] * 1e-6, rtol=1e-6
            )
            np.testing.assert_allclose(
                unit["waveform_sd"], sorting.templates.std[row][:, electrodes] * 1e-6, rtol=1e-6
            )
            assert unit["electrode_group"].name == "shank0"
        np.testing.assert_array_equal(table["snr"], sorting.quality["snr"])
        np.testing.assert_array_equal(table["num_spikes"], [40, 40, 40])

    def test_table_attributes(self, source):
        _, out = write(source)
        with h5py.File(out) as file:
            units = file["units"]
            assert units["spike_times"].attrs["resolution"] == 1 / 30000
            for name in ("waveform_mean", "waveform_sd"):
                assert units[name].attrs["sampling_rate"] == 30000.0
                assert units[name].attrs["unit"] == "volts"
            assert units["spike_times"].dtype == np.float64
        with opened(out) as io:
            units = io.read().units
            assert units.waveform_rate == 30000.0
            assert units.waveform_time_before_peak_in_ms == pytest.approx(10 / 30)

    def test_metrics_without_any_value_are_left_out(self, source):
        _, out = write(source)
        with opened(out) as io:
            columns = io.read().units.colnames
        assert "presence_ratio" not in columns
        assert "amplitude_cutoff" in columns  # NaN for one unit only

    def test_times_are_on_the_session_clock_across_gaps(self, tmp_path):
        stamps = 7.0 + np.arange(9000) / 30000
        stamps[4000:] += 20.0
        source = make_file(tmp_path / "gap.nwb", data=counts(9000, 4), series={"timestamps": stamps})
        sorting, out = write(source)
        with opened(out) as io:
            unit = io.read().units.to_dataframe().iloc[0]
        np.testing.assert_array_equal(unit["spike_times"], stamps[sorting.sample_index[sorting.spikes_of(0)]])
        np.testing.assert_allclose(
            unit["obs_intervals"],
            [[7.0, 7.0 + 4000 / 30000], [27.0 + 4000 / 30000, 27.0 + 9000 / 30000]],
        )
        assert inspect(out) == inspect(source)
        read = read_nwb_sorting(out, electrical_series_path=SERIES)
        for row, name in enumerate(read.unit_ids):
            np.testing.assert_array_equal(
                read.get_unit_spike_train(name), sorting.sample_index[sorting.spikes_of(row)]
            )

    def test_shanks_of_unequal_size(self, tmp_path):
        groups = ["a", "a", "a", "b"]
        _, out = write(make_file(tmp_path / "shanks.nwb", groups=groups, columns=LINE), num_units=4)
        with opened(out) as io:
            table = io.read().units.to_dataframe()
        assert [len(electrodes) for electrodes in table["electrodes"]] == [3, 3, 3, 3]
        assert [group.name for group in table["electrode_group"]] == groups
        assert set(table["electrodes"].iloc[2].index) == {
            0,
            1,
            2,
        }  # channel 3 is near, but of the other shank
        assert table["electrodes"].iloc[3].index[0] == 3

    def test_many_channels_store_the_nearest(self, tmp_path):
        columns = {"rel_x": [0.0] * 40, "rel_y": list(np.arange(40.0) * 20)}
        _, out = write(make_file(tmp_path / "many.nwb", num_channels=40, columns=columns))
        with opened(out) as io:
            table = io.read().units.to_dataframe()
        assert list(table["electrodes"].iloc[0].index) == list(range(32))
        assert table["waveform_mean"].iloc[0].shape == (30, 32)

    def test_left_out_channels_keep_the_rows_right(self, tmp_path):
        source = make_file(tmp_path / "bad.nwb", columns={**LINE, "bad": [True, False, True, False]})
        _, out = write(source, num_units=2)
        with opened(out) as io:
            table = io.read().units.to_dataframe()
        assert [list(electrodes.index) for electrodes in table["electrodes"]] == [[1, 3], [3, 1]]


class TestFile:
    @pytest.mark.parametrize(("num_units", "link"), [(3, False), (1, True), (0, False)])
    def test_validators_are_content(self, source, num_units, link):
        out = write(source, num_units=num_units, link=link)[1]
        assert inspect(out) == []
        assert pynwb.validate(path=out) == []

    def test_spikeinterface_reads_the_same_trains(self, source):
        sorting, out = write(source)
        read = read_nwb_sorting(out, electrical_series_path=SERIES)
        assert list(read.unit_ids) == ["1", "2", "3"]
        for row, unit in enumerate(read.unit_ids):
            samples = sorting.sample_index[sorting.spikes_of(row)]
            np.testing.assert_array_equal(read.get_unit_spike_train(unit), samples)
        assert list(read.get_property("quality")) == ["good", "mua", "noise"]
        traces = read_nwb_recording(out, electrical_series_path=SERIES).get_traces()
        np.testing.assert_array_equal(traces, counts(6000, 4))

    def test_the_whole_session_is_there(self, tmp_path):
        source = make_file(tmp_path / "session.nwb", data=packed(counts(6000, 4), compression="gzip"))
        _, out = write(source)
        with h5py.File(source) as before, h5py.File(out) as after:
            old, new = before[f"{SERIES}/data"], after[f"{SERIES}/data"]
            np.testing.assert_array_equal(new, old)
            assert (new.chunks, new.compression, dict(new.attrs)) == (
                old.chunks,
                old.compression,
                dict(old.attrs),
            )
            assert isinstance(after[SERIES].get("data", getlink=True), h5py.HardLink)
            assert after["general/subject/subject_id"][()] == b"m1"
            assert before.attrs["object_id"] != after.attrs["object_id"]
            assert before[SERIES].attrs["object_id"] == after[SERIES].attrs["object_id"]

    def test_result_does_not_need_the_session(self, source):
        _, out = write(source)
        source.unlink()
        with read_nwb(out) as recording:
            np.testing.assert_allclose(recording.get_traces(0, 6000), counts(6000, 4) * 0.195, rtol=1e-5)
            assert recording.has_units

    def test_samples_that_the_session_links_to_are_copied(self, source):
        (source.parent / "sorted").mkdir()
        _, linked = write(source, "linked.nwb", link=True)
        _, out = write(linked, "sorted/out.nwb", units="replace")
        source.unlink()
        linked.unlink()
        with read_nwb(out) as recording:
            np.testing.assert_allclose(recording.get_traces(0, 6000), counts(6000, 4) * 0.195, rtol=1e-5)

    def test_session_as_path(self, source):
        with read_nwb(source) as recording:
            sorting = make_sorting(recording)
        out = write_nwb(sorting, str(source), str(source.with_name("out.nwb")))
        assert out == source.with_name("out.nwb")
        assert read_sorting(out).num_units == 3

    def test_package_has_it(self):
        assert accm_core.write_nwb is write_nwb


class TestLink:
    def test_small_file_that_links_to_the_samples(self, tmp_path):
        source = make_file(tmp_path / "session.nwb", data=counts(200_000, 4), columns=LINE)
        sorting, out = write(source, link=True)
        assert out.stat().st_size < source.stat().st_size / 3
        with h5py.File(out) as file:
            link = file[SERIES].get("data", getlink=True)
            assert (link.filename, link.path) == ("session.nwb", f"/{SERIES}/data")
        with read_nwb(out) as recording:
            np.testing.assert_allclose(
                recording.get_traces(0, 100), counts(200_000, 4)[:100] * 0.195, rtol=1e-5
            )
        np.testing.assert_array_equal(read_sorting(out).spike_times.size, sorting.spike_times.size)

    def test_link_is_relative(self, tmp_path):
        (tmp_path / "raw").mkdir()
        (tmp_path / "sorted").mkdir()
        source = make_file(tmp_path / "raw" / "session.nwb")
        _, out = write(source, "../sorted/out.nwb", link=True)
        moved = (tmp_path / "elsewhere").resolve()
        moved.mkdir()
        (tmp_path / "raw").rename(moved / "raw")
        (tmp_path / "sorted").rename(moved / "sorted")
        with read_nwb(moved / "sorted" / "out.nwb") as recording:
            assert recording.get_traces(0, 10).shape == (10, 4)
        assert out.name == "out.nwb"

    def test_electrodes_and_units_are_there_without_the_session(self, source):
        _, out = write(source, link=True)
        source.unlink()
        assert read_sorting(out).num_units == 3
        with opened(out) as io, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the link is broken, and pynwb says so
            assert len(io.read().electrodes) == 4
        with pytest.raises(NwbError, match=r"lie in session.nwb, which is not there"):
            read_nwb(out)

    def test_link_to_a_link_points_to_the_samples(self, source):
        _, first = write(source, "first.nwb", link=True)
        _, second = write(first, "second.nwb", link=True, units="replace")
        with h5py.File(second) as file:
            assert file[SERIES].get("data", getlink=True).filename == "session.nwb"


class TestEarlierUnits:
    def test_fail(self, tmp_path):
        source = with_units(tmp_path / "session.nwb")
        with pytest.raises(
            NwbError, match=r"has a Units table already. Choose units=replace to leave it out"
        ):
            write(source)
        assert folder(source) == ["session.nwb"]

    @pytest.mark.parametrize("link", [False, True])
    def test_replace(self, tmp_path, link):
        source = with_units(tmp_path / "session.nwb")
        _, out = write(source, units="replace", link=link)
        with opened(out) as io:
            assert list(io.read().units["unit_name"].data) == ["1", "2", "3"]
        assert pynwb.validate(path=out) == []

    @pytest.mark.parametrize("link", [False, True])
    def test_processing(self, tmp_path, link):
        source = with_units(tmp_path / "session.nwb")
        _, out = write(source, units="processing", link=link)
        with opened(out) as io:
            nwbfile = io.read()
            assert len(nwbfile.units) == 2
            np.testing.assert_array_equal(nwbfile.units["spike_times"][1], [0.02, 0.1])
            assert len(nwbfile.processing["ecephys"]["units_accm"]) == 3
        assert pynwb.validate(path=out) == []
        assert read_sorting(out).num_units == 3
        assert list(read_spike_trains(out)) == ["1", "2", "3"]
        assert list(read_spike_trains(out, "units")) == ["0", "1"]

    def test_processing_twice_is_refused(self, tmp_path):
        source = with_units(tmp_path / "session.nwb")
        _, out = write(source, units="processing")
        with pytest.raises(
            NwbError, match=r"has a processing/ecephys/units_accm already. Choose units=replace"
        ):
            write(out, "again.nwb", units="processing")
        _, again = write(out, "again.nwb", units="replace", num_units=2)
        assert read_sorting(again).num_units == 2
        with opened(again) as io:
            nwbfile = io.read()
            assert len(nwbfile.units) == 2
            assert not nwbfile.processing["ecephys"].data_interfaces
            assert sorted(nwbfile.scratch) == ["accm_embedding", "accm_provenance"]

    def test_processing_without_earlier_units_is_the_units_table(self, source):
        _, out = write(source, units="processing")
        with opened(out) as io:
            assert len(io.read().units) == 3

    def test_sorted_again(self, source):
        _, out = write(source)
        with pytest.raises(NwbError, match="has a Units table already"):
            write(out, "again.nwb")
        _, again = write(out, "again.nwb", units="replace", num_units=1)
        assert read_sorting(again).num_units == 1
        assert inspect(again) == []

    def test_sorted_without_units_again(self, source):
        _, out = write(source, num_units=0)
        with pytest.raises(NwbError, match=r"has a sorting by accm \(without units\) already"):
            write(out, "again.nwb")
        _, again = write(out, "again.nwb", units="replace")
        assert read_sorting(again).num_units == 3


class TestProvenance:
    def test_content(self, tmp_path):
        stamps = np.arange(9000) / 30000
        stamps[4000:] += 2.0
        source = make_file(
            tmp_path / "session.nwb",
            data=counts(9000, 4),
            series={"timestamps": stamps},
            columns={**LINE, "bad": [False, False, False, True]},
        )
        _, out = write(source)
        with h5py.File(out) as file:
            content = json.loads(file["scratch/accm_provenance"][()])
        assert content["params"] == {"detect": {"threshold": 5.0}}
        assert content["seed"] == 0
        assert (content["package"], content["version"]) == ("accm", accm_core.__version__)
        assert content["series_path"] == SERIES
        assert content["source_file"] == "session.nwb"
        assert content["segments"] == [[0, 4000], [4000, 9000]]
        assert content["gaps"] == [[stamps[3999], stamps[4000]]]
        assert content["bad_channel_ids"] == ["17"]
        assert content["left_out"] == [["3", "bad: bad is True"]]

    def test_values_that_json_has_not(self, source):
        with read_nwb(source) as recording:
            odd = {
                "nan": float("nan"),
                "array": np.arange(2),
                "path": source,
                3: np.float32(0.5),
                "none": None,
            }
            sorting = dataclasses.replace(make_sorting(recording), provenance=odd)
            out = write_nwb(sorting, recording, source.with_name("out.nwb"))
        found = read_sorting(out).provenance
        assert (found["nan"], found["array"], found["path"], found["3"]) == (None, [0, 1], str(source), 0.5)

    def test_was_generated_by(self, source, tmp_path):
        ours = ["accm", accm_core.__version__]
        others = [["neuroconv", "0.5"], ["pynwb", "3.0"]]
        _, out = write(source)
        _, out_of_others = write(
            with_units(tmp_path / "other.nwb", generated_by=others), "o.nwb", units="replace"
        )
        _, again = write(out_of_others, "again.nwb", units="replace")
        for file_path, expected in (
            (out, [ours]),
            (out_of_others, [*others, ours]),
            (again, [*others, ours]),
        ):
            with opened(file_path) as io:
                assert [list(row) for row in io.read().was_generated_by] == expected


class TestSafety:
    def test_existing_output_is_refused_unless_told(self, source):
        out = source.with_name("out.nwb")
        out.write_text("precious")
        with pytest.raises(
            NwbError, match=r"out.nwb exists. Choose another name, or ask for it to be overwritten"
        ):
            write(source)
        assert out.read_text() == "precious"
        write(source, overwrite=True)
        assert read_sorting(out).num_units == 3
        assert folder(source) == ["out.nwb", "session.nwb"]

    @pytest.mark.parametrize("name", ["session.nwb", "link.nwb"])
    def test_output_that_is_the_session_is_refused(self, source, name):
        source.with_name("link.nwb").symlink_to(source)
        with pytest.raises(NwbError, match="is the session itself, which is never changed"):
            write(source, name, overwrite=True)

    def test_output_that_holds_the_samples_is_refused(self, source):
        _, linked = write(source, "linked.nwb", link=True)
        with pytest.raises(NwbError, match="is the session itself, which is never changed"):
            write(linked, "session.nwb", units="replace", overwrite=True)

    def test_folder_that_is_not_there(self, source):
        with pytest.raises(NwbError, match=r"none does not exist. Make it, or choose another"):
            write(source, "none/out.nwb")

    def test_output_that_is_a_folder(self, source):
        source.with_name("out.nwb").mkdir()
        with pytest.raises(NwbError, match=r"out.nwb is a folder; the name of a file is needed"):
            write(source, overwrite=True)

    @pytest.mark.parametrize("link", [False, True])
    def test_session_is_not_changed(self, source, link):
        before, when = source.read_bytes(), source.stat().st_mtime_ns
        write(source, link=link)
        assert source.read_bytes() == before
        assert source.stat().st_mtime_ns == when

    @pytest.mark.parametrize(
        ("error", "link"), [(KeyboardInterrupt(), False), (MemoryError(), False), (ValueError("oops"), True)]
    )
    def test_nothing_is_left_when_it_breaks(self, source, monkeypatch, error, link):
        out = source.with_name("out.nwb")
        out.write_text("earlier result")
        export = NWBHDF5IO.export

        def break_at_the_end(self, **arguments):
            export(self, **arguments)
            raise error

        monkeypatch.setattr(NWBHDF5IO, "export", break_at_the_end)
        with pytest.raises(type(error)):
            write(source, link=link, overwrite=True)
        assert out.read_text() == "earlier result"
        assert folder(source) == ["out.nwb", "session.nwb"]

    def test_full_disk(self, source, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(nwb_write, "_flush", fail)
        with pytest.raises(
            NwbError, match=r"Cannot write .*out.nwb: No space left on device. Check the disk's space"
        ):
            write(source)
        assert folder(source) == ["session.nwb"]

    def test_full_disk_in_the_words_of_hdf5(self, source, monkeypatch):
        said = "Can't decrement id ref count (errno = 28, error message = 'No space left', buf = 0)"

        def fail(*_, **__):
            raise RuntimeError(said)

        monkeypatch.setattr(NWBHDF5IO, "export", fail)
        with pytest.raises(
            NwbError, match=r"Cannot write .*out\.nwb: No space left\. Check the disk's space"
        ):
            write(source)
        assert folder(source) == ["session.nwb"]
        said = "a fault of the program"
        with pytest.raises(RuntimeError, match="a fault of the program"):
            write(source)

    def test_flushed_before_it_is_renamed(self, source, monkeypatch):
        done = []
        flush = nwb_write._flush
        monkeypatch.setattr(nwb_write, "_flush", lambda path: (done.append(folder(source)), flush(path)))
        write(source)
        assert "out.nwb" not in done[0]
        assert "out.nwb" in done[1]

    def test_sorting_of_another_session(self, source, tmp_path):
        sorting = write(source)[0]
        other = make_file(tmp_path / "other.nwb", num_channels=3)
        with pytest.raises(
            NwbError, match="The sorting has channel '3', which acquisition/ElectricalSeries of"
        ):
            write_nwb(sorting, other, tmp_path / "o.nwb")
        assert folder(source) == ["other.nwb", "out.nwb", "session.nwb"]
