"""Look through an HDF5 file that somebody gave us, before its data are read: a process of its own.

``python -P inspect_hdf5.py`` takes one JSON object on standard input, as `service.inputs.check_file` gives
it, and prints ``{"problem": TEXT}``, empty where there is none. HDF5 is not safe against files made to harm
it: what crashes this process, or keeps it busy, has harmed nothing else.
"""

import json
import math
import os
import resource
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import h5py
from h5py import h5d, h5g, h5l, h5o, h5p, h5z

MAX_OBJECTS = 100_000
"""Links in all files together. Sessions have some hundred, the largest some thousand."""
MAX_DEPTH = 32
"""Groups within each other."""
MAX_PATHS = 1_000_000
"""Ways to the objects of a file: links may make few objects many."""
MAX_FILES, MAX_HOPS = 64, 4
"""Other files that the first one leads to, and from one to the next."""
MAX_CHUNK_BYTES = 1 << 30
"""Of a chunk, unpacked."""
MAX_RATIO, FREE_BYTES = 1000, 10 << 30
"""Size of an array over that of its file, from this size on."""
MAX_GROWTH, SPARE_BYTES = 2, 1 << 20
"""Packed size of a chunk over the unpacked one, and beyond."""
MEMORY_BYTES, CPU_S = 4 << 30, 20
"""What this process may use."""
BITSHUFFLE = 32008
_REARRANGING = frozenset(
    {h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET, BITSHUFFLE}
)
"""Filters whose output is about as large as their input."""


class RefusedError(Exception):
    """Why the file is refused."""


@dataclass
class _Survey:
    """What is known of the files so far.

    Attributes
    ----------
    roots : tuple of Path
        Folders that other files may be in, without links in their own paths.
    num_links : int
    seen : set of Path
    """

    roots: tuple[Path, ...]
    num_links: int = 0
    seen: set[Path] = field(default_factory=set)


def inspect_path(file_path: Path, roots: tuple[Path, ...]) -> None:
    """Inspect a file of this machine and those that it leads to.

    Raises
    ------
    RefusedError
    """
    _inspect_local(file_path, _Survey(roots), ())


def inspect_address(url: str, hosts: frozenset[str], max_bytes: int) -> None:
    """Inspect a file on the web, which may lead to no other.

    Raises
    ------
    RefusedError
    """
    from accm_core.errors import NwbError
    from accm_core.io.remote import Address, RemoteFile

    try:
        with (
            closing(RemoteFile(Address(url, hosts, max_bytes))) as remote,
            _open(remote, str(remote.address), remote.size) as file,
        ):
            _Walk(file, remote.size, _refuse_outside, _Survey(())).run()
    except NwbError as error:
        raise RefusedError(str(error)) from error


def _inspect_local(file_path: Path, survey: _Survey, chain: tuple[Path, ...]) -> None:
    real = Path(os.path.realpath(file_path))
    if real in chain:
        raise RefusedError(
            f"{real.name} and the files that it leads to lead back to it. Make one file of them."
        )
    if real in survey.seen:
        return
    survey.seen.add(real)
    if len(survey.seen) > MAX_FILES or len(chain) > MAX_HOPS:
        raise RefusedError(
            f"It leads to more than {MAX_FILES} other files, or from one to the next more than {MAX_HOPS} "
            "times. Make one file of them."
        )
    size = real.stat().st_size
    found: list[Path] = []

    def follow(name: str, where: str) -> None:
        found.extend(_find_outside(name, where, {file_path.parent, real.parent}, survey.roots))

    with _open(file_path, real.name, size) as file:
        _Walk(file, size, follow, survey).run()
    for target in dict.fromkeys(found):
        _inspect_local(target, survey, (*chain, real))


def _open(source: object, name: str, size: int) -> h5py.File:
    try:
        return h5py.File(source, "r")
    except OSError as error:
        text = str(error)
        if size == 0:
            why = "is empty (0 bytes). Copy or convert the session again"
        elif "truncated" in text or "eof" in text:
            why = f"is cut short: it ends at {size} bytes, before its own end. Copy the session again"
        elif "signature" in text:
            why = "is not an HDF5 file, so not an NWB file that can be read here. Check what it is"
        elif "unable to lock" in text or "already open for write" in text:
            why = "is open in another program for writing. Wait until it is done"
        else:
            why = f"cannot be opened: {_first_line(error)}. Copy or convert the session again"
        raise RefusedError(f"{name} {why}.") from error


