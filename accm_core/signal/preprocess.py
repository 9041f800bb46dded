"""Counts to whitened traces: band-pass, common reference, bad channels, noise levels, whitening.

One ``Preprocessor`` holds all that was measured on a shank; it is applied block by block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import fft

from accm_core.errors import RecordingError
from accm_core.params import SignalParams
from accm_core.signal.chunks import Block, cut_blocks, read_padded, spread_blocks
from accm_core.signal.filter import Bandpass, make_bandpass
from accm_core.signal.median import median_over_channels
from accm_core.signal.motion import Motion
from accm_core.types import Recording

NOISE_BLOCKS = 10
"""Seconds of the recording on which noise is measured."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""
MIN_CHANNELS_FOR_REFERENCE = 16
"""With fewer channels the median holds too much of the spikes themselves."""
FAR_UM, MAX_SHARED = 150.0, 0.1
"""Distance from which on channels see other neurons, and correlation from which on such channels share noise:
less of it costs less than what a median makes of spikes that collide."""
DEAD_SHARE, NOISY_FACTOR = 0.1, 5.0
"""Noise level, in shares of the shank's median, under and over which a channel is bad."""
QUIET_LIMIT = 4.0
"""Samples beyond this many noise levels hold spikes and are left out of the covariance (noise units)."""
NOISE_WINDOW, MIN_QUIET_WINDOWS = 256, 20
"""Samples of a stretch whose autocovariance is taken; stretches wanted without a spike."""
STRIDE = 5
"""Of the samples, every fifth is enough for levels and covariances: neighbours repeat each other."""
NUM_LAGS = 192
"""Lags of the autocovariance, samples: the longest template that can be matched."""
TILE = 64
"""Channels that are whitened at once: on a long probe they need few others."""
SHRINKAGE = 0.02
"""Share of the mean variance added to the covariance's diagonal, so that its inverse stays tame."""


@dataclass(frozen=True)
class Preprocessor:
    """From raw traces of a recording to filtered and whitened traces of one shank.

    Attributes
    ----------
    bandpass : Bandpass
    channels : ndarray of shape (n_channels,), int64
        Channels of the recording that are used.
    bad_channels : ndarray of shape (n_bad,), int64
        Channels of the shank that are left out.
    use_median : bool
        Subtract the median over channels.
    noise_levels_uV : ndarray of shape (n_channels,), float32
        MAD-based noise level of the filtered traces.
    whitening : ndarray of shape (n_channels, n_channels), float32
        ``filtered @ whitening`` has noise level 1 on each channel.
    autocovariance : ndarray of shape (NUM_LAGS,), float64
        Of the whitened noise, at lags of 0, 1, 2, ... samples.
    motion : Motion or None
        None where the tissue is still.
    """

    bandpass: Bandpass
    channels: np.ndarray
    bad_channels: np.ndarray
    use_median: bool
    noise_levels_uV: np.ndarray  # noqa: N815  the unit's symbol
    whitening: np.ndarray
    autocovariance: np.ndarray
    motion: Motion | None

    @property
    def margin(self) -> int:
        """Samples that ``filter`` drops at each end."""
        return _margin(self.bandpass, self.use_median)

    def filter(self, raw: np.ndarray, block: Block) -> np.ndarray:
        """Band-pass, reference and correct for motion.

        Parameters
        ----------
        raw : ndarray of shape (n_samples, all channels), float32
            µV.
        block : Block
            Where it is from.

        Returns
        -------
        ndarray of shape (n_samples - 2 margin, n_channels), float32
            µV.
        """
        traces = raw if len(self.channels) == raw.shape[1] else raw[:, self.channels]
        filtered = _filter(traces, self.bandpass, self.use_median)
        return filtered if self.motion is None else self.motion.correct(filtered, block)

    def whiten(self, filtered: np.ndarray) -> np.ndarray:
        """Filtered µV to whitened noise units, same shape, float32."""
        whitened = np.empty_like(filtered)
        for targets, sources in self._tiles:
            whitened[..., targets] = filtered[..., sources] @ self.whitening[sources, targets]
        return whitened

    def unwhiten(self, whitened: np.ndarray) -> np.ndarray:
        """The inverse of ``whiten``, same shape."""
        return whitened @ self._unwhitening

    @cached_property
    def _tiles(self) -> list[tuple[slice, slice]]:
        """Channels that are whitened at once, and those that they are whitened from: few on a long probe."""
        tiles = []
        for first in range(0, len(self.channels), TILE):
            targets = slice(first, first + TILE)
            sources = np.flatnonzero(self.whitening[:, targets].any(axis=1))
            tiles.append((targets, slice(sources[0], sources[-1] + 1)))
        return tiles

    @cached_property
    def _unwhitening(self) -> np.ndarray:
        return np.linalg.pinv(self.whitening)


