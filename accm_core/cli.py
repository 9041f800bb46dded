"""The command ``accm``: reads the arguments, calls the package, says what happened.

Everything heavy is imported inside the command that needs it, so that ``accm --help`` is quick.
"""

import os
import shutil
import time
import tomllib
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from accm_core import __version__
from accm_core.errors import NwbError, ParamsError
from accm_core.summaries import (
    describe_recording,
    describe_sorting,
    recording_text,
    simulation_text,
    sorting_text,
)
from accm_core.terminal import terminal

if TYPE_CHECKING:
    from accm_core.io.nwb_tables import Source
    from accm_core.io.remote import Address
    from accm_core.types import Sorting

SORT_SHARES = {  # of the time, for the progress bar; as measured on a minute of 32 channels
    "noise": 0.10,
    "detect": 0.13,
    "motion": 0.02,
    "learn": 0.35,
    "cluster": 0.02,
    "templates": 0.12,
    "refine": 0.08,
    "match": 0.13,
    "write": 0.04,
    "report": 0.01,
}
OTHER_SCHEMES = ("s3://", "gs://", "dandi://", "ftp://", "file://")

app = typer.Typer(
    name="accm",
    help="Spike sorting by adaptive contrastive learning: NWB sessions in, sorted NWB files out.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Units(Enum):
    """What to do when SESSION already has a Units table."""

    FAIL = "fail"
    REPLACE = "replace"
    PROCESSING = "processing"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"accm {__version__}")
        raise typer.Exit


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


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop."),
    ] = False,
) -> None:
    pass


class _SortCommand(TyperCommand):
    """A command whose help ends with the table of parameters, made only when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from accm_core.params import describe_params

        self.epilog = _table("--set GROUP.NAME=VALUE or a TOML file with a table a group", describe_params())
        super().format_help(ctx, formatter)


class _SimulateCommand(TyperCommand):
    """The same for what can be simulated."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from accm_core.simulation.params import SimulationParams

        fields = SimulationParams.model_fields.items()
        rows = [(name, str(field.default), field.description or "") for name, field in fields]
        self.epilog = _table("--set NAME=VALUE", rows)
        super().format_help(ctx, formatter)


def _table(how: str, rows: list[tuple[str, str, str]]) -> str:
    """Lay out parameters for the end of a command's help, one paragraph each."""
    paragraphs = [f"[bold]Parameters[/bold], set by {how}:"]
    for name, default, text in rows:
        words = " ".join(text.split()).replace("[", r"\[")
        paragraphs.append(f"[cyan]{name}[/cyan] = [green]{default}[/green]   {words}")
    return "\n\n".join(paragraphs)


