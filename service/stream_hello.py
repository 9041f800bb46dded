"""The first message of a stream: what will be sent, and how it is to be sorted."""

import json
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from accm_core.params import SorterParams
from service.schemas import ModelName, Seed

MAX_HELLO_CHARS = 4 << 20
"""Of the text."""
MAX_MESSAGE_BYTES, MAX_MESSAGE_S = 8 << 20, 1.0
"""Of one message of samples; the server's socket takes twice as much."""
DEFAULT_CALIBRATION_S = 120.0

Gain = Annotated[FiniteFloat, Field(gt=-1e6, lt=1e6)]
Micrometres = Annotated[FiniteFloat, Field(gt=-1e6, lt=1e6)]
ChannelId = Annotated[str, Field(min_length=1, max_length=200)]


class HelloError(ValueError):
    """The first message is refused."""


class Hello(BaseModel):
    """What a client says first."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    protocol: Literal[1]
    """Of the messages that follow."""
    sampling_frequency: Annotated[FiniteFloat, Field(ge=1_000, le=200_000)]
    """Hz."""
    num_channels: Annotated[int, Field(ge=1, le=1024)]
    """In each sample."""
    dtype: Literal["int16", "float32"]
    """Of the samples, little-endian."""
    gain_to_uV: Gain | list[Gain] = 1.0  # noqa: N815  the contract's name
    """µV of one unit of the samples; one for all channels, or one each."""
    offset_to_uV: FiniteFloat | list[FiniteFloat] = 0.0  # noqa: N815
    """µV of a sample of 0."""
    channel_locations: list[tuple[Micrometres, Micrometres]] | None = None
    """Of each channel on the probe, µm; all channels of a group are neighbours when not given."""
    channel_groups: list[Annotated[int, Field(ge=0, lt=1 << 31)]] | None = None
    """Shank of each channel; shanks are sorted apart."""
    channel_ids: list[ChannelId] | None = None
    """Identity of each channel; its number when not given. Models find their channels by it."""
    model: ModelName | None = None
    """Units to sort into: those that an earlier stream stored, those of a fine-tuned model, or those of the
    sort job of this id."""
    calibration_s: Annotated[FiniteFloat, Field(ge=10, le=3600)] | None = None
    """Seconds that are sorted to find the units; 120 without a model. With a fine-tuned or pretrained model
    the sort starts from it, and units that it knows keep their names."""
    params: SorterParams = SorterParams()
    """Parameters, as in accm sort."""
    seed: Seed = 0
    """Of the sort."""
    save_as: ModelName | None = None
    """Store the units under this name, for later streams."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "Hello":
        for name in ("gain_to_uV", "offset_to_uV", "channel_locations", "channel_groups", "channel_ids"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != self.num_channels:
                raise ValueError(f"{name} has {len(value)} entries for {self.num_channels} channels")
        if np.any(np.asarray(self.gain_to_uV) == 0):
            raise ValueError("a gain_to_uV is 0: its channel would be silent")
        if self.channel_ids is not None and len(set(self.channel_ids)) < self.num_channels:
            raise ValueError("channel_ids holds an id twice")
        return self

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.num_channels * np.dtype(self.dtype).itemsize

    @property
    def max_samples(self) -> int:
        """In one message."""
        in_time = round(MAX_MESSAGE_S * self.sampling_frequency)
        return max(1, min(in_time, MAX_MESSAGE_BYTES // self.sample_bytes))

    @property
    def ids(self) -> tuple[str, ...]:
        """Identity of each channel."""
        if self.channel_ids is not None:
            return tuple(self.channel_ids)
        return tuple(str(channel) for channel in range(self.num_channels))

    def to_microvolts(self, samples: np.ndarray) -> np.ndarray:
        """Samples as they were sent, (n_samples, n_channels), in µV, float32."""
        traces: np.ndarray = samples * np.asarray(self.gain_to_uV, dtype=np.float32)
        traces += np.asarray(self.offset_to_uV, dtype=np.float32)
        return traces.astype(np.float32, copy=False)


def read_hello(text: str) -> Hello:
    """Check the first message.

    Raises
    ------
    HelloError
        With one line for each thing that is refused.
    """
    if len(text) > MAX_HELLO_CHARS:
        raise HelloError(f"The first message has {len(text)} characters; {MAX_HELLO_CHARS} are taken.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HelloError('The first message is not JSON. Send {"protocol": 1, ...} as text.') from error
    try:
        return Hello.model_validate(values)
    except ValidationError as error:
        raise HelloError("\n".join(_explain(item) for item in error.errors()[:20])) from error


def _explain(item: Any) -> str:
    name = ".".join(str(part) for part in item["loc"]) or "The first message"
    if item["type"] == "extra_forbidden":
        return f"{name[:200]} is unknown. Known: {', '.join(Hello.model_fields)}."
    if item["type"] == "missing":
        return f"{name} is missing."
    if item["type"] == "value_error":
        return f"{item['msg'].removeprefix('Value error, ').capitalize()}."
    return f"{name} = {repr(item['input'])[:200]} is refused: {item['msg']}."