def _filter(traces: np.ndarray, bandpass: Bandpass, use_median: bool) -> np.ndarray:
    """Band-pass and reference; a median of band-passed channels is not itself within the band.

    What of it lies outside would be the only signal there, the same on all channels, and templates over many
    channels would match it.
    """
    filtered, margin = bandpass.apply(traces), _margin(bandpass, use_median)
    if use_median:
        filtered -= bandpass.apply(median_over_channels(filtered)[:, None])
    return filtered[margin : len(traces) - margin]


def _may_want_median(params: SignalParams, num_channels: int) -> bool:
    many = num_channels >= MIN_CHANNELS_FOR_REFERENCE
    return params.reference == "median" or (params.reference == "auto" and many)


def share_noise(traces: np.ndarray, distances: np.ndarray) -> bool:
    """Whether channels that are far from each other share noise; taken for granted where none are.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Filtered.
    distances : ndarray of shape (n_channels, n_channels)
        µm.

    Notes
    -----
    The correlation is that of the signs (Blomqvist 1950, Ann. Math. Stat. 21:593), which spikes hardly
    change. A median over channels is subtracted for what they share, but holds a part of each large spike
    too, and of two spikes at once another part than the sum of theirs: no sum of templates explains it.
    """
    far = distances > FAR_UM
    if not far.any():
        return True
    signs = np.sign(traces - np.median(traces, axis=0)).astype(np.float32)
    correlation = np.sin(0.5 * np.pi * (signs.T @ signs) / len(signs))
    return bool(correlation[far].mean() > MAX_SHARED)


def _margin(bandpass: Bandpass, use_median: bool) -> int:
    return bandpass.margin * (2 if use_median else 1)


def measure_preprocessor(
    recording: Recording,
    channels: np.ndarray,
    distances: np.ndarray,
    params: SignalParams,
    motion: Motion | None = None,
    device: str | None = None,
) -> Preprocessor:
    """Measure a shank's noise on some seconds spread over the recording; as ``fit_preprocessor``."""
    fs = recording.sampling_frequency
    margin = _margin(make_bandpass(params, fs), _may_want_median(params, len(channels)))
    blocks = spread_blocks(cut_blocks(recording.segments, fs), NOISE_BLOCKS)
    raw = [read_padded(recording, b.start - margin, b.stop + margin, b.segment) for b in blocks]
    return fit_preprocessor(raw, channels, distances, params, fs, motion, blocks, device)


def fit_preprocessor(
    raw_blocks: list[np.ndarray],
    channels: np.ndarray,
    distances: np.ndarray,
    params: SignalParams,
    sampling_frequency: float,
    motion: Motion | None = None,
    blocks: Sequence[Block] = (),
    device: str | None = None,
) -> Preprocessor:
    """Measure a shank's noise on some blocks of raw traces.

    Parameters
    ----------
    raw_blocks : list of ndarray of shape (n_samples, n_channels_of_recording), float32
        µV, each with the filter's margin on both sides, twice where a median may be taken.
    channels : ndarray of shape (n_channels,), int64
        The shank's channels.
    distances : ndarray of shape (n_channels, n_channels)
        Between them, µm.
    params : SignalParams
    sampling_frequency : float
        Hz.
    motion : Motion, optional
        Of the channels that are neither dead nor noisy; noise is then measured on corrected traces.
    blocks : sequence of Block
        Where the traces are from; needed with a motion alone.
    device : str, optional
        GPU on which to filter; None for this machine's cores.

    Raises
    ------
    RecordingError
        If every channel is constant.
    """
    bandpass = make_bandpass(params, sampling_frequency, device)
    filtered = [_filter(raw[:, channels], bandpass, use_median=False)[::STRIDE] for raw in raw_blocks]
    thinned = np.concatenate(filtered)
    noise_levels = measure_noise(thinned)
    is_good = find_good_channels(noise_levels) if params.detect_bad_channels else noise_levels > 0
    if not is_good.any():
        raise RecordingError(
            f"All {len(channels)} channels are constant after the band-pass; there is nothing to sort. "
            "Check that the recording holds neural data and that its conversion is not zero."
        )
    good = channels[is_good]
    distances = distances[np.ix_(is_good, is_good)]
    use_median = _may_want_median(params, len(good)) and (
        params.reference == "median" or share_noise(thinned[:, is_good], distances)
    )
    traces = [_filter(raw[:, good], bandpass, use_median) for raw in raw_blocks]
    if motion is not None:
        traces = [motion.correct(part, block) for part, block in zip(traces, blocks, strict=True)]
    thinned = np.concatenate([part[::STRIDE] for part in traces])
    noise_levels = measure_noise(thinned)
    whitening = measure_whitening(thinned, noise_levels, distances, params.whiten_radius_um)
    autocovariance = measure_autocovariance(traces, whitening)
    return Preprocessor(
        bandpass, good, channels[~is_good], use_median, noise_levels, whitening, autocovariance, motion
    )


