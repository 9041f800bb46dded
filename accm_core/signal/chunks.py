"""Walk a recording in chunks, on all cores, with the same result whatever the chunk length.

The recording is cut on a fixed grid of one-second blocks. Every computation sees one block and its
margin; a chunk is only how many blocks are read at once. So the arithmetic, to the last bit, does
not depend on the chunk length nor on the number of threads.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from accm_core.params import RunParams
from accm_core.types import Recording, Segment

BLOCK_S = 1.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class Block:
    """Samples ``start`` to ``stop`` of a segment, half-open; at most one second."""

    start: int
    stop: int
    segment: Segment

    @property
    def middle(self) -> float:
        """Between ``start`` and ``stop``."""
        return 0.5 * (self.start + self.stop)


def cut_blocks(segments: Sequence[Segment], sampling_frequency: float) -> list[Block]:
    """Cut segments into one-second blocks; the last of each segment is shorter."""
    length = round(BLOCK_S * sampling_frequency)
    return [
        Block(start, min(start + length, segment.stop), segment)
        for segment in segments
        for start in range(segment.start, segment.stop, length)
    ]


def spread_blocks(blocks: Sequence[Block], num_blocks: int) -> list[Block]:
    """At most ``num_blocks`` blocks, evenly spread over the recording."""
    if len(blocks) <= num_blocks:
        return list(blocks)
    return [blocks[k] for k in np.linspace(0, len(blocks) - 1, num_blocks).round().astype(int)]


def read_padded(recording: Recording, start: int, stop: int, segment: Segment) -> np.ndarray:
    """Traces from ``start`` to ``stop``, continued past the segment's borders by odd reflection.

    Returns
    -------
    ndarray of shape (stop - start, n_channels), float32
        µV.
    """
    inside = recording.get_traces(max(start, segment.start), min(stop, segment.stop))
    before, after = max(segment.start - start, 0), max(stop - segment.stop, 0)
    if before == 0 and after == 0:
        return inside
    return np.pad(inside, ((before, after), (0, 0)), mode="reflect", reflect_type="odd")


def count_workers(run: RunParams) -> int:
    """Threads to use: as asked, else the cores that this process may use."""
    return run.num_workers or len(os.sched_getaffinity(0))


def map_blocks(
    function: Callable[[Block, np.ndarray], Result],
    recording: Recording,
    blocks: Sequence[Block],
    *,
    margin: int,
    run: RunParams,
    on_block: Callable[[float], None] | None = None,
) -> Iterator[Result]:
    """Call ``function(block, raw)`` for each block, on all cores; yield the results in order.

    Parameters
    ----------
    function : callable
        Gets a block and its raw traces, (block length + 2 margin, n_channels), float32, µV. Must not
        keep state: it runs on several threads.
    recording : Recording
    blocks : sequence of Block
    margin : int
        Samples read on each side of a block.
    run : RunParams
        Chunk length and number of threads.
    on_block : callable, optional
        Called with the share of the blocks that is done.

    Yields
    ------
    object
        What ``function`` returned, in the order of ``blocks``.

    Notes
    -----
    At most twice as many chunks as threads are in memory, whatever the recording's length.
    """
    blocks_per_chunk = max(1, round(run.chunk_s / BLOCK_S))
    num_workers = count_workers(run)

    def read_chunk(chunk: Sequence[Block]) -> np.ndarray:
        return read_padded(recording, chunk[0].start - margin, chunk[-1].stop + margin, chunk[0].segment)

    def run_chunk(chunk: Sequence[Block], reading: Future[np.ndarray]) -> list[Result]:
        raw = reading.result()
        offset = chunk[0].start
        return [function(b, raw[b.start - offset : b.stop - offset + 2 * margin]) for b in chunk]

    done = 0
    # one BLAS thread each: the blocks are what runs in parallel; the disk is read while they are computed
    with threadpool_limits(1), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(num_workers) as pool:
        pending: deque[Future[list[Result]]] = deque()
        chunks = _contiguous_chunks(blocks, blocks_per_chunk)
        try:
            for chunk in chunks:
                pending.append(pool.submit(run_chunk, chunk, reader.submit(read_chunk, chunk)))
                if len(pending) > num_workers:
                    for result in pending.popleft().result():
                        yield result
                        done += 1
                    if on_block is not None:
                        on_block(done / len(blocks))
            while pending:
                for result in pending.popleft().result():
                    yield result
                    done += 1
                if on_block is not None:
                    on_block(done / len(blocks))
        finally:
            for future in pending:
                future.cancel()


def _contiguous_chunks(blocks: Sequence[Block], length: int) -> Iterator[list[Block]]:
    """Group blocks that follow each other in one segment, at most ``length`` at a time."""
    chunk: list[Block] = []
    for block in blocks:
        follows = chunk and block.segment == chunk[-1].segment and block.start == chunk[-1].stop
        if chunk and (not follows or len(chunk) == length):
            yield chunk
            chunk = []
        chunk.append(block)
    if chunk:
        yield chunk
