"""The history against an array that grows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accm_core.online.history import History


@given(num_rows=st.integers(1, 5), lengths=st.lists(st.integers(0, 5), max_size=40))
def test_it_keeps_the_newest_rows(num_rows, lengths):
    history, everything = History(num_rows, 2), np.zeros((num_rows, 2), dtype=np.float32)
    count = 0
    for length in lengths:
        rows = count + np.arange(2 * min(length, num_rows), dtype=np.float32).reshape(-1, 2)
        count += rows.size
        history.append(rows)
        everything = np.concatenate([everything, rows])
        np.testing.assert_array_equal(history.newest, everything[-num_rows:])
        assert history.newest.flags.c_contiguous
    history.fill(np.array([7.0, 8.0]))
    np.testing.assert_array_equal(history.newest, np.tile([7.0, 8.0], (num_rows, 1)))
