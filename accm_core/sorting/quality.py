"""Quality metrics of the units, by SpikeInterface's names and definitions, and what they say of each unit."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

from accm_core.types import Segment, Templates

ISI_THRESHOLD_S = 1.5e-3  # two spikes of one neuron are further apart (Hill, Mehta & Kleinfeld 2011)
PRESENCE_BIN_S = 60.0  # SpikeInterface's bin
CUTOFF_BINS = 500  # SpikeInterface's histogram
CUTOFF_SMOOTHING_BINS = 3
CUTOFF_SPIKES_PER_BIN = 5  # fewer spikes than this a bin: no amplitude cutoff

MAX_ISI_VIOLATIONS_RATIO = 0.5  # Allen Institute, Visual Coding Neuropixels
MIN_ISI_VIOLATIONS = 2  # the ratio of a unit with few spikes jumps past any limit at its first violation
MAX_AMPLITUDE_CUTOFF = 0.2  # Bombcell (Fabre et al. 2023)
MIN_PRESENCE_RATIO = 0.7  # Bombcell
MIN_PRESENCE_BINS = 5  # in a shorter recording one silent bin would already fail the unit
MIN_GOOD_SNR = 5.0  # Bombcell
MIN_GOOD_SPIKES = 50  # of 50 spikes the isi_violations_ratio and the mean waveform begin to mean something
MIN_SNR = 2.0  # below, the mean waveform is within what averaged noise peaks give
MIN_SPIKES = 10  # fewer spikes are no unit


def compute_quality(
    *,
    sample_index: np.ndarray,
    unit_index: np.ndarray,
    num_units: int,
    amplitude_uV: np.ndarray,  # noqa: N803  the unit's symbol
    templates: Templates,
    noise_levels_uV: np.ndarray,  # noqa: N803
    segments: Sequence[Segment],
    sampling_frequency: float,
) -> dict[str, np.ndarray]:
    """Compute the metrics of every unit.

    Parameters
    ----------
    sample_index : ndarray of shape (n_spikes,), int64
        Sample of each spike, counted from the start of the series; in any order.
    unit_index : ndarray of shape (n_spikes,), int64
        Row of each spike's unit.
    num_units : int
        Number of units; one without a spike has NaN metrics.
    amplitude_uV : ndarray of shape (n_spikes,)
        µV, signed.
    templates : Templates
        Mean waveforms, µV.
    noise_levels_uV : ndarray of shape (n_channels,)
        MAD of the band-passed traces of each channel, µV.
    segments : sequence of Segment
        What was observed.
    sampling_frequency : float
        Hz.

    Returns
    -------
    dict of str to ndarray of shape (n_units,)
        ``num_spikes`` and ``isi_violations_count`` (int64; -1 for a unit without a spike), and as float64
        ``firing_rate`` (Hz), ``snr``, ``amplitude_median`` (µV), ``isi_violations_ratio``,
        ``presence_ratio`` (NaN below one bin of 60 s), ``amplitude_cutoff`` (NaN below 2500 spikes).

    Notes
    -----
    The definitions are those of ``spikeinterface.metrics``, where intervals are never taken across a gap and
    the rate is over observed time. Intervals are compared in whole samples, which spares the rounding of
    seconds. Cost: one sort of the spikes.

    References
    ----------
    Hill, Mehta & Kleinfeld (2011), J. Neurosci. 31, 8699: refractory period violations, missing spikes.
    Siegle et al. (2021), Nature 592, 86: presence ratio, amplitude cutoff.
    """
    order = np.lexsort((sample_index, unit_index))
    samples, units, amplitudes = sample_index[order], unit_index[order], amplitude_uV[order]
    num_spikes = np.bincount(units, minlength=num_units).astype(np.int64)
    has_spikes = num_spikes > 0
    starts = np.array([s.start for s in segments], dtype=np.int64)
    lengths = np.array([s.num_samples for s in segments], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    segment = np.searchsorted(starts, samples, side="right") - 1
    duration_s = float(offsets[-1]) / sampling_frequency
    firing_rate = np.where(has_spikes, num_spikes / duration_s, np.nan)

    violated = np.diff(samples) < ISI_THRESHOLD_S * sampling_frequency
    violated &= (units[1:] == units[:-1]) & (segment[1:] == segment[:-1])
    count = np.bincount(units[1:][violated], minlength=num_units).astype(np.int64)
    window_s = np.where(has_spikes, 2 * num_spikes * ISI_THRESHOLD_S, np.nan)  # nan: no spike, no ratio

    edges = _presence_edges(starts, lengths, offsets, sampling_frequency)
    concatenated = samples - starts[segment] + offsets[segment]
    return {
        "num_spikes": num_spikes,
        "firing_rate": firing_rate,
        "snr": _snr(templates, noise_levels_uV, has_spikes),
        "amplitude_median": _median_of_units(amplitudes, units, num_spikes),
        "isi_violations_ratio": count / window_s / firing_rate,
        "isi_violations_count": np.where(has_spikes, count, -1),
        "presence_ratio": _presence_ratio(concatenated, units, num_spikes, edges),
        "amplitude_cutoff": _amplitude_cutoffs(amplitudes, num_spikes),
    }


def label_units(quality: dict[str, np.ndarray]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Label every unit 'good', 'mua' or 'noise', and say why.

    Parameters
    ----------
    quality : dict of str to ndarray of shape (n_units,)
        What ``compute_quality`` returns.

    Returns
    -------
    labels : tuple of str
        One a unit.
    reasons : tuple of str
        Every limit that the unit misses, with value and limit; empty for a good unit.

    Notes
    -----
    A metric that is NaN could not be computed and fails nothing, but a unit without an SNR is noise.
    The limits are the constants of this module, each with its source.
    """
    labels, reasons = [], []
    for row in range(len(quality["num_spikes"])):
        unit = {name: float(values[row]) for name, values in quality.items()}
        noise, mua = _noise_reasons(unit), _mua_reasons(unit)
        labels.append("noise" if noise else "mua" if mua else "good")
        reasons.append("; ".join(noise or mua))
    return tuple(labels), tuple(reasons)


