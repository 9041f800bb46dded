"""How a session begins: it records, has that calibrated on, and reports what the calibration found."""

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from accm_core.online.lookahead import make_lookahead
from accm_core.online.sorter import OnlineSorter, OnlineSpikes
from accm_core.params import to_samples
from accm_core.types import Segment
from service import stream_calibrate
from service.stream_calibrate import Calibrated, Need, Refused, Stored
from service.stream_hello import Hello
from service.stream_line import Line, Message, Refusal
from service.stream_spool import MAX_BACKLOG_S, BacklogError, Spool
from service.stream_wire import BAD_HELLO, FAILED, PROTOCOL, TRY_LATER

RUN_IN_S, SEAM_S = 20.0, 0.1
"""Of the stretch that was sorted: the end, sorted again so that templates are where their units are by now;
and the last moment, whose spikes are taken from there, for the sort saw nothing of what follows it."""
MIN_CALIBRATION_S = 10.0
"""Of a stream that ends before there is enough, on which it is calibrated nevertheless."""
REPORT_EVERY_S = 1.0
"""Between two events that tell how far the calibration is."""


@dataclass(frozen=True)
class Seam:
    """Where spikes of the sort end and those found online begin.

    Attributes
    ----------
    sample : int
        As the stream counts.
    last_spike : ndarray of shape (n_units,), int64
        Of each unit before it.
    refractory : int
        Samples.
    """

    sample: int
    last_spike: np.ndarray
    refractory: int

    def keep_new(self, spikes: OnlineSpikes) -> OnlineSpikes:
        """The spikes that the sort has not reported already."""
        apart = spikes.sample_index - self.last_spike[spikes.unit_index]
        return spikes.select((spikes.sample_index >= self.sample) & (apart >= self.refractory))


@dataclass(frozen=True)
class Begun:
    """A session that is calibrated.

    Attributes
    ----------
    sorter : OnlineSorter
    spool : Spool
        What waits to be sorted.
    seam : Seam or None
        None where nothing was sorted before.
    """

    sorter: OnlineSorter
    spool: Spool
    seam: Seam | None


