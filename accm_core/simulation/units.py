"""Choose the units of a simulation: neurons far enough apart, alike or not as asked."""

import numpy as np

from accm_core.errors import ParamsError
from accm_core.simulation.params import SimulationParams
from accm_core.simulation.waveforms import Neuron, draw_neuron

TRIES_PER_UNIT = 1000


def draw_units(
    rng: np.random.Generator,
    params: SimulationParams,
    channel_locations: np.ndarray,
    shanks: list[np.ndarray],
    sampling_frequency: float,
) -> tuple[list[Neuron], list[np.ndarray]]:
    """Draw ``params.num_units`` neurons, each with a trough of -1 µV on its main channel.

    Parameters
    ----------
    rng : numpy.random.Generator
    params : SimulationParams
        Filled in.
    channel_locations : ndarray of shape (n_channels, 2), float64
        µm.
    shanks : list of ndarray of int64
        Channels of each shank; larger ones get more units.
    sampling_frequency : float
        Hz.

    Returns
    -------
    neurons : list of Neuron
    shanks : list of ndarray of int64
        Channels of each neuron's shank.

    Raises
    ------
    ParamsError
        If the distance and the similarities asked for leave room for fewer.

    Notes
    -----
    Distance and similarity are asked for within a shank. The first unit of a shank has no other to be alike.
    """
    sizes = np.array([len(shank) for shank in shanks])
    wanted = params.num_units or 0
    neurons: list[Neuron] = []
    homes: list[int] = []
    shapes: list[np.ndarray] = []
    misses = 0
    while len(neurons) < wanted and misses < TRIES_PER_UNIT:
        misses += 1
        home = int(rng.choice(len(shanks), p=sizes / sizes.sum()))
        locations = channel_locations[shanks[home]]
        neuron = draw_neuron(rng, locations, sampling_frequency)
        shape = neuron.waveform(locations).ravel()
        shape /= np.linalg.norm(shape)
        others = [k for k, other in enumerate(homes) if other == home]
        if others:
            apart = np.stack([neurons[k].sources[0] for k in others]) - neuron.sources[0]
            near = np.linalg.norm(apart, axis=1).min() < params.min_distance_um
            cosine = float((np.stack([shapes[k] for k in others]) @ shape).max())
            if (near and len(locations) > 1) or not params.min_similarity <= cosine <= params.max_similarity:
                continue
        neurons.append(neuron)
        homes.append(home)
        shapes.append(shape)
        misses = 0
    if len(neurons) < wanted:
        raise ParamsError(
            f"Found only {len(neurons)} of {wanted} units with min_distance_um={params.min_distance_um:g}, "
            f"min_similarity={params.min_similarity:g} and max_similarity={params.max_similarity:g} "
            f"in {TRIES_PER_UNIT} tries for the next. Ask for fewer units, or widen these limits."
        )
    return neurons, [shanks[home] for home in homes]
