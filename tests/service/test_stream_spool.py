"""The spool against a list of samples; its limits; and the seam between a sort and what follows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.online.sorter import OnlineSpikes
from accm_core.types import Segment
from service import stream_spool
from service.stream_hello import read_hello
from service.stream_spool import BacklogError, Spool, SpooledRecording
from service.stream_start import Seam

HELLO = {"protocol": 1, "sampling_frequency": 1000, "num_channels": 2, "dtype": "int16", "gain_to_uV": 0.5}


def hello_of(**changes):
    return read_hello(json.dumps(HELLO | changes))


@pytest.fixture
def make_spool(tmp_path):
    """Spools in a folder each, removed afterwards."""
    made = []

    def make(hello, max_samples):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Spool(folder, hello, max_samples))
        return made[-1]

    yield make
    for spool in made:
        spool.remove()


@given(
    parts=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=12),
    most=st.integers(1, 50),
    start=st.integers(0, 5),
)
def test_what_goes_in_comes_out(tmp_path_factory, parts, most, start):
    spool = Spool(tmp_path_factory.mktemp("spool"), hello_of(), 1000)
    rng, sample, sent = np.random.default_rng(0), start, {}
    for gap, length in parts:
        sample += gap
        samples = rng.integers(-9, 9, (length, 2)).astype("<i2")
        spool.append(sample, samples)
        sent |= {sample + k: row for k, row in enumerate(samples.tolist())}
        sample += length
    found = {}
    while spool.position < spool.num_samples:
        first, traces = spool.read(most)
        assert 0 < len(traces) <= most
        found |= {first + k: row for k, row in enumerate((2 * traces).tolist())}
    assert found == sent
    spool.remove()
    assert not spool.path.exists()


def test_stretches_are_segments_of_a_recording(make_spool):
    hello = hello_of(channel_groups=[3, 4])
    spool = make_spool(hello, 100)
    spool.append(5, np.full((10, 2), 2, "<i2"))
    spool.append(15, np.full((10, 2), 4, "<i2"))
    spool.append(40, np.full((10, 2), 6, "<i2"))
    assert [(s.first_sample, s.start, s.stop) for s in spool.stretches] == [(5, 0, 20), (40, 20, 30)]
    recording = SpooledRecording(spool.raw(), hello, (Segment(0, 20), Segment(20, 30)))
    np.testing.assert_array_equal(recording.get_traces(9, 21)[:, 0], [1] + 10 * [2] + [3])
    assert recording.channel_groups.tolist() == [3, 4]
    assert not recording.has_geometry
    assert recording.sample_to_time(np.array([500])) == 0.5


def test_no_more_than_the_limit_is_kept(make_spool, monkeypatch):
    spool = make_spool(hello_of(), 50)
    spool.append(0, np.zeros((50, 2), "<i2"))
    with pytest.raises(BacklogError, match="0 s of samples wait to be sorted; 600 s beyond the calibration"):
        spool.append(50, np.zeros((1, 2), "<i2"))
    monkeypatch.setattr(stream_spool, "MAX_BYTES", 40)
    with pytest.raises(BacklogError, match="in all are kept"):
        make_spool(hello_of(), 50).append(0, np.zeros((11, 2), "<i2"))


def test_a_full_disk_is_told(make_spool, monkeypatch):
    monkeypatch.setattr(stream_spool, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(BacklogError, match="The server's disk has less than"):
        make_spool(hello_of(), 50).append(0, np.zeros((1, 2), "<i2"))


def test_gaps_without_end_are_refused(make_spool, monkeypatch):
    monkeypatch.setattr(stream_spool, "MAX_STRETCHES", 3)
    spool = make_spool(hello_of(), 50)
    for sample in (0, 10, 20):
        spool.append(sample, np.zeros((1, 2), "<i2"))
    with pytest.raises(BacklogError, match="The stream has 3 gaps already"):
        spool.append(30, np.zeros((1, 2), "<i2"))


def test_at_the_seam_no_spike_comes_twice():
    seam = Seam(1000, np.array([990, 500]), 24)
    samples, units = np.array([999, 1000, 1013, 1014, 2000]), np.array([1, 1, 0, 0, 1])
    zeros = np.zeros(5, np.float32)
    kept = seam.keep_new(OnlineSpikes(samples, units, units, zeros, zeros, zeros > 0))
    assert kept.sample_index.tolist() == [1000, 1014, 2000]
