"""Compare a sorting with the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accm_core.errors import ParamsError
from accm_core.simulation.nwb import BACKGROUND_PATH

MATCH_MS = 0.4  # spikes nearer than this are the same (SpikeInterface's default)
MIN_AGREEMENT = 0.2  # agreement from which on a found unit is a cell of the background, as it is a true unit
WELL_DETECTED = 0.8  # accuracy from which a unit counts as well detected (SpikeInterface's default)
OVERLAP_MS = 1.0  # a spike overlaps when another unit fires within this time
OVERLAP_UM = 100.0  # and lies within this distance
DEFAULT_SAMPLING_FREQUENCY = 30_000.0  # where neither file tells: times are compared on this grid
HYBRID_MARK = "injected"  # in the description of a truth that does not hold all units

Trains = Mapping[str, np.ndarray] | str | Path


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well the true units were found. Arrays have one value a true unit.

    Attributes
    ----------
    unit_names, matched_names : tuple of str
        True units, and the found unit matched to each; empty where none is.
    num_spikes : ndarray of int64
        True spikes.
    accuracy, precision, recall : ndarray of float64
        TP / (TP + FP + FN), TP / (TP + FP), TP / (TP + FN); 0 without a match, the precision too.
    overlap_recall, isolated_recall : ndarray of float64
        Recall of the spikes that overlap a spike of another unit nearby, and of the others; NaN without any.
    is_overlap_known_by_place : bool
        Whether only units within 100 µm count as overlapping; False when positions are unknown, and all do.
    found_units : int
    false_names : tuple of str or None
        Found units that match no true one and no cell of the background; None where the truth does not hold
        all units.
    background_names : tuple of str
        Found units that match a cell of the background: right, though nobody asked for it.
    redundant_names : tuple of str
        Found units that share a true unit with a better one.
    overlap_share : float
        Share of the true spikes that overlap.
    total_overlap_recall, total_isolated_recall : float
        The same recalls over the spikes of all units; NaN without any.
    """

    unit_names: tuple[str, ...]
    matched_names: tuple[str, ...]
    num_spikes: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    overlap_recall: np.ndarray
    isolated_recall: np.ndarray
    is_overlap_known_by_place: bool
    found_units: int
    false_names: tuple[str, ...] | None
    background_names: tuple[str, ...]
    redundant_names: tuple[str, ...]
    overlap_share: float
    total_overlap_recall: float
    total_isolated_recall: float

    @property
    def well_detected(self) -> int:
        """Number of true units with an accuracy of at least 0.8."""
        return int((self.accuracy >= WELL_DETECTED).sum())

    def to_dict(self) -> dict[str, Any]:
        """Give a summary and a row for each unit, as JSON holds them; NaN becomes None."""
        rows = asdict(self)
        per_unit = (
            "num_spikes",
            "accuracy",
            "precision",
            "recall",
            "overlap_recall",
            "isolated_recall",
        )
        units = [
            {"unit_name": name, "matched_name": self.matched_names[k] or None}
            | {column: _plain(rows[column][k]) for column in per_unit}
            for k, name in enumerate(self.unit_names)
        ]
        false_units = None if self.false_names is None else len(self.false_names)
        return {
            "true_units": len(self.unit_names),
            "found_units": self.found_units,
            "well_detected": self.well_detected,
            "false_units": false_units,
            "background_units": len(self.background_names),
            "redundant_units": len(self.redundant_names),
            "accuracy": _plain(_mean(self.accuracy)),
            "precision": _plain(_mean(self.precision)),
            "recall": _plain(_mean(self.recall)),
            "overlap_recall": _plain(self.total_overlap_recall),
            "isolated_recall": _plain(self.total_isolated_recall),
            "overlap_share": _plain(self.overlap_share),
            "false_names": None if self.false_names is None else list(self.false_names),
            "background_names": list(self.background_names),
            "redundant_names": list(self.redundant_names),
            "units": units,
        }

    def __str__(self) -> str:
        header = ("unit", "found as", "spikes", "accuracy", "precision", "recall", "overlapping", "isolated")
        rows: list[tuple[str, ...]] = [header]
        for k, name in enumerate(self.unit_names):
            values = (
                self.accuracy,
                self.precision,
                self.recall,
                self.overlap_recall,
                self.isolated_recall,
            )
            shares = (_percent(column[k]) for column in values)
            rows.append((name, self.matched_names[k] or "-", f"{self.num_spikes[k]:,}", *shares))
        means = (_percent(_mean(column)) for column in (self.accuracy, self.precision, self.recall))
        overall = (_percent(self.total_overlap_recall), _percent(self.total_isolated_recall))
        rows.append(("all", "", f"{self.num_spikes.sum():,}", *means, *overall))
        widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if k < 2 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        false_units = "unknown" if self.false_names is None else len(self.false_names)
        lines += [
            "",
            f"well detected  {self.well_detected} of {len(self.recall)} (accuracy {WELL_DETECTED:g} or more)",
            f"found          {self.found_units}",
            f"false          {false_units}",
            f"background     {len(self.background_names)} (cells too small to count on)",
            f"redundant      {len(self.redundant_names)}",
            f"overlapping    {_percent(self.overlap_share)} of the true spikes",
        ]
        return "\n".join(lines)


