"""What must not harm the service: each input with its answer; nothing is left behind, and it goes on."""

import os
import re
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hostile_files import LIES, MODELS, REFUSED
from hostile_requests import (
    ALLOWED_NOT,
    KEYED,
    MAX_UPLOAD,
    NO_ADDRESSES,
    REDIRECTS,
    REQUESTS,
    ask,
    send,
)
from hostile_table import write_table
from server_process import RealServer, free_port, wait_for
from web_server import serving

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
ENDED = ("done", "failed", "cancelled")
ALWAYS = (".bentoml", ".dask", ".dispatcher.lock", "jobs.sqlite", "streams")
"""Of the data folder, what the server itself needs."""


@pytest.fixture(scope="module")
def web():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory, session_file, web):
    folder = tmp_path_factory.mktemp("hostile")
    root = folder / "root"
    (root / "folder").mkdir(parents=True)
    shutil.copyfile(session_file, root / "session.nwb")
    shutil.copyfile(session_file, folder / "secret.nwb")
    (root / "link.nwb").symlink_to(folder / "secret.nwb")
    (root / "dangling.nwb").symlink_to("/nothing/there.nwb")
    (root / "circle.nwb").symlink_to(root / "circle.nwb")
    os.mkfifo(root / "pipe.nwb")
    server = RealServer(
        folder,
        free_port(),
        {
            "ACCM_INPUT_ROOTS": str(root),
            "ACCM_URL_HOSTS": f"127.0.0.1:{web.server_port}",
            "ACCM_MAX_UPLOAD": str(MAX_UPLOAD),
            "ACCM_JOBS_PER_DEVICE": "2",
        },
    )
    for place in ("uploads/link.nwb", "models/link.safetensors"):
        (server.data / place).parent.mkdir(parents=True, exist_ok=True)
        (server.data / place).symlink_to(folder / "secret.nwb")
    server.start()
    yield server
    server.kill(signal.SIGTERM)


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_left(server, client):
    """After each test, the data folder is as it was, and the server answers as before."""
    before = list_files(server.data)
    yield
    deadline = time.monotonic() + 10
    while (left := list_files(server.data) - before) and time.monotonic() < deadline:
        time.sleep(0.05)  # a connection that broke is noticed a moment later
    assert not left
    assert client.get("/readyz").status_code == 200
    assert client.get("/models").status_code == 200
    failures = set(
        re.findall(r"^(?:[\w.]*\.)?(\w+(?:Error|Exception|Disconnect))\b", server.log(), re.MULTILINE)
    )
    assert failures <= {"ValidationError", "ClientDisconnect"}, failures


def list_files(data: Path) -> set[str]:
    found = (Path(folder, name) for folder, _, names in os.walk(data) for name in names)
    paths = {str(path.relative_to(data)) for path in found}
    return {path for path in paths if not path.startswith(ALWAYS)}


@pytest.mark.parametrize(
    "request_",
    [pytest.param(row, id=f"{group}: {row.what}") for group, rows in REQUESTS.items() for row in rows],
)
def test_requests(server, client, request_):
    assert send(server.port, request_) == request_.status
    if request_.leaves:
        kept = wait_until(lambda: client.delete(f"/uploads/{request_.leaves}"), 200).json()
        assert kept["complete"] is False


def wait_until(ask_again, status):
    deadline = time.monotonic() + 10
    while (answer := ask_again()).status_code != status and time.monotonic() < deadline:
        time.sleep(0.05)
    assert answer.status_code == status, answer.text
    return answer


@pytest.mark.parametrize("what", MODELS)
def test_models(client, what):
    answer = client.put("/models/foreign", content=MODELS[what]())
    assert answer.status_code == 400, answer.text
    assert "What was sent is no model" in answer.json()["error"] or "format 99" in answer.json()["error"]
    assert client.get("/models/foreign").status_code == 404


@pytest.mark.parametrize("what", REFUSED)
def test_files(client, session_file, tmp_path, what):
    path = tmp_path / "hostile.nwb"
    REFUSED[what](path, session_file)
    assert client.put("/uploads/hostile.nwb", content=path.read_bytes()).status_code == 201
    answer = client.post("/sort", json={"input": {"upload": "hostile.nwb"}})
    assert answer.status_code == 400, answer.text
    labels = {"input": {"path": "session.nwb"}, "labels": {"upload": "hostile.nwb"}, "name": "n"}
    assert client.delete("/uploads/hostile.nwb").status_code == 200
    assert client.post("/finetune", json=labels).status_code == 404


