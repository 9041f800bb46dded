"""``pretrain``: one encoder for all kinds of probes, from simulated recordings and sessions of one's own."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from accm_core import __version__
from accm_core.errors import ParamsError
from accm_core.io.nwb_read import read_nwb
from accm_core.io.remote import Address
from accm_core.learning.adapt import MIN_SPIKES
from accm_core.learning.checkpoint import Model
from accm_core.learning.device import find_device
from accm_core.learning.encoder import SnippetWindow
from accm_core.learning.lessons import WINDOW, Lesson, pretrain_encoder
from accm_core.params import SorterParams
from accm_core.signal.survey import survey_shank
from accm_core.simulate import simulate
from accm_core.types import ProgressCallback, Recording

logger = logging.getLogger(__name__)

STEPS_PER_RECORDING = 100
"""Training steps after each recording that is added."""
MAX_SPIKES = 5000
"""Kept of each recording."""
DURATION_S = 30.0
"""Of a simulated recording."""
PROBE_SHARES = {
    "mono": 0.25,
    "tetrode": 0.25,
    "linear": 0.1,
    "poly32": 0.15,
    "neuropixels": 0.15,
    "neuropixels2": 0.1,
}
CHANNELS = (12, 24)
"""Of a simulated probe that may have any number: an encoder sees no more than a neighbourhood."""


def pretrain(
    sessions: Sequence[str | Path | Address] = (),
    *,
    num_recordings: int = 180,
    params: SorterParams | None = None,
    device: str = "auto",
    seed: int = 0,
    on_progress: ProgressCallback | None = None,
) -> Model:
    """Train an encoder on simulated recordings and on sessions, without labels.

    Parameters
    ----------
    sessions : sequence of str, Path or Address
        NWB files to learn from, or their addresses; none are needed.
    num_recordings : int
        Simulated ones, each unlike the others: probe, units, noise, firing, synchrony and drift are drawn.
    params : SorterParams, optional
        Of the signal, the snippets and the views.
    device : str
        'auto', 'cpu' or 'cuda[:N]'.
    seed : int
        Same sessions, parameters and seed give the same weights on a CPU.
    on_progress : callable, optional
        ``on_progress("pretrain", fraction)``.

    Returns
    -------
    Model
        To be kept by `save_model` or in the registry, and named in ``sort(..., model=)``.

    Raises
    ------
    NwbError
        If a session cannot be read.
    ParamsError
        If nothing is given to learn from, or the device is not there.
    """
    filled = params or SorterParams()
    num_all = num_recordings + len(sessions)
    if num_all == 0:
        raise ParamsError(
            "Nothing to learn from: 0 simulated recordings and no session. Give one or the other."
        )
    encoder = pretrain_encoder(
        _make_lessons(sessions, num_recordings, filled, seed),
        num_all,
        filled.learn,
        steps_per_recording=STEPS_PER_RECORDING,
        device=find_device(device),
        seed=seed,
        on_step=None if on_progress is None else lambda share: on_progress("pretrain", share),
    )
    card = {
        "kind": "encoder",
        "training": {
            "simulated_recordings": num_recordings,
            "sessions": [Path(str(session)).name for session in sessions],
            "steps": num_all * STEPS_PER_RECORDING,
        },
        "parameters": filled.model_dump(),
        "seed": seed,
        "version": __version__,
        **asdict(WINDOW),
    }
    return Model(encoder, None, card)


def draw_simulation(rng: np.random.Generator) -> dict[str, Any]:
    """Draw what to simulate: parameters for `simulate`, by name."""
    probe = str(rng.choice(list(PROBE_SHARES), p=list(PROBE_SHARES.values())))
    changes: dict[str, Any] = {
        "probe": probe,
        "duration_s": DURATION_S,
        "noise_uV": float(rng.uniform(5.0, 15.0)),
        "synchrony": float(rng.choice([0.0, 0.1, 0.3])),
        "drift_um": float(rng.choice([0.0, 0.0, 15.0])),
        "drift_period_s": 2 * DURATION_S,
    }
    if probe == "mono":
        steady = {} if rng.random() < 0.5 else {"firing": "natural", "rate_hz": 10.0}
        return (
            changes
            | steady
            | {"num_units": int(rng.integers(2, 6)), "noise_level": float(rng.uniform(0.05, 0.2))}
        )
    if probe == "tetrode":
        changes["num_units"] = int(rng.integers(3, 14))
    else:
        changes["num_channels"] = int(rng.integers(CHANNELS[0], CHANNELS[1] + 1))
        changes["num_units"] = int(rng.integers(changes["num_channels"] // 3, changes["num_channels"]))
    return changes | {
        "snr": (float(rng.uniform(5.0, 8.0)), float(rng.uniform(15.0, 40.0))),
        "rate_hz": float(rng.uniform(3.0, 15.0)),
        "burst_share": float(rng.choice([0.0, 0.2, 0.5])),
        "amplitude_std": float(rng.uniform(0.02, 0.12)),
    }


def _make_lessons(
    sessions: Sequence[str | Path | Address], num_recordings: int, params: SorterParams, seed: int
) -> Iterator[list[Lesson]]:
    """One list a recording, with a lesson a shank; simulated ones and sessions in random order."""
    rng = np.random.default_rng(seed)
    sources: list[str | Path | Address | None] = [*sessions, *([None] * num_recordings)]
    for number in rng.permutation(len(sources)):
        source = sources[number]
        if source is None:
            yield _simulate_lessons(np.random.default_rng([seed, int(number)]), params)
        else:
            with closing(read_nwb(source)) as recording:
                lessons = _survey_lessons(recording, params, seed)
            if not lessons:
                logger.warning("%s has too few spikes to learn from; left out", source)
            yield lessons


def _simulate_lessons(rng: np.random.Generator, params: SorterParams) -> list[Lesson]:
    """Draw until units fit on the probe and fire enough."""
    while True:
        try:
            recording, _ = simulate(seed=int(rng.integers(1 << 31)), **draw_simulation(rng))
        except ParamsError:  # so many units, so far apart, do not fit
            continue
        lessons = _survey_lessons(recording, params, seed=0)
        if lessons:
            return lessons


def _survey_lessons(recording: Recording, params: SorterParams, seed: int) -> list[Lesson]:
    fs = recording.sampling_frequency
    fewer = params.model_copy(update={"learn": params.learn.model_copy(update={"max_spikes": MAX_SPIKES})})
    lessons = []
    for group in np.unique(recording.channel_groups):
        channels = np.flatnonzero(recording.channel_groups == group)
        survey = survey_shank(recording, channels, fewer, seed=seed, report=lambda stage: lambda share: None)
        snippets = survey.snippets
        if len(snippets) >= MIN_SPIKES and len(survey.noise):
            window = SnippetWindow(snippets.num_before, snippets.waveforms.shape[1], fs)
            lessons.append(Lesson(snippets.waveforms, survey.noise, window))
    return lessons
