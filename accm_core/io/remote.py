"""A file on the web as one of this machine: what is read of it is downloaded, once."""

import io
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
import urllib3
from urllib3.exceptions import HTTPError, IncompleteRead
from urllib3.util import parse_url

from accm_core import __version__
from accm_core.errors import NwbError

SCHEMES = ("http://", "https://")
BLOCK_BYTES = 1 << 20
"""What is downloaded at least."""
MAX_BLOCKS = 16
"""What is asked for at once at most; reading on and on asks for twice as much each time."""
ATTEMPTS, PAUSE_S = 5, 0.5
"""A request that fails is repeated, after a pause that doubles."""
TIMEOUT = urllib3.Timeout(connect=15.0, read=60.0)
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_ONCE = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0)
_MAX_REDIRECTS, _MAX_REDIRECT_BYTES = 10, 1 << 16
"""Followed from one address; of a redirect's body, up to which the connection is kept."""
_USUAL_PORTS = {"http": 80, "https": 443}
_MAX_DIGITS = 15
"""Of a file's size in bytes."""


@dataclass(frozen=True)
class Address:
    """Where a remote file is. As text without a query, which may hold a signature, and without a password.

    Parameters
    ----------
    url : str
    hosts : frozenset of str, optional
        The only servers to be asked, also by redirects: names in lower case, with ``:PORT`` where it is not
        the usual one. Any when None.
    max_bytes : int, optional
        A larger file is refused.
    """

    url: str
    hosts: frozenset[str] | None = None
    max_bytes: int | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return unquote(PurePosixPath(urlsplit(self.url).path).name)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def check_host(self, url: str) -> None:
        """Refuse a url, this one or one that it redirects to, of a server that is not to be asked.

        Raises
        ------
        NwbError
        """
        if self.hosts is None:
            return
        parts = parse_url(url)  # as the request itself understands it
        usual = _USUAL_PORTS.get(parts.scheme or "")
        names = {
            f"{parts.host}:{parts.port or usual}",
            *([parts.host] if parts.port in (None, usual) else []),
        }
        if usual is None or not names & self.hosts:
            where = f"{parts.scheme}://{parts.netloc}"
            raise NwbError(
                f"{self} leads to {where[:200]}, which may not be asked; allowed are the hosts: "
                f"{', '.join(sorted(self.hosts)) or 'none'}."
            )


