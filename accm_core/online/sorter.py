"""A stream of samples -> spikes, the same however the stream is cut."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from accm_core.online.follow import SWAP_S, UPDATE_S, FollowedBank, Follower, describe_bank
from accm_core.online.plan import ShankPlan, StreamPlan
from accm_core.online.shank import Decided, ShankStream
from accm_core.sorting.match import calibrate


@dataclass(frozen=True)
class OnlineSpikes:
    """Spikes that are decided, in order of time, then unit.

    Attributes
    ----------
    sample_index : ndarray of shape (n,), int64
        As the stream counts.
    unit_index : ndarray of shape (n,), int64
    channel_index : ndarray of shape (n,), int64
        Main channel of the unit, among those of the stream.
    amplitude_uV : ndarray of shape (n,), float32
    probability : ndarray of shape (n,), float32
    is_overlap : ndarray of shape (n,), bool
    """

    sample_index: np.ndarray
    unit_index: np.ndarray
    channel_index: np.ndarray
    amplitude_uV: np.ndarray  # noqa: N815  the unit's symbol
    probability: np.ndarray
    is_overlap: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_index)

    def select(self, rows: np.ndarray) -> "OnlineSpikes":
        """The spikes at ``rows`` (indices or mask)."""
        return OnlineSpikes(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def move(self, delay: int) -> "OnlineSpikes":
        """The spikes ``delay`` samples later."""
        return replace(self, sample_index=self.sample_index + delay)

    @staticmethod
    def join(parts: "list[OnlineSpikes]") -> "OnlineSpikes":
        """One after another."""
        whole = [_NO_SPIKES, *parts]
        return OnlineSpikes(
            *(np.concatenate([getattr(p, n) for p in whole]) for n in OnlineSpikes.__dataclass_fields__)
        )


_NO_SPIKES = OnlineSpikes(
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros(0, np.int64),
    np.zeros(0, np.float32),
    np.zeros(0, np.float32),
    np.zeros(0, np.bool_),
)


class _Shank:
    """A shank's stream, with its units as they are now."""

    def __init__(self, plan: ShankPlan, stream: StreamPlan, pool: ThreadPoolExecutor | None) -> None:
        self._plan = plan
        self.stream = ShankStream(plan, stream.match, stream.lookahead, stream.sampling_frequency)
        self._now: FollowedBank = describe_bank(plan.bank, plan.preprocessor)
        self._follower = None if pool is None else Follower(plan.bank, plan.preprocessor, pool)
        self._decided: list[Decided] = []

    def step(self, raw: np.ndarray) -> None:
        decided = self.stream.step(raw)
        if len(decided.matches):
            self._decided.append(decided)

    def take_spikes(self) -> OnlineSpikes:
        """What was decided since this was asked last."""
        if not self._decided:
            return _NO_SPIKES
        decided = Decided.join(self._decided)
        self._decided = []
        if self._follower is not None:
            self._follower.add(decided.clean_units, decided.points)
        return self._describe(decided)

    def begin_update(self) -> None:
        if self._follower is not None:
            self._follower.begin()

    def take_update(self) -> None:
        taken = None if self._follower is None else self._follower.take()
        if taken is not None:
            self._now = taken
            self.stream.use_bank(taken.bank)

    def _describe(self, decided: Decided) -> OnlineSpikes:
        matches, bank = decided.matches, self._now.bank
        units = matches.unit_index
        return OnlineSpikes(
            sample_index=matches.sample_index,
            unit_index=self._plan.unit_index[units],
            channel_index=self._plan.preprocessor.channels[self._now.main_channel[units]],
            amplitude_uV=matches.free_scale(bank) * self._now.height_uV[units],
            probability=calibrate(matches.probability),
            is_overlap=decided.is_overlap,
        )


