"""deploy/check_service.py: passes a sound service, and finds what is wrong with another."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from server_process import KEY

COMMAND = Path(__file__).parents[2] / "deploy" / "check_service.py"
JOB = {"id": "a", "state": "done", "stage": "report", "error": None, "result": {"units": 3}}


def check(address: str, session: Path, result: Path, key: str = KEY) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, COMMAND, address, session, result, "--ready-within", "1"],
        env={"ACCM_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout, done.stderr


class Handler(BaseHTTPRequestHandler):
    """Answers each method and path as the server's `answers` say, to whoever has the key."""

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, body = self.server.answers[f"{self.command} {path}"]
        if path != "/readyz" and self.headers.get("Authorization") != f"Bearer {KEY}":
            status, body = self.server.without_key
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = answer  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "one.nwb"
    path.write_bytes(b"samples")
    return path


@pytest.fixture
def server():
    """A service that seems sound; a test makes it less so."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        server.without_key = (401, {"error": "no key"})
        server.answers = {
            "GET /readyz": (200, b""),
            "GET /jobs": (200, {"jobs": []}),
            "PUT /uploads/one.nwb": (201, {"bytes": 7}),
            "POST /sort": (200, {**JOB, "state": "queued"}),
            "GET /jobs/a": (200, JOB),
            "GET /jobs/a/result": (200, b"\x89HDF\r\n\x1a\nand so on"),
        }
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_real_service_is_sound(real_server, session_file, tmp_path):
    code, said, _ = check(real_server.address, session_file, tmp_path / "sorted.nwb")
    assert code == 0
    assert json.loads(said)["units"] > 0
    assert (tmp_path / "sorted.nwb").stat().st_size > session_file.stat().st_size / 2


def test_a_wrong_key_is_said(real_server, session_file, tmp_path):
    code, _, said = check(real_server.address, session_file, tmp_path / "sorted.nwb", key="another")
    assert code == 1
    assert said.startswith("check_service: GET /jobs: 401 ")


def test_what_answers_as_it_should_passes(server, session, tmp_path):
    code, said, _ = check(server.address, session, tmp_path / "sorted.nwb")
    assert code == 0
    assert json.loads(said)["units"] == 3
    assert (tmp_path / "sorted.nwb").read_bytes().endswith(b"and so on")


@pytest.mark.parametrize(
    ("route", "answer", "words"),
    [
        ("GET /readyz", (503, {}), "Not ready within 1 s: GET /readyz: 503"),
        ("PUT /uploads/one.nwb", (201, {"bytes": 6}), "Uploaded 7 bytes, of which 6 arrived."),
        ("PUT /uploads/one.nwb", (507, {"error": "full"}), '507 {"error": "full"}'),
        ("GET /jobs/a", (200, {**JOB, "state": "failed", "error": "no peaks"}), "Job a is failed: no peaks"),
        ("GET /jobs/a", (200, {**JOB, "result": {"units": 0}}), "The sorted session has no units"),
        ("GET /jobs/a/result", (200, b"<html>"), "is not HDF5"),
    ],
)
def test_what_is_wrong_is_said(server, session, tmp_path, route, answer, words):
    server.answers[route] = answer
    code, _, said = check(server.address, session, tmp_path / "sorted.nwb")
    assert code == 1
    assert words in said


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, "GET /jobs was answered without a key; it should be 401."),
        (500, "Without a key it should be 401"),
    ],
)
def test_a_service_that_does_not_ask_for_the_key_is_not_sound(server, session, tmp_path, status, words):
    server.without_key = (status, {"jobs": []})
    code, _, said = check(server.address, session, tmp_path / "sorted.nwb")
    assert code == 1
    assert said.startswith(f"check_service: {words}")
