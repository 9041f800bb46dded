"""``/embed`` and ``/classify``: snippets in, embeddings or probabilities of units out."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from starlette.concurrency import run_in_threadpool

from accm_core.errors import ModelError
from service.batcher import BATCH_ROWS, Batcher
from service.errors import ServiceError
from service.npy import read_snippets, write_array

MAX_WAITING_BYTES = 128 << 20
"""Of bodies that are being worked on; beyond it callers are asked to come again."""
MAX_ANSWER_BYTES = 256 << 20
"""Of an answer: a model with many units makes more of snippets than they were."""
OVERHEAD_BYTES = 1 << 16
"""Counted for each body beside its own bytes: 2000 small ones are as many as are taken."""
MAX_MODELS = 4
"""Kept in memory, those last used."""


@dataclass(frozen=True)
class _Loaded:
    """A model ready to answer.

    Attributes
    ----------
    stamp : tuple of int
        Of its file when it was read.
    num_before, num_samples, num_channels : int
        Of the snippets that it embeds; ``num_before`` samples before the peak.
    sampling_frequency : float
        Hz.
    channels : tuple of str
        Columns of the snippets that it classifies; empty for a model without heads.
    num_dims, num_units : int
        Columns of its answers: of embeddings, and of probabilities.
    embedding, probability : Batcher
    """

    stamp: tuple[int, ...]
    num_before: int
    num_samples: int
    num_channels: int
    sampling_frequency: float
    channels: tuple[str, ...]
    num_dims: int
    num_units: int
    embedding: Batcher
    probability: Batcher | None


class Inference:
    """Answers of models to snippets, batched across callers. Used from one event loop.

    Parameters
    ----------
    device : str
        'auto', 'cpu' or 'cuda[:N]'.

    Notes
    -----
    Snippets are what a sort cuts: traces band-passed, with the common median taken off where far channels
    share noise, whitened, in units of the noise, and cut with the peak at sample ``num_before`` of the
    model's window, at its sampling frequency (in the card: ``num_before``, ``architecture.num_samples``,
    ``sampling_frequency``). While one batch computes, what comes from other callers collects for the next.
    Torch is imported with the first call.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._gate = asyncio.Lock()
        self._loading = asyncio.Lock()
        self._models: OrderedDict[str, _Loaded] = OrderedDict()
        self._waiting_bytes = 0

    def close(self) -> None:
        """Stop when what runs is done."""
        self._executor.shutdown(cancel_futures=True)

    async def embed(self, body: bytes, model: str | None = None) -> bytes:
        """Embed snippets.

        Parameters
        ----------
        body : bytes
            ``.npy`` of the shape (n, num_samples, n_channels), noise units: the peak's own channel first,
            then the nearest ones, at most as many as the model takes; it does as well with fewer.
        model : str, optional
            Name in the registry; the model of the package when None.

        Returns
        -------
        bytes
            ``.npy`` of the shape (n, num_dims), float32.

        Raises
        ------
        ServiceError
            400 if the body is no such file, 404 if there is no such model, 409 if its file is none, 429 if
            too much is waiting.
        """
        name = model or "pretrained"
        with self._admitted(len(body)):
            loaded = await self._find(name)
            snippets = await run_in_threadpool(read_snippets, body)
            wanted = f"1 to {loaded.num_channels} channels, nearest first"
            _check_shape(snippets, name, loaded, snippets.shape[2] <= loaded.num_channels, wanted)
            missing = loaded.num_channels - snippets.shape[2]
            return await _answer(loaded.embedding, snippets, missing, loaded.num_dims)

    async def classify(self, body: bytes, model: str) -> bytes:
        """Tell for each unit of a fine-tuned model with what probability it fired at each snippet's peak.

        Parameters
        ----------
        body : bytes
            ``.npy`` of the shape (n, num_samples, n_channels), noise units: all channels that the model's
            heads look at, in the order of ``channels`` in `GET /models/NAME`. Each head takes its own.
        model : str
            Name in the registry.

        Returns
        -------
        bytes
            ``.npy`` of the shape (n, n_units), float32; units in the order of the model's card.

        Raises
        ------
        ServiceError
            As `embed`; also 400 if the model has no heads.
        """
        with self._admitted(len(body)):
            loaded = await self._find(model)
            if loaded.probability is None:
                raise ServiceError(
                    400, f"The model {model!r} knows no units. Name a fine-tuned one; see GET /models."
                )
            snippets = await run_in_threadpool(read_snippets, body)
            number = len(loaded.channels)
            wanted = f"{number} channels, in the order of 'channels' in GET /models/{model}"
            _check_shape(snippets, model, loaded, snippets.shape[2] == number, wanted)
            return await _answer(loaded.probability, snippets, 0, loaded.num_units)

    @contextmanager
    def _admitted(self, num_bytes: int) -> Iterator[None]:
        """Count a body while it is worked on."""
        cost = num_bytes + OVERHEAD_BYTES
        if self._waiting_bytes and self._waiting_bytes + cost > MAX_WAITING_BYTES:
            raise ServiceError(
                429,
                f"{self._waiting_bytes >> 20} MiB of snippets are being worked on; the limit is "
                f"{MAX_WAITING_BYTES >> 20}. Try again in a moment.",
            )
        self._waiting_bytes += cost
        try:
            yield
        finally:
            self._waiting_bytes -= cost

    async def _find(self, name: str) -> _Loaded:
        """The model of a name, read again when its file has changed."""
        path, stamp = await run_in_threadpool(_look_for, name)
        if not self._has(name, stamp):
            async with self._loading:
                if not self._has(name, stamp):  # nobody else has read it meanwhile
                    async with self._gate:  # reading takes its turn with computing
                        loop = asyncio.get_running_loop()
                        loaded = await loop.run_in_executor(self._executor, self._load, name, path, stamp)
                    self._models[name] = loaded
                    self._models.move_to_end(name)
                    while len(self._models) > MAX_MODELS:
                        self._models.popitem(last=False)
                return self._models[name]
        self._models.move_to_end(name)
        return self._models[name]

    def _has(self, name: str, stamp: tuple[int, ...]) -> bool:
        return name in self._models and self._models[name].stamp == stamp

    def _load(self, name: str, path: Path, stamp: tuple[int, ...]) -> _Loaded:
        from accm_core.learning.checkpoint import read_model
        from accm_core.learning.classify import classify_columns, list_channels, place_heads
        from accm_core.learning.device import find_device
        from accm_core.learning.encoder import embed_snippets

        device = find_device(self._device)
        try:
            model = read_model(path)
        except ModelError as error:
            raise ServiceError(409, f"The model {name!r} cannot be used: {error}") from error
        encoder = model.encoder.to(device)
        channels = list_channels(model.card)
        placed = place_heads(model, channels, model.window, device)
        return _Loaded(
            stamp,
            model.window.num_before,
            model.window.num_samples,
            encoder.config.num_channels,
            model.window.sampling_frequency,
            channels,
            encoder.config.num_dims,
            0 if placed is None else len(placed.used),
            Batcher(lambda rows: embed_snippets(encoder, rows, device), self._executor, self._gate),
            None
            if placed is None
            else Batcher(lambda rows: classify_columns(placed, rows, device), self._executor, self._gate),
        )


