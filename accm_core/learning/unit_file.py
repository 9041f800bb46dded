"""Units for a stream as one safetensors file that describes itself, in the registry beside the models."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from accm_core import __version__
from accm_core.learning.checkpoint import (
    CARD,
    FORMAT,
    MAX_HEADS,
    MAX_NAME,
    RATES_HZ,
    TEMPLATES,
    UNITS,
    check_tensors,
    foreign,
    read_bytes,
    read_card,
    write_bytes,
)
from accm_core.types import KnownUnits, main_channels

MAX_CHANNELS, MAX_SAMPLES = 10_000, 4096
"""Of templates: a card must not make us expect a giant."""


@dataclass(frozen=True)
class StoredUnits:
    """Units for a stream, and where they come from.

    Attributes
    ----------
    units : KnownUnits
    card : mapping of str to anything JSON holds
    sha256 : str
        Of the file.
    """

    units: KnownUnits
    card: Mapping[str, Any]
    sha256: str


def save_units(units: KnownUnits, file_path: str | Path, card: Mapping[str, Any]) -> Path:
    """Write units, whole or not at all; an existing file is replaced.

    Parameters
    ----------
    units : KnownUnits
    file_path : str or Path
    card : mapping of str to anything JSON holds
        Where the units come from.

    Raises
    ------
    ModelError
        If the disk refuses.
    """
    main = main_channels(units.templates).tolist()
    described = [
        {
            "name": name,
            "main_channel": units.channel_ids[channel],
            "spread": None if math.isnan(spread) else spread,
        }
        for name, channel, spread in zip(units.names, main, units.spread.tolist(), strict=True)
    ]
    whole = {
        "version": __version__,
        **card,
        "kind": UNITS,
        "format": FORMAT,
        "units": described,
        "channel_ids": list(units.channel_ids),
        "num_before": units.num_before,
        "num_samples": units.templates.shape[1],
        "sampling_frequency": units.sampling_frequency,
    }
    tensors = {TEMPLATES: torch.from_numpy(np.ascontiguousarray(units.templates, dtype=np.float32))}
    content = save(tensors, {CARD: json.dumps(whole, sort_keys=True, allow_nan=False)})
    return write_bytes(Path(file_path), content)


def read_units(file_path: str | Path) -> StoredUnits:
    """Read units that `save_units` wrote.

    Raises
    ------
    ModelError
        If it cannot be read, or is anything else.
    """
    path = Path(file_path)
    return parse_units(read_bytes(path), path)


def parse_units(content: bytes, path: Path) -> StoredUnits:
    """Make units of a file's content; as `read_units`."""
    card = read_card(content, path)
    if card.get("kind") != UNITS:
        raise foreign(path, f"its card says it is {card.get('kind')!r}, not {UNITS!r}")
    try:
        names, spread, channel_ids = _check_card(card)
        tensors = load(content)
    except (SafetensorError, TypeError, ValueError, KeyError, OverflowError) as error:
        raise foreign(path, str(error)) from error
    shape = torch.Size((len(names), card["num_samples"], len(channel_ids)))
    check_tensors({TEMPLATES: shape}, tensors, path)
    units = KnownUnits(
        names=names,
        templates=tensors[TEMPLATES].numpy(),
        num_before=card["num_before"],
        spread=np.array(spread, dtype=np.float32),
        channel_ids=channel_ids,
        sampling_frequency=float(card["sampling_frequency"]),
    )
    return StoredUnits(units, card, hashlib.sha256(content).hexdigest())


def _check_card(card: Mapping[str, Any]) -> tuple[tuple[str, ...], list[float], tuple[str, ...]]:
    """Names and spreads of the units, and their channels; refuses a card on which they do not stand."""
    num_samples, num_before, rate = card["num_samples"], card["num_before"], card["sampling_frequency"]
    if type(num_samples) is not int or not 2 <= num_samples <= MAX_SAMPLES:
        raise ValueError(f"num_samples = {num_samples!r} is not within 2 to {MAX_SAMPLES}")
    if type(num_before) is not int or not 0 <= num_before < num_samples - 1:
        raise ValueError(f"num_before = {num_before!r} is not within its templates of {num_samples}")
    if type(rate) not in (int, float) or not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise ValueError(f"sampling_frequency = {rate!r} is not within {RATES_HZ[0]} to {RATES_HZ[1]} Hz")
    channels, units = card["channel_ids"], card["units"]
    if not _are_names(channels) or len(channels) > MAX_CHANNELS:
        raise ValueError(f"its channel_ids must be 1 to {MAX_CHANNELS} different texts")
    if not isinstance(units, list) or len(units) > MAX_HEADS or not _are_names([u["name"] for u in units]):
        raise ValueError(f"its units must be 1 to {MAX_HEADS}, each with a name of its own")
    if any(unit["main_channel"] not in channels for unit in units):
        raise ValueError("a unit's main channel is not among its channels")
    spread = [math.nan if unit["spread"] is None else float(unit["spread"]) for unit in units]
    if any(not math.isnan(value) and not 0 <= value < math.inf for value in spread):
        raise ValueError("the spread of a unit is below 0 or not finite")
    return tuple(unit["name"] for unit in units), spread, tuple(channels)


def _are_names(values: Any) -> bool:
    """Whether this is a list of different texts, none empty or too long."""
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(value, str) and 0 < len(value) <= MAX_NAME for value in values)
        and len(set(values)) == len(values)
    )
