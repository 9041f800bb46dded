"""Samples by channels to channels by samples and back, in tiles that stay in the processor's cache."""

import numba
import numpy as np

TILE = 32
"""Rows and columns moved at once: numpy moves whole rows, each value of which lies on another page."""


@numba.njit(cache=True, nogil=True)
def transpose(values: np.ndarray) -> np.ndarray:
    """A contiguous copy of ``values.T``; several times faster than numpy's for traces.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)

    Returns
    -------
    ndarray of shape (n_columns, n_rows), same dtype

    Examples
    --------
    >>> transpose(np.array([[1, 2, 3], [4, 5, 6]]))
    array([[1, 4],
           [2, 5],
           [3, 6]])
    """
    num_rows, num_columns = values.shape
    moved = np.empty((num_columns, num_rows), dtype=values.dtype)
    for first_row in range(0, num_rows, TILE):
        rows = range(first_row, min(first_row + TILE, num_rows))
        for first_column in range(0, num_columns, TILE):
            for column in range(first_column, min(first_column + TILE, num_columns)):
                for row in rows:
                    moved[column, row] = values[row, column]
    return moved
