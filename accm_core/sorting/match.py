"""Templates to spikes: explain the traces as a sum of templates, the best explanation first.

Each template's fit is known at each sample from one convolution. The best is taken out, with its own
amplitude and at its own time between samples; what it leaves changes the fits around it by the
templates' cross-correlations, which are known in advance; and so on until nothing exceeds the
threshold. Spikes that overlap are thereby split into their units.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numba
import numpy as np
from scipy import fft, linalg

from accm_core.params import MatchParams
from accm_core.signal.snippets import LANCZOS_TAPS, lanczos_kernel
from accm_core.signal.transpose import transpose

MIN_CHANNELS_TO_TELL = 8
"""Channels from which on their places tell neurons apart; on fewer, only the courses of their spikes may."""
MAX_BASIS, MAX_BASIS_OF_FEW = 6, 10
"""Time courses that all templates are made of, at most, and the same on fewer channels."""
MAX_LOST = 0.25
"""Energy of a template, noise variances, that fewer of them may lack: alike neurons differ by little."""
RIDGE = 0.003
"""Share of the noise's variance added to its covariance: white noise that bounds the inverse."""
BAND_POWER = 0.9999
"""Share of the fits' power in the frequencies that are computed."""
LOG_ODDS_SHARE = 0.6
"""Of the log odds of matching, what is meant; see `calibrate`."""
FREQUENCY_TILE = 256
"""Frequencies worked on at once: small enough for the processor's cache."""
MAX_REVISIONS, MAX_MOVE = 3, 0.1
"""Times that overlapping spikes are taken back and explained anew; samples that a spike may still move by."""
MAX_SCALE = 10.0
"""Times its template that is taken out at most: what is larger is no spike of the unit, and where taking out
leaves more than there was, it does not grow without bound."""
MIN_EDGE = 4
"""Samples around a spike at which fits are looked up, for its time between samples and its rivals."""
NEGLIGIBLE = 0.02
"""Pairs whose largest cross-correlation is below this share of the smaller energy do not interact."""


@dataclass(frozen=True)
class TemplateBank:
    """Templates made ready for matching.

    Attributes
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Whitened over channels, noise units.
    num_before : int
        Samples before the peak.
    kernels : ndarray of shape (n_basis, n_samples), float32
        Time courses that all matched filters are made of.
    courses : ndarray of shape (n_basis, n_samples), float32
        Time courses that the kernels match; templates are ``weights`` times these, nearly.
    bandwidth : float
        Frequency, in shares of the sampling frequency, above which the fits hold next to nothing.
    weights : ndarray of shape (n_units, n_basis, n_channels), float32
    energy : ndarray of shape (n_units,), float32
        Squared signal-to-noise ratio of each template.
    prior : ndarray of shape (n_units,), float32
        One over the variance of the unit's scale.
    pair_row : ndarray of shape (n_units, n_units), int32
        Row of ``correlations`` for each pair of units; -1 where they do not interact.
    correlations : ndarray of shape (n_pairs, 2 n_samples - 1), float32
        Fit of the second unit at a lag, when the first one is in the traces.
    device : str or None
        GPU on which the fits are computed, as torch names it; None for this machine's cores.
    """

    templates: np.ndarray
    num_before: int
    kernels: np.ndarray
    courses: np.ndarray
    bandwidth: float
    weights: np.ndarray
    energy: np.ndarray
    prior: np.ndarray
    pair_row: np.ndarray
    correlations: np.ndarray
    device: str | None = None

    @property
    def num_samples(self) -> int:
        """Length of a template."""
        return self.kernels.shape[1]

    def select(self, units: np.ndarray) -> "TemplateBank":
        """The bank of some of the units (indices or mask); the basis stays."""
        return replace(
            self,
            templates=self.templates[units],
            weights=self.weights[units],
            energy=self.energy[units],
            prior=self.prior[units],
            pair_row=self.pair_row[units][:, units],
        )

    def narrow(self, units: np.ndarray, channels: np.ndarray) -> "TemplateBank":
        """The bank of some units on some channels (indices), to match with: it has no templates."""
        return replace(
            self,
            templates=self.templates[:0],
            weights=np.ascontiguousarray(self.weights[units][:, :, channels]),
            energy=self.energy[units],
            prior=self.prior[units],
            pair_row=self.pair_row[np.ix_(units, units)],
        )

    def reweigh(self, weights: np.ndarray, scale_std: np.ndarray) -> "TemplateBank":
        """The bank of other units in the same basis.

        Parameters
        ----------
        weights : ndarray of shape (n_units_after, n_basis, n_channels)
        scale_std : ndarray of shape (n_units_after,)
            Standard deviation of each unit's scale.
        """
        pair_row, correlations = _correlate_pairs(weights, self.courses, self.kernels)
        return replace(
            self,
            templates=np.einsum("ukc,kt->utc", weights, self.courses).astype(np.float32),
            weights=np.ascontiguousarray(weights, dtype=np.float32),
            energy=(weights**2).sum(axis=(1, 2)).astype(np.float32),
            prior=(1 / np.square(scale_std)).astype(np.float32),
            pair_row=pair_row,
            correlations=correlations,
        )

    @property
    def margin(self) -> int:
        """Samples on each side of a block within which spikes are matched but not kept."""
        return 3 * self.num_samples