@app.command(cls=_SortCommand)
def sort(
    session: SessionArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.nwb",
            help="Sorted file; SESSION_sorted.nwb beside the input by default.",
        ),
    ] = None,
    series: SeriesOption = None,
    format_name: FormatOption = None,
    format_option: FormatSettings = None,
    probe: ProbeOption = None,
    params: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Parameters, one table a group; listed below.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="GROUP.NAME=VALUE",
            help="One parameter, as in detect.threshold=6; may be repeated.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(callback=_check_device, metavar="auto|cpu|cuda[:N]", help="Where to compute.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
    units: Annotated[
        Units,
        typer.Option(
            help="When SESSION has Units already: refuse, replace them, or put ours in processing/ecephys."
        ),
    ] = Units.FAIL,
    link: Annotated[
        bool, typer.Option("--link", help="Write a small file that links to the raw data in SESSION.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write the report OUT.html beside OUT.nwb.")] = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Sort a session: NWB in, NWB with Units and a report out. With --format, the NWB has no raw data."""
    with terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out:
        from accm_core.params import load_params

        checked = load_params(params, setting or [])
        source = _find_session(session, format_name)
        if link and (format_name is not None or not isinstance(source, Path)):
            raise NwbError(f"--link needs an NWB file of this machine; {source} is none. Leave out --link.")
        target = output if output is not None else _default_output(source)
        report_path = target.with_suffix(".html") if report else None
        _check_target(source, target, overwrite=overwrite)
        if report_path is not None:
            _check_report(report_path)

        from accm_core.io.nwb_write import write_nwb
        from accm_core.pipeline import sort as sort_recording

        started = time.perf_counter()
        with _open_session(source, series, probe, format_name, format_option) as recording:
            _check_units(recording, units)
            _check_space(target.parent, 0 if link else recording.num_bytes)
            out.warn(recording.warnings)
            with out.progress(SORT_SHARES) as on_progress:
                sorting = sort_recording(
                    recording, checked, device=device, seed=seed, on_progress=on_progress
                )
                on_progress("write", 0.0)
                write_nwb(sorting, recording, target, units=units.value, link=link, overwrite=overwrite)
                on_progress("write", 1.0)
                # what the file tells of the reading, the report tells as well
                read = {"left_out": recording.left_out, "read_warnings": recording.warnings}
                sorting = replace(sorting, provenance={**sorting.provenance, **read})
                if report_path is not None:
                    on_progress("report", 0.0)
                    _make_report(sorting, report_path, recording.source_name)
                    on_progress("report", 1.0)
        out.warn(
            warning for warning in describe_sorting(sorting)["warnings"] if warning not in recording.warnings
        )
        result = {"output": str(target), "report": str(report_path) if report_path is not None else None}
        result |= describe_sorting(sorting) | {"elapsed_s": round(time.perf_counter() - started, 2)}
        out.finish(result, sorting_text(result))


@app.command()
def info(
    session: SessionArgument,
    series: SeriesOption = None,
    format_name: FormatOption = None,
    format_option: FormatSettings = None,
    probe: ProbeOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say what would be sorted: series, channels, rate, duration, gaps, geometry, problems."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        source = _find_session(session, format_name)
        with _open_session(source, series, probe, format_name, format_option) as recording:
            result = describe_recording(recording)
        out.finish(result, recording_text(result))


@app.command(cls=_SimulateCommand)
def simulate(
    output: Annotated[
        Path, typer.Argument(metavar="OUT.nwb", help="Recording; its truth goes to OUT_truth.nwb.")
    ],
    probe: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="mono, tetrode, linear, poly32, neuropixels or neuropixels2."),
    ] = None,
    channels: Annotated[int | None, typer.Option(metavar="N", help="Contacts of the probe.")] = None,
    units: Annotated[int | None, typer.Option(metavar="N", help="Units to be found.")] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length of the recording.")
    ] = None,
    hybrid: Annotated[
        str | None,
        typer.Option(metavar="SESSION", help="Inject the units into this session, with its probe and noise."),
    ] = None,
    series: SeriesOption = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other parameter, listed below; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same recording.")] = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a recording with known units, or inject known units into a session."""
    with terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out:
        named = {"probe": probe, "num_channels": channels, "num_units": units, "duration_s": duration}
        changes = _parse_settings(setting or [], "--set", "noise_uV=10") | {
            k: v for k, v in named.items() if v is not None
        }
        parent_path = _find_session(hybrid) if hybrid is not None else None

        from accm_core.io.nwb_read import read_nwb
        from accm_core.simulate import hybrid_recording
        from accm_core.simulate import simulate as make_simulation
        from accm_core.simulation.nwb import truth_path, write_simulation

        for path in (output, truth_path(output)):
            _check_target(parent_path, path, overwrite=overwrite)
        with ExitStack() as stack:
            if parent_path is not None:
                parent = stack.enter_context(read_nwb(parent_path, series=series))
                recording, truth = hybrid_recording(parent, seed=seed, **changes)
            else:
                recording, truth = make_simulation(seed=seed, **changes)
            with out.progress({"write": 1.0}) as on_progress:
                write_simulation(output, recording, truth, overwrite=overwrite, on_progress=on_progress)
        result = {
            "output": str(output),
            "truth": str(truth_path(output)),
            "units": len(truth.unit_names),
            "spikes": len(truth.sample_index),
            "channels": len(recording.channel_ids),
            "duration_s": recording.num_samples / recording.sampling_frequency,
            "seed": seed,
        }
        out.finish(result, simulation_text(result))


