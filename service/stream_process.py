"""One stream's session, in a process of its own: ``python -m service.stream_process FOLDER DEVICE``.

Frames come on standard input and go to standard output (`service.stream_wire`): first the client's hello,
then its messages. When standard input ends, the client or the server is gone, and this process goes too. It
does without torch: what needs it is done by a further process, before the session is live.
"""

import fcntl
import gc
import os
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from accm_core.online.sorter import OnlineSpikes
from service.stream_hello import Hello, HelloError, read_hello
from service.stream_line import Line, Message, Refusal
from service.stream_spool import Spool
from service.stream_start import Begun, Starter, keep
from service.stream_wire import (
    BAD_HELLO,
    CLOSE,
    CODE,
    DONE,
    ERROR,
    PIPE_BYTES,
    SWITCH_S,
    FrameReader,
    write_frame,
)

CATCH_UP_S = 0.25
"""Worked on at once while catching up; then what has come meanwhile is taken in."""
BEHIND_S, OVERLOAD_S, CALM_S = 0.1, 0.5, 5.0
"""Seconds of samples that wait, from which on answers say so, and from which on the client is told; and
between two times that it is told."""
MAX_WAITING_S = 2.0
"""Seconds of samples that wait, from which on no more are taken in: the client then has to wait."""


class Session:
    """A session that has begun.

    Parameters
    ----------
    hello : Hello
    line : Line
    begun : Begun
    """

    def __init__(self, hello: Hello, line: Line, begun: Begun) -> None:
        self._hello, self._line = hello, line
        self._sorter, self._seam = begun.sorter, begun.seam
        self._fs = hello.sampling_frequency
        self._told = -CALM_S

    def catch_up(self, spool: Spool) -> None:
        """Sort what has been put aside, while more comes, until nothing is left."""
        most = round(CATCH_UP_S * self._fs)
        while spool.num_samples > spool.position:
            first_sample, traces = spool.read(most)
            self._sort(first_sample, traces, (spool.num_samples - spool.position) / self._fs, late=True)
            if not self._line.is_ended:
                keep(self._line.take(0), spool)

    def answer_all(self) -> None:
        """Answer all messages that have come."""
        self._line.num_messages = self._line.num_taken
        self._send(OnlineSpikes.join([]), 0.0, late=False)

    def go_live(self) -> None:
        """Sort each message as it comes, until the client ends the stream."""
        waiting: deque[Message] = deque()
        num_waiting = 0
        while waiting or not self._line.is_ended:
            if not self._line.is_ended and num_waiting < MAX_WAITING_S * self._fs:
                new = self._line.take(0 if waiting else None)
                waiting.extend(new)
                num_waiting += sum(len(message.samples) for message in new)
            if waiting:
                message = waiting.popleft()
                num_waiting -= len(message.samples)
                behind_s = num_waiting / self._fs
                self._tell_overload(behind_s)
                traces = self._hello.to_microvolts(message.samples)
                self._line.num_messages += 1
                self._sort(message.first_sample, traces, behind_s, late=behind_s >= BEHIND_S)

    def end(self) -> None:
        """Report what is left."""
        self._send(self._sorter.end_segment(), 0.0, late=False)
        self._sorter.close()

    def _sort(self, first_sample: int, traces: np.ndarray, behind_s: float, *, late: bool) -> None:
        if first_sample != self._sorter.next_sample:  # a gap
            self._send(self._sorter.end_segment(first_sample), behind_s, late=late)
        self._send(self._sorter.feed(traces), behind_s, late=late)

    def _send(self, spikes: OnlineSpikes, behind_s: float, *, late: bool) -> None:
        if self._seam is not None:
            spikes = self._seam.keep_new(spikes)
        self._line.send(spikes, self._sorter.acknowledged, behind_s, is_behind=late)

    def _tell_overload(self, behind_s: float) -> None:
        now = time.monotonic()
        if behind_s >= OVERLOAD_S and now - self._told >= CALM_S:
            self._told = now
            self._line.tell(event="overload", behind_s=round(behind_s, 3))


def serve(hello: Hello, folder: Path, device: str, line: Line) -> None:
    """A whole session."""
    begun = Starter(hello, folder, line).begin(device)
    session = Session(hello, line, begun)
    session.catch_up(begun.spool)
    begun.spool.remove()
    if not line.is_ended:
        session.answer_all()
        line.tell(event="live")
        # what is there by now stays: the collector need not look at it again and again
        gc.collect()
        gc.freeze()
        session.go_live()
    session.end()
    line.tell(event="end", samples=line.num_samples, spikes=line.num_spikes)


def main() -> None:
    """Serve the client whose frames come on standard input."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    # what a library prints must not mix with the frames
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for descriptor in (sys.stdin.fileno(), output.fileno()):
        with suppress(OSError):  # the kernel's limit may be lower: then messages come in more pieces
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    sys.setswitchinterval(SWITCH_S)
    threadpool_limits(1)  # one step is too little work to be shared
    reader = FrameReader(sys.stdin.fileno())
    with suppress(EOFError, BrokenPipeError):  # nobody is there to be told
        try:
            hello = read_hello(reader.read(None, most=1)[0].content.decode())
            serve(hello, folder, device, Line(hello, reader, output))
            code, text = DONE, ""
        except HelloError as error:
            code, text = BAD_HELLO, str(error)
        except Refusal as refusal:
            code, text = refusal.code, str(refusal)
        if text:
            write_frame(output, ERROR, text.encode())
        write_frame(output, CLOSE, CODE.pack(code))


if __name__ == "__main__":
    main()
