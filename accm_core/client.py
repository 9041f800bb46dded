"""Client of the accm service: sessions, jobs and models over HTTP, online sorting over a web socket.

One file on purpose, longer than others: it needs Python 3.10, numpy, httpx and websockets and nothing else of
this package, so that it can be copied into an acquisition program.

Examples
--------
Sort a file, and fetch the result::

    with Client("http://gpu-node:3000") as client:      # the key comes from $ACCM_API_KEY
        upload = client.upload("session.nwb")
        job = client.wait(client.sort(upload=upload["name"])["id"])
        client.download(job["id"], "session_sorted.nwb")

Sort while recording::

    with client.stream(30_000, 64, dtype="int16", gain_to_uV=0.195) as stream:
        stream.send(samples)                            # as often as there are new ones
        for reply in stream:                            # in another thread
            print(reply.spikes["sample"], reply.spikes["unit"])
"""

import hashlib
import io
import json
import os
import re
import secrets
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict
from urllib.parse import quote

import httpx
import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect

DEFAULT_ADDRESS = "http://127.0.0.1:3000"
FINISHED = ("done", "failed", "cancelled")
"""States of a job that do not change any more."""

PIECE_BYTES = 1 << 20  # read from the disk at once
RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # a minute: a server that starts again is waited for
PASSING = (408, 429, 502, 503, 504)  # answers that may be better a little later
CHECK_TIMEOUT_S = 600.0  # for what the server does before it answers: check a file, load a model
SILENCE_S = 40.0  # without an event; the server says something every 15 s
POLL_PAUSE_S = 1.0  # between two questions where events do not come through

PROTOCOL = 1
READY_TIMEOUT_S = 120.0  # a session starts a process of its own and loads its model
PING_TIMEOUT_S = 60.0
HEADER = struct.Struct("<QIHH")  # of a message: first sample, number of samples, number of channels, flags
REPLY = struct.Struct("<QII")  # of a reply: acknowledged sample, number of spikes, flags
BEHIND = 1  # flag of a reply: the server is behind
OVERLAP, CALIBRATION = 1, 2  # flags of a spike: overlaps another; was found by the calibration
RECORD = np.dtype(
    [
        ("sample", "<u8"),
        ("unit", "<u4"),
        ("channel", "<u2"),
        ("flags", "<u2"),
        ("amplitude_uV", "<f4"),
        ("probability", "<f4"),
    ]
)
"""A spike, as the stream reports it."""


class Upload(TypedDict, total=False):
    """A file on the server; ``total`` and ``complete`` tell of one that is still on its way."""

    name: str
    bytes: int
    total: int
    complete: bool
    sha256: str
    created: str


class Job(TypedDict, total=False):
    """Work on the server; times are ISO 8601 in UTC, ``fraction`` is of all the work."""

    id: str
    kind: str
    state: str
    stage: str
    fraction: float
    eta_s: float | None
    created: str
    started: str | None
    finished: str | None
    error: str | None
    input: str
    model: str | None
    name: str | None
    attempts: int
    result: dict[str, Any] | None
    log: list[str]
    request: dict[str, Any]


