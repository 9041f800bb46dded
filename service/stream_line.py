"""A session's line to its client: messages are checked as they come in, answers and events go out."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from service.stream_hello import Hello
from service.stream_wire import (
    BAD_DATA,
    DATA,
    HEADER,
    NOTE,
    TEXT,
    Frame,
    FrameReader,
    pack_spikes,
    write_frame,
)

if TYPE_CHECKING:
    from accm_core.online.sorter import OnlineSpikes

MAX_SAMPLE = 1 << 62
"""Sample numbers stay below it: they are worked on as signed."""
MAX_SPIKES = 20_000
"""In one answer."""
MAX_TEXT_BYTES = 1000
"""Of a text that follows the first one."""


class Refusal(Exception):  # noqa: N818  nothing has gone wrong here
    """The session ends: with this code, for this reason."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Message:
    """Samples that a client has sent.

    Attributes
    ----------
    first_sample : int
    samples : ndarray of shape (num_samples, num_channels)
        As they were sent.
    """

    first_sample: int
    samples: np.ndarray


class Line:
    """What comes from the client, and what goes to it.

    Parameters
    ----------
    hello : Hello
    reader : FrameReader
    output : file

    Attributes
    ----------
    is_ended : bool
        The client has said that nothing follows.
    num_samples, num_spikes : int
        Taken, and sent.
    num_taken, num_messages : int
        Messages that have been taken, and of these worked on.
    acknowledged : int
        All spikes before this sample have been sent.
    """

    def __init__(self, hello: Hello, reader: FrameReader, output: BinaryIO) -> None:
        self._hello, self._reader, self._output = hello, reader, output
        self._dtype = np.dtype(hello.dtype).newbyteorder("<")
        self._expected: int | None = None
        self.is_ended = False
        self.num_samples = self.num_spikes = self.acknowledged = 0
        self.num_taken = self.num_messages = 0

    @property
    def descriptor(self) -> int:
        """Of the pipe that messages come from."""
        return self._reader.descriptor

    def take(self, timeout: float | None) -> list[Message]:
        """All messages that are there, waiting for one at most this long (s).

        Raises
        ------
        Refusal
            If one is not what was agreed.
        EOFError
            If the client or the server is gone.
        """
        messages = []
        for frame in self._reader.read(timeout):
            if self.is_ended:
                raise Refusal(BAD_DATA, "Something came after the end of the stream. Open a new one.")
            if frame.kind == DATA:
                messages.append(self._open(frame))
            else:
                self._end(frame)
        return messages

    def tell(self, **event: Any) -> None:
        """Send an event."""
        write_frame(self._output, TEXT, json.dumps(event).encode())

    def send(
        self,
        spikes: "OnlineSpikes",
        acknowledged: int,
        behind_s: float,
        *,
        is_behind: bool,
        from_calibration: bool = False,
    ) -> None:
        """Send spikes, or that there are none."""
        self.acknowledged = max(self.acknowledged, acknowledged)
        self.num_spikes += len(spikes)
        note = NOTE.pack(self.num_messages, behind_s)
        for start in range(0, max(len(spikes), 1), MAX_SPIKES):
            part = spikes.select(np.arange(start, min(start + MAX_SPIKES, len(spikes))))
            is_last = start + MAX_SPIKES >= len(spikes)
            # spikes come in order of time: the last one of a part may have company in the next
            upto = self.acknowledged if is_last else int(part.sample_index[-1])
            content = pack_spikes(part, upto, is_behind=is_behind, from_calibration=from_calibration)
            write_frame(self._output, DATA, note + content)

    def _open(self, frame: Frame) -> Message:
        """Check a message of samples, and tell of a gap."""
        if len(frame.content) < HEADER.size:
            raise Refusal(BAD_DATA, f"A message has {len(frame.content)} bytes, its header {HEADER.size}.")
        first, number, channels, flags = HEADER.unpack_from(frame.content)
        hello, num_bytes = self._hello, len(frame.content) - HEADER.size
        if channels != hello.num_channels or flags != 0:
            raise Refusal(
                BAD_DATA,
                f"A message has {channels} channels and flags {flags}; {hello.num_channels} and 0 are "
                "agreed.",
            )
        if number > hello.max_samples:
            raise Refusal(
                BAD_DATA,
                f"A message has {number} samples; at most {hello.max_samples} are taken. Send shorter ones.",
            )
        if num_bytes != number * hello.sample_bytes:
            raise Refusal(
                BAD_DATA,
                f"A message announces {number} samples and holds {num_bytes} bytes of them; "
                f"{number * hello.sample_bytes} are needed ({hello.dtype}, {hello.num_channels} channels).",
            )
        if first + number > MAX_SAMPLE:
            raise Refusal(BAD_DATA, f"A message ends at sample {first + number}; {MAX_SAMPLE} is the last.")
        if self._expected is not None and first < self._expected:
            raise Refusal(
                BAD_DATA,
                f"A message begins at sample {first}; {self._expected} was to come. Send samples in order, "
                "each once; leave a gap where some are lost.",
            )
        samples = np.frombuffer(frame.content, self._dtype, offset=HEADER.size).reshape(number, channels)
        if hello.dtype == "float32" and not np.isfinite(samples).all():
            row, channel = np.argwhere(~np.isfinite(samples))[0]
            raise Refusal(
                BAD_DATA,
                f"Sample {first + int(row)} of channel {channel} is {samples[row, channel]}. Send numbers "
                "alone; leave a gap where samples are lost.",
            )
        if self._expected is not None and first > self._expected:
            self.tell(event="gap", expected=self._expected, got=first)
        self._expected = first + number
        self.num_samples += number
        self.num_taken += 1
        return Message(first, samples)

    def _end(self, frame: Frame) -> None:
        try:
            values = json.loads(frame.content[:MAX_TEXT_BYTES])
        except (ValueError, RecursionError):
            values = None
        if values != {"end": True}:
            raise Refusal(
                BAD_DATA, 'A text is not understood. Send samples as binary messages, or {"end": true}.'
            )
        self.is_ended = True
