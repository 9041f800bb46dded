"""Recordings with known units: simulated whole, or units injected into a real recording."""

from typing import Any

import numpy as np

from accm_core.errors import ParamsError, RecordingError
from accm_core.params import SignalParams
from accm_core.signal.chunks import cut_blocks, read_padded, spread_blocks
from accm_core.signal.filter import make_bandpass
from accm_core.signal.preprocess import measure_noise
from accm_core.simulation.firing import Trains, add_synchrony, draw_rates, draw_trains
from accm_core.simulation.nwb import truth_path, write_simulation
from accm_core.simulation.params import SimulationParams, make_simulation_params
from accm_core.simulation.recording import GroundTruth, SimulatedRecording
from accm_core.simulation.traces import Background, Cells, Drift, make_noise, stack_cells
from accm_core.simulation.units import draw_units
from accm_core.simulation.waveforms import draw_neuron, probe_locations, window_samples
from accm_core.types import Recording, Segment, Templates

__all__ = [
    "GroundTruth",
    "SimulatedRecording",
    "SimulationParams",
    "hybrid_recording",
    "make_simulation_params",
    "simulate",
    "truth_path",
    "write_simulation",
]

NEAR_UM = 100.0  # units whose main channels are this near can be partners in synchrony
RATE_LIMITS_HZ = (0.3, 30.0)
BACKGROUND_RATES_HZ = (5.0, 20.0)
BACKGROUND_SNR = (0.5, 2.5)  # too small to be found
MAX_BACKGROUND_POWER = 0.8  # of the noise power; the rest is Gaussian
STAND_IN_PITCH_UM = 25.0  # between the channels of a shank in a recording without positions
NOISE_BLOCKS = 8
SHAPE, TRAIN, NOISE = 11, 12, 13  # streams of random numbers


def simulate(
    params: SimulationParams | None = None, *, seed: int = 0, **changes: Any
) -> tuple[SimulatedRecording, GroundTruth]:
    """Simulate a recording whose units are known.

    Parameters
    ----------
    params : SimulationParams, optional
        What to simulate; a tetrode for a minute when None.
    seed : int
        Every choice comes from it; at least 0.
    **changes
        Fields of `SimulationParams`, which win over ``params``.

    Returns
    -------
    recording : SimulatedRecording
        Generated while it is read, so that it may be of any length.
    truth : GroundTruth

    Raises
    ------
    ParamsError
        If a parameter is unknown or out of range, or no such units exist.

    Notes
    -----
    Neurons are current sources in front of the probe (`accm_core.simulation.waveforms`). What is no unit is
    Gaussian noise, correlated over space and time, and the spikes of many small cells, which make the noise
    of a real recording non-Gaussian (Quiroga et al. 2004); together they have the noise level asked for.

    References
    ----------
    Quiroga, Nadasdy & Ben-Shaul (2004), Neural Comput. 16, 1661: one wire, three shapes of equal peak.

    Examples
    --------
    >>> recording, truth = simulate(probe="mono", duration_s=2, noise_level=0.05, seed=1)
    >>> recording.get_traces(0, 30_000).shape, len(truth.unit_names)
    ((30000, 1), 3)
    """
    filled = make_simulation_params(params, **changes)
    _check_seed(seed)
    rate = filled.sampling_frequency
    locations = probe_locations(filled.probe, filled.num_channels, filled.pitch_um)
    num_samples = round(filled.duration_s * rate)
    segments = (Segment(0, num_samples),)
    shanks = [np.arange(len(locations))]
    cells, snr = _make_cells(filled, seed, locations, shanks, np.full(len(locations), filled.noise_uV), rate)
    trains = _make_trains(filled, seed, cells, segments, rate)
    rng = np.random.default_rng([seed, NOISE])
    background = _make_background(rng, filled, locations)
    power = 0.0 if background is None else float(background.power(rate).mean())
    std_uV = np.sqrt(filled.noise_uV**2 - power)
    recording = SimulatedRecording(
        sampling_frequency=rate,
        channel_ids=tuple(str(k) for k in range(len(locations))),
        channel_locations=locations,
        channel_groups=np.zeros(len(locations), np.int64),
        has_geometry=True,
        segments=segments,
        params=filled,
        seed=seed,
        cells=cells,
        trains=trains,
        drift=Drift(filled.drift_um, filled.drift_period_s) if filled.drift_um > 0 else None,
        noise=make_noise(rng, locations, rate, float(std_uV), filled.lfp_uV),
        background=background,
    )
    return recording, _make_truth(recording, snr)


