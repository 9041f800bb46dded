"""The BentoML service: its class called directly, and its application in one process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

# in a process of its own: BentoML sets up logging and metrics for the whole of it
DIRECTLY = """
import asyncio, json
from service import SpikeSorter
from service.schemas import InputRef, SortRequest

sorter = SpikeSorter()
job = asyncio.run(sorter.sort(SortRequest(input=InputRef(upload="a.nwb"), seed=3)))
print(json.dumps(job.model_dump() if hasattr(job, "model_dump") else json.loads(job.body)))
sorter.close()
"""
IN_PROCESS = """
import io, json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from starlette.testclient import TestClient
from service import SpikeSorter

body = io.BytesIO()
np.save(body, np.load(sys.argv[1]))
npy = body.getvalue()
with TestClient(SpikeSorter.to_asgi(), base_url="http://localhost", client=("127.0.0.1", 5)) as client:
    embedded = client.post("/embed", content=npy)
    answers = {
        "sort": client.post("/sort", json={"input": {"upload": "nothing.nwb"}}).status_code,
        "classify": client.post("/classify", params={"model": "pretrained"}, content=npy).status_code,
        "classify without a model": client.post("/classify", content=npy).status_code,
        "bad body": client.post("/embed", content=b"http://127.0.0.1/livez").status_code,
        "page": client.get("/").status_code,
        "foreign host": client.get("/jobs", headers={"Host": "elsewhere.org"}).status_code,
        "embed": embedded.status_code,
    }
    np.save(sys.argv[2], np.load(io.BytesIO(embedded.content)))
print(json.dumps(answers))
"""
TIMED = """
import asyncio, json, warnings
warnings.simplefilter("ignore")
from bentoml._internal.server.http.traffic import TimeoutMiddleware
import service.sorter  # which takes the place of BentoML's timeout

async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})

async def ask():
    sent = []
    async def send(message):
        sent.append(message)
    await TimeoutMiddleware(answer, timeout=3600.0)({"type": "http"}, None, send)
    return len(sent), len(asyncio.get_running_loop()._scheduled)

print(json.dumps(asyncio.run(ask())))
"""


@pytest.fixture
def run(tmp_path):
    def run_code(code, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("ACCM_")},
                "ACCM_DATA": str(tmp_path / "data"),
                "ACCM_DEVICE": "cpu",
                "BENTOML_DO_NOT_TRACK": "True",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run_code


def test_class_refuses_and_takes_jobs(run, tmp_path, session_file):
    refused = run(DIRECTLY)
    assert "a.nwb" in refused["error"]
    (tmp_path / "data" / "uploads" / "a.nwb").write_bytes(session_file.read_bytes())
    job = run(DIRECTLY)
    assert (job["state"], job["input"], job["kind"]) == ("queued", "a.nwb", "sort")


def test_application_in_process(run, tmp_path):
    snippets, embedded = tmp_path / "snippets.npy", tmp_path / "embedded.npy"
    np.save(snippets, np.random.default_rng(0).normal(size=(30, 60, 4)).astype(np.float32))
    answers = run(IN_PROCESS, snippets, embedded)
    assert answers == {
        "sort": 404,
        "classify": 400,
        "classify without a model": 400,
        "bad body": 400,
        "page": 200,
        "foreign host": 403,
        "embed": 200,
    }

    import torch

    from accm_core import load_model
    from accm_core.learning.encoder import embed_snippets

    model = load_model("pretrained")
    padded = np.pad(np.load(snippets), ((0, 0), (0, 0), (0, model.encoder.config.num_channels - 4)))
    expected = embed_snippets(model.encoder, padded, torch.device("cpu"))
    np.testing.assert_allclose(np.load(embedded), expected, atol=1e-4)


def test_nothing_is_kept_of_a_request_that_was_answered(run):
    assert run(TIMED) == [1, 0]