@app.command()
def evaluate(
    sorted_file: Annotated[str, typer.Argument(metavar="SORTED.nwb", help="File that accm sort wrote.")],
    truth: Annotated[str, typer.Option(metavar="TRUTH.nwb", help="File with the true Units.")],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare the units of a sorted file with the truth."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        sorted_path, truth_path = _find_file(sorted_file), _find_file(truth)

        from accm_core.evaluate import evaluate as compare

        evaluation = compare(sorted_path, truth_path)
        out.finish(evaluation.to_dict(), str(evaluation))


@app.command()
def report(
    sorted_file: Annotated[str, typer.Argument(metavar="SORTED.nwb", help="File that accm sort wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.html", help="SORTED.html beside the input by default."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make the report of a sorted file again."""
    with terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out:
        source = _find_file(sorted_file)
        target = output if output is not None else source.with_suffix(".html")

        from accm_core.io.nwb_units import read_sorting

        sorting = read_sorting(source)
        _make_report(sorting, target, sorting.provenance.get("source_file", source.name))
        out.finish({"report": str(target)} | describe_sorting(sorting), f"report       {target}")


def _make_report(sorting: "Sorting", target: Path, title: str) -> None:
    from accm_core.report import write_report

    write_report(sorting, target, title=title)


def _open_session(
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

    options = _parse_settings(format_option or [], "--format-option", "sampling_frequency=30000")
    return nullcontext(read_format(str(source), format_name, stream=series, probe=probe, options=options))


def _default_output(source: "Path | Address") -> Path:
    """Beside the session, or here where it is remote."""
    if isinstance(source, Path):
        return source.with_name(f"{source.stem}_sorted.nwb")
    return Path(f"{Path(source.name).stem or 'session'}_sorted.nwb")


def _find_session(session: str, format_name: str | None = None) -> "Path | Address":
    """Find a session: a file, an address of NWB, or the folder that its format may be; or refuse clearly."""
    from accm_core.io.remote import SCHEMES, Address

    if not session.startswith(SCHEMES):
        return _find_file(session, format_name)
    if format_name is not None:
        raise NwbError(f"--format reads files of this machine only. Download {Address(session)} first.")
    return Address(session)


def _find_file(session: str, format_name: str | None = None) -> Path:
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


def _parse_settings(settings: list[str], option: str, example: str) -> dict[str, Any]:
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


def _check_target(source: "Path | Address | None", target: Path, *, overwrite: bool) -> None:
    """Refuse an output that could not be written, before the long work."""
    folder = target.parent
    if target.suffix != ".nwb":
        raise NwbError(f"The output {target} does not end in .nwb. Give a name that does.")
    if not folder.is_dir():
        raise NwbError(
            f"The folder {folder} of the output does not exist. Make it, or choose another with --output."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NwbError(
            f"The folder {folder} of the output cannot be written to. Choose another with --output."
        )
    if isinstance(source, Path) and target.exists() and target.samefile(source):
        raise NwbError(
            f"The output {target} is the session itself, which is never changed. Choose another name."
        )
    if target.exists() and not overwrite:
        raise NwbError(
            f"The output {target} exists. Choose another with --output, or replace it with --overwrite."
        )


def _check_space(folder: Path, needed: int) -> None:
    """Refuse a disk on which the copy of the session would not fit."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NwbError(
            f"The output needs about {needed / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free. "
            "Make room, choose another folder with --output, or write a small file with --link."
        )


def _check_report(target: Path) -> None:
    from accm_core.report import check_report_path

    check_report_path(target)


def _check_units(recording: "Source", units: Units) -> None:
    """Refuse a session that has Units already, unless told what to do with them."""
    if recording.has_units and units is Units.FAIL:
        raise NwbError(
            f"{recording.file_path} has a Units table already. Say --units replace to leave it out of the "
            "output, or --units processing to keep it and put ours beside it."
        )


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
