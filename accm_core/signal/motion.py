"""Drift of the tissue along the probe: estimated from the depths of peaks, corrected by interpolation.

The displacement is found by DREDge (Windolf et al. 2023), as SpikeInterface keeps it. Traces are then
interpolated between channels to what they would have been at rest, block by block (kriging, as in
Kilosort 2.5, Steinmetz et al. 2021), so that nothing after it has to know of the motion.
"""

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from accm_core.signal.chunks import Block

MIN_CHANNELS, MIN_SPAN_UM = 16, 150.0
"""On fewer channels, or along a shorter shank, a displacement cannot be told from what neurons do."""
MIN_NONRIGID_SPAN_UM, WINDOW_STEP_UM, WINDOW_SCALE_UM = 1000.0, 400.0, 450.0
"""On a longer shank each of some windows along it has its own displacement (DREDge's choice of windows)."""
MIN_RANGE_UM = 4.0
"""A recording that moves less is left as it is: interpolation costs more than it mends."""
NOISE_HEIGHT = 3.0
"""Peak to peak of what noise leaves on a channel around a peak (noise units); it carries no place."""
MIN_PEAKS = 100
"""Of a time that DREDge compares with others: blocks with fewer are taken together, or it makes drift up."""
DEPTH_SMOOTHING_UM = 3.0
"""Of the image of depth over time that DREDge compares with itself: depths are no more exact than this."""
MAX_TIMES = 300
"""Times that DREDge compares at once; more are solved in parts, each held to the one before."""
KRIGING_PITCHES = 1.5
"""Range over which traces are alike, in multiples of the channels' pitch."""
KRIGING_RIDGE = 1e-3
"""Share of noise in the traces that are interpolated."""

PEAK_DTYPE = [("sample_index", "i8"), ("channel_index", "i8"), ("amplitude", "f8"), ("segment_index", "i8")]
"""SpikeInterface's."""


@dataclass(frozen=True)
class PeakDepths:
    """Where peaks are along the shank.

    Attributes
    ----------
    block_index : ndarray of shape (n_peaks,), int64
        Which of the blocks that were walked.
    depth_um : ndarray of shape (n_peaks,), float32
    height : ndarray of shape (n_peaks,), float32
        Noise units.
    """

    block_index: np.ndarray
    depth_um: np.ndarray
    height: np.ndarray


@dataclass(frozen=True)
class Motion:
    """Displacement of the tissue along a shank.

    Attributes
    ----------
    sample_index : ndarray of shape (n_times,), float64
        In ascending order.
    window_um : ndarray of shape (n_windows,), float64
        Depths at which the displacement is known, in ascending order.
    displacement_um : ndarray of shape (n_times, n_windows), float64
        Towards larger depth.
    channel_locations : ndarray of shape (n_channels, 2), float64
        Of the channels that are corrected, µm.
    axis : int
        Of the locations, along which the tissue moves.
    """

    sample_index: np.ndarray
    window_um: np.ndarray
    displacement_um: np.ndarray
    channel_locations: np.ndarray
    axis: int

    @property
    def is_rigid(self) -> bool:
        """Whether all of the shank moves alike."""
        return len(self.window_um) == 1

    def displacement_at(self, sample: float) -> np.ndarray:
        """Displacement at each channel, (n_channels,), µm."""
        return np.interp(self.channel_locations[:, self.axis], self.window_um, self.in_windows(sample))

    def in_windows(self, sample: float | np.ndarray) -> np.ndarray:
        """Displacement in each window, µm, the windows along the last axis."""
        by_window = [np.interp(sample, self.sample_index, course) for course in self.displacement_um.T]
        return np.stack(by_window, axis=-1)

    def displacement_of(self, sample_index: np.ndarray, channel_index: np.ndarray) -> np.ndarray:
        """Displacement at the time and channel of each spike, (n_spikes,), µm."""
        depth = self.channel_locations[channel_index, self.axis]
        shares = [np.interp(depth, self.window_um, window) for window in np.eye(len(self.window_um))]
        return (self.in_windows(sample_index) * np.stack(shares, axis=-1)).sum(axis=-1)

    def correct(self, traces: np.ndarray, block: Block) -> np.ndarray:
        """Traces of a block as they would be at rest, same shape, float32."""
        targets = self.channel_locations.copy()
        targets[:, self.axis] += self.displacement_at(block.middle)
        covariance = self._covariance(self.channel_locations, targets)
        return traces @ (self._inverse @ covariance).astype(np.float32)

    def _covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        square = ((first[:, None] - second[None]) ** 2).sum(axis=-1)
        return np.exp(-square / self._range_um**2)

    @cached_property
    def _range_um(self) -> float:
        square = ((self.channel_locations[:, None] - self.channel_locations[None]) ** 2).sum(axis=-1)
        np.fill_diagonal(square, np.inf)
        return KRIGING_PITCHES * float(np.median(np.sqrt(square.min(axis=1))))

    @cached_property
    def _inverse(self) -> np.ndarray:
        covariance = self._covariance(self.channel_locations, self.channel_locations)
        return np.linalg.inv(covariance + KRIGING_RIDGE * np.eye(len(covariance)))


