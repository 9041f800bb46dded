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
    """Common reference: the median over a shank's channels; auto: of 16 or more if far ones share noise."""
    whiten_radius_um: Positive = 100.0
    """Channels within this distance (µm) are decorrelated from each other."""
    detect_bad_channels: bool = True
    """Find dead and noisy channels and leave them out."""


class MotionParams(_Group):
    """Drift of the tissue along the probe."""

    correct: Literal["auto", "off"] = "auto"
    """auto: correct drift on shanks of 16 channels, 150 µm or more; on others, and up to 32, follow units."""


class DetectParams(_Group):
    """From whitened traces to peaks: where the usual shape of a spike fits well."""

    threshold: Annotated[float, Field(ge=2, le=50)] = 5.0
    """Fit of a spike's usual shape that a peak must exceed, in multiples of its noise level (MAD)."""
    peak_sign: Literal["neg", "pos", "both"] = "neg"
    """Polarity of the peaks that are kept."""
    radius_um: Positive = 75.0
    """Of two peaks within this distance (µm) and `exclude_ms`, the larger is kept."""
    exclude_ms: Positive = 0.4
    """Of two peaks within this time (ms) and `radius_um`, the larger is kept."""


class SnippetParams(_Group):
    """Windows around peaks, for the encoder."""

    ms_before: Positive = 0.7
    """Window before the peak (ms)."""
    ms_after: Positive = 1.3
    """Window after the peak (ms)."""
    num_channels: Annotated[int, Field(ge=1, le=64)] = 10
    """Nearest channels in a snippet."""
    radius_um: Positive = 100.0
    """Channels farther than this (µm) from the peak's are left out."""


class LearnParams(_Group):
    """The contrastive encoder: views, loss, training."""

    num_dims: Annotated[int, Field(ge=2, le=64)] = 8
    """Dimensions of the embedding."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Of the NT-Xent loss."""
    pretrained: bool = True
    """Start from the shipped weights, or those of the model that is named; else from random ones."""
    num_steps: Annotated[int, Field(ge=0, le=100_000)] = 300
    """Training steps on the recording, at most; all are taken when the start is random."""
    min_gain: Annotated[float, Field(ge=0, le=10)] = 0.02
    """Training ends when 25 steps let the views of a spike agree better by less than this (nats)."""
    batch_size: Annotated[int, Field(ge=16, le=16_384)] = 256
    """Spikes in a step; each is seen in two views."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Largest learning rate of the one-cycle schedule."""
    max_spikes: Annotated[int, Field(ge=500)] = 100_000
    """Spikes kept for training and clustering, drawn evenly over the recording."""
    noise_scale: Annotated[float, Field(ge=0, le=3)] = 1.0
    """Strength of the recording's own noise added to a view."""
    amplitude_std: Share = 0.08
    """Standard deviation of a view's scale."""
    collision_share: Share = 0.3
    """Share of views that collide with another spike."""
    collision_min_ms: Positive = 0.33
    """Least delay of a colliding spike (ms), early or late."""
    collision_max_ms: Positive = 1.67
    """Largest delay of a colliding spike (ms)."""
    jitter_ms: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest shift of a view (ms); snippets are aligned, so more than a sample teaches nothing."""
    channel_dropout: Share = 0.0
    """Share of channels silenced in a view."""


class HeadsParams(_Group):
    """Fine-tuning: one head a unit."""

    kind: Literal["binary", "softmax"] = "binary"
    """A yes or no for each unit, of which several may be yes; or one choice among the units and none."""
    num_steps: Annotated[int, Field(ge=10, le=100_000)] = 1000
    """Training steps."""
    batch_size: Annotated[int, Field(ge=16, le=16_384)] = 512
    """Examples in a step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Largest learning rate of the one-cycle schedule."""
    collision_share: Share = 0.4
    """Share of the examples in which another unit's spike is put near the centre."""
    min_labels: Annotated[int, Field(ge=5)] = 10
    """Labelled spikes that a unit needs."""
    accept: Annotated[float, Field(ge=0.5, le=1)] = 0.9
    """Probability from which on a head takes a spike for its unit's."""


class ClusterParams(_Group):
    """From the embedding to clusters."""

    split_threshold: Annotated[float, Field(gt=0, le=20)] = 2.0
    """Two clusters stay apart from this score of bimodality on; higher gives fewer units."""
    min_size: Annotated[int, Field(ge=5)] = 30
    """Clusters with fewer spikes are left out."""


class MatchParams(_Group):
    """From templates to spikes, overlapping ones included."""

    ms_before: Positive = 1.0
    """Template before the peak (ms)."""
    ms_after: Positive = 3.0
    """Template after the peak (ms)."""
    threshold: Annotated[float, Field(ge=2, le=50)] = 4.2
    """Least signal-to-noise ratio of a match to a unit that fires once a second; less if it fires more."""
    min_accuracy: Share = 0.5
    """Least accuracy to be expected of a unit, as sizes tell its spikes from far neurons'."""
    min_peak: Annotated[float, Field(ge=0, le=50)] = 3.0
    """Least height of a unit's template on its main channel, in noise levels."""
    scale_std: Annotated[float, Field(ge=0.05, le=1)] = 0.1
    """Largest standard deviation of a unit's amplitudes, as a share; wider takes in small foreign spikes."""
    min_scale: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Spikes smaller than this share of their template are not its own."""
    refractory_ms: Positive = 0.8
    """A unit does not fire twice within this time (ms)."""


class MergeParams(_Group):
    """From clusters to units."""

    min_similarity: Share = 0.7
    """Cosine of two templates from which on their spikes are compared."""
    split_threshold: Annotated[float, Field(gt=0, le=20)] = 2.0
    """Two clusters stay apart from this score of bimodality on."""
    duplicate_similarity: Share = 0.9
    """Cosine of two templates from which on their spike trains are tested for being one neuron's."""
    max_lag_ms: Positive = 0.5
    """Largest shift (ms) between two templates of one unit."""


class RunParams(_Group):
    """How the work is done; changes no result."""

    chunk_s: Annotated[float, Field(ge=1, le=60)] = 2.0
    """Length read at once by each worker (s), rounded to whole seconds."""
    num_workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """Threads; all cores of this process when None."""


class SorterParams(_Group):
    """All parameters of a sort, by group."""

    signal: SignalParams = SignalParams()
    motion: MotionParams = MotionParams()
    detect: DetectParams = DetectParams()
    snippet: SnippetParams = SnippetParams()
    learn: LearnParams = LearnParams()
    heads: HeadsParams = HeadsParams()
    cluster: ClusterParams = ClusterParams()
    match: MatchParams = MatchParams()
    merge: MergeParams = MergeParams()
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
            raise ParamsError(
                f"Cannot read --set {setting!r}. Write it GROUP.NAME=VALUE, as in detect.threshold=6."
            )
        if not isinstance(values.setdefault(group, {}), dict):
            raise ParamsError(
                f"Parameter file sets {group!r} to a value; {group!r} must be a table of parameters."
            )
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
