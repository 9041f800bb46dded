"""Settings of the service, read from the environment once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from accm_core.errors import ParamsError

PREFIX = "ACCM_"
_SECRETS = ("ACCM_API_KEY",)


class Settings(BaseModel):
    """What a lab may choose; each is the environment variable of its name after ``ACCM_``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: Path
    """Folder of uploads, jobs, results and models; a folder of the user's where it is not set."""
    api_key: Annotated[str, Field(min_length=8, max_length=1000)] | None = None
    """Key that each request has to bring (``Authorization: Bearer``); none is asked for when None."""
    allow_no_key: bool = False
    """Listen to other machines without a key."""
    input_roots: tuple[Path, ...] = ()
    """Folders of this machine whose NWB files may be sorted by path, separated as in PATH."""
    url_hosts: tuple[str, ...] = ()
    """Hosts that sessions may be read from by address, separated by commas."""
    scheduler: str | None = None
    """Dask scheduler (``tcp://host:8786``) whose workers see the data folder; jobs run here when None."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    """Where jobs compute: auto (each GPU that is there, else the CPU), cpu, cuda or cuda:N."""
    jobs_per_device: Annotated[int, Field(ge=1, le=64)] = 1
    """Jobs that run on one GPU, or on the CPU, at once."""
    max_upload: Annotated[int, Field(ge=1)] = 1 << 40
    """Bytes of one upload, or of one remote session."""
    quota: Annotated[int, Field(ge=1)] | None = None
    """Bytes of all uploads and results together; when None the disk is the limit."""
    retention_days: Annotated[float, Field(gt=0)] = 30.0
    """Days after which finished jobs with their results, and uploads that no job needs, are removed."""
    max_queue: Annotated[int, Field(ge=1)] = 1000
    """Jobs that may wait."""
    max_streams: Annotated[int, Field(ge=0, le=256)] = 4
    """Online sessions at once."""

    @property
    def uploads_folder(self) -> Path:
        """Where uploads are kept."""
        return self.data / "uploads"

    @property
    def jobs_folder(self) -> Path:
        """Where each job has a folder of its own."""
        return self.data / "jobs"

    def job_folder(self, job_id: str, attempt: int) -> Path:
        """Where a job's start leaves its files: apart from an earlier one, which may still be at work."""
        return self.jobs_folder / job_id / str(attempt)

    @property
    def streams_folder(self) -> Path:
        """Where online sessions keep what they calibrate on."""
        return self.data / "streams"


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment; what is empty counts as not set.

    Raises
    ------
    ParamsError
        With one line for each setting that is refused.
    """
    given = os.environ if environ is None else environ
    names = {PREFIX + name.upper(): name for name in Settings.model_fields}
    values: dict[str, Any] = {name: given[key] for key, name in names.items() if given.get(key)}
    for name, separator in (("input_roots", os.pathsep), ("url_hosts", ",")):
        if name in values:
            values[name] = tuple(part.strip() for part in values[name].split(separator) if part.strip())
    values.setdefault("data", user_data_path("accm", appauthor=False))
    values["data"] = Path(values["data"]).absolute()
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(item) for item in error.errors())) from error


def environ_without_secrets() -> dict[str, str]:
    """The environment but the key, for processes that read what others send."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def _explain(item: Any) -> str:
    name = str(item["loc"][0])
    value = "" if name == "api_key" else f" = {item['input']!r}"  # a key is never shown
    return f"{PREFIX}{name.upper()}{value} is refused: {item['msg']}."
