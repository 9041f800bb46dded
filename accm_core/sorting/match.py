"""Templates to spikes: explain the traces as a sum of templates, the best explanation first.

Each template's fit is known at each sample from one convolution. The best is taken out, with its own
amplitude and at its own time between samples; what it leaves changes the fits around it by the
templates' cross-correlations, which are known in advance; and so on until nothing exceeds the
threshold. Spikes that overlap are thereby split into their units.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, linalg

from accm_core.params import MatchParams
from accm_core.signal.transpose import transpose
from accm_core.sorting.pursuit import Model, pursue

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
    log_rate : ndarray of shape (n_units,), float32
        Logarithm of how often each unit fires in a second.
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
    log_rate: np.ndarray
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
            log_rate=self.log_rate[units],
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
            log_rate=self.log_rate[units],
            pair_row=self.pair_row[np.ix_(units, units)],
        )

    def reweigh(
        self,
        weights: np.ndarray,
        scale_std: np.ndarray | None = None,
        log_rate: np.ndarray | None = None,
    ) -> "TemplateBank":
        """The bank of other units in the same basis.

        Parameters
        ----------
        weights : ndarray of shape (n_units_after, n_basis, n_channels)
        scale_std : ndarray of shape (n_units_after,), optional
            Standard deviation of each unit's scale; as it was, without it.
        log_rate : ndarray of shape (n_units_after,), optional
            As in `TemplateBank`; as it was, without it.
        """
        pair_row, correlations = _correlate_pairs(weights, self.courses, self.kernels)
        return replace(
            self,
            templates=np.einsum("ukc,kt->utc", weights, self.courses).astype(np.float32),
            weights=np.ascontiguousarray(weights, dtype=np.float32),
            energy=(weights**2).sum(axis=(1, 2)).astype(np.float32),
            prior=self.prior if scale_std is None else (1 / np.square(scale_std)).astype(np.float32),
            log_rate=self.log_rate if log_rate is None else log_rate.astype(np.float32),
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
    log_rate: np.ndarray | None = None,
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
    log_rate : ndarray of shape (n_units,), optional
        As in `TemplateBank`; without it all units are taken to fire once a second.
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
        log_rate=(np.zeros(num_units) if log_rate is None else log_rate).astype(np.float32),
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
    Gaussian prior around 1, (fit + p)^2 / (energy + p) - p, with p one over the scale's variance; and twice
    the logarithm of the unit's rate, as of two units the one that fires more is the likelier, and its
    smaller spikes are less often noise. The threshold is that of a unit that fires once a second.
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
        bank.prior - 2 * bank.log_rate,
        bank.pair_row,
        bank.correlations,
        np.float32(params.threshold**2),
        np.float32(params.min_scale),
        bank.num_samples,
        refractory,
        edge,
    )
