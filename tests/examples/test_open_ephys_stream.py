"""The Open Ephys example, against a publisher that speaks as the ZMQ Interface plugin does."""

import json
import signal

import numpy as np
import pytest
import zmq

from tests.examples.arrivals import PATIENCE_S, arrived, wait_until

NUM_CHANNELS = 8
LENGTHS = [200, 173, 200, 190, 200, 200, 181]  # of the blocks: the GUI's vary
FIRST_SAMPLE = 70_000


class Plugin:
    """Publishes blocks, one message a channel, once somebody has subscribed and sent a heartbeat."""

    def __init__(self, context):
        self.data, self.listener = context.socket(zmq.XPUB), context.socket(zmq.REP)
        self.port = self.bind_both()
        self.message_num = 0

    def bind_both(self):
        """Two ports that follow each other."""
        while True:
            port = self.data.bind_to_random_port("tcp://127.0.0.1")
            try:
                self.listener.bind(f"tcp://127.0.0.1:{port + 1}")
            except zmq.ZMQError:
                self.data.unbind(f"tcp://127.0.0.1:{port}")
            else:
                return port

    def wait_for_client(self):
        assert self.data.poll(PATIENCE_S * 1000)
        assert self.data.recv() == b"\1"
        assert self.listener.poll(PATIENCE_S * 1000)
        heartbeat = json.loads(self.listener.recv())
        self.listener.send(b"heartbeat received")
        return heartbeat

    def send(self, kind, content, data):
        self.message_num += 1
        header = {"message_num": self.message_num, "type": kind, "content": content, "data_size": len(data)}
        envelope = {"data": b"DATA\0", "event": b"EVENT\0"}[kind]
        self.data.send_multipart([envelope, json.dumps({**header, "timestamp": 1}).encode(), data])

    def send_block(self, first_sample, traces, channels):
        for channel in channels:
            content = {"stream": "probe", "channel_num": channel, "num_samples": len(traces)}
            content |= {"sample_num": first_sample, "sample_rate": 30_000.0}
            self.send("data", content, traces[:, channel].astype("<f4").tobytes())

    def close(self):
        self.data.close(linger=0)
        self.listener.close(linger=0)


@pytest.fixture
def plugin():
    with zmq.Context() as context:
        plugin = Plugin(context)
        yield plugin
        plugin.close()


def test_channels_become_blocks_with_their_numbers(fake, start, plugin):
    rng = np.random.default_rng(0)
    blocks = [rng.normal(0, 10, (length, NUM_CHANNELS)).astype(np.float32) for length in LENGTHS]
    blocks[3][30, 5] = -250
    firsts = FIRST_SAMPLE + np.cumsum([0, *LENGTHS[:-1]])
    process = start("open_ephys_stream.py", "--port", plugin.port, "--host", "127.0.0.1", "--model", "m")
    heartbeat = plugin.wait_for_client()
    assert heartbeat["type"] == "heartbeat"
    assert heartbeat["uuid"]
    every = range(NUM_CHANNELS)
    for k, (first, block) in enumerate(zip(firsts.tolist(), blocks, strict=True)):
        # we subscribed in the middle of the first block, and ZMQ lost a message of the fifth
        plugin.send_block(first, block, {0: range(3, 8), 4: (0, 1, 2, 3, 5, 6, 7)}.get(k, every))
        plugin.send("event", {"stream": "probe", "type": 3, "sample_num": first}, b"\0" * 10)
    wanted = [blocks[k] for k in (1, 2, 3, 5, 6)]
    wait_until(lambda: fake.streams and sum(map(len, fake.streams[0]["parts"])) == sum(map(len, wanted)))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    starts, traces = arrived(fake)
    assert starts == [firsts[1], firsts[5]]
    assert np.array_equal(traces.astype(np.float32), np.concatenate(wanted))
    assert fake.streams[0]["hello"]["dtype"] == "float32"
    assert fake.streams[0]["is_ended"]
    assert f"the block at sample {firsts[4]} came without 1 channels" in output
    assert f'"expected": {firsts[4]}, "got": {firsts[5]}' in output
    assert f"{(firsts[3] + 30) / 30_000:.5f} s  unit 5  channel 5  -250 µV" in output


def test_acquisition_that_begins_again_is_told(fake, start, plugin):
    process = start("open_ephys_stream.py", "--port", plugin.port, "--host", "127.0.0.1")
    plugin.wait_for_client()
    block = np.zeros((100, NUM_CHANNELS), dtype=np.float32)
    for first in (500, 600, 700, 800, 0, 100):
        plugin.send_block(first, block, range(NUM_CHANNELS))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "Acquisition was started again" in errors
    assert sum(map(len, fake.streams[0]["parts"])) == 300  # all that came before is sorted
    assert fake.streams[0]["is_ended"]
