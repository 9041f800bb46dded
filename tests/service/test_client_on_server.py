"""The client and ``accm client`` against the real server."""

import json

import h5py
import numpy as np
import pytest
from server_process import KEY
from typer.testing import CliRunner

from accm_core.cli import app
from accm_core.client import Client, ServiceError

QUICK = {"learn": {"num_steps": 25}}


@pytest.fixture
def lab(real_server):
    with Client(real_server.address, api_key=KEY) as lab:
        yield lab


def test_client_sorts_and_fetches(lab, session_file, tmp_path):
    upload = lab.upload(session_file, "of-the-client.nwb")
    assert lab.upload(session_file, "of-the-client.nwb")["sha256"] == upload["sha256"]
    seen = []
    job = lab.wait(lab.sort(upload=upload["name"], params=QUICK)["id"], seen.append)
    assert job["state"] == "done", job["error"]
    assert "learn" in {one["stage"] for one in seen}
    lab.download(job["id"], tmp_path / "sorted.nwb")
    with h5py.File(tmp_path / "sorted.nwb") as file:
        assert len(file["units/id"]) == job["result"]["units"]
    assert lab.report(job["id"], tmp_path / "sorted.html").read_text().startswith("<!")
    assert lab.remove_upload(upload["name"])["complete"]


def test_command_sorts_on_the_server(real_server, session_file, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCM_API_KEY", KEY)
    out = tmp_path / "out.nwb"
    args = ["client", "sort", str(session_file), "-o", str(out), "--set", "learn.num_steps=25"]
    done = CliRunner().invoke(app, [*args, "--server", real_server.address, "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    with h5py.File(out) as file:
        assert len(file["units/id"]) == result["units"]
    assert out.with_suffix(".html").exists()


def test_models_and_arrays_go_through(lab, tmp_path):
    lab.download_model("pretrained", tmp_path / "copy.safetensors")
    assert lab.upload_model(tmp_path / "copy.safetensors")["name"] == "copy"
    snippets = np.random.default_rng(0).normal(size=(3, 60, 4))
    assert np.array_equal(lab.embed(snippets, "copy"), lab.embed(snippets))
    lab.remove_model("copy")
    with pytest.raises(ServiceError, match="no model 'copy'") as caught:
        lab.classify(snippets, "copy")
    assert caught.value.status == 404
