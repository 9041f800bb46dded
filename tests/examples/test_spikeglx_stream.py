"""The SpikeGLX example, against a stand-in of the SDK's module with a ring of samples."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.examples.arrivals import arrived

SDK = Path(__file__).parent / "sglx_pkg"


@pytest.fixture(scope="module")
def run():
    """What the stand-in records."""
    spec = importlib.util.spec_from_file_location("fake_sglx", SDK / "sglx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_uv(run, first, stop):
    return run.make_samples(first, stop) * np.array(
        [run.gain_volts(k) * 1e6 for k in range(run.NUM_CHANNELS)]
    )


def test_every_sample_arrives_once(fake, start, run):
    done = start("spikeglx_stream.py", "--sdk", SDK, "--model", "m")
    output, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, "")
    starts, traces = arrived(fake)
    assert starts == [run.FIRST]
    np.testing.assert_allclose(traces, in_uv(run, run.FIRST, run.LAST))
    hello = fake.streams[0]["hello"]
    assert (hello["sampling_frequency"], hello["num_channels"], hello["dtype"]) == (run.RATE, 8, "int16")
    assert hello["channel_groups"] == [0] * 4 + [1] * 4
    assert hello["channel_locations"][5] == [250 + 27, 15]
    spikes = [line for line in output.splitlines() if "unit" in line]
    assert spikes[0].startswith("0.20000 s  unit 2  channel 2  -478 µV")
    assert len(spikes) == 8  # one every 3000 samples of 25000


def test_samples_that_are_gone_are_a_gap(fake, start, run):
    done = start("spikeglx_stream.py", "--sdk", SDK, "--model", "m", SGLX_STALL="12000")
    output, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, "")
    starts, traces = arrived(fake)
    (gap,) = [json.loads(line) for line in output.splitlines() if '"gap"' in line]
    assert starts == [run.FIRST, gap["got"]]
    assert gap["got"] - gap["expected"] > run.RING
    lost = [in_uv(run, run.FIRST, gap["expected"]), in_uv(run, gap["got"], run.LAST)]
    np.testing.assert_allclose(traces, np.concatenate(lost))
    assert f"too late for samples {gap['expected']} to {gap['got'] - 1}" in output


def test_errors_are_the_words_of_the_sdk(start):
    done = start("spikeglx_stream.py", "--sdk", SDK, "--host", "elsewhere")
    assert "SpikeGLX: Bad address." in done.communicate(timeout=60)[1]
    assert done.returncode == 1
