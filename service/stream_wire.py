"""What goes over a stream's socket, and between the server and a session's process, byte by byte."""

import os
import select
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from accm_core.online.sorter import OnlineSpikes

PROTOCOL = 1
HEADER = struct.Struct("<QIHH")
"""Of a client's message: first sample, number of samples, number of channels, flags (0)."""
REPLY = struct.Struct("<QII")
"""Of the answer: acknowledged sample, number of spikes, flags."""
BEHIND = 1
"""Flag of an answer: the server is behind."""
OVERLAP, CALIBRATION = 1, 2
"""Flags of a spike: it overlaps another one; it was found by the calibration."""
RECORD = np.dtype(
    [
        ("sample", "<u8"),
        ("unit", "<u4"),
        ("channel", "<u2"),
        ("flags", "<u2"),
        ("amplitude_uV", "<f4"),
        ("probability", "<f4"),
    ]
)
"""A spike."""

DONE, BAD_DATA, BAD_HELLO, FAILED, TRY_LATER = 1000, 1007, 1008, 1011, 1013
"""Codes with which a socket is closed (RFC 6455)."""

TEXT, DATA, ERROR, CLOSE = b"T", b"D", b"E", b"C"
"""Kinds of frames between the server and a session's process: JSON, samples or spikes, why the session ends
before its end, and the end."""
CODE = struct.Struct("<H")
"""At the end: with which code the socket is closed."""
FRAME = struct.Struct("<cI")
"""Before each frame: its kind and its length."""
NOTE = struct.Struct("<Qf")
"""Before an answer, for the server alone: how many of the client's messages are worked on, and how many
seconds of samples still wait."""
PIPE_BYTES = 1 << 20
"""Asked for as the room in a pipe: some messages of many channels."""
SWITCH_S = 0.0005
"""Time that another thread may hold the interpreter, at either end of the pipe, while a message waits."""


def pack_frame(kind: bytes, content: bytes) -> bytes:
    """One frame."""
    return FRAME.pack(kind, len(content)) + content


def pack_spikes(
    spikes: "OnlineSpikes", acknowledged: int, *, is_behind: bool, from_calibration: bool
) -> bytes:
    """An answer."""
    records = np.empty(len(spikes), RECORD)
    records["sample"], records["unit"] = spikes.sample_index, spikes.unit_index
    records["channel"] = spikes.channel_index
    records["flags"] = spikes.is_overlap * OVERLAP + from_calibration * CALIBRATION
    records["amplitude_uV"], records["probability"] = spikes.amplitude_uV, spikes.probability
    return REPLY.pack(acknowledged, len(spikes), is_behind * BEHIND) + records.tobytes()


@dataclass(frozen=True)
class Frame:
    """A frame that has been read."""

    kind: bytes
    content: bytes


class FrameReader:
    """Reads frames from a pipe as they come.

    Parameters
    ----------
    descriptor : int
        Of the pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = bytearray()
        self._room = memoryview(bytearray(PIPE_BYTES))

    def read(self, timeout: float | None, most: int | None = None) -> list[Frame]:
        """All whole frames that are there, or so many, waiting for one at most this long (s).

        Raises
        ------
        EOFError
            If the other end is closed.
        """
        frames = self._split(most)
        while not frames and select.select([self.descriptor], [], [], timeout)[0]:
            num_bytes = os.readv(self.descriptor, [self._room])
            if num_bytes == 0:
                raise EOFError
            self._buffer += self._room[:num_bytes]
            frames = self._split(most)
        return frames

    def _split(self, most: int | None) -> list[Frame]:
        """Take whole frames out of what has been read."""
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= FRAME.size and (most is None or len(frames) < most):
            kind, length = FRAME.unpack_from(self._buffer, start)
            stop = start + FRAME.size + length
            if len(self._buffer) < stop:
                break
            frames.append(Frame(kind, bytes(self._buffer[start + FRAME.size : stop])))
            start = stop
        del self._buffer[:start]
        return frames


def write_frame(file: BinaryIO, kind: bytes, content: bytes) -> None:
    """Write a frame, and make it leave at once."""
    file.write(pack_frame(kind, content))
    file.flush()
