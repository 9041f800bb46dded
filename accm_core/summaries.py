"""What a command says of a recording, a sorting and an evaluation: for JSON, and for a person."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accm_core.terminal import format_seconds

if TYPE_CHECKING:
    from accm_core.io.nwb_tables import Source
    from accm_core.learning.checkpoint import Model
    from accm_core.types import Sorting

MAX_NAMED = 8  # gaps or channels named one by one


def describe_recording(recording: "Source") -> dict[str, Any]:
    """Describe what would be sorted, as JSON holds it."""
    spans = recording.segment_times
    return {
        "file": str(recording.file_path),
        "series": recording.series_path,
        "dtype": recording.dtype,
        "channels": recording.num_channels,
        "shanks": len(set(recording.channel_groups.tolist())),
        "left_out": dict(recording.left_out),
        "sampling_frequency": recording.sampling_frequency,
        "samples": recording.num_samples,
        "duration_s": round(float((spans[:, 1] - spans[:, 0]).sum()), 6),
        "start_s": round(float(spans[0, 0]), 6),
        "stop_s": round(float(spans[-1, 1]), 6),
        "gaps": [[round(float(a), 6), round(float(b), 6)] for a, b in recording.gaps],
        "geometry": recording.geometry_source or None,
        "has_units": recording.has_units,
        "warnings": list(recording.warnings),
    }


def recording_text(result: dict[str, Any]) -> str:
    """Lay out ``describe_recording`` in lines."""
    left_out = [f"{name} ({reason})" for name, reason in result["left_out"].items()]
    gaps = [f"{start:.3f} to {stop:.3f} s" for start, stop in result["gaps"]]
    rows = {
        "file": [result["file"]],
        "series": [f"{result['series']} ({result['dtype']})"],
        "channels": [f"{result['channels']} on {_several(result['shanks'], 'shank')}"],
        "left out": _first_few(left_out) or ["none"],
        "rate": [f"{result['sampling_frequency']:g} Hz"],
        "duration": [f"{format_seconds(result['duration_s'])}, {result['samples']:,} samples"],
        "session time": [f"{result['start_s']:.3f} to {result['stop_s']:.3f} s"],
        "gaps": _first_few(gaps) or ["none"],
        "positions": [result["geometry"] or "unknown: the channels of a shank are taken as neighbours"],
        "units": [
            "the file has a Units table: see --units of accm sort" if result["has_units"] else "none yet"
        ],
        "problems": result["warnings"] or ["none"],
    }
    lines = []
    for name, values in rows.items():
        lines.append(f"{name:<13}{values[0]}")
        lines += [f"{'':<13}{value}" for value in values[1:]]
    return "\n".join(lines)


def describe_sorting(sorting: "Sorting") -> dict[str, Any]:
    """Count what is in a sorting, as JSON holds it."""
    from accm_core.report import list_warnings

    labels = list(sorting.labels)
    duration = float((sorting.segment_times[:, 1] - sorting.segment_times[:, 0]).sum())
    return {
        "units": sorting.num_units,
        **{label: labels.count(label) for label in ("good", "mua", "noise")},
        "spikes": len(sorting.sample_index),
        "duration_s": round(duration, 3),
        "channels": len(sorting.channel_ids),
        "bad_channels": list(sorting.bad_channel_ids),
        "warnings": list_warnings(sorting),
    }


def sorting_text(result: dict[str, Any]) -> str:
    """Lay out the result of a sort in lines."""
    speed = result["duration_s"] / max(result["elapsed_s"], 1e-3)
    lines = [
        f"units        {result['units']} "
        f"({result['good']} good, {result['mua']} mua, {result['noise']} noise)",
        f"spikes       {result['spikes']:,}",
        f"time         {format_seconds(result['elapsed_s'])} for {format_seconds(result['duration_s'])}"
        f" on {result['channels']} channels ({speed:.1f} times real time)",
        f"sorted NWB   {result['output']}",
    ]
    if result["report"] is not None:
        lines.append(f"report       {result['report']}")
    return "\n".join(lines)


def _first_few(names: list[str]) -> list[str]:
    more = [f"and {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return names[:MAX_NAMED] + more


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def simulation_text(result: dict[str, Any]) -> str:
    """Lay out the result of a simulation in lines."""
    return "\n".join(
        [
            f"units        {result['units']}, {result['spikes']:,} spikes",
            f"length       {format_seconds(result['duration_s'])} on {result['channels']} channels",
            f"recording    {result['output']}",
            f"truth        {result['truth']}",
        ]
    )


def models_text(result: dict[str, Any]) -> str:
    """Lay out the list of models in lines."""
    lines = []
    for model in result["models"]:
        units = "" if model["units"] is None else _several(model["units"], "unit")
        what = model["problem"] or f"{model['kind']:<10} {units:<10} {model['bytes'] / 1e6:.1f} MB"
        lines.append(f"{model['name']:<20} {what}")
    return "\n".join([*lines, f"in {result['folder']}"])


def model_text(result: dict[str, Any]) -> str:
    """Lay out a model's card in lines; its parameters are in the JSON."""
    card = result["card"]
    lines = [
        f"name         {result['name']}",
        f"file         {result['file']}",
        f"sha256       {result['sha256']}",
    ]
    lines += [
        f"{key:<13}{card[key]}" for key in ("kind", "version", "seed", "session", "labels") if key in card
    ]
    lines += [f"{key.replace('_', ' '):<21}{value}" for key, value in card.get("training", {}).items()]
    for unit in card.get("units", []):
        learned = f"{unit['labels']} labels, " if "labels" in unit else ""
        lines.append(f"unit         {unit['name']}: {learned}channel {unit['main_channel']}")
    return "\n".join(lines)