def evaluate(
    sorted_trains: Trains,
    true_trains: Trains,
    *,
    sampling_frequency: float | None = None,
    unit_locations: Mapping[str, Sequence[float]] | None = None,
    exhaustive: bool | None = None,
    background_trains: Trains | None = None,
) -> Evaluation:
    """Compare the units that were found with the true ones.

    Parameters
    ----------
    sorted_trains, true_trains : mapping of str to ndarray, or path
        Spike times in seconds on the same clock, by unit; or an NWB file with Units.
    sampling_frequency : float, optional
        Hz; the truth's when None, or the sorted file's, or 30 kHz.
    unit_locations : mapping of str to (x, y), optional
        Position of each true unit, µm; when None the columns ``rel_x`` and ``rel_y`` of the truth's Units.
        Without any, all units are taken as near each other.
    exhaustive : bool, optional
        Whether the truth holds all units, so that a unit matching none of them is false; when None it
        does, but for the truth of a hybrid recording.
    background_trains : mapping of str to ndarray, or path, optional
        As the others, of cells too small to count on: a found unit that agrees with one of them
        (TP / (TP + FP + FN) of at least 0.2) is not false. When None, those that `accm simulate` has put
        beside the truth.

    Returns
    -------
    Evaluation

    Raises
    ------
    NwbError
        If a file cannot be read or has no Units.
    ParamsError
        If a true unit has no position while others have.

    Notes
    -----
    Units are matched one to one, and spikes within 0.4 ms, by SpikeInterface's comparison. A true spike
    overlaps when another true unit within 100 µm fires within 1 ms of it; its recall is counted on the found
    unit that is matched to its own.
    """
    truth, rate, places, is_whole = _read_truth(true_trains)
    found, found_rate = _read_found(sorted_trains)
    if background_trains is None:
        background = _read_background(true_trains)
    else:
        background, _ = _read_found(background_trains)
    rate = sampling_frequency or rate or found_rate or DEFAULT_SAMPLING_FREQUENCY
    names, found_names = tuple(truth), tuple(found)
    locations = _locations(names, places if unit_locations is None else unit_locations)
    everything = [np.asarray(t, np.float64) for t in (*truth.values(), *found.values(), *background.values())]
    # sample counts from the first spike on, so that a late clock needs no large numbers
    origin = min((float(t.min()) for t in everything if len(t)), default=0.0)
    samples = [np.rint((np.sort(t) - origin) * rate).astype(np.int64) for t in everything]
    num_trains = len(names) + len(found_names)
    true_samples, found_samples = samples[: len(names)], samples[len(names) : num_trains]
    scores, match, false_rows, redundant_rows = _compare(true_samples, found_samples, rate)
    background_rows = _find_background(false_rows, found_samples, samples[num_trains:], rate)
    false_rows = [row for row in false_rows if row not in background_rows]
    overlaps = _find_overlaps(true_samples, locations, rate)
    hits = [
        _hits(train, found_samples[match[k]] if match[k] >= 0 else train[:0], rate)
        for k, train in enumerate(true_samples)
    ]
    all_overlaps, all_hits = np.concatenate([*overlaps, _NONE]), np.concatenate([*hits, _NONE])
    if exhaustive is None:
        exhaustive = is_whole
    pairs = list(zip(hits, overlaps, strict=True))
    return Evaluation(
        unit_names=names,
        matched_names=tuple(found_names[k] if k >= 0 else "" for k in match),
        num_spikes=np.array([len(train) for train in true_samples], dtype=np.int64),
        accuracy=scores[0],
        precision=scores[1],
        recall=scores[2],
        overlap_recall=np.array([_mean(hit[overlap]) for hit, overlap in pairs], dtype=np.float64),
        isolated_recall=np.array([_mean(hit[~overlap]) for hit, overlap in pairs], dtype=np.float64),
        is_overlap_known_by_place=locations is not None,
        found_units=len(found_names),
        false_names=tuple(found_names[k] for k in false_rows) if exhaustive else None,
        background_names=tuple(found_names[k] for k in background_rows),
        redundant_names=tuple(found_names[k] for k in redundant_rows),
        overlap_share=_mean(all_overlaps),
        total_overlap_recall=_mean(all_hits[all_overlaps]),
        total_isolated_recall=_mean(all_hits[~all_overlaps]),
    )


