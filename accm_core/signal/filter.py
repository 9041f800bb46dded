"""Zero-phase band-pass filter."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import fft, signal

from accm_core.errors import ParamsError
from accm_core.params import SignalParams, to_samples
from accm_core.signal.transpose import transpose

ORDER = 3
"""Of the Butterworth response, applied forward and backward."""
MARGIN_MS = 20.0
"""The response of a 300 Hz edge has decayed by e^-19 after this time."""
MAX_SHARE_OF_RATE = 0.45
"""The upper edge stays below this share of the sampling frequency."""


@dataclass(frozen=True)
class Bandpass:
    """Band-pass from ``freq_min_hz`` to ``freq_max_hz``; what it needs on each side is ``margin`` samples.

    ``device`` is the GPU on which it is applied, as torch names it; None for this machine's cores.
    """

    sampling_frequency: float
    freq_min_hz: float
    freq_max_hz: float
    device: str | None = None

    @property
    def margin(self) -> int:
        """Samples on each side that the filter's response reaches."""
        # a lower edge rings longer
        return to_samples(MARGIN_MS * max(1.0, 300.0 / self.freq_min_hz), self.sampling_frequency)

    def apply(self, traces: np.ndarray) -> np.ndarray:
        """Filter along time, without phase shift.

        Parameters
        ----------
        traces : ndarray of shape (n_samples, n_channels), float32

        Returns
        -------
        ndarray of the same shape, float32
            The first and last ``margin`` samples hold the filter's edge and are to be dropped.
        """
        num_samples = len(traces)
        length = fft.next_fast_len(num_samples, real=True)
        if self.device is not None:
            return _apply_on_device(self, traces, length)
        channels = transpose(traces)
        # the mean would otherwise ring at the border where the transform wraps around
        channels -= channels.mean(axis=1, keepdims=True)
        spectrum = fft.rfft(channels, n=length, axis=1)
        spectrum *= _response(self, length)
        filtered: np.ndarray = transpose(fft.irfft(spectrum, n=length, axis=1)[:, :num_samples])
        return filtered

    def response(self, num_samples: int) -> np.ndarray:
        """Gain at each frequency of a transform of this length, (num_samples // 2 + 1,), float32."""
        return _response(self, num_samples)


def _apply_on_device(bandpass: Bandpass, traces: np.ndarray, length: int) -> np.ndarray:
    """The same on a GPU."""
    import torch

    channels = torch.as_tensor(traces, device=bandpass.device).T
    spectrum = torch.fft.rfft(channels - channels.mean(dim=1, keepdim=True), n=length)
    spectrum *= torch.as_tensor(_response(bandpass, length), device=bandpass.device)
    filtered: np.ndarray = torch.fft.irfft(spectrum, n=length)[:, : len(traces)].T.contiguous().cpu().numpy()
    return filtered


@lru_cache(maxsize=16)
def _response(bandpass: Bandpass, length: int) -> np.ndarray:
    """Squared magnitude of the Butterworth response at the transform's frequencies: twice filtered."""
    sos = signal.butter(
        ORDER,
        [bandpass.freq_min_hz, bandpass.freq_max_hz],
        btype="bandpass",
        output="sos",
        fs=bandpass.sampling_frequency,
    )
    frequencies = fft.rfftfreq(length, 1 / bandpass.sampling_frequency)
    _, response = signal.sosfreqz(sos, worN=frequencies, fs=bandpass.sampling_frequency)
    return (np.abs(response) ** 2).astype(np.float32)


def make_bandpass(params: SignalParams, sampling_frequency: float, device: str | None = None) -> Bandpass:
    """Make the filter for a recording.

    Raises
    ------
    ParamsError
        If the pass band is empty at this sampling frequency.
    """
    freq_max_hz = min(params.freq_max_hz, MAX_SHARE_OF_RATE * sampling_frequency)
    if params.freq_min_hz >= freq_max_hz:
        raise ParamsError(
            f"signal.freq_min_hz is {params.freq_min_hz:g} Hz, but the upper edge is {freq_max_hz:g} Hz "
            f"at a sampling frequency of {sampling_frequency:g} Hz. Lower signal.freq_min_hz."
        )
    return Bandpass(sampling_frequency, params.freq_min_hz, freq_max_hz, device)
