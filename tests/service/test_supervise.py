"""A job's process and its files, with a stand-in for the process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service import supervise
from service.inputs import InputLimits
from service.supervise import run_job
from service.work import Task

WRITES = "import os; open(os.path.join({folder!r}, 'session_sorted.nwb'), 'w').write({text!r})"
LIMITS = InputLimits(Path("/data/uploads"), (Path("/a"),), ("b",), 1)
SAYS = "import json; print(json.dumps({news!r}))"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run a start of job ``j`` whose process does what it is told; its outcome and its folder."""

    def run(attempt, *lines):
        folder = tmp_path / "jobs" / "j" / str(attempt)
        code = "; ".join(line.format(folder=str(folder), **more) for line, more in lines)
        monkeypatch.setattr(
            supervise,
            "_start",
            lambda task, scratch: subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
            ),
        )
        task = Task("j", "sort", {}, str(folder), str(tmp_path), LIMITS, "cpu")
        news = []
        outcome = run_job(task, news.append)
        return outcome, folder, news

    return run


def done(text):
    return (WRITES, {"text": text}), (SAYS, {"news": {"done": {"units": 1}, "stage_seconds": {}}})


def test_a_job_that_is_done_leaves_its_files_alone(start):
    outcome, folder, news = start(1, (SAYS, {"news": {"log": "hello"}}), *done("one"))
    assert outcome.result == {"units": 1}
    assert [path.name for path in folder.iterdir()] == ["session_sorted.nwb"]
    assert news == [{"job": "j", "log": "hello"}]


def test_a_job_that_fails_leaves_nothing(start):
    outcome, folder, _ = start(1, (WRITES, {"text": "half"}), (SAYS, {"news": {"failed": "no peaks"}}))
    assert outcome.error == "no peaks"
    assert not folder.parent.exists()


def test_an_earlier_start_that_comes_back_cannot_touch_the_result(start):
    """Its worker was given up, the job was done elsewhere, and then it ends, one way or the other."""
    _, folder, _ = start(2, *done("right"))
    for ending in (done("late"), [(SAYS, {"news": {"failed": "its files were taken away"}})]):
        start(1, *ending)
        assert (folder / "session_sorted.nwb").read_text() == "right"


def test_a_new_start_takes_away_what_an_earlier_one_left(start, tmp_path):
    left = tmp_path / "jobs" / "j" / "1"
    left.mkdir(parents=True)
    (left / "half.nwb").write_text("half")
    start(2, *done("right"))
    assert [path.name for path in left.parent.iterdir()] == ["2"]


def test_the_task_reaches_the_process_as_it_is(tmp_path):
    task = Task("j", "sort", {"seed": 1}, str(tmp_path), str(tmp_path), LIMITS, "cpu")
    assert json.loads(task.to_json())["data"] == str(tmp_path)
    assert Task.from_json(task.to_json()) == task
