"""A sorting as NWB tables: Units, provenance and the embedding for pictures."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hdmf.common import DynamicTable, DynamicTableRegion, VectorData, VectorIndex
from pynwb import NWBFile
from pynwb.core import ScratchData
from pynwb.misc import Units

from accm_core import __version__
from accm_core.errors import NwbError
from accm_core.io.nwb_read import MICROVOLTS_PER_VOLT, NwbRecording
from accm_core.io.spikeinterface import SpikeInterfaceRecording
from accm_core.types import Sorting

Source = NwbRecording | SpikeInterfaceRecording
"""What was sorted."""
PROCESSING_UNITS = "units_accm"
"""Name of our table where the session keeps its own."""
PROVENANCE = "accm_provenance"
EMBEDDING = "accm_embedding"
MAX_ELECTRODES = 32
"""Waveforms are stored on this many channels at most: those nearest to each unit's main channel."""
METRICS = {
    "num_spikes": "number of spikes",
    "firing_rate": "spikes per second of what was observed (Hz)",
    "snr": "peak of the mean waveform on its main channel over the noise level (MAD) there",
    "amplitude_median": "median of the spikes' amplitudes (µV)",
    "isi_violations_ratio": "rate of contaminating spikes over the rate of all, from refractory violations",
    "isi_violations_count": "intervals between spikes shorter than the refractory time",
    "presence_ratio": "share of the session's time bins in which the unit fired",
    "amplitude_cutoff": "estimated share of spikes lost below the detection threshold",
}
_TEXT = {
    "unit_name": "name of the unit: the fine-tuned model's, or its id as text",
    "quality": "good, mua (more than one neuron) or noise",
    "quality_reason": "why a unit is not good; empty when it is",
}


def scratch_names(*, beside: bool) -> tuple[str, str]:
    """Names of provenance and embedding in the scratch space; other ones for units beside earlier ones."""
    end = "_processing" if beside else ""
    return PROVENANCE + end, EMBEDDING + end


def spike_order(sorting: Sorting) -> np.ndarray:
    """Rows of the spikes ordered by unit, then sample: the order of the ragged columns."""
    return np.lexsort((sorting.sample_index, sorting.unit_index))


def make_units(sorting: Sorting, source: Source, nwbfile: NWBFile, name: str) -> Units:
    """Make the Units table; it is not yet part of the file.

    Raises
    ------
    NwbError
        If the sorting has channels that the session has not.
    """
    fs = sorting.sampling_frequency
    rows = _electrode_rows(sorting, source)
    order = spike_order(sorting)
    ends = np.cumsum(np.bincount(sorting.unit_index, minlength=sorting.num_units)).astype(np.uint64)
    columns = _ragged(
        "spike_times", "time of each spike (s, session clock)", sorting.spike_times[order], ends
    )
    columns += _observed(sorting)
    slots = nearest_channels(sorting)
    electrodes = DynamicTableRegion(
        name="electrodes",
        description="electrodes of each unit, in the order of the waveforms; the main one first",
        data=rows[slots].ravel(),
        table=nwbfile.electrodes,
    )
    columns += _index(electrodes, np.full(len(slots), slots.shape[1]).cumsum().astype(np.uint64))
    columns += _per_unit(sorting, rows, slots, nwbfile)
    for column, text, values in (
        ("spike_amplitudes", "amplitude of each spike on the main channel (µV)", sorting.amplitude_uV),
        ("spike_probability", "probability that the spike is this unit's", sorting.probability),
        ("spike_overlaps", "whether the spike overlaps another one on its channels", sorting.is_overlap),
        ("spike_samples", "sample of each spike in the sorted series", sorting.sample_index),
    ):
        columns += _ragged(column, text, values[order], ends)
    return Units(
        name=name,
        description=f"Units sorted by accm {__version__} from {source.series_path}.",
        id=sorting.unit_ids.astype(np.int64),
        columns=columns,
        colnames=[c.name for c in columns if not isinstance(c, VectorIndex)],
        electrode_table=nwbfile.electrodes,
        resolution=1.0 / fs,
        waveform_rate=float(fs),
        waveform_unit="volts",
        waveform_time_before_peak_in_ms=1e3 * sorting.templates.num_before / fs,
    )


def nearest_channels(sorting: Sorting) -> np.ndarray:
    """Channels on which each unit's waveform is stored, the main one first: (n_units, n_stored), int64.

    As many for each unit as the largest shank has, `MAX_ELECTRODES` at most; channels of other shanks come
    last, where a smaller shank has too few.
    """
    groups = np.unique(sorting.channel_groups, return_counts=True)[1]
    num_stored = min(int(groups.max()), MAX_ELECTRODES)
    slots = np.zeros((sorting.num_units, num_stored), dtype=np.int64)
    for unit, main in enumerate(sorting.templates.main_channel):
        apart = sorting.channel_groups != sorting.channel_groups[main]
        distance = np.linalg.norm(sorting.channel_locations - sorting.channel_locations[main], axis=1)
        height = np.ptp(sorting.templates.mean[unit], axis=0)
        height[main] = np.inf
        slots[unit] = np.lexsort((-height, distance, apart))[:num_stored]
    return slots


