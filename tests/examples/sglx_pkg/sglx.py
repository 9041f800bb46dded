"""A stand-in for ``sglx.py`` of SpikeGLX-CPP-SDK: its functions, over samples known from their number.

The run goes on by a few samples with each question, so that a fetch finds none, some, or more than it may
take; SpikeGLX keeps the last ``RING`` of them. At the sample ``SGLX_STALL`` the program was slow for long.
"""
# ruff: noqa: N802 - the names are those of the SDK

import os
from ctypes import POINTER, c_short, cast

import numpy as np

NUM_CHANNELS, RATE = 8, 30_000.0
FIRST, LAST = 5_000, 30_000
RING = 4_000
STEPS = (0, 100, 700, 0, 2_900, 3_000, 3_300, 10)
COUNTS = (NUM_CHANNELS, NUM_CHANNELS, 1)  # AP, LF, SY
PITCH_UM = 250

_state = {
    "count": FIRST,
    "questions": 0,
    "stall": int(os.environ.get("SGLX_STALL", LAST)),
    "error": b"",
    "kept": None,
}


def make_samples(first, stop):
    """The samples (n, channels) of the run, int16."""
    number, channel = np.meshgrid(np.arange(first, stop), np.arange(NUM_CHANNELS), indexing="ij")
    samples = (number * 7 + channel * 13) % 61 - 30
    samples[(number % 3000 == 0) & (channel == number // 3000 % NUM_CHANNELS)] = -200
    return samples.astype(np.int16)


def gain_volts(channel):
    return 2.34375e-6 * (1 + channel / 100)


def _go_on():
    _state["count"] = min(LAST, _state["count"] + STEPS[_state["questions"] % len(STEPS)])
    _state["questions"] += 1


def _refuse(text):
    _state["error"] = text
    return 0


def c_sglx_createHandle():
    return 1


def c_sglx_connect(handle, host, port):
    return (handle, host, port) == (1, b"localhost", 4142) or _refuse(b"Bad address.")


def c_sglx_getError(handle):
    return _state["error"]


def c_sglx_close(handle):
    return True


def c_sglx_destroyHandle(handle):
    return None


def c_sglx_getStreamSampleRate(handle, js, ip):
    return RATE if (js, ip) == (2, 0) else _refuse(b"No such stream.")


def c_sglx_getStreamAcqChans(nval, handle, js, ip):
    nval._obj.value = len(COUNTS)
    return True


def c_sglx_getint(handle, row):
    return COUNTS[row]


def c_sglx_getStreamI16ToVolts(multiplier, handle, js, ip, channel):
    multiplier._obj.value = gain_volts(channel)
    return True


def c_sglx_getStreamSampleCount(handle, js, ip):
    return _state["count"]


def c_sglx_isRunning(ready, handle):
    ready._obj.value = _state["count"] < LAST
    return True


def _geometry():
    rows = {"head_numShanks": 2, "head_shankPitch": PITCH_UM}
    for channel in range(NUM_CHANNELS):
        shank, row = divmod(channel, NUM_CHANNELS // 2)
        rows |= {
            f"ch{channel}_s": shank,
            f"ch{channel}_x": 27,
            f"ch{channel}_z": 15 * row,
            f"ch{channel}_u": 1,
        }
    return sorted(f"{key}={value}" for key, value in rows.items())


def c_sglx_getGeomMap(nval, handle, ip):
    nval._obj.value = len(_geometry())
    return True


def c_sglx_getstr(length, handle, row):
    return _geometry()[row].encode()


def c_sglx_fetch(data, n_data, handle, js, ip, start, max_samps, channels, n_cs, downsample):
    assert (js, ip, list(channels), downsample) == (2, 0, list(range(n_cs)), 1)
    _go_on()
    if start >= _state["stall"]:
        _state["count"], _state["stall"] = _state["count"] + 2 * RING, LAST
    if start < _state["count"] - RING:
        return _refuse(b"FETCH: Too late.")
    values = make_samples(start, max(start, min(_state["count"], start + max_samps)))[:, :n_cs].ravel()
    _state["kept"] = (c_short * max(1, len(values)))(*values.tolist())
    data._obj.contents = cast(_state["kept"], POINTER(c_short)).contents
    n_data._obj.value = len(values)
    return start
