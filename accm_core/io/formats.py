"""Open a recording in any format that SpikeInterface reads, and say in words what is wrong with it."""

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import probeinterface

from accm_core.errors import NwbError, ParamsError, RecordingError
from accm_core.io.nwb_file import first_line
from accm_core.io.nwb_signal import find_dead, look_at
from accm_core.io.spikeinterface import SpikeInterfaceRecording, read_spikeinterface

SAVED = "spikeinterface"
"""The format of what SpikeInterface itself saved: a folder, a Zarr store, or JSON."""
_NOT_FILES = frozenset({"numpy", "ibl"})
_NWB = frozenset({"nwb", "nwbtimeseries"})
_STREAM = ("stream_id", "stream_name")
_PICKLES = (".pkl", ".pickle")


def read_format(
    path: str | Path,
    format_name: str,
    *,
    stream: str | None = None,
    probe: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> SpikeInterfaceRecording:
    """Open a recording of an acquisition system, or one that SpikeInterface saved, for sorting.

    Parameters
    ----------
    path : str or Path
        File or folder, as SpikeInterface's extractor wants it. Read only what you trust: SpikeInterface
        runs what a saved JSON names.
    format_name : str
        Name of SpikeInterface's extractor ('spikeglx', 'openephysbinary', 'intan', 'binary', ...), or
        'spikeinterface' for what `spikeinterface.load` reads.
    stream : str, optional
        Name or id of the stream; needed where there are several.
    probe : str or Path, optional
        probeinterface JSON with the positions of the channels; wins over those of the recording.
    options : mapping, optional
        Further arguments of the extractor, as ``sampling_frequency`` of 'binary'.

    Returns
    -------
    SpikeInterfaceRecording

    Raises
    ------
    ParamsError
        If the format, the stream or an option is not known.
    RecordingError
        If it cannot be read as this format, or holds no signal.
    """
    file_path, options = Path(path), dict(options or {})
    if not file_path.exists():
        raise RecordingError(f"There is no {file_path}. Check its name and folder.")
    if format_name == SAVED:
        if stream is not None or options:
            raise ParamsError(f"The format {SAVED} has no streams and no options. Leave them out.")
        recording = _load_saved(file_path)
    else:
        recording = _extract(file_path, format_name, stream, options)
    if probe is not None:
        _set_probe(recording, Path(probe))
    left_out = _find_dead(recording, str(file_path))
    names = [str(channel) for channel in recording.get_channel_ids()]
    kept = [k for k in range(len(names)) if k not in left_out]
    start_time, warnings = _start_time(recording, file_path)
    return read_spikeinterface(
        recording.select_channels(recording.get_channel_ids()[kept]) if left_out else recording,
        file_path=file_path,
        series_path=str(getattr(recording, "stream_name", None) or format_name),
        left_out=tuple((names[k], reason) for k, reason in sorted(left_out.items())),
        start_time=start_time,
        warnings=warnings,
    )


def list_formats() -> list[str]:
    """Names that `read_format` takes, in alphabetical order."""
    return sorted({*_extractors(), SAVED})


def _extractors() -> dict[str, Any]:
    """SpikeInterface's extractors of files, by name."""
    from spikeinterface.extractors import recording_extractor_full_dict
    from spikeinterface.extractors.neoextractors import neo_recording_class_dict

    known = {**recording_extractor_full_dict, **neo_recording_class_dict}
    return {name: extractor for name, extractor in known.items() if name not in _NOT_FILES | _NWB}


def _load_saved(file_path: Path) -> Any:
    from spikeinterface.core import BaseRecording, load

    pickles = [file_path, *(file_path / f"cached{end}" for end in _PICKLES)]
    if any(pickle.suffix in _PICKLES and pickle.exists() for pickle in pickles):
        raise RecordingError(
            f"{file_path} is or holds a pickle, which can run any code and is not read. Save the recording "
            "again with SpikeInterface, as a folder, Zarr or JSON."
        )
    try:
        loaded = load(file_path, base_folder=True) if file_path.is_file() else load(file_path)
    except Exception as error:  # any error of a parser of foreign files
        raise _unreadable(file_path, SAVED, error) from error
    if not isinstance(loaded, BaseRecording):
        raise RecordingError(
            f"{file_path} holds a {type(loaded).__name__}, not a recording: nothing to sort."
        )
    return loaded


def _extract(file_path: Path, format_name: str, stream: str | None, options: dict[str, Any]) -> Any:
    """Open with the extractor of this name."""
    if format_name in _NWB:
        raise ParamsError("NWB needs no --format: give the file alone.")
    extractors = _extractors()
    if format_name not in extractors:
        raise ParamsError(
            f"The format {format_name!r} is not known. Use one of: {', '.join(list_formats())}."
        )
    extractor = extractors[format_name]
    signature = inspect.signature(extractor)
    try:
        reads_streams = hasattr(extractor, "get_streams")
        if not reads_streams and stream is not None:
            raise ParamsError(f"The format {format_name} has no streams. Leave out --series.")
        # what is wrong with the options is told before the file is touched
        _check_options(signature, format_name, options)
        if reads_streams:
            options = options | _choose_stream(extractor, file_path, stream, options, signature)
        recording = extractor(file_path, **options)
    except (ParamsError, RecordingError):
        raise
    except Exception as error:  # any error of a parser of foreign files
        left = [
            name for name in list(signature.parameters)[1:] if name not in _STREAM and name not in options
        ]
        raise _unreadable(file_path, format_name, error, left) from error
    return recording


def _check_options(signature: inspect.Signature, format_name: str, options: dict[str, Any]) -> None:
    names = list(signature.parameters)[1:]  # the first is the path
    unknown = [name for name in options if name not in names]
    if unknown:
        raise ParamsError(
            f"The format {format_name} has no option {unknown[0]!r}. It has: {', '.join(names) or 'none'}."
        )
    missing = [
        name
        for name in names
        if signature.parameters[name].default is inspect.Parameter.empty and name not in options
    ]
    if missing:
        raise ParamsError(
            f"The format {format_name} needs {', '.join(missing)}: say --format-option {missing[0]}=VALUE."
        )


def _choose_stream(
    extractor: Any,
    file_path: Path,
    stream: str | None,
    options: dict[str, Any],
    signature: inspect.Signature,
) -> dict[str, str]:
    """The only stream, or the one that was asked for, as the extractor's argument."""
    if any(name in options for name in _STREAM):
        raise ParamsError("Name the stream with --series, not as an option.")
    if "stream_name" not in signature.parameters:  # MEArec has one
        if stream is not None:
            raise ParamsError(f"{file_path} has one stream only. Leave out --series.")
        return {}
    of_neo = {k: v for k, v in options.items() if k not in ("all_annotations", "use_names_as_ids")}
    names, ids = extractor.get_streams(file_path, **of_neo)
    listed = ", ".join(names)
    if stream is None:
        if len(names) == 1:
            return {"stream_name": names[0]}
        raise RecordingError(
            f"{file_path} has {len(names)} streams: {listed}. Name one, as in --series {names[0]}."
        )
    if names.count(stream) == 1:
        return {"stream_name": stream}
    if stream in ids:
        return {"stream_id": stream}
    raise RecordingError(f"{file_path} has no stream {stream!r}. Its streams: {listed}. Name one of them.")


def _set_probe(recording: Any, file_path: Path) -> None:
    try:
        group = probeinterface.read_probeinterface(file_path)
        has_shanks = all(one.shank_ids is not None for one in group.probes)
        recording.set_probegroup(group, group_mode="by_shank" if has_shanks else "by_probe")
    except FileNotFoundError:
        raise NwbError(f"There is no probe file {file_path}. Check its name and folder.") from None
    except Exception as error:  # any error of a parser of foreign text
        raise NwbError(
            f"The probe file {file_path} cannot be used for this recording: {first_line(error)}. Give the "
            "JSON that probeinterface writes, with device_channel_indices for its channels."
        ) from error


def _find_dead(recording: Any, name: str) -> dict[int, str]:
    """Channels that hold no signal, with the reason, by position; looked at in the longest segment."""
    lengths = [recording.get_num_samples(segment_index=k) for k in range(recording.get_num_segments())]
    if recording.get_num_channels() == 0 or sum(lengths) == 0:
        return {}  # `read_spikeinterface` refuses it
    longest = int(np.argmax(lengths))

    def read(start: int, stop: int) -> np.ndarray:
        traces: np.ndarray = recording.get_traces(segment_index=longest, start_frame=start, end_frame=stop)
        return traces

    try:
        look = look_at(read, lengths[longest], float(recording.get_sampling_frequency()))
    except Exception as error:  # any error of a reader of foreign files
        raise RecordingError(
            f"Cannot read the samples of {name}: {first_line(error)}. The files may be damaged or cut short; "
            "copy the recording again."
        ) from error
    return find_dead(look, name, [str(channel) for channel in recording.get_channel_ids()], {})


def _start_time(recording: Any, file_path: Path) -> tuple[datetime, tuple[str, ...]]:
    """When the recording began; where its files do not tell, when they were last changed, and a warning.

    A time without a zone is taken as local.
    """
    notes = getattr(getattr(recording, "neo_reader", None), "raw_annotations", None)
    if notes:
        block = notes["blocks"][recording.block_index]
        for part in (block, *block.get("segments", ())):
            when = part.get("rec_datetime")
            if isinstance(when, datetime):
                return when.astimezone(), ()
    changed = datetime.fromtimestamp(file_path.stat().st_mtime).astimezone()
    return changed, (
        "The recording does not tell when it began; the output's session_start_time is when "
        f"{file_path.name} was last changed, {changed:%Y-%m-%d %H:%M}.",
    )


def _unreadable(
    file_path: Path, format_name: str, error: Exception, options: Sequence[str] = ()
) -> RecordingError:
    takes = f" It also takes --format-option {', '.join(options)}." if options else ""
    return RecordingError(
        f"{file_path} cannot be read as {format_name}: {first_line(error)}. Check the format and that "
        f"nothing is missing beside it.{takes}"
    )
