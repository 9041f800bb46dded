"""Templates that follow their units: a running mean of each unit's own clean spikes.

The mean is taken where the bank is made of: what its kernels give at the spike's time. A new bank is built on
a second thread and taken over a fixed number of steps later, so that what is found does not depend on timing.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from accm_core.signal.preprocess import Preprocessor
from accm_core.sorting.match import TemplateBank
from accm_core.sorting.templates import silence_channels
from accm_core.types import main_channels, main_heights

UPDATE_S = 2.0
"""Time from one bank to the next."""
SWAP_S = 0.5
"""Time that building one may take before the stream waits for it."""
MEMORY = 50
"""Spikes whose weight the running mean has: n new ones count by n / (n + MEMORY)."""
MIN_STRAY = 4.0
"""By how much nearer the running mean must be to new spikes than the first template, for it to be used:
squared distance, two noise levels. Followed without need, small units slowly take in what is not theirs."""
FORGET = 0.9
"""What earlier distances count, one update later."""


@dataclass(frozen=True)
class FollowedBank:
    """Templates as they are now.

    Attributes
    ----------
    bank : TemplateBank
    main_channel : ndarray of shape (n_units,), int64
        Among the shank's channels in use.
    height_uV : ndarray of shape (n_units,), float32
        Extremum of each template on its main channel, band-passed, signed.
    """

    bank: TemplateBank
    main_channel: np.ndarray
    height_uV: np.ndarray  # noqa: N815  the unit's symbol


def describe_bank(bank: TemplateBank, preprocessor: Preprocessor) -> FollowedBank:
    """Find each unit's main channel and height in µV."""
    templates = preprocessor.unwhiten(bank.templates)
    return FollowedBank(bank, main_channels(templates), main_heights(templates).astype(np.float32))


class Follower:
    """Follows the units of one shank.

    Parameters
    ----------
    bank : TemplateBank
    preprocessor : Preprocessor
    pool : ThreadPoolExecutor
        On which banks are built.
    """

    def __init__(self, bank: TemplateBank, preprocessor: Preprocessor, pool: ThreadPoolExecutor) -> None:
        self._bank, self._preprocessor, self._pool = bank, preprocessor, pool
        self._mean = bank.weights.astype(np.float64)
        # number of spikes, and their squared distances from the first template and from the running mean
        self._sums = np.zeros((3, len(bank.energy)))
        self._total = np.zeros((len(bank.energy), bank.weights[0].size))
        self._counts = np.zeros(len(bank.energy), dtype=np.int64)
        self._building: Future[FollowedBank] | None = None

    def add(self, unit_index: np.ndarray, points: np.ndarray) -> None:
        """Add clean spikes: their units, (n,), and what the kernels gave, (n, n_basis * n_channels)."""
        np.add.at(self._total, unit_index, points)
        np.add.at(self._counts, unit_index, 1)

    def begin(self) -> None:
        """Begin to build the bank of all spikes up to now."""
        total, counts = self._total, self._counts
        self._total, self._counts = np.zeros_like(total), np.zeros_like(counts)
        self._building = self._pool.submit(self._build, total, counts)

    def take(self) -> FollowedBank | None:
        """Take over what was begun, waiting for it; None when nothing was."""
        building, self._building = self._building, None
        return None if building is None else building.result()

    def _build(self, total: np.ndarray, counts: np.ndarray) -> FollowedBank:
        fired = np.flatnonzero(counts)
        number, shape = counts[fired], self._bank.weights.shape[1:]
        newest = (total[fired] / number[:, None]).reshape(-1, *shape) @ self._preprocessor.whitening
        first = self._bank.weights
        apart = [((newest - mean[fired]) ** 2).sum(axis=(1, 2)) for mean in (first, self._silenced())]
        self._sums[:, fired] = FORGET * self._sums[:, fired] + number * [np.ones(len(fired)), *apart]
        self._mean[fired] += (number / (number + MEMORY))[:, None, None] * (newest - self._mean[fired])
        strays = self._sums[1] - self._sums[2] > MIN_STRAY * self._sums[0]
        weights = np.where(strays[:, None, None], self._silenced(), first)
        return describe_bank(self._bank.reweigh(weights), self._preprocessor)

    def _silenced(self) -> np.ndarray:
        """The running mean, zero where its templates do not stand out."""
        templates = np.einsum("ukc,kt->utc", self._mean, self._bank.courses, optimize=True)
        visible = silence_channels(templates).any(axis=1, keepdims=True)
        return np.where(visible, self._mean, 0.0)
