"""Arguments that several commands take, and how they are checked."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from accm_core.errors import NwbError

REMOTE = ("http://", "https://", "s3://", "dandi://")


def _check_device(text: str) -> str:
    kind, colon, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal()):
        return text
    raise typer.BadParameter(f"{text!r} is no device; give auto, cpu, cuda or cuda:N.")


SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="NWB file with the recording.", show_default=False)
]
SeriesOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="ElectricalSeries to sort, as acquisition/NAME; needed when there are several."
    ),
]
ProbeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="probeinterface JSON with the channels' positions, for files without them."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output; all else on standard error.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; errors only.")]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="What the stages find, library warnings, and the traceback of a failure."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output when it exists.")]
ParamsOption = Annotated[
    Path | None,
    typer.Option("--params", metavar="FILE.toml", help="Parameters, one table a group; listed below."),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="GROUP.NAME=VALUE", help="One parameter, as in detect.threshold=6; may be repeated."
    ),
]
DeviceOption = Annotated[
    str, typer.Option(callback=_check_device, metavar="auto|cpu|cuda[:N]", help="Where to compute.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Start from this model: one of accm models list, or a file."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]


class ParamsCommand(TyperCommand):
    """A command whose help ends with the table of parameters, made only when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; typer calls this."""
        from accm_core.params import describe_params

        self.epilog = format_table(
            "--set GROUP.NAME=VALUE or a TOML file with a table a group", describe_params()
        )
        super().format_help(ctx, formatter)


def format_table(how: str, rows: list[tuple[str, str, str]]) -> str:
    """Lay out parameters for the end of a command's help, one paragraph each."""
    paragraphs = [f"[bold]Parameters[/bold], set by {how}:"]
    for name, default, text in rows:
        words = " ".join(text.split()).replace("[", r"\[")
        paragraphs.append(f"[cyan]{name}[/cyan] = [green]{default}[/green]   {words}")
    return "\n\n".join(paragraphs)


def find_session(session: str) -> Path:
    """Find the file of a session, or refuse clearly."""
    if session.startswith(REMOTE):
        raise NwbError(
            f"Reading from an address ({session}) is not supported yet. Download the file and give its path."
        )
    path = Path(session)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise NwbError(f"{path} {what}. Give the path of an NWB file.")
    return path
