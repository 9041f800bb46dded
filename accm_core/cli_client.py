"""``accm client``: a service at another address does the work; files go there and come back."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from accm_core.client_tasks import (
    ADDRESSES,
    DEFAULT_SERVER,
    check_targets,
    fetch_result,
    follow_job,
    open_service,
    place_file,
    upload_file,
)
from accm_core.options import (
    JsonOption,
    OverwriteOption,
    ParamsCommand,
    ParamsOption,
    QuietOption,
    SeedOption,
    SeriesOption,
    SettingOption,
    VerboseOption,
    find_file,
)
from accm_core.summaries import fetched_text, job_text, jobs_text, models_text, remote_text, server_text
from accm_core.terminal import terminal

SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="SESSION",
        help="NWB file to upload, or an http(s):// address that the service reads.",
        show_default=False,
    ),
]
OnServerOption = Annotated[
    bool, typer.Option("--on-server", help="Files are paths of the server, in a folder that it allows.")
]
ModelOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Start from this model: one of accm client models.")
]
WaitOption = Annotated[bool, typer.Option(help="Follow the job and fetch what came of it.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="A job.", show_default=False)]
ServerOption = Annotated[str, typer.Option(envvar="ACCM_SERVER", metavar="URL", help="The service.")]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the service's key; else it comes from ACCM_API_KEY."),
]

client = typer.Typer(help="Have a service do the work.", no_args_is_help=True)


@client.command(cls=ParamsCommand)
def sort(
    session: SessionArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.nwb", help="SESSION_sorted.nwb by default."),
    ] = None,
    on_server: OnServerOption = False,
    series: SeriesOption = None,
    model: ModelOption = None,
    params: ParamsOption = None,
    setting: SettingOption = None,
    seed: SeedOption = 0,
    units: Annotated[
        Literal["fail", "replace", "processing"],
        typer.Option(help="When SESSION has Units: refuse, replace them, or put ours in processing/ecephys."),
    ] = "fail",
    report: Annotated[bool, typer.Option(help="Fetch the report OUT.html too.")] = True,
    wait: WaitOption = True,
    overwrite: OverwriteOption = False,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Sort a session on a service: upload, follow, fetch the sorted NWB file and the report."""
    with (
        terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out,
        open_service(out, server, key_file) as service,
    ):
        values = _read_params(params, setting)
        target = output if output is not None else _default_target(session, on_server=on_server)
        pages = target.with_suffix(".html") if report else None
        if wait:
            check_targets([target, pages], overwrite=overwrite)
        source = place_file(service, out, session, on_server=on_server)
        job = service.sort(
            **source, model=model, params=values, seed=seed, series=series, units=units, report=report
        )
        if not wait:
            out.finish(job, job_text(job))
            return
        job = follow_job(service, out, job)
        fetch_result(service, out, job, target, pages, overwrite=overwrite)
        result: dict[str, Any] = {
            "job": job["id"],
            "output": str(target),
            "report": None if pages is None else str(pages),
        }
        result |= job["result"] or {}
        out.warn(result["warnings"])
        out.finish(result, remote_text(result))