def _noise_reasons(unit: dict[str, float]) -> list[str]:
    found = []
    if unit["num_spikes"] < MIN_SPIKES:
        found.append(f"num_spikes {unit['num_spikes']:.0f} < {MIN_SPIKES}")
    if not unit["snr"] >= MIN_SNR:  # NaN too
        found.append(f"snr {unit['snr']:.2f} < {MIN_SNR:g}")
    return found


def _mua_reasons(unit: dict[str, float]) -> list[str]:
    found = []
    if unit["num_spikes"] < MIN_GOOD_SPIKES:
        found.append(f"num_spikes {unit['num_spikes']:.0f} < {MIN_GOOD_SPIKES}")
    if unit["snr"] < MIN_GOOD_SNR:
        found.append(f"snr {unit['snr']:.2f} < {MIN_GOOD_SNR:g}")
    ratio = unit["isi_violations_ratio"]
    if ratio > MAX_ISI_VIOLATIONS_RATIO and unit["isi_violations_count"] >= MIN_ISI_VIOLATIONS:
        found.append(f"isi_violations_ratio {ratio:.2f} > {MAX_ISI_VIOLATIONS_RATIO:g}")
    duration_s = unit["num_spikes"] / unit["firing_rate"] if unit["num_spikes"] else 0.0
    if unit["presence_ratio"] < MIN_PRESENCE_RATIO and duration_s >= MIN_PRESENCE_BINS * PRESENCE_BIN_S:
        found.append(f"presence_ratio {unit['presence_ratio']:.2f} < {MIN_PRESENCE_RATIO:g}")
    if unit["amplitude_cutoff"] > MAX_AMPLITUDE_CUTOFF:
        found.append(f"amplitude_cutoff {unit['amplitude_cutoff']:.2f} > {MAX_AMPLITUDE_CUTOFF:g}")
    return found


