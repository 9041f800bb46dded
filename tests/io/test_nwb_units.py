import h5py
import numpy as np
import pytest
from nwb_files import Shape, edit, make_file, make_series, make_session, make_sorting, write_session
from pynwb.misc import Units

from accm_core.errors import NwbError
from accm_core.io.nwb_read import read_nwb
from accm_core.io.nwb_units import read_sorting, read_spike_trains
from accm_core.io.nwb_write import write_nwb

ARRAYS = ("sample_index", "spike_times", "unit_index", "amplitude_uV", "probability", "is_overlap")
LINE = {"rel_x": [0.0] * 4, "rel_y": [0.0, 20.0, 40.0, 60.0]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.nwb"


def write_sorted(path, *, num_units=3, link=False):
    with read_nwb(make_file(path, columns=LINE)) as recording:
        sorting = make_sorting(recording, num_units=num_units)
        return sorting, write_nwb(sorting, recording, path.with_name("out.nwb"), link=link)


def write_units(path, *, trains=([0.1, 0.2], [0.3]), names=None, processing=(), **attributes):
    nwbfile = make_session(Shape())
    nwbfile.add_acquisition(make_series(nwbfile, Shape()))
    tables = []
    if trains is not None:
        nwbfile.units = Units(name="units", description="units", **attributes)
        tables.append(nwbfile.units)
    for name in processing:
        module = nwbfile.processing.get("ecephys") or nwbfile.create_processing_module("ecephys", "more")
        table = Units(name=name, description="more units")
        module.add(table)
        tables.append(table)
    for table in tables:
        if names is not None:
            table.add_column("unit_name", "name")
        for row, train in enumerate(trains or ([0.5],)):
            table.add_unit(spike_times=np.array(train), **({"unit_name": names[row]} if names else {}))
    return write_session(path, nwbfile)


class TestReadSorting:
    @pytest.mark.parametrize("link", [False, True])
    def test_round_trip(self, path, link):
        sorting, out = write_sorted(path, link=link)
        found = read_sorting(out)
        order = np.lexsort((sorting.unit_index, sorting.sample_index))
        for name in ARRAYS:
            expected = getattr(sorting, name)[order]
            np.testing.assert_array_equal(getattr(found, name), expected)
            assert getattr(found, name).dtype == expected.dtype
        for name in ("unit_ids", "channel_locations", "channel_groups", "segment_times"):
            np.testing.assert_array_equal(getattr(found, name), getattr(sorting, name))
        for name in (
            "sampling_frequency",
            "channel_ids",
            "bad_channel_ids",
            "labels",
            "label_reasons",
            "segments",
        ):
            assert getattr(found, name) == getattr(sorting, name)
        np.testing.assert_allclose(found.templates.mean, sorting.templates.mean, rtol=1e-6)
        np.testing.assert_allclose(found.templates.std, sorting.templates.std, rtol=1e-6)
        assert found.templates.num_before == sorting.templates.num_before
        assert list(found.quality) == ["num_spikes", "firing_rate", "snr", "amplitude_cutoff"]
        for name, values in found.quality.items():
            np.testing.assert_array_equal(values, sorting.quality[name])
        assert found.provenance["warnings"] == ["a warning"]

    def test_embedding_follows_its_spikes(self, path):
        sorting, out = write_sorted(path)
        found = read_sorting(out)
        before, after = sorting.embedding, found.embedding
        np.testing.assert_array_equal(after.position, before.position)
        for name in (
            "amplitude_uV",
            "unit_index",
            "sample_index",
        ):  # amplitudes tell spikes at one sample apart
            np.testing.assert_array_equal(
                getattr(found, name)[after.spike_index], getattr(sorting, name)[before.spike_index]
            )

    def test_written_again_it_is_the_same(self, path):
        _, out = write_sorted(path)
        first = read_sorting(out)
        again = read_sorting(write_nwb(first, path, path.with_name("again.nwb")))
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
        np.testing.assert_array_equal(again.embedding.spike_index, first.embedding.spike_index)

    def test_without_units(self, path):
        _, out = write_sorted(path, num_units=0)
        found = read_sorting(out)
        assert (found.num_units, len(found.sample_index), found.labels) == (0, 0, ())
        assert found.templates.mean.shape == (0, 30, 4)
        assert found.channel_ids == ("0", "1", "2", "3")
        assert read_spike_trains(out) == {}
        assert read_spike_trains(out).sampling_frequency == 30000.0

    def test_a_unit_without_spikes(self, path):
        with read_nwb(make_file(path)) as recording:
            sorting = make_sorting(recording, num_units=3, spikes_per_unit=0)
            out = write_nwb(sorting, recording, path.with_name("out.nwb"))
        found = read_sorting(out)
        assert (found.num_units, len(found.sample_index)) == (3, 0)
        assert [len(train) for train in read_spike_trains(out).values()] == [0, 0, 0]

    def test_file_of_somebody_else(self, path):
        write_units(path)
        with pytest.raises(
            NwbError, match=r"was not written by accm: it has no provenance of it\. Give a file of"
        ):
            read_sorting(path)

    def test_provenance_that_is_damaged(self, path):
        _, out = write_sorted(path)

        def damage(file):
            file["scratch/accm_provenance"][()] = "{"

        with pytest.raises(NwbError, match=r"The provenance in .* cannot be read: .* Sort the session again"):
            read_sorting(edit(out, damage))

    def test_units_that_were_taken_out(self, path):
        _, out = write_sorted(path)

        def damage(file):
            del file["units"]

        with pytest.raises(NwbError, match="says that there are 3 units in units, which is not there"):
            read_sorting(edit(out, damage))


class TestReadSpikeTrains:
    def test_by_id(self, path):
        trains = read_spike_trains(write_units(path))
        assert list(trains) == ["0", "1"]
        np.testing.assert_array_equal(trains["0"], [0.1, 0.2])
        np.testing.assert_array_equal(trains["1"], [0.3])
        assert trains["0"].dtype == np.float64

    def test_by_name(self, path):
        assert list(read_spike_trains(write_units(path, names=["a", "b"]))) == ["a", "b"]

    def test_names_that_repeat_are_not_used(self, path):
        assert list(read_spike_trains(write_units(path, names=["a", "a"]))) == ["0", "1"]

    def test_unsorted_times_are_sorted(self, path):
        trains = read_spike_trains(write_units(path, trains=([0.3, 0.1], [])))
        np.testing.assert_array_equal(trains["0"], [0.1, 0.3])
        assert len(trains["1"]) == 0

    def test_sampling_frequency(self, path):
        assert read_spike_trains(write_units(path, resolution=1 / 2**14)).sampling_frequency == 2**14
        assert read_spike_trains(write_units(path)).sampling_frequency == 30000.0

    def test_in_processing(self, path):
        assert list(read_spike_trains(write_units(path, trains=None, processing=["more"]))) == ["0"]
        write_units(path, processing=["more"])
        assert list(read_spike_trains(path, "processing/ecephys/more")) == ["0", "1"]
        write_units(path, trains=None, processing=["one", "two"])
        with pytest.raises(
            NwbError, match=r"has 2 Units tables: processing/ecephys/one, processing/ecephys/two. Name one"
        ):
            read_spike_trains(path)

    def test_no_units(self, path):
        make_file(path)
        with pytest.raises(NwbError, match=r"has no Units table. Give a file with sorted units"):
            read_spike_trains(path)
        with pytest.raises(NwbError, match="has no Units with spike times at processing/a/b"):
            read_spike_trains(path, "processing/a/b")

    def test_units_without_spike_times(self, path):
        nwbfile = make_session(Shape())
        nwbfile.units = Units(name="units", description="units")
        nwbfile.units.add_column("depth", "depth")
        nwbfile.units.add_unit(depth=3.0)
        with pytest.raises(NwbError, match="has no Units with spike times at units"):
            read_spike_trains(write_session(path, nwbfile))

    def test_file_is_closed(self, path):
        write_units(path)
        read_spike_trains(path)
        with h5py.File(path, "a"):  # fails while another handle reads
            pass