def _look_for(name: str) -> tuple[Path, tuple[int, ...]]:
    """The file of a model, and what changes when it does."""
    from accm_core.models import locate_model

    try:
        path = locate_model(name)
        status = path.stat()
    except (ModelError, OSError):
        raise ServiceError(404, f"There is no model {name[:100]!r}. See GET /models.") from None
    return path, (status.st_ino, status.st_size, status.st_mtime_ns)


async def _answer(batcher: Batcher, snippets: np.ndarray, missing: int, num_columns: int) -> bytes:
    """Compute in parts, so that one caller neither fills the memory nor keeps others waiting.

    Silent channels are added part by part: they may be many times what was sent.
    """
    num_bytes = len(snippets) * num_columns * np.dtype(np.float32).itemsize
    if num_bytes > MAX_ANSWER_BYTES:
        raise ServiceError(
            413,
            f"The answer to {len(snippets)} snippets would have {num_bytes} bytes; the limit is "
            f"{MAX_ANSWER_BYTES}. Send fewer at a time.",
        )
    answers = []
    for start in range(0, max(len(snippets), 1), BATCH_ROWS):
        part = snippets[start : start + BATCH_ROWS]
        padded = np.pad(part, ((0, 0), (0, 0), (0, missing))) if missing else part
        answers.append(await batcher.submit(padded))
    return write_array(np.concatenate(answers))


def _check_shape(
    snippets: np.ndarray, name: str, loaded: _Loaded, has_right_channels: bool, wanted: str
) -> None:
    if snippets.shape[1] != loaded.num_samples or not has_right_channels:
        raise ServiceError(
            400,
            f"The snippets have {snippets.shape[1]} samples of {snippets.shape[2]} channels; the model "
            f"{name!r} takes {loaded.num_samples} samples at {loaded.sampling_frequency:g} Hz, "
            f"{loaded.num_before} of them before the peak, of {wanted}.",
        )
