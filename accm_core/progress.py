"""How far long work is: the stages, about how much of the time each takes, and the time left."""

import time
from collections.abc import Callable, Mapping

SORT_SHARES = {  # as measured on a minute of 32 channels
    "noise": 0.10,
    "detect": 0.13,
    "motion": 0.02,
    "learn": 0.35,
    "cluster": 0.02,
    "templates": 0.12,
    "refine": 0.08,
    "match": 0.13,
    "write": 0.04,
    "report": 0.01,
}
FINETUNE_SHARES = {  # as measured on three minutes of one wire
    "noise": 0.01,
    "detect": 0.04,
    "motion": 0.01,
    "labels": 0.04,
    "learn": 0.15,
    "heads": 0.75,
}
PRETRAIN_SHARES = {"pretrain": 1.0}
LEAST_FRACTION, LEAST_ELAPSED_S = 0.02, 2.0
"""Of the work done, and seconds, before which the time left is not guessed."""


class Tally:
    """How far the whole work is, from news of its stages.

    A stage may stop and go on later, as when the shanks of a probe go through all stages one by one. What
    follows a colon says more about it: ``sort: detect`` counts as ``sort``.

    Parameters
    ----------
    shares : mapping of str to float
        The stages, and about how much of the time each takes.
    clock : callable
        Seconds.
    """

    def __init__(self, shares: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._shares = shares
        self._clock = clock
        self._started = clock()
        self._fractions: dict[str, float] = {}

    def update(self, stage: str, fraction: float) -> tuple[float, float, float | None]:
        """Take news of a stage; give the share of all that is done, the seconds so far, and those left."""
        stage = stage.partition(":")[0]
        before = self._fractions.get(stage, 0.0)
        self._fractions[stage] = max(before, min(fraction, 1.0))
        done = sum(self._shares.get(name, 0.0) * value for name, value in self._fractions.items())
        overall = done / sum(self._shares.values())
        elapsed = self._clock() - self._started
        is_known = overall >= LEAST_FRACTION and elapsed >= LEAST_ELAPSED_S
        return overall, elapsed, elapsed * (1 - overall) / overall if is_known else None