@client.command(cls=ParamsCommand)
def finetune(
    session: SessionArgument,
    labels: Annotated[
        str, typer.Option(metavar="UNITS.nwb", help="NWB file with Units: curated ones, or labelled spikes.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the model.")],
    on_server: OnServerOption = False,
    series: SeriesOption = None,
    params: ParamsOption = None,
    setting: SettingOption = None,
    seed: SeedOption = 0,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model of that name.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Have a service learn your units: the model stays there, for sorts and streams."""
    with (
        terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out,
        open_service(out, server, key_file) as service,
    ):
        values = _read_params(params, setting)
        source = place_file(service, out, session, on_server=on_server)
        known = place_file(service, out, labels, on_server=on_server)
        job = service.finetune(
            name, known, **source, params=values, seed=seed, series=series, overwrite=overwrite
        )
        if wait:
            job = follow_job(service, out, job)
        out.finish(job, job_text(job))


@client.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to upload.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call it there; as the file by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an upload of that name.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring a file to the service; go on with one that broke off."""
    with (
        terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out,
        open_service(out, server, key_file) as service,
    ):
        done = upload_file(service, out, find_file(str(file)), name, overwrite=overwrite)
        out.finish(done, f"upload       {done['name']}\nbytes        {done['bytes']:,}")


@client.command()
def jobs(
    state: Annotated[
        Literal["queued", "running", "done", "failed", "cancelled"] | None,
        typer.Option(help="Those in this state alone."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="The newest N.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the jobs, newest first."""
    with terminal(as_json=as_json, verbose=verbose) as out, open_service(out, server, key_file) as service:
        found = service.jobs(state, limit)
        out.finish({"jobs": found}, jobs_text(found))


@client.command()
def job(
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for its end.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look at a job, or follow it."""
    with (
        terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out,
        open_service(out, server, key_file) as service,
    ):
        found = service.job(job_id)
        if follow:
            follow_job(service, out, found)
            found = service.job(job_id)
        out.finish(found, job_text(found))


@client.command()
def cancel(
    job_id: JobArgument,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Cancel a job; a running one ends within seconds."""
    with terminal(as_json=as_json, verbose=verbose) as out, open_service(out, server, key_file) as service:
        cancelled = service.cancel(job_id)
        out.finish(cancelled, job_text(cancelled))


@client.command()
def download(
    job_id: JobArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Here, as the session or the model, by default."),
    ] = None,
    report: Annotated[bool, typer.Option(help="Fetch the report of a sort too.")] = True,
    overwrite: OverwriteOption = False,
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch what came of a job: the sorted NWB file and its report, or the model."""
    with (
        terminal(as_json=as_json, quiet=quiet, verbose=verbose) as out,
        open_service(out, server, key_file) as service,
    ):
        done = service.job(job_id)
        is_sort = done["kind"] == "sort"
        name = f"{PurePosixPath(done['input']).stem}_sorted.nwb" if is_sort else f"{done['name']}.safetensors"
        target = output if output is not None else Path(name)
        pages = target.with_suffix(".html") if report and is_sort else None
        check_targets([target, pages], overwrite=overwrite)
        fetch_result(service, out, done, target, pages, overwrite=overwrite)
        result = {"job": job_id, "output": str(target), "report": None if pages is None else str(pages)}
        out.finish(result, fetched_text(result))


@client.command()
def models(
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the models of the service."""
    with terminal(as_json=as_json, verbose=verbose) as out, open_service(out, server, key_file) as service:
        result = {"folder": service.address, "models": service.models()}
        out.finish(result, models_text(result))


@client.command("server")
def server_(
    server: ServerOption = DEFAULT_SERVER,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look at the service: version, device, room on its disk."""
    with terminal(as_json=as_json, verbose=verbose) as out, open_service(out, server, key_file) as service:
        about = service.server()
        out.finish(about, server_text(service.address, about))


def add_client(app: typer.Typer) -> None:
    """Add what is here to the command."""
    app.add_typer(client, name="client")


def _read_params(params: Path | None, setting: list[str] | None) -> dict[str, Any]:
    """What was set, checked here; the service has its own defaults for the rest."""
    from accm_core.params import load_params

    return load_params(params, setting or []).model_dump(mode="json", exclude_unset=True)


def _default_target(session: str, *, on_server: bool) -> Path:
    """Beside a file of this machine, else here."""
    if session.startswith(ADDRESSES):
        return Path(f"{PurePosixPath(urlsplit(session).path).stem}_sorted.nwb")
    path = Path(session)
    return Path(f"{path.stem}_sorted.nwb") if on_server else path.with_name(f"{path.stem}_sorted.nwb")
