"""From what a request names as its input to a file that may be read: allowed, there, and looked through."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from accm_core.errors import NwbError
from accm_core.io.remote import Address
from service.errors import ServiceError
from service.schemas import InputRef
from service.settings import Settings, environ_without_secrets
from service.uploads import NAME

INSPECTION_S, REMOTE_INSPECTION_S = 30.0, 90.0
"""Longest inspection of a file of this machine, and of one on the web."""
_INSPECTION = Path(__file__).with_name("inspect_hdf5.py")
_PROJECT = Path(__file__).parents[1]


@dataclass(frozen=True)
class InputLimits:
    """Where inputs may come from.

    Attributes
    ----------
    uploads_folder : Path
    input_roots : tuple of Path
        Folders whose files may be read by path.
    url_hosts : tuple of str
        Hosts, with ``:PORT`` where it is not the usual one, whose files may be read by address.
    max_bytes : int
        Of a file on the web.
    """

    uploads_folder: Path
    input_roots: tuple[Path, ...]
    url_hosts: tuple[str, ...]
    max_bytes: int

    @staticmethod
    def of(settings: Settings) -> "InputLimits":
        """Limits that the settings call for."""
        return InputLimits(
            settings.uploads_folder, settings.input_roots, settings.url_hosts, settings.max_upload
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "uploads_folder": str(self.uploads_folder),
            "input_roots": [str(root) for root in self.input_roots],
            "url_hosts": list(self.url_hosts),
            "max_bytes": self.max_bytes,
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "InputLimits":
        """Back from `to_dict`."""
        return InputLimits(
            Path(value["uploads_folder"]),
            tuple(Path(root) for root in value["input_roots"]),
            tuple(value["url_hosts"]),
            int(value["max_bytes"]),
        )


def resolve_input(ref: InputRef, limits: InputLimits) -> Path | Address:
    """Where the input is, if it may be read; a path holds no link any more.

    Raises
    ------
    ServiceError
        400 if it is none, 403 if it may not be read, 404 if it is not there, 409 if it is not complete.
    """
    if ref.path is not None:
        return _resolve_path(ref.path, limits.input_roots)
    if ref.upload is not None:
        return _resolve_upload(ref.upload, limits.uploads_folder)
    return _resolve_url(ref.url or "", limits)


def check_file(source: Path | Address, roots: Sequence[Path]) -> None:
    """Look through an HDF5 file, in a process of its own, before anything reads it here.

    Parameters
    ----------
    source : Path or Address
    roots : sequence of Path
        Folders that the file may lead to; none for an upload, and for an address whatever is given.

    Raises
    ------
    ServiceError
        400 if it is no HDF5 file, is cut short, leads elsewhere, unpacks to too much, has its links in a
        circle, or makes HDF5 crash or go on for ever.

    Notes
    -----
    Blocks for 0.3 s with a usual session; the file may change afterwards, so that it is to be called again
    where the file is opened.
    """
    request: dict[str, Any]
    if isinstance(source, Address):
        name, limit_s = str(source), REMOTE_INSPECTION_S
        request = {"url": source.url, "hosts": sorted(source.hosts or ()), "max_bytes": source.max_bytes}
    else:
        name, limit_s = source.name, INSPECTION_S
        request = {"path": str(source), "roots": [os.path.realpath(root) for root in roots]}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_INSPECTION)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=limit_s,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServiceError(
            400,
            f"{name} could not be looked through within {limit_s:.0f} s. It may be damaged, or have far too "
            "many arrays. Copy or convert the session again.",
        ) from None
    if done.returncode < 0:
        raise ServiceError(
            400,
            f"{name} makes the HDF5 library crash or run for ever (signal {-done.returncode}). It is damaged "
            "or made to harm. Copy or convert the session again.",
        )
    if done.returncode > 0:
        raise RuntimeError(f"The inspection of {name} failed: {done.stderr[-2000:]}")
    problem = json.loads(done.stdout)["problem"]
    if problem:
        raise ServiceError(400, f"{name} is refused: {problem}")


def _environment() -> dict[str, str]:
    """What the inspection needs of ours: no secrets, one thread, and our packages."""
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    return {**environ_without_secrets(), "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def _resolve_path(text: str, roots: Sequence[Path]) -> Path:
    if not roots:
        raise ServiceError(
            403,
            "This server reads no files by path: ACCM_INPUT_ROOTS is not set. Upload the session, or start "
            "the server with ACCM_INPUT_ROOTS=FOLDER.",
        )
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    try:
        # an absolute path stays what it is
        candidates = [Path(os.path.realpath(root / text)) for root in real_roots]
        allowed = [path for path in candidates if any(path.is_relative_to(root) for root in real_roots)]
        found = [path for path in allowed if path.exists()]
    except (OSError, ValueError) as error:  # a name too long, or one that no file can have
        raise ServiceError(400, f"path = {text[:200]!r} is no path of a file: {error}.") from error
    if not found and len(allowed) < len(candidates):
        raise ServiceError(
            403,
            f"path = {text[:200]!r} is not in a folder that this server may read (ACCM_INPUT_ROOTS). Move or "
            "upload the session.",
        )
    if not found:
        raise ServiceError(404, f"There is no file {text[:200]!r}. Check its name and folder.")
    if not found[0].is_file():
        raise ServiceError(400, f"path = {text[:200]!r} is not a file. Give the .nwb file itself.")
    return found[0]


def _resolve_upload(name: str, folder: Path) -> Path:
    path = folder / name
    if not NAME.fullmatch(name) or path.is_symlink():
        raise ServiceError(404, f"There is no upload {name[:200]!r}. See GET /uploads.")
    if path.with_name(f".{name}.part").exists():
        raise ServiceError(409, f"The upload {name!r} is not complete. Send the rest of it first.")
    if not path.is_file():
        raise ServiceError(404, f"There is no upload {name!r}. See GET /uploads.")
    return path


def _resolve_url(url: str, limits: InputLimits) -> Address:
    hosts = frozenset(host.lower() for host in limits.url_hosts)
    if not hosts:
        raise ServiceError(
            403,
            "This server reads no addresses: ACCM_URL_HOSTS is not set. Upload the session, or start the "
            "server with ACCM_URL_HOSTS=HOST.",
        )
    if not (url.isascii() and url.isprintable()) or any(sign in url for sign in ' \\<>"'):
        raise ServiceError(400, "url holds signs that an address cannot. Percent-encode them.")
    try:
        parts = parse_url(url)
    except LocationParseError as error:
        raise ServiceError(400, "url is no address. Give http:// or https://, a host, and a path.") from error
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ServiceError(400, "url is no address of the web. Give http:// or https://, a host, and a path.")
    if parts.auth is not None:
        raise ServiceError(400, "url holds a user or password, which are not sent. Leave them out.")
    address = Address(url, hosts, limits.max_bytes)
    try:
        address.check_host(url)
    except NwbError as error:
        raise ServiceError(
            403, f"{error} Upload the session, or have the host added to ACCM_URL_HOSTS."
        ) from error
    return address