class OnlineSorter:
    """Sorts a stream into known units.

    Parameters
    ----------
    plan : StreamPlan
    first_sample : int
        Number of the stream's first sample.
    follow : bool
        Let the templates follow their units.

    Attributes
    ----------
    acknowledged : int
        All spikes before this sample have been given.

    Notes
    -----
    Arithmetic is done in steps on a grid that starts with the segment, so that the result, to the last bit,
    does not depend on how the stream was cut.

    Examples
    --------
    >>> sorter = OnlineSorter(plan)  # doctest: +SKIP
    >>> spikes = sorter.feed(traces)  # doctest: +SKIP
    """

    def __init__(self, plan: StreamPlan, *, first_sample: int = 0, follow: bool = True) -> None:
        self._plan = plan
        self._step = plan.lookahead.step
        self._pool = ThreadPoolExecutor(1) if follow else None
        self._shanks = [_Shank(shank, plan, self._pool) for shank in plan.shanks]
        self._update_steps = round(UPDATE_S * plan.sampling_frequency / self._step)
        self._swap_steps = round(SWAP_S * plan.sampling_frequency / self._step)
        self._num_steps = 0
        self._pending = np.zeros((0, plan.num_channels), dtype=np.float32)
        self._last = np.zeros(plan.num_channels, dtype=np.float32)
        self._begin_segment(first_sample)

    @property
    def next_sample(self) -> int:
        """Number of the sample that `feed` takes next."""
        return self._start + self._num_fed

    def feed(self, traces: np.ndarray) -> OnlineSpikes:
        """Take the next samples, (n_samples, n_channels), float32, µV; give what is decided by them."""
        self._num_fed += len(traces)
        pending = np.concatenate([self._pending, traces]) if len(self._pending) else traces
        whole = len(pending) - len(pending) % self._step
        found = self._work(pending[:whole])
        self._pending = np.array(pending[whole:], dtype=np.float32)
        return self._report(found, self._start + self._num_fed)

    def end_segment(self, next_sample: int | None = None) -> OnlineSpikes:
        """Decide all that is left; the next samples, if any, begin a segment at ``next_sample``.

        Notes
        -----
        The traces are continued by their last sample, as they are before their first.
        """
        stop = self._start + self._num_fed
        found: list[OnlineSpikes] = []
        if self._num_fed > 0:
            num_samples = len(self._pending) + self._plan.lookahead.total
            num_samples += -num_samples % self._step
            padded = np.tile(self._pending[-1] if len(self._pending) else self._last, (num_samples, 1))
            padded[: len(self._pending)] = self._pending
            found = self._work(padded)
        spikes = self._report(found, stop)
        self._begin_segment(stop if next_sample is None else next_sample)
        return spikes

    def close(self) -> None:
        """Let go of the second thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _begin_segment(self, first_sample: int) -> None:
        self._start = self.acknowledged = first_sample
        self._num_fed = self._num_worked = 0
        self._pending = self._pending[:0]
        for shank in self._shanks:
            shank.stream.start()

    def _work(self, traces: np.ndarray) -> list[OnlineSpikes]:
        """Some steps of all shanks."""
        found = []
        for first in range(0, len(traces), self._step):
            raw = traces[first : first + self._step]
            self._last = raw[-1].copy()
            self._num_steps += 1
            phase = self._num_steps % self._update_steps
            for shank in self._shanks:
                if phase == 0:
                    found.append(shank.take_spikes())
                    shank.begin_update()
                elif phase == self._swap_steps:
                    found.append(shank.take_spikes())
                    shank.take_update()
                shank.step(raw)
        found += [shank.take_spikes() for shank in self._shanks]
        self._num_worked += len(traces)
        return found

    def _report(self, found: list[OnlineSpikes], stop: int) -> OnlineSpikes:
        """Spikes of these steps that are within the segment, in order."""
        spikes = OnlineSpikes.join([part for part in found if len(part)]).move(self._start)
        inside = (spikes.sample_index >= self._start) & (spikes.sample_index < stop)
        order = np.lexsort((spikes.unit_index, spikes.sample_index))
        decided = self._start + self._num_worked - self._plan.lookahead.decided
        self.acknowledged = min(max(decided, self._start), stop)
        return spikes.select(order[inside[order]])
