"""``accm models``, ``pretrain`` and ``finetune``: the models on this machine, and how to make one."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from accm_core.options import (
    DeviceOption,
    FormatOption,
    FormatSettings,
    JsonOption,
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
    open_session,
)
from accm_core.progress import FINETUNE_SHARES, PRETRAIN_SHARES
from accm_core.summaries import describe_finetuned, finetuned_text, model_text, models_text, pretrained_text
from accm_core.terminal import terminal

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.", show_default=False)]

models = typer.Typer(help="The models on this machine.", no_args_is_help=True)


@models.command("list")
def list_(as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """List the models."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        from accm_core.models import list_models, models_folder

        result = {"folder": str(models_folder()), "models": [entry.summary() for entry in list_models()]}
        out.finish(result, models_text(result))


@models.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Name of a model, or a model file.")],
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show a model's card: what it is, what it was trained on and how."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        from accm_core.models import find_model, load_any

        path, model = find_model(name), load_any(name)
        result = {
            "name": name,
            "file": str(path),
            "bytes": path.stat().st_size,
            "sha256": model.sha256,
            "card": dict(model.card),
        }
        out.finish(result, model_text(result))


@models.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Model file, from accm models export.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it; as the file by default.")
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Copy a model file into the registry."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        from accm_core.models import import_model

        called = name if name is not None else file.stem
        path = import_model(file, called, overwrite=overwrite)
        out.finish({"name": called, "file": str(path)}, f"imported     {called}\nfile         {path}")


@models.command()
def export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="Where to.")],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Copy a model to a file, for another machine."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        from accm_core.models import export_model

        path = export_model(name, file, overwrite=overwrite)
        out.finish({"name": name, "file": str(path)}, f"exported     {name}\nfile         {path}")


@models.command()
def remove(name: NameArgument, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Remove a model."""
    with terminal(as_json=as_json, verbose=verbose) as out:
        from accm_core.models import remove_model

        path = remove_model(name)
        out.finish({"name": name, "file": str(path)}, f"removed      {name}")


def finetune(
    session: SessionArgument,
    labels: Annotated[
        Path,
        typer.Option(
            metavar="UNITS.nwb",
            help="NWB file with Units: curated ones (noise is left out), or a few labelled spikes.",
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the model.")],
    series: SeriesOption = None,
    format_name: FormatOption = None,
    format_option: FormatSettings = None,
    probe: ProbeOption = None,
    params: ParamsOption = None,
    setting: SettingOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Learn your units: labelled spikes of a session in, a model for it and later sessions out."""
    with terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out:
        from accm_core.params import load_params

        checked = load_params(params, setting or [])
        source, labels_path = find_session(session, format_name), find_file(str(labels))

        from accm_core.io.nwb_units import read_spike_trains
        from accm_core.models import prepare_place
        from accm_core.session import finetune_session

        prepare_place(name, overwrite=overwrite)
        started = time.perf_counter()
        trains = read_spike_trains(labels_path, without_quality="noise")
        with open_session(source, series, probe, format_name, format_option) as recording:
            out.warn(recording.warnings)
            with out.progress(FINETUNE_SHARES) as on_progress:
                model, path = finetune_session(
                    recording,
                    trains,
                    name,
                    session_name=source.name,
                    labels_name=labels_path.name,
                    params=checked,
                    device=device,
                    seed=seed,
                    overwrite=overwrite,
                    on_progress=on_progress,
                )
        result = {"name": name, "file": str(path), **describe_finetuned(model)}
        result["elapsed_s"] = round(time.perf_counter() - started, 2)
        out.warn(f"unit {unit!r} is left out: {reason}." for unit, reason in result["left_out"].items())
        out.finish(result, finetuned_text(result))


def pretrain(
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the model.")],
    sessions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SESSION]...", help="NWB files to learn from as well.", show_default=False),
    ] = None,
    recordings: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Simulated recordings to learn from, each unlike the others."),
    ] = 180,
    params: ParamsOption = None,
    setting: SettingOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train an encoder without labels, from simulated recordings and sessions, for sorts to start from."""
    with terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out:
        from accm_core.params import load_params

        checked = load_params(params, setting or [])
        sources = [find_session(session) for session in sessions or []]

        from accm_core.models import prepare_place, store_model
        from accm_core.pretrain import pretrain as train

        prepare_place(name, overwrite=overwrite)
        started = time.perf_counter()
        with out.progress(PRETRAIN_SHARES) as on_progress:
            model = train(
                sources,
                num_recordings=recordings,
                params=checked,
                device=device,
                seed=seed,
                on_progress=on_progress,
            )
        path = store_model(model, name, overwrite=overwrite)
        result: dict[str, Any] = {
            "name": name,
            "file": str(path),
            "sha256": model.sha256,
            **model.card["training"],
            "elapsed_s": round(time.perf_counter() - started, 2),
        }
        out.finish(result, pretrained_text(result))


def add_commands(app: typer.Typer) -> None:
    """Add what is here to the command."""
    app.command(cls=ParamsCommand)(pretrain)
    app.command(cls=ParamsCommand)(finetune)
    app.add_typer(models, name="models")