class Starter:
    """Begins a session.

    Parameters
    ----------
    hello : Hello
    folder : Path
        The session's own, in the streams' folder of the data folder.
    line : Line
    """

    def __init__(self, hello: Hello, folder: Path, line: Line) -> None:
        self._hello, self._folder, self._line = hello, folder, line
        self._fs = hello.sampling_frequency
        self._told = 0.0

    def begin(self, device: str) -> Begun:
        """Record and calibrate.

        Raises
        ------
        Refusal
            If that cannot be.
        EOFError
            If the client or the server is gone.
        """
        context = multiprocessing.get_context("spawn")
        connection, other = context.Pipe()
        data_folder = self._folder.absolute().parents[1]
        helper = context.Process(
            target=stream_calibrate.run, args=(other, self._hello, data_folder, device), daemon=True
        )
        helper.start()
        other.close()
        need: Need = self._hear(connection)
        self._tell_ready(need)
        spool = Spool(self._folder, self._hello, need.num_samples + round(MAX_BACKLOG_S * self._fs))
        calibrated = self._calibrate(connection, need, spool)
        helper.join()
        self._line.tell(event="calibrated", units=calibrated.units)
        if calibrated.warning:
            self._line.tell(event="error", error=calibrated.warning)
        if calibrated.spikes is None:
            spool.position = 0
            first_sample = spool.stretches[0].first_sample
            return Begun(OnlineSorter(calibrated.plan, first_sample=first_sample), spool, None)
        return self._go_over(calibrated, calibrated.spikes, spool)

    def _tell_ready(self, need: Need) -> None:
        num_after = to_samples(self._hello.params.match.ms_after, self._fs)
        lookahead = make_lookahead(self._fs, num_after).total
        self._line.tell(
            ready=True,
            session=self._folder.name,
            protocol=PROTOCOL,
            calibrating=True,
            units=need.units,
            lookahead_ms=round(1e3 * lookahead / self._fs, 3),
            max_samples=self._hello.max_samples,
        )

    def _calibrate(self, connection: Connection, need: Need, spool: Spool) -> Calibrated:
        """Take in samples until there are enough, and go on taking in while they are calibrated on."""
        while not self._line.is_ended and spool.num_samples < need.num_samples:
            self._take_in(spool, None)
            self._tell_share(0.5 * min(spool.num_samples / need.num_samples, 1.0))
        if spool.num_samples < min(need.num_samples, round(MIN_CALIBRATION_S * self._fs)):
            raise Refusal(
                BAD_HELLO,
                f"The stream ended after {spool.num_samples / self._fs:.1f} s; at least "
                f"{MIN_CALIBRATION_S:g} s are needed to begin. Send more.",
            )
        stop = min(spool.num_samples, need.num_samples)
        segments = tuple(Segment(s.start, min(s.stop, stop)) for s in spool.stretches if s.start < stop)
        connection.send(Stored(spool.path, stop, segments))
        spool.position = stop  # what is calibrated on does not wait
        while True:
            ready = wait([connection] if self._line.is_ended else [connection, self._line.descriptor])
            if self._line.descriptor in ready:
                self._take_in(spool, 0)
            if connection in ready:
                news = self._hear(connection)
                if isinstance(news, Calibrated):
                    return news
                self._tell_share(0.5 + 0.5 * news)

    def _take_in(self, spool: Spool, timeout: float | None) -> None:
        keep(self._line.take(timeout), spool)

    def _hear(self, connection: Connection) -> Any:
        """What the calibrating process says; ends the session when it gives up."""
        try:
            news = connection.recv()
        except EOFError:
            text = "The calibration was killed; it may have run out of memory. Calibrate on less."
            raise Refusal(FAILED, text) from None
        if isinstance(news, Refused):
            raise Refusal(BAD_HELLO, news.text)
        return news

    def _tell_share(self, share: float) -> None:
        """Tell how far the calibration is, now and then."""
        now = time.monotonic()
        if now - self._told >= REPORT_EVERY_S:
            self._told = now
            self._line.tell(event="calibration", fraction=round(share, 3))

    def _go_over(self, calibrated: Calibrated, found: OnlineSpikes, spool: Spool) -> Begun:
        """Report what the sort found, and begin to sort online a little before its end."""
        stop = spool.position
        last = next(s for s in reversed(spool.stretches) if s.start < stop)
        seam = max(last.start, stop - round(SEAM_S * self._fs))
        last_spike = np.full(len(calibrated.units), -(1 << 62), dtype=np.int64)
        for stretch in spool.stretches:
            end = min(stretch.stop, seam)
            if stretch.start < end:
                inside = (found.sample_index >= stretch.start) & (found.sample_index < end)
                spikes = found.select(inside).move(stretch.first_sample - stretch.start)
                np.maximum.at(last_spike, spikes.unit_index, spikes.sample_index)
                upto = stretch.first_sample + end - stretch.start
                behind_s = (spool.num_samples - spool.position) / self._fs
                self._line.send(spikes, upto, behind_s, is_behind=True, from_calibration=True)
        spool.position = max(last.start, stop - round(RUN_IN_S * self._fs))
        refractory = to_samples(self._hello.params.match.refractory_ms, self._fs)
        offset = last.first_sample - last.start
        return Begun(
            OnlineSorter(calibrated.plan, first_sample=spool.position + offset),
            spool,
            Seam(seam + offset, last_spike, refractory),
        )


def keep(messages: list[Message], spool: Spool) -> None:
    """Put messages aside for later.

    Raises
    ------
    Refusal
        If there are too many by now.
    """
    for message in messages:
        try:
            spool.append(message.first_sample, message.samples)
        except BacklogError as error:
            raise Refusal(TRY_LATER, str(error)) from error
