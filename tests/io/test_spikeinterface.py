import numpy as np
import pytest
from nwb_files import make_sorting
from probeinterface import generate_linear_probe
from spikeinterface.core import NumpyRecording

from accm_core.errors import RecordingError
from accm_core.io.spikeinterface import read_spikeinterface, sorting_to_spikeinterface
from accm_core.types import ArrayRecording, Segment

FS = 20000.0


def make_recording(lengths=(3000, 2000), *, channels=4, t_starts=None, gains=True):
    rng = np.random.default_rng(0)
    traces = [rng.normal(0, 50, (n, channels)).astype(np.int16) for n in lengths]
    recording = NumpyRecording(traces, FS, t_starts=t_starts, channel_ids=[f"c{k}" for k in range(channels)])
    if gains:
        recording.set_channel_gains(0.195)
        recording.set_channel_offsets(2.0)
    return recording, traces


def with_probe(recording, *, shanks=1):
    probe = generate_linear_probe(num_elec=4, ypitch=25.0)
    if shanks == 2:
        probe.set_shank_ids(["a", "a", "b", "b"])
    probe.set_device_channel_indices(np.arange(4))
    recording.set_probe(probe, group_mode="by_shank" if shanks == 2 else "by_probe")
    return recording


def test_segments_follow_one_another_in_microvolts():
    recording, traces = make_recording()
    read = read_spikeinterface(with_probe(recording))
    assert read.segments == (Segment(0, 3000), Segment(3000, 5000))
    expected = np.concatenate(traces).astype(np.float32) * np.float32(0.195) + np.float32(2.0)
    assert read.get_traces(0, 5000).dtype == np.float32
    np.testing.assert_allclose(read.get_traces(0, 5000), expected, rtol=1e-6)
    np.testing.assert_allclose(read.get_traces(2990, 3010), expected[2990:3010], rtol=1e-6)
    assert read.get_traces(10, 10).shape == (0, 4)
    assert read.channel_ids == ("c0", "c1", "c2", "c3")
    assert read.warnings == ("The segments overlap in time; they are placed one after another.",)


def test_segments_that_all_start_at_zero_are_placed_one_after_another():
    read = read_spikeinterface(make_recording()[0])
    np.testing.assert_allclose(read.sample_to_time(np.array([0, 2999, 3000, 5000])), [0, 0.14995, 0.15, 0.25])


def test_start_times_of_segments_are_kept():
    read = read_spikeinterface(make_recording(t_starts=[1.0, 100.0])[0])
    np.testing.assert_allclose(
        read.sample_to_time(np.array([[0, 2999], [3000, 4999]])), [[1, 1.14995], [100, 100.09995]]
    )
    assert not read.t_starts.any()


def test_empty_segments_are_left_out():
    read = read_spikeinterface(make_recording(lengths=(1000, 0, 500))[0])
    assert read.segments == (Segment(0, 1000), Segment(1000, 1500))
    assert read.get_traces(900, 1100).shape == (200, 4)


def test_positions_and_shanks():
    read = read_spikeinterface(with_probe(make_recording(lengths=(1000,))[0], shanks=2))
    assert read.has_geometry
    np.testing.assert_array_equal(read.channel_locations[:, 1], [0, 25, 50, 75])
    np.testing.assert_array_equal(read.channel_groups, [0, 0, 1, 1])
    assert read.warnings == ()


def test_without_probe_or_gains_it_warns():
    read = read_spikeinterface(make_recording(lengths=(1000,), gains=False)[0])
    assert not read.has_geometry
    assert not read.channel_locations.any()
    np.testing.assert_array_equal(read.channel_groups, [0, 0, 0, 0])
    assert read.warnings == (
        "The recording has no gains: its values are taken as µV. Set them with set_channel_gains.",
        "The recording has no probe: the channels of a group are all taken as neighbours.",
    )


def test_refusals():
    read = read_spikeinterface(make_recording(lengths=(1000,))[0])
    with pytest.raises(
        RecordingError, match=r"Samples 0 to 1001 were asked for; the recording has 0 to 1000\."
    ):
        read.get_traces(0, 1001)
    with pytest.raises(RecordingError, match="4 channels and 0 samples: nothing to sort"):
        read_spikeinterface(make_recording(lengths=(0,))[0])
    traces = np.zeros((100, 2), dtype=np.float32)
    traces[40, 1] = np.nan
    holed = NumpyRecording([traces], FS)
    with pytest.raises(RecordingError, match="not finite at sample 40, channel 1"):
        read_spikeinterface(holed).get_traces(0, 100)


def test_sorting_to_spikeinterface_keeps_ids_samples_and_labels():
    rng = np.random.default_rng(0)
    recording = ArrayRecording(
        traces=rng.normal(size=(6000, 4)).astype(np.float32),
        sampling_frequency=FS,
        segments=(Segment(0, 3000), Segment(3000, 6000)),
    )
    sorting = make_sorting(recording)
    whole = sorting.to_spikeinterface()
    split = sorting_to_spikeinterface(sorting, split=True)
    assert (whole.get_num_segments(), split.get_num_segments()) == (1, 2)
    assert list(whole.unit_ids) == [1, 2, 3]
    assert list(whole.get_property("quality")) == ["good", "mua", "noise"]
    for row, unit in enumerate(sorting.unit_ids):
        samples = sorting.sample_index[sorting.spikes_of(row)]
        np.testing.assert_array_equal(whole.get_unit_spike_train(unit), samples)
        late = split.get_unit_spike_train(unit, segment_index=1)
        np.testing.assert_array_equal(late + 3000, samples[samples >= 3000])


def test_sorting_without_units():
    recording = ArrayRecording(traces=np.ones((1000, 2), dtype=np.float32), sampling_frequency=FS)
    assert make_sorting(recording, num_units=0).to_spikeinterface().get_num_units() == 0
