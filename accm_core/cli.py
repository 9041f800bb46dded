"""The command ``accm``: reads the arguments, calls the package, says what happened.

Everything heavy is imported inside the command that needs it, so that ``accm --help`` is quick.
"""

import os
import time
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from accm_core import __version__
from accm_core.cli_client import add_client
from accm_core.cli_models import add_commands
from accm_core.cli_serve import serve
from accm_core.errors import NwbError
from accm_core.options import (
    DeviceOption,
    FormatOption,
    FormatSettings,
    JsonOption,
    ModelOption,
    OverwriteOption,
    ParamsCommand,
    ParamsOption,
    ProbeOption,
    QuietOption,
    SeedOption,
    SeriesOption,
    SessionArgument,
    SettingOption,
    VerboseOption,
    find_file,
    find_session,
    format_table,
    open_session,
    parse_settings,
)
from accm_core.progress import SORT_SHARES
from accm_core.summaries import (
    describe_recording,
    describe_sorting,
    recording_text,
    simulation_text,
    sorting_text,
)
from accm_core.terminal import terminal

if TYPE_CHECKING:
    from accm_core.io.remote import Address
    from accm_core.types import Sorting

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


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop."),
    ] = False,
) -> None:
    pass


class _SimulateCommand(TyperCommand):
    """The same for what can be simulated."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from accm_core.simulation.params import SimulationParams

        fields = SimulationParams.model_fields.items()
        rows = [(name, str(field.default), field.description or "") for name, field in fields]
        self.epilog = format_table("--set NAME=VALUE", rows)
        super().format_help(ctx, formatter)


@app.command(cls=ParamsCommand)
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
    model: ModelOption = None,
    params: ParamsOption = None,
    setting: SettingOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
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
        source = find_session(session, format_name)
        if link and (format_name is not None or not isinstance(source, Path)):
            raise NwbError(f"--link needs an NWB file of this machine; {source} is none. Leave out --link.")
        target = output if output is not None else _default_output(source)
        report_path = target.with_suffix(".html") if report else None
        _check_target(source, target, overwrite=overwrite)
        if report_path is not None:
            _check_report(report_path)

        if model is not None:
            from accm_core.models import load_model

            load_model(model)  # what is wrong with it is told before the session is opened

        from accm_core.session import sort_session

        started = time.perf_counter()
        with open_session(source, series, probe, format_name, format_option) as recording:
            out.warn(recording.warnings)
            with out.progress(SORT_SHARES) as on_progress:
                sorting = sort_session(
                    recording,
                    target,
                    report=report_path,
                    params=checked,
                    model=model,
                    device=device,
                    seed=seed,
                    units=units.value,
                    link=link,
                    overwrite=overwrite,
                    on_progress=on_progress,
                )
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
        source = find_session(session, format_name)
        with open_session(source, series, probe, format_name, format_option) as recording:
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
        changes = parse_settings(setting or [], "--set", "noise_uV=10") | {
            k: v for k, v in named.items() if v is not None
        }
        parent_path = find_session(hybrid) if hybrid is not None else None

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
        sorted_path, truth_path = find_file(sorted_file), find_file(truth)

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
        source = find_file(sorted_file)
        target = output if output is not None else source.with_suffix(".html")

        from accm_core.io.nwb_units import read_sorting

        sorting = read_sorting(source)
        _make_report(sorting, target, sorting.provenance.get("source_file", source.name))
        out.finish({"report": str(target)} | describe_sorting(sorting), f"report       {target}")


def _make_report(sorting: "Sorting", target: Path, title: str) -> None:
    from accm_core.report import write_report

    write_report(sorting, target, title=title)


def _default_output(source: "Path | Address") -> Path:
    """Beside the session, or here where it is remote."""
    if isinstance(source, Path):
        return source.with_name(f"{source.stem}_sorted.nwb")
    return Path(f"{Path(source.name).stem or 'session'}_sorted.nwb")


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


def _check_report(target: Path) -> None:
    from accm_core.report import check_report_path

    check_report_path(target)


add_commands(app)
add_client(app)
app.command()(serve)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
