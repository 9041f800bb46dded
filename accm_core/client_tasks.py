"""What the commands of ``accm client`` do: reach the service, bring files, follow a job, fetch its result."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from accm_core.errors import AccmError
from accm_core.options import find_file
from accm_core.terminal import FAILED, Terminal

if TYPE_CHECKING:
    from accm_core.client import Client, Job, Upload

DEFAULT_SERVER = "http://127.0.0.1:3000"
ADDRESSES = ("http://", "https://")


@contextmanager
def open_service(out: Terminal, server: str, key_file: Path | None) -> "Iterator[Client]":
    """The client; what the service refuses is bad input, what it fails at is a failure."""
    try:
        from accm_core.client import Client, ServiceError
    except ImportError as error:
        raise AccmError(
            f"accm client needs {error.name}. Install it with pip install 'accm[client]'."
        ) from error
    if not server.startswith(ADDRESSES):
        raise AccmError(f"--server {server!r} is no address. Give one as {DEFAULT_SERVER}.")
    try:
        with Client(server, _read_key(key_file)) as service:
            yield service
    except ServiceError as error:
        if error.status is not None and 400 <= error.status < 500:
            raise AccmError(str(error)) from error
        _fail(out, str(error))
    except (AccmError, BrokenPipeError):
        raise
    except (FileExistsError, ValueError) as error:
        raise AccmError(str(error)) from error
    except OSError as error:
        _fail(out, str(error))


def _fail(out: Terminal, message: str) -> NoReturn:
    out.fail(message, FAILED)
    raise typer.Exit(FAILED)


def _read_key(key_file: Path | None) -> str | None:
    if key_file is None:
        return None
    try:
        key = key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AccmError(f"Cannot read the key from {key_file}: {error}.") from error
    if not key or "\n" in key:
        raise AccmError(f"{key_file} holds no key. It must be one line.")
    return key


def check_targets(targets: list[Path | None], *, overwrite: bool) -> None:
    """Refuse, before the long work, what could not be written."""
    for target in targets:
        if target is None:
            continue
        if not target.parent.is_dir():
            raise AccmError(
                f"The folder {target.parent} does not exist. Make it, or choose another --output."
            )
        if target.exists() and not overwrite:
            raise AccmError(f"{target} exists. Choose another with --output, or replace it with --overwrite.")


def place_file(service: "Client", out: Terminal, file: str, *, on_server: bool) -> dict[str, str]:
    """Where the service finds a file: it is uploaded, unless the service can read it."""
    if file.startswith(ADDRESSES):
        return {"url": file}
    if on_server:
        return {"path": file}
    return {"upload": upload_file(service, out, find_file(file), None, overwrite=False)["name"]}


def upload_file(
    service: "Client", out: Terminal, file: Path, name: str | None, *, overwrite: bool
) -> "Upload":
    """Bring a file to the service, and show how far it is."""
    try:
        with out.progress({"upload": 1.0}) as on_progress:
            return service.upload(file, name, overwrite=overwrite, on_progress=_shares(on_progress, "upload"))
    except KeyboardInterrupt as error:
        raise type(error)(
            "interrupted; what arrived stays, and the same command goes on from there."
        ) from None


def _shares(on_progress: Callable[[str, float], None], stage: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(stage, done / total)


def follow_job(service: "Client", out: Terminal, job: "Job") -> "Job":
    """Show how far a job is until it has ended; fail as it failed."""
    job_id = job["id"]
    with ExitStack() as stack:
        shown: list[Callable[[str, float], None]] = []

        def show(now: "Job") -> None:
            if now["state"] != "running":
                return
            if not shown:  # only now, so that the time in the queue does not count
                shown.append(stack.enter_context(out.progress({now["kind"]: 1.0})))
            shown[0](f"{now['kind']}: {now['stage'] or 'begins'}", now["fraction"])

        if job["state"] == "queued" and not out.quiet:
            typer.echo(f"job {job_id} is queued", err=True)
        try:
            ended = service.wait(job_id, show)
        except KeyboardInterrupt as error:
            raise type(error)(
                f"interrupted; job {job_id} goes on. Follow it with accm client job {job_id} --follow, "
                f"or cancel it with accm client cancel {job_id}."
            ) from None
    if ended["state"] != "done":
        _fail(out, f"Job {job_id} {ended['state']}: {ended['error'] or 'on request'}")
    return ended


def fetch_result(
    service: "Client", out: Terminal, job: "Job", target: Path, pages: Path | None, *, overwrite: bool
) -> None:
    """Fetch what a job made, and its report if ``pages`` is given."""
    with out.progress({"download": 1.0}) as on_progress:
        service.download(job["id"], target, overwrite=overwrite, on_progress=_shares(on_progress, "download"))
        if pages is not None:
            service.report(job["id"], pages, overwrite=overwrite)
