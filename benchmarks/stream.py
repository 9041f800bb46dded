"""Online sorting through a running service: latency, accuracy beside the offline sort, and a soak.

``accm serve`` in one terminal, ``python -m benchmarks.stream`` in another. A recording is sent as it would be
recorded, in messages of 10 ms; where it is shorter than ``--seconds``, again and again. A spike's
latency is the time from the end of the message that brings the last sample of its look-ahead to its arrival.
"""

import argparse
import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from accm_core.client import Client, Stream
from accm_core.evaluate import evaluate
from accm_core.io.nwb_read import read_nwb
from accm_core.io.nwb_units import read_spike_trains
from accm_core.params import SorterParams
from accm_core.pipeline import sort
from accm_core.simulate import simulate

MESSAGE_MS = 10.0
GAIN = 0.195  # µV, as of Intan chips
REPORT_EVERY_S = 60.0


class Listener(threading.Thread):
    """Takes what comes back, with the time at which it came."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(daemon=True)
        self.stream, self.spikes, self.times, self.events = stream, [], [], []
        self.is_live = threading.Event()

    def run(self) -> None:
        """Take all; for the thread."""
        for reply in self.stream:
            if reply.event is None:
                self.spikes.append(reply.spikes)
                self.times.append(np.full(len(reply.spikes), time.perf_counter()))
            else:
                self.events.append(reply.event)
                if reply.event["event"] == "live":
                    self.is_live.set()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream")
    parser.add_argument("--server", default="http://127.0.0.1:3000")
    parser.add_argument("--session", type=Path, help="NWB file to send; else 64 simulated channels")
    parser.add_argument("--truth", type=Path, help="NWB file with its true Units, for the accuracy")
    parser.add_argument("--seconds", type=float, default=600.0, help="live, after the calibration")
    parser.add_argument("--calibration", type=float, default=120.0, help="seconds")
    parser.add_argument("--offline", action="store_true", help="sort offline as well, and compare")
    options = parser.parse_args()
    with ExitStack() as stack:
        truth = None
        if options.session is None:
            recording, true_units = simulate(
                seed=0, probe="neuropixels", num_channels=64, duration_s=180.0, num_units=50
            )
            names = enumerate(true_units.unit_names)
            truth = {n: true_units.sample_index[true_units.unit_index == k] for k, n in names}
        else:
            recording = stack.enter_context(read_nwb(options.session))
        fs = recording.sampling_frequency
        if options.truth is not None:
            truth = {n: np.rint(times * fs) for n, times in read_spike_trains(options.truth).items()}
        traces = recording.get_traces(recording.segments[0].start, recording.segments[0].stop)
        counts = np.rint(traces / GAIN).clip(-32768, 32767).astype(np.int16)
        client = stack.enter_context(Client(options.server, timeout=60.0))
        found = send(client, recording, counts, options)
        if truth is not None:
            first, stop = int(options.calibration * fs), len(counts)
            compare("online", found, truth, first, stop, fs)
            if options.offline:
                sorting = sort(recording, SorterParams())
                units = {
                    str(k): sorting.sample_index[sorting.unit_index == k] for k in range(sorting.num_units)
                }
                compare("offline", units, truth, first, stop, fs)


def send(client: Client, recording, counts: np.ndarray, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Send the recording in real time; the trains that came back, by unit."""
    fs = recording.sampling_frequency
    step = round(1e-3 * MESSAGE_MS * fs)
    num_messages = len(counts) // step
    stream = client.stream(
        fs,
        counts.shape[1],
        gain_to_uV=GAIN,
        channel_locations=recording.channel_locations,
        channel_groups=recording.channel_groups,
        calibration_s=options.calibration,
    )
    with stream:
        listener = Listener(stream)
        listener.start()
        ends: list[float] = []
        began = reported = time.perf_counter()
        memory = read_memory()
        live_from = None
        while True:
            number = len(ends)
            part = number % num_messages
            due = began + (number + 1) * step / fs
            time.sleep(max(0.0, due - time.perf_counter()))
            stream.send(counts[part * step : (part + 1) * step])
            ends.append(time.perf_counter())
            if live_from is None and listener.is_live.is_set():
                live_from, memory = number, read_memory()
                print(f"live after {ends[-1] - began:.0f} s", flush=True)
            if ends[-1] - reported > REPORT_EVERY_S:
                reported = ends[-1]
                if live_from is not None:
                    tell_latency(listener, ends, live_from, step, stream.lookahead_ms, fs)
            if live_from is not None and (number - live_from) * step / fs > options.seconds:
                break
        summary = stream.end(timeout=600.0)
        listener.join()
        print(f"memory of the server, MB: {memory:.0f} when live, {read_memory():.0f} at the end")
    print("end", summary, "sent", len(ends) * step)
    print("events", sorted({event["event"] for event in listener.events} - {"calibration"}))
    tell_latency(listener, ends, live_from, step, stream.lookahead_ms, fs)
    spikes = np.concatenate(listener.spikes)
    return {
        str(unit): spikes["sample"][spikes["unit"] == unit].astype(np.int64)
        for unit in np.unique(spikes["unit"])
    }


def tell_latency(
    listener: Listener, ends: list[float], live_from: int, step: int, lookahead_ms: float, fs: float
) -> None:
    """Latency beyond the look-ahead, of the spikes of messages that were sent live."""
    spikes = np.concatenate(listener.spikes[:]) if listener.spikes else np.zeros(0)
    times = np.concatenate(listener.times[: len(listener.spikes)])[: len(spikes)]
    needed = (spikes["sample"].astype(np.int64) + round(1e-3 * lookahead_ms * fs)) // step
    rows = (needed > live_from + 1) & (needed < len(ends)) & (spikes["flags"] & 2 == 0)
    rows = rows[: len(times)]
    late = 1e3 * (times[rows] - np.array(ends)[needed[: len(times)][rows]])
    if len(late):
        p50, p99, most = np.percentile(late, [50, 99, 100])
        print(
            f"{(len(ends) - live_from) * step / fs:6.0f} s live: {len(late)} spikes, latency beyond the "
            f"look-ahead of {lookahead_ms:g} ms: median {p50:.2f}, 99 % {p99:.2f}, largest {most:.1f} ms",
            flush=True,
        )


def compare(
    name: str, found: dict[str, np.ndarray], truth: dict[str, np.ndarray], first: int, stop: int, fs: float
) -> None:
    """Score the spikes of a stretch of samples."""

    def cut(trains: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: train[(train >= first) & (train < stop)] / fs for k, train in trains.items()}

    scored = evaluate(
        {k: train for k, train in cut(found).items() if len(train)}, cut(truth), sampling_frequency=fs
    )
    told = scored.to_dict()
    print(name, json.dumps({key: told[key] for key in ("accuracy", "well_detected", "found_units")}))


def read_memory() -> float:
    """Resident memory of the service and all its processes, MB; 0 where it is on another machine."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
            if b"service:SpikeSorter" in arguments or b"service." in arguments:
                total += int((folder / "statm").read_text().split()[1]) * 4096
        except OSError:
            continue
    return total / 1e6


if __name__ == "__main__":
    main()
