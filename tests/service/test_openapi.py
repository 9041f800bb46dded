"""What the OpenAPI says holds: any request is answered as it says, and never by a failure of the server."""

import fcntl
import os
import re
import signal

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from server_process import KEY, RealServer, free_port

from service.jobs import JobStore
from service.schemas import Job

NUM_EXAMPLES = int(os.environ.get("ACCM_TEST_EXAMPLES", "12"))
"""Of each route and method."""
HEADERS = {"Authorization": f"Bearer {KEY}"}
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.ignored_auth,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose jobs wait for ever: another one, this test, holds the lock of those who run them."""
    folder = tmp_path_factory.mktemp("openapi")
    (folder / "data").mkdir()
    with (folder / "data" / ".dispatcher.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = RealServer(folder, free_port(), {"ACCM_MAX_QUEUE": "5", "ACCM_MAX_UPLOAD": "1000000"})
        server.start()
        with server.client() as client:
            client.put("/uploads/whole.nwb", content=b"whole").raise_for_status()
            part = {"Content-Range": "bytes 0-3/100"}
            client.put("/uploads/part.nwb", content=b"part", headers=part).raise_for_status()
            exported = client.get("/models/pretrained/file").content
            client.put("/models/mouse", content=exported).raise_for_status()
        yield server
        server.kill(signal.SIGTERM)


@pytest.fixture(scope="module")
def known(server) -> dict[str, list[str]]:
    """Names of what is there, by the beginning of the path."""
    store = JobStore(server.data / "jobs.sqlite")
    jobs = [add_job(store, server, has_ended=has_ended) for has_ended in (True, False)]
    store.close()
    return {
        "/jobs/": [job.id for job in jobs],
        "/uploads/": ["whole.nwb", "part.nwb"],
        "/models/": ["pretrained", "mouse"],
        "/page/": ["index.html", "nothing.js"],
    }


def add_job(store: JobStore, server: RealServer, *, has_ended: bool) -> Job:
    request = {"input": {"upload": "whole.nwb"}}
    job = store.add("sort", request, input_name="whole.nwb", max_queue=5)
    if has_ended:
        assert store.claim() == store.get(job.id)
        folder = server.data / "jobs" / job.id
        folder.mkdir()
        (folder / "session_sorted.nwb").write_bytes(b"sorted")
        (folder / "report.html").write_text("<p>report</p>")
        store.finish(job.id, "done", result={"units": 3})
    return job


@pytest.fixture(scope="module")
def openapi(server):
    schema = schemathesis.openapi.from_url(f"{server.address}/docs.json", headers=HEADERS)
    schema.validate()
    return schema


def test_any_request_is_answered_as_documented(openapi, known, subtests):
    calls = 0
    for operation in (found.ok() for found in openapi.get_all_operations()):

        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=NUM_EXAMPLES < 100,  # a longer run looks for what is new
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy())
        def call(case):
            nonlocal calls
            calls += 1
            names = next((names for start, names in known.items() if case.path.startswith(start)), [])
            if names and calls % 3:  # two of three times what is there
                name = names[0] if case.path.endswith("/events") else names[calls % 3 - 1]  # they end there
                case.path_parameters[next(iter(case.path_parameters))] = name
            case.call_and_validate(headers=HEADERS, checks=CHECKS, timeout=30)

        with subtests.test(operation.label):
            call()
    assert calls >= NUM_EXAMPLES * 10


def test_server_has_nothing_to_complain_about(server):
    with server.client() as client:
        assert client.get("/readyz").status_code == 200
    failures = set(re.findall(r"^([\w.]*(?:Error|Exception|BadInput)\w*)\b.*$", server.log(), re.MULTILINE))
    assert failures <= {"pydantic_core._pydantic_core.ValidationError"}, failures
