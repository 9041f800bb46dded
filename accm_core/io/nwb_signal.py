"""Is there a signal? A few windows of a series tell, whatever its length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from accm_core.errors import NwbError

NUM_WINDOWS = 9
"""Windows that are looked at, from the first sample to the last."""
WINDOW_S = 0.1
"""Length of each (s)."""


@dataclass(frozen=True)
class Look:
    """What a few windows hold, channel by channel.

    Attributes
    ----------
    where : str
        The windows, in words.
    first : ndarray of shape (n_channels,)
        First stored value.
    is_flat : ndarray of shape (n_channels,), bool
        Every value is the first one.
    is_empty : ndarray of shape (n_channels,), bool
        No value is finite.
    first_hole : ndarray of shape (n_channels,), int64
        Sample of the first value that is not finite; -1 where all are.
    """

    where: str
    first: np.ndarray
    is_flat: np.ndarray
    is_empty: np.ndarray
    first_hole: np.ndarray


def look_at(read: Callable[[int, int], np.ndarray], num_samples: int, sampling_frequency: float) -> Look:
    """Look at `NUM_WINDOWS` windows, one after another; memory is that of one.

    Parameters
    ----------
    read : callable
        ``read(start, stop)`` gives stored values, (stop - start, n_channels).
    """
    length = min(num_samples, max(2, round(WINDOW_S * sampling_frequency)))
    starts = np.unique(np.linspace(0, num_samples - length, NUM_WINDOWS).astype(np.int64)).tolist()
    first = read(starts[0], starts[0] + 1)[0]
    is_flat, is_empty = np.ones(len(first), dtype=bool), np.ones(len(first), dtype=bool)
    first_hole = np.full(len(first), -1, dtype=np.int64)
    for start in starts:
        window = read(start, start + length)
        is_flat &= (window == first).all(axis=0)
        finite = np.isfinite(window)
        is_empty &= ~finite.any(axis=0)
        new = ~finite.all(axis=0) & (first_hole < 0)
        first_hole[new] = start + finite[:, new].argmin(axis=0)
    where = f"in {len(starts)} windows of {length} samples, from the first to the last"
    return Look(where, first, is_flat, is_empty, first_hole)


def find_dead(look: Look, path: str, channel_ids: Sequence[str], left_out: dict[int, str]) -> dict[int, str]:
    """Channels that hold no signal, with the reason, by position.

    Parameters
    ----------
    left_out : dict of int to str
        Channels that are left out already; what they hold does not matter.

    Raises
    ------
    NwbError
        If none of the other channels holds a signal, or one of them has holes.
    """
    live = np.array([k for k in range(len(channel_ids)) if k not in left_out], dtype=np.int64)
    if len(live) == 0:
        return {}
    if look.is_empty[live].all():
        raise NwbError(f"{path} holds NaN only, {look.where}. Convert the session again.")
    if (look.is_flat | look.is_empty)[live].all():
        raise NwbError(f"Every channel of {path} is constant, {look.where}. There is no signal to sort.")
    dead = {}
    for channel in live.tolist():
        if look.is_empty[channel]:
            dead[channel] = f"dead: NaN only, {look.where}"
        elif look.is_flat[channel]:
            dead[channel] = f"dead: always {look.first[channel]:g}, {look.where}"
    holed = [k for k in live.tolist() if k not in dead and look.first_hole[k] >= 0]
    if holed:
        channel = min(holed, key=lambda k: int(look.first_hole[k]))
        raise NwbError(
            f"{path} is not finite at sample {look.first_hole[channel]}, channel {channel_ids[channel]}. "
            "Leave that stretch out, or fill it in, when converting."
        )
    return dead
