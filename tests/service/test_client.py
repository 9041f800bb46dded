"""The client against a server that breaks connections, refuses and comes back."""

import ast
import hashlib
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import accm_core.client as client_module
from accm_core.client import OVERLAP, RECORD, Client, ServiceError
from tests.service.fake_server import RESULT, serving

SOURCE = Path(client_module.__file__)
ALLOWED = {"numpy", "httpx", "websockets"}


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "uploads").mkdir()
    with serving(tmp_path / "uploads") as server:
        yield server


@pytest.fixture
def client(fake, monkeypatch):
    monkeypatch.delenv("ACCM_API_KEY", raising=False)
    monkeypatch.setattr(client_module, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(client_module, "POLL_PAUSE_S", 0.01)
    with Client(fake.address, retry_pauses_s=(0.01,) * 3) as client:
        yield client


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "my session.nwb"
    path.write_bytes(np.random.default_rng(0).bytes(250_000))
    return path


@pytest.fixture
def hasty(fake, client):
    """A client that tries nothing twice."""
    with Client(fake.address, retry_pauses_s=()) as client:
        yield client


def sorted_job(client):
    return client.wait(client.sort(upload="x")["id"])


# ---- on its own ----


def test_runs_on_python_310_with_three_packages():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 10))
    nodes = list(ast.walk(tree))
    names = {a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == ALLOWED
    assert "tomllib" not in names


def test_copied_into_another_program(tmp_path):
    (tmp_path / "accm_client.py").write_text(SOURCE.read_text())
    code = "import sys, accm_client; accm_client.Client(); print('accm_core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


# ---- uploads ----


def test_upload_arrives_and_is_checked(fake, client, session):
    seen = []
    upload = client.upload(session, on_progress=lambda done, total: seen.append((done, total)))
    assert upload["name"] == "my_session.nwb"
    assert (fake.folder / "my_session.nwb").read_bytes() == session.read_bytes()
    assert upload["sha256"] == hashlib.sha256(session.read_bytes()).hexdigest()
    assert fake.received == [("bytes 0-249999/250000", 250_000)]
    assert seen == sorted(seen)
    assert seen[-1] == (250_000, 250_000)
    assert [one["name"] for one in client.uploads()] == ["my_session.nwb"]


def test_broken_upload_goes_on_where_it_broke(fake, client, session):
    fake.cuts["upload"] = [30_000, 110_000, 20_000]
    client.upload(session, "s.nwb")
    assert (fake.folder / "s.nwb").read_bytes() == session.read_bytes()
    assert sum(count for _, count in fake.received) == 250_000  # nothing twice
    assert len(fake.received) == 4


def test_upload_goes_on_in_another_program(fake, client, hasty, session):
    fake.cuts["upload"] = [120_000]
    with pytest.raises(ServiceError, match="Cannot reach the service"):
        hasty.upload(session, "s.nwb")
    client.upload(session, "s.nwb")
    assert (fake.folder / "s.nwb").read_bytes() == session.read_bytes()
    assert sum(count for _, count in fake.received) == 250_000


def test_same_content_is_not_sent_again(fake, client, session):
    first = client.upload(session)
    again = client.upload(session)
    assert again["sha256"] == first["sha256"]
    assert len(fake.received) == 1


def test_other_content_is_refused_unless_overwritten(fake, client, session, tmp_path):
    other = tmp_path / "other.nwb"
    other.write_bytes(b"b" * 130_000)
    client.upload(session, "s.nwb")
    with pytest.raises(ServiceError, match=r"'s\.nwb' already, of other content") as caught:
        client.upload(other, "s.nwb")
    assert caught.value.status == 409
    client.upload(other, "s.nwb", overwrite=True)
    assert (fake.folder / "s.nwb").read_bytes() == b"b" * 130_000


def test_beginning_of_another_file_is_not_gone_on_with(fake, client, hasty, session, tmp_path):
    fake.cuts["upload"] = [10_000]
    with pytest.raises(ServiceError):
        hasty.upload(session, "s.nwb")
    same_length = tmp_path / "other.nwb"
    same_length.write_bytes(b"b" * 250_000)
    with pytest.raises(ServiceError, match="began as another file"):
        client.upload(same_length, "s.nwb")
    assert client.uploads() == []
    fake.cuts["upload"] = [10_000]
    with pytest.raises(ServiceError):
        hasty.upload(session, "s.nwb")
    same_length.write_bytes(b"b" * 9)
    with pytest.raises(ServiceError, match="another length, unfinished"):
        client.upload(same_length, "s.nwb")


def test_lost_answer_is_asked_for(fake, client, session):
    fake.cuts["upload"] = [250_000]
    assert client.upload(session, "s.nwb")["bytes"] == 250_000
    assert len(fake.received) == 1


def test_conflict_with_the_broken_attempt_is_waited_for(fake, client, session):
    fake.cuts["upload"] = [10_000]
    fake.conflicts = 2
    client.upload(session, "s.nwb")
    assert (fake.folder / "s.nwb").read_bytes() == session.read_bytes()
    fake.conflicts = 1
    with pytest.raises(ServiceError, match="being written"):
        client.upload(session, "other.nwb")


def test_empty_file_is_uploaded(fake, client, tmp_path):
    (tmp_path / "empty").touch()
    assert client.upload(tmp_path / "empty")["bytes"] == 0


def test_file_that_changes_is_refused(client, session):
    def grow(done, total):
        with session.open("ab") as file:
            file.write(b"x")

    with pytest.raises(OSError, match="was changed while it was being sent"):
        client.upload(session, on_progress=grow)


def test_upload_keeps_memory_flat(fake, monkeypatch, tmp_path):
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(48 << 20)
    tracemalloc.start()
    try:
        with Client(fake.address) as client:
            client.upload(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (fake.folder / "large.bin").stat().st_size == 48 << 20
    assert peak < 8 << 20


# ---- jobs ----


def test_job_is_followed_to_its_end(client):
    seen = []
    job = client.wait(client.sort(upload="s.nwb", params={"detect": {"threshold": 6}})["id"], seen.append)
    assert (job["state"], job["result"]["units"]) == ("done", RESULT["units"])
    fractions = [one["fraction"] for one in seen]
    assert fractions == sorted(fractions)
    assert {"detect", "match"} <= {one["stage"] for one in seen}


def test_request_holds_what_was_said(fake, client):
    client.sort(path="/data/s.nwb", model="m", seed=3, units="replace")
    client.finetune("mine", {"units": {"a": np.array([0.5, 1.5])}}, url="http://host/s.nwb")
    client.pretrain("base", [{"upload": "s.nwb"}], recordings=4)
    sort, finetune, pretrain = fake.requests
    assert sort == {
        "input": {"path": "/data/s.nwb"}, "model": "m", "seed": 3, "units": "replace", "report": True,
    }  # fmt: skip
    assert finetune["labels"] == {"units": {"a": [0.5, 1.5]}}
    assert pretrain == {
        "inputs": [{"upload": "s.nwb"}],
        "name": "base",
        "recordings": 4,
        "seed": 0,
        "overwrite": False,
    }


def test_one_input_is_needed(client):
    with pytest.raises(ValueError, match="Give one of upload, path and url"):
        client.sort()
    with pytest.raises(ValueError, match="Give one of upload, path and url"):
        client.sort(upload="a", path="b")


@pytest.mark.parametrize("breaks", ["events break", "no events"])
def test_waiting_goes_on_without_events(fake, hasty, breaks):
    fake.cuts["events"] = [1, 1, 1, 1]
    fake.has_events = breaks == "events break"
    assert sorted_job(hasty)["state"] == "done"


def test_waiting_ends_in_time(fake, client):
    fake.go_on.clear()
    job = client.sort(upload="s.nwb")
    with pytest.raises(TimeoutError, match=r"still running after 0\.2 s; it goes on"):
        client.wait(job["id"], timeout=0.2)
    assert client.cancel(job["id"])["state"] == "cancelled"
    assert client.wait(job["id"])["state"] == "cancelled"


def test_failed_job_says_why(fake, client):
    fake.fails = "The file is truncated."
    job = sorted_job(client)
    assert (job["state"], job["error"]) == ("failed", "The file is truncated.")
    assert [one["id"] for one in client.jobs(state="failed")] == [job["id"]]
    assert client.job(job["id"])["log"] == ["started"]


# ---- downloads ----


def test_broken_download_goes_on_where_it_broke(fake, client, tmp_path):
    job = sorted_job(client)
    fake.cuts["result"] = [70_000, 80_000]
    client.download(job["id"], tmp_path / "out.nwb")
    assert (tmp_path / "out.nwb").read_bytes() == fake.files["result"]
    assert fake.asked_ranges == ["", "bytes=70000-", "bytes=150000-"]


def test_download_begins_again_when_the_content_is_another(fake, client, tmp_path):
    job = sorted_job(client)
    fake.cuts["result"] = [70_000]
    was = fake.files["result"]

    def change(done, total):
        fake.etag, fake.files["result"] = '"two"', was[::-1]

    client.download(job["id"], tmp_path / "out.nwb", on_progress=change)
    assert (tmp_path / "out.nwb").read_bytes() == was[::-1]


def test_download_is_whole_or_absent(fake, client, tmp_path):
    job = sorted_job(client)
    folder = tmp_path / "out"
    folder.mkdir()
    fake.cuts["result"] = [1000, 0, 0, 0, 0]
    with pytest.raises(ServiceError, match="Cannot reach"):
        client.download(job["id"], folder / "out.nwb")
    assert list(folder.iterdir()) == []
    client.report(job["id"], folder / "out.html")
    with pytest.raises(FileExistsError, match=r"out\.html exists"):
        client.report(job["id"], folder / "out.html")
    client.report(job["id"], folder / "out.html", overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["out.html"]


# ---- errors ----


def test_errors_are_the_words_of_the_server(client, tmp_path):
    with pytest.raises(ServiceError, match="No job 'x'") as caught:
        client.job("x")
    assert caught.value.status == 404
    with pytest.raises(ServiceError, match=r"refused\.\nseed: must be 0 or more") as caught:
        client.sort(upload="s", seed=-1)
    assert caught.value.status == 400


def test_wrong_key_and_no_server(fake, client, tmp_path):
    fake.key = "secret"
    with pytest.raises(ServiceError, match="key is missing or wrong") as caught:
        client.jobs()
    assert caught.value.status == 401
    with Client(fake.address, api_key="secret") as knowing:
        assert knowing.jobs() == []
    with pytest.raises(ServiceError, match=r"(?i)key") as caught:
        client.stream(30_000, 4)
    assert caught.value.status in (401, 403)
    with Client("http://127.0.0.1:9") as nowhere, pytest.raises(ServiceError, match="Cannot reach") as caught:
        nowhere.jobs()
    assert caught.value.status is None


def test_key_comes_from_the_environment(fake, monkeypatch):
    fake.key = "secret"
    monkeypatch.setenv("ACCM_API_KEY", "secret")
    with Client(fake.address) as client:
        assert client.server()["device"] == "cpu"


# ---- models ----


def test_models_go_there_and_back(fake, client, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"w" * 50_000)
    client.upload_model(tmp_path / "mine.safetensors")
    assert [one["name"] for one in client.models()] == ["pretrained", "mine"]
    client.download_model("mine", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"w" * 50_000
    assert client.model("mine")["card"] == {"kind": "pretrained"}
    client.remove_model("mine")
    with pytest.raises(ServiceError, match="No model 'mine'"):
        client.model("mine")


def test_arrays_go_through_and_a_full_queue_is_waited_for(fake, client):
    snippets = np.arange(24.0).reshape(2, 3, 4)
    fake.busy = 2
    assert np.array_equal(client.embed(snippets), snippets.mean(axis=2).astype(np.float32))
    fake.busy = 9
    with pytest.raises(ServiceError, match="queue is full"):
        client.classify(snippets, "mine")


# ---- streams ----


def test_stream_reports_spikes_gaps_and_its_end(fake, client):
    traces = np.zeros((2600, 4), dtype=np.int16)
    traces[1203, 2] = -300  # -150 µV
    traces[2400, 1] = -250
    with client.stream(30_000, 4, gain_to_uV=0.5, channel_locations=np.zeros((4, 2))) as stream:
        assert (stream.units, stream.is_calibrating, stream.lookahead_ms) == ([], True, 2.5)
        stream.send(traces[:2200])
        stream.send(traces[2200:], first_sample=9000)
        assert stream.end() == {"samples": 2600, "spikes": 2}
        replies = list(stream)
        assert stream.receive() is None
    assert fake.streams[0]["first_samples"] == [0, 1000, 2000, 9000]  # at most 1000 in a message
    assert np.array_equal(np.concatenate(fake.streams[0]["parts"]), traces * 0.5)
    events = [reply.event for reply in replies if reply.event is not None]
    assert [event["event"] for event in events] == ["calibrated", "gap", "end"]
    assert (events[1]["expected"], events[1]["got"]) == (2200, 9000)
    spikes = np.concatenate([reply.spikes for reply in replies])
    assert spikes[["sample", "channel"]].tolist() == [(1203, 2), (9200, 1)]
    assert spikes["amplitude_uV"].tolist() == [-150, -125]
    assert (stream.acked_sample, len(stream.units), stream.is_calibrating) == (9400, 4, False)


def test_sending_and_receiving_do_not_hold_each_other_up(fake, client):
    fake.num_extra_spikes = 5000  # 120 kB for each message, which nobody takes for a while
    with client.stream(30_000, 64, model="m") as stream:
        for _ in range(100):
            stream.send(np.zeros((500, 64), dtype=np.int16))
        receiver = threading.Thread(target=lambda: [replies.append(reply) for reply in stream])
        replies = []
        receiver.start()
        stream.end()
        receiver.join()
    assert sum(len(reply.spikes) for reply in replies) == 500_000


def test_silence_that_nobody_asks_for_does_not_pile_up(client):
    with client.stream(30_000, 4, model="m") as stream:
        for _ in range(50):
            stream.send(np.zeros((10, 4), dtype=np.int16))
        stream.end()
        replies = list(stream)
    assert len(replies) == 2
    assert replies[0].acked_sample == 500


def test_stream_refuses_what_does_not_suit(client):
    with client.stream(30_000, 4, model="m") as stream:
        with pytest.raises(ValueError, match=r"shape \(10, 3\); \(num_samples, 4\)"):
            stream.send(np.zeros((10, 3), dtype=np.int16))
        with pytest.raises(ValueError, match="are float64, but the stream was opened for int16"):
            stream.send(np.zeros((10, 4)))
        stream.send(np.zeros((10, 4), dtype=np.int16))
        with pytest.raises(ValueError, match="begin at 5, before 10"):
            stream.send(np.zeros((10, 4), dtype=np.int16), first_sample=5)
        assert stream.receive().acked_sample == 10
        with pytest.raises(TimeoutError, match="silent"):
            stream.receive(timeout=0.05)


def test_stream_says_why_it_was_refused_or_broken_off(fake, client):
    with client.stream(30_000, 4, model="m") as stream:
        stream.send(np.zeros((10, 4), dtype=np.int16))
        stream._next_sample = 0  # as a program would that is not this client
        stream.send(np.zeros((10, 4), dtype=np.int16))
        with pytest.raises(ServiceError, match="Samples went back") as caught:
            list(stream)
        assert caught.value.status == 1007
        with pytest.raises(ServiceError, match="Samples went back"):
            stream.send(np.zeros((10, 4), dtype=np.int16))
    fake.stream_error = "Unknown key 'x'."
    with pytest.raises(ServiceError, match="Unknown key 'x'") as caught:
        client.stream(30_000, 4)
    assert caught.value.status == 1008


def test_leaving_a_stream_closes_it(fake, client):
    with client.stream(30_000, 4, model="m") as stream:
        stream.send(np.full((10, 4), -300, dtype=np.int16))
        assert stream.receive().spikes.dtype == RECORD
    assert not any(thread.name == "accm stream" for thread in threading.enumerate())
    assert not fake.streams[0]["is_ended"]
    assert OVERLAP == 1