_NONE = np.zeros(0, dtype=bool)


def _read_found(trains: Trains) -> tuple[Mapping[str, np.ndarray], float | None]:
    if isinstance(trains, Mapping):
        return trains, None
    from accm_core.io.nwb_units import read_spike_trains

    found = read_spike_trains(trains)
    return found, found.sampling_frequency


def _read_truth(
    trains: Trains,
) -> tuple[Mapping[str, np.ndarray], float | None, Mapping[str, Sequence[float]] | None, bool]:
    """Trains, rate, positions of the units, and whether they are all there are."""
    truth, rate = _read_found(trains)
    if isinstance(trains, Mapping):
        return truth, rate, None, True
    from accm_core.io.nwb_file import OpenNwb

    with OpenNwb(trains) as opened:
        units = opened.nwbfile.units
        if units is None or len(units) != len(truth):
            return truth, rate, None, True
        is_whole = HYBRID_MARK not in (units.description or "")
        if not {"rel_x", "rel_y"} <= set(units.colnames):
            return truth, rate, None, is_whole
        places = np.stack([units["rel_x"].data[:], units["rel_y"].data[:]], axis=1).astype(np.float64)
    if not np.isfinite(places).all():
        return truth, rate, None, is_whole
    return truth, rate, dict(zip(truth, places.tolist(), strict=True)), is_whole


def _read_background(true_trains: Trains) -> Mapping[str, np.ndarray]:
    """Trains of the background's cells beside the truth; none where there are none."""
    if isinstance(true_trains, Mapping):
        return {}
    from accm_core.io.nwb_file import OpenNwb
    from accm_core.io.nwb_units import read_spike_trains

    _, module, name = BACKGROUND_PATH.split("/")
    with OpenNwb(true_trains) as opened:
        processing = opened.nwbfile.processing
        if module not in processing or name not in processing[module].data_interfaces:
            return {}
    return read_spike_trains(true_trains, BACKGROUND_PATH)