class RemoteFile(io.RawIOBase):
    """Bytes of a remote file, for h5py.

    Parameters
    ----------
    address : Address

    Attributes
    ----------
    size : int
        Bytes of the whole file.

    Raises
    ------
    NwbError
        If it cannot be reached, is not there, is empty or too large, or its server cannot send parts of a
        file or may not be asked.

    Notes
    -----
    What was downloaded is kept in a temporary file (in TMPDIR) until this is closed: memory stays flat, and a
    sort, which reads the recording several times, downloads it once. Each request goes to the address
    itself, so that redirects to signed addresses may expire.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._pool = _connect(address.url)
        self._etag: str | None = None
        self.size = 0
        first = self._download(0, BLOCK_BYTES)
        self._kept = tempfile.TemporaryFile(prefix="accm-")  # noqa: SIM115  closed with this object
        self._has = np.zeros(-(-self.size // BLOCK_BYTES), dtype=bool)
        self._position = 0
        self._ahead, self._next = 1, 0
        self._keep(0, first)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether any place of it can be read."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to where the next read is to begin."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's name is private
        """Fill the buffer from here on; return how many bytes there were."""
        start, stop = self._position, min(self._position + len(buffer), self.size)
        if stop <= start:
            return 0
        self._fetch(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
        data = os.pread(self._kept.fileno(), stop - start, start)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Forget what was downloaded. Closing twice does no harm."""
        if not self.closed and hasattr(self, "_kept"):
            self._kept.close()
            self._pool.clear()
        super().close()

    def _fetch(self, first: int, last: int) -> None:
        """Make sure that blocks ``first`` to ``last`` (half-open) are kept."""
        block = first
        while block < last:
            if self._has[block]:
                block += 1
                continue
            self._ahead = min(2 * self._ahead, MAX_BLOCKS) if block == self._next else 1
            stop = min(max(last, block + self._ahead), block + MAX_BLOCKS, len(self._has))
            stop = block + int(np.append(self._has[block:stop], True).argmax())  # up to what is kept
            self._keep(block, self._download(block * BLOCK_BYTES, stop * BLOCK_BYTES))
            block = self._next = stop

    def _keep(self, block: int, data: bytes) -> None:
        try:
            written = os.pwrite(self._kept.fileno(), data, block * BLOCK_BYTES)
            if written < len(data):
                os.pwrite(self._kept.fileno(), data[written:], block * BLOCK_BYTES + written)
        except OSError as error:
            raise NwbError(
                f"Cannot keep what was read of {self.address} in {tempfile.gettempdir()}: {error.strerror}. "
                f"It needs up to {self.size / 1e9:.1f} GB there; make room, or set TMPDIR to another folder."
            ) from error
        self._has[block : block - (-len(data) // BLOCK_BYTES)] = True

    def _download(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (half-open) or the end of the file, from the server."""
        for attempt in range(ATTEMPTS):
            if attempt > 0:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                return self._try_download(start, stop, is_last=attempt == ATTEMPTS - 1)
            except HTTPError as error:
                failure = error
        raise NwbError(
            f"Cannot read {self.address}: {_reason(failure)}. Check the address and the connection, or "
            "download the file and give its path."
        ) from failure

    def _try_download(self, start: int, stop: int, *, is_last: bool) -> bytes:
        response = self._request(f"bytes={start}-{stop - 1}")
        try:
            if response.status in _TRANSIENT and not is_last:
                raise HTTPError(f"the server answers {response.status}")
            self._check(response)
            expected = min(stop, self.size) - start
            data = response.read(expected)
            if len(data) != expected:
                raise IncompleteRead(len(data), expected - len(data))
            return data
        finally:
            response.close()

    def _request(self, byte_range: str) -> urllib3.BaseHTTPResponse:
        """Ask for a part of the file, wherever it is."""
        url = self.address.url
        for _ in range(_MAX_REDIRECTS + 1):
            self.address.check_host(url)
            response = self._pool.request(
                "GET",
                url,
                headers={**self._pool.headers, "Range": byte_range},
                preload_content=False,
                decode_content=False,  # it was not asked for
                redirect=False,
                retries=_ONCE,
            )
            location = response.get_redirect_location()
            if not location:
                return response
            remaining = response.length_remaining
            if remaining is not None and remaining <= _MAX_REDIRECT_BYTES:
                response.drain_conn()
            else:
                response.close()
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise NwbError(f"{self.address} redirects to what is no address. Check it.") from error
        raise NwbError(f"{self.address} redirects more than {_MAX_REDIRECTS} times. Check the address.")

    def _check(self, response: urllib3.BaseHTTPResponse) -> None:
        """Refuse an answer that is not the part of the file that was asked for."""
        status = response.status
        if status == 416 and self.size == 0:
            raise NwbError(f"{self.address} is empty (0 bytes). Check the address.")
        if status == 200:
            raise NwbError(
                f"The server of {self.address} sends whole files only, not parts of them (HTTP ranges). "
                "Download the file and give its path."
            )
        if status != 206:
            what = {404: "There is no file at", 410: "There is no file at"}.get(status, "The server refuses")
            raise NwbError(
                f"{what} {self.address} ({status} {response.reason}). Check the address, and that it may be "
                "read without a password; a signed address may have expired."
            )
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal() or len(size) > _MAX_DIGITS:
            raise NwbError(
                f"The server of {self.address} does not tell the size of the file. Download it and give its "
                "path."
            )
        etag = response.headers.get("ETag")
        if self.size == 0:
            self.size, self._etag = int(size), etag
            most = self.address.max_bytes
            if most is not None and self.size > most:
                raise NwbError(
                    f"{self.address} has {self.size} bytes; files of at most {most} bytes are read here."
                )
        elif (self.size, self._etag) != (int(size), etag):
            raise NwbError(f"{self.address} was changed while it was read. Run the command again.")


def _connect(url: str) -> urllib3.PoolManager:
    """Connections to a server, through the proxy that the environment names."""
    headers = {"User-Agent": f"accm/{__version__}", "Accept-Encoding": "identity"}
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy is not None and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, headers=headers, timeout=TIMEOUT)
    return urllib3.PoolManager(headers=headers, timeout=TIMEOUT)


def _reason(error: BaseException) -> str:
    """What went wrong, without the address and its query, which urllib3 adds."""
    cause = getattr(error, "reason", None) or error
    return f"{type(cause).__name__}: {str(cause).rpartition('): ')[2] or cause}".rstrip(".")