def make_provenance(sorting: Sorting, source: Source, units_path: str, name: str) -> ScratchData:
    """All that is needed to run the sort again, and to read the sorting back, as JSON."""
    content = {
        **sorting.provenance,
        "package": "accm",
        "version": __version__,
        "units_path": units_path,
        "num_units": sorting.num_units,
        "source_file": source.source_name,
        "series_path": source.series_path,
        "dtype": source.dtype,
        "num_samples": source.num_samples,
        "sampling_frequency": sorting.sampling_frequency,
        "segments": [[s.start, s.stop] for s in sorting.segments],
        "segment_times": sorting.segment_times,
        "gaps": source.gaps,
        "geometry_source": source.geometry_source,
        "channel_ids": sorting.channel_ids,
        "channel_locations": sorting.channel_locations,
        "channel_groups": sorting.channel_groups,
        "electrode_rows": _electrode_rows(sorting, source),
        "bad_channel_ids": sorting.bad_channel_ids,
        "left_out": source.left_out,
        "read_warnings": source.warnings,
        "num_before": sorting.templates.num_before,
        "num_samples_waveform": sorting.templates.mean.shape[1],
    }
    return ScratchData(
        name=name,
        data=json.dumps(_plain(content), sort_keys=True),
        description="How these units were made: parameters, seed, versions, channels and gaps, as JSON.",
    )


def make_embedding(sorting: Sorting, name: str) -> DynamicTable | None:
    """Make the table of embedded spikes, for pictures; None where there are none."""
    if len(sorting.embedding.spike_index) == 0:
        return None
    row_of = np.empty(len(sorting.sample_index), dtype=np.int64)
    row_of[spike_order(sorting)] = np.arange(len(row_of))
    spike = VectorData(
        name="spike",
        description="row of the spike in the flat spike_times of the Units table",
        data=row_of[sorting.embedding.spike_index],
    )
    position = VectorData(
        name="position",
        description="two dimensions of the embedding (no unit)",
        data=np.asarray(sorting.embedding.position, dtype=np.float32),
    )
    return DynamicTable(
        name=name,
        description="Embeddings of some of the spikes that accm sorted, for pictures.",
        id=np.arange(len(spike.data)),  # hdmf's own would be a slow list
        columns=[spike, position],
    )


def remove_scratch(nwbfile: NWBFile, name: str) -> None:
    """Leave an item of the scratch space out of the file that is written."""
    if name in nwbfile.scratch:
        nwbfile._remove_child(nwbfile.scratch[name])
        nwbfile.scratch.pop(name)


def _electrode_rows(sorting: Sorting, source: Source) -> np.ndarray:
    """Row in the electrodes table of each sorted channel, (n_channels,), int64."""
    row = dict(zip(source.channel_ids, source.electrode_index.tolist(), strict=True))
    missing = [name for name in sorting.channel_ids if name not in row]
    if missing:
        raise NwbError(
            f"The sorting has channel {missing[0]!r}, which {source.series_path} of "
            f"{source.source_name} has not. Give the session that was sorted."
        )
    return np.array([row[name] for name in sorting.channel_ids], dtype=np.int64)


def _per_unit(
    sorting: Sorting, rows: np.ndarray, slots: np.ndarray, nwbfile: NWBFile
) -> list[VectorData | VectorIndex]:
    """Columns with one value a unit."""
    main = rows[sorting.templates.main_channel]
    units = np.arange(sorting.num_units)[:, None]
    columns = [
        VectorData(
            name="electrode_group",
            description="electrode group (shank) of the unit's main channel",
            data=[nwbfile.electrodes["group"][int(row)] for row in main],
        )
    ]
    for name, text, waveforms in (
        (
            "waveform_mean",
            "mean waveform of each unit (V): (units, samples, electrodes)",
            sorting.templates.mean,
        ),
        ("waveform_sd", "standard deviation of the waveforms (V), of the same shape", sorting.templates.std),
    ):
        stored = waveforms.transpose(0, 2, 1)[units, slots].transpose(0, 2, 1) / MICROVOLTS_PER_VOLT
        columns.append(VectorData(name=name, description=text, data=stored.astype(np.float32)))
    texts = (list(sorting.unit_names), list(sorting.labels), list(sorting.label_reasons))
    columns += [
        VectorData(name=name, description=text, data=words)
        for (name, text), words in zip(_TEXT.items(), texts, strict=True)
    ]
    for name, metric in sorting.quality.items():
        values = np.asarray(metric)
        if values.dtype.kind == "f" and len(values) and np.isnan(values).all():
            continue  # a column of nothing says nothing, and nwbinspector objects
        columns.append(
            VectorData(name=name, description=METRICS.get(name, f"quality metric {name}"), data=values)
        )
    return columns


def _observed(sorting: Sorting) -> list[VectorData | VectorIndex]:
    intervals = np.asarray(sorting.segment_times, dtype=np.float64).reshape(-1, 2)
    ends = (np.arange(1, sorting.num_units + 1) * len(intervals)).astype(np.uint64)
    flat = np.tile(intervals, (sorting.num_units, 1))
    return _ragged("obs_intervals", "start and stop of each gapless stretch that was sorted (s)", flat, ends)


def _ragged(
    name: str, description: str, flat: np.ndarray, ends: np.ndarray
) -> list[VectorData | VectorIndex]:
    return _index(VectorData(name=name, description=description, data=flat), ends)


def _index(column: VectorData, ends: np.ndarray) -> list[VectorData | VectorIndex]:
    return [column, VectorIndex(name=f"{column.name}_index", data=ends, target=column)]


def _plain(value: Any) -> Any:
    """Turn what numpy, pathlib and NaN bring into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
