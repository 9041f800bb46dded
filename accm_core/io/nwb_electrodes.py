"""The electrodes of a series: names, shanks, and which channels are no neural signal or bad."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from hdmf.common import VectorIndex
from pynwb.ecephys import ElectricalSeries

from accm_core.errors import NwbError

_NAME_COLUMNS = (
    "channel_name",
    "electrode_name",
    "channel_label",
    "electrode_label",
    "label",
    "channel_type",
)
_ID_COLUMNS = ("channel_name", "electrode_name")
_BAD_COLUMNS = (
    "bad",
    "bad_channel",
    "bad_channels",
    "is_bad",
    "is_bad_channel",
    "noisy",
    "is_noisy",
    "is_dead",
)
_GOOD_COLUMNS = (
    "good",
    "good_channel",
    "is_good",
    "is_good_channel",
    "valid",
    "is_valid",
    "valid_data",
)
_STATUS_COLUMNS = ("quality", "status", "channel_quality", "channel_status", "electrode_status", "label")
_BAD_WORDS = frozenset({"bad", "dead", "noise", "noisy", "broken", "shorted", "out", "floating"})
_FALSE_WORDS = frozenset({"", "0", "0.0", "false", "f", "no", "n", "nan", "none"})
_NOT_NEURAL = (
    r"adc|dac|aux|auxiliary|ttl|sync|sy|din|dout|digital|analog|analogue|analog[ _-]?in(?:put)?s?|"
    r"trigger|trig|photodiode|accel|accelerometer|gyro|vdd|nidq"
)
_NAME_PATTERN = re.compile(rf"(?<![a-z])(?:{_NOT_NEURAL})(?![a-z])", re.IGNORECASE)
_WHOLE_PATTERN = re.compile(rf"(?:{_NOT_NEURAL})[ _-]?\d*(?: channels?)?", re.IGNORECASE)
_NO_GROUP = frozenset({"nan", "none", "null"})


@dataclass(frozen=True)
class Electrodes:
    """Rows of the electrodes table that a series uses, one a channel.

    Attributes
    ----------
    rows : ndarray of shape (n_channels,), int64
        Row in the electrodes table of each channel.
    columns : dict of str to ndarray of shape (n_channels, ...)
        Plain columns of the table, by name.
    groups : list of pynwb.ecephys.ElectrodeGroup
        Of each channel.
    channel_ids : tuple of str
        Names where the table gives each channel its own, else the ids of the table.
    """

    rows: np.ndarray
    columns: dict[str, np.ndarray]
    groups: list[Any]
    channel_ids: tuple[str, ...]


def read_electrodes(series: ElectricalSeries, path: str) -> Electrodes:
    """Read the electrodes of a series.

    Raises
    ------
    NwbError
        If the region points outside the table, or twice to the same electrode.
    """
    table = series.electrodes.table
    rows = np.asarray(series.electrodes.data[:], dtype=np.int64).reshape(-1)
    outside = rows[(rows < 0) | (rows >= len(table))]
    if len(outside):
        raise NwbError(
            f"{path} refers to row {outside[0]} of the electrodes table, which has {len(table)} rows. "
            "Correct the electrodes of the series."
        )
    unique, counts = np.unique(rows, return_counts=True)
    if len(unique) != len(rows):
        raise NwbError(
            f"{path} refers to row {unique[counts > 1][0]} of the electrodes table twice; each channel "
            "needs its own. Correct the electrodes of the series."
        )
    columns = {}
    for name in table.colnames:
        column = table[name]
        if name == "group" or isinstance(column, VectorIndex):
            continue
        values = np.asarray(column.data[:])
        if len(values) == len(table):
            columns[name] = values[rows]
    groups = [table["group"][int(row)] for row in rows]
    return Electrodes(rows, columns, groups, _channel_ids(columns, np.asarray(table.id[:])[rows], rows))


def find_left_out(electrodes: Electrodes) -> dict[int, str]:
    """Channels that the electrodes table calls bad or no neural signal, with the reason, by position."""
    reasons: dict[int, str] = {}
    names = [_clean(group.name) for group in electrodes.groups]
    has_named = any(name.lower() not in _NO_GROUP for name in names)
    for channel, group in enumerate(electrodes.groups):
        if (has_named and names[channel].lower() in _NO_GROUP) or _NAME_PATTERN.search(names[channel]):
            reasons[channel] = f"not neural: its electrode group is {names[channel]!r}"
        elif _WHOLE_PATTERN.fullmatch(_clean(group.location)):
            reasons[channel] = f"not neural: its electrode group lies in {_clean(group.location)!r}"
    for name, values in electrodes.columns.items():
        for channel, value in enumerate(values):
            reason = _judge(name.lower(), value)
            if reason:
                reasons.setdefault(channel, reason)
    return reasons


def _judge(column: str, value: Any) -> str:
    """Why this cell says that its channel is to be left out; empty when it does not."""
    text = _clean(value)
    if column in _NAME_COLUMNS and _NAME_PATTERN.search(text):
        return f"not neural: {column} is {text!r}"
    if column in ("location", "group_name") and _WHOLE_PATTERN.fullmatch(text):
        return f"not neural: {column} is {text!r}"
    if column in _BAD_COLUMNS and text.lower() not in _FALSE_WORDS:
        return f"bad: {column} is {text}"
    if column in _GOOD_COLUMNS and text.lower() in _FALSE_WORDS - {"", "nan", "none"}:
        return f"bad: {column} is {text}"
    if column in _STATUS_COLUMNS and text.lower() in _BAD_WORDS:
        return f"bad: {column} is {text!r}"
    return ""


def _channel_ids(columns: dict[str, np.ndarray], ids: np.ndarray, rows: np.ndarray) -> tuple[str, ...]:
    for name in _ID_COLUMNS:
        if name in columns:
            texts = tuple(_clean(value) for value in columns[name])
            if all(texts) and len(set(texts)) == len(texts):
                return texts
    texts = tuple(str(value) for value in ids)
    return texts if len(set(texts)) == len(texts) else tuple(str(row) for row in rows)


def _clean(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.strip()
