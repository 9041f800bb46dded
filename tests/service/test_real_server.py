"""The service as a lab runs it: ``accm serve``, and requests from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import httpx
import pytest
from server_process import free_port, wait_for

import accm_core

QUICK = {"learn": {"num_steps": 25}}
ENDED = ("done", "failed", "cancelled")


def submit(client: httpx.Client, session, **values) -> dict:
    request = {"input": {"path": str(session)}, "params": QUICK, **values}
    answer = client.post("/sort", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_session_is_uploaded_sorted_followed_and_downloaded(client, session_file, tmp_path):
    with session_file.open("rb") as file:
        assert client.put("/uploads/mine.nwb", content=file).status_code == 201
    answer = client.post("/sort", json={"input": {"upload": "mine.nwb"}, "params": QUICK, "seed": 3})
    job = answer.json()
    assert (job["state"], job["input"]) == ("queued", "mine.nwb")
    with client.stream("GET", f"/jobs/{job['id']}/events", timeout=120) as events:
        told = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    assert told[-1]["state"] == "done", told[-1]["error"]
    fractions = [news["fraction"] for news in told]
    assert fractions == sorted(fractions)
    assert "learn" in {news["stage"] for news in told}

    result = client.get(f"/jobs/{job['id']}/result")
    assert 'filename="mine_sorted.nwb"' in result.headers["content-disposition"]
    (tmp_path / "sorted.nwb").write_bytes(result.content)
    sorting = accm_core.read_sorting(tmp_path / "sorted.nwb")
    assert sorting.num_units == told[-1]["result"]["units"] > 0
    assert (sorting.provenance["seed"], sorting.provenance["params"]["learn"]["num_steps"]) == (3, 25)
    part = client.get(f"/jobs/{job['id']}/result", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, result.content[100:200])
    report = client.get(f"/jobs/{job['id']}/report")
    assert report.headers["content-type"].startswith("text/html")
    assert "sandbox" in report.headers["content-security-policy"]
    assert client.get(f"/jobs/{job['id']}").json()["log"]


def test_model_of_a_job_is_used_at_once(client, session_file, tmp_path):
    first = wait_for(client, submit(client, session_file)["id"], *ENDED)
    result = client.get(f"/jobs/{first['id']}/result").content
    client.put("/uploads/labels.nwb", content=result)
    request = {
        "input": {"path": str(session_file)},
        "labels": {"upload": "labels.nwb"},
        "name": "mouse7",
        "params": {**QUICK, "heads": {"num_steps": 20}},
    }
    made = client.post("/finetune", json=request).json()
    assert client.post("/finetune", json=request).status_code == 409  # of one name
    made = wait_for(client, made["id"], *ENDED)
    assert made["state"] == "done", made["error"]
    assert "mouse7" in [model["name"] for model in client.get("/models").json()["models"]]
    card = client.get("/models/mouse7").json()["card"]
    assert [unit["name"] for unit in card["units"]] == made["result"]["units"]
    again = wait_for(client, submit(client, session_file, model="mouse7")["id"], *ENDED)
    assert again["state"] == "done", again["error"]

    exported = client.get("/models/mouse7/file").content
    assert client.put("/models/copy", content=exported).status_code == 201
    assert client.put("/models/copy", content=exported).status_code == 400  # taken
    assert client.get("/models/copy").json()["sha256"] == client.get("/models/mouse7").json()["sha256"]
    for name in ("copy", "mouse7"):
        assert client.delete(f"/models/{name}").status_code == 200
    assert client.get("/models/copy").status_code == 404


def test_encoder_is_pretrained_and_can_be_used(client, session_file):
    nothing = client.post("/pretrain", json={"name": "ours", "recordings": 0})
    assert (nothing.status_code, "Nothing to learn from" in nothing.json()["error"]) == (400, True)
    job = client.post("/pretrain", json={"name": "ours", "recordings": 1}).json()
    assert wait_for(client, job["id"], *ENDED)["state"] == "done"
    assert client.get("/models/ours").json()["card"]["training"]["simulated_recordings"] == 1
    assert client.get(f"/jobs/{job['id']}/result").content == client.get("/models/ours/file").content
    answer = client.post("/sort", json={"input": {"path": str(session_file)}, "model": "ours"})
    assert answer.json()["model"] == "ours"
    client.delete(f"/jobs/{answer.json()['id']}")
    assert client.delete("/models/ours").status_code == 200


def test_bad_session_fails_with_the_reason(client, real_server):
    client.put("/uploads/text.nwb", content=b"this is no NWB file")
    refused = client.post("/sort", json={"input": {"upload": "text.nwb"}})
    assert (refused.status_code, "text.nwb" in refused.json()["error"]) == (400, True)
    path = real_server.folder / "empty.nwb"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    client.put("/uploads/empty.nwb", content=path.read_bytes())
    job = wait_for(client, client.post("/sort", json={"input": {"upload": "empty.nwb"}}).json()["id"], *ENDED)
    assert job["state"] == "failed"
    assert "empty.nwb" in job["error"]
    assert client.get(f"/jobs/{job['id']}/result").status_code == 409
    assert not (real_server.data / "jobs" / job["id"]).exists()


def test_running_job_is_cancelled_and_its_process_is_gone(client, session_file, real_server):
    job = submit(client, session_file)
    waiting = submit(client, session_file)
    assert client.delete(f"/jobs/{waiting['id']}").json()["state"] == "cancelled"
    wait_for(client, job["id"], "running")
    assert client.delete(f"/jobs/{job['id']}").status_code in (200, 202)
    assert wait_for(client, job["id"], *ENDED)["state"] == "cancelled"
    assert not (real_server.data / "jobs" / job["id"]).exists()
    assert client.delete(f"/jobs/{job['id']}").json()["state"] == "cancelled"
    assert client.get(f"/jobs/{job['id']}/report").status_code == 409


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({"input": {"upload": "nothing.nwb"}}, 404, "nothing.nwb"),
        ({"input": {"path": "/etc/passwd"}}, 403, "ACCM_INPUT_ROOTS"),
        ({"input": {"url": "http://127.0.0.1/x.nwb"}}, 403, "ACCM_URL_HOSTS"),
        ({"input": {"upload": "a", "path": "b"}}, 400, "validation"),
        ({"input": {"path": "session.nwb"}, "model": "nothing"}, 400, "nothing"),
        ({"input": {"path": "session.nwb"}, "model": "a_file.safetensors"}, 400, "validation"),
        ({"input": {"path": "session.nwb"}, "params": {"detect": {"threshold": -1}}}, 400, "validation"),
        ({"input": {"path": "session.nwb"}, "parms": {}}, 400, "validation"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(client, values, status, words):
    answer = client.post("/sort", json=values)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


def test_nothing_without_the_key(real_server):
    with real_server.client(key=None) as client:
        answers = {
            path: client.get(path).status_code
            for path in ("/server", "/jobs", "/models", "/uploads", "/docs.json", "/metrics", "/schema.json")
        }
        assert set(answers.values()) == {401}, answers
        assert client.post("/sort", json={}).status_code == 401
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200


def test_documents_and_metrics_tell_of_all_routes(client):
    docs = client.get("/docs.json").json()
    for path in (
        "/sort",
        "/finetune",
        "/pretrain",
        "/embed",
        "/classify",
        "/uploads/{name}",
        "/jobs/{id}/events",
    ):
        assert path in docs["paths"]
    assert "threshold" in json.dumps(docs["components"]["schemas"])
    assert 'accm_jobs{state="queued"}' in client.get("/metrics").text
    known = client.get("/server").json()
    assert (known["version"], known["input_roots"], known["gpus"]) == (
        accm_core.__version__,
        True,
        known["gpus"],
    )


def test_what_is_killed_goes_on_where_it_was(own_server, session_file):
    with own_server.client() as client:
        ids = [submit(client, session_file, seed=seed)["id"] for seed in range(2)]
        wait_for(client, ids[0], "running")
        os.killpg(find_job_process(own_server), signal.SIGKILL)
        job = wait_for(client, ids[0], *ENDED)
        assert (job["state"], job["attempts"]) == ("done", 2)
        assert any("SIGKILL" in line for line in job["log"])
        wait_for(client, ids[1], "running")
    own_server.kill(signal.SIGKILL)
    own_server.start()
    with own_server.client() as client:
        job = wait_for(client, ids[1], *ENDED)
        assert (job["state"], job["attempts"]) == ("done", 2), job["error"]
        assert [known["id"] for known in client.get("/jobs").json()["jobs"]] == ids[::-1]
    for job_id in ids:
        folder = own_server.data / "jobs" / job_id
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert files == ["2/report.html", "2/session_sorted.nwb"]


def find_job_process(server) -> int:
    """The process of the job that runs, once it is there; it leads a group of its own.

    A job is running as soon as it is given to a worker, which then starts the process.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes()
            except OSError:  # it has just ended
                continue
            if b"service.work" in arguments and str(server.data).encode() in environment:
                return int(folder.name)
        time.sleep(0.05)
    raise AssertionError("no job's process is there")


def test_setup_is_checked_before_the_start(tmp_path):
    def serve(*options, **environment):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "accm_core.cli",
                "serve",
                "--check",
                "--data",
                str(tmp_path / "data"),
                *options,
            ],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    port = str(free_port())
    fine = serve("--port", port)
    assert (fine.returncode, "pretrained loads" in fine.stderr) == (0, True), fine.stderr
    open_wide = serve("--host", "0.0.0.0", "--port", port, ACCM_INPUT_ROOTS="/nothing/here", ACCM_API_KEY="")
    assert open_wide.returncode == 2
    assert "ACCM_API_KEY" in open_wide.stderr
    assert "/nothing/here" in open_wide.stderr
    bad = serve("--port", port, ACCM_MAX_UPLOAD="plenty")
    assert (bad.returncode, "ACCM_MAX_UPLOAD" in bad.stderr) == (2, True)
