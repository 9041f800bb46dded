"""The transpose in tiles against numpy's."""

import numpy as np
import pytest

from accm_core.signal.transpose import TILE, transpose


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (TILE, TILE), (TILE - 1, 2 * TILE + 1), (3 * TILE + 7, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_numpy(shape, dtype):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    moved = transpose(values)
    assert moved.dtype == dtype
    assert moved.flags.c_contiguous
    np.testing.assert_array_equal(moved, values.T)
    assert not np.shares_memory(moved, values)


def test_takes_what_is_not_contiguous():
    values = np.arange(400.0).reshape(20, 20)
    np.testing.assert_array_equal(transpose(values[:, :7]), values[:, :7].T)
    np.testing.assert_array_equal(transpose(values.T), values)
