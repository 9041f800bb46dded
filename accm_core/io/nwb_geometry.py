"""Where the channels are: from the first source in the file, or beside it, that makes sense."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import probeinterface
from pynwb import NWBFile

from accm_core.errors import NwbError
from accm_core.io.nwb_electrodes import Electrodes

UM_PER_UNIT = {"um": 1.0, "mm": 1e3, "m": 1e6, "micrometer": 1.0, "millimeter": 1e3, "meter": 1e6}
MIN_PITCH_UM = 0.5
"""Contacts closer than this (µm) cannot be: the positions are in another unit."""
_FLAT = 0.05  # a shank whose contacts lie off their plane by less than this share of its size is flat


@dataclass(frozen=True)
class Geometry:
    """Positions of the kept channels.

    Attributes
    ----------
    locations : ndarray of shape (n_channels, 2), float64
        µm; all zero where unknown.
    source : str
        Where they come from; empty where unknown.
    group_names : tuple of str
        Shank of each channel.
    warnings : tuple of str
    """

    locations: np.ndarray
    source: str
    group_names: tuple[str, ...]
    warnings: tuple[str, ...]


def read_geometry(
    nwbfile: NWBFile, electrodes: Electrodes, kept: np.ndarray, probe: str | Path | None = None
) -> Geometry:
    """Find the positions of the kept channels.

    A probe file that is given wins; else ``rel_x``/``rel_y``, an ndx-probeinterface device, and
    ``x``/``y``/``z`` are tried in this order. A source that is not finite, or puts two channels of a shank in
    one place, is passed over with a warning.

    Parameters
    ----------
    kept : ndarray of shape (n_kept,), int64
        Positions, among the channels of the series, of those to sort.

    Raises
    ------
    NwbError
        If the probe file cannot be read or does not suit the series.
    """
    names = tuple(str(electrodes.groups[k].name) for k in kept)
    if probe is not None:
        return _from_probe_file(Path(probe), kept, len(electrodes.rows))
    warnings: list[str] = []
    sources = (
        ("rel_x, rel_y", _columns(electrodes, ("rel_x", "rel_y", "rel_z"))),
        ("ndx-probeinterface", _from_devices(nwbfile, electrodes)),
        ("x, y, z", _columns(electrodes, ("x", "y", "z"))),
    )
    for source, positions in sources:
        if positions is None:
            continue
        problem = _check(positions[kept], names)
        if not problem:
            return Geometry(_flatten(positions[kept], names, warnings), source, names, tuple(warnings))
        warnings.append(f"The positions in {source} are not used: {problem}.")
    if len(kept) > 1:
        warnings.append(
            "The channels have no known positions: those of an electrode group are all taken as neighbours. "
            "Give a probe file with --probe if you have one."
        )
    return Geometry(np.zeros((len(kept), 2)), "", names, tuple(warnings))


def _columns(electrodes: Electrodes, names: tuple[str, str, str]) -> np.ndarray | None:
    """(n_channels, 2 or 3), float64; None when the first two columns are not there or hold nothing."""
    if not all(name in electrodes.columns for name in names[:2]):
        return None
    columns = [electrodes.columns[name] for name in names if name in electrodes.columns]
    if any(column.dtype.kind not in "iuf" or column.ndim != 1 for column in columns):
        return None
    positions = np.stack(columns, axis=1).astype(np.float64)
    if not np.isfinite(positions[:, :2]).any():
        return None  # many files have these columns without a value
    if positions.shape[1] == 3 and not np.isfinite(positions[:, 2]).all():
        return positions[:, :2]
    return positions


def _check(positions: np.ndarray, group_names: tuple[str, ...]) -> str:
    """Say what is wrong with positions (µm); empty when nothing is."""
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        return f"{int((~finite).sum())} of {len(positions)} channels have none"
    for name in dict.fromkeys(group_names):
        members = positions[[k for k, other in enumerate(group_names) if other == name]]
        if len(members) < 2:
            continue
        distance = np.linalg.norm(members[:, None] - members[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        if (distance == 0).any():
            same = int((distance == 0).any(axis=1).sum())
            return f"{same} of {len(members)} channels of {name} share their place with another"
        if np.median(distance.min(axis=1)) < MIN_PITCH_UM:
            pitch = np.median(distance.min(axis=1))
            return (
                f"channels of {name} are {pitch:.2g} µm apart, under {MIN_PITCH_UM} µm; they may not be in µm"
            )
    return ""


def _flatten(positions: np.ndarray, group_names: tuple[str, ...], warnings: list[str]) -> np.ndarray:
    """Two axes of positions: as they are, without an axis that is constant, or the plane of each shank."""
    if positions.shape[1] == 2:
        return positions
    constant = np.ptp(positions, axis=0) == 0
    if constant.any():
        return np.delete(positions, np.flatnonzero(constant)[-1], axis=1)
    flat = np.zeros((len(positions), 2))
    for name in dict.fromkeys(group_names):
        members = [k for k, other in enumerate(group_names) if other == name]
        centred = positions[members] - positions[members].mean(axis=0)
        _, extent, axes = np.linalg.svd(centred, full_matrices=True)
        if len(members) > 3 and extent[2] > _FLAT * extent[0]:
            warnings.append(
                f"The contacts of {name} do not lie in a plane; their distances are shortened to fit one."
            )
        for column, axis in ((1, axes[0]), (0, axes[1])):  # the long side is y
            sign = np.sign(axis[np.abs(axis).argmax()])
            flat[members, column] = sign * (centred @ axis)
    return flat


def _from_devices(nwbfile: NWBFile, electrodes: Electrodes) -> np.ndarray | None:
    """Positions from ndx-probeinterface devices, whether or not that package is installed."""
    positions = np.full((len(electrodes.rows), 3), np.nan)
    probes = [
        d for d in nwbfile.devices.values() if type(d).__name__ == "Probe" and _contact_table(d) is not None
    ]
    for probe in probes:
        of_probe = np.array([group.device is probe for group in electrodes.groups])
        if len(probes) == 1 and not of_probe.any():
            of_probe[:] = True
        channels = np.flatnonzero(of_probe)
        table = _contact_table(probe)
        contacts = np.asarray(table["contact_position"].data[:], dtype=np.float64)
        contacts = contacts * UM_PER_UNIT.get(str(getattr(probe, "unit", None) or "micrometer"), np.nan)
        if "device_channel_index_pi" in table.colnames:
            wired = np.asarray(table["device_channel_index_pi"].data[:], dtype=np.int64)
        else:
            wired = np.arange(len(contacts))
        # channels are counted within the probe; a file of several probes may count through the series
        numbers = channels if np.isin(channels, wired).all() else np.arange(len(channels))
        place = {int(channel): k for k, channel in enumerate(wired) if channel >= 0}
        for channel, number in zip(channels, numbers, strict=True):
            if int(number) in place:
                positions[channel, : contacts.shape[1]] = contacts[place[int(number)]]
    if not probes:
        return None
    return positions[:, :2] if np.isnan(positions[:, 2]).any() else positions


def _contact_table(device: Any) -> Any:
    return getattr(device, "contact_table", None)


def _from_probe_file(file_path: Path, kept: np.ndarray, num_channels: int) -> Geometry:
    try:
        probes = probeinterface.read_probeinterface(file_path).probes
    except FileNotFoundError:
        raise NwbError(f"There is no probe file {file_path}. Check its name and folder.") from None
    except Exception as error:  # any error of a parser of foreign text
        raise NwbError(
            f"Cannot read the probe file {file_path}: {error}. Give the JSON that probeinterface writes."
        ) from error
    num_contacts = sum(probe.get_contact_count() for probe in probes)
    wired = [probe.device_channel_indices for probe in probes]
    if any(w is None for w in wired):
        if num_contacts != num_channels:
            raise NwbError(
                f"The probe file {file_path} has {num_contacts} contacts and no wiring; the series has "
                f"{num_channels} channels. Set device_channel_indices in the probe file."
            )
        channel_of = np.arange(num_contacts)
    else:
        channel_of = np.concatenate(wired).astype(np.int64)
    positions = np.full((num_channels, 3), np.nan)
    names = [""] * num_channels
    row = 0
    for number, probe in enumerate(probes):
        scale = UM_PER_UNIT[probe.si_units]
        shanks = probe.shank_ids if probe.shank_ids is not None else [""] * probe.get_contact_count()
        for position, shank in zip(probe.contact_positions, shanks, strict=True):
            channel = int(channel_of[row])
            row += 1
            if 0 <= channel < num_channels:
                positions[channel, : len(position)] = np.asarray(position) * scale
                names[channel] = f"probe{number}" + (f"-shank{shank}" if str(shank) else "")
    if np.isnan(positions[kept, 2]).any():
        positions = positions[:, :2]
    group_names = tuple(names[k] for k in kept)
    problem = _check(positions[kept], group_names)
    if problem:
        raise NwbError(f"The probe file {file_path} does not suit the series: {problem}. Correct the file.")
    warnings: list[str] = []
    return Geometry(
        _flatten(positions[kept], group_names, warnings), "probe file", group_names, tuple(warnings)
    )
