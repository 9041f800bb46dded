"""Neighbours of channels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accm_core.signal.geometry import channel_distances, nearest_channels

LINE = np.array([[0.0, 0.0], [0.0, 20.0], [0.0, 40.0], [0.0, 60.0]])


def test_distances():
    distances = channel_distances(np.array([[0.0, 0.0], [30.0, 40.0], [0.0, -5.0]]), has_geometry=True)
    np.testing.assert_allclose(distances, [[0, 50, 5], [50, 0, np.hypot(30, 45)], [5, np.hypot(30, 45), 0]])


def test_without_geometry_all_are_neighbours():
    assert not channel_distances(LINE, has_geometry=False).any()


@pytest.mark.parametrize(
    ("num_nearest", "radius_um", "expected"),
    [
        (2, 100, [[0, 1], [1, 0], [2, 1], [3, 2]]),
        (3, 25, [[0, 1, -1], [1, 0, 2], [2, 1, 3], [3, 2, -1]]),
        (1, 100, [[0], [1], [2], [3]]),
        (9, 100, [[0, 1, 2, 3]] * 4),
        (4, 60, [[0, 1, 2, 3]] * 4),
        (4, 59, [[0, 1, 2, -1], [1, 0, 2, 3], [2, 1, 3, 0], [3, 2, 1, -1]]),
    ],
    ids=["two", "radius", "alone", "capped-and-whole", "radius-is-inclusive", "just-too-far"],
)
def test_nearest_channels_of_a_line(num_nearest, radius_um, expected):
    found = nearest_channels(channel_distances(LINE, has_geometry=True), num_nearest, radius_um)
    assert found.tolist() == expected


def test_channels_at_the_same_place_come_after_the_channel_itself():
    found = nearest_channels(np.zeros((5, 5)), 3, 100.0)
    np.testing.assert_array_equal(found[:, 0], np.arange(5))
    assert all(len(set(row)) == 3 for row in found.tolist())


@given(st.data())
def test_nearest_are_nearest(data):
    count = data.draw(st.integers(1, 12))
    coordinate = st.integers(0, 200).map(float)
    places = data.draw(st.lists(st.tuples(coordinate, coordinate), min_size=count, max_size=count))
    num_nearest, radius = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 300).map(float))
    distances = channel_distances(np.array(places), has_geometry=True)
    found = nearest_channels(distances, num_nearest, radius)
    assert found.shape == (count, min(num_nearest, count))
    for channel, row in enumerate(found):
        kept = row[row >= 0]
        assert channel in kept
        assert len(set(kept.tolist())) == len(kept)
        left_out = np.setdiff1d(np.arange(count), kept)
        assert (distances[channel, kept] <= radius).all()
        if len(kept) < found.shape[1]:
            assert (distances[channel, left_out] > radius).all()
        elif len(left_out):
            assert distances[channel, kept].max() <= distances[channel, left_out].min()
