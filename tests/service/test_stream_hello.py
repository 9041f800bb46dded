"""The first message: what is taken and what is refused, with the reason."""

import json

import numpy as np
import pytest

from service.stream_hello import HelloError, read_hello

GOOD = {"protocol": 1, "sampling_frequency": 30_000.0, "num_channels": 2, "dtype": "int16"}


def read(**changes):
    return read_hello(json.dumps({k: v for k, v in (GOOD | changes).items() if v is not ...}))


def test_defaults():
    hello = read()
    assert hello.ids == ("0", "1")
    assert (hello.max_samples, hello.sample_bytes) == (30_000, 4)
    assert read(num_channels=1024, dtype="float32").max_samples == 2048  # 8 MiB


def test_all_that_may_be_said():
    hello = read(
        gain_to_uV=[0.5, 2],
        offset_to_uV=[0, 1],
        channel_locations=[[0, 0], [0, 20.5]],
        channel_groups=[0, 1],
        channel_ids=["a", "b"],
        model="mouse-7",
        calibration_s=30,
        params={"detect": {"threshold": 6}},
        seed=3,
        save_as="day1",
    )
    assert hello.ids == ("a", "b")
    assert hello.params.detect.threshold == 6
    traces = hello.to_microvolts(np.array([[2, 2], [-4, 0]], dtype="<i2"))
    np.testing.assert_array_equal(traces, np.array([[1, 5], [-2, 1]], dtype=np.float32))
    assert traces.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": 2}, "protocol = 2 is refused: Input should be 1."),
        ({"dtype": ...}, "dtype is missing."),
        ({"dtype": "int32"}, "dtype = 'int32' is refused"),
        ({"speed": 3}, "speed is unknown. Known: protocol, sampling_frequency, num_channels"),
        ({"num_channels": 0}, "num_channels = 0 is refused"),
        ({"num_channels": 1025}, "num_channels = 1025 is refused"),
        ({"sampling_frequency": 999}, "sampling_frequency = 999 is refused"),
        ({"sampling_frequency": float("nan")}, "sampling_frequency = nan is refused"),
        ({"gain_to_uV": float("inf")}, "gain_to_uV"),
        ({"gain_to_uV": 0}, "A gain_to_uv is 0: its channel would be silent."),
        ({"gain_to_uV": [1, 2, 3]}, "Gain_to_uv has 3 entries for 2 channels."),
        ({"channel_ids": ["a", "a"]}, "Channel_ids holds an id twice."),
        ({"channel_locations": [[0, 0]]}, "Channel_locations has 1 entries for 2 channels."),
        ({"channel_locations": [[0, 0], [0, float("nan")]]}, "channel_locations"),
        ({"calibration_s": 9}, "calibration_s = 9 is refused"),
        ({"model": "../x"}, "model = '../x' is refused"),
        ({"save_as": ""}, "save_as = '' is refused"),
        ({"params": {"detect": {"thresh": 1}}}, "params.detect.thresh is unknown."),
        ({"params": {"detect": {"threshold": 1}}}, "params.detect.threshold = 1 is refused"),
        ({"seed": -1}, "seed = -1 is refused"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(HelloError) as error:
        read(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "3", "null", '{"protocol": NaN}'])
def test_what_is_no_hello(text):
    with pytest.raises(HelloError):
        read_hello(text)


def test_a_giant_is_not_read():
    with pytest.raises(HelloError, match="4194305 characters; 4194304 are taken"):
        read_hello(" " * (4 * 2**20 + 1))
