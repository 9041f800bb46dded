"""The Intan example, against a server that sends what RHX would."""

import json
import socket
import threading

import numpy as np
import pytest

from tests.examples.arrivals import arrived

MAGIC = np.uint32(0x2EF07A08).tobytes()
NUM_CHANNELS, FRAMES = 6, 128


def make_block(first_sample, samples):
    frames = np.zeros(FRAMES, dtype=[("timestamp", "<u4"), ("samples", "<u2", (NUM_CHANNELS,))])
    frames["timestamp"] = (first_sample + np.arange(FRAMES)) & 0xFFFFFFFF
    frames["samples"] = samples
    return MAGIC + frames.tobytes()


@pytest.fixture
def rhx():
    """Sends what it is given to whoever connects, in pieces that end anywhere, and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def send(content):
        def serve():
            connection, _ = listener.accept()
            with connection:
                for low in range(0, len(content), 1001):
                    connection.sendall(content[low : low + 1001])

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return listener.getsockname()[1]

    yield send
    listener.close()
    for thread in threads:
        thread.join()


@pytest.fixture
def recording():
    rng = np.random.default_rng(0)
    samples = rng.integers(32_300, 33_200, (8, FRAMES, NUM_CHANNELS)).astype(np.uint16)
    samples[2, 50, 4] = 30_000  # -539.76 µV
    return samples


def test_samples_arrive_in_uv_with_their_numbers(fake, start, rhx, recording):
    first = 2**32 - 300  # the counter runs over in the third block
    numbers = first + FRAMES * np.arange(8)
    numbers[5:] += 1000  # RHX lost some
    content = b"".join(make_block(*block) for block in zip(numbers.tolist(), recording, strict=True))
    before = make_block(0, recording[0])[500:]
    before = before[:30] + MAGIC + before[34:]  # samples that look like the beginning of a block
    port = rhx(before + content)
    done = start(
        "intan_stream.py", "--port", port, "--channels", NUM_CHANNELS, "--rate", 30_000, "--model", "m"
    )
    output, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, "")
    starts, traces = arrived(fake)
    assert starts == [first, first + 5 * FRAMES + 1000]
    expected = 0.195 * (recording.reshape(-1, NUM_CHANNELS).astype(float) - 32768)
    np.testing.assert_allclose(traces, expected, atol=1e-9)
    assert fake.streams[0]["hello"]["dtype"] == "int16"
    assert f"{len(before)} bytes were no whole block" in output
    assert f'"expected": {first + 5 * FRAMES}, "got": {first + 5 * FRAMES + 1000}' in output
    assert f"{(first + 2 * FRAMES + 50) / 30_000:.5f} s  unit 4  channel 4  -540 µV" in output
    assert output.endswith("1024 samples, 1 spikes\n")


def test_bytes_lost_on_the_way_are_a_gap(fake, start, rhx, recording):
    blocks = [make_block(1000 + FRAMES * k, samples) for k, samples in enumerate(recording)]
    blocks[3] = blocks[3][:-70]
    port = rhx(b"".join(blocks))
    done = start("intan_stream.py", "--port", port, "--channels", NUM_CHANNELS, "--rate", 30_000)
    done.communicate(timeout=60)
    starts, traces = arrived(fake)
    truth = 0.195 * (recording.astype(float) - 32768)
    assert starts == [1000, 1000 + 4 * FRAMES]
    good = np.concatenate([truth[:3], truth[4:]]).reshape(-1, NUM_CHANNELS)
    np.testing.assert_allclose(traces, good, atol=1e-9)


def test_wrong_number_of_channels_is_told(fake, start, rhx, recording):
    content = b"".join(make_block(FRAMES * k, samples) for k, samples in enumerate(recording)) * 8
    done = start("intan_stream.py", "--port", rhx(content), "--channels", 5, "--rate", 30_000)
    errors = done.communicate(timeout=60)[1]
    assert done.returncode == 1
    assert "No block of 5 channels" in errors


def test_positions_come_from_a_probe_file(fake, start, rhx, recording, tmp_path):
    probe = {"contact_positions": [[0.0, 20.0 * k] for k in range(6)], "shank_ids": ["b"] * 3 + ["a"] * 3}
    probe["device_channel_indices"] = [5, 4, 3, 2, 1, 0]
    (tmp_path / "probe.json").write_text(json.dumps({"probes": [probe]}))
    port = rhx(make_block(0, recording[0]) * 2)
    args = ("--port", port, "--channels", NUM_CHANNELS, "--rate", 30_000, "--probe", tmp_path / "probe.json")
    start("intan_stream.py", *args).communicate(timeout=60)
    hello = fake.streams[0]["hello"]
    assert hello["channel_locations"] == [[0.0, 20.0 * k] for k in (5, 4, 3, 2, 1, 0)]
    assert hello["channel_groups"] == [0, 0, 0, 1, 1, 1]
