"""What is asked and answered, in types; BentoML's OpenAPI is made from them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from accm_core.params import SorterParams

JobKind = Literal["sort", "finetune", "pretrain"]
JobState = Literal["queued", "running", "done", "failed", "cancelled"]


def _check_no_file(name: str) -> str:
    if name.endswith(".safetensors"):
        raise ValueError("name a model without .safetensors: files are not taken here")
    return name


ModelName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"), AfterValidator(_check_no_file)
]
UnitName = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InputRef(_Request):
    """Where an NWB file is: exactly one of the three."""

    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """File of the server, in one of the folders of ACCM_INPUT_ROOTS."""
    upload: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Name of a complete upload."""
    url: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Address of an NWB file on a host of ACCM_URL_HOSTS."""

    @model_validator(mode="after")
    def _check_one(self) -> "InputRef":
        if sum(value is not None for value in (self.path, self.upload, self.url)) != 1:
            raise ValueError("give exactly one of path, upload and url")
        return self

    @property
    def display_name(self) -> str:
        """Name for lists: without folders, and without what an address may hold in its query."""
        text = self.path or self.upload or (self.url or "").partition("?")[0]
        return text.rstrip("/").rpartition("/")[2] or text


class Labels(_Request):
    """Labelled spikes: the Units of an NWB file, or times in seconds by the unit's name."""

    path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """NWB file of the server with Units."""
    upload: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Upload with Units."""
    url: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Address of an NWB file with Units."""
    units: dict[UnitName, list[FiniteFloat]] | None = None
    """Times of spikes (s, session clock) by the unit's name."""

    @model_validator(mode="after")
    def _check_one(self) -> "Labels":
        if sum(value is not None for value in (self.path, self.upload, self.url, self.units)) != 1:
            raise ValueError("give exactly one of path, upload, url and units")
        return self

    @property
    def file(self) -> InputRef | None:
        """The file with the Units, if it is one."""
        if self.units is not None:
            return None
        return InputRef(path=self.path, upload=self.upload, url=self.url)


class SortRequest(_Request):
    """A session to sort."""

    input: InputRef
    """The session."""
    model: ModelName | None = None
    """Model of the registry to start from; the units of a fine-tuned one keep their names."""
    params: SorterParams = SorterParams()
    """Parameters, as in accm sort."""
    seed: Seed = 0
    """Same session, parameters, model and seed: same spikes, on a CPU."""
    series: Annotated[str, Field(max_length=1000)] | None = None
    """ElectricalSeries to sort, as acquisition/NAME; needed when there are several."""
    units: Literal["fail", "replace", "processing"] = "fail"
    """When the session has Units already: refuse, leave them out, or keep them beside ours."""
    report: bool = True
    """Make the HTML report."""


class FinetuneRequest(_Request):
    """A session with labelled spikes, to make a model of."""

    input: InputRef
    """The session."""
    labels: Labels
    """What is known of its spikes."""
    name: ModelName
    """What to call the model."""
    params: SorterParams = SorterParams()
    """Parameters, as in accm finetune."""
    seed: Seed = 0
    """Same session, labels, parameters and seed: same model, on a CPU."""
    series: Annotated[str, Field(max_length=1000)] | None = None
    """ElectricalSeries to learn from, as acquisition/NAME; needed when there are several."""
    overwrite: bool = False
    """Replace a model of this name."""


class PretrainRequest(_Request):
    """What to learn an encoder from, without labels."""

    name: ModelName
    """What to call the model."""
    inputs: Annotated[list[InputRef], Field(max_length=1000)] = []
    """Sessions to learn from, besides simulated recordings."""
    recordings: Annotated[int, Field(ge=0, le=100_000)] = 180
    """Simulated recordings to learn from."""
    params: SorterParams = SorterParams()
    """Parameters, as in accm pretrain."""
    seed: Seed = 0
    """Same sessions, parameters and seed: same model, on a CPU."""
    overwrite: bool = False
    """Replace a model of this name."""


class Job(BaseModel):
    """A job, as it is now. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Identity."""
    kind: JobKind
    """What is done."""
    state: JobState
    """Where it stands."""
    stage: str | None = None
    """What is being done, or was done last."""
    fraction: float = 0.0
    """Share of all the work that is done, 0 to 1."""
    eta_s: float | None = None
    """Seconds left, where they can be guessed."""
    created: str
    """When it was asked for."""
    started: str | None = None
    """When it was last started."""
    finished: str | None = None
    """When it ended."""
    error: str | None = None
    """Why it failed."""
    input: str = ""
    """Name of the session."""
    model: str | None = None
    """Model to start from."""
    name: str | None = None
    """Model to be made."""
    attempts: int = 0
    """Times it was started: more than once after a crash."""
    result: dict[str, Any] | None = None
    """What came of it, when done."""
