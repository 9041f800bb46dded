"""A session's line: what is taken, what is refused, and what goes out."""

import io
import os
import struct

import numpy as np
import pytest

from accm_core.online.sorter import OnlineSpikes
from service.stream_hello import read_hello
from service.stream_line import Line, Refusal
from service.stream_wire import (
    DATA,
    FRAME,
    HEADER,
    NOTE,
    RECORD,
    REPLY,
    TEXT,
    FrameReader,
    pack_frame,
)

HELLO = '{"protocol": 1, "sampling_frequency": 30000, "num_channels": 3, "dtype": "%s"}'


class Wire:
    """A line, with both its ends in hand."""

    def __init__(self, dtype="int16"):
        inward, self._pipe = os.pipe()
        self.output = io.BytesIO()
        self.line = Line(read_hello(HELLO % dtype), FrameReader(inward), self.output)

    def put(self, kind, content):
        os.write(self._pipe, pack_frame(kind, content))

    def put_samples(self, first, samples, **header):
        values = {"number": len(samples), "channels": 3, "flags": 0} | header
        packed = HEADER.pack(first, values["number"], values["channels"], values["flags"])
        self.put(DATA, packed + samples.tobytes())

    def said(self):
        """Frames that went out."""
        content, frames = self.output.getvalue(), []
        while content:
            kind, length = FRAME.unpack_from(content)
            frames.append((kind, content[FRAME.size : FRAME.size + length]))
            content = content[FRAME.size + length :]
        return frames


@pytest.fixture
def wire():
    return Wire()


def samples_of(number, dtype="<i2"):
    return np.arange(3 * number, dtype=dtype).reshape(number, 3)


def make_spikes(number):
    floats = np.linspace(0.5, 1, number, dtype=np.float32)
    index = np.arange(number)
    return OnlineSpikes(1000 + index, index % 4, index % 3, -floats, floats, index % 2 == 1)


def test_messages_come_as_they_were_sent(wire):
    wire.put_samples(7, samples_of(4))
    wire.put_samples(11, samples_of(2))
    first, second = wire.line.take(0)
    assert (first.first_sample, second.first_sample) == (7, 11)
    np.testing.assert_array_equal(first.samples, samples_of(4))
    assert wire.line.num_samples == 6
    assert wire.said() == []


def test_a_message_may_come_in_pieces(wire):
    frame = pack_frame(DATA, HEADER.pack(0, 4, 3, 0) + samples_of(4).tobytes())
    for k in range(len(frame) - 1):
        os.write(wire._pipe, frame[k : k + 1])
        assert wire.line.take(0) == []
    os.write(wire._pipe, frame[-1:])
    np.testing.assert_array_equal(wire.line.take(0)[0].samples, samples_of(4))


def test_a_gap_is_told(wire):
    wire.put_samples(0, samples_of(4))
    wire.put_samples(9, samples_of(1))
    assert [m.first_sample for m in wire.line.take(0)] == [0, 9]
    assert wire.said() == [(TEXT, b'{"event": "gap", "expected": 4, "got": 9}')]


@pytest.mark.parametrize(
    ("samples", "header", "message"),
    [
        (samples_of(4), {"channels": 2}, "A message has 2 channels and flags 0; 3 and 0 are agreed."),
        (samples_of(4), {"flags": 1}, "A message has 3 channels and flags 1"),
        (
            samples_of(4),
            {"number": 5},
            "announces 5 samples and holds 24 bytes of them; 30 are needed (int16",
        ),
        (samples_of(4), {"number": 30_001}, "A message has 30001 samples; at most 30000 are taken."),
        (samples_of(4), {"number": 2**32 - 1}, "A message has 4294967295 samples"),
    ],
)
def test_messages_that_lie_are_refused(wire, samples, header, message):
    wire.put_samples(0, samples, **header)
    with pytest.raises(Refusal) as refusal:
        wire.line.take(0)
    assert message in str(refusal.value)
    assert refusal.value.code == 1007


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((DATA, b"short"), "A message has 5 bytes, its header 16."),
        ((DATA, HEADER.pack(2**63, 0, 3, 0)), "A message ends at sample 9223372036854775808"),
        ((TEXT, b'{"end": false}'), "A text is not understood."),
        ((TEXT, b"\xff"), "A text is not understood."),
        ((TEXT, b"[" * 3000), "A text is not understood."),
    ],
)
def test_what_is_no_message_is_refused(wire, content, message):
    wire.put(*content)
    with pytest.raises(Refusal, match=message):
        wire.line.take(0)


def test_samples_do_not_go_back(wire):
    wire.put_samples(5, samples_of(4))
    wire.put_samples(8, samples_of(4))
    with pytest.raises(Refusal, match=r"A message begins at sample 8; 9 was to come\."):
        wire.line.take(0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_are_numbers(value):
    wire, samples = Wire("float32"), samples_of(4, "<f4")
    samples[2, 1] = value
    wire.put_samples(10, samples)
    with pytest.raises(Refusal, match=f"Sample 12 of channel 1 is {value}. Send numbers alone"):
        wire.line.take(0)


def test_nothing_follows_the_end(wire):
    wire.put(TEXT, b'{"end": true}')
    assert wire.line.take(0) == []
    assert wire.line.is_ended
    wire.put_samples(0, samples_of(1))
    with pytest.raises(Refusal, match="Something came after the end"):
        wire.line.take(0)


def test_the_other_end_goes_away(wire):
    os.close(wire._pipe)
    with pytest.raises(EOFError):
        wire.line.take(None)


def test_spikes_go_out_as_records(wire):
    wire.line.num_messages = 3
    wire.line.send(make_spikes(5), 1005, 0.25, is_behind=True, from_calibration=True)
    ((kind, content),) = wire.said()
    assert kind == DATA
    assert NOTE.unpack_from(content) == (3, 0.25)
    assert REPLY.unpack_from(content, NOTE.size) == (1005, 5, 1)
    records = np.frombuffer(content, RECORD, offset=NOTE.size + REPLY.size)
    assert records["sample"].tolist() == [1000, 1001, 1002, 1003, 1004]
    assert records["flags"].tolist() == [2, 3, 2, 3, 2]
    assert records["amplitude_uV"][-1] == -1
    assert struct.calcsize("<QIHHff") == RECORD.itemsize


def test_many_spikes_go_out_in_parts_and_nothing_is_acknowledged_too_early(wire, monkeypatch):
    monkeypatch.setattr("service.stream_line.MAX_SPIKES", 4)
    wire.line.send(make_spikes(10), 1100, 0.0, is_behind=False)
    parts = [REPLY.unpack_from(content, NOTE.size) for _, content in wire.said()]
    assert parts == [(1003, 4, 0), (1007, 4, 0), (1100, 2, 0)]
    wire.line.send(OnlineSpikes.join([]), 1050, 0.0, is_behind=False)  # it does not go back
    assert REPLY.unpack_from(wire.said()[-1][1], NOTE.size) == (1100, 0, 0)
    assert wire.line.num_spikes == 10
