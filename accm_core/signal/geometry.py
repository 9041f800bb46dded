"""Which channels are near which: the only place where the probe's shape enters."""

import numpy as np


def channel_distances(channel_locations: np.ndarray, has_geometry: bool) -> np.ndarray:
    """Distance between channels, (n_channels, n_channels), µm; all zero where positions are unknown."""
    if not has_geometry:
        return np.zeros((len(channel_locations), len(channel_locations)))
    return np.linalg.norm(channel_locations[:, None] - channel_locations[None], axis=-1)


def nearest_channels(distances: np.ndarray, num_nearest: int, radius_um: float) -> np.ndarray:
    """Channels around each channel, in an order that is alike along a regular probe.

    Parameters
    ----------
    distances : ndarray of shape (n_channels, n_channels)
        µm.
    num_nearest : int
        Slots; capped at the number of channels.
    radius_um : float
        Channels farther than this are left out.

    Returns
    -------
    ndarray of shape (n_channels, n_slots), int64
        Nearest first, the channel itself at slot 0; -1 where there is none. A probe of at most
        ``num_nearest`` channels, all within the radius of each other, is seen whole and in the same
        order from each of its channels.
    """
    num_channels = len(distances)
    num_nearest = min(num_nearest, num_channels)
    if num_nearest == num_channels and (distances <= radius_um).all():
        return np.tile(np.arange(num_channels), (num_channels, 1))
    # the channel's own distance goes below the others at the same place
    sort_key = distances - np.eye(num_channels)
    order = np.argsort(sort_key, axis=1, kind="stable")[:, :num_nearest]
    return np.where(np.take_along_axis(distances, order, axis=1) <= radius_um, order, -1)