def _find_outside(name: str, where: str, folders: set[Path], roots: tuple[Path, ...]) -> list[Path]:
    """Files that HDF5 may take when ``name`` is asked for; an absolute name also without its folder."""
    if not roots:
        _refuse_outside(name, where)
    path = Path(name)
    names = [path, Path(path.name)] if path.is_absolute() else [path]
    candidates = [folder / one for one in names for folder in folders]
    found = [candidate for candidate in candidates if candidate.exists()]
    for one in [*found, *(names[:1] if path.is_absolute() else [])]:
        if not any(Path(os.path.realpath(one)).is_relative_to(root) for root in roots):
            raise RefusedError(
                f"{where} leads to {name[:200]!r}, which is not in a folder of ACCM_INPUT_ROOTS. Put both "
                "there, or make one file of them."
            )
        if one.exists() and not one.is_file():
            raise RefusedError(f"{where} leads to {name[:200]!r}, which is no file. Make one file of them.")
    if not found:
        raise RefusedError(f"{where} leads to {name[:200]!r}, which is not there. Put it beside the file.")
    return found


def _refuse_outside(name: str, where: str) -> NoReturn:
    raise RefusedError(
        f"{where} leads to another file, {name[:200]!r}, which only files under ACCM_INPUT_ROOTS may do. "
        "Make one file of them, as accm sort does without --link."
    )


class _Walk:
    """Through one file: each object once, by its address.

    Parameters
    ----------
    file : h5py.File
    size : int
        Bytes of it.
    follow : callable
        Told the name of each other file and where it stands; raises `RefusedError` or takes note.
    survey : _Survey
    """

    def __init__(
        self, file: h5py.File, size: int, follow: Callable[[str, str], None], survey: _Survey
    ) -> None:
        self.file, self.size, self.follow, self.survey = file, size, follow, survey
        self.ways: dict[int, list[int]] = {}
        self.indirect: list[tuple[int, h5g.GroupID, bytes]] = []

    def run(self) -> None:
        """Refuse what is wrong with any of its links and arrays."""
        root = self.file["/"].id
        address = h5o.get_info(root).addr
        self.ways[address] = []
        waiting = [(root, address, b"", 0)]
        while waiting:
            group, address, path, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise RefusedError(
                    f"Groups lie within each other more than {MAX_DEPTH} deep, at {_show(path)}."
                )
            for name in self._names(group):
                child = self._visit(group, address, name, path + b"/" + name)
                if child is not None:
                    waiting.append((*child, path + b"/" + name, depth + 1))
        for source, group, name in self.indirect:  # last, when no link leads to where it may not
            self._add_way(source, group, name)
        self._check_ways(h5o.get_info(root).addr)

    def _names(self, group: h5g.GroupID) -> list[bytes]:
        names: list[bytes] = []

        def take(name: bytes) -> bool | None:
            names.append(name)
            return True if self.survey.num_links + len(names) > MAX_OBJECTS else None

        group.links.iterate(take)
        self.survey.num_links += len(names)
        if self.survey.num_links > MAX_OBJECTS:
            raise RefusedError(
                f"It holds more than {MAX_OBJECTS} objects. Split the session, or leave some out."
            )
        return names

    def _visit(
        self, group: h5g.GroupID, address: int, name: bytes, path: bytes
    ) -> tuple[h5g.GroupID, int] | None:
        """Look at one link; a group behind it that was not seen before."""
        kind = group.links.get_info(name).type
        if kind == h5l.TYPE_EXTERNAL:
            self.follow(os.fsdecode(group.links.get_val(name)[0]), f"The link {_show(path)}")
            return None
        if kind == h5l.TYPE_SOFT:
            self.indirect.append((address, group, name))
            return None
        if kind != h5l.TYPE_HARD:
            raise RefusedError(f"The link {_show(path)} is of the unknown kind {kind}.")
        info = h5o.get_info(group, name)
        self.ways[address].append(info.addr)
        if info.addr in self.ways:
            return None
        self.ways[info.addr] = []
        if info.type == h5o.TYPE_DATASET:
            self._check_array(h5d.open(group, name), info.addr, path)
        return (h5g.open(group, name), info.addr) if info.type == h5o.TYPE_GROUP else None

    def _add_way(self, source: int, group: h5g.GroupID, name: bytes) -> None:
        try:
            info = h5o.get_info(group, name)
        except (KeyError, RuntimeError, OSError):
            return  # it leads nowhere
        if info.addr in self.ways and info.fileno == h5o.get_info(group).fileno:
            self.ways[source].append(info.addr)

    def _check_ways(self, root: int) -> None:
        """Refuse circles of links, and links that make few objects many."""
        counts: dict[int, int] = {}  # 0 while on the way
        waiting = [root]
        while waiting:
            here = waiting[-1]
            if counts.get(here):
                waiting.pop()
            elif here in counts:
                counts[here] = 1 + sum(counts[there] for there in self.ways[here])
                if counts[here] > MAX_PATHS:
                    raise RefusedError(f"Its links lead to its objects in more than {MAX_PATHS} ways.")
                waiting.pop()
            else:
                counts[here] = 0
                for there in self.ways[here]:
                    if counts.get(there) == 0:
                        raise RefusedError("Its links lead in a circle: a group, or an array, holds itself.")
                    if there not in counts:
                        waiting.append(there)

    def _check_array(self, array: h5d.DatasetID, address: int, path: bytes) -> None:
        properties = array.get_create_plist()
        item_bytes = array.get_type().get_size()
        num_bytes = math.prod(array.get_space().shape or ()) * item_bytes
        if properties.get_external_count() > 0:
            raise RefusedError(
                f"The samples of {_show(path)} lie in a raw file outside of it. Repack the file (h5repack)."
            )
        if properties.get_layout() == h5d.VIRTUAL:
            self._check_virtual(properties, address, path)
        elif num_bytes > max(FREE_BYTES, MAX_RATIO * self.size):
            raise RefusedError(
                f"{_show(path)} unpacks to {num_bytes:.3g} bytes, from a file of {self.size}; at most "
                f"{MAX_RATIO} times as much is read. Check how it was made."
            )
        if properties.get_layout() == h5d.CHUNKED:
            _check_chunks(array, properties, item_bytes, path)

    def _check_virtual(self, properties: h5p.PropDCID, address: int, path: bytes) -> None:
        num_sources = properties.get_virtual_count()
        if num_sources > MAX_OBJECTS:
            raise RefusedError(f"{_show(path)} has {num_sources} sources; the limit is {MAX_OBJECTS}.")
        sources = {
            (properties.get_virtual_filename(k), properties.get_virtual_dsetname(k))
            for k in range(num_sources)
        }
        for file_name, array_name in sorted(sources):
            if file_name == ".":
                self.indirect.append((address, self.file["/"].id, array_name.encode()))
            elif "%" in file_name:
                raise RefusedError(f"{_show(path)} is made of files named by a pattern, {file_name[:200]!r}.")
            else:
                self.follow(file_name, f"The array {_show(path)}")


