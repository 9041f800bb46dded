"""The calibration of a stream, in a process of its own at low priority: it needs torch, memory and time."""

import multiprocessing
import os
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from accm_core.errors import AccmError, ModelError
from accm_core.online.plan import StreamPlan, check_units, make_plan, measure_shanks
from accm_core.online.sorter import OnlineSpikes
from accm_core.online.units import units_of_sorting
from accm_core.progress import SORT_SHARES, Tally
from accm_core.types import KnownUnits, Segment, Sorting, main_channels, main_heights
from service.stream_hello import DEFAULT_CALIBRATION_S, Hello
from service.stream_spool import SpooledRecording, map_samples

NOISE_S = 10.0
"""Of the stream, on which the noise is measured when the units are known."""
NICENESS = 10
"""So that samples are taken in, and other sessions sorted, meanwhile."""


@dataclass(frozen=True)
class Need:
    """What is known when a session begins.

    Attributes
    ----------
    num_samples : int
        Needed to begin.
    units : list of dict
        Known already, as the client is told; ``amplitude_uV`` may be None until the noise is known.
    """

    num_samples: int
    units: list[dict[str, Any]]


@dataclass(frozen=True)
class Stored:
    """The beginning of the stream: how many samples of the file, and where it has gaps."""

    path: Path
    num_samples: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Calibrated:
    """What a session is sorted with.

    Attributes
    ----------
    plan : StreamPlan
    units : list of dict
        As the client is told.
    spikes : OnlineSpikes or None
        What the sort found, samples as in the file; None when the units were known.
    warning : str
        What went wrong beside; empty if nothing.
    """

    plan: StreamPlan
    units: list[dict[str, Any]]
    spikes: OnlineSpikes | None
    warning: str = ""


@dataclass(frozen=True)
class Refused:
    """Why there is no session."""

    text: str