def measure_noise(traces: np.ndarray) -> np.ndarray:
    """Noise level of each channel: scaled median absolute deviation, (n_channels,), float32."""
    centred = traces - np.median(traces, axis=0)
    return (MAD_TO_SIGMA * np.median(np.abs(centred), axis=0)).astype(np.float32)


def find_good_channels(noise_levels: np.ndarray) -> np.ndarray:
    """Mask of the channels that are neither dead nor far noisier than the others."""
    alive = noise_levels > 0
    if not alive.any():
        return alive
    usual = np.median(noise_levels[alive])
    return alive & (noise_levels >= DEAD_SHARE * usual) & (noise_levels <= NOISY_FACTOR * usual)


def measure_whitening(
    traces: np.ndarray, noise_levels: np.ndarray, distances: np.ndarray, radius_um: float
) -> np.ndarray:
    """Local ZCA whitening matrix from the stretches of noise between spikes.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Filtered, µV.
    noise_levels : ndarray of shape (n_channels,)
        µV.
    distances : ndarray of shape (n_channels, n_channels)
        µm.
    radius_um : float
        Channels within this distance are decorrelated from each other.

    Returns
    -------
    ndarray of shape (n_channels, n_channels), float32
        To be multiplied from the right; scaled so that whitened traces have noise level 1.
    """
    scaled = traces / noise_levels
    whitening = np.zeros((len(noise_levels), len(noise_levels)))
    for channel in range(len(noise_levels)):
        near = np.flatnonzero(distances[channel] <= radius_um)
        local = scaled[:, near]
        quiet = local[np.abs(local).max(axis=1) < QUIET_LIMIT]
        if len(quiet) < 10 * len(near):
            quiet = local
        covariance = quiet.T.astype(np.float64) @ quiet / len(quiet)
        values, vectors = np.linalg.eigh(covariance)
        values = values + SHRINKAGE * values.mean()
        inverse_root = (vectors / np.sqrt(values)) @ vectors.T
        whitening[near, channel] = inverse_root[:, near == channel][:, 0]
    whitening /= noise_levels[:, None]
    whitening /= measure_noise(traces @ whitening.astype(np.float32))
    return whitening.astype(np.float32)


def measure_autocovariance(traces: list[np.ndarray], whitening: np.ndarray) -> np.ndarray:
    """Autocovariance of the noise over time, mean over channels.

    Parameters
    ----------
    traces : list of ndarray of shape (n_samples, n_channels), float32
        Filtered, µV.
    whitening : ndarray of shape (n_channels, n_channels), float32

    Returns
    -------
    ndarray of shape (NUM_LAGS,), float64
        Of the whitened traces, at lags 0, 1, 2, ... samples.

    Notes
    -----
    Taken from stretches in which the channel stays within ``QUIET_LIMIT``: noise, and the small spikes of
    far neurons, which are noise to the sorter and are what is least white in it.
    """
    num_bins = NOISE_WINDOW + 1
    quiet_power, power = np.zeros(num_bins), np.zeros(num_bins)
    num_quiet, num_stretches = 0, 0
    for part in traces:
        whitened = (part @ whitening).T
        num_windows = whitened.shape[1] // NOISE_WINDOW
        for channel in whitened[:, : num_windows * NOISE_WINDOW]:
            stretches = channel.reshape(num_windows, NOISE_WINDOW)
            spectrum = np.abs(fft.rfft(stretches, n=2 * NOISE_WINDOW, axis=1)) ** 2
            quiet = np.abs(stretches).max(axis=1, initial=0.0) < QUIET_LIMIT
            quiet_power += spectrum[quiet].sum(axis=0, dtype=np.float64)
            power += spectrum.sum(axis=0, dtype=np.float64)
            num_quiet += int(quiet.sum())
            num_stretches += num_windows
    if num_quiet < MIN_QUIET_WINDOWS:
        quiet_power, num_quiet = power, num_stretches
    covariance: np.ndarray = fft.irfft(quiet_power / max(num_quiet, 1))[:NUM_LAGS]
    return covariance / (NOISE_WINDOW - np.arange(NUM_LAGS))
