"""Known units and a stretch of recording -> all that a stream is sorted with."""

from dataclasses import dataclass

import numpy as np

from accm_core.errors import ModelError
from accm_core.online.lookahead import LookAhead, make_lookahead
from accm_core.params import MatchParams, SorterParams
from accm_core.signal.geometry import channel_distances
from accm_core.signal.preprocess import Preprocessor, measure_preprocessor
from accm_core.sorting.match import TemplateBank, build_bank
from accm_core.sorting.recover import MIN_SCALE_STD
from accm_core.sorting.templates import silence_channels
from accm_core.types import KnownUnits, Recording, main_channels

MAX_RATE_ERROR = 1e-3
"""Share by which the sampling frequency may differ from that of the units: half a sample at a spike's end."""
OUTSIDE_BAND = 0.04
"""Share of the noise's variance that counts as white besides, where a median is subtracted: there is no time
ahead to band-pass the median as well, and what of it is not within the band is the same on all channels."""


@dataclass(frozen=True)
class ShankPlan:
    """One shank of a stream.

    Attributes
    ----------
    preprocessor : Preprocessor
    bank : TemplateBank
    unit_index : ndarray of shape (n_units,), int64
        Row of each of the bank's units among all of the stream.
    """

    preprocessor: Preprocessor
    bank: TemplateBank
    unit_index: np.ndarray


@dataclass(frozen=True)
class StreamPlan:
    """All that a stream is sorted with.

    Attributes
    ----------
    shanks : tuple of ShankPlan
        Those that have units.
    names : tuple of str
        Of all units.
    num_channels : int
        Of the stream.
    sampling_frequency : float
        Hz.
    match : MatchParams
    lookahead : LookAhead
    """

    shanks: tuple[ShankPlan, ...]
    names: tuple[str, ...]
    num_channels: int
    sampling_frequency: float
    match: MatchParams
    lookahead: LookAhead


def measure_shanks(recording: Recording, params: SorterParams) -> list[Preprocessor]:
    """Measure the noise of each shank on some seconds spread over the recording."""
    found = []
    for group in np.unique(recording.channel_groups):
        channels = np.flatnonzero(recording.channel_groups == group)
        distances = channel_distances(recording.channel_locations[channels], recording.has_geometry)
        found.append(measure_preprocessor(recording, channels, distances, params.signal))
    return found


def make_plan(
    recording: Recording, preprocessors: list[Preprocessor], units: KnownUnits, params: SorterParams
) -> StreamPlan:
    """Make a stream's plan.

    Parameters
    ----------
    recording : Recording
        A stretch of the stream.
    preprocessors : list of Preprocessor
        From `measure_shanks`.
    units : KnownUnits
    params : SorterParams

    Raises
    ------
    ModelError
        If the units are of another probe or sampling frequency.

    Notes
    -----
    A unit belongs to the shank of its main channel. Channels that are bad now are left out of its template.
    All units are taken to fire once a second: how often they did is not how often they will.
    """
    check_units(units, recording.channel_ids, recording.sampling_frequency)
    lookahead = make_lookahead(units.sampling_frequency, units.templates.shape[1] - units.num_before - 1)
    templates = units.templates[:, : units.num_before + lookahead.after + 1]
    rows = {name: row for row, name in enumerate(units.channel_ids)}
    home = main_channels(templates)
    shanks = []
    for preprocessor in preprocessors:
        ids = [recording.channel_ids[channel] for channel in preprocessor.channels]
        places = np.array([rows.get(name, -1) for name in ids])
        own = np.flatnonzero(np.isin(home, places[places >= 0]))
        if len(own) == 0:
            continue
        here = np.where(places >= 0, templates[own][:, :, places], np.float32(0.0))
        whitened = silence_channels(preprocessor.whiten(here))
        autocovariance = preprocessor.autocovariance.copy()
        autocovariance[0] *= 1 + OUTSIDE_BAND * preprocessor.use_median
        bank = build_bank(
            whitened,
            units.num_before,
            autocovariance,
            np.full(len(own), params.match.scale_std),
        )
        scale_std = _scale_std(units.spread[own], bank.energy, params.match)
        shanks.append(ShankPlan(preprocessor, bank.reweigh(bank.weights, scale_std), own))
    return StreamPlan(
        tuple(shanks),
        units.names,
        len(recording.channel_ids),
        recording.sampling_frequency,
        params.match,
        lookahead,
    )


def check_units(units: KnownUnits, channel_ids: tuple[str, ...], sampling_frequency: float) -> None:
    """Refuse units of another probe or sampling frequency.

    Raises
    ------
    ModelError
    """
    missing = [name for name in units.channel_ids if name not in channel_ids]
    if missing:
        raise ModelError(
            f"The model is for another probe: {len(missing)} of its {len(units.channel_ids)} channels, such "
            f"as {missing[0]!r}, are not among the {len(channel_ids)} of this stream. Calibrate on this "
            "probe, or give channel_ids as they were."
        )
    if abs(sampling_frequency / units.sampling_frequency - 1) > MAX_RATE_ERROR:
        raise ModelError(
            f"The model is for {units.sampling_frequency:g} Hz and the stream has {sampling_frequency:g} Hz; "
            f"they may differ by {MAX_RATE_ERROR:.1%}. Calibrate at this sampling frequency."
        )


def _scale_std(spread: np.ndarray, energy: np.ndarray, params: MatchParams) -> np.ndarray:
    """Standard deviation of each unit's scale beyond what noise gives it; see `measure_scale_std`."""
    beyond = np.sqrt(np.maximum(np.nan_to_num(spread) ** 2 - 1 / np.maximum(energy, 1e-12), 0))
    found = np.clip(beyond, MIN_SCALE_STD, params.scale_std)
    return np.where(np.isnan(spread), params.scale_std, found)
