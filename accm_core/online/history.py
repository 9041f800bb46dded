"""The newest rows of what grows without end."""

import numpy as np

ROOM = 8
"""Times of what is kept that fit, before it is moved back to the front."""


class History:
    """Keeps the newest ``num_rows`` rows, as one contiguous array.

    Parameters
    ----------
    num_rows : int
    num_columns : int
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        self._num_rows = num_rows
        self._rows = np.zeros((ROOM * num_rows, num_columns), dtype=np.float32)
        self._stop = num_rows

    def append(self, rows: np.ndarray) -> None:
        """Add rows, (n, num_columns), at most as many as are kept."""
        if self._stop + len(rows) > len(self._rows):
            self._rows[: self._num_rows] = self.newest.copy()
            self._stop = self._num_rows
        self._rows[self._stop : self._stop + len(rows)] = rows
        self._stop += len(rows)

    def fill(self, row: np.ndarray | float) -> None:
        """Make all that is kept this row, (num_columns,) or a number."""
        self._stop = self._num_rows
        self.newest[:] = row

    @property
    def newest(self) -> np.ndarray:
        """What is kept, (num_rows, num_columns), oldest first; a view."""
        return self._rows[self._stop - self._num_rows : self._stop]
