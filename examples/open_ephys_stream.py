"""Sort online what the Open Ephys GUI records: subscribes to its ZMQ Interface plugin.

In the GUI, put the plugin behind the acquisition board (before any filter), select the stream and the
headstage channels, and start acquisition; then run this. Needs pyzmq.

The plugin publishes one message for each channel of each block of samples, in three parts: an envelope
``DATA``, a header in JSON, and the samples as float32 in µV. It also expects a heartbeat on the next port
every few seconds, else it shows the client as gone. ZMQ drops messages of a subscriber that is too slow: a
block that lacks a channel is left out here and is a gap of the stream.

    python examples/open_ephys_stream.py --server http://gpu-node:3000 --probe probe.json
"""

import argparse
import json
import time
import uuid
from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import zmq
from shared import add_arguments, add_probe_argument, read_probe, sorting, stop_on_ctrl_c

HEARTBEAT_S = 2.0
POLL_MS = 100


def main() -> None:
    """Read the arguments and sort until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="localhost", help="where the GUI runs")
    parser.add_argument("--port", type=int, default=5556, help="the plugin's data port")
    add_arguments(parser)
    add_probe_argument(parser)
    args = parser.parse_args()
    blocks = Assembler()
    traces = _whole_blocks(receive_messages(args.host, args.port, stop_on_ctrl_c()), blocks)
    first = next(traces, None)
    if first is None:
        return
    num_channels = len(blocks.channels)
    probe = read_probe(args.probe, num_channels)
    with sorting(args, blocks.sampling_frequency, num_channels, dtype="float32", **probe) as stream:
        stream.send(first[1], first[0])
        for first_sample, block in traces:
            stream.send(block, first_sample)


def receive_messages(host: str, port: int, stop: Event) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Give header and samples of each message with data, and tell the plugin that somebody listens."""
    heartbeat = {"application": "accm", "uuid": str(uuid.uuid4()), "type": "heartbeat"}
    with zmq.Context() as context, context.socket(zmq.SUB) as data, context.socket(zmq.DEALER) as listener:
        data.setsockopt(zmq.RCVHWM, 0)  # a thousand messages, the default, are a few ms of many channels
        data.setsockopt(zmq.SUBSCRIBE, b"")
        data.connect(f"tcp://{host}:{port}")
        listener.setsockopt(zmq.LINGER, 0)
        listener.connect(f"tcp://{host}:{port + 1}")
        next_heartbeat = 0.0
        while not stop.is_set():
            if time.monotonic() >= next_heartbeat:
                listener.send_multipart([b"", json.dumps(heartbeat).encode()])
                next_heartbeat = time.monotonic() + HEARTBEAT_S
            while listener.poll(0):
                listener.recv_multipart()  # "heartbeat received"
            if data.poll(POLL_MS):
                parts = data.recv_multipart()
                header = json.loads(parts[1].rstrip(b"\0"))
                if header["type"] == "data":
                    yield header, np.frombuffer(parts[2], dtype="<f4")


def _whole_blocks(
    messages: Iterator[tuple[dict[str, Any], np.ndarray]], blocks: "Assembler"
) -> Iterator[tuple[int, np.ndarray]]:
    for header, samples in messages:
        block = blocks.add(header, samples)
        if block is not None:
            yield block


class Assembler:
    """Puts the messages of single channels together to blocks over all channels.

    Which channels there are is learned from the second block: the first may have begun before we listened.

    Attributes
    ----------
    channels : list of int
        Those of each block, in order; empty until they are known.
    sampling_frequency : float
        Hz; known with the first message.
    """

    def __init__(self) -> None:
        self.channels: list[int] = []
        self.sampling_frequency = 0.0
        self._first_sample = -1
        self._num_blocks = 0
        self._parts: dict[int, np.ndarray] = {}

    def add(self, header: dict[str, Any], samples: np.ndarray) -> tuple[int, np.ndarray] | None:
        """Take one message; give first sample and traces (n_samples, n_channels) of a block that is whole."""
        content = header["content"]
        first_sample, channel = content["sample_num"], content["channel_num"]
        self.sampling_frequency = float(content["sample_rate"])
        learned = None
        if first_sample != self._first_sample:
            learned = self._begin(first_sample)
        if self.channels and channel not in self.channels:
            raise SystemExit(
                f"Channel {channel} was selected in the GUI just now. Start again for all channels."
            )
        self._parts[channel] = samples
        if len(self._parts) == len(self.channels):
            return first_sample, self._traces()
        return learned

    def _begin(self, first_sample: int) -> tuple[int, np.ndarray] | None:
        """Begin a block; the one before it tells of the channels, or lacks some."""
        if first_sample < self._first_sample:
            raise SystemExit(
                "Acquisition was started again: the samples count from the beginning. So must we."
            )
        whole = None
        if self._num_blocks == 2 and not self.channels:
            self.channels = sorted(self._parts)
            whole = self._first_sample, self._traces()
        elif self.channels and len(self._parts) < len(self.channels):
            missing = len(self.channels) - len(self._parts)
            print(
                f"the block at sample {self._first_sample} came without {missing} channels; left out",
                flush=True,
            )
        self._num_blocks += 1
        self._first_sample, self._parts = first_sample, {}
        return whole

    def _traces(self) -> np.ndarray:
        return np.stack([self._parts[channel] for channel in self.channels], axis=1)


if __name__ == "__main__":
    main()
