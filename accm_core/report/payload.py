"""What the report's page draws: a sorting, thinned out and packed as JSON.

Arrays are packed as base64 of little-endian integers with a scale, which keeps a session of 100 units
within a few megabytes whatever its length.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from accm_core.report.correlogram import auto_correlogram, cross_correlogram, interval_histogram
from accm_core.sorting.quality import (
    ISI_THRESHOLD_S,
    MAX_ISI_VIOLATIONS_RATIO,
    MIN_GOOD_SNR,
    MIN_PRESENCE_RATIO,
)
from accm_core.types import Sorting

WINDOW_S = 0.025  # correlograms show this much on either side
BIN_S = 0.0005
ISI_EDGES_S = np.geomspace(2e-4, 20.0, 51)  # ten bins a decade
NUM_SIMILAR = 3  # units compared with each unit
NUM_CHANNELS = 12  # channels drawn of each template
NEAR_SHARE = 0.25  # of a unit's largest channel: smaller ones do not count for its position
MAX_SPIKES = 200_000  # drawn in all
MAX_SPIKES_PER_UNIT = 4_000
MAX_EMBEDDED = 30_000
MAX_SPANS = 1_000  # stretches between which gaps are drawn
MAX_LISTED = 16  # entries of a list of the provenance that is shown
FULL_SCALE = {"<i2": 32_767, "<u2": 65_535}
METRICS = (
    "firing_rate",
    "snr",
    "amplitude_median",
    "isi_violations_ratio",
    "isi_violations_count",
    "presence_ratio",
    "amplitude_cutoff",
)


def make_payload(sorting: Sorting, title: str) -> dict[str, Any]:
    """Make everything the page shows, as JSON holds it.

    Parameters
    ----------
    sorting : Sorting
        The result.
    title : str
        Name of the session.
    """
    has_geometry = bool(np.ptp(sorting.channel_locations, axis=0).any()) if sorting.channel_ids else False
    positions = locate_units(sorting)
    drawn = [sample_evenly(sorting.spikes_of(row), limit) for row, limit in enumerate(spike_limits(sorting))]
    return {
        "title": title,
        "headline": _headline(sorting),
        "provenance": _short(sorting.provenance),
        "hasGeometry": has_geometry,
        "channels": {
            "id": list(sorting.channel_ids),
            "x": _rounded(sorting.channel_locations[:, 0]),
            "y": _rounded(sorting.channel_locations[:, 1]),
        },
        "correlogram": {
            "windowMs": WINDOW_S * 1e3,
            "binMs": BIN_S * 1e3,
            "refractoryMs": ISI_THRESHOLD_S * 1e3,
        },
        "limits": {  # beyond which a number in the table stands out
            "snr": MIN_GOOD_SNR,
            "isi_violations_ratio": MAX_ISI_VIOLATIONS_RATIO,
            "presence_ratio": MIN_PRESENCE_RATIO,
        },
        "isiEdgesMs": _rounded(ISI_EDGES_S * 1e3),
        "template": {
            "samples": sorting.templates.mean.shape[1],
            "before": sorting.templates.num_before,
            "msPerSample": 1e3 / sorting.sampling_frequency,
        },
        "units": _units(sorting, positions, has_geometry),
        "spikes": _spikes(sorting, drawn),
        "embedding": _embedding(sorting),
    }


def list_warnings(sorting: Sorting) -> list[str]:
    """List what reading and sorting warned of, each once."""
    kinds = [sorting.provenance.get(kind, ()) for kind in ("read_warnings", "warnings")]
    return list(dict.fromkeys(str(warning) for kind in kinds for warning in kind))


def locate_units(sorting: Sorting) -> np.ndarray:
    """Find where each unit is: the mean of its channels' positions by squared amplitude, (n_units, 2) µm."""
    if sorting.num_units == 0:
        return np.zeros((0, 2))
    height = np.ptp(sorting.templates.mean, axis=1).astype(np.float64)
    largest = height.max(axis=1, keepdims=True)
    weight = np.where(height >= NEAR_SHARE * largest, height, 0.0) ** 2
    weight[largest[:, 0] == 0] = 1.0  # a flat template is everywhere
    return (weight @ sorting.channel_locations) / weight.sum(axis=1, keepdims=True)


