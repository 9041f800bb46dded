"""``/stream``: online sorting over a websocket, a process for each session; ``/streams`` lists them.

The route passes messages on between the socket and the session's process, and measures how long answers take.
"""

import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.settings import environ_without_secrets
from service.stream_hello import Hello, HelloError, read_hello
from service.stream_wire import (
    BAD_HELLO,
    CLOSE,
    CODE,
    DATA,
    ERROR,
    FAILED,
    FRAME,
    HEADER,
    NOTE,
    REPLY,
    TEXT,
    TRY_LATER,
    pack_frame,
)

logger = logging.getLogger(__name__)

HELLO_WAIT_S = 10.0
"""Until the first message has to be here."""
LATENCIES_KEPT = 6000
"""Answers whose latency is looked at: a minute of messages of 10 ms."""
GRACE_S = 2.0
"""Until a session's process that should have ended is killed."""
MAX_REASON_BYTES = 120
"""Of the text with which a websocket is closed (RFC 6455: 123)."""
PACKAGE_FOLDER = Path(__file__).parents[1]


@dataclass
class _Session:
    """What is known of a session here.

    Attributes
    ----------
    name : str
    hello : Hello
    folder : Path
    process : Process
    started : str
        ISO 8601.
    state : str
    samples, spikes, units : int
    behind_s : float
    latencies_s : deque of float
        From a message's arrival until its answer was sent, of messages that came live.
    arrivals : deque of float
        Of messages that are not answered yet.
    num_answered : int
        Messages that are.
    """

    name: str
    hello: Hello
    folder: Path
    process: asyncio.subprocess.Process
    started: str
    state: str = "calibrating"
    samples: int = 0
    spikes: int = 0
    units: int = 0
    behind_s: float = 0.0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))
    arrivals: deque[float] = field(default_factory=deque)
    num_answered: int = 0

    def describe(self) -> dict[str, Any]:
        """As `GET /streams` shows it."""
        latencies = [1e3 * value for value in list(self.latencies_s)]
        p50, p99 = np.percentile(latencies, [50, 99]).round(3).tolist() if latencies else (None, None)
        return {
            "session": self.name,
            "state": self.state,
            "num_channels": self.hello.num_channels,
            "sampling_frequency": self.hello.sampling_frequency,
            "samples": self.samples,
            "spikes": self.spikes,
            "units": self.units,
            "latency_ms": {"p50": p50, "p99": p99},
            "behind_s": round(self.behind_s, 3),
            "started": self.started,
        }

    def take_event(self, content: bytes) -> None:
        """Follow what the session's process tells the client."""
        event = json.loads(content)
        if "units" in event:
            self.units = len(event["units"])
        if event.get("event") == "calibrated":
            self.state = "catching up"
        elif event.get("event") == "live":
            self.state, self.behind_s = "live", 0.0

    def count_answered(self, num_messages: int, behind_s: float, num_spikes: int) -> None:
        """Count an answer that has just been sent."""
        now = time.monotonic()
        self.behind_s = behind_s
        self.spikes += num_spikes
        while self.num_answered < num_messages and self.arrivals:
            arrived = self.arrivals.popleft()
            self.num_answered += 1
            if self.state == "live":
                self.latencies_s.append(now - arrived)

    def kill(self) -> None:
        """End its process, and what that has started, at once."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Streams:
    """The online sessions of a server.

    Parameters
    ----------
    folder : Path
        Where sessions keep what waits, in the data folder; emptied now, for what is there is of sessions that
        were cut off.
    limit : int
        Sessions at once.
    device : str
        On which calibrations sort: 'auto', 'cpu' or 'cuda[:N]'.
    """

    def __init__(self, folder: Path, limit: int, device: str) -> None:
        self._folder, self._limit, self._device = folder, limit, device
        self._sessions: dict[str, _Session] = {}
        self._num_opening = 0
        shutil.rmtree(folder, ignore_errors=True)

    def describe(self) -> dict[str, Any]:
        """The limit, and each session."""
        sessions = list(self._sessions.values())
        return {"limit": self._limit, "streams": [session.describe() for session in sessions]}

    def close(self) -> None:
        """End all sessions."""
        for session in list(self._sessions.values()):
            session.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def serve(self, socket: WebSocket) -> None:
        """Serve a client from its first message to the end."""
        await socket.accept()
        if len(self._sessions) + self._num_opening >= self._limit:
            text = f"{self._limit} sessions are open already, which is the limit. Try again later."
            await _refuse(socket, TRY_LATER, text)
            return
        self._num_opening += 1
        try:
            hello = await asyncio.wait_for(_receive_hello(socket), HELLO_WAIT_S)
            session = await self._open(*hello)
        except HelloError as error:
            await _refuse(socket, BAD_HELLO, str(error))
            return
        except TimeoutError:
            await _refuse(socket, BAD_HELLO, f"No first message came within {HELLO_WAIT_S:g} s.")
            return
        except WebSocketDisconnect:
            return
        finally:
            self._num_opening -= 1
        try:
            await _relay(socket, session)
        finally:
            await self._end(session)

    async def _open(self, hello: Hello, text: str) -> _Session:
        """Start a session's process and give it the first message."""
        name = secrets.token_hex(6)
        folder = self._folder / name
        folder.mkdir(parents=True)
        inherited = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service.stream_process", str(folder), self._device),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={
                **environ_without_secrets(),
                "ACCM_DATA": str(self._folder.absolute().parent),
                "PYTHONPATH": os.pathsep.join([str(PACKAGE_FOLDER), *inherited]),
            },
        )
        session = _Session(name, hello, folder, process, datetime.now(UTC).isoformat(timespec="seconds"))
        self._sessions[name] = session
        process.stdin.write(pack_frame(TEXT, text.encode()))  # type: ignore[union-attr]
        return session

    async def _end(self, session: _Session) -> None:
        """Wait for a session's process to end, and clear up after it."""
        with suppress(OSError):
            session.process.stdin.close()  # type: ignore[union-attr]
        try:
            await asyncio.wait_for(session.process.wait(), GRACE_S)
        except TimeoutError:
            session.kill()
            await session.process.wait()
        finally:
            session.kill()
            self._sessions.pop(session.name, None)
            await asyncio.to_thread(shutil.rmtree, session.folder, ignore_errors=True)


