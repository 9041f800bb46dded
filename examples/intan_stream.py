"""Sort online what Intan RHX records: reads its waveform output over TCP.

In RHX (Network, Remote TCP Control): on the data output tab, add the wide band of the amplifier channels, and
nothing else, to the outputs and connect the waveform socket; then run this and start the controller.

RHX sends blocks of 128 frames: ``uint32`` 0x2ef07a08, then for each frame a 32-bit timestamp (the number of
the sample) and one ``uint16`` for each channel; µV = 0.195 (x - 32768). Where the bytes are no block, as
after a connection in the middle of one, we look for the next; where timestamps jump, the stream has a gap.

    python examples/intan_stream.py --channels 32 --rate 30000 --probe probe.json --server http://gpu-node:3000
"""

import argparse
import socket
from collections.abc import Iterator
from threading import Event

import numpy as np
from shared import add_arguments, add_probe_argument, read_probe, sorting, stop_on_ctrl_c

MAGIC = (0x2EF07A08).to_bytes(4, "little")
FRAMES = 128
GAIN_UV = 0.195
MIDDLE = 0x8000  # zero of the converter
COUNTER = 1 << 32  # timestamps
TIMEOUT_S = 0.2
MAX_BLOCKS_WITHOUT = 32  # bytes without a block after which the number of channels is taken to be wrong


def main() -> None:
    """Read the arguments and sort until RHX ends or Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="localhost", help="where RHX runs")
    parser.add_argument("--port", type=int, default=5001, help="its waveform output")
    parser.add_argument("--channels", type=int, required=True, help="how many channels it sends")
    parser.add_argument("--rate", type=float, required=True, help="samples per second")
    add_arguments(parser)
    add_probe_argument(parser)
    args = parser.parse_args()
    stop = stop_on_ctrl_c()
    probe = read_probe(args.probe, args.channels)
    with (
        socket.create_connection((args.host, args.port)) as connection,
        sorting(args, args.rate, args.channels, gain_to_uV=GAIN_UV, **probe) as stream,
    ):
        connection.settimeout(TIMEOUT_S)
        blocks = find_blocks(receive(connection, stop), args.channels)
        for first_sample, samples in number_samples(blocks):
            stream.send(samples, first_sample)


def receive(connection: socket.socket, stop: Event) -> Iterator[bytes]:
    """Give bytes as they come, until the other side closes."""
    while not stop.is_set():
        try:
            got = connection.recv(1 << 18)
        except TimeoutError:
            continue
        if not got:
            return
        yield got


def find_blocks(pieces: Iterator[bytes], num_channels: int) -> Iterator[np.ndarray]:
    """Give the frames of each block: a structured array of ``timestamp`` and ``samples``.

    Samples may look like the first bytes of a block; that its timestamps follow each other is what tells.
    """
    frame = np.dtype([("timestamp", "<u4"), ("samples", "<u2", (num_channels,))])
    block_bytes = len(MAGIC) + FRAMES * frame.itemsize
    buffer, num_skipped = bytearray(), 0
    for piece in pieces:
        buffer += piece
        while len(buffer) >= block_bytes:
            frames = np.frombuffer(bytes(buffer[len(MAGIC) : block_bytes]), dtype=frame)
            if buffer.startswith(MAGIC) and (np.diff(frames["timestamp"]) == 1).all():
                if num_skipped:
                    print(f"{num_skipped} bytes were no whole block; left out", flush=True)
                num_skipped = 0
                yield frames
                del buffer[:block_bytes]
            else:
                found = buffer.find(MAGIC, 1)
                cut = found if found > 0 else len(buffer) - len(MAGIC) + 1
                num_skipped += cut
                del buffer[:cut]
        if num_skipped > MAX_BLOCKS_WITHOUT * block_bytes:
            raise SystemExit(
                f"No block of {num_channels} channels in {num_skipped} bytes. Is --channels what RHX sends?"
            )


def number_samples(blocks: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Give number of the first sample and samples (FRAMES, n_channels), int16; the counter may run over."""
    number = None
    for block in blocks:
        stamp = int(block["timestamp"][0])
        step = 0 if number is None else (stamp - number) % COUNTER
        if number is not None and not FRAMES <= step < COUNTER // 2:
            raise SystemExit("The timestamps went back: RHX was started again. So must this be.")
        number = stamp if number is None else number + step
        yield number, (block["samples"] ^ np.uint16(MIDDLE)).view(np.int16)


if __name__ == "__main__":
    main()
