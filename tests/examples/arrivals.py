"""What came to the stand-in of the service."""

import time

import numpy as np

PATIENCE_S = 60.0


def wait_until(is_so):
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def arrived(fake):
    """First sample of each stretch, and all µV, as they came to the service."""
    (session,) = fake.streams
    firsts, parts = session["first_samples"], session["parts"]
    ends = [first + len(part) for first, part in zip(firsts, parts, strict=True)]
    starts = [first for first, end in zip(firsts, [None, *ends[:-1]], strict=True) if first != end]
    return starts, np.concatenate(parts)