def _check_chunks(array: h5d.DatasetID, properties: h5p.PropDCID, item_bytes: int, path: bytes) -> None:
    """Refuse chunks, or packings of them, that no program writes."""
    chunk_bytes = math.prod(properties.get_chunk()) * item_bytes
    if chunk_bytes > MAX_CHUNK_BYTES:
        raise RefusedError(
            f"{_show(path)} has chunks of {chunk_bytes:.3g} bytes; at most {MAX_CHUNK_BYTES} are read at "
            "once. Repack the file (h5repack)."
        )
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    packing = [code for code in filters if code not in _REARRANGING]
    if len(packing) > 1 or len(filters) > len(set(filters)):
        raise RefusedError(
            f"{_show(path)} is packed more than once (filters {filters}). Repack it (h5repack)."
        )
    most = MAX_GROWTH * chunk_bytes + SPARE_BYTES

    def check(chunk: h5d.StoreInfo) -> None:
        if chunk.size > most:
            raise RefusedError(
                f"A chunk of {_show(path)} takes {chunk.size} bytes packed and {chunk_bytes} unpacked. The "
                "file is damaged or made to harm."
            )

    array.chunk_iter(check)


def _show(path: bytes) -> str:
    text = path.decode(errors="replace")
    return text if len(text) <= 200 else f"{text[:200]}..."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    problem = ""
    try:
        if "url" in request:
            inspect_address(request["url"], frozenset(request["hosts"]), request["max_bytes"])
        else:
            inspect_path(Path(request["path"]), tuple(Path(root) for root in request["roots"]))
    except RefusedError as error:
        problem = str(error)
    except Exception as error:  # any error of HDF5 about a file of others
        problem = f"HDF5 cannot go through the file: {_first_line(error)}. Copy or convert the session again."
    print(json.dumps({"problem": problem}))  # noqa: T201  its answer


if __name__ == "__main__":
    main()
