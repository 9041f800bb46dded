"""Latency, losses, memory and accuracy of online sorting, by a real server and a real client.

``python -m benchmarks.stream`` starts ``accm serve``, simulates a recording, has its beginning calibrated on,
and then sends it in messages as a recording would come, for as long as asked. ``--session S.nwb --truth T``
takes a session with known spikes (truth as NWB Units, or .npz with sample_index and unit_index).

The latency of a spike runs from when the message that completes it has been sent (the one that holds the
sample ``lookahead_ms`` after it) until the client has it. The accuracy is that on the session from the end of
the calibration on, beside that of ``accm_core.sort`` on the whole session, scored on the same stretch.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from accm_core import evaluate, read_nwb, simulate, sort
from accm_core.client import Client, Stream
from benchmarks.embedding import load_trains

GAIN_UV = 0.195
"""Of an Intan amplifier."""
CALIBRATION_MESSAGE_S = 0.1
"""Sent as fast as they are taken, until the calibration has begun."""
MEMORY_EVERY_S = 5.0
PART_S = 600.0
"""Of which the latency is reported apart."""
PROBES = {64: "neuropixels", 32: "poly32", 4: "tetrode"}


@dataclass
class Session:
    """Samples to send, and what is in them."""

    samples: np.ndarray
    sampling_frequency: float
    gain_uV: float  # noqa: N815  the unit's symbol
    locations: np.ndarray
    trains: dict[str, np.ndarray]
    unit_locations: dict[str, tuple[float, float]] | None


@dataclass
class Log:
    """What came back, and when."""

    spikes: list[np.ndarray] = field(default_factory=list)
    arrived: list[tuple[int, float]] = field(default_factory=list)
    events: list[dict] = field(default_factory=list)
    num_behind: int = 0
    is_live: threading.Event = field(default_factory=threading.Event)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream")
    parser.add_argument("--minutes", type=float, default=1.0, help="of messages as they would come")
    parser.add_argument("--channels", type=int, choices=PROBES, default=64)
    parser.add_argument("--units", type=int, default=50)
    parser.add_argument("--duration", type=float, default=150.0, help="of the session (s); it is repeated")
    parser.add_argument("--calibration", type=float, default=75.0, help="of its beginning (s)")
    parser.add_argument("--message", type=float, default=10.0, help="ms")
    parser.add_argument("--session", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accuracy", action="store_true", help="score, beside an offline sort")
    parser.add_argument("--address", help="of a server; one is started when not given")
    options = parser.parse_args()
    session = load_session(options) if options.session else simulate_session(options)
    length = len(session.samples) / session.sampling_frequency
    print(f"session      {length:.0f} s, {session.samples.shape[1]} channels, {len(session.trains)} units")
    with serving(options.address) as address, Client(address) as client:
        log, stream = Log(), open_stream(client, session, options.calibration, options.seed)
        reader = threading.Thread(target=receive, args=(stream, log))
        reader.start()
        position = calibrate(stream, session, log, options.calibration)
        minutes = max(options.minutes, (length - options.calibration) / 60 if options.accuracy else 0)
        sent, memory = send_live(stream, session, position, 60 * minutes, options.message)
        shown = client.streams()["streams"][0]
        summary = stream.end(120)
        reader.join()
    part = round(PART_S * 1e3 / options.message)
    for start in range(0, len(sent), part):
        report_latency(log, sent[start : start + part], stream, session.sampling_frequency)
    messages = f"{len(sent)} messages of {options.message:g} ms, {summary['samples']} samples"
    print(f"sorted       {messages}, {summary['spikes']} spikes, {len(stream.units)} units")
    lost = position + sum(n for _, n, _ in sent) - summary["samples"]
    overloads = sum(event["event"] == "overload" for event in log.events)
    print(f"lost         {lost} samples; {overloads} overloads, {log.num_behind} answers behind")
    print(f"server       p50 {shown['latency_ms']['p50']} ms, p99 {shown['latency_ms']['p99']} ms")
    if memory:
        told = ", ".join(f"{memory[k]:.0f}" for k in np.linspace(0, len(memory) - 1, 7).astype(int))
        print(f"memory       {told} MB, from when it is live to the end")
    if options.accuracy:
        report_accuracy(session, log, stream, options.calibration, options.seed)


def simulate_session(options: argparse.Namespace) -> Session:
    recording, truth = simulate(
        probe=PROBES[options.channels],
        num_channels=options.channels,
        num_units=options.units,
        duration_s=options.duration,
        seed=options.seed,
    )
    traces = recording.get_traces(0, recording.num_samples)
    places = {n: tuple(xy) for n, xy in zip(truth.unit_names, truth.main_channel_locations, strict=True)}
    samples = np.clip(np.rint(traces / GAIN_UV), -32768, 32767).astype("<i2")
    fs = recording.sampling_frequency
    return Session(samples, fs, GAIN_UV, recording.channel_locations, truth.trains(), places)


def load_session(options: argparse.Namespace) -> Session:
    with read_nwb(options.session) as recording:
        fs, locations = recording.sampling_frequency, recording.channel_locations
        traces = recording.get_traces(0, recording.segments[-1].stop)
    samples = np.clip(np.rint(traces / GAIN_UV), -32768, 32767).astype("<i2")
    trains = {str(unit): train for unit, train in enumerate(load_trains(options.truth, fs))}
    return Session(samples, fs, GAIN_UV, locations, trains, None)


@contextmanager
def serving(address: str | None) -> Iterator[str]:
    """The address of a server, started and ended here when none is given."""
    if address is not None:
        yield address
        return
    port = 4190
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accm_core.cli", "serve", "--port", str(port), "--data", folder]
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                address = f"http://127.0.0.1:{port}"
                wait_ready(address, process, Path(folder) / "log")
                yield address
            finally:
                process.terminate()
                process.wait(60)


def wait_ready(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"The server did not start: {log.read_text()[-2000:]}")
        try:
            if httpx.get(f"{address}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("The server was not ready within two minutes.")


def open_stream(client: Client, session: Session, calibration_s: float, seed: int) -> Stream:
    return client.stream(
        session.sampling_frequency,
        session.samples.shape[1],
        gain_to_uV=session.gain_uV,
        channel_locations=session.locations,
        calibration_s=calibration_s,
        seed=seed,
    )


def receive(stream: Stream, log: Log) -> None:
    for reply in stream:
        now = time.perf_counter()
        if reply.event is None:
            log.spikes.append(reply.spikes)
            log.arrived.append((reply.acked_sample, now))
            log.num_behind += reply.is_behind and log.is_live.is_set()
        else:
            log.events.append(dict(reply.event))
            if reply.event["event"] == "live":
                log.is_live.set()
    log.is_live.set()


def calibrate(stream: Stream, session: Session, log: Log, calibration_s: float) -> int:
    """Send the beginning, wait until the server is live; where to go on."""
    stop, step = (round(s * session.sampling_frequency) for s in (calibration_s, CALIBRATION_MESSAGE_S))
    started = time.monotonic()
    for start in range(0, stop, step):
        stream.send(session.samples[start : min(start + step, stop)])
    log.is_live.wait(900)
    print(f"calibration  {time.monotonic() - started:.1f} s of work for {calibration_s:g} s of recording")
    return stop


def send_live(
    stream: Stream, session: Session, position: int, seconds: float, message_ms: float
) -> tuple[list[tuple[int, int, float]], list[float]]:
    """Send messages as they would come; first sample, length and time of each, and the memory used (MB)."""
    step = round(1e-3 * message_ms * session.sampling_frequency)
    sent, memory = [], []
    worker = find_worker()
    started, next_look = time.perf_counter(), 0.0
    for number in range(round(seconds * session.sampling_frequency / step)):
        rows = np.arange(position, position + step) % len(session.samples)
        part = session.samples[rows[0] : rows[0] + step] if rows[0] < rows[-1] else session.samples[rows]
        pause = started + (number + 1) * step / session.sampling_frequency - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        sent.append((position, step, time.perf_counter()))
        stream.send(part, position)
        position += step
        if worker is not None and time.perf_counter() - started >= next_look:
            memory.append(worker.memory_info().rss / 1e6)
            next_look += MEMORY_EVERY_S
    return sent, memory


def find_worker() -> psutil.Process | None:
    """The session's process, where it is on this machine."""
    for process in psutil.process_iter(["cmdline"]):
        if "service.stream_process" in (process.info["cmdline"] or []):
            return process
    return None