def pretrained_text(result: dict[str, Any]) -> str:
    """Lay out the result of pretraining in lines."""
    sessions = f", {len(result['sessions'])} sessions" if result["sessions"] else ""
    return "\n".join(
        [
            f"learned from {result['simulated_recordings']:,} simulated recordings{sessions}",
            f"time         {format_seconds(result['elapsed_s'])}",
            f"model        {result['name']} ({result['file']})",
            f"use it       accm sort SESSION --model {result['name']}",
        ]
    )


def describe_finetuned(model: "Model") -> dict[str, Any]:
    """Tell what a fine-tuned model learned, as JSON holds it."""
    return {
        "sha256": model.sha256,
        "units": [unit["name"] for unit in model.card["units"]],
        "left_out": dict(model.card["left_out"]),
        **model.card["training"],
    }


def finetuned_text(result: dict[str, Any]) -> str:
    """Lay out the result of fine-tuning in lines."""
    return "\n".join(
        [
            f"units        {len(result['units'])}: {', '.join(_first_few(result['units']))}",
            f"learned from {result['labelled_spikes']:,} labelled spikes",
            f"time         {format_seconds(result['elapsed_s'])}",
            f"model        {result['name']} ({result['file']})",
            f"use it       accm sort SESSION --model {result['name']}",
        ]
    )


def job_text(job: Mapping[str, Any]) -> str:
    """Lay out a job of a service in lines."""
    lines = [f"job          {job['id']}", f"kind         {job['kind']}", f"state        {_state_text(job)}"]
    lines += [f"{key:<13}{job[key]}" for key in ("input", "model", "name", "error") if job.get(key)]
    if job.get("eta_s") is not None:
        lines.append(f"time left    {format_seconds(job['eta_s'])}")
    return "\n".join([*lines, *(f"log          {line}" for line in job.get("log", ()))])


def jobs_text(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the jobs of a service, one in a line."""
    lines = [f"{job['id']}  {job['kind']:<9} {_state_text(job):<24} {job['input']}" for job in jobs]
    return "\n".join(lines) if lines else "no jobs"


def _state_text(job: Mapping[str, Any]) -> str:
    if job["state"] != "running":
        return str(job["state"])
    return f"running {job['fraction']:4.0%}  {job['stage'] or ''}"


def server_text(address: str, about: dict[str, Any]) -> str:
    """Lay out what a service says of itself."""
    return "\n".join(
        [
            f"service      {address}, accm {about['version']}",
            f"device       {', '.join([about['device'], *about['gpus']])}",
            f"disk         {about['disk']['free'] / 1e9:.1f} GB free",
        ]
    )


def remote_text(result: dict[str, Any]) -> str:
    """Lay out the result of a sort on a service."""
    labels = ", ".join(f"{count} {label}" for label, count in result["labels"].items())
    took, length = format_seconds(result["elapsed_s"]), format_seconds(result["duration_s"])
    return "\n".join(
        [
            f"units        {result['units']} ({labels})",
            f"spikes       {result['spikes']:,}",
            f"time         {took} for {length}",
            fetched_text(result),
        ]
    )


def fetched_text(result: dict[str, Any]) -> str:
    """Lay out which files were fetched."""
    lines = [f"output       {result['output']}"]
    return "\n".join(lines if result["report"] is None else [*lines, f"report       {result['report']}"])