@pytest.mark.slow
def test_sessions_that_lie(client, session_file, tmp_path):
    ids = {}
    for number, (what, make) in enumerate(LIES.items()):
        make(tmp_path / "lie.nwb", session_file)
        name = f"lie{number}.nwb"
        client.put(f"/uploads/{name}", content=(tmp_path / "lie.nwb").read_bytes()).raise_for_status()
        ids[what] = client.post("/sort", json={"input": {"upload": name}}).json()["id"]
    jobs = {what: wait_for(client, job_id, *ENDED) for what, job_id in ids.items()}
    for number in range(len(LIES)):
        client.delete(f"/uploads/lie{number}.nwb").raise_for_status()
    told = {what: job["error"] or job["state"] for what, job in jobs.items()}
    assert {job["state"] for job in jobs.values()} == {"failed"}, told
    assert not [text for text in told.values() if "Unexpected" in text], told


@pytest.mark.slow
def test_addresses_that_lead_elsewhere(client, web, session_file):
    with serving() as other:
        other.files["secret.nwb"] = session_file.read_bytes()
        asked = []
        other.answer = lambda handler: asked.append(handler.path)
        ports = {"OTHER": str(other.server_port), "PORT": str(web.server_port)}
        redirects = {
            str(number): target.replace("OTHER", ports["OTHER"]).replace("PORT", ports["PORT"])
            for number, target in enumerate(REDIRECTS)
        }

        def redirect(handler):
            target = redirects.get(handler.path.strip("/"))
            if target is not None:
                handler.reply(302, headers={"Location": target})
            return target is not None

        web.answer = redirect
        jobs = [
            client.post("/sort", json={"input": {"url": web.address(name)}}).json()["id"]
            for name in redirects
        ]
        ended = [wait_for(client, job_id, *ENDED) for job_id in jobs]
        assert {job["state"] for job in ended} == {"failed"}, ended
        assert all("Unexpected" not in job["error"] for job in ended), [job["error"] for job in ended]
        assert asked == []


@pytest.mark.parametrize("url", ALLOWED_NOT)
def test_addresses_that_are_not_allowed(client, web, url):
    address = url.replace("PORT", str(web.server_port))
    assert client.post("/sort", json={"input": {"url": address}}).status_code == 403


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_addresses_that_are_none(client, web, url):
    address = url.replace("PORT", str(web.server_port))
    assert client.post("/sort", json={"input": {"url": address}}).status_code == 400


def test_slow_clients_do_not_keep_others_waiting(server, client):
    """Headers, bodies and answers, all of them a byte at a time or never."""
    starts = [
        b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
        ask("POST", "/sort", "Content-Length: 1000"),
        ask("PUT", "/uploads/slow.nwb", "Content-Length: 1000"),
        ask("PUT", "/models/slow", "Content-Length: 1000"),
        ask("POST", "/embed", "Content-Length: 1000"),
        b"",
        b"\x16",
    ]
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50 * len(starts))]
    try:
        for number, connection in enumerate(connections):
            connection.sendall(starts[number % len(starts)])
        for _ in range(3):
            for connection in connections[: len(starts) * 10]:
                with suppress(ConnectionError):  # what can only be wrong was refused
                    connection.sendall(b"a")
            assert client.get("/jobs", timeout=10).status_code == 200
            assert client.post("/sort", json={}, timeout=10).status_code == 400
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: client.delete("/uploads/slow.nwb"), 200)


def test_figures_do_not_grow_with_what_is_asked(server, client):
    with server.client(key=None) as stranger:
        for number in range(3):
            assert stranger.get(f"/made-up-{number}").status_code == 401
            assert client.get(f"/jobs/made-up-{number}").status_code == 404
            client.request(f"BREW{number}", "/jobs")
    text = client.get("/metrics").text
    assert "made-up" not in text
    assert "BREW" not in text
    for told in (
        'method="GET",route="other",status="401"',
        'method="GET",route="/jobs/{id}",status="404"',
        'method="other",route="/jobs",status="405"',
    ):
        assert f"accm_requests_total{{{told}}}" in text


def test_requests_beside_each_other_in_one_connection(server):
    """What follows a refused body is not taken for another request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        contradicted = ask("POST", "/sort", "Content-Length: 4", "Transfer-Encoding: chunked")
        connection.sendall(contradicted + b"0\r\n\r\n" + ask("DELETE", "/models/mouse", key=KEYED))
        answers = b""
        with suppress(ConnectionResetError):  # closed before it has read what follows
            while part := connection.recv(65536):
                answers += part
    assert [line.split()[1] for line in re.findall(rb"HTTP/1\.1 [^\r]*", answers)] == [b"400"]


def test_page_shows_the_table():
    assert write_table() in PAGE.read_text(), "python tests/service/hostile_table.py prints it"
