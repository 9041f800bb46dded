"""What several callers ask of a model at once, computed together."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

BATCH_ROWS = 16_384
"""Rows computed together, unless one caller alone brings more."""


class Batcher:
    """Collects rows of several callers while others are computed. Used from one event loop.

    Parameters
    ----------
    compute : callable
        Rows (n, ...) to answers (n, ...); each answer depends on its own row alone.
    executor : Executor
        Where it is called.
    gate : asyncio.Lock
        Held while it computes; shared by those that are to take turns.
    """

    def __init__(
        self, compute: Callable[[np.ndarray], np.ndarray], executor: Executor, gate: asyncio.Lock
    ) -> None:
        self._compute, self._executor, self._gate = compute, executor, gate
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, rows: np.ndarray) -> np.ndarray:
        """Answers to some rows, when they are there; raises what ``compute`` raises."""
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            async with self._gate:
                taken = self._take()  # after waiting for the gate: what came meanwhile goes along
                parts = [rows for rows, _ in taken]
                try:
                    answers = await loop.run_in_executor(self._executor, self._compute_parts, parts)
                except Exception as error:  # whatever it is, the callers are told
                    for _, answer in taken:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
            for (_, answer), found in zip(taken, answers, strict=True):
                if not answer.done():  # its caller may be gone
                    answer.set_result(found)

    def _take(self) -> list[tuple[np.ndarray, "asyncio.Future[np.ndarray]"]]:
        taken: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        num_rows = 0
        while self._waiting and (not taken or num_rows + len(self._waiting[0][0]) <= BATCH_ROWS):
            rows, answer = self._waiting.popleft()
            if not answer.done():
                taken.append((rows, answer))
                num_rows += len(rows)
        return taken

    def _compute_parts(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        if not parts:
            return []
        answers = self._compute(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return np.split(answers, np.cumsum([len(part) for part in parts])[:-1])
