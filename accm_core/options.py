"""Arguments that several commands take, and how they are checked."""

import tomllib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from accm_core.errors import NwbError, ParamsError

if TYPE_CHECKING:
    from accm_core.io.nwb_tables import Source
    from accm_core.io.remote import Address

OTHER_SCHEMES = ("s3://", "gs://", "dandi://", "ftp://", "file://")


def _check_device(text: str) -> str:
    kind, colon, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and colon and index.isdecimal()):
        return text
    raise typer.BadParameter(f"{text!r} is no device; give auto, cpu, cuda or cuda:N.")


SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="SESSION",
        help="NWB file with the recording; with --format, a file or folder of that format.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="SESSION is not NWB but what SpikeInterface's extractor NAME reads (spikeglx, openephysbinary, "
        "intan, ...), or spikeinterface for what it saved itself.",
    ),
]
FormatSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--format-option",
        metavar="NAME=VALUE",
        help="Argument of that extractor, as in sampling_frequency=30000 of binary; may be repeated.",
    ),
]
SeriesOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="ElectricalSeries to sort, as acquisition/NAME, or stream of a format; needed when there are "
        "several.",
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


def open_session(
    source: "Path | Address",
    series: str | None,
    probe: Path | None,
    format_name: str | None,
    format_option: list[str] | None,
) -> "AbstractContextManager[Source]":
    """Open a session for sorting."""
    if format_name is None:
        from accm_core.io.nwb_read import read_nwb

        if format_option:
            raise ParamsError("--format-option needs --format. NWB has no options.")
        return read_nwb(source, series=series, probe=probe)
    from accm_core.io.formats import read_format

    options = parse_settings(format_option or [], "--format-option", "sampling_frequency=30000")
    return nullcontext(read_format(str(source), format_name, stream=series, probe=probe, options=options))


def find_session(session: str, format_name: str | None = None) -> "Path | Address":
    """Find a session: a file, an address of NWB, or the folder that its format may be; or refuse clearly."""
    from accm_core.io.remote import SCHEMES, Address

    if not session.startswith(SCHEMES):
        return find_file(session, format_name)
    if format_name is not None:
        raise NwbError(f"--format reads files of this machine only. Download {Address(session)} first.")
    return Address(session)


def find_file(session: str, format_name: str | None = None) -> Path:
    """Find a file of this machine, or the folder that its format may be; or refuse clearly."""
    path = Path(session)
    if session.startswith(("http://", "https://")):
        raise NwbError(f"{session} is an address; a file of this machine is needed. Download it first.")
    if session.startswith(OTHER_SCHEMES):
        raise NwbError(
            f"{session} cannot be read. Give the https:// address of the file (for DANDI, that of its "
            "download button), or download it and give its path."
        )
    if path.is_file() or (path.is_dir() and format_name is not None):
        return path
    what = "is a folder" if path.is_dir() else "does not exist"
    remedy = ", or say what it is with --format" if path.is_dir() else ""
    raise NwbError(f"{path} {what}. Give the path of an NWB file{remedy}.")


def parse_settings(settings: list[str], option: str, example: str) -> dict[str, Any]:
    """Read ``NAME=VALUE`` pairs; a value is written as in TOML, a word needs no quotes."""
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (equals and name.strip()):
            raise ParamsError(f"Cannot read {option} {setting!r}. Write it NAME=VALUE, as in {example}.")
        try:
            values[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.strip()] = text.strip()
    return values