async def _receive_hello(socket: WebSocket) -> tuple[Hello, str]:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    text = message.get("text")
    if text is None:
        raise HelloError('The first message is binary. Send {"protocol": 1, ...} as text.')
    return read_hello(text), text


async def _relay(socket: WebSocket, session: _Session) -> None:
    """Pass messages on in both directions until one side ends."""
    begun = asyncio.Event()
    inward = asyncio.create_task(_pass_in(socket, session, begun))
    outward = asyncio.create_task(_pass_out(socket, session, begun))
    try:
        await asyncio.wait([inward, outward], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (inward, outward):
            task.cancel()
        results = await asyncio.gather(inward, outward, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect | ConnectionError):
            raise result


async def _pass_in(socket: WebSocket, session: _Session, begun: asyncio.Event) -> None:
    """From the client to the session's process, no faster than that takes it, until the client is gone."""
    await begun.wait()
    pipe = session.process.stdin
    while pipe is not None:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        content = message.get("bytes")
        if content is None:
            pipe.write(pack_frame(TEXT, message["text"].encode()))
        else:
            session.arrivals.append(time.monotonic())
            if len(content) >= HEADER.size:
                session.samples += HEADER.unpack_from(content)[1]
            pipe.write(FRAME.pack(DATA, len(content)))
            pipe.write(content)
        try:
            await pipe.drain()
        except ConnectionError:  # the process has ended; what it said last is on its way to the client
            await asyncio.Event().wait()


async def _pass_out(socket: WebSocket, session: _Session, begun: asyncio.Event) -> None:
    """From the session's process to the client; closes the socket when the session ends."""
    text = ""
    while (frame := await _read_frame(session)) is not None:
        kind, content = frame
        if kind == DATA:
            num_messages, behind_s = NOTE.unpack_from(content)
            answer = content[NOTE.size :]
            await socket.send_bytes(answer)
            session.count_answered(num_messages, behind_s, REPLY.unpack_from(answer)[1])
        elif kind == TEXT:
            session.take_event(content)
            await socket.send_text(content.decode())
            begun.set()
        elif kind == ERROR:
            text = content.decode()
        elif kind == CLOSE:
            await _say_goodbye(socket, CODE.unpack(content)[0], text, has_begun=begun.is_set())
            return
    code = await session.process.wait()
    logger.error("the process of stream %s ended by itself (%d)", session.name, code)
    text = f"The session's process ended by itself ({code}). The server's log may tell why."
    await _say_goodbye(socket, FAILED, text, has_begun=begun.is_set())


async def _read_frame(session: _Session) -> tuple[bytes, bytes] | None:
    """What the session's process says next; None when it has ended."""
    pipe = session.process.stdout
    if pipe is None:
        return None
    try:
        kind, length = FRAME.unpack(await pipe.readexactly(FRAME.size))
        return kind, await pipe.readexactly(length)
    except asyncio.IncompleteReadError:
        return None


async def _refuse(socket: WebSocket, code: int, text: str) -> None:
    await _say_goodbye(socket, code, text, has_begun=False)


async def _say_goodbye(socket: WebSocket, code: int, text: str, *, has_begun: bool) -> None:
    """Say why the session ends, if not at its end, and close the socket."""
    if text:
        await socket.send_json({"event": "error", "error": text} if has_begun else {"error": text})
    await socket.close(code, text.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))


async def get_streams(request: Request) -> Response:
    """The online sessions."""
    return JSONResponse(request.app.state.server.streams.describe())


async def stream(socket: WebSocket) -> None:
    """Sort online."""
    streams: Streams = socket.app.state.server.streams
    await streams.serve(socket)


routes: list[BaseRoute] = [
    Route("/streams", get_streams, methods=["GET"]),
    WebSocketRoute("/stream", stream),
]