def hybrid_recording(
    recording: Recording, params: SimulationParams | None = None, *, seed: int = 0, **changes: Any
) -> tuple[SimulatedRecording, GroundTruth]:
    """Inject known units into a recording, to learn how well it can be sorted.

    Parameters
    ----------
    recording : Recording
        Is not changed, and has to stay open while the result is read.
    params : SimulationParams, optional
        Of these ``num_units`` (8 when None), ``snr``, ``noise_level``, the firing, ``synchrony`` and the
        distances count; the probe, the noise and the duration are the recording's.
    seed : int
        Every choice comes from it; at least 0.
    **changes
        Fields of `SimulationParams`, which win over ``params``.

    Returns
    -------
    recording : SimulatedRecording
        The recording and the units' spikes.
    truth : GroundTruth
        The injected units. The recording's own units are not in it: sorting is to be judged by accuracy and
        recall, not by how many units were found.

    Raises
    ------
    ParamsError
        If a parameter is unknown or out of range, or no such units exist.
    RecordingError
        If every channel is constant.

    Notes
    -----
    Peaks are ``snr`` times the noise level (MAD of the band-passed traces) of the main channel. Without
    positions, the channels of a shank stand in a square of 25 µm pitch while waveforms are drawn.
    """
    asked = make_simulation_params(params, **changes)
    given = params is not None and params.num_units is not None
    num_units = asked.num_units if given or changes.get("num_units") is not None else 8
    rate = recording.sampling_frequency
    filled = asked.model_copy(update={"num_units": num_units, "sampling_frequency": rate})
    _check_seed(seed)
    noise_levels = _noise_levels(recording)
    groups = recording.channel_groups
    shanks = [np.flatnonzero((groups == g) & (noise_levels > 0)) for g in np.unique(groups)]
    shanks = [shank for shank in shanks if len(shank)]
    if not shanks:
        raise RecordingError(
            f"All {len(groups)} channels are constant after the band-pass; units need noise to be scaled to. "
            "Choose a recording that holds neural data."
        )
    locations = recording.channel_locations if recording.has_geometry else _stand_in_locations(groups)
    cells, snr = _make_cells(filled, seed, locations, shanks, noise_levels, rate)
    hybrid = SimulatedRecording(
        sampling_frequency=rate,
        channel_ids=recording.channel_ids,
        channel_locations=recording.channel_locations,
        channel_groups=groups,
        has_geometry=recording.has_geometry,
        segments=recording.segments,
        params=filled,
        seed=seed,
        cells=cells,
        trains=_make_trains(filled, seed, cells, recording.segments, rate),
        parent=recording,
    )
    return hybrid, _make_truth(hybrid, snr)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ParamsError(f"seed = {seed} is refused: the least is 0. Give a whole number from 0 on.")


def _make_cells(
    params: SimulationParams,
    seed: int,
    locations: np.ndarray,
    shanks: list[np.ndarray],
    noise_uV: np.ndarray,  # noqa: N803
    sampling_frequency: float,
) -> tuple[Cells | None, np.ndarray]:
    """Draw the units, each scaled to the noise of its main channel; their peaks in noise levels too."""
    rng = np.random.default_rng([seed, SHAPE])
    neurons, homes = draw_units(rng, params, locations, shanks, sampling_frequency)
    if not neurons:
        return None, np.zeros(0)
    low, high = params.snr
    if params.noise_level is not None:
        low = high = 1.0 / params.noise_level
    snr = np.exp(rng.uniform(np.log(low), np.log(high), len(neurons)))
    for k, (neuron, home) in enumerate(zip(neurons, homes, strict=True)):
        main = home[neuron.waveform(locations[home]).min(axis=0).argmin()]
        neurons[k] = neuron.scaled(snr[k] * float(noise_uV[main]))
    num_before, _ = window_samples(sampling_frequency)
    return stack_cells(neurons, homes, locations, num_before), snr


