"""What a stream sends while it calibrates: kept in a file, to be calibrated on and then to be sorted."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from accm_core.types import Segment
from service.stream_hello import Hello

MAX_BACKLOG_S, MAX_BYTES, MIN_FREE_BYTES = 600.0, 16 << 30, 1 << 30
"""Seconds that may wait beyond the calibration, bytes kept of one session, and bytes left on the disk."""
MAX_STRETCHES = 10_000
"""Gapless stretches in the file."""


class BacklogError(Exception):
    """More waits than is kept."""


@dataclass
class Stretch:
    """A gapless stretch of the stream.

    Attributes
    ----------
    first_sample : int
        As the stream counts.
    start, stop : int
        Samples in the file.
    """

    first_sample: int
    start: int
    stop: int


class Spool:
    """A file that samples are appended to and read from, in order.

    Parameters
    ----------
    folder : Path
        Where the file is made.
    hello : Hello
    max_samples : int
        Kept at most.
    """

    def __init__(self, folder: Path, hello: Hello, max_samples: int) -> None:
        self.path = folder / "raw"
        self._hello, self._max_samples = hello, max_samples
        self._file: BinaryIO = self.path.open("xb", buffering=0)
        self.stretches: list[Stretch] = []
        self.num_samples = self.position = 0

    def append(self, first_sample: int, samples: np.ndarray) -> None:
        """Keep the samples of a message, (n_samples, n_channels), as they were sent.

        Raises
        ------
        BacklogError
            If there are too many by now, or the disk is full.
        """
        num_new = len(samples)
        if num_new == 0:
            return
        fs = self._hello.sampling_frequency
        num_bytes = (self.num_samples + num_new) * self._hello.sample_bytes
        if self.num_samples + num_new > self._max_samples or num_bytes > MAX_BYTES:
            raise BacklogError(
                f"{(self.num_samples - self.position) / fs:.0f} s of samples wait to be sorted; "
                f"{MAX_BACKLOG_S:g} s beyond the calibration and {MAX_BYTES >> 30} GiB in all are kept. "
                "Calibrate on less, start from a model, or use a faster machine."
            )
        if shutil.disk_usage(self.path.parent).free < MIN_FREE_BYTES + samples.nbytes:
            raise BacklogError(
                f"The server's disk has less than {MIN_FREE_BYTES >> 30} GiB left; no more samples are kept. "
                "Free some space, or start from a model."
            )
        self._file.write(samples.tobytes())
        last = self.stretches[-1] if self.stretches else None
        if last is not None and last.first_sample + last.stop - last.start == first_sample:
            last.stop += num_new
        elif len(self.stretches) < MAX_STRETCHES:
            self.stretches.append(Stretch(first_sample, self.num_samples, self.num_samples + num_new))
        else:
            raise BacklogError(
                f"The stream has {MAX_STRETCHES} gaps already. Send samples without gaps between messages."
            )
        self.num_samples += num_new

    def read(self, most: int) -> tuple[int, np.ndarray]:
        """The next samples that wait, at most so many, without a gap: the first's number, and they, in µV."""
        stretch = next(s for s in self.stretches if self.position < s.stop)
        stop = min(self.position + most, stretch.stop)
        traces = self._hello.to_microvolts(self.raw()[self.position : stop])
        first_sample = stretch.first_sample + self.position - stretch.start
        self.position = stop
        return first_sample, traces

    def raw(self) -> np.ndarray:
        """All samples as they were sent, (num_samples, num_channels), read from the file when used."""
        return map_samples(self.path, self._hello, self.num_samples)

    def remove(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class SpooledRecording:
    """The beginning of a stream as a recording to be sorted; gaps are cut out.

    Attributes
    ----------
    raw : ndarray of shape (n_samples, n_channels)
        As sent.
    hello : Hello
    segments : tuple of Segment
    """

    raw: np.ndarray
    hello: Hello
    segments: tuple[Segment, ...]

    @property
    def sampling_frequency(self) -> float:
        """Hz."""
        return self.hello.sampling_frequency

    @property
    def channel_ids(self) -> tuple[str, ...]:
        """Identity of each channel."""
        return self.hello.ids

    @property
    def has_geometry(self) -> bool:
        """Whether the client knows where the channels are."""
        return self.hello.channel_locations is not None

    @property
    def channel_locations(self) -> np.ndarray:
        """µm, (n_channels, 2); zero where unknown."""
        known = self.hello.channel_locations
        return np.zeros((self.hello.num_channels, 2)) if known is None else np.array(known, dtype=np.float64)

    @property
    def channel_groups(self) -> np.ndarray:
        """Shank of each channel, (n_channels,)."""
        known = self.hello.channel_groups
        return np.array([0] * self.hello.num_channels if known is None else known, dtype=np.int64)

    def get_traces(self, start: int, stop: int) -> np.ndarray:
        """Samples ``start`` to ``stop`` in µV, float32."""
        return self.hello.to_microvolts(self.raw[start:stop])

    def sample_to_time(self, sample_index: np.ndarray) -> np.ndarray:
        """Seconds of recording, without the gaps."""
        return np.asarray(sample_index) / self.hello.sampling_frequency


def map_samples(path: Path, hello: Hello, num_samples: int) -> np.ndarray:
    """Samples in a spool's file, (num_samples, num_channels), as they were sent."""
    dtype = np.dtype(hello.dtype).newbyteorder("<")
    return np.memmap(path, dtype, "r", shape=(num_samples, hello.num_channels))
