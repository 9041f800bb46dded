"""Sort online what SpikeGLX records: fetches its samples by number, none left out.

Enable the command server in SpikeGLX and start a run. The SDK (SpikeGLX-CPP-SDK, its Python folder with
``sglx.py`` and the library beside it) is not on PyPI: say where it lies with ``--sdk``.

``FetchLatest`` gives whatever is newest and skips the rest when a program is slow; here ``c_sglx_fetch`` is
asked for the samples that follow the last ones. SpikeGLX keeps some seconds: who is later than that is told
"Too late", and the stream has a gap.

    python examples/spikeglx_stream.py --sdk SpikeGLX-CPP-SDK/Windows/Python/sglx_pkg --server http://gpu-node:3000
"""

import argparse
import importlib
import sys
import time
from ctypes import POINTER, byref, c_bool, c_double, c_int, c_short
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from shared import add_arguments, sorting, stop_on_ctrl_c

PROBES = 2  # js of the SDK: the streams of imec probes
ALL_SAMPLES = 1  # downsampling
CHUNK_S = 0.1  # fetched at most at once
PAUSE_S = 0.002  # when there is nothing new


def main() -> None:
    """Read the arguments and sort until the run ends or Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sdk", type=Path, required=True, help="folder with sglx.py")
    parser.add_argument("--host", default="localhost", help="where SpikeGLX runs")
    parser.add_argument("--port", type=int, default=4142, help="its command server")
    parser.add_argument("--stream", type=int, default=0, help="number of the probe")
    add_arguments(parser)
    args = parser.parse_args()
    sys.path.insert(0, str(args.sdk))
    stop = stop_on_ctrl_c()
    source = Probe(importlib.import_module("sglx"), args.host, args.port, args.stream)
    try:
        next_sample = source.count_samples()
        with sorting(
            args,
            source.sampling_frequency,
            source.num_channels,
            gain_to_uV=source.gains_uV,
            **source.read_geometry(),
        ) as stream:
            while not stop.is_set():
                first_sample, samples = source.fetch(next_sample)
                if first_sample > next_sample:
                    print(f"too late for samples {next_sample} to {first_sample - 1}", flush=True)
                    next_sample = first_sample
                if len(samples):
                    stream.send(samples, first_sample)
                    next_sample = first_sample + len(samples)
                elif not source.is_running():
                    break
                else:
                    time.sleep(PAUSE_S)
    finally:
        source.close()


class Probe:
    """The spike band of a probe of a running SpikeGLX.

    Parameters
    ----------
    sglx : module
        That of the SDK.
    host, port
        The command server.
    number : int
        Of the probe.
    """

    def __init__(self, sglx: ModuleType | Any, host: str, port: int, number: int) -> None:
        self._sglx, self._number = sglx, number
        self._handle = sglx.c_sglx_createHandle()
        self._check(sglx.c_sglx_connect(self._handle, host.encode(), port))
        self.sampling_frequency = self._check(sglx.c_sglx_getStreamSampleRate(self._handle, PROBES, number))
        num_kinds = c_int()
        self._check(sglx.c_sglx_getStreamAcqChans(byref(num_kinds), self._handle, PROBES, number))
        self.num_channels = sglx.c_sglx_getint(self._handle, 0)  # of the spike band; LFP and sync follow
        self.gains_uV = [self._gain_uV(channel) for channel in range(self.num_channels)]
        self._channels = (c_int * self.num_channels)(*range(self.num_channels))
        self._most = int(CHUNK_S * self.sampling_frequency)

    def _gain_uV(self, channel: int) -> float:  # noqa: N802 - a unit
        volts = c_double()
        self._check(
            self._sglx.c_sglx_getStreamI16ToVolts(byref(volts), self._handle, PROBES, self._number, channel)
        )
        return volts.value * 1e6

    def count_samples(self) -> int:
        """Samples since the run began."""
        return int(self._check(self._sglx.c_sglx_getStreamSampleCount(self._handle, PROBES, self._number)))

    def is_running(self) -> bool:
        """Whether there is more to come."""
        is_on = c_bool()
        self._check(self._sglx.c_sglx_isRunning(byref(is_on), self._handle))
        return is_on.value

    def fetch(self, first_sample: int) -> tuple[int, np.ndarray]:
        """Samples from ``first_sample`` on: number of the first that is there, and (n, channels) int16.

        The memory is the library's, which uses it again for the next fetch.
        """
        data, num_values = POINTER(c_short)(), c_int()
        head = self._sglx.c_sglx_fetch(
            byref(data), byref(num_values), self._handle, PROBES, self._number, first_sample, self._most,
            self._channels, self.num_channels, ALL_SAMPLES,
        )  # fmt: skip
        nothing = np.zeros((0, self.num_channels), dtype=np.int16)
        if head == 0:
            is_late = b"Too late" in self._sglx.c_sglx_getError(self._handle)
            if not is_late and self.is_running():
                self._check(head)
            return self.count_samples() if is_late else first_sample, nothing
        if num_values.value == 0:
            return int(head), nothing
        values = np.ctypeslib.as_array(data, shape=(num_values.value,))
        return int(head), values.reshape(-1, self.num_channels)

    def read_geometry(self) -> dict[str, Any]:
        """Positions (µm) and shanks of the channels, as ``Client.stream`` takes them."""
        num_rows, length = c_int(), c_int()
        self._check(self._sglx.c_sglx_getGeomMap(byref(num_rows), self._handle, self._number))
        rows = (
            self._sglx.c_sglx_getstr(byref(length), self._handle, row).decode().partition("=")
            for row in range(num_rows.value)
        )
        geometry = {key: value for key, _, value in rows}
        pitch = float(geometry["head_shankPitch"])
        shanks = [int(geometry[f"ch{channel}_s"]) for channel in range(self.num_channels)]
        places = [
            (shank * pitch + float(geometry[f"ch{channel}_x"]), float(geometry[f"ch{channel}_z"]))
            for channel, shank in enumerate(shanks)
        ]
        return {"channel_locations": places, "channel_groups": shanks}

    def close(self) -> None:
        """Close the connection."""
        self._sglx.c_sglx_close(self._handle)
        self._sglx.c_sglx_destroyHandle(self._handle)

    def _check(self, answer: Any) -> Any:
        """Functions of the SDK answer with nothing when they fail."""
        if not answer:
            raise SystemExit(f"SpikeGLX: {self._sglx.c_sglx_getError(self._handle).decode()}")
        return answer


if __name__ == "__main__":
    main()