def _make_trains(
    params: SimulationParams,
    seed: int,
    cells: Cells | None,
    segments: tuple[Segment, ...],
    sampling_frequency: float,
) -> Trains:
    """Draw the spikes, in samples of the recording, none nearer to a border than its waveform reaches."""
    if cells is None:
        return Trains(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.float32))
    rng = np.random.default_rng([seed, TRAIN])
    num_units = len(cells.channels)
    median_hz = params.rate_hz or 0.0
    is_poisson = params.firing == "poisson"
    rates = np.full(num_units, median_hz)
    if not is_poisson:
        limits = (min(RATE_LIMITS_HZ[0], median_hz), max(RATE_LIMITS_HZ[1], median_hz))
        rates = draw_rates(rng, num_units, median_hz, limits)
    amplitude_std = params.amplitude_std or 0.0
    lengths = np.array([s.num_samples for s in segments])
    trains = draw_trains(
        rng,
        rates,
        int(lengths.sum()),
        sampling_frequency,
        refractory_ms=params.refractory_ms,
        burst_share=params.burst_share or 0.0,
        amplitude_std=amplitude_std,
        poisson=is_poisson,
    )
    if params.synchrony > 0:
        trains = add_synchrony(
            rng,
            trains,
            _neighbors(cells),
            sampling_frequency,
            share=params.synchrony,
            exact=params.exact_synchrony,
            refractory_ms=params.refractory_ms,
            amplitude_std=amplitude_std,
        )
    ends = np.cumsum(lengths)
    row = np.minimum(np.searchsorted(ends, trains.time, side="right"), len(segments) - 1)
    inside = trains.time - (ends - lengths)[row]
    num_after = cells.num_samples - cells.num_before
    fits = (inside >= cells.num_before + 1) & (inside < lengths[row] - num_after - 1)
    moved = Trains(inside + np.array([s.start for s in segments])[row], trains.unit, trains.scale)
    return moved.select(fits)


def _neighbors(cells: Cells) -> list[np.ndarray]:
    """Units near each unit, on the same shank."""
    main = cells.templates().min(axis=1).argmin(axis=1)
    where = cells.channel_locations[main]
    near = np.linalg.norm(where[:, None] - where[None], axis=-1) <= NEAR_UM
    near &= np.stack([np.isin(main, channels) for channels in cells.channels])
    np.fill_diagonal(near, False)
    return [np.flatnonzero(row) for row in near]


def _make_background(
    rng: np.random.Generator, params: SimulationParams, locations: np.ndarray
) -> Background | None:
    """Draw the cells too small to be found; scaled down where they would exceed the noise level."""
    count = params.background_units or 0
    if count == 0:
        return None
    rate = params.sampling_frequency
    peaks = params.noise_uV * rng.uniform(*BACKGROUND_SNR, count)
    rates = rng.uniform(*BACKGROUND_RATES_HZ, count)
    neurons = [draw_neuron(rng, locations, rate).scaled(float(peak)) for peak in peaks]
    num_before, _ = window_samples(rate)
    everywhere = [np.arange(len(locations))] * count
    background = Background(stack_cells(neurons, everywhere, locations, num_before), rates)
    share = float(background.power(rate).mean()) / params.noise_uV**2
    if share <= MAX_BACKGROUND_POWER:
        return background
    factor = float(np.sqrt(MAX_BACKGROUND_POWER / share))
    smaller = [neuron.scaled(factor) for neuron in neurons]
    return Background(stack_cells(smaller, everywhere, locations, num_before), rates)


def _make_truth(recording: SimulatedRecording, snr: np.ndarray) -> GroundTruth:
    trains, cells = recording.trains, recording.cells
    num_channels = len(recording.channel_ids)
    if cells is None:
        mean, num_before = np.zeros((0, 1, num_channels), np.float32), 0
    else:
        mean, num_before = cells.templates(), cells.num_before
    nearest = np.rint(trains.time).astype(np.int64)
    times = recording.sample_to_time(nearest) + (trains.time - nearest) / recording.sampling_frequency
    scales = [trains.scale[trains.unit == k] for k in range(len(mean))]
    spread = np.array([scale.std() if len(scale) else 0.0 for scale in scales], dtype=np.float32)
    return GroundTruth(
        unit_names=tuple(str(k) for k in range(len(mean))),
        sample_index=nearest,
        spike_times=times,
        unit_index=trains.unit,
        scale=trains.scale,
        templates=Templates(mean, np.abs(mean) * spread[:, None, None], num_before),
        main_channel_locations=recording.channel_locations[mean.min(axis=1).argmin(axis=1)],
        snr=snr,
        params=recording.params,
        seed=recording.seed,
    )


def _noise_levels(recording: Recording) -> np.ndarray:
    """Noise level of each channel, from some blocks spread over the recording, µV."""
    bandpass = make_bandpass(SignalParams(), recording.sampling_frequency)
    blocks = spread_blocks(cut_blocks(recording.segments, recording.sampling_frequency), NOISE_BLOCKS)
    filtered = []
    for block in blocks:
        margin = bandpass.margin
        padded = read_padded(recording, block.start - margin, block.stop + margin, block.segment)
        filtered.append(bandpass.apply(padded)[margin : len(padded) - margin])
    return measure_noise(np.concatenate(filtered))


def _stand_in_locations(groups: np.ndarray) -> np.ndarray:
    locations = np.zeros((len(groups), 2))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        side = int(np.ceil(np.sqrt(len(rows))))
        locations[rows] = STAND_IN_PITCH_UM * np.stack(np.divmod(np.arange(len(rows)), side), axis=1)
    return locations
