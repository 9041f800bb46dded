"""``accm serve``: checks the set-up, then becomes the BentoML server."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from accm_core.errors import AccmError
from accm_core.options import DeviceOption, QuietOption, VerboseOption
from accm_core.terminal import terminal

GRACE_S = 5
"""Requests have this long to end after Ctrl-C or SIGTERM; jobs wait for the next start."""

KEEP_ALIVE_S = 75
"""A quiet connection is kept for longer than clients keep it (5 s and more): none is cut as it asks again."""
MAX_OPEN_FILES = 65_536
"""Each client takes one: slow ones must not use up what is there."""


def allow_open_files() -> None:
    """Let this process open as many files as it may, up to `MAX_OPEN_FILES`."""
    import resource  # which Windows has not; the other commands do without it

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if most == resource.RLIM_INFINITY else min(most, MAX_OPEN_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="To listen at; others than loopback need a key.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65_535, help="To listen at.")] = 3000,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Uploads, jobs, results and models; ACCM_DATA, or one of the user's."
        ),
    ] = None,
    device: DeviceOption = "auto",
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="Listen to other machines without a key.")
    ] = False,
    check_only: Annotated[bool, typer.Option("--check", help="Check the set-up and stop.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check the set-up, then run the service: sort, fine-tune, embed and stream over HTTP.

    Further settings come from the environment: ACCM_API_KEY, ACCM_INPUT_ROOTS, ACCM_URL_HOSTS,
    ACCM_SCHEDULER, ACCM_MAX_UPLOAD, ACCM_QUOTA, ACCM_RETENTION_DAYS, ACCM_MAX_QUEUE, ACCM_MAX_STREAMS,
    ACCM_JOBS_PER_DEVICE.
    """
    with terminal(quiet=quiet, verbose=verbose):
        given = {
            "ACCM_DATA": str(data) if data is not None else "",
            "ACCM_DEVICE": device if device != "auto" else "",
        }
        given["ACCM_ALLOW_NO_KEY"] = "true" if allow_no_key else ""
        os.environ.update({name: value for name, value in given.items() if value})
        try:
            import bentoml  # noqa: F401  to say so here, not from a worker that is started again and again
        except ImportError as error:
            raise AccmError("The service is not installed. Say: pip install 'accm[service]'.") from error
        from service.preflight import check_setup
        from service.settings import read_settings

        settings = read_settings()
        for line in check_setup(settings, host, port):
            if not quiet:
                typer.echo(line, err=True)
    if check_only:
        return
    environment = {
        **os.environ,
        "ACCM_DATA": str(settings.data),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": os.environ.get("BENTOML_HOME", str(settings.data / ".bentoml")),
    }
    options = ["--host", host, "--port", str(port), "--timeout-graceful-shutdown", str(GRACE_S)]
    options += ["--timeout-keep-alive", str(KEEP_ALIVE_S)]
    allow_open_files()
    sys.stderr.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", "bentoml", "serve", "service:SpikeSorter", *options],
        environment,
    )
