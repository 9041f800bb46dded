"""Open an NWB file: what can be wrong with a file, said in words."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType

import h5py
import hdf5plugin  # noqa: F401  registers its filters with HDF5
from pynwb import NWBHDF5IO, NWBFile

from accm_core.errors import NwbError
from accm_core.io.remote import SCHEMES, Address, RemoteFile

CHUNK_CACHE_BYTES = 64 << 20
"""HDF5 keeps this much of each array unpacked: neighbouring reads share the chunk at their border."""


class OpenNwb:
    """An NWB file open for reading. A context manager.

    Parameters
    ----------
    file_path : str, Path or Address
        NWB file (HDF5), or where it is on the web.
    remote : RemoteFile, optional
        What is open already of the file at that address; it is left open.

    Attributes
    ----------
    file_path : Path or Address
    io : pynwb.NWBHDF5IO
    nwbfile : pynwb.NWBFile
        Its arrays are read when indexed.

    Raises
    ------
    NwbError
        If there is no such file, or it is a folder, empty, truncated, locked, or not NWB; or its server does
        not send it.
    """

    def __init__(self, file_path: str | Path | Address, *, remote: RemoteFile | None = None) -> None:
        self.file_path = locate(file_path)
        self._closing = ExitStack()
        if isinstance(self.file_path, Address) and remote is None:
            remote = self._closing.enter_context(closing(RemoteFile(self.file_path)))
        self._remote = remote
        try:
            self._hdf5 = self._closing.enter_context(_open_any(self.file_path, remote))
            with warnings.catch_warnings():
                # pynwb warns of schema versions and old spellings; none of it changes what is read
                warnings.simplefilter("ignore")
                self.io = NWBHDF5IO(path=self._hdf5.filename, file=self._hdf5, mode="r", load_namespaces=True)
                self.nwbfile: NWBFile = self.io.read()
        except BaseException as error:
            self._closing.close()
            if isinstance(error, NwbError) or not isinstance(error, Exception):
                raise
            raise NwbError(
                f"{self.file_path} is HDF5 but cannot be read as NWB: {first_line(error)}. "
                "Check it with pynwb-validate."
            ) from error

    def reopen(self) -> "OpenNwb":
        """Open the file once more, apart from this; what is open of a remote one is not downloaded again."""
        is_open = self._remote is not None and not self._remote.closed
        return OpenNwb(self.file_path, remote=self._remote if is_open else None)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self._remote.size if self._remote is not None else Path(str(self.file_path)).stat().st_size

    def find_missing(self, path: str) -> str:
        """Name of the file that a link at ``path`` points to, where it is not there; else empty."""
        link = self._hdf5.get(path, getlink=True)
        if not isinstance(link, h5py.ExternalLink):
            return ""
        if self._remote is not None:
            return str(link.filename)
        try:
            return "" if self._hdf5[path] else str(link.filename)
        except (KeyError, OSError):
            return str(link.filename)

    def close(self) -> None:
        """Close the file; its arrays cannot be read after this. Closing twice does no harm."""
        if self._hdf5:
            self.io.close()
        self._closing.close()

    def __enter__(self) -> "OpenNwb":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def locate(path: str | Path | Address) -> Path | Address:
    """Tell an address from a path."""
    if isinstance(path, Address):
        return path
    return Address(path) if isinstance(path, str) and path.startswith(SCHEMES) else Path(path)


def _open_any(file_path: Path | Address, remote: RemoteFile | None) -> h5py.File:
    if remote is None:
        return open_hdf5(Path(str(file_path)))
    try:
        return h5py.File(remote, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        raise NwbError(_explain_open(file_path, remote.size, error)) from error


def open_hdf5(file_path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    NwbError
        If it cannot be opened, with the reason.
    """
    try:
        size = file_path.stat().st_size
    except FileNotFoundError:
        raise NwbError(f"There is no file {file_path}. Check its name and folder.") from None
    except OSError as error:
        raise NwbError(f"Cannot open {file_path}: {error.strerror}.") from error
    if file_path.is_dir():
        raise NwbError(
            f"{file_path} is a folder; an NWB file (HDF5) is needed. Give the path of the .nwb file itself; "
            "convert a Zarr store to HDF5 with hdmf-zarr first."
        )
    if size == 0:
        raise NwbError(f"{file_path} is empty (0 bytes). Copy or convert the session again.")
    try:
        return h5py.File(file_path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        raise NwbError(_explain_open(file_path, size, error)) from error


@contextmanager
def explain_read(file_path: Path | Address, what: str) -> Iterator[None]:
    """Turn HDF5's errors while reading ``what`` into an `NwbError` that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        text = str(error)
        if isinstance(error, KeyError) and "Unable to" not in text:
            raise  # not HDF5's
        if "filter" in text or "can't open directory" in text or "can't dlopen" in text:
            remedy = (
                "its compression filter is not installed. Install the HDF5 plugin that the file was "
                "written with, or rewrite it with gzip"
            )
        elif "truncated" in text or "addr overflow" in text or "file read failed" in text:
            remedy = "the file is damaged or cut short. Copy or convert the session again"
        else:
            remedy = "the file is damaged, or the disk cannot be read. Copy the session again"
        raise NwbError(
            f"Cannot read {what} of {file_path}: {remedy}. HDF5 says: {first_line(error)}"
        ) from error


def _explain_open(file_path: Path | Address, size: int, error: OSError) -> str:
    text = str(error)
    if "truncated" in text:
        return (
            f"{file_path} is cut short: it ends at {size} bytes, before its own end. Copy the session again."
        )
    if error.errno in (errno.EAGAIN, errno.EACCES) and "lock" in text:
        return (
            f"{file_path} is locked: another program has it open for writing. Wait until it is done; "
            "on a network disk without locks set HDF5_USE_FILE_LOCKING=FALSE."
        )
    if isinstance(error, PermissionError) or error.errno == errno.EACCES:
        return f"{file_path} may not be read by this user. Change its permissions."
    if "signature" in text:
        return f"{file_path} is not an HDF5 file, so not an NWB file that can be read here. Check what it is."
    return f"Cannot open {file_path}: {first_line(error)}."


def first_line(error: BaseException) -> str:
    """First line of what an error says, for a message of ours."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
