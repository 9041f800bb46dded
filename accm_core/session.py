"""A whole session, from its file to the files that come of it: what the command and the service both do."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from accm_core.errors import NwbError
from accm_core.io.nwb_tables import Source
from accm_core.io.nwb_write import UnitsMode, write_nwb
from accm_core.learning.checkpoint import Model
from accm_core.learning.finetune import finetune
from accm_core.models import store_model
from accm_core.params import SorterParams
from accm_core.pipeline import sort
from accm_core.report import write_report
from accm_core.types import ProgressCallback, Sorting


def sort_session(
    recording: Source,
    target: Path,
    *,
    report: Path | None,
    params: SorterParams,
    model: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    units: UnitsMode = "fail",
    link: bool = False,
    overwrite: bool = False,
    on_progress: ProgressCallback,
) -> Sorting:
    """Sort a session that is open, write the NWB file, and the report.

    Parameters
    ----------
    recording : Source
    target : Path
        NWB file to write.
    report : Path, optional
        HTML file to write; none when None.
    params, model, device, seed
        As for `sort`.
    units, link, overwrite
        As for `write_nwb`.
    on_progress : callable
        Stages 'write' and 'report' come after those of `sort`.

    Returns
    -------
    Sorting

    Raises
    ------
    AccmError
        Before the long work, if the session has Units already or the disk is too small; else as `sort` and
        `write_nwb`.
    """
    _check_units(recording, units)
    _check_space(target.parent, 0 if link else recording.num_bytes)
    sorting = sort(recording, params, model=model, device=device, seed=seed, on_progress=on_progress)
    on_progress("write", 0.0)
    write_nwb(sorting, recording, target, units=units, link=link, overwrite=overwrite)
    on_progress("write", 1.0)
    # what the file tells of the reading, the report tells as well
    read = {"left_out": recording.left_out, "read_warnings": recording.warnings}
    sorting = replace(sorting, provenance={**sorting.provenance, **read})
    if report is not None:
        on_progress("report", 0.0)
        write_report(sorting, report, title=recording.source_name)
        on_progress("report", 1.0)
    return sorting


def finetune_session(
    recording: Source,
    labels: Mapping[str, np.ndarray],
    name: str,
    *,
    session_name: str,
    labels_name: str,
    params: SorterParams,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    on_progress: ProgressCallback,
) -> tuple[Model, Path]:
    """Fine-tune on a session that is open, and put the model into the registry.

    Parameters
    ----------
    recording : Source
    labels : mapping of str to ndarray
        Times of spikes (s, session clock) by the unit's name.
    name : str
        Of the model.
    session_name, labels_name : str
        Written into the card.
    params, device, seed, on_progress
        As for `finetune`.
    overwrite : bool
        Replace a model of this name.

    Returns
    -------
    Model
    Path
        Its file.
    """
    model = finetune(recording, labels, params, device=device, seed=seed, on_progress=on_progress)
    names = {"name": name, "session": session_name, "labels": labels_name}
    model = replace(model, card={**model.card, **names}, sha256="")
    return model, store_model(model, name, overwrite=overwrite)


def _check_space(folder: Path, needed: int) -> None:
    """Refuse a disk on which the copy of the session would not fit."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NwbError(
            f"The output needs about {needed / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free. "
            "Make room, choose another folder with --output, or write a small file with --link."
        )


def _check_units(recording: Source, units: UnitsMode) -> None:
    """Refuse a session that has Units already, unless told what to do with them."""
    if recording.has_units and units == "fail":
        raise NwbError(
            f"{recording.file_path} has a Units table already. Say --units replace to leave it out of the "
            "output, or --units processing to keep it and put ours beside it."
        )
