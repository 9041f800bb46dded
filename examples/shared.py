"""What the examples share: their arguments, the probe, Ctrl-C, and spikes as lines of text."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accm_core.client import DEFAULT_ADDRESS, Client, ServiceError, Stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say where and how to sort."""
    parser.add_argument("--server", default=DEFAULT_ADDRESS, help="the accm service (key: ACCM_API_KEY)")
    parser.add_argument("--model", help="model of the service that knows the units; else it calibrates")
    parser.add_argument("--calibration-s", type=float, help="seconds to calibrate on")
    parser.add_argument("--save-as", help="keep what was calibrated as a model of this name")


def add_probe_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument for programs that do not tell where the channels are."""
    parser.add_argument("--probe", type=Path, help="probeinterface JSON with the channels' positions")


def read_probe(path: Path | None, num_channels: int) -> dict[str, Any]:
    """Positions (µm) and shanks in the order of the channels, as ``Client.stream`` takes them."""
    if path is None:
        return {}
    channels: list[int] = []
    places: list[list[float]] = []
    shanks: list[str] = []
    for probe in json.loads(path.read_text())["probes"]:
        places += probe["contact_positions"]
        channels += probe.get("device_channel_indices") or range(len(channels), len(places))
        shanks += probe.get("shank_ids") or [""] * len(probe["contact_positions"])
    if sorted(channels) != list(range(num_channels)):
        sys.exit(f"{path} has no contact for each of the {num_channels} channels.")
    order = sorted(range(num_channels), key=channels.__getitem__)
    known = sorted(set(shanks))
    return {
        "channel_locations": [places[row] for row in order],
        "channel_groups": [known.index(shanks[row]) for row in order],
    }


def stop_on_ctrl_c() -> threading.Event:
    """An event that Ctrl-C sets, so that no message is cut short and the rest can be sorted."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    return stop


@contextmanager
def sorting(
    args: argparse.Namespace, sampling_frequency: float, num_channels: int, **options: Any
) -> Iterator[Stream]:
    """A stream whose replies are printed as they come; at the end of the block the rest is sorted."""
    chosen = {"model": args.model, "calibration_s": args.calibration_s, "save_as": args.save_as}
    try:
        with (
            Client(args.server) as client,
            client.stream(sampling_frequency, num_channels, **chosen, **options) as stream,
        ):
            _say(f"{num_channels} channels at {sampling_frequency:g} Hz, session {stream.session}")
            printer = threading.Thread(target=_print_replies, args=(stream, sampling_frequency))
            printer.start()
            try:
                yield stream
            finally:
                summary = stream.end()
                printer.join()
                _say(f"{summary['samples']} samples, {summary['spikes']} spikes")
    except ServiceError as error:
        sys.exit(str(error))


def _say(text: str) -> None:
    print(text, flush=True)


def _print_replies(stream: Stream, sampling_frequency: float) -> None:
    try:
        for reply in stream:
            if reply.event is not None:
                _say(json.dumps(dict(reply.event)))
            for sample, unit, channel, _, amplitude, probability in reply.spikes.tolist():
                time_s = sample / sampling_frequency
                _say(f"{time_s:.5f} s  unit {unit}  channel {channel}  {amplitude:.0f} µV  {probability:.2f}")
    except ServiceError:
        pass  # the sending side says it
