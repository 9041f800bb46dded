"""Write a sorted session: the whole file with our Units added, or a small one that links to the raw data."""

import contextlib
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import h5py
from pynwb import NWBHDF5IO, NWBFile, ProcessingModule

from accm_core import __version__
from accm_core.errors import NwbError
from accm_core.io.nwb_read import NwbRecording, read_nwb
from accm_core.io.nwb_session import make_session
from accm_core.io.nwb_tables import (
    PROCESSING_UNITS,
    Source,
    make_embedding,
    make_provenance,
    make_units,
    remove_scratch,
    scratch_names,
)
from accm_core.io.remote import Address
from accm_core.io.spikeinterface import SpikeInterfaceRecording
from accm_core.types import Sorting

UnitsMode = Literal["fail", "replace", "processing"]
PROCESSING_MODULE = "ecephys"
LINK_ABOVE_BYTES = 1 << 20
"""With ``link``, larger arrays of the session are linked, smaller ones copied."""


def write_nwb(
    sorting: Sorting,
    source: Source | str | Path | Address,
    file_path: str | Path,
    *,
    units: UnitsMode = "fail",
    link: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the session with its units to a new file, whole or not at all.

    Parameters
    ----------
    sorting : Sorting
    source : NwbRecording, SpikeInterfaceRecording, str, Path or Address
        The session that was sorted. Never changed. Of one that is not NWB a new session is written, with the
        electrodes and the units but without the raw data.
    file_path : str or Path
        The file to write.
    units : {'fail', 'replace', 'processing'}
        When the session has a Units table: refuse, leave it out, or keep it and put ours in
        ``processing/ecephys``.
    link : bool
        Write a small file whose raw data are links to the session, by a path relative to the new file.
    overwrite : bool
        Replace ``file_path`` where it exists.

    Returns
    -------
    Path
        ``file_path``.

    Raises
    ------
    NwbError
        If the output exists or is the session, the session has units and `units` is 'fail', the sorting
        does not belong to the session, there is no NWB file to link to, or the disk refuses.

    Notes
    -----
    The file is written under a temporary name in the same folder, flushed to the disk and renamed, so that
    nobody ever sees half of it. Raw data are copied as they are stored, compressed; memory stays flat.
    """
    target = Path(file_path)
    if isinstance(source, SpikeInterfaceRecording):
        return _write_new(sorting, source, target, link=link, overwrite=overwrite)
    if not isinstance(source, NwbRecording):
        with read_nwb(source, series=sorting.provenance.get("series_path")) as recording:
            return write_nwb(sorting, recording, target, units=units, link=link, overwrite=overwrite)
    if link and isinstance(source.file_path, Address):
        raise NwbError(
            f"NWB cannot link to an address ({source.file_path}). Write without link, which copies the "
            "session, or download it first."
        )
    for held in (source.file_path, source.raw_path):
        _check_target(held, target, overwrite=overwrite)
    with source.reopen() as opened, _temporary(target) as temporary, warnings.catch_warnings():
        # pynwb warns of other tables' old spellings on export; none of it is ours
        warnings.simplefilter("ignore")
        nwbfile = opened.nwbfile
        _check_units(nwbfile, units, source.file_path)
        if units == "replace":
            _remove_units(nwbfile)
        _add_units(nwbfile, sorting, source)
        nwbfile.generate_new_id(recurse=False)  # another file; what is copied keeps its identity
        with _LinkingIO(temporary, "w") if link else _CopyingIO(temporary, "w") as io:
            if link:
                io.raw_name = source.dataset_name
            io.export(src_io=opened.io, nwbfile=nwbfile)
    return target


def _write_new(
    sorting: Sorting, source: SpikeInterfaceRecording, target: Path, *, link: bool, overwrite: bool
) -> Path:
    """Write the units of a recording that is not NWB, in a session of their own."""
    if link:
        raise NwbError(
            f"{source.source_name} is not NWB: there are no raw data to link to. Write without link."
        )
    _check_target(source.file_path, target, overwrite=overwrite)
    with _temporary(target) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pynwb's about the temporary name
        nwbfile = make_session(source)
        _add_units(nwbfile, sorting, source)
        with NWBHDF5IO(temporary, "w") as io:
            io.write(nwbfile)
    return target


class _CopyingIO(NWBHDF5IO):
    """Write arrays that the session links to in other files as copies: the new file stands alone."""

    def write_link(self, parent: h5py.Group, builder: Any, export_source: str | None = None) -> Any:
        """Write one link, or the array at its end; pynwb calls this for each."""
        data = getattr(builder.builder, "data", None)
        if isinstance(data, h5py.Dataset) and not _is_same(data.file.filename, export_source):
            parent.copy(data, parent, name=builder.name)
            return None
        return super().write_link(parent, builder, export_source=export_source)


class _LinkingIO(NWBHDF5IO):
    """Write the sorted series, and other large arrays of the session, as links to where they are."""

    raw_name = ""

    def write_dataset(self, parent: h5py.Group, builder: Any, **kwargs: Any) -> Any:
        """Write or link one array; pynwb calls this for each."""
        data = builder.data
        if isinstance(data, h5py.Dataset) and (data.nbytes > LINK_ABOVE_BYTES or data.name == self.raw_name):
            folder = Path(parent.file.filename).resolve().parent
            parent[builder.name] = h5py.ExternalLink(_relative(data.file.filename, folder), data.name)
            return None
        return super().write_dataset(parent, builder, **kwargs)


def _is_same(file_name: str, other: str | None) -> bool:
    return other is not None and Path(file_name).resolve() == Path(other).resolve()


def _relative(file_name: str, folder: Path) -> str:
    return os.path.relpath(Path(file_name).resolve(), folder)


def _check_target(source: Path | Address | None, target: Path, *, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise NwbError(f"The folder {target.parent} does not exist. Make it, or choose another.")
    if target.is_dir():
        raise NwbError(f"{target} is a folder; the name of a file is needed.")
    if not target.exists():
        return
    if isinstance(source, Path) and target.samefile(source):
        raise NwbError(
            f"The output {target} is the session itself, which is never changed. Choose another name."
        )
    if not overwrite:
        raise NwbError(f"{target} exists. Choose another name, or ask for it to be overwritten.")


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Give a name to write under; rename it to ``target`` when all went well, remove it when not."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(target)
        _flush(target.parent)
    except (OSError, RuntimeError) as error:
        reason = _system_reason(error)
        if not reason:
            raise
        raise NwbError(f"Cannot write {target}: {reason}. Check the disk's space and permissions.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _system_reason(error: OSError | RuntimeError) -> str:
    """Say what the system objected to; empty where it was not the system. HDF5 hides it in its own words."""
    told = re.search(r"error message = '([^']*)'", str(error))
    if told:
        return told[1]
    return (error.strerror or str(error)) if isinstance(error, OSError) else ""


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_units(nwbfile: NWBFile) -> None:
    """Leave out the Units table, and what an earlier sort put beside one."""
    if nwbfile.units is not None:
        nwbfile._remove_child(nwbfile.units)
        nwbfile.fields.pop("units")
    module = nwbfile.processing.get(PROCESSING_MODULE)
    if module is not None and PROCESSING_UNITS in module.data_interfaces:
        module._remove_child(module.data_interfaces[PROCESSING_UNITS])
        module.data_interfaces.pop(PROCESSING_UNITS)
    for beside in (False, True):
        for name in scratch_names(beside=beside):
            remove_scratch(nwbfile, name)


def _add_units(nwbfile: NWBFile, sorting: Sorting, source: Source) -> None:
    """Put units, provenance and embedding into the open session.

    Notes
    -----
    A Units table without rows is a violation to nwbinspector: where no unit was found there is no table, and
    the provenance says so.
    """
    beside = nwbfile.units is not None
    path = f"processing/{PROCESSING_MODULE}/{PROCESSING_UNITS}" if beside else "units"
    if sorting.num_units > 0:
        table = make_units(sorting, source, nwbfile, path.split("/")[-1])
        if beside:
            _ecephys(nwbfile).add(table)
        else:
            nwbfile.units = table
    provenance_name, embedding_name = scratch_names(beside=beside)
    nwbfile.add_scratch(make_provenance(sorting, source, path, provenance_name))
    embedding = make_embedding(sorting, embedding_name)
    if embedding is not None:
        nwbfile.add_scratch(embedding)
    earlier = (
        [] if nwbfile.was_generated_by is None else [list(map(str, row)) for row in nwbfile.was_generated_by]
    )
    ours = ["accm", __version__]
    nwbfile.fields["was_generated_by"] = [*(row for row in earlier if row != ours), ours]
    nwbfile.set_modified()


def _check_units(nwbfile: NWBFile, mode: UnitsMode, source: Path | Address) -> None:
    """Refuse units that are there already, where they are not to be replaced or kept."""
    module = nwbfile.processing.get(PROCESSING_MODULE)
    path = "Units table"
    taken = nwbfile.units is not None and mode == "fail"
    if module is not None and PROCESSING_UNITS in module.data_interfaces:
        path, taken = f"processing/{PROCESSING_MODULE}/{PROCESSING_UNITS}", True
    elif any(name in nwbfile.scratch for name in scratch_names(beside=False)) and nwbfile.units is None:
        path, taken = "sorting by accm (without units)", True
    if taken and mode != "replace":
        raise NwbError(
            f"{source} has a {path} already. Choose units=replace to leave it out of the new file"
            + ("." if mode == "processing" else ", or units=processing to keep it and put ours beside it.")
        )


def _ecephys(nwbfile: NWBFile) -> ProcessingModule:
    if PROCESSING_MODULE not in nwbfile.processing:
        nwbfile.create_processing_module(PROCESSING_MODULE, "processed extracellular data")
    return nwbfile.processing[PROCESSING_MODULE]