def report_latency(log: Log, sent: list[tuple[int, int, float]], stream: Stream, fs: float) -> None:
    """Of the spikes that the messages sent live complete."""
    lookahead = round(1e-3 * stream.lookahead_ms * fs)
    ends = np.array([first + length for first, length, _ in sent])
    times = np.array([at for _, _, at in sent])
    found = [
        (spikes["sample"].astype(np.int64), at)
        for spikes, (_, at) in zip(log.spikes, log.arrived, strict=True)
    ]
    samples = np.concatenate([sample for sample, _ in found])
    arrived = np.concatenate([np.full(len(sample), at) for sample, at in found])
    completing = np.searchsorted(ends, samples + lookahead, side="left")
    live = (samples + lookahead >= sent[0][0]) & (completing < len(ends))
    delay = 1e3 * (arrived[live] - times[completing[live]])
    p50, p99, p999 = np.percentile(delay, [50, 99, 99.9])
    print(
        f"latency      p50 {p50:.2f} ms, p99 {p99:.2f}, p99.9 {p999:.2f}, largest {delay.max():.1f}, of "
        f"{len(delay)} spikes; beyond a look-ahead of {stream.lookahead_ms:g} ms"
    )


def report_accuracy(session: Session, log: Log, stream: Stream, calibration_s: float, seed: int) -> None:
    """Online and offline, on what follows the calibration."""
    from accm_core.types import ArrayRecording

    fs, stop = session.sampling_frequency, len(session.samples) / session.sampling_frequency
    spikes = np.concatenate(log.spikes)
    online = {u["name"]: spikes["sample"][spikes["unit"] == u["unit"]] / fs for u in stream.units}
    recording = ArrayRecording(
        traces=session.samples * np.float32(session.gain_uV),
        sampling_frequency=fs,
        channel_locations=session.locations,
    )
    sorting = sort(recording, seed=seed, device="cpu")
    offline = {
        name: sorting.sample_index[sorting.unit_index == unit] / fs
        for unit, name in enumerate(sorting.unit_names)
    }
    truth = cut(session.trains, calibration_s, stop)
    for name, trains in (("online", online), ("offline", offline)):
        found = evaluate(
            cut(trains, calibration_s, stop),
            truth,
            sampling_frequency=fs,
            unit_locations=session.unit_locations,
        )
        print(
            f"{name:<13}accuracy {found.accuracy.mean():.4f}, precision {found.precision.mean():.4f}, recall "
            f"{found.recall.mean():.4f}, overlapping {found.total_overlap_recall:.4f}, "
            f"{found.well_detected} of {len(truth)} well detected"
        )


def cut(trains: dict[str, np.ndarray], start: float, stop: float) -> dict[str, np.ndarray]:
    """Spikes within these seconds."""
    return {name: times[(times >= start) & (times < stop)] for name, times in trains.items()}


if __name__ == "__main__":
    main()