def _locations(names: tuple[str, ...], places: Mapping[str, Sequence[float]] | None) -> np.ndarray | None:
    if places is None:
        return None
    missing = [name for name in names if name not in places]
    if missing:
        raise ParamsError(
            f"True unit {missing[0]!r} has no position, but others have. Give one for each, or none at all."
        )
    return np.array([places[name] for name in names], dtype=np.float64).reshape(-1, 2)


def _compare(
    true_samples: list[np.ndarray], found_samples: list[np.ndarray], sampling_frequency: float
) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Scores (3, n_true), found row matched to each true unit or -1, rows of false and redundant units."""
    num_true, num_found = len(true_samples), len(found_samples)
    if num_true == 0 or num_found == 0:  # SpikeInterface needs one of each
        return np.zeros((3, num_true)), np.full(num_true, -1), list(range(num_found)), []
    from spikeinterface.comparison import compare_sorter_to_ground_truth
    from spikeinterface.core import NumpySorting

    truth, found = (
        NumpySorting.from_unit_dict([dict(enumerate(trains))], sampling_frequency)
        for trains in (true_samples, found_samples)
    )
    comparison = compare_sorter_to_ground_truth(truth, found, exhaustive_gt=True, delta_time=MATCH_MS)
    performance = comparison.get_performance()
    scores = np.stack(
        [performance[name].to_numpy(np.float64) for name in ("accuracy", "precision", "recall")]
    )
    match = np.array([comparison.hungarian_match_12[k] for k in range(num_true)], dtype=np.int64)
    false_rows = [int(k) for k in comparison.get_false_positive_units()]
    return np.nan_to_num(scores), match, false_rows, [int(k) for k in comparison.get_redundant_units()]


def _find_background(
    rows: list[int],
    found_samples: list[np.ndarray],
    background_samples: list[np.ndarray],
    sampling_frequency: float,
) -> list[int]:
    """Those of the found ``rows`` that agree with a cell of the background."""
    if not rows or not background_samples:
        return []
    from spikeinterface.comparison import compare_two_sorters
    from spikeinterface.core import NumpySorting

    found, background = (
        NumpySorting.from_unit_dict([trains], sampling_frequency)
        for trains in ({row: found_samples[row] for row in rows}, dict(enumerate(background_samples)))
    )
    agreement = compare_two_sorters(found, background, delta_time=MATCH_MS).agreement_scores
    best = agreement.to_numpy(np.float64).max(axis=1)
    return [int(row) for row, score in zip(agreement.index, best, strict=True) if score >= MIN_AGREEMENT]


def _find_overlaps(
    trains: list[np.ndarray], locations: np.ndarray | None, sampling_frequency: float
) -> list[np.ndarray]:
    """Whether another unit nearby fires within 1 ms of each spike."""
    reach = int(OVERLAP_MS * 1e-3 * sampling_frequency)
    if locations is None:
        near = np.ones((len(trains), len(trains)), dtype=bool)
    else:
        near = np.linalg.norm(locations[:, None] - locations[None], axis=-1) <= OVERLAP_UM
    np.fill_diagonal(near, False)
    found = []
    for row, train in enumerate(trains):
        others = np.sort(np.concatenate([*(trains[k] for k in np.flatnonzero(near[row])), train[:0]]))
        found.append(_is_near(train, others, reach))
    return found


def _hits(train: np.ndarray, found: np.ndarray, sampling_frequency: float) -> np.ndarray:
    return _is_near(train, found, int(MATCH_MS * 1e-3 * sampling_frequency))


def _is_near(train: np.ndarray, others: np.ndarray, reach: int) -> np.ndarray:
    """Whether one of ``others`` (sorted) lies within ``reach`` samples of each spike."""
    low = np.searchsorted(others, train - reach, side="left")
    high = np.searchsorted(others, train + reach, side="right")
    return high > low


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _plain(value: Any) -> Any:
    number = value.item() if isinstance(value, np.generic) else value
    return None if number != number else number  # NaN is unlike itself


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f} %"