@dataclass(frozen=True)
class Matches:
    """Spikes found by matching, in order of time.

    Attributes
    ----------
    sample_index : ndarray of shape (n,), int64
    offset : ndarray of shape (n,), float32
        Of the true time from ``sample_index``, samples.
    unit_index : ndarray of shape (n,), int64
    scale : ndarray of shape (n,), float32
        Amplitude over the template's.
    gain : ndarray of shape (n,), float32
        Twice the log-likelihood ratio of the spike against noise.
    probability : ndarray of shape (n,), float32
        Of the unit against all others, and against noise, at this place.
    """

    sample_index: np.ndarray
    offset: np.ndarray
    unit_index: np.ndarray
    scale: np.ndarray
    gain: np.ndarray
    probability: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_index)

    def select(self, rows: np.ndarray) -> "Matches":
        """The matches at ``rows`` (indices or mask)."""
        return Matches(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def of_units(self, units: np.ndarray) -> "Matches":
        """The matches of some units (indices, ascending), which are numbered anew from 0."""
        number = np.searchsorted(units, self.unit_index)
        is_kept = np.isin(self.unit_index, units)
        return replace(self, unit_index=number).select(is_kept)

    def free_scale(self, bank: TemplateBank, energy: np.ndarray | None = None) -> np.ndarray:
        """The scale that the traces alone give, (n,): ``scale`` leans towards 1 as the bank's prior says.

        ``energy``, (n,), is that of the template at each match, where it is not the bank's.
        """
        energy = bank.energy[self.unit_index] if energy is None else energy
        prior = bank.prior[self.unit_index]
        return (self.scale * (energy + prior) - prior) / energy

    def move(self, delay: int) -> "Matches":
        """The matches ``delay`` samples later."""
        return replace(self, sample_index=self.sample_index + delay)

    @staticmethod
    def empty() -> "Matches":
        """No matches."""
        integers, floats = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return Matches(integers, floats, integers, floats, floats, floats)

    @staticmethod
    def join(parts: "list[Matches]") -> "Matches":
        """One after another."""
        return Matches(
            *(np.concatenate([getattr(p, n) for p in parts]) for n in Matches.__dataclass_fields__)
        )


def build_bank(
    templates: np.ndarray,
    num_before: int,
    autocovariance: np.ndarray,
    scale_std: np.ndarray,
    device: str | None = None,
) -> TemplateBank:
    """Make templates ready for matching.

    Parameters
    ----------
    templates : ndarray of shape (n_units, n_samples, n_channels), float32
        Whitened over channels, noise units; zero on channels where a unit is not seen.
    num_before : int
        Samples before the peak.
    autocovariance : ndarray of shape (n_lags,), n_lags >= n_samples
        Of the noise over time.
    scale_std : ndarray of shape (n_units,)
        Standard deviation of each unit's scale.
    device : str, optional
        As in `TemplateBank`.

    Notes
    -----
    With noise covariance C = L L', a template w is matched by C^-1 w. The time courses are cut down to
    a few where the noise is white, that is on L^-1 w.
    """
    num_units, num_samples, num_channels = templates.shape
    root = noise_root(autocovariance, num_samples)
    courses = templates.transpose(0, 2, 1).reshape(-1, num_samples)
    courses = linalg.solve_triangular(root, courses.T, lower=True).T
    max_basis = MAX_BASIS if num_channels >= MIN_CHANNELS_TO_TELL else MAX_BASIS_OF_FEW
    basis = np.linalg.svd(courses, full_matrices=False)[2][:max_basis]
    weights = (courses @ basis.T).reshape(num_units, num_channels, -1).transpose(0, 2, 1)
    whole = np.square(courses).reshape(num_units, -1).sum(axis=1)
    lost = whole[:, None] - np.cumsum(np.square(weights).sum(axis=2), axis=1)
    num_basis = np.count_nonzero(lost.max(axis=0, initial=0) > MAX_LOST) + 1
    basis, weights = basis[:num_basis], weights[:, :num_basis]
    kernels = linalg.solve_triangular(root, basis.T, lower=True, trans="T").T
    courses = basis @ root.T
    pair_row, correlations = _correlate_pairs(weights, courses, kernels)
    return TemplateBank(
        templates=templates.astype(np.float32),
        num_before=num_before,
        kernels=kernels.astype(np.float32),
        courses=courses.astype(np.float32),
        bandwidth=_find_bandwidth(kernels, autocovariance),
        weights=np.ascontiguousarray(weights, dtype=np.float32),
        energy=(weights**2).sum(axis=(1, 2)).astype(np.float32),
        prior=(1 / np.square(scale_std)).astype(np.float32),
        pair_row=pair_row,
        correlations=correlations,
        device=device,
    )


def noise_root(autocovariance: np.ndarray, num_samples: int) -> np.ndarray:
    """Lower Cholesky factor of the noise's covariance over time, (num_samples, num_samples)."""
    covariance = linalg.toeplitz(autocovariance[:num_samples])
    return np.linalg.cholesky(covariance + RIDGE * autocovariance[0] * np.eye(num_samples))


def _find_bandwidth(kernels: np.ndarray, autocovariance: np.ndarray) -> float:
    """Frequency up to which filtered noise has ``BAND_POWER``; a matched spike's spectrum is the same."""
    num_lags = len(autocovariance)
    noise = np.abs(fft.rfft(np.concatenate([autocovariance, autocovariance[:0:-1]])))
    power = noise * (np.abs(fft.rfft(kernels, n=2 * num_lags - 1, axis=1)) ** 2).sum(axis=0)
    top = int(np.searchsorted(np.cumsum(power), BAND_POWER * power.sum()))
    return (top + 1) / (2 * num_lags - 1)


def _correlate_pairs(
    coefficients: np.ndarray, shapes: np.ndarray, kernels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fits of each template to each other that it touches; one unit at a time, to bound the memory."""
    num_units, num_basis, num_channels = coefficients.shape
    num_lags = 2 * kernels.shape[1] - 1
    courses = np.empty((num_basis, num_basis, num_lags))
    for r in range(num_basis):
        for s in range(num_basis):
            courses[r, s] = np.correlate(shapes[r], kernels[s], mode="full")
    energy = (coefficients**2).sum(axis=(1, 2))
    pair_row = np.full((num_units, num_units), -1, dtype=np.int32)
    rows = [np.zeros((0, num_lags), dtype=np.float32)]
    num_rows = 0
    for unit in range(num_units):
        products = coefficients.reshape(-1, num_channels) @ coefficients[unit].T
        products = products.reshape(num_units, num_basis, num_basis).transpose(0, 2, 1)
        lags = products.reshape(num_units, -1) @ courses.reshape(-1, num_lags)
        smaller = np.minimum(energy[unit], energy)
        interacts = np.flatnonzero(np.abs(lags).max(axis=1) > NEGLIGIBLE * np.maximum(smaller, 1e-12))
        pair_row[unit, interacts] = num_rows + np.arange(len(interacts))
        rows.append(lags[interacts].astype(np.float32))
        num_rows += len(interacts)
    return pair_row, np.concatenate(rows)


def fit_templates(traces: np.ndarray, bank: TemplateBank) -> np.ndarray:
    """Fit of each template at each sample.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Whitened.
    bank : TemplateBank

    Returns
    -------
    ndarray of shape (n_units, n_samples), float32
        Of the template whose peak is at that sample. Wrong within a template's length of either end.
    """
    num_samples = len(traces)
    num_units = len(bank.weights)
    length = fft.next_fast_len(num_samples, real=True)
    # the kernels are rolled so that the template's peak is at sample 0
    padded = np.zeros((len(bank.kernels), length), dtype=np.float32)
    padded[:, : bank.num_samples] = bank.kernels
    responses = np.conj(fft.rfft(np.roll(padded, -bank.num_before, axis=1), axis=1))
    top = min(int(np.ceil(bank.bandwidth * length)) + 1, responses.shape[1])
    if bank.device is not None:
        return _fit_on_device(traces, bank, responses[:, :top], length)
    spectrum = fft.rfft(transpose(traces), n=length, axis=1)
    weights = bank.weights.reshape(num_units, spectrum.shape[0] * len(bank.kernels))
    fits = np.zeros((num_units, spectrum.shape[1]), dtype=np.complex64)
    for first in range(0, top, FREQUENCY_TILE):
        last = min(first + FREQUENCY_TILE, top)
        filtered = responses[:, None, first:last] * spectrum[None, :, first:last]
        # real weights act on real and imaginary parts alike
        parts = filtered.reshape(weights.shape[1], last - first).view(np.float32)
        fits[:, first:last] = (weights @ parts).view(np.complex64)
    return np.ascontiguousarray(fft.irfft(fits, n=length, axis=1)[:, :num_samples])


def _fit_on_device(traces: np.ndarray, bank: TemplateBank, responses: np.ndarray, length: int) -> np.ndarray:
    """The same on a GPU: one time course of the basis after the other, at the frequencies of its response."""
    import torch

    num_top = responses.shape[1]
    spectrum = torch.fft.rfft(torch.as_tensor(traces, device=bank.device).T, n=length)[:, :num_top]
    real, imaginary = spectrum.real.contiguous(), spectrum.imag.contiguous()
    weights = torch.as_tensor(bank.weights, device=bank.device)
    fits = torch.zeros((len(weights), num_top), dtype=torch.complex64, device=bank.device)
    for k, response in enumerate(torch.as_tensor(responses, dtype=torch.complex64, device=bank.device)):
        fits += torch.complex(weights[:, k] @ real, weights[:, k] @ imaginary) * response
    found: np.ndarray = torch.fft.irfft(fits, n=length)[:, : len(traces)].contiguous().cpu().numpy()
    return found


def match_templates(
    traces: np.ndarray, bank: TemplateBank, params: MatchParams, *, refractory: int
) -> Matches:
    """Explain traces as a sum of templates.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Whitened.
    bank : TemplateBank
        With at least one unit.
    params : MatchParams
    refractory : int
        A unit does not fire twice within this many samples.

    Returns
    -------
    Matches
        ``sample_index`` counts from the start of ``traces``.

    Notes
    -----
    Gain of unit u at a sample: twice the log-likelihood ratio against noise when its scale has a
    Gaussian prior around 1, (fit + p)^2 / (energy + p) - p, with p one over the scale's variance.
    """
    return pursue_fits(fit_templates(traces, bank), bank, params, refractory=refractory)


def pursue_fits(fits: np.ndarray, bank: TemplateBank, params: MatchParams, *, refractory: int) -> Matches:
    """Take out the best match again and again.

    Parameters
    ----------
    fits : ndarray of shape (n_units, n_samples), float32
        Of each template at each sample; changed in place to what is left. None is looked for within a
        template's length of either end, where fits are wrong.
    bank, params, refractory
        As for ``match_templates``.
    """
    model = describe_units(bank, params, refractory=refractory, edge=bank.num_samples)
    return Matches(*pursue(fits, np.zeros(fits.shape, dtype=np.uint8), model, fits.shape[1]))


def calibrate(probability: np.ndarray) -> np.ndarray:
    """Probabilities that mean what they say, same shape and dtype, from those of matching.

    Notes
    -----
    Matching takes all noise for Gaussian and the templates for exact, and is too sure. Its log odds count by
    ``LOG_ODDS_SHARE``: fitted on simulated recordings, tried on others
    (``python -m benchmarks.calibration``).
    """
    yes, no = probability**LOG_ODDS_SHARE, (1 - probability) ** LOG_ODDS_SHARE
    return yes / (yes + no)


@numba.njit(cache=True, nogil=True)
def _gain(fit, energy, prior, min_scale):  # type: ignore[no-untyped-def]
    if fit < min_scale * energy:
        return np.float32(0.0)
    return (fit + prior) * (fit + prior) / (energy + prior) - prior


class Model(NamedTuple):
    """What matching knows of the units, in the form that numba takes; see `describe_units`."""

    energy: np.ndarray
    prior: np.ndarray
    pair_row: np.ndarray
    correlations: np.ndarray
    threshold: np.float32
    min_scale: np.float32
    reach: int
    refractory: int
    edge: int


def describe_units(bank: TemplateBank, params: MatchParams, *, refractory: int, edge: int) -> Model:
    """What `pursue` needs to know of the units.

    Parameters
    ----------
    bank : TemplateBank
    params : MatchParams
    refractory : int
        A unit does not fire twice within this many samples.
    edge : int
        Samples at either end in which no spike is looked for, at least ``MIN_EDGE``.
    """
    return Model(
        bank.energy,
        bank.prior,
        bank.pair_row,
        bank.correlations,
        np.float32(params.threshold**2),
        np.float32(params.min_scale),
        bank.num_samples,
        refractory,
        edge,
    )


@numba.njit(cache=True, nogil=True)
def _refresh(fits, blocked, model, first, last, best_gain, best_unit):  # type: ignore[no-untyped-def]
    """Best unit at each sample from ``first`` to ``last``, except at the edges."""
    first, last = max(first, model.edge), min(last, fits.shape[1] - model.edge)
    if first >= last:
        return
    gains, units = best_gain[first:last], best_unit[first:last]
    gains[:] = 0.0
    for unit in range(len(model.energy)):
        p = model.prior[unit]
        scale = np.float32(1.0) / (model.energy[unit] + p)
        least = model.min_scale * model.energy[unit]
        left, barred = fits[unit, first:last], blocked[unit, first:last]
        for t in range(len(gains)):
            # without a branch: the compiler makes vectors of it
            gain = (left[t] + p) * (left[t] + p) * scale - p
            is_better = (left[t] >= least) & (barred[t] == 0) & (gain > gains[t])
            gains[t] = gain if is_better else gains[t]
            units[t] = unit if is_better else units[t]


@numba.njit(cache=True, nogil=True)
def take_known(fits, blocked, model, samples, units, offsets, scales):  # type: ignore[no-untyped-def]
    """Take spikes out of the fits, and let their units rest around them; samples may be negative."""
    for k in range(len(samples)):
        t, unit = samples[k], units[k]
        _subtract(fits, model, unit, t, offsets[k], scales[k])
        last = t + model.refractory + 1
        if last > 0:
            blocked[unit, max(t - model.refractory, 0) : last] += np.uint8(1)


@numba.njit(cache=True, nogil=True)
def pursue(fits, blocked, model, until):  # type: ignore[no-untyped-def]
    """Take out all spikes, then revise those that overlap, until none moves.

    ``fits`` and ``blocked`` (how many spikes of the unit itself forbid one here) are changed in place. Spikes
    from ``until`` on serve to explain what comes before; when there are no others, none is revised.
    Returns what `Matches` holds, in order of time, then unit.
    """
    num_samples = fits.shape[1]
    best_gain = np.zeros(num_samples, dtype=np.float32)
    best_unit = np.zeros(num_samples, dtype=np.int32)
    _refresh(fits, blocked, model, 0, num_samples, best_gain, best_unit)
    samples = [np.int64(0) for _ in range(0)]
    units = [np.int64(0) for _ in range(0)]
    values = [(np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)) for _ in range(0)]
    for revision in range(MAX_REVISIONS + 1):
        _take_all(fits, blocked, model, best_gain, best_unit, samples, units, values)
        if revision == MAX_REVISIONS or len(samples) == 0 or min(samples) >= until:
            break
        if not _revise(fits, blocked, model, best_gain, best_unit, samples, units, values):
            break
    return in_order(samples, units, values, len(model.energy))


@numba.njit(cache=True, nogil=True)
def in_order(samples, units, values, num_units):  # type: ignore[no-untyped-def]
    """The spikes that are left, as `pursue` returns them."""
    kept = np.array([k for k in range(len(samples)) if samples[k] >= 0], dtype=np.int64)
    place = np.array([samples[k] * num_units + units[k] for k in kept], dtype=np.int64)
    kept = kept[np.argsort(place)]
    kept_samples, kept_units = np.zeros(len(kept), dtype=np.int64), np.zeros(len(kept), dtype=np.int64)
    table = np.zeros((4, len(kept)), dtype=np.float32)
    for row in range(len(kept)):
        k = kept[row]
        kept_samples[row], kept_units[row] = samples[k], units[k]
        table[0, row], table[1, row], table[2, row], table[3, row] = values[k]
    return kept_samples, table[0], kept_units, table[1], table[2], table[3]


@numba.njit(cache=True, nogil=True)
def _take_all(fits, blocked, model, best_gain, best_unit, samples, units, values):  # type: ignore[no-untyped-def]
    """Take out the best match again and again until none exceeds the threshold; appends to the lists."""
    found = True
    while found:
        found = False
        for t in range(model.edge, fits.shape[1] - model.edge):
            if best_gain[t] <= model.threshold or not _is_largest(best_gain, t, model.reach):
                continue
            found = True
            unit = best_unit[t]
            values.append(_take_out(fits, blocked, model, unit, t))
            samples.append(np.int64(t))
            units.append(unit)
            _refresh(fits, blocked, model, t - model.reach, t + model.reach + 1, best_gain, best_unit)


@numba.njit(cache=True, nogil=True)
def _revise(fits, blocked, model, best_gain, best_unit, samples, units, values):  # type: ignore[no-untyped-def]
    """Explain each overlapping spike anew (sample -1: nothing is left of it); whether any has changed."""
    changed = False
    order = np.argsort(np.array(samples, dtype=np.int64), kind="mergesort")
    for rank in range(len(order)):
        k = order[rank]
        if samples[k] < 0 or not _has_rival(samples, units, order, rank, model.pair_row, model.reach):
            continue
        t, unit, old_offset = samples[k], units[k], values[k][0]
        _put_back(fits, blocked, model, unit, t, values[k])
        new_unit, new_t, gain = _find_best(fits, blocked, model, unit, t)
        if gain <= model.threshold:
            changed = True
            samples[k] = np.int64(-1)
        else:
            values[k] = _take_out(fits, blocked, model, new_unit, new_t)
            moved = abs(new_t + values[k][0] - t - old_offset)
            changed = changed or new_unit != unit or moved > MAX_MOVE
            samples[k], units[k] = np.int64(new_t), np.int64(new_unit)
        first, last = min(t, new_t) - model.reach, max(t, new_t) + model.reach + 1
        _refresh(fits, blocked, model, first, last, best_gain, best_unit)
    return changed


@numba.njit(cache=True, nogil=True)
def _take_out(fits, blocked, model, unit, t):  # type: ignore[no-untyped-def]
    """Explain a spike of ``unit`` at ``t``: its offset, scale, gain and probability."""
    energy, prior = model.energy[unit], model.prior[unit]
    offset, fit = _between_samples(fits[unit], t)
    gain = _gain(fits[unit, t], energy, prior, model.min_scale)
    scale = min((fit + prior) / (energy + prior), MAX_SCALE)
    probability = _posterior(fits, blocked, model, unit, t, gain)
    _subtract(fits, model, unit, t, offset, scale)
    blocked[unit, max(t - model.refractory, 0) : t + model.refractory + 1] += np.uint8(1)
    return np.float32(offset), np.float32(scale), np.float32(gain), np.float32(probability)


@numba.njit(cache=True, nogil=True)
def _put_back(fits, blocked, model, unit, t, value):  # type: ignore[no-untyped-def]
    """Undo ``_take_out``."""
    _subtract(fits, model, unit, t, value[0], -value[1])
    blocked[unit, max(t - model.refractory, 0) : t + model.refractory + 1] -= np.uint8(1)


@numba.njit(cache=True, nogil=True)
def _find_best(fits, blocked, model, unit, t):  # type: ignore[no-untyped-def]
    """Best explanation, within the refractory time of ``t``, by a unit that touches ``unit``."""
    first = max(t - model.refractory, model.edge)
    last = min(t + model.refractory + 1, fits.shape[1] - model.edge)
    best_unit, best_t, best_gain = unit, first, np.float32(0.0)
    for other in range(len(model.energy)):
        if model.pair_row[unit, other] < 0:
            continue
        for s in range(first, last):
            if blocked[other, s] == 0:
                gain = _gain(fits[other, s], model.energy[other], model.prior[other], model.min_scale)
                if gain > best_gain:
                    best_unit, best_t, best_gain = other, s, gain
    return best_unit, best_t, best_gain


@numba.njit(cache=True, nogil=True)
def _has_rival(samples, units, order, rank, pair_row, reach):  # type: ignore[no-untyped-def]
    """Whether another spike within reach touches this one's unit."""
    k = order[rank]
    for step in (-1, 1):
        other = rank + step
        while 0 <= other < len(order):
            j = order[other]
            if samples[j] >= 0:
                if abs(samples[j] - samples[k]) > 2 * reach:
                    break
                if abs(samples[j] - samples[k]) <= reach and pair_row[units[k], units[j]] >= 0:
                    return True
            other += step
    return False


@numba.njit(cache=True, nogil=True)
def _is_largest(best_gain, t, reach):  # type: ignore[no-untyped-def]
    """Whether nothing within reach is better; of equals, the earliest."""
    for s in range(max(t - reach, 0), t):
        if best_gain[s] >= best_gain[t]:
            return False
    for s in range(t + 1, min(t + reach + 1, len(best_gain))):  # noqa: SIM110  numba compiles no generator
        if best_gain[s] > best_gain[t]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def _between_samples(fit, t):  # type: ignore[no-untyped-def]
    """Vertex of the parabola through the fit at t - 1, t, t + 1: its offset and height."""
    before, middle, after = fit[t - 1], fit[t], fit[t + 1]
    curvature = before - 2.0 * middle + after
    if curvature >= 0.0:
        return 0.0, middle
    offset = min(0.5, max(-0.5, 0.5 * (before - after) / curvature))
    return offset, middle - 0.25 * (before - after) * offset


@numba.njit(cache=True, nogil=True)
def _posterior(fits, blocked, model, unit, t, gain):  # type: ignore[no-untyped-def]
    """Probability of the chosen unit against noise and against the units it could be taken for."""
    total = 1.0 + np.exp(-0.5 * gain)
    for other in range(len(model.energy)):
        if other == unit or model.pair_row[unit, other] < 0:
            continue
        rival = np.float32(0.0)
        for s in range(t - 3, t + 4):
            if blocked[other, s] == 0:
                gained = _gain(fits[other, s], model.energy[other], model.prior[other], model.min_scale)
                rival = max(rival, gained)
        if rival > 0.0:
            total += np.exp(min(0.0, 0.5 * (rival - gain)))
    return 1.0 / total


@numba.njit(cache=True, nogil=True)
def _subtract(fits, model, unit, t, offset, scale):  # type: ignore[no-untyped-def]
    """Take a spike out of the fits of all units that it touches."""
    first, last = max(t - model.reach, 0), min(t + model.reach + 1, fits.shape[1])
    if first >= last:
        return
    # lag of sample s is s - t - offset; row index of lag 0 is num_lags // 2
    base = int(np.floor(-offset))
    kernel = lanczos_kernel(-offset - base)
    num_lags = model.correlations.shape[1]
    start = first - t + base + num_lags // 2 - (LANCZOS_TAPS - 1)
    # with zeros around what is known, every sample has all taps: the compiler makes vectors of it
    lags = np.zeros(last - first + 2 * LANCZOS_TAPS - 1, dtype=np.float32)
    low, high = max(0, -start), min(len(lags), num_lags - start)
    for other in range(fits.shape[0]):
        row = model.pair_row[unit, other]
        if row < 0:
            continue
        lags[low:high] = model.correlations[row, start + low : start + high]
        left = fits[other, first:last]
        for s in range(len(left)):
            value = np.float32(0.0)
            for k in range(2 * LANCZOS_TAPS):
                value += kernel[k] * lags[s + k]
            left[s] -= scale * value
