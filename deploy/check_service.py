"""Sort a session over HTTP, with Python alone, to see that the service that runs there is sound.

Run as ``ACCM_API_KEY=... python3 deploy/check_service.py http://127.0.0.1:3000 session.nwb sorted.nwb``.
"""

# ruff: noqa: T201  a command: what it prints is its result

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ANSWER_WITHIN_S = 60.0
POLL_EVERY_S = 0.5
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class CheckError(Exception):
    """The service did not do what it should; ``status`` is that of its answer, if that is what was wrong."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """A service by its address, and the key that it wants."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address.rstrip("/")
        self._key = key

    def open(self, method: str, path: str, body: Any = None, *, with_key: bool = True) -> Any:
        """Send a request and return the open answer; ``body`` is a file, or something to be sent as JSON."""
        headers = {"Authorization": f"Bearer {self._key}"} if with_key else {}
        with ExitStack() as stack:
            if isinstance(body, Path):
                headers["Content-Type"] = "application/octet-stream"
                headers["Content-Length"] = str(body.stat().st_size)
                body = stack.enter_context(body.open("rb"))
            elif body is not None:
                headers["Content-Type"] = "application/json"
                body = json.dumps(body).encode()
            request = Request(self._address + path, body, headers, method=method)
            try:
                return urlopen(request, timeout=ANSWER_WITHIN_S)
            except HTTPError as error:
                raise CheckError(
                    f"{method} {path}: {error.code} {error.read().decode()}", error.code
                ) from error
            except OSError as error:
                raise CheckError(f"{method} {path}: {error}") from error

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON of the answer."""
        with self.open(method, path, body) as answer:
            return json.load(answer)


def wait_until_ready(service: Service, deadline_s: float) -> float:
    """Return the seconds until /readyz answered."""
    started = time.monotonic()
    while True:
        try:
            with service.open("GET", "/readyz", with_key=False):
                return time.monotonic() - started
        except CheckError as error:
            if time.monotonic() - started > deadline_s:
                raise CheckError(f"Not ready within {deadline_s:g} s: {error}") from error
        time.sleep(POLL_EVERY_S)


def check_that_key_is_asked_for(service: Service) -> None:
    """With the key jobs are seen, without it they are not."""
    service.ask("GET", "/jobs")
    try:
        service.open("GET", "/jobs", with_key=False).close()
    except CheckError as error:
        if error.status == 401:
            return
        raise CheckError(f"Without a key it should be 401, but was {error}") from error
    raise CheckError("GET /jobs was answered without a key; it should be 401.")


def upload(service: Service, session: Path) -> None:
    """Upload a session and have the service check what arrived."""
    with session.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    answer = service.ask("PUT", f"/uploads/{session.name}?overwrite=true&sha256={digest}", session)
    if answer["bytes"] != session.stat().st_size:
        raise CheckError(f"Uploaded {session.stat().st_size} bytes, of which {answer['bytes']} arrived.")


def follow(service: Service, job: Any, deadline_s: float) -> Any:
    """Wait until a job is done, saying on standard error how far it is, and return it."""
    started, stage = time.monotonic(), None
    while job["state"] in ("queued", "running"):
        if time.monotonic() - started > deadline_s:
            raise CheckError(f"Job {job['id']} is {job['state']} ({job['stage']}) after {deadline_s:g} s.")
        time.sleep(POLL_EVERY_S)
        job = service.ask("GET", f"/jobs/{job['id']}")
        if job["stage"] != stage:
            stage = job["stage"]
            print(f"{time.monotonic() - started:6.1f} s  {job['state']}  {stage or ''}", file=sys.stderr)
    if job["state"] != "done":
        raise CheckError(f"Job {job['id']} is {job['state']}: {job['error']}")
    return job


def download(service: Service, job: Any, result: Path) -> None:
    """Download the sorted session."""
    with service.open("GET", f"/jobs/{job['id']}/result") as answer, result.open("wb") as file:
        shutil.copyfileobj(answer, file)
    with result.open("rb") as file:
        if file.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            raise CheckError(f"{result} is not HDF5.")


def check(service: Service, session: Path, result: Path, *, ready_within: float, done_within: float) -> Any:
    """Run all checks; returns what was found and how long it took."""
    found = {"ready_s": round(wait_until_ready(service, ready_within), 1)}
    check_that_key_is_asked_for(service)
    upload(service, session)
    started = time.monotonic()
    request = {"input": {"upload": session.name}, "seed": 1}
    job = follow(service, service.ask("POST", "/sort", request), done_within)
    found["sort_s"] = round(time.monotonic() - started, 1)
    if job["result"]["units"] < 1:
        raise CheckError(f"The sorted session has no units: {job['result']}")
    download(service, job, result)
    return found | job["result"]


def main() -> int:
    """Read the arguments, check, print the findings as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("session", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--ready-within", type=float, default=180.0, metavar="SECONDS")
    parser.add_argument("--done-within", type=float, default=600.0, metavar="SECONDS")
    given = parser.parse_args()
    service = Service(given.address, os.environ.get("ACCM_API_KEY", ""))
    limits = {"ready_within": given.ready_within, "done_within": given.done_within}
    try:
        print(json.dumps(check(service, given.session, given.result, **limits)))
    except (CheckError, OSError) as error:
        print(f"check_service: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