def find_similar_units(mean: np.ndarray, num_similar: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the units whose templates are most alike.

    Parameters
    ----------
    mean : ndarray of shape (n_units, n_samples, n_channels)
        Templates.
    num_similar : int
        How many for each unit.

    Returns
    -------
    rows : ndarray of shape (n_units, min(num_similar, n_units - 1)), int64
        The most similar first.
    cosine : ndarray of the same shape, float
        Cosine of the two templates, at no shift.
    """
    flat = mean.reshape(len(mean), mean.shape[1] * mean.shape[2])
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    unit_vectors = flat / np.where(norm > 0, norm, 1.0)
    cosine = unit_vectors @ unit_vectors.T
    np.fill_diagonal(cosine, -np.inf)
    rows = np.argsort(-cosine, axis=1, kind="stable")[:, : max(0, min(num_similar, len(mean) - 1))]
    return rows, np.take_along_axis(cosine, rows, axis=1)


def spike_limits(sorting: Sorting) -> np.ndarray:
    """Find how many spikes of each unit are drawn, (n_units,): one limit for all that bounds the sum."""
    num_spikes = np.bincount(sorting.unit_index, minlength=sorting.num_units)
    low, high = 0, MAX_SPIKES_PER_UNIT
    while low < high:  # the largest limit whose sum fits
        middle = (low + high + 1) // 2
        fits = np.minimum(num_spikes, middle).sum() <= MAX_SPIKES
        low, high = (middle, high) if fits else (low, middle - 1)
    return np.minimum(num_spikes, low)


def sample_evenly(rows: np.ndarray, limit: int) -> np.ndarray:
    """Take at most ``limit`` of ``rows``, evenly over their order."""
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, int(limit)).round().astype(np.int64)]


def pack(values: np.ndarray, dtype: str) -> dict[str, Any]:
    """Pack numbers as base64 of integers: ``{"data", "scale"}``, value = integer * scale.

    ``dtype`` is ``'<i2'`` or, for values of one sign, ``'<u2'``.
    """
    largest = float(np.abs(values).max(initial=0.0))
    scale = largest / FULL_SCALE[dtype] if largest > 0 else 1.0
    integers = np.round(np.asarray(values, dtype=np.float64) / scale).astype(dtype)
    return {"data": base64.b64encode(integers.tobytes()).decode("ascii"), "scale": scale}


def _headline(sorting: Sorting) -> dict[str, Any]:
    spans = sorting.segment_times
    return {
        "spikes": len(sorting.sample_index),
        "overlaps": int(sorting.is_overlap.sum()),
        "duration": float((spans[:, 1] - spans[:, 0]).sum()),
        "start": float(spans[:, 0].min(initial=np.inf)) if len(spans) else 0.0,
        "stop": float(spans[:, 1].max(initial=-np.inf)) if len(spans) else 0.0,
        "segments": len(spans),
        "spans": np.round(spans[:MAX_SPANS], 3).tolist(),
        "samplingFrequency": sorting.sampling_frequency,
        "shanks": len(np.unique(sorting.channel_groups)),
        "badChannels": [f"{name} (bad)" for name in sorting.bad_channel_ids]
        + [f"{name} ({reason})" for name, reason in sorting.provenance.get("left_out", ())],
        "warnings": list_warnings(sorting),
    }


def _units(sorting: Sorting, positions: np.ndarray, has_geometry: bool) -> list[dict[str, Any]]:
    trains = [sorting.spike_times[sorting.spikes_of(row)] for row in range(sorting.num_units)]
    similar, cosine = find_similar_units(sorting.templates.mean, NUM_SIMILAR)
    main_channel = sorting.templates.main_channel
    units = []
    for row, train in enumerate(trains):
        spikes = sorting.spikes_of(row)
        channels = _nearest_channels(sorting, int(main_channel[row]), has_geometry)
        unit = {
            "id": int(sorting.unit_ids[row]),
            "label": sorting.labels[row],
            "reason": sorting.label_reasons[row],
            "spikes": len(train),
            "x": round(float(positions[row, 0]), 1),
            "depth": round(float(positions[row, 1]), 1) if has_geometry else None,
            "main": int(main_channel[row]),
            "channels": channels.tolist(),
            "mean": pack(sorting.templates.mean[row][:, channels].T, "<i2"),
            "sd": pack(sorting.templates.std[row][:, channels].T, "<u2"),
            "probability": _mean(sorting.probability[spikes]),
            "overlap": _mean(sorting.is_overlap[spikes]),
            "acg": auto_correlogram(train, window_s=WINDOW_S, bin_s=BIN_S).tolist(),
            "isi": interval_histogram(train, ISI_EDGES_S).tolist(),
            "similar": [
                {
                    "unit": int(other),
                    "cosine": round(float(value), 3),
                    "ccg": cross_correlogram(train, trains[other], window_s=WINDOW_S, bin_s=BIN_S).tolist(),
                }
                for other, value in zip(similar[row], cosine[row], strict=True)
            ],
        }
        metrics = {
            name: sorting.quality[name][row] if name in sorting.quality else np.nan for name in METRICS
        }
        units.append(unit | {name: _number(value) for name, value in metrics.items()})
    return units


def _nearest_channels(sorting: Sorting, main_channel: int, has_geometry: bool) -> np.ndarray:
    """Channels to draw: the nearest of the same shank, the main one first."""
    same = np.flatnonzero(sorting.channel_groups == sorting.channel_groups[main_channel])
    offset = sorting.channel_locations[same] - sorting.channel_locations[main_channel]
    far = np.hypot(offset[:, 0], offset[:, 1]) if has_geometry else (same != main_channel).astype(float)
    return same[np.argsort(far, kind="stable")][:NUM_CHANNELS]


def _spikes(sorting: Sorting, drawn: list[np.ndarray]) -> dict[str, Any]:
    rows = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
    start_s = float(sorting.segment_times[:, 0].min(initial=np.inf)) if len(sorting.segment_times) else 0.0
    return {
        "offsets": np.cumsum([0, *(len(each) for each in drawn)]).tolist(),
        "time": pack(np.maximum(sorting.spike_times[rows] - start_s, 0.0), "<u2"),
        "amplitude": pack(sorting.amplitude_uV[rows], "<i2"),
    }


def _embedding(sorting: Sorting) -> dict[str, Any]:
    sample = sorting.embedding
    keep = sample_evenly(np.arange(len(sample.spike_index)), MAX_EMBEDDED)
    position = np.asarray(sample.position[keep], dtype=np.float64).reshape(len(keep), 2)
    unit_index = sorting.unit_index[sample.spike_index[keep]]
    if len(position):  # the middle of the cloud is the origin: the scale is lost in no offset
        position = position - (position.min(axis=0) + position.max(axis=0)) / 2
    return {
        "x": pack(position[:, 0], "<i2"),
        "y": pack(position[:, 1], "<i2"),
        "unit": base64.b64encode(unit_index.astype("<u2").tobytes()).decode("ascii"),
    }


def _short(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the long lists: positions of channels and the like."""
    is_long = {
        key: hasattr(value, "__len__") and len(value) > MAX_LISTED for key, value in provenance.items()
    }
    return {
        str(key): value
        for key, value in provenance.items()
        if isinstance(value, str | Mapping) or not is_long[key]
    }


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None


def _number(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