class ServiceError(RuntimeError):
    """The service refused or failed; the message is what it said.

    Attributes
    ----------
    status : int or None
        HTTP status, or the close code of a stream; None where the service was not reached.
    answer : mapping
        The JSON object that came with it; empty when there was none.
    """

    def __init__(
        self, message: str, status: int | None = None, answer: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.answer = answer if answer is not None else {}


class Client:
    """The service at an address.

    Parameters
    ----------
    address : str
        As ``http://gpu-node:3000``.
    api_key : str, optional
        ``$ACCM_API_KEY`` by default; none where that is not set either.
    timeout : float
        Seconds to wait for a connection and for the next bytes of an answer.
    retry_pauses_s : sequence of float
        Pauses between attempts of what is tried again: uploads, downloads, waiting, ``embed`` and
        ``classify``. Empty for a program that does better to fail at once.

    Raises
    ------
    ServiceError
        From every method, when the service cannot be reached or refuses.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        api_key: str | None = None,
        timeout: float = 30.0,
        retry_pauses_s: Sequence[float] = RETRY_PAUSES_S,
    ) -> None:
        key = api_key if api_key is not None else os.environ.get("ACCM_API_KEY")
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} is no address of a service. Give one as {DEFAULT_ADDRESS}.")
        self._timeout = timeout
        self._pauses = tuple(retry_pauses_s)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers = {**self._headers, "Accept-Encoding": "identity"}  # parts of files count in plain bytes
        self._http = httpx.Client(base_url=self.address, headers=headers, timeout=timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- uploads ----

    def upload(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        overwrite: bool = False,
    ) -> Upload:
        """Bring a file to the server, from disk; both sides take its checksum on the way.

        What is there already is not sent again: not a whole file of the same content, and not the beginning
        that an earlier attempt brought. A broken connection is taken up where it broke.

        Parameters
        ----------
        path : str or Path
        name : str, optional
            What to call it there; as the file by default, with ``_`` for what a name may not hold.
        on_progress : callable, optional
            Called with the bytes sent so far and all bytes.
        overwrite : bool
            Replace an upload of that name.

        Raises
        ------
        ServiceError
            Also when the name is taken, or what arrived is not what was sent; that is removed.
        OSError
            When the file cannot be read, or changes on the way.
        """
        path = Path(path)
        called = name if name is not None else _upload_name(path)
        with _HashedFile(path) as source:
            there = self._find_upload(called)
            if there is not None and there.get("complete"):
                if there["bytes"] == source.size and there["sha256"] == source.sha256():
                    return there
                if not overwrite:
                    raise _taken_error(called, "of other content")
            elif there is not None and there["total"] != source.size:
                if not overwrite:
                    raise _taken_error(called, "of another length, unfinished")
                self.remove_upload(called)
                there = None
            sent = self._send_file(called, source, there, overwrite, on_progress)
            if sent["sha256"] != source.sha256():
                self.remove_upload(called)
                raise ServiceError(
                    f"What arrived as {called!r} is not {path}: it began as another file, or the network "
                    "changed it. It was removed; send the file again."
                )
            source.check_unchanged()
        return sent

    def uploads(self) -> list[Upload]:
        """List the uploads."""
        uploads: list[Upload] = self._json("GET", "/uploads")["uploads"]
        return uploads

    def remove_upload(self, name: str) -> Upload:
        """Remove an upload, finished or not."""
        removed: Upload = self._json("DELETE", f"/uploads/{_quoted(name)}")
        return removed

    def _find_upload(self, name: str) -> Upload | None:
        try:
            found: Upload = self._json("GET", f"/uploads/{_quoted(name)}")
        except ServiceError as error:
            if error.status == 404:
                return None
            raise
        return found

    def _send_file(
        self,
        name: str,
        source: "_HashedFile",
        there: Upload | None,
        overwrite: bool,
        on_progress: Callable[[int, int], None] | None,
    ) -> Upload:
        """Send what is not there yet; after a failure, ask how much came through and go on from there."""
        patience, start = _Patience(self._pauses), _bytes_there(there)
        is_again = False
        while True:
            try:
                if is_again:
                    there = self._find_upload(name)
                    if there is not None and there.get("complete") and there["sha256"] == source.sha256():
                        return there  # only the answer was lost
                    before, start = start, _bytes_there(there)
                    if start > before:
                        patience.reset()
                return self._send_from(start, name, source, overwrite, on_progress)
            except (httpx.TransportError, ServiceError) as error:
                # a conflict the second time: the server has not noticed yet that the connection broke
                is_conflict = isinstance(error, ServiceError) and error.status == 409
                if not (_is_passing(error) or (is_conflict and is_again)):
                    raise
                patience.pause(error)
            is_again = True

    def _send_from(
        self,
        start: int,
        name: str,
        source: "_HashedFile",
        overwrite: bool,
        on_progress: Callable[[int, int], None] | None,
    ) -> Upload:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(source.size - start)}
        if source.size:
            headers["Content-Range"] = f"bytes {start}-{source.size - 1}/{source.size}"
        response = self._http.put(
            f"/uploads/{_quoted(name)}",
            params={"overwrite": "true"} if overwrite else {},
            headers=headers,
            content=source.pieces(start, on_progress),
            timeout=httpx.Timeout(self._timeout, read=CHECK_TIMEOUT_S),
        )
        _check(response)
        sent: Upload = response.json()
        return sent

    # ---- jobs ----

    def sort(
        self,
        *,
        upload: str | None = None,
        path: str | None = None,
        url: str | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        series: str | None = None,
        units: str = "fail",
        report: bool = True,
    ) -> Job:
        """Ask for a session to be sorted.

        Parameters
        ----------
        upload, path, url : str
            The session, one of the three: the name of an upload, a path on the server in a folder that it
            allows, or the address of an NWB file on a host that it allows.
        model : str, optional
            A model of the server to start from.
        params : mapping, optional
            Parameters by group, as ``{"detect": {"threshold": 6}}``; defaults for the others.
        seed : int
            Same seed, same result.
        series : str, optional
            The ElectricalSeries to sort, where there are several.
        units : {"fail", "replace", "processing"}
            What to do when the session has Units already.
        report : bool
            Make the report too.
        """
        request = _request(_input(upload, path, url), model=model, params=params, series=series)
        request |= {"seed": seed, "units": units, "report": report}
        job: Job = self._json("POST", "/sort", json=request)
        return job

    def finetune(
        self,
        name: str,
        labels: Mapping[str, Any],
        *,
        upload: str | None = None,
        path: str | None = None,
        url: str | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        series: str | None = None,
        overwrite: bool = False,
    ) -> Job:
        """Ask for a model that knows your units.

        Parameters
        ----------
        name : str
            What to call the model.
        labels : mapping
            Where the labelled spikes are: ``{"upload": NAME}``, ``{"path": PATH}`` or ``{"url": ADDRESS}`` of
            an NWB file with Units, or ``{"units": {NAME: spike times in s, ...}}``.
        upload, path, url, params, seed, series
            As for `sort`.
        overwrite : bool
            Replace a model of that name.
        """
        if "units" in labels:
            trains = {str(unit): np.asarray(times).tolist() for unit, times in labels["units"].items()}
            labels = {**labels, "units": trains}
        request = _request(_input(upload, path, url), params=params, series=series)
        request |= {"labels": dict(labels), "name": name, "seed": seed, "overwrite": overwrite}
        job: Job = self._json("POST", "/finetune", json=request)
        return job

    def pretrain(
        self,
        name: str,
        inputs: Sequence[Mapping[str, str]] = (),
        *,
        recordings: int | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        overwrite: bool = False,
    ) -> Job:
        """Ask for an encoder trained without labels.

        Parameters
        ----------
        name : str
            What to call the model.
        inputs : sequence of mapping
            Sessions to learn from as well: ``{"upload": NAME}``, ``{"path": PATH}`` or ``{"url": ADDRESS}``.
        recordings : int, optional
            Simulated recordings to learn from; the server's default otherwise.
        params, seed
            As for `sort`.
        overwrite : bool
            Replace a model of that name.
        """
        request = {"inputs": [dict(one) for one in inputs], "name": name, "seed": seed}
        request |= {"overwrite": overwrite, **_given(recordings=recordings, params=params)}
        job: Job = self._json("POST", "/pretrain", json=request)
        return job

    def jobs(self, state: str | None = None, limit: int | None = None) -> list[Job]:
        """List the jobs, newest first; those of one state, or the first few."""
        jobs: list[Job] = self._json("GET", "/jobs", params=_given(state=state, limit=limit))["jobs"]
        return jobs

    def job(self, job_id: str) -> Job:
        """Look at one job, with its log."""
        job: Job = self._json("GET", f"/jobs/{_quoted(job_id)}")
        return job

    def cancel(self, job_id: str) -> Job:
        """Cancel a job; a running one ends within seconds."""
        job: Job = self._json("DELETE", f"/jobs/{_quoted(job_id)}")
        return job

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], None] | None = None,
        timeout: float | None = None,
    ) -> Job:
        """Wait until a job is done, failed or cancelled, through a restart of the server too.

        Parameters
        ----------
        job_id : str
        on_progress : callable, optional
            Called with the job whenever something about it changed.
        timeout : float, optional
            Seconds; no end by default.

        Returns
        -------
        dict
            The job as it ended: look at ``state`` and ``error``.

        Raises
        ------
        TimeoutError
            When the job has not ended in time; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        patience = _Patience(self._pauses)
        last: Job = {}
        while True:
            try:
                for job in self._changes(job_id, deadline):
                    patience.reset()
                    if on_progress is not None and job != last:
                        on_progress(job)
                    if job["state"] in FINISHED:
                        return job
                    last = job
            except (httpx.TransportError, ServiceError) as error:
                if not _is_passing(error):
                    raise
                patience.pause(error)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"Job {job_id} was still {last.get('state', 'unknown')} after {timeout:g} s; it goes on."
                )

    def _changes(self, job_id: str, deadline: float | None) -> Iterator[Job]:
        """The job as it is, then each change for as long as events come through."""
        job = self.job(job_id)
        yield job
        if job["state"] in FINISHED:
            return
        left = SILENCE_S if deadline is None else max(0.01, min(SILENCE_S, deadline - time.monotonic()))
        wait = httpx.Timeout(self._timeout, read=left)
        try:
            with self._http.stream("GET", f"/jobs/{_quoted(job_id)}/events", timeout=wait) as response:
                if response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    for line in response.iter_lines():
                        if line.startswith("data:"):
                            change: Job = json.loads(line[len("data:") :])
                            yield change
                        if deadline is not None and time.monotonic() >= deadline:
                            return
        except httpx.TransportError:
            pass  # the next question tells whether the server is there
        pause = POLL_PAUSE_S if deadline is None else min(POLL_PAUSE_S, deadline - time.monotonic())
        time.sleep(max(0.0, pause))

    def download(
        self,
        job_id: str,
        target: str | Path,
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Fetch the result of a job: the sorted NWB file, or the model. The file is whole or absent.

        Parameters
        ----------
        job_id : str
        target : str or Path
            The file to write.
        overwrite : bool
            Replace it when it exists.
        on_progress : callable, optional
            Called with the bytes received so far and all bytes.

        Raises
        ------
        FileExistsError
            When the file exists and is not to be overwritten.
        """
        return self._fetch(f"/jobs/{_quoted(job_id)}/result", Path(target), overwrite, on_progress)

    def report(self, job_id: str, target: str | Path, *, overwrite: bool = False) -> Path:
        """Fetch the HTML report of a sort, as `download` does."""
        return self._fetch(f"/jobs/{_quoted(job_id)}/report", Path(target), overwrite, None)

    def _fetch(
        self,
        address: str,
        target: Path,
        overwrite: bool,
        on_progress: Callable[[int, int], None] | None,
    ) -> Path:
        """Write beside the target and rename."""
        exists = FileExistsError(f"{target} exists. Choose another name, or overwrite it.")
        if target.exists() and not overwrite:
            raise exists
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                self._receive(address, file, on_progress)
                file.flush()
                os.fsync(file.fileno())
            if target.exists() and not overwrite:
                raise exists
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _receive(self, address: str, file: BinaryIO, on_progress: Callable[[int, int], None] | None) -> None:
        """Fill a file; a broken connection is taken up where it broke, if the content is still the same."""
        patience, etag = _Patience(self._pauses), ""
        while True:
            done = file.tell() if etag else 0
            headers = {"Range": f"bytes={done}-", "If-Range": etag} if done else {}
            try:
                with self._http.stream("GET", address, headers=headers) as response:
                    if response.status_code >= 400:
                        response.read()
                    _check(response)
                    if response.headers.get("Content-Range", "").partition("-")[0] != f"bytes {done}":
                        done = 0
                    file.seek(done)
                    file.truncate()
                    etag = response.headers.get("ETag", "")
                    total = done + int(response.headers.get("Content-Length", 0))
                    for piece in response.iter_raw():
                        file.write(piece)
                        patience.reset()
                        if on_progress is not None:
                            on_progress(file.tell(), max(total, file.tell()))
                return
            except (httpx.TransportError, ServiceError) as error:
                if not _is_passing(error):
                    raise
                patience.pause(error)

    # ---- models ----

    def models(self) -> list[dict[str, Any]]:
        """List the models: name, kind, units, bytes, sha256, problem."""
        models: list[dict[str, Any]] = self._json("GET", "/models")["models"]
        return models

    def model(self, name: str) -> dict[str, Any]:
        """Look at a model: name, bytes, sha256 and its card."""
        return self._json("GET", f"/models/{_quoted(name)}")

    def download_model(self, name: str, target: str | Path, *, overwrite: bool = False) -> Path:
        """Fetch the file of a model, as `download` does."""
        return self._fetch(f"/models/{_quoted(name)}/file", Path(target), overwrite, None)

    def upload_model(
        self, path: str | Path, name: str | None = None, *, overwrite: bool = False
    ) -> dict[str, Any]:
        """Bring a model file to the server; it is called as the file by default."""
        path = Path(path)
        called = name if name is not None else path.stem
        with _HashedFile(path) as source:
            return self._json(
                "PUT",
                f"/models/{_quoted(called)}",
                params={"overwrite": "true"} if overwrite else {},
                headers={"Content-Length": str(source.size)},
                content=source.pieces(0),
                timeout=httpx.Timeout(self._timeout, read=CHECK_TIMEOUT_S),
            )

    def remove_model(self, name: str) -> dict[str, Any]:
        """Remove a model."""
        return self._json("DELETE", f"/models/{_quoted(name)}")

    def embed(self, snippets: np.ndarray, model: str | None = None) -> np.ndarray:
        """Embed snippets.

        Parameters
        ----------
        snippets : array of shape (n, n_samples, n_channels)
            In noise units; sent as float32.
        model : str, optional
            The pretrained one by default.

        Returns
        -------
        array of shape (n, n_dims), float32
        """
        return self._arrays("/embed", snippets, model)

    def classify(self, snippets: np.ndarray, model: str) -> np.ndarray:
        """Tell how probable each unit of a fine-tuned model is for each snippet.

        Parameters
        ----------
        snippets : array of shape (n, n_samples, n_channels)
            In noise units; sent as float32.
        model : str

        Returns
        -------
        array of shape (n, n_units), float32
        """
        return self._arrays("/classify", snippets, model)

    def _arrays(self, address: str, snippets: np.ndarray, model: str | None) -> np.ndarray:
        """Post an array and read one; a full queue is waited for."""
        body = io.BytesIO()
        np.save(body, np.ascontiguousarray(snippets, dtype=np.float32), allow_pickle=False)
        options = {
            "params": _given(model=model),
            "content": body.getvalue(),
            "headers": {"Content-Type": "application/octet-stream"},
            "timeout": httpx.Timeout(self._timeout, read=CHECK_TIMEOUT_S),
        }
        patience = _Patience(self._pauses)
        while True:
            try:
                answer = self._ask("POST", address, **options).content
            except ServiceError as error:
                if error.status not in PASSING:
                    raise
                patience.pause(error)
                continue
            values: np.ndarray = np.load(io.BytesIO(answer), allow_pickle=False)
            return values

    # ---- the server ----

    def server(self) -> dict[str, Any]:
        """Look at the server: version, device, limits, disk."""
        return self._json("GET", "/server")

    def streams(self) -> dict[str, Any]:
        """Look at the sessions that are sorted online, and how many there may be."""
        return self._json("GET", "/streams")

    def stream(
        self,
        sampling_frequency: float,
        num_channels: int,
        *,
        dtype: str = "int16",
        gain_to_uV: float | Sequence[float] = 1.0,  # noqa: N803 - a unit
        offset_to_uV: float | Sequence[float] = 0.0,  # noqa: N803 - a unit
        channel_locations: Sequence[Sequence[float]] | np.ndarray | None = None,
        channel_groups: Sequence[int] | np.ndarray | None = None,
        channel_ids: Sequence[str] | None = None,
        model: str | None = None,
        calibration_s: float | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int | None = None,
        save_as: str | None = None,
    ) -> "Stream":
        """Begin to sort online.

        Parameters
        ----------
        sampling_frequency : float
            Hz.
        num_channels : int
        dtype : {"int16", "float32"}
            Of the samples that will be sent.
        gain_to_uV, offset_to_uV : float, or one for each channel
            µV = gain times sample plus offset.
        channel_locations : array of shape (num_channels, 2), optional
            µm. Without them all channels of a group are taken as neighbours.
        channel_groups : sequence of int, optional
            The shank of each channel.
        channel_ids : sequence of str, optional
        model : str, optional
            A model of the server that knows the units; without one, the session calibrates first.
        calibration_s : float, optional
            Seconds to calibrate on.
        params, seed
            As for `sort`.
        save_as : str, optional
            Keep what was calibrated as a model of that name.
        """
        hello = {
            "protocol": PROTOCOL,
            "sampling_frequency": float(sampling_frequency),
            "num_channels": num_channels,
            "dtype": dtype,
            "gain_to_uV": np.asarray(gain_to_uV, dtype=float).tolist(),
            "offset_to_uV": np.asarray(offset_to_uV, dtype=float).tolist(),
        }
        for name, values in (("channel_locations", channel_locations), ("channel_groups", channel_groups)):
            if values is not None:
                hello[name] = np.asarray(values).tolist()
        if channel_ids is not None:
            hello["channel_ids"] = [str(channel_id) for channel_id in channel_ids]
        hello |= _given(model=model, calibration_s=calibration_s, params=params, seed=seed, save_as=save_as)
        return Stream(self.address, self._headers, hello, self._timeout)

    # ---- asking ----

    def _json(self, method: str, address: str, **options: Any) -> Any:
        response = self._ask(method, address, **options)
        try:
            return response.json()
        except ValueError as error:
            raise ServiceError(
                f"{response.url} did not answer with JSON. Is {self.address} the address of an accm service?",
                response.status_code,
            ) from error

    def _ask(self, method: str, address: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, address, **options)
        except httpx.TransportError as error:
            raise _unreached(self.address, error) from error
        _check(response)
        return response


@dataclass(frozen=True, eq=False)
class Reply:
    """What the server says of a stream: spikes, or an event.

    Attributes
    ----------
    spikes : structured array with the fields of `RECORD`
        ``sample`` counts as the samples sent do; ``unit`` is one of `Stream.units`; ``flags`` holds `OVERLAP`
        and `CALIBRATION`. Empty for an event.
    acked_sample : int
        All spikes before this sample have been reported.
    is_behind : bool
        The server sorts more slowly than samples come.
    event : mapping or None
        ``{"event": "calibration", "fraction": ...}``, ``calibrated``, ``gap``, ``overload``, ``live``,
        ``error`` or ``end``; None for spikes.
    """

    spikes: np.ndarray
    acked_sample: int
    is_behind: bool
    event: Mapping[str, Any] | None = None


class Stream:
    """A session that is sorted while it is recorded; made by `Client.stream`.

    One thread may send while another receives: replies are read as they come and kept until they are
    asked for, so that neither holds up the other. Leave it by `end`, which has the rest sorted, or by
    `close`, which drops it.

    Attributes
    ----------
    session : str
    units : list of dict
        ``unit``, ``name``, ``channel`` and ``amplitude_uV`` of each; empty until the calibration is done.
    is_calibrating : bool
    lookahead_ms : float
        How much must follow a spike before it can be reported.
    max_samples : int
        In one message; `send` divides what is longer.
    acked_sample : int
        All spikes before this sample have been reported.
    """

    def __init__(
        self, address: str, headers: Mapping[str, str], hello: Mapping[str, Any], timeout: float
    ) -> None:
        self._num_channels = int(hello["num_channels"])
        self._dtype = np.dtype(hello["dtype"]).newbyteorder("<")
        self._next_sample = 0
        self._replies: deque[Reply] = deque()
        self._changed = threading.Condition()
        self._is_over = False
        self._failure: ServiceError | None = None
        self._error_text = ""
        self._summary: dict[str, Any] | None = None
        self.acked_sample = 0
        with ExitStack() as stack:
            self._socket = stack.enter_context(_open_socket(address, headers, timeout))
            ready = self._shake_hands(hello)
            self._stack = stack.pop_all()
        self.session: str = ready["session"]
        self.units: list[dict[str, Any]] = ready["units"]
        self.is_calibrating: bool = ready["calibrating"]
        self.lookahead_ms: float = ready["lookahead_ms"]
        self.max_samples: int = ready["max_samples"]
        self._reader = threading.Thread(target=self._read, name="accm stream", daemon=True)
        self._reader.start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def send(self, samples: np.ndarray, first_sample: int | None = None) -> None:
        """Send samples; it waits where the network does not take them.

        Parameters
        ----------
        samples : array of shape (num_samples, num_channels)
            Of the dtype that was announced.
        first_sample : int, optional
            Number of the first one; it follows the last by default. A larger one tells of a gap.

        Raises
        ------
        ValueError
            When shape, dtype or number do not suit.
        ServiceError
            When the session has ended, with the server's reason.
        """
        if samples.ndim != 2 or samples.shape[1] != self._num_channels:
            raise ValueError(
                f"The samples have shape {samples.shape}; (num_samples, {self._num_channels}) is needed."
            )
        if samples.dtype.newbyteorder("<") != self._dtype:
            raise ValueError(
                f"The samples are {samples.dtype}, but the stream was opened for {self._dtype.name}. Convert "
                "them, or open it with that dtype."
            )
        start = self._next_sample if first_sample is None else int(first_sample)
        if start < self._next_sample:
            raise ValueError(
                f"The samples begin at {start}, before {self._next_sample}, the next one. Send them in order."
            )
        for low in range(0, len(samples), self.max_samples):
            part = np.ascontiguousarray(samples[low : low + self.max_samples], dtype=self._dtype)
            header = HEADER.pack(start + low, len(part), self._num_channels, 0)
            self._put(header + part.tobytes())
            self._next_sample = start + low + len(part)

    def receive(self, timeout: float | None = None) -> Reply | None:
        """Take the next reply; None when the stream has ended.

        Parameters
        ----------
        timeout : float, optional
            Seconds; no end by default.

        Raises
        ------
        TimeoutError
            When nothing came in time.
        ServiceError
            When the server broke the session off, with its reason.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._replies or self._is_over, timeout):
                raise TimeoutError(f"The stream was silent for {timeout:g} s.")
            if self._replies:
                return self._replies.popleft()
            if self._failure is not None:
                raise self._failure
            return None

    def __iter__(self) -> Iterator[Reply]:
        while (reply := self.receive()) is not None:
            yield reply

    def end(self, timeout: float | None = None) -> dict[str, Any]:
        """Have the rest sorted and end the session; what was reported can still be received.

        Returns
        -------
        dict
            ``samples`` and ``spikes`` of the session.
        """
        self._put(json.dumps({"end": True}))
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_over, timeout):
                raise TimeoutError(f"The stream did not end within {timeout:g} s.")
        if self._failure is not None:
            raise self._failure
        if self._summary is None:
            raise ServiceError("The server closed the stream without a summary.")
        return self._summary

    def close(self) -> None:
        """Close the connection; what has not been sorted yet is dropped."""
        self._stack.close()
        self._reader.join()

    def _put(self, message: str | bytes) -> None:
        try:
            self._socket.send(message)
        except ConnectionClosed as closed:
            self._reader.join()
            failure = self._failure if self._failure is not None else ServiceError("The stream has ended.")
            raise failure from closed

    def _shake_hands(self, hello: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._socket.send(json.dumps(dict(hello), allow_nan=False))
            answer: dict[str, Any] = json.loads(self._socket.recv(READY_TIMEOUT_S))
        except TimeoutError as error:
            raise ServiceError(
                f"The service did not begin the stream within {READY_TIMEOUT_S:g} s."
            ) from error
        except ConnectionClosed as closed:
            raise _closed_error(closed, "") from closed
        if not answer.get("ready"):
            text = str(answer.get("error", answer))
            try:
                self._socket.recv(READY_TIMEOUT_S)
            except ConnectionClosed as closed:
                raise _closed_error(closed, text) from closed
            raise ServiceError(text)
        return answer

    def _read(self) -> None:
        """Take what comes, in a thread of its own, until the connection closes."""
        failure: ServiceError | None = None
        try:
            while True:
                self._take(self._socket.recv())
        except ConnectionClosed as closed:
            if self._summary is None:
                failure = _closed_error(closed, self._error_text)
        except (ValueError, KeyError, struct.error) as error:
            failure = ServiceError(f"The server sent what is no reply: {error}.")
        finally:
            with self._changed:
                self._failure, self._is_over = failure, True
                self._changed.notify_all()

    def _take(self, message: str | bytes) -> None:
        if isinstance(message, str):
            event: dict[str, Any] = json.loads(message)
            reply = Reply(np.zeros(0, RECORD), self.acked_sample, is_behind=False, event=event)
            if event["event"] == "calibrated":
                self.units, self.is_calibrating = event["units"], False
            elif event["event"] == "error":
                self._error_text = event["error"]
            elif event["event"] == "end":
                self._summary = {name: event[name] for name in ("samples", "spikes")}
        else:
            acked, num_spikes, flags = REPLY.unpack_from(message)
            spikes = np.frombuffer(message, RECORD, offset=REPLY.size)
            if len(spikes) != num_spikes:
                raise ValueError(f"{len(spikes)} spikes where {num_spikes} were announced")
            reply = Reply(spikes, acked, bool(flags & BEHIND))
            self.acked_sample = acked
        with self._changed:
            if self._replies and _is_empty(self._replies[-1]) and _is_empty(reply):
                self._replies.pop()  # so that silence that nobody asks for does not pile up
            self._replies.append(reply)
            self._changed.notify_all()


def _is_empty(reply: Reply) -> bool:
    return reply.event is None and not len(reply.spikes)


def _open_socket(address: str, headers: Mapping[str, str], timeout: float) -> Any:
    """Open the web socket; it is a context manager."""
    try:
        return connect(
            "ws" + address[len("http") :] + "/stream",  # https becomes wss
            additional_headers=dict(headers),
            compression=None,
            max_size=None,
            open_timeout=timeout,
            ping_timeout=PING_TIMEOUT_S,
        )
    except InvalidStatus as error:
        body = error.response.body or b""
        raise _refusal(error.response.status_code, error.response.reason_phrase, bytes(body)) from error
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise _unreached(address, error) from error


def _closed_error(closed: ConnectionClosed, text: str) -> ServiceError:
    frame = closed.rcvd
    if frame is None:
        return ServiceError(text or "The connection of the stream broke.")
    return ServiceError(text or frame.reason or f"The server closed the stream ({frame.code}).", frame.code)


class _HashedFile:
    """A file that is read in pieces, again where need be, and hashed on the way, each byte once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._before = os.fstat(self._file.fileno())
        self.size = self._before.st_size
        self._hash = hashlib.sha256()
        self._hashed = 0

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def pieces(
        self, start: int, on_progress: Callable[[int, int], None] | None = None, *, stop: int | None = None
    ) -> Iterator[bytes]:
        """Give the file from ``start`` on."""
        if start > self._hashed:  # the beginning is there already
            for _ in self.pieces(self._hashed, stop=start):
                pass
        position, end = start, self.size if stop is None else stop
        while position < end:
            self._file.seek(position)
            piece = self._file.read(min(PIECE_BYTES, end - position))
            if not piece:
                raise _changed_error(self._path)
            self._hash.update(piece[max(0, self._hashed - position) :])
            position += len(piece)
            self._hashed = max(self._hashed, position)
            yield piece
            if on_progress is not None:
                on_progress(position, self.size)

    def sha256(self) -> str:
        for _ in self.pieces(self._hashed):
            pass
        return self._hash.hexdigest()

    def check_unchanged(self) -> None:
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self._before.st_mtime_ns):
            raise _changed_error(self._path)


def _changed_error(path: Path) -> OSError:
    return OSError(f"{path} was changed while it was being sent. Upload it when the recording is over.")


def _taken_error(name: str, what: str) -> ServiceError:
    return ServiceError(
        f"There is an upload {name!r} already, {what}. Choose another name, or overwrite it.", 409
    )


class _Patience:
    """Pauses between attempts, longer and longer, until there are no more."""

    def __init__(self, pauses: Sequence[float]) -> None:
        self._pauses = pauses
        self._num_used = 0

    def reset(self) -> None:
        self._num_used = 0

    def pause(self, error: Exception) -> None:
        """Wait before the next attempt, or raise what made the last one fail."""
        if self._num_used == len(self._pauses):
            if isinstance(error, httpx.TransportError):
                raise _unreached(str(error.request.url), error) from error
            raise error
        time.sleep(self._pauses[self._num_used])
        self._num_used += 1


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may do better."""
    return not isinstance(error, ServiceError) or error.status is None or error.status in PASSING


def _check(response: httpx.Response) -> None:
    if response.status_code >= 400:
        raise _refusal(response.status_code, response.reason_phrase, response.content)


def _refusal(status: int, reason: str, body: bytes) -> ServiceError:
    """The server's own words, where it sent some."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or "error" not in answer:
        said = body[:200].decode(errors="replace").strip()
        remedy = " Is ACCM_API_KEY its key?" if status in (401, 403) else ""
        return ServiceError(
            f"The service answered {status} {reason}: {said}".rstrip(": ") + f".{remedy}", status
        )
    details = answer.get("detail")
    lines = [str(answer["error"])]
    lines += [
        f"{'.'.join(str(part) for part in item.get('loc', ()))}: {item.get('msg')}"
        for item in (details if isinstance(details, list) else [])
    ]
    return ServiceError("\n".join(lines), status, answer)


def _unreached(address: str, error: Exception) -> ServiceError:
    why = str(error) or type(error).__name__
    return ServiceError(
        f"Cannot reach the service at {address}: {why}. Is it running, and is that its address?"
    )


def _input(upload: str | None, path: str | None, url: str | None) -> dict[str, str]:
    given: dict[str, str] = _given(upload=upload, path=path, url=url)
    if len(given) != 1:
        raise ValueError(f"Give one of upload, path and url; {sorted(given) or 'none'} was given.")
    return given


def _request(source: dict[str, str], **options: Any) -> dict[str, Any]:
    return {"input": source, **_given(**options)}


def _given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _bytes_there(upload: Upload | None) -> int:
    """How much of a file has arrived; of one that is to be replaced, nothing."""
    return 0 if upload is None or upload.get("complete") else upload["bytes"]


def _upload_name(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.name).lstrip("._-")[-200:].lstrip("._-")
    if not name:
        raise ValueError(f"{path} gives no name for an upload. Say one.")
    return name


def _quoted(name: str) -> str:
    return quote(name, safe="")
