import fcntl
import os
import re
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import h5py
import hdf5plugin
import numpy as np
import probeinterface
import pytest
from hdmf.backends.hdf5 import H5DataIO
from ndx_probeinterface import from_probeinterface
from nwb_files import (
    FS,
    GAIN,
    Shape,
    add_lfp,
    counts,
    edit,
    make_file,
    make_series,
    make_session,
    packed,
    write_session,
)
from pynwb.ecephys import FilteredEphys, SpikeEventSeries

from accm_core.errors import NwbError, RecordingError
from accm_core.io import nwb_clock
from accm_core.io.nwb_read import read_nwb
from accm_core.types import Segment

LINE = {"rel_x": [0.0] * 4, "rel_y": [0.0, 20.0, 40.0, 60.0]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.nwb"


def refused(file_path, **options):
    """The message with which the file is refused, without its folder."""
    with pytest.raises(NwbError) as caught:
        read_nwb(file_path, **options)
    return str(caught.value).replace(f"{file_path.parent}/", "")


class TestTraces:
    def test_plain_session(self, path):
        with read_nwb(make_file(path, columns=LINE)) as recording:
            expected = counts(6000, 4).astype(np.float32) * np.float32(0.195)
            np.testing.assert_allclose(recording.get_traces(0, 6000), expected, rtol=1e-6)
            np.testing.assert_allclose(recording.get_traces(100, 200), expected[100:200], rtol=1e-6)
            assert recording.get_traces(0, 10).dtype == np.float32
            assert recording.get_traces(7, 7).shape == (0, 4)
            assert recording.sampling_frequency == FS
            assert recording.channel_ids == ("0", "1", "2", "3")
            assert recording.segments == (Segment(0, 6000),)
            assert recording.series_path == "acquisition/ElectricalSeries"
            assert (recording.dtype, recording.num_samples, recording.duration) == ("int16", 6000, 0.2)
            assert recording.has_geometry
            assert (recording.warnings, recording.left_out, recording.gaps) == ((), (), ())
            np.testing.assert_array_equal(recording.channel_locations, np.column_stack(list(LINE.values())))

    @pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "float32", "float64"])
    def test_dtype_conversion_offset_and_channel_conversion(self, path, dtype):
        stored = counts(6000, 4).clip(-120, 120).astype(np.int32)
        stored = (stored + (32768 if dtype == "uint16" else 0)).astype(dtype)
        offset = -32768 * GAIN if dtype == "uint16" else 1e-5
        factors = np.array([1.0, 2.0, 0.5, 1.5])
        series = {"offset": offset, "channel_conversion": factors}
        with read_nwb(make_file(path, data=stored, series=series, columns=LINE)) as recording:
            expected = (stored.astype(np.float64) * GAIN * factors + offset) * 1e6
            np.testing.assert_allclose(recording.get_traces(0, 6000), expected, atol=2e-3)
            assert recording.dtype == dtype
            assert recording.warnings == ()

    def test_large_int32_keeps_small_signals(self, path):
        stored = counts(6000, 4) + np.int32(2**30)  # float32 alone would lose the signal
        series = {"offset": -(2.0**30) * GAIN}
        with read_nwb(make_file(path, data=stored, series=series)) as recording:
            np.testing.assert_allclose(recording.get_traces(0, 6000), counts(6000, 4) * 0.195, atol=0.01)

    def test_one_dimensional_data_is_one_channel(self, path):
        data = counts(6000, 1)[:, 0]
        with read_nwb(make_file(path, num_channels=1, data=data)) as recording:
            assert recording.get_traces(5, 105).shape == (100, 1)
            np.testing.assert_allclose(recording.get_traces(0, 6000)[:, 0], data * 0.195, rtol=1e-5)
            assert recording.warnings == ()

    def test_channels_are_cut_out_wherever_they_lie(self, path):
        columns = {**LINE, "bad": [True, False, True, False]}
        with read_nwb(make_file(path, columns=columns)) as recording:
            np.testing.assert_allclose(
                recording.get_traces(10, 20), counts(6000, 4)[10:20, [1, 3]] * 0.195, rtol=1e-5
            )
            assert recording.channel_ids == ("1", "3")
            np.testing.assert_array_equal(recording.electrode_index, [1, 3])

    def test_series_on_some_of_the_electrodes(self, path):
        shape = {"num_channels": 4, "data": counts(6000, 2), "region": [3, 1], "columns": LINE}
        with read_nwb(make_file(path, **shape)) as recording:
            assert recording.channel_ids == ("3", "1")
            np.testing.assert_array_equal(recording.electrode_index, [3, 1])
            np.testing.assert_array_equal(recording.channel_locations, [[0, 60], [0, 20]])

    def test_threads_read_the_same(self, path):
        with read_nwb(make_file(path)) as recording, ThreadPoolExecutor(4) as pool:
            whole = recording.get_traces(0, 6000)
            parts = list(pool.map(lambda k: recording.get_traces(k * 100, (k + 1) * 100), range(60)))
            np.testing.assert_array_equal(np.concatenate(parts), whole)

    def test_memory_does_not_grow_with_the_file(self, path):
        make_file(path, num_channels=32, data=counts(200_000, 32))  # 13 MB
        tracemalloc.start()
        with read_nwb(path) as recording:
            for start in range(0, 200_000, 10_000):
                recording.get_traces(start, start + 10_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 7e6

    def test_range_and_closed_file(self, path):
        recording = read_nwb(make_file(path))
        with pytest.raises(RecordingError, match=r"Samples 5 to 6001 were asked for; .* has 0 to 6000\."):
            recording.get_traces(5, 6001)
        recording.close()
        recording.close()
        with pytest.raises(NwbError, match="was closed; read it again with read_nwb"):
            recording.get_traces(0, 10)

    @pytest.mark.parametrize(
        "options",
        [{"compression": "gzip"}, hdf5plugin.Zstd(), hdf5plugin.Blosc(cname="lz4"), hdf5plugin.Bitshuffle()],
        ids=["gzip", "zstd", "blosc", "bitshuffle"],
    )
    def test_filters(self, path, options):
        with read_nwb(make_file(path, data=packed(counts(6000, 4), **options))) as recording:
            np.testing.assert_allclose(recording.get_traces(0, 6000), counts(6000, 4) * 0.195, rtol=1e-5)

    def test_external_link_to_the_samples(self, path):
        raw = make_file(path.with_name("raw.nwb"))
        with h5py.File(raw, "r") as file:
            make_file(path, data=H5DataIO(file["acquisition/ElectricalSeries/data"], link_data=True))
        with read_nwb(path) as recording:
            np.testing.assert_allclose(recording.get_traces(0, 100), counts(6000, 4)[:100] * 0.195, rtol=1e-5)
        raw.unlink()
        assert refused(path) == (
            "The samples of acquisition/ElectricalSeries lie in raw.nwb, which is not there. "
            "Put it where the "
            "link in session.nwb expects it, relative to that file."
        )

    def test_open_elsewhere_for_reading(self, path):
        make_file(path)
        with h5py.File(path, "r"), read_nwb(path) as one, read_nwb(path) as other:
            np.testing.assert_array_equal(one.get_traces(0, 10), other.get_traces(0, 10))

    def test_the_file_is_not_changed(self, path):
        before = make_file(path).read_bytes()
        with read_nwb(path) as recording:
            recording.get_traces(0, 10)
        assert path.read_bytes() == before


class TestScaling:
    def test_conversion_of_one_warns(self, path):
        with read_nwb(make_file(path, columns=LINE, series={"conversion": 1.0})) as recording:
            assert recording.warnings == (
                "acquisition/ElectricalSeries holds integers and its conversion is 1: "
                "amplitudes in µV will be "
                "wrong. Write the conversion to volts into the file.",
            )

    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_gain_that_makes_no_sense(self, path, value):
        assert "gains must be finite and not 0" in refused(make_file(path, series={"conversion": value}))

    def test_channel_conversion_of_another_length(self, path):
        make_file(path, series={"channel_conversion": np.ones(3)})
        assert "has 4 channels but channel_conversion has shape (3,)" in refused(path)


class TestClock:
    def test_rate_and_starting_time(self, path):
        with read_nwb(make_file(path, series={"starting_time": 12.5})) as recording:
            assert recording.t_start == 12.5
            np.testing.assert_allclose(recording.sample_to_time(np.array([0, 3000])), [12.5, 12.6])
            np.testing.assert_allclose(recording.segment_times, [[12.5, 12.7]])

    def test_times_are_the_timestamps(self, path, monkeypatch):
        monkeypatch.setattr(nwb_clock, "_BLOCK", 700)  # several blocks
        rng = np.random.default_rng(0)
        stamps = 3.0 + np.arange(6000) / FS + rng.uniform(-0.2, 0.2, 6000) / FS
        with read_nwb(make_file(path, series={"timestamps": stamps})) as recording:
            samples = rng.permutation(6000).reshape(60, 100)
            np.testing.assert_array_equal(recording.sample_to_time(samples), stamps[samples])
            assert recording.sampling_frequency == pytest.approx(FS, rel=1e-3)
            assert recording.segments == (Segment(0, 6000),)
            assert recording.sample_to_time(np.array([6000]))[0] == pytest.approx(stamps[-1] + 1 / FS)
            assert recording.sample_to_time(np.zeros(0, dtype=np.int64)).shape == (0,)
        with pytest.raises(NwbError, match="was closed and its timestamps lie in the file; read it again"):
            recording.sample_to_time(samples)

    def test_rate_of_rounded_timestamps(self, path):
        stamps = np.round(np.arange(6000) / FS, 6)  # steps of 33 and 34 µs: their median is 1 % off
        with read_nwb(make_file(path, series={"timestamps": stamps})) as recording:
            assert recording.sampling_frequency == pytest.approx(FS, rel=1e-4)

    def test_rate_of_exact_timestamps_is_whole(self, path):
        with read_nwb(make_file(path, series={"timestamps": 100 + np.arange(6000) / FS})) as recording:
            assert recording.sampling_frequency == FS

    @pytest.mark.parametrize("block", [700, 3100, 1 << 20])
    def test_gaps_become_segments(self, path, monkeypatch, block):
        monkeypatch.setattr(nwb_clock, "_BLOCK", block)
        stamps = np.arange(10000) / FS
        stamps[3100:] += 5.0
        stamps[6300:] += 1.0 / FS  # one sample lost
        with read_nwb(make_file(path, data=counts(10000, 4), series={"timestamps": stamps})) as recording:
            assert recording.segments == (Segment(0, 3100), Segment(3100, 6300), Segment(6300, 10000))
            assert recording.gaps[0] == (stamps[3099], stamps[3100])
            assert len(recording.gaps) == 2
            assert recording.sampling_frequency == FS
            np.testing.assert_allclose(recording.segment_times[0], [0, 3100 / FS])
            np.testing.assert_allclose(recording.segment_times[1], [stamps[3100], stamps[6299] + 1 / FS])
            np.testing.assert_array_equal(recording.sample_to_time(np.array([3100])), stamps[[3100]])

    def test_short_stretches_are_left_out_with_a_warning(self, path):
        stamps = np.arange(10000) / FS
        stamps[5000:] += 1.0
        stamps[5300:] += 1.0
        make_file(path, data=counts(10000, 4), series={"timestamps": stamps}, columns=LINE)
        with read_nwb(path) as recording:
            assert recording.segments == (Segment(0, 5000), Segment(5300, 10000))
            assert recording.warnings == (
                "1 stretches between gaps are shorter than 0.1 s and are not sorted: 300 "
                "samples, 0.010 s in all.",
            )

    def test_gaps_everywhere(self, path):
        stamps = np.arange(6000) / FS + np.arange(6000) // 100
        message = refused(make_file(path, series={"timestamps": stamps}))
        assert message == (
            "acquisition/ElectricalSeries has 59 gaps in its timestamps and no gapless stretch of 0.1 s. "
            "Write the series with a rate, or correct its timestamps."
        )

    def test_timestamps_that_step_back(self, path):
        stamps = np.arange(6000) / FS
        stamps[4000:] -= 0.1
        message = refused(make_file(path, series={"timestamps": stamps}))
        assert message == (
            "The timestamps of acquisition/ElectricalSeries do not increase: 0.133300 s at sample 3999, "
            "0.033333 s at sample 4000. Correct them, or write the series with a rate."
        )

    @pytest.mark.parametrize("sample", [0, 2500, 5999])
    def test_timestamps_with_nan(self, path, sample, monkeypatch):
        monkeypatch.setattr(nwb_clock, "_BLOCK", 1000)
        stamps = np.arange(6000) / FS
        stamps[sample] = np.nan
        message = refused(make_file(path, series={"timestamps": stamps}))
        assert f"The timestamps of acquisition/ElectricalSeries are not finite at sample {sample}." in message

    def test_timestamps_that_stand_still(self, path):
        assert "do not increase" in refused(
            make_file(path, series={"timestamps": np.zeros(6000)}), series="ElectricalSeries"
        )

    def test_timestamps_of_another_length(self, path):
        make_file(path, series={"timestamps": np.arange(6000) / FS})

        def shorten(file):
            del file["acquisition/ElectricalSeries/timestamps"]
            file["acquisition/ElectricalSeries/timestamps"] = np.arange(5999) / FS

        message = refused(edit(path, shorten))
        assert "has 6000 samples but 5999 timestamps; they must agree" in message

    def test_records_for_samples(self, path):
        def change(file):
            series = file["acquisition/ElectricalSeries"]
            del series["data"]
            series["data"] = np.zeros(6000, [("a", "i2")])

        assert "holds ['int16']; integers or floats" in refused(edit(make_file(path), change))

    def test_timestamps_that_end_at_infinity(self, path):
        message = refused(make_file(path, series={"timestamps": np.append(np.arange(5999) / FS, np.inf)}))
        assert "are not finite at sample 5999" in message

    @pytest.mark.parametrize(("rate", "start"), [(1e308, 0.0), (np.inf, 0.0), (FS, np.nan), (FS, -np.inf)])
    def test_clock_beyond_reason(self, path, rate, start):
        def change(file):
            clock = file["acquisition/ElectricalSeries/starting_time"]
            clock.attrs["rate"] = rate
            clock[()] = start

        message = refused(edit(make_file(path), change))
        assert ("starting_time" if rate == FS else "at most 1e+06") in message

    def test_rate_of_zero(self, path):
        make_file(path)
        edit(path, lambda file: file["acquisition/ElectricalSeries/starting_time"].attrs.modify("rate", 0.0))
        message = refused(path, series="acquisition/ElectricalSeries")
        assert message == (
            "acquisition/ElectricalSeries has rate 0 Hz; it must be above 0 and at most 1e+06. Correct the "
            "rate in the file."
        )


class TestGeometry:
    def test_none_is_said(self, path):
        with read_nwb(make_file(path)) as recording:
            assert not recording.has_geometry
            assert not recording.channel_locations.any()
            assert recording.warnings == (
                "The channels have no known positions: those of an electrode group are all "
                "taken as neighbours. "
                "Give a probe file with --probe if you have one.",
            )

    def test_shanks(self, path):
        columns = {"rel_x": [0.0] * 4, "rel_y": [0.0, 0.0, 20.0, 20.0]}  # each shank counts from its own tip
        make_file(path, groups=["b", "a", "b", "a"], columns=columns)
        with read_nwb(path) as recording:
            assert recording.group_names == ("b", "a", "b", "a")
            np.testing.assert_array_equal(recording.channel_groups, [0, 1, 0, 1])
            assert recording.has_geometry

    @pytest.mark.parametrize(
        ("rel_y", "problem"),
        [
            ([0.0, np.nan, 40.0, 60.0], "1 of 4 channels have none"),
            ([0.0, 0.0, 0.0, 20.0], "3 of 4 channels of shank0 share their place with another"),
            (
                [0.0, 2e-5, 4e-5, 6e-5],
                "channels of shank0 are 2e-05 µm apart, under 0.5 µm; they may not be in µm",
            ),
        ],
        ids=["nan", "duplicates", "metres"],
    )
    def test_positions_that_make_no_sense_fall_back(self, path, rel_y, problem):
        columns = {"rel_x": [0.0] * 4, "rel_y": rel_y}
        with read_nwb(make_file(path, columns=columns)) as recording:
            assert not recording.has_geometry
            assert recording.warnings[0] == f"The positions in rel_x, rel_y are not used: {problem}."
        columns |= {"x": [1.0, 2.0, 3.0, 4.0], "y": [5.0] * 4, "z": [7.0] * 4}
        other = make_file(path.with_name("other.nwb"), columns=columns)
        with read_nwb(other) as recording:
            assert recording.geometry_source == "x, y, z"
            np.testing.assert_array_equal(recording.channel_locations, [[1, 5], [2, 5], [3, 5], [4, 5]])

    def test_xyz_of_a_tilted_probe_keep_their_distances(self, path):
        rng = np.random.default_rng(3)
        flat = np.array([[0.0, 0.0], [30.0, 0.0], [0.0, 100.0], [30.0, 100.0], [0.0, 200.0], [30.0, 200.0]])
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        placed = np.column_stack([flat, np.zeros(6)]) @ turn + [3000.0, 200.0, -4000.0]
        columns = dict(zip("xyz", placed.T.tolist(), strict=True))
        with read_nwb(make_file(path, num_channels=6, columns=columns)) as recording:
            found = recording.channel_locations
            assert recording.warnings == ()
            assert np.ptp(found[:, 1]) > np.ptp(found[:, 0])
        for points in (flat, found):
            points -= points.mean(axis=0)
        np.testing.assert_allclose(
            np.linalg.norm(found[:, None] - found, axis=2),
            np.linalg.norm(flat[:, None] - flat, axis=2),
            atol=1e-4,
        )

    def test_xyz_off_a_plane_warn(self, path):
        corners = np.array([[0, 0, 0], [50, 0, 0], [0, 60, 0], [0, 0, 70], [50, 60, 70]], dtype=float)
        columns = dict(zip("xyz", corners.T.tolist(), strict=True))
        with read_nwb(make_file(path, num_channels=5, columns=columns)) as recording:
            assert recording.has_geometry
            assert recording.warnings == (
                "The contacts of shank0 do not lie in a plane; their distances are shortened to fit one.",
            )

    @pytest.mark.parametrize("wired", [True, False])
    def test_ndx_probeinterface(self, path, wired):
        probe = probeinterface.generate_linear_probe(num_elec=4, ypitch=25.0)
        order = np.array([2, 0, 3, 1])
        if wired:
            probe.set_device_channel_indices(order)
        make_file(path, devices=from_probeinterface(probe))
        with read_nwb(path) as recording:
            assert recording.geometry_source == "ndx-probeinterface"
            expected = np.argsort(order) * 25.0 if wired else np.arange(4) * 25.0
            np.testing.assert_array_equal(recording.channel_locations[:, 1], expected)

    @pytest.mark.parametrize("counted", ["within the probe", "through the series"])
    def test_ndx_probeinterface_of_two_probes(self, path, counted):
        nwbfile = make_session(Shape(num_channels=0))
        for number in range(2):
            probe = probeinterface.generate_linear_probe(num_elec=2, ypitch=25.0 * (number + 1))
            probe.name = f"probe{number}"
            first = 2 * number if counted == "through the series" else 0
            probe.set_device_channel_indices([first + 1, first])
            (device,) = from_probeinterface(probe)
            nwbfile.add_device(device)
            group = nwbfile.create_electrode_group(device.name, "one", location="CA1", device=device)
            for _ in range(2):
                nwbfile.add_electrode(group=group, location="CA1")
        nwbfile.add_acquisition(make_series(nwbfile, Shape()))
        with read_nwb(write_session(path, nwbfile)) as recording:
            np.testing.assert_array_equal(recording.channel_locations[:, 1], [25, 0, 50, 0])
            np.testing.assert_array_equal(recording.channel_groups, [0, 0, 1, 1])


class TestProbeFile:
    @pytest.fixture
    def probe_path(self, tmp_path):
        def write(order=None, shanks=None, num_elec=4, units="um"):
            probe = probeinterface.generate_linear_probe(num_elec=num_elec, ypitch=25.0)
            probe.si_units = units
            if order is not None:
                probe.set_device_channel_indices(order)
            if shanks is not None:
                probe.set_shank_ids(shanks)
            probeinterface.write_probeinterface(tmp_path / "probe.json", probe)
            return tmp_path / "probe.json"

        return write

    def test_wins_over_the_file(self, path, probe_path):
        make_file(path, columns=LINE)
        with read_nwb(path, probe=probe_path([3, 2, 1, 0], shanks=["a", "a", "b", "b"])) as recording:
            assert recording.geometry_source == "probe file"
            np.testing.assert_array_equal(recording.channel_locations[:, 1], [75, 50, 25, 0])
            np.testing.assert_array_equal(recording.channel_groups, [0, 0, 1, 1])
            assert recording.group_names == ("probe0-shankb",) * 2 + ("probe0-shanka",) * 2

    def test_without_wiring_contacts_are_channels_in_order(self, path, probe_path):
        with read_nwb(make_file(path), probe=probe_path()) as recording:
            np.testing.assert_array_equal(recording.channel_locations[:, 1], [0, 25, 50, 75])

    def test_millimetres(self, path, probe_path):
        with read_nwb(make_file(path), probe=probe_path(units="mm")) as recording:
            np.testing.assert_array_equal(recording.channel_locations[:, 1], [0, 25e3, 50e3, 75e3])

    def test_that_does_not_suit(self, path, probe_path):
        make_file(path)
        assert "has 5 contacts and no wiring; the series has 4 channels" in refused(
            path, probe=probe_path(num_elec=5)
        )
        assert "does not suit the series: 1 of 4 channels have none" in refused(
            path, probe=probe_path([0, 1, 2, -1])
        )

    def test_that_cannot_be_read(self, path, tmp_path):
        make_file(path)
        assert "There is no probe file" in refused(path, probe=tmp_path / "none.json")
        (tmp_path / "bad.json").write_text("{")
        assert "Cannot read the probe file bad.json" in refused(path, probe=tmp_path / "bad.json")


class TestLeftOut:
    @pytest.mark.parametrize(
        ("column", "values", "reason"),
        [
            ("bad", [False, True, False, False], "bad: bad is True"),
            ("is_bad_channel", [0, 1, 0, 0], "bad: is_bad_channel is 1"),
            ("good", [True, False, True, True], "bad: good is False"),
            ("valid_data", [True, False, True, True], "bad: valid_data is False"),
            ("is_good", [1.0, 0.0, 1.0, np.nan], "bad: is_good is 0.0"),
            ("channel_quality", ["good", "Dead", "ok", ""], "bad: channel_quality is 'Dead'"),
            ("channel_name", ["AP0", "AP1-ADC", "AP2", "AP3"], "not neural: channel_name is 'AP1-ADC'"),
            ("label", ["a", "SY0", "b", "c"], "not neural: label is 'SY0'"),
            ("electrode_name", ["A-000", "AUX1", "A-001", "A-002"], "not neural: electrode_name is 'AUX1'"),
        ],
    )
    def test_columns(self, path, column, values, reason):
        with read_nwb(make_file(path, columns={**LINE, column: values})) as recording:
            ((channel, found),) = recording.left_out
            assert found == reason
            assert channel in ("1", values[1])
            assert len(recording.channel_ids) == 3
            np.testing.assert_array_equal(recording.channel_locations[:, 1], [0, 40, 60])

    @pytest.mark.parametrize("group", ["ADC", "analog_inputs", "nan", "sync-0"])
    def test_group(self, path, group):
        with read_nwb(make_file(path, groups=["shank0", "shank0", "shank0", group])) as recording:
            assert recording.left_out == (("3", f"not neural: its electrode group is {group!r}"),)

    @pytest.mark.parametrize("name", ["ADCortex", "Auxilia", "shank nan", "roadc", "resync"])
    def test_names_that_merely_resemble(self, path, name):
        with read_nwb(
            make_file(path, groups=[name] * 4, columns=LINE, location="auditory cortex")
        ) as recording:
            assert recording.left_out == ()

    def test_names_are_the_ids(self, path):
        columns = {"channel_name": ["AP3", "AP2", "AP1", "AP0"]}
        with read_nwb(make_file(path, columns=columns)) as recording:
            assert recording.channel_ids == ("AP3", "AP2", "AP1", "AP0")
        columns = {"channel_name": ["AP", "AP", "AP", "AP"]}
        with read_nwb(make_file(path.with_name("same.nwb"), columns=columns)) as recording:
            assert recording.channel_ids == ("0", "1", "2", "3")

    def test_dead_channels(self, path):
        data = counts(6000, 4).astype(np.float32)
        data[:, 1] = 0
        data[:, 2] = np.nan
        with read_nwb(make_file(path, data=data, columns=LINE)) as recording:
            assert recording.left_out == (
                ("1", "dead: always 0, in 9 windows of 3000 samples, from the first to the last"),
                ("2", "dead: NaN only, in 9 windows of 3000 samples, from the first to the last"),
            )
            assert recording.get_traces(0, 10).shape == (10, 2)

    def test_all(self, path):
        message = refused(make_file(path, columns={"bad": [True] * 4}))
        assert message == (
            "All 4 channels of acquisition/ElectricalSeries are left out: 0 bad: bad is True; 1 "
            "bad: bad is True; "
            "2 bad: bad is True. Nothing is left to sort."
        )


class TestSignal:
    @pytest.mark.parametrize("value", [0, 7])
    def test_constant(self, path, value):
        message = refused(make_file(path, data=np.full((6000, 4), value, dtype=np.int16)))
        assert message == (
            "Every channel of acquisition/ElectricalSeries is constant, in 9 windows of 3000 "
            "samples, from the "
            "first to the last. There is no signal to sort."
        )

    def test_channels_that_are_silent_at_times_are_kept(self, path):
        data = counts(18000, 4).astype(np.float32)
        data[:6000, 1] = data[12000:, 1] = 0
        with read_nwb(make_file(path, data=data)) as recording:
            assert recording.left_out == ()

    def test_nan_only(self, path):
        message = refused(make_file(path, data=np.full((6000, 4), np.nan)))
        assert message == (
            "acquisition/ElectricalSeries holds NaN only, in 9 windows of 3000 samples, from "
            "the first to the "
            "last. Convert the session again."
        )

    def test_nan_in_a_window(self, path):
        data = counts(6000, 4).astype(np.float32)
        data[1234, 2] = np.nan
        message = refused(make_file(path, data=data))
        assert message == (
            "acquisition/ElectricalSeries is not finite at sample 1234, channel 2. "
            "Leave that stretch out, or fill it in, when converting."
        )

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_between_the_windows(self, path, value):
        data = counts(300_000, 2).astype(np.float32)
        data[20_000, 1] = value
        with read_nwb(make_file(path, num_channels=2, data=data)) as recording:
            recording.get_traces(0, 20_000)
            with pytest.raises(RecordingError, match=r"is not finite at sample 20000, channel 1\. Leave"):
                recording.get_traces(19_000, 21_000)


class TestChoice:
    @staticmethod
    def write(path, *names, rate=None, lfp=False, processing=False):
        shape = Shape()
        nwbfile = make_session(shape)
        for name in names:
            slow = {"rate": rate} if rate and name.endswith("LF") else {}
            nwbfile.add_acquisition(make_series(nwbfile, Shape(series=slow), name))
        if lfp:
            add_lfp(nwbfile, shape)
        if processing:
            module = nwbfile.create_processing_module("ecephys", "filtered")
            filtered = FilteredEphys(name="FilteredEphys")
            module.add(filtered)
            filtered.add_electrical_series(make_series(nwbfile, shape, "Filtered"))
        return write_session(path, nwbfile)

    def test_several_are_listed(self, path):
        message = refused(self.write(path, "probeA", "probeB"))
        assert message == (
            "session.nwb has 2 series that could be sorted: acquisition/probeA (4 channels, 30000 Hz); "
            "acquisition/probeB (4 channels, 30000 Hz). Name one, as in --series acquisition/probeA."
        )

    @pytest.mark.parametrize("name", ["acquisition/probeB", "/acquisition/probeB", "probeB"])
    def test_named(self, path, name):
        with read_nwb(self.write(path, "probeA", "probeB"), series=name) as recording:
            assert recording.series_path == "acquisition/probeB"
            assert not any("asked for" in w for w in recording.warnings)

    def test_name_that_is_not_there(self, path):
        message = refused(self.write(path, "probeA"), series="acquisition/probeX")
        assert message == (
            "session.nwb has no series 'acquisition/probeX'. Its series: acquisition/probeA (4 "
            "channels, 30000 Hz). "
            "Give one of these paths."
        )

    def test_slow_series_is_passed_over(self, path):
        with read_nwb(self.write(path, "AP", "LF", rate=2500.0)) as recording:
            assert recording.series_path == "acquisition/AP"
            assert recording.warnings[0] == "acquisition/LF is passed over (2500 Hz, under 5000 Hz)."

    def test_slow_series_alone_is_refused_unless_named(self, path):
        message = refused(self.write(path, "LF", rate=2500.0))
        assert message == (
            "session.nwb has no raw series of 5000 Hz or more in acquisition. Found: "
            "acquisition/LF (4 channels, "
            "2500 Hz). To sort one all the same, name it: --series acquisition/LF."
        )
        with read_nwb(path, series="acquisition/LF") as recording:
            assert recording.warnings[0] == (
                "acquisition/LF was asked for although it is 2500 Hz, under 5000 Hz."
            )

    def test_slow_timestamps(self, path):
        message = refused(make_file(path, series={"timestamps": np.arange(6000) / 1000.0}))
        assert "no raw series of 5000 Hz or more" in message

    def test_lfp_container_is_refused_unless_named(self, path):
        message = refused(self.write(path, lfp=True))
        assert (
            "Found: acquisition/LFP/ElectricalSeries (4 channels, 30000 Hz, in an LFP container)." in message
        )
        with read_nwb(path, series="acquisition/LFP/ElectricalSeries") as recording:
            assert recording.num_samples == 6000

    def test_processed_series_only_by_name(self, path):
        assert "Found: processing/ecephys/FilteredEphys/Filtered" in refused(
            self.write(path, processing=True)
        )
        with read_nwb(path, series="processing/ecephys/FilteredEphys/Filtered") as recording:
            assert recording.warnings[0].endswith("was asked for although it is processed data.")

    def test_without_series(self, path):
        message = refused(self.write(path))
        assert message == (
            "session.nwb has no ElectricalSeries: nothing to sort. Give a session with raw voltage."
        )

    def test_spike_events_are_no_recording(self, path):
        nwbfile = make_session(Shape())
        region = nwbfile.create_electrode_table_region([0], "one")
        snippets = SpikeEventSeries(
            name="Snippets", data=np.zeros((5, 1, 30)), timestamps=np.arange(5.0), electrodes=region
        )
        nwbfile.add_acquisition(snippets)
        assert "has no ElectricalSeries" in refused(write_session(path, nwbfile))


class TestLayout:
    def test_transposed(self, path):
        message = refused(make_file(path, data=counts(6000, 4).T.copy()))
        assert message == (
            "acquisition/ElectricalSeries has shape (4, 6000) and 4 electrodes: the second "
            "dimension does not "
            "match the electrodes, the first does. The data are transposed; write (samples, channels)."
        )

    def test_other_number_of_electrodes(self, path):
        message = refused(make_file(path, data=counts(6000, 3)))
        assert message == (
            "acquisition/ElectricalSeries has 3 channels but its electrodes region has 4 rows; "
            "they must agree. "
            "Correct the electrodes of the series."
        )

    def test_three_axes(self, path):
        message = refused(make_file(path, data=np.zeros((60, 4, 5))))
        assert "has 3 axes, shape (60, 4, 5); two are needed, (samples, channels)" in message

    def test_no_samples(self, path):
        assert "holds no samples: its shape is (0, 4)" in refused(make_file(path, data=counts(0, 4)))

    def test_electrode_twice(self, path):
        message = refused(make_file(path, region=[0, 1, 1, 2]))
        assert "refers to row 1 of the electrodes table twice; each channel needs its own" in message

    def test_electrode_outside_the_table(self, path):
        make_file(path)
        edit(path, lambda file: file["acquisition/ElectricalSeries/electrodes"].__setitem__(3, 9))
        assert "refers to row 9 of the electrodes table, which has 4 rows" in refused(path)


class TestFile:
    def test_missing(self, path):
        assert refused(path) == "There is no file session.nwb. Check its name and folder."

    def test_folder(self, path):
        path.mkdir()
        assert refused(path).startswith("session.nwb is a folder; an NWB file (HDF5) is needed.")

    def test_empty(self, path):
        path.touch()
        assert refused(path) == "session.nwb is empty (0 bytes). Copy or convert the session again."

    def test_not_hdf5(self, path):
        path.write_text("no session")
        assert refused(path) == (
            "session.nwb is not an HDF5 file, so not an NWB file that can be read here. Check what it is."
        )

    def test_truncated(self, path):
        make_file(path)
        size = path.stat().st_size // 2
        os.truncate(path, size)
        assert refused(path) == (
            f"session.nwb is cut short: it ends at {size} bytes, before its own end. Copy the session again."
        )

    def test_hdf5_but_not_nwb(self, path):
        with h5py.File(path, "w") as file:
            file["x"] = 1
        message = refused(path)
        assert message.startswith("session.nwb is HDF5 but cannot be read as NWB: ")
        assert message.endswith("Check it with pynwb-validate.")

    def test_locked_by_a_writer(self, path):
        make_file(path)
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert refused(path).startswith(
                "session.nwb is locked: another program has it open for writing. Wait until it is done"
            )

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_not_readable(self, path):
        make_file(path).chmod(0)
        assert "may not be read by this user" in refused(path)

    def test_missing_filter(self, path):
        make_file(path, data=packed(counts(6000, 4), **hdf5plugin.Zstd()))
        content = path.read_bytes()
        number = np.uint16(hdf5plugin.ZSTD_ID).tobytes()
        assert content.count(number) >= 1
        path.write_bytes(content.replace(number, np.uint16(32999).tobytes()))  # a filter nobody has
        message = refused(path)
        assert "its compression filter is not installed. Install the HDF5 plugin" in message

    def test_damaged_chunk(self, path):
        make_file(path, data=packed(counts(6000, 4), compression="gzip"))
        with h5py.File(path, "r") as file:
            chunk = file["acquisition/ElectricalSeries/data"].id.get_chunk_info(0)
        with path.open("r+b") as file:
            file.seek(chunk.byte_offset)
            file.write(b"\xff" * chunk.size)
        assert re.match(
            r"Cannot read the samples of acquisition/ElectricalSeries of session.nwb", refused(path)
        )

    def test_copy_in_another_place_reads_the_same(self, path, tmp_path):
        other = shutil.copy(make_file(path), tmp_path / "copy.nwb")
        with read_nwb(other) as recording:
            assert recording.file_path == other
