"""One shank of a stream, step by step: band-pass, reference, fits of the templates, spikes."""

from dataclasses import dataclass

import numpy as np

from accm_core.online.decide import NOTHING_KNOWN, decide
from accm_core.online.filter import design_filter, slide
from accm_core.online.history import History
from accm_core.online.lookahead import LookAhead
from accm_core.online.plan import ShankPlan
from accm_core.params import MatchParams, to_samples
from accm_core.signal.median import median_over_channels
from accm_core.signal.snippets import LANCZOS_TAPS
from accm_core.sorting.match import Matches, TemplateBank, describe_units
from accm_core.sorting.pursuit import MIN_EDGE
from accm_core.sorting.recover import OVERLAP_MS


@dataclass(frozen=True)
class Decided:
    """Spikes of one shank that are decided.

    Attributes
    ----------
    matches : Matches
        ``sample_index`` from the start of the segment.
    is_overlap : ndarray of shape (n,), bool
    clean_units : ndarray of shape (n_clean,), int64
        Of the spikes of usual size without another one near.
    points : ndarray of shape (n_clean, n_basis * n_channels), float32
        What the kernels gave at these.
    """

    matches: Matches
    is_overlap: np.ndarray
    clean_units: np.ndarray
    points: np.ndarray

    @staticmethod
    def join(parts: "list[Decided]") -> "Decided":
        """One after another."""
        names = ("is_overlap", "clean_units", "points")
        rest = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return Decided(Matches.join([part.matches for part in parts]), *rest)


class ShankStream:
    """Works on one segment of one shank after another.

    Parameters
    ----------
    plan : ShankPlan
    params : MatchParams
    lookahead : LookAhead
    sampling_frequency : float
        Hz.

    Notes
    -----
    Time is counted from the start of the segment. After a step that ends at sample ``e``, traces are known
    up to ``e - filter``, fits up to ``after`` samples before that, and spikes are decided up to ``decide``
    samples before the fits end. What lies between is explained anew with each step.
    """

    def __init__(
        self, plan: ShankPlan, params: MatchParams, lookahead: LookAhead, sampling_frequency: float
    ) -> None:
        self._preprocessor, self._params, self._lookahead = plan.preprocessor, params, lookahead
        channels = plan.preprocessor.channels
        is_whole = np.array_equal(channels, np.arange(len(channels)))
        self._columns = slice(len(channels)) if is_whole else channels  # a slice is not copied
        self._refractory = to_samples(params.refractory_ms, sampling_frequency)
        self._overlap_reach = to_samples(OVERLAP_MS, sampling_frequency)
        bank, step = plan.bank, lookahead.step
        num_channels = len(channels)
        weights = design_filter(plan.preprocessor.bandpass, history=lookahead.history, ahead=lookahead.filter)
        self._filter = slide(weights[None].astype(np.float32), step)
        self._kernels = slide(bank.kernels, step)
        self._raw = History(self._filter.shape[1], num_channels)
        self._traces = History(self._kernels.shape[1], num_channels)
        # fits in which spikes are looked for, and what surrounds them
        self._num_fits = lookahead.decide + step + MIN_EDGE
        self._projected = History(self._num_fits + step + 2 * LANCZOS_TAPS, len(bank.kernels) * num_channels)
        self._fits = History(self._num_fits, len(bank.weights))
        self.use_bank(bank)
        self.start()

    def start(self) -> None:
        """Begin a segment."""
        self._end = 0
        self._recent = NOTHING_KNOWN

    def use_bank(self, bank: TemplateBank) -> None:
        """Go on with other templates, in the same basis."""
        self._model = describe_units(bank, self._params, refractory=self._refractory, edge=MIN_EDGE)
        # the kernels are applied before the channels are whitened: the one on time, the other on space
        weights = bank.weights @ self._preprocessor.whitening.T
        self._weights = np.ascontiguousarray(weights.reshape(len(weights), -1).T, dtype=np.float32)
        self._fits.newest[:] = self._projected.newest[-self._num_fits :] @ self._weights

    def step(self, raw: np.ndarray) -> Decided:
        """Work on the next samples.

        Parameters
        ----------
        raw : ndarray of shape (lookahead.step, n_channels_of_stream), float32
            µV.

        Returns
        -------
        Decided
        """
        num_new = len(raw)
        used = raw[:, self._columns]
        if self._end == 0:
            self._raw.fill(used[0])
            self._traces.fill(0.0)
            self._projected.fill(0.0)
            self._fits.fill(0.0)
        self._end += num_new
        self._raw.append(used)
        traces = self._filter @ self._raw.newest
        if self._preprocessor.use_median:
            traces -= median_over_channels(traces)[:, None]
        self._traces.append(traces)
        projected = (self._kernels @ self._traces.newest).reshape(num_new, -1)
        self._projected.append(projected)
        self._fits.append(projected @ self._weights)
        return self._decide()

    def _decide(self) -> Decided:
        """Explain what is known, and keep what is old enough."""
        ahead = self._lookahead
        known = self._end - ahead.filter - ahead.after
        matches, is_overlap, clean_units, points, self._recent = decide(
            self._fits.newest,
            self._projected.newest,
            self._model,
            self._recent,
            known,
            known - ahead.decide,
            self._overlap_reach,
        )
        return Decided(Matches(*matches), is_overlap, clean_units, points)
