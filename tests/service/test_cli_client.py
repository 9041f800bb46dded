"""``accm client`` against the stand-in: what it sends, fetches and says, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from accm_core.cli import app
from tests.service.fake_server import serving

runner = CliRunner()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "uploads").mkdir()
    with serving(tmp_path / "uploads") as server:
        monkeypatch.setenv("ACCM_SERVER", server.address)
        monkeypatch.delenv("ACCM_API_KEY", raising=False)
        yield server


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "day 1.nwb"
    path.write_bytes(b"n" * 100_000)
    return path


def run(*args):
    return runner.invoke(app, ["client", *(str(arg) for arg in args)])


def test_sort_uploads_follows_and_fetches(fake, session, tmp_path):
    done = run("sort", session, "--set", "detect.threshold=6", "--seed", 3, "--model", "mine")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "day 1_sorted.nwb").read_bytes() == fake.files["result"]
    assert (tmp_path / "day 1_sorted.html").read_bytes() == fake.files["report"]
    (request,) = fake.requests
    assert request["input"] == {"upload": "day_1.nwb"}
    assert (request["params"], request["seed"], request["model"]) == (
        {"detect": {"threshold": 6.0}},
        3,
        "mine",
    )
    assert (fake.folder / "day_1.nwb").read_bytes() == session.read_bytes()
    assert "units        2 (1 good, 1 mua)" in done.stdout
    for text in ("upload", "job job0 is queued", "sort: match", "download", "warning: short"):
        assert text in done.stderr


def test_json_is_one_object_on_standard_output(fake, session, tmp_path):
    done = run("sort", session, "-o", tmp_path / "o.nwb", "--no-report", "--json", "-q")
    result = json.loads(done.stdout)
    assert (result["units"], result["output"], result["report"]) == (2, str(tmp_path / "o.nwb"), None)
    assert done.stderr == ""
    assert not (tmp_path / "o.html").exists()


def test_what_could_not_be_written_is_refused_before_the_upload(fake, session, tmp_path):
    (tmp_path / "o.nwb").touch()
    done = run("sort", session, "-o", tmp_path / "o.nwb")
    assert (done.exit_code, fake.received) == (2, [])
    assert "o.nwb exists. Choose another with --output, or replace it with --overwrite." in done.stderr
    assert run("sort", session, "-o", tmp_path / "none" / "o.nwb").exit_code == 2
    assert run("sort", session, "-o", tmp_path / "o.nwb", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("args", "where"),
    [
        (["https://host/a/b.nwb?x=1"], {"url": "https://host/a/b.nwb?x=1"}),
        (["--on-server", "/data/b.nwb"], {"path": "/data/b.nwb"}),
    ],
)
def test_what_the_service_reads_itself_is_not_uploaded(fake, args, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("sort", *args).exit_code == 0
    assert (fake.requests[0]["input"], fake.received) == (where, [])
    assert (tmp_path / "b_sorted.nwb").exists()


def test_submit_now_and_fetch_later(fake, session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    submitted = json.loads(run("sort", session, "--no-wait", "--json").stdout)
    followed = run("job", submitted["id"], "--follow")
    assert "state        done" in followed.stdout
    assert "log          started" in followed.stdout
    assert json.loads(run("jobs", "--json", "--state", "done").stdout)["jobs"][0]["id"] == submitted["id"]
    assert submitted["id"] in run("jobs").stdout
    assert run("download", submitted["id"]).exit_code == 0
    assert (tmp_path / "day_1_sorted.nwb").read_bytes() == fake.files["result"]
    assert run("download", submitted["id"]).exit_code == 2
    assert run("cancel", submitted["id"]).exit_code == 2  # it is done


def test_finetune_brings_session_and_labels(fake, session, tmp_path):
    (tmp_path / "units.nwb").write_bytes(b"u")
    done = run("finetune", session, "--labels", tmp_path / "units.nwb", "--name", "mine")
    assert done.exit_code == 0, done.output
    assert fake.requests[0]["labels"] == {"upload": "units.nwb"}
    assert (fake.requests[0]["input"], fake.requests[0]["name"]) == ({"upload": "day_1.nwb"}, "mine")
    assert "name         mine" in done.stdout


def test_failed_job_fails(fake, session):
    fake.fails = "The file is truncated."
    done = run("sort", session, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"error": "Job job0 failed: The file is truncated.", "exit_code": 1}


@pytest.mark.parametrize(
    ("args", "exit_code", "text"),
    [
        (["job", "x"], 2, "No job 'x'."),
        (["sort", "nothing.nwb"], 2, "nothing.nwb does not exist"),
        (["sort", "x.nwb", "--set", "detect.x=1"], 2, "Unknown parameter 'detect.x'"),
        (["jobs", "--server", "gpu-node"], 2, "'gpu-node' is no address"),
        (["jobs", "--server", "http://127.0.0.1:9"], 1, "Cannot reach the service at http://127.0.0.1:9"),
        (["jobs", "--key-file", "nothing"], 2, "Cannot read the key from nothing"),
        (["jobs", "--state", "odd"], 2, "odd"),
    ],
)
def test_errors_and_exit_codes(fake, args, exit_code, text):
    done = run(*args)
    assert done.exit_code == exit_code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_key_comes_from_a_file_or_the_environment(fake, tmp_path, monkeypatch):
    fake.key = "secret"
    refused = run("models")
    assert (refused.exit_code, "key" in refused.stderr) == (2, True)
    (tmp_path / "key").write_text("secret\n")
    assert "pretrained" in run("models", "--key-file", tmp_path / "key").stdout
    monkeypatch.setenv("ACCM_API_KEY", "secret")
    assert "device       cpu" in run("server").stdout


INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
from accm_core.cli import main
main()
"""


def test_ctrl_c_leaves_the_job_and_says_so(fake, session):
    fake.go_on.clear()
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "client", "sort", str(session)],
        env={**os.environ, "ACCM_SERVER": fake.address},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not any(job["state"] == "running" for job in fake.jobs.values()):
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "job job0 goes on. Follow it with accm client job job0 --follow" in errors
    assert fake.jobs["job0"]["state"] == "running"