def _snr(templates: Templates, noise_levels: np.ndarray, has_spikes: np.ndarray) -> np.ndarray:
    """Largest absolute value of the template on its main channel, over that channel's noise level."""
    main = templates.main_channel
    peak = np.abs(templates.mean[np.arange(len(main)), :, main]).max(axis=1, initial=0.0)
    noise = noise_levels[main].astype(np.float64)
    usable = has_spikes & (noise > 0)
    return np.where(usable, peak / np.where(usable, noise, 1.0), np.nan)


def _median_of_units(values: np.ndarray, units: np.ndarray, num_spikes: np.ndarray) -> np.ndarray:
    """Median of each unit's values; ``units`` is sorted."""
    ordered = values[np.lexsort((values, units))].astype(np.float64)
    first = np.concatenate([[0], np.cumsum(num_spikes)[:-1]]) if len(num_spikes) else num_spikes
    median = np.full(len(num_spikes), np.nan)
    some = num_spikes > 0
    low = first[some] + (num_spikes[some] - 1) // 2
    high = first[some] + num_spikes[some] // 2
    median[some] = 0.5 * (ordered[low] + ordered[high])
    return median


def _presence_edges(
    starts: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, sampling_frequency: float
) -> np.ndarray:
    """Edges of the bins on the observed samples set end to end; an incomplete last bin is left out."""
    width = int(PRESENCE_BIN_S * sampling_frequency)
    if offsets[-1] < width:
        return np.zeros(1, dtype=np.int64)
    edges = []
    for row in range(len(starts)):
        stop = offsets[row] + lengths[row]
        if row == len(starts) - 1:
            stop = stop // width * width + 1
        edges.append(np.arange(offsets[row], stop, width))
    return np.concatenate(edges)


def _presence_ratio(
    samples: np.ndarray, units: np.ndarray, num_spikes: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """Share of the bins in which the unit fires at all."""
    num_units, num_bins = len(num_spikes), len(edges) - 1
    if num_bins < 1:
        return np.full(num_units, np.nan)
    bin_index = np.searchsorted(edges, samples, side="right") - 1
    bin_index[samples == edges[-1]] = num_bins - 1  # the last bin is closed on the right, as np.histogram's
    inside = bin_index < num_bins
    occupied = np.unique(units[inside] * num_bins + bin_index[inside]) // num_bins
    ratio = np.bincount(occupied, minlength=num_units) / num_bins
    return np.where(num_spikes > 0, ratio, np.nan)


def _amplitude_cutoffs(amplitudes: np.ndarray, num_spikes: np.ndarray) -> np.ndarray:
    """Share of spikes missing below the detection threshold; ``amplitudes`` is sorted by unit."""
    cutoffs = np.full(len(num_spikes), np.nan)
    stops = np.cumsum(num_spikes)
    for unit in np.flatnonzero(num_spikes >= CUTOFF_BINS * CUTOFF_SPIKES_PER_BIN):
        cutoffs[unit] = _amplitude_cutoff(amplitudes[stops[unit] - num_spikes[unit] : stops[unit]])
    return cutoffs


def _amplitude_cutoff(amplitudes: np.ndarray) -> float:
    """One unit's share of missing spikes: what the lower tail, cut by the threshold, lacks of the upper."""
    upright = -amplitudes if np.median(amplitudes) < 0 else amplitudes
    histogram = np.histogram(upright, CUTOFF_BINS)[0]
    density = gaussian_filter1d(
        histogram, CUTOFF_SMOOTHING_BINS, mode="nearest"
    )  # whole counts, as SpikeInterface's
    last = np.flatnonzero(density >= density[0])[-1]
    missing = density[last + 1 :].sum()
    return min(float(missing / (len(amplitudes) + missing)), 0.5)
