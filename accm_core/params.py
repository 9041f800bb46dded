"""Every parameter of the sorter: default, bounds, unit and description, once.

The command's help, the TOML file, `--set` and the provenance in the result are all made from here.
Users give ms, µm and Hz; ``samples`` turns them into sample counts, once, where they are needed.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accm_core.errors import ParamsError

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def to_samples(milliseconds: float, sampling_frequency: float) -> int:
    """Duration in samples, rounded, at least one."""
    return max(1, round(milliseconds * 1e-3 * sampling_frequency))


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SignalParams(_Group):
    """From counts to whitened traces."""

    freq_min_hz: Positive = 300.0
    """Lower edge of the band-pass (Hz)."""
    freq_max_hz: Positive = 6000.0
    """Upper edge of the band-pass (Hz); lowered to 0.45 times the sampling frequency where that is less."""
    reference: Literal["auto", "median", "none"] = "auto"
    """Common reference: the median over a shank's channels; auto: from 16 channels on."""
    whiten_radius_um: Positive = 100.0
    """Channels within this distance (µm) are decorrelated from each other."""
    detect_bad_channels: bool = True
    """Find dead and noisy channels and leave them out."""


class DetectParams(_Group):
    """From whitened traces to peaks."""

    threshold: Annotated[float, Field(ge=2, le=50)] = 5.0
    """Height a peak must exceed, in multiples of the noise level (MAD)."""
    peak_sign: Literal["neg", "pos", "both"] = "neg"
    """Polarity of the peaks that are kept."""
    radius_um: Positive = 75.0
    """Of two peaks within this distance (µm) and `exclude_ms`, the larger is kept."""
    exclude_ms: Positive = 0.4
    """Of two peaks within this time (ms) and `radius_um`, the larger is kept."""


class RunParams(_Group):
    """How the work is done; changes no result."""

    chunk_s: Annotated[float, Field(ge=1, le=60)] = 2.0
    """Length read at once by each worker (s), rounded to whole seconds."""
    num_workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """Threads; all cores of this process when None."""


class SorterParams(_Group):
    """All parameters of a sort, by group."""

    signal: SignalParams = SignalParams()
    detect: DetectParams = DetectParams()
    run: RunParams = RunParams()


def load_params(file_path: Path | None = None, settings: Sequence[str] = ()) -> SorterParams:
    """Make parameters from a TOML file and ``GROUP.NAME=VALUE`` settings; settings win.

    Raises
    ------
    ParamsError
        If the file cannot be read, or a name or value is refused; every refusal is listed.
    """
    values: dict[str, Any] = {}
    if file_path is not None:
        try:
            values = tomllib.loads(file_path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ParamsError(
                f"Cannot read parameters from {file_path}: {error}. Give a TOML file with one table a group."
            ) from error
    for setting in settings:
        name, equals, text = setting.partition("=")
        group, dot, key = name.strip().partition(".")
        if not (equals and dot and group and key):
            raise ParamsError(f"Cannot read --set {setting!r}. Write it GROUP.NAME=VALUE, as in detect.threshold=6.")
        if not isinstance(values.setdefault(group, {}), dict):
            raise ParamsError(f"Parameter file sets {group!r} to a value; {group!r} must be a table of parameters.")
        values[group][key] = _parse_value(text.strip())
    return validate_params(values)


def validate_params(values: dict[str, Any]) -> SorterParams:
    """Check a nested dict of parameters.

    Raises
    ------
    ParamsError
        With one line for each name or value that is refused.
    """
    try:
        return SorterParams.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ParamsError("\n".join(lines)) from error


def describe_params() -> list[tuple[str, str, str]]:
    """Name, default and description of each parameter, in order."""
    rows = []
    for group_name, group in SorterParams.model_fields.items():
        for name, info in type(group.default).model_fields.items():
            rows.append((f"{group_name}.{name}", str(info.default), info.description or ""))
    return rows


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _explain(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = [row[0] for row in describe_params()]
        same_group = [k for k in known if k.split(".")[0] == name.split(".")[0]] or known
        return f"Unknown parameter {name!r}. Known: {', '.join(same_group)}."
    return f"Parameter {name} = {item['input']!r} is refused: {item['msg']}."