def run(connection: Connection, hello: Hello, data_folder: Path, device: str) -> None:
    """Tell what is needed; take a `Stored`; report shares of the work; give what was calibrated."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.nice(NICENESS)
    try:
        known = None if hello.model is None else _load(hello.model, data_folder)
        if hello.save_as is not None:
            from accm_core.models import prepare_place

            prepare_place(hello.save_as)
        connection.send(_need(hello, known))
        stored = connection.recv()
        recording = SpooledRecording(
            map_samples(stored.path, hello, stored.num_samples), hello, stored.segments
        )
        connection.send(_calibrate(connection, recording, known, hello, device))
    except AccmError as error:
        connection.send(Refused(str(error)))
    except EOFError:  # the session ended before
        return
    except Exception as error:
        connection.send(Refused(f"The calibration failed: {type(error).__name__}: {error}."))
        raise


def _load(name: str, data_folder: Path) -> Any:
    """Units of the registry or of a sort job, or a model."""
    from accm_core.learning.unit_file import StoredUnits
    from accm_core.models import load_any

    result = data_folder / "jobs" / name / "session_sorted.nwb"
    if result.is_file():
        from accm_core.io.nwb_units import read_sorting

        return units_of_sorting(read_sorting(result))
    loaded = load_any(name)
    return loaded.units if isinstance(loaded, StoredUnits) else loaded


def _need(hello: Hello, known: Any) -> Need:
    """What to wait for; refuses what will not do, before anything is recorded."""
    fs = hello.sampling_frequency
    if isinstance(known, KnownUnits):
        check_units(known, hello.ids, fs)
        if hello.calibration_s is not None:
            raise ModelError(
                f"The model {hello.model!r} holds units that need no calibration. Leave out calibration_s, "
                "or the model."
            )
        return Need(round(NOISE_S * fs), describe_units(known, hello.ids))
    if known is not None:
        from accm_core.learning.classify import check_channels

        check_channels(known, hello.ids)
        if hello.calibration_s is None:
            if known.heads is None:
                raise ModelError(
                    f"The model {hello.model!r} has an encoder alone and knows no units. Give calibration_s "
                    "to sort the first minutes with it, or name a fine-tuned model."
                )
            return Need(round(NOISE_S * fs), _describe_heads(known.card, hello.ids))
    return Need(round((hello.calibration_s or DEFAULT_CALIBRATION_S) * fs), [])


def _calibrate(
    connection: Connection, recording: SpooledRecording, known: Any, hello: Hello, device: str
) -> Calibrated:
    units, spikes, preprocessors = known, None, None
    if known is None or (not isinstance(known, KnownUnits) and hello.calibration_s is not None):
        from accm_core.pipeline import sort

        shares = {stage: share for stage, share in SORT_SHARES.items() if stage not in ("write", "report")}
        tally = Tally(shares)

        def on_progress(stage: str, fraction: float) -> None:
            connection.send(tally.update(stage, fraction)[0])

        sorting = sort(
            recording, hello.params, model=known, device=device, seed=hello.seed, on_progress=on_progress
        )
        if sorting.num_units == 0:
            raise ModelError(_why_no_units(sorting, hello))
        units, spikes = units_of_sorting(sorting), _spikes_of(sorting, recording)
    preprocessors = measure_shanks(recording, hello.params)
    if not isinstance(units, KnownUnits):
        from accm_core.online.finetuned import units_of_model

        units = units_of_model(units, recording, preprocessors, hello.params.snippet)
    plan = make_plan(recording, preprocessors, units, hello.params)
    warning = "" if hello.save_as is None else _save(units, hello)
    return Calibrated(plan, describe_units(units, hello.ids), spikes, warning)


def _why_no_units(sorting: Sorting, hello: Hello) -> str:
    reasons = " ".join(sorting.provenance["warnings"])
    return (
        f"The calibration found no units in {sorting.segment_times[-1, 1]:.0f} s. {reasons} Calibrate on "
        f"more than {hello.calibration_s or DEFAULT_CALIBRATION_S:g} s, lower detect.threshold, or check "
        "gain_to_uV."
    )


def _spikes_of(sorting: Sorting, recording: SpooledRecording) -> OnlineSpikes:
    """What the sort found; channels as the stream counts them."""
    channel_of = np.array([recording.channel_ids.index(name) for name in sorting.channel_ids])
    main = channel_of[sorting.templates.main_channel]
    return OnlineSpikes(
        sample_index=sorting.sample_index,
        unit_index=sorting.unit_index,
        channel_index=main[sorting.unit_index],
        amplitude_uV=sorting.amplitude_uV,
        probability=sorting.probability,
        is_overlap=sorting.is_overlap,
    )


def describe_units(units: KnownUnits, channel_ids: tuple[str, ...]) -> list[dict[str, Any]]:
    """Units as the client is told."""
    main, heights = main_channels(units.templates), main_heights(units.templates)
    return [
        {
            "unit": unit,
            "name": name,
            "channel": channel_ids.index(units.channel_ids[main[unit]]),
            "amplitude_uV": round(float(heights[unit]), 2),
        }
        for unit, name in enumerate(units.names)
    ]


def _describe_heads(card: Any, channel_ids: tuple[str, ...]) -> list[dict[str, Any]]:
    """Units of a fine-tuned model: those that the stream has the channels for, nothing said of their size."""
    here = [
        unit
        for unit in card["units"]
        if all(channel is None or channel in channel_ids for channel in unit["channels"])
    ]
    return [
        {
            "unit": number,
            "name": unit["name"],
            "channel": channel_ids.index(next(c for c in unit["channels"] if c is not None)),
            "amplitude_uV": None,
        }
        for number, unit in enumerate(here)
    ]


def _save(units: KnownUnits, hello: Hello) -> str:
    """Store the units; what went wrong, if anything: the session goes on without."""
    from accm_core.models import store_units

    card = {"seed": hello.seed, "parameters": hello.params.model_dump(), "model": hello.model}
    try:
        store_units(units, str(hello.save_as), card)
    except ModelError as error:
        return f"The units were not stored: {error}"
    return ""


def _leave_with_parent() -> None:
    """End when the session's process is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
