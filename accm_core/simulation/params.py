"""Every parameter of a simulation: default, bounds, unit and description, once."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accm_core.errors import ParamsError
from accm_core.params import Positive, Share
from accm_core.simulation.waveforms import probe_locations


class SimulationParams(BaseModel):
    """What to simulate. A value of None depends on the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    probe: Literal["mono", "tetrode", "linear", "poly32", "neuropixels", "neuropixels2"] = "tetrode"
    """Where the contacts are; mono is one wire, as Wave_Clus was tested on (Quiroga et al. 2004)."""
    num_channels: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Contacts; 1, 4, 16, 32, 64 and 64 when None."""
    pitch_um: Positive | None = None
    """Distance between rows of contacts (µm); the probe's own when None."""
    num_units: Annotated[int, Field(ge=0, le=5_000)] | None = None
    """Units to be found; when None 3 on one wire, 6 on a tetrode, else one for two contacts."""
    duration_s: Annotated[float, Field(ge=1)] = 60.0
    """Length (s)."""
    sampling_frequency: Annotated[float, Field(ge=10_000, le=100_000)] = 30_000.0
    """Samples per second (Hz)."""
    noise_uV: Positive = 8.0  # noqa: N815  the unit's symbol
    """Standard deviation of all that is no unit, background spikes included, slow potentials not (µV)."""
    lfp_uV: Annotated[float, Field(ge=0)] = 30.0  # noqa: N815
    """Standard deviation of slow potentials of 1 to 80 Hz (µV)."""
    background_units: Annotated[int, Field(ge=0, le=50_000)] | None = None
    """Cells too small to be sorted; when None 300 on one wire, else 30 and two more for each contact."""
    snr: tuple[Positive, Positive] = (6.0, 30.0)
    """Least and largest peak of a unit on its main channel, in noise levels."""
    noise_level: Annotated[float, Field(gt=0, le=1)] | None = None
    """Noise as a share of the peak, which is then the same for all units, whatever `snr`; 0.1 on one wire."""
    firing: Literal["natural", "poisson"] | None = None
    """natural: log-normal rates and gamma intervals; poisson: every unit at `rate_hz`, as on one wire."""
    rate_hz: Annotated[float, Field(gt=0, le=100)] | None = None
    """Median firing rate (Hz); when None 20 with poisson firing, else 4."""
    refractory_ms: Annotated[float, Field(ge=0.5, le=20)] = 2.0
    """Least interval between spikes of a unit (ms)."""
    burst_share: Share | None = None
    """Share of the units that fire bursts of shrinking spikes; when None 0 with poisson firing, else 0.2."""
    amplitude_std: Share | None = None
    """Standard deviation of a unit's amplitudes, as a share; when None 0 with poisson firing, else 0.05."""
    synchrony: Share = 0.0
    """Share of the spikes that get a partner in another unit nearby, within ±0.5 ms."""
    exact_synchrony: bool = False
    """Partners fire at the very same instant."""
    drift_um: Annotated[float, Field(ge=0, le=200)] = 0.0
    """Movement of the tissue along the probe, peak to peak (µm): a zigzag."""
    drift_period_s: Positive = 120.0
    """Period of the zigzag (s)."""
    min_distance_um: Annotated[float, Field(ge=0)] = 12.0
    """Least distance between units (µm); not asked for on one wire."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Least cosine between a unit's waveform and the most alike of the others; 0.9 makes a hard set."""
    max_similarity: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Largest cosine between the waveforms of two units."""


def make_simulation_params(params: SimulationParams | None = None, **changes: Any) -> SimulationParams:
    """Check parameters and fill in what depends on the probe.

    Raises
    ------
    ParamsError
        With one line for each name or value that is refused.
    """
    given = {} if params is None else params.model_dump()
    try:
        asked = SimulationParams.model_validate(given | changes)
    except ValidationError as error:
        known = ", ".join(SimulationParams.model_fields)
        lines = [
            f"Unknown simulation parameter {item['loc'][0]!r}. Known: {known}."
            if item["type"] == "extra_forbidden"
            else f"Simulation parameter {item['loc'][0]} = {item['input']!r} is refused: {item['msg']}."
            for item in error.errors()
        ]
        raise ParamsError("\n".join(lines)) from error
    if asked.snr[0] > asked.snr[1]:
        raise ParamsError(f"snr = {asked.snr} is refused: the least comes first. Swap the two.")
    if asked.min_similarity > asked.max_similarity:
        raise ParamsError(
            f"min_similarity = {asked.min_similarity:g} is above max_similarity = {asked.max_similarity:g}. "
            "Lower the first or raise the second."
        )
    return _fill_in(asked)


def _fill_in(asked: SimulationParams) -> SimulationParams:
    on_wire = asked.probe == "mono"
    num_channels = len(probe_locations(asked.probe, asked.num_channels))
    firing = asked.firing or ("poisson" if on_wire else "natural")
    steady = firing == "poisson"
    defaults = {
        "num_channels": num_channels,
        "num_units": 3 if on_wire else 6 if asked.probe == "tetrode" else max(3, num_channels // 2),
        "background_units": 300 if on_wire else 30 + 2 * num_channels,
        "noise_level": 0.1 if on_wire else None,
        "firing": firing,
        "rate_hz": 20.0 if steady else 4.0,
        "burst_share": 0.0 if steady else 0.2,
        "amplitude_std": 0.0 if steady else 0.05,
    }
    return asked.model_copy(update={k: v for k, v in defaults.items() if getattr(asked, k) is None})
