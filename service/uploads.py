"""Files that were sent to the service: whole ones, and parts of some that will be gone on with."""

import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from service.errors import ServiceError
from service.jobs import to_text

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
SPARE_BYTES = 1 << 30
"""Left free on the disk, for the results of jobs and the lists."""
CHECK_EVERY_BYTES = 256 << 20
"""Between two looks at the disk while a body of unknown length comes in."""
_HOPELESS = (413, 507)
"""Refusals of a body after which there is no going on with it."""


class Uploads:
    """The uploads of a data folder.

    Parameters
    ----------
    folder : Path
        Holds whole files by their names, parts as ``.NAME.part``, and a ``.NAME.json`` beside each.
    max_bytes : int
        Of one upload.
    quota : int, optional
        Bytes of all that the data folder holds.
    """

    def __init__(self, folder: Path, *, max_bytes: int, quota: int | None) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._quota = quota
        self._busy: set[str] = set()
        self._announced: dict[str, int] = {}
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def list(self) -> list[dict[str, Any]]:
        """All uploads, whole or not, by name."""
        names = {
            path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name) and not path.is_symlink()
        }
        names |= {path.name[1:-5] for path in self.folder.glob(".*.part")}
        found = []
        for name in sorted(names):
            with suppress(ServiceError):  # it was removed meanwhile
                found.append(self.describe(name))
        return found

    def describe(self, name: str) -> dict[str, Any]:
        """One upload: name, bytes so far, total, whether it is complete, checksum, time.

        Raises
        ------
        ServiceError
            404 if there is none of this name.
        """
        check_name(name)
        part, whole = self._part(name), self.folder / name
        # a part replaces a whole file once it is whole, which may be between the two looks
        path, status = next(((p, s) for p in (part, whole) if (s := _look_at(p)) is not None), (whole, None))
        if status is None:
            raise ServiceError(404, f"There is no upload {name!r}. See GET /uploads.")
        known = self._read_notes(name)
        return {
            "name": name,
            "bytes": status.st_size,
            "total": status.st_size if path == whole else known.get("total"),
            "complete": path == whole,
            "sha256": known.get("sha256") if path == whole else None,
            "created": to_text(datetime.fromtimestamp(status.st_mtime, UTC)),
        }

    def remove(self, name: str) -> dict[str, Any]:
        """Remove an upload, whole or not; what it was."""
        with self._claim(name):
            known = self.describe(name)
            self._forget(name)
            (self.folder / name).unlink(missing_ok=True)
            return known

    def remove_old(self, before: float, *, needed: set[str]) -> None:
        """Remove uploads last changed before a time (s since 1970) that no job needs."""
        for path in self.folder.iterdir():
            name = path.name if NAME.fullmatch(path.name) else path.name[1:].rpartition(".")[0]
            if name not in needed and NAME.fullmatch(name) and path.lstat().st_mtime < before:
                path.unlink(missing_ok=True)

    def used_bytes(self) -> int:
        """Bytes of all files of the data folder."""
        return sum(
            _size_of(Path(folder) / name)
            for folder, _, names in os.walk(self.folder.parent)
            for name in names
        )

    @contextmanager
    def receive(self, name: str, first: int, total: int | None, *, overwrite: bool) -> Iterator["Incoming"]:
        """Take a body, from byte ``first`` of ``total`` on; what has arrived stays, whatever happens.

        Raises
        ------
        ServiceError
            400 bad name, 409 taken, being written, or not the byte that is next, 413 too large, 507 no space.
        """
        check_name(name)
        with self._claim(name):
            if (self.folder / name).exists() and not overwrite:
                raise ServiceError(
                    409, f"There is an upload {name!r} already. Choose another name, or overwrite=true."
                )
            part = self._part(name)
            have = part.stat().st_size if part.is_file() else 0
            if first not in (0, have):
                raise WrongOffsetError(name, first, have)
            self.check_size(total or 0)
            self.check_room((total or 0) - first)
            self._write_notes(name, {"total": total})
            self._announced[name] = total or 0
            try:
                with part.open("r+b" if first else "wb") as file:
                    file.seek(first)
                    yield Incoming(self, name, file, first, total)
            except ServiceError as error:
                if error.status in _HOPELESS:
                    self._forget(name)
                raise
            finally:
                del self._announced[name]

    def check_size(self, total: int) -> None:
        """Refuse what is too large."""
        if total > self._max_bytes:
            raise ServiceError(
                413, f"The upload has {total} bytes; the limit is {self._max_bytes} (ACCM_MAX_UPLOAD)."
            )

    def check_room(self, more: int) -> None:
        """Refuse what does not fit on the disk or within the quota."""
        coming = self._coming_bytes()
        free = shutil.disk_usage(self.folder).free - SPARE_BYTES - coming
        if more > free:
            raise ServiceError(
                507, f"The upload needs {more} bytes; the server's disk has room for {max(free, 0)}."
            )
        used = coming + (self.used_bytes() if self._quota is not None else 0)
        if self._quota is not None and used + more > self._quota:
            raise ServiceError(
                507,
                f"The upload needs {more} bytes; {used} of the quota of {self._quota} are used. Remove "
                "uploads, or raise ACCM_QUOTA.",
            )

    def _coming_bytes(self) -> int:
        """What other uploads have announced and not yet sent."""
        announced = list(self._announced.items())
        return sum(max(0, total - _size_of(self._part(name))) for name, total in announced)

    def _complete(self, name: str, sha256: str) -> None:
        """A part is whole: give it its name."""
        self._write_notes(name, {"sha256": sha256})
        self._part(name).replace(self.folder / name)

    def _forget(self, name: str) -> None:
        self._part(name).unlink(missing_ok=True)
        self._notes(name).unlink(missing_ok=True)

    @contextmanager
    def _claim(self, name: str) -> Iterator[None]:
        """One writer for each name."""
        with self._lock:
            if name in self._busy:
                raise ServiceError(409, f"The upload {name!r} is being written. Wait for its end.")
            self._busy.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}.part"

    def _notes(self, name: str) -> Path:
        return self.folder / f".{name}.json"

    def _read_notes(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._notes(name).read_text()))
        except (OSError, ValueError):
            return {}

    def _write_notes(self, name: str, values: dict[str, Any]) -> None:
        self._notes(name).write_text(json.dumps({**self._read_notes(name), **values}))