def can_move(channel_locations: np.ndarray, has_geometry: bool) -> bool:
    """Whether the shank has what it takes to see and mend a displacement."""
    if not has_geometry or len(channel_locations) < MIN_CHANNELS:
        return False
    return bool(np.ptp(channel_locations, axis=0).max() >= MIN_SPAN_UM)


def shank_axis(channel_locations: np.ndarray) -> int:
    """The coordinate along which the shank is longest."""
    return int(np.ptp(channel_locations, axis=0).argmax())


def estimate_motion(
    depths: PeakDepths,
    block_centers: np.ndarray,
    channel_locations: np.ndarray,
    before: Motion | None = None,
) -> Motion | None:
    """Estimate the displacement over time from the depths of peaks.

    Parameters
    ----------
    depths : PeakDepths
    block_centers : ndarray of shape (n_blocks,), float64
        Samples.
    channel_locations : ndarray of shape (n_channels, 2), float64
        µm.
    before : Motion, optional
        What the traces were corrected for; what is found is added to it. Depths are drawn to the channels,
        most of all where tissue moves far, so what a first estimate leaves is found better by a second.

    Returns
    -------
    Motion or None
        None when the tissue stays within ``MIN_RANGE_UM``, or too few peaks tell of it.

    Notes
    -----
    DREDge sees the blocks as consecutive seconds, however far apart they are: the gaps between them
    hold no peaks. It correlates all pairs of times in memory: `MAX_TIMES` keeps that flat.
    """
    # SpikeInterface's components take a second to import
    from spikeinterface.core import NumpyRecording
    from spikeinterface.sortingcomponents.motion import estimate_motion as run_dredge

    usual = np.median(np.bincount(depths.block_index, minlength=len(block_centers)))
    blocks_per_time = int(np.ceil(MIN_PEAKS / max(usual, 1)))
    time_of = np.arange(len(block_centers)) // blocks_per_time
    times = np.bincount(time_of, block_centers) / np.bincount(time_of)
    if len(times) < 2:
        return None
    axis = shank_axis(channel_locations)
    along = np.stack([channel_locations[:, 1 - axis], channel_locations[:, axis]], axis=1)
    rate = 10.0
    num_samples = int(rate * len(times))
    shell = NumpyRecording([np.broadcast_to(np.float32(0), (num_samples, len(along)))], rate)
    shell.set_dummy_probe_from_locations(along)
    peaks = np.zeros(len(depths.depth_um), PEAK_DTYPE)
    peaks["sample_index"] = (rate * (time_of[depths.block_index] + 0.5)).astype(np.int64)
    peaks["amplitude"] = depths.height
    places = np.zeros(len(peaks), [("x", "f8"), ("y", "f8")])
    places["y"] = depths.depth_um
    num_parts = -(-len(times) // MAX_TIMES)
    with threadpool_limits(1):
        found = run_dredge(
            shell,
            peaks,
            places,
            method="dredge_ap",
            rigid=bool(np.ptp(along[:, 1]) < MIN_NONRIGID_SPAN_UM),
            win_step_um=WINDOW_STEP_UM,
            win_scale_um=WINDOW_SCALE_UM,
            avg_in_bin=True,  # of the heights: their sum would follow the neurons' rates
            histogram_depth_smooth_um=DEPTH_SMOOTHING_UM,
            batching_mode="full" if num_parts == 1 else "online",
            chunk_len_s=-(-len(times) // num_parts),  # equal parts
            device="cpu",
        )
    displacement = np.asarray(found.displacement[0], dtype=np.float64)
    if before is not None:
        displacement += before.in_windows(times)
    low, high = np.percentile(displacement, [1, 99], axis=0)
    if not (high - low).max() >= MIN_RANGE_UM:
        return None
    displacement -= np.median(displacement, axis=0)
    return Motion(times, np.asarray(found.spatial_bins_um), displacement, channel_locations, axis)


@numba.njit(cache=True, nogil=True)
def locate_peaks(traces, samples, channels, neighborhoods, depth_of, sweep):  # type: ignore[no-untyped-def]
    """Depth of each peak: centre of mass over the channels around it, by squared height.

    Parameters
    ----------
    traces : ndarray of shape (n_samples, n_channels), float32
        Noise units, with ``sweep`` samples around each peak.
    samples, channels : ndarray of shape (n_peaks,), int64
    neighborhoods : ndarray of shape (n_channels, n_slots), int64
        Channels around each channel; -1 for none.
    depth_of : ndarray of shape (n_channels,), float64
        µm.
    sweep : int
        Half-width of the window in which the height is taken, samples.

    Returns
    -------
    ndarray of shape (n_peaks,), float32
        µm.
    """
    depths = np.empty(len(samples), dtype=np.float32)
    for k in range(len(samples)):
        total, moment = 0.0, 0.0
        for channel in neighborhoods[channels[k]]:
            if channel < 0:
                continue
            least, most = np.inf, -np.inf
            for s in range(samples[k] - sweep, samples[k] + sweep + 1):
                value = traces[s, channel]
                least, most = min(least, value), max(most, value)
            weight = max(most - least - NOISE_HEIGHT, 0.0) ** 2
            total += weight
            moment += weight * depth_of[channel]
        depths[k] = moment / total if total > 0 else depth_of[channels[k]]
    return depths
