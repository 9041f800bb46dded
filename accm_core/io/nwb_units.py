"""Read units back: our own sorting in full, or the spike times of anyone's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hdmf.common import DynamicTable, VectorIndex
from pynwb import NWBFile
from pynwb.misc import Units

from accm_core.errors import NwbError
from accm_core.io.nwb_file import OpenNwb, explain_read
from accm_core.io.nwb_read import MICROVOLTS_PER_VOLT
from accm_core.io.nwb_series import choose_series
from accm_core.io.nwb_tables import scratch_names
from accm_core.io.remote import Address
from accm_core.types import EmbeddingSample, Segment, Sorting, Templates

_NOT_METRICS = frozenset(
    {
        "spike_times",
        "obs_intervals",
        "electrodes",
        "electrode_group",
        "waveform_mean",
        "waveform_sd",
        "unit_name",
        "quality",
        "quality_reason",
        "spike_amplitudes",
        "spike_probability",
        "spike_overlaps",
        "spike_samples",
    }
)


class SpikeTrains(dict[str, np.ndarray]):
    """Spike times (s, float64, sorted) by unit name.

    Attributes
    ----------
    sampling_frequency : float or None
        Hz, where the file tells.
    """

    sampling_frequency: float | None = None


def read_sorting(file_path: str | Path) -> Sorting:
    """Read a file that `write_nwb` wrote, with or without its raw data.

    Returns
    -------
    Sorting
        As it was written, but: spikes at the same sample are ordered by unit, metrics that were NaN for every
        unit are absent, and templates are zero on channels where they were not stored.

    Raises
    ------
    NwbError
        If the file cannot be read, or accm did not write it.
    """
    with OpenNwb(file_path) as opened, explain_read(opened.file_path, "the units"):
        provenance, embedding = _find_provenance(opened.nwbfile, opened.file_path)
        units = _find_units(opened.nwbfile, provenance["units_path"])
        if units is None and provenance["num_units"] > 0:
            raise NwbError(
                f"{file_path} says that there are {provenance['num_units']} units in "
                f"{provenance['units_path']}, which is not there. Sort the session again."
            )
        return _make_sorting(provenance, units, embedding)


def read_spike_trains(
    file_path: str | Path, units_path: str | None = None, *, without_quality: str | None = None
) -> SpikeTrains:
    """Read the spike times of the units of any NWB file.

    Parameters
    ----------
    units_path : str, optional
        ``units`` or ``processing/MODULE/NAME``. By default what accm wrote last; else ``units``; else
        the only Units table among the processing modules.
    without_quality : str, optional
        Units whose column ``quality`` says this are left out.

    Returns
    -------
    SpikeTrains
        Named by the column ``unit_name`` where each has its own, else by id. Empty where accm found no unit.

    Raises
    ------
    NwbError
        If there is no such table, or it has no spike times.
    """
    with OpenNwb(file_path) as opened, explain_read(opened.file_path, "the units"):
        nwbfile = opened.nwbfile
        trains = SpikeTrains()
        if units_path is None and _is_ours(nwbfile):
            provenance = _find_provenance(nwbfile, opened.file_path)[0]
            units_path = str(provenance["units_path"])
            if provenance["num_units"] == 0:
                trains.sampling_frequency = float(provenance["sampling_frequency"])
                return trains
        table = _find_units(nwbfile, units_path or _only_units(nwbfile, opened.file_path))
        if table is None or "spike_times" not in table.colnames:
            raise NwbError(f"{file_path} has no Units with spike times at {units_path or 'units'}.")
        times = np.split(*_ragged(table, "spike_times"))[: len(table)]
        quality = _texts(table, "quality") if "quality" in table.colnames else ("",) * len(table)
        for name, train, label in zip(_unit_names(table), times, quality, strict=True):
            if label == without_quality:
                continue
            trains[name] = np.sort(np.asarray(train, dtype=np.float64))
        trains.sampling_frequency = _sampling_frequency(table, nwbfile, opened.file_path)
        return trains


def _is_ours(nwbfile: NWBFile) -> bool:
    return any(scratch_names(beside=beside)[0] in nwbfile.scratch for beside in (True, False))


def _find_provenance(
    nwbfile: NWBFile, file_path: Path | Address
) -> tuple[dict[str, Any], DynamicTable | None]:
    for beside in (True, False):  # units beside earlier ones were written after them
        provenance, embedding = scratch_names(beside=beside)
        if provenance in nwbfile.scratch:
            item = nwbfile.scratch[provenance].data
            text = item[()] if hasattr(item, "shape") else item
            try:
                content = json.loads(text)
            except (TypeError, ValueError) as error:
                raise NwbError(
                    f"The provenance in {file_path} cannot be read: {error}. Sort the session again."
                ) from error
            return content, nwbfile.scratch.get(embedding)
    raise NwbError(
        f"{file_path} was not written by accm: it has no provenance of it. Give a file of accm sort."
    )


def _find_units(nwbfile: NWBFile, path: str) -> Units | None:
    parts = path.strip("/").split("/")
    if parts == ["units"]:
        return nwbfile.units
    if len(parts) == 3 and parts[0] == "processing" and parts[1] in nwbfile.processing:
        return nwbfile.processing[parts[1]].data_interfaces.get(parts[2])
    return None


def _only_units(nwbfile: NWBFile, file_path: Path | Address) -> str:
    if nwbfile.units is not None:
        return "units"
    found = [
        f"processing/{module.name}/{name}"
        for module in nwbfile.processing.values()
        for name, item in module.data_interfaces.items()
        if isinstance(item, Units)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NwbError(f"{file_path} has no Units table. Give a file with sorted units.")
    raise NwbError(f"{file_path} has {len(found)} Units tables: {', '.join(found)}. Name one of them.")


def _unit_names(table: Units) -> list[str]:
    if "unit_name" in table.colnames:
        names = [str(name) for name in table["unit_name"].data[:]]
        if len(set(names)) == len(names):
            return names
    return [str(unit) for unit in table.id[:]]


def _sampling_frequency(table: Units, nwbfile: NWBFile, file_path: Path | Address) -> float | None:
    """Rate of the recording: of the waveforms, of the resolution, or of the only raw series."""
    if table.waveform_rate is not None:
        return float(table.waveform_rate)
    if table.resolution is not None and table.resolution > 0:
        return float(1.0 / table.resolution)
    try:
        return choose_series(nwbfile, None, file_path)[0].rate or None
    except NwbError:
        return None


def _ragged(table: Units, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Flat values, and the row at which each unit but the first begins."""
    index = table[name]
    return index.target.data[:], np.asarray(index.data[:], dtype=np.int64)