class WrongOffsetError(ServiceError):
    """A part that does not begin where the last one ended."""

    def __init__(self, name: str, first: int, have: int) -> None:
        super().__init__(
            409, f"Byte {first} of {name!r} is not the next: {have} have arrived. Go on from there."
        )
        self.have = have


class Incoming:
    """A body that is being written."""

    def __init__(self, uploads: Uploads, name: str, file: IO[bytes], first: int, total: int | None) -> None:
        self._uploads = uploads
        self._name = name
        self._file = file
        self._total = total
        self._hash = hashlib.sha256() if first == 0 else None
        self._checked = first
        self.received = first
        """Bytes that have arrived, those of earlier parts included."""

    def write(self, data: bytes) -> None:
        """Write what arrived next."""
        received = self.received + len(data)
        if self._total is not None and received > self._total:
            raise ServiceError(400, f"More than the {self._total} bytes that were announced arrived.")
        if self._total is None:
            self._uploads.check_size(received)
            if received - self._checked > CHECK_EVERY_BYTES:
                self._uploads.check_room(CHECK_EVERY_BYTES)
                self._checked = self.received
        with _telling_of_the_disk():
            self._file.write(data)
        if self._hash is not None:
            self._hash.update(data)
        self.received += len(data)

    def finish(self, wanted: str | None) -> str:
        """All has arrived: check it, keep it; its SHA-256.

        Raises
        ------
        ServiceError
            400 if the checksum is another; the upload is removed then.
        """
        with _telling_of_the_disk():
            self._file.flush()
            os.fsync(self._file.fileno())
        found = self._hash.hexdigest() if self._hash is not None else self._hash_file()
        if wanted is not None and found != wanted.lower():
            self._uploads._forget(self._name)
            raise ServiceError(
                400, f"The SHA-256 of what arrived is {found}, not {wanted}. Send the file again."
            )
        self._uploads._complete(self._name, found)
        return found

    def _hash_file(self) -> str:
        with self._uploads._part(self._name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _telling_of_the_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServiceError(507, f"The server's disk takes no more: {error.strerror}.") from error


def _size_of(path: Path) -> int:
    """Bytes of a file itself; 0 when it is gone."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _look_at(path: Path) -> os.stat_result | None:
    """What is known of a file of ours; None where there is none, or a link."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def check_name(name: str) -> None:
    """Refuse what is no name of a file.

    Raises
    ------
    ServiceError
        400.
    """
    if not NAME.fullmatch(name):
        raise ServiceError(
            400,
            f"{name[:100]!r} is no name of an upload: letters, digits, '.', '_' and '-', at most 200, a "
            "letter or digit first.",
        )