def _make_sorting(provenance: dict[str, Any], units: Units | None, embedding: DynamicTable | None) -> Sorting:
    unit_index = _unit_index(units)
    sample_index = _per_spike(units, "spike_samples", np.int64)
    order = np.lexsort((unit_index, sample_index))
    return Sorting(
        sampling_frequency=float(provenance["sampling_frequency"]),
        channel_ids=tuple(provenance["channel_ids"]),
        channel_locations=np.array(provenance["channel_locations"], dtype=np.float64).reshape(-1, 2),
        channel_groups=np.array(provenance["channel_groups"], dtype=np.int64),
        bad_channel_ids=tuple(provenance["bad_channel_ids"]),
        unit_ids=np.zeros(0, dtype=np.int64) if units is None else np.asarray(units.id[:], dtype=np.int64),
        unit_names=_texts(units, "unit_name"),
        sample_index=sample_index[order],
        spike_times=_per_spike(units, "spike_times", np.float64)[order],
        unit_index=unit_index[order],
        amplitude_uV=_per_spike(units, "spike_amplitudes", np.float32)[order],
        probability=_per_spike(units, "spike_probability", np.float32)[order],
        is_overlap=_per_spike(units, "spike_overlaps", np.bool_)[order],
        templates=_templates(units, provenance),
        quality=_metrics(units),
        labels=_texts(units, "quality"),
        label_reasons=_texts(units, "quality_reason"),
        embedding=_embedding(embedding, order),
        segments=tuple(Segment(*pair) for pair in provenance["segments"]),
        segment_times=np.array(provenance["segment_times"], dtype=np.float64).reshape(-1, 2),
        provenance=provenance,
    )


def _per_spike(units: Units | None, column: str, dtype: Any) -> np.ndarray:
    """One value a spike, ordered by unit then sample."""
    return np.zeros(0, dtype=dtype) if units is None else _ragged(units, column)[0].astype(dtype)


def _unit_index(units: Units | None) -> np.ndarray:
    if units is None:
        return np.zeros(0, dtype=np.int64)
    ends = _ragged(units, "spike_times")[1]
    return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))


def _texts(units: Units | None, column: str) -> tuple[str, ...]:
    return () if units is None else tuple(str(text) for text in units[column].data[:])


def _metrics(units: Units | None) -> dict[str, np.ndarray]:
    if units is None:
        return {}
    return {
        name: units[name].data[:]
        for name in units.colnames
        if name not in _NOT_METRICS and not isinstance(units[name], VectorIndex)
    }


def _templates(units: Units | None, provenance: dict[str, Any]) -> Templates:
    """Spread the stored waveforms over all sorted channels, µV."""
    num_before = int(provenance["num_before"])
    num_samples, num_channels = int(provenance["num_samples_waveform"]), len(provenance["channel_ids"])
    if units is None:
        empty = np.zeros((0, num_samples, num_channels), dtype=np.float32)
        return Templates(empty, empty, num_before)
    channel_of = {int(row): k for k, row in enumerate(provenance["electrode_rows"])}
    rows, ends = _ragged(units, "electrodes")
    slots = np.array([channel_of[int(row)] for row in rows], dtype=np.int64).reshape(len(ends), -1)
    full = []
    for name in ("waveform_mean", "waveform_sd"):
        stored = (units[name].data[:] * MICROVOLTS_PER_VOLT).astype(np.float32)
        waveforms = np.zeros((len(ends), num_samples, num_channels), dtype=np.float32)
        np.put_along_axis(waveforms, slots[:, np.newaxis, :], stored, axis=2)
        full.append(waveforms)
    return Templates(full[0], full[1], num_before)


def _embedding(table: DynamicTable | None, order: np.ndarray) -> EmbeddingSample:
    if table is None:
        return EmbeddingSample(np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.float32))
    row_of = np.empty(len(order), dtype=np.int64)
    row_of[order] = np.arange(len(order))
    return EmbeddingSample(
        row_of[table["spike"].data[:].astype(np.int64)], table["position"].data[:].astype(np.float32)
    )
