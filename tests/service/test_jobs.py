"""The list of jobs: nothing lost, nothing twice, whatever happens in between."""

import sqlite3
import threading

import pytest

from service.errors import ServiceError
from service.jobs import MAX_ATTEMPTS, MAX_LOG_LINES, JobStore

REQUEST = {"input": {"upload": "a.nwb", "path": None, "url": None}}


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    yield store
    store.close()


def add(store, **changes):
    values = {"input_name": "a.nwb", "max_queue": 100} | changes
    return store.add("sort", REQUEST, **values)


def test_jobs_run_in_the_order_in_which_they_came(store):
    ids = [add(store).id for _ in range(3)]
    claimed = [store.claim() for _ in range(4)]
    assert [job and job.id for job in claimed] == [*ids, None]
    assert {job.state for job in claimed[:3]} == {"running"}
    assert [job.id for job in store.recent()] == ids[::-1]


def test_job_ends_once(store):
    job = add(store)
    assert not store.finish(job.id, "done")  # it has not begun
    store.claim()
    assert store.finish(job.id, "done", result={"units": 3})
    assert not store.finish(job.id, "failed", error="late news")
    store.report(job.id, "noise", 0.1, 9.0)
    store.requeue(job.id, "late as well")
    ended = store.get(job.id)
    assert (ended.state, ended.error, ended.result, ended.fraction) == ("done", None, {"units": 3}, 1.0)
    assert ended.finished is not None
    assert ended.finished.endswith("Z")


def test_claims_of_several_threads_never_meet(tmp_path):
    stores = [JobStore(tmp_path / "jobs.sqlite") for _ in range(4)]
    ids = {add(stores[0]).id for _ in range(40)}
    claimed: list[str] = []

    def claim(store):
        while (job := store.claim()) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=claim, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert len(claimed) == 40
    assert set(claimed) == ids


def test_interrupted_job_waits_at_its_old_place(store):
    first, second = add(store), add(store)
    store.claim()
    store.requeue(first.id, "the server stopped")
    assert store.get(first.id).state == "queued"
    assert store.claim().id == first.id
    assert store.claim().id == second.id
    assert store.log_of(first.id) == ["the server stopped"]


def test_job_that_never_ends_is_given_up(store):
    job = add(store)
    for _ in range(MAX_ATTEMPTS):
        assert store.claim().id == job.id
        store.requeue(job.id, "killed by SIGKILL.")
    given_up = store.get(job.id)
    assert (given_up.state, given_up.attempts) == ("failed", MAX_ATTEMPTS)
    assert "killed by SIGKILL" in given_up.error


def test_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(store):
    running, waiting = add(store), add(store)
    store.claim()
    assert store.cancel(waiting.id).state == "cancelled"
    assert store.cancel(running.id).state == "running"
    assert store.cancelling() == [running.id]
    store.requeue(running.id, "stopped")
    assert store.get(running.id).state == "cancelled"
    assert store.claim() is None
    assert store.cancel(running.id).state == "cancelled"  # asked again: as before


def test_ended_job_cannot_be_cancelled(store):
    job = add(store)
    store.claim()
    store.finish(job.id, "done")
    with pytest.raises(ServiceError, match="is done") as caught:
        store.cancel(job.id)
    assert caught.value.status == 409


def test_unknown_job_is_refused(store):
    for ask in (store.get, store.request_of, store.cancel):
        with pytest.raises(ServiceError, match="no job 'nothing'") as caught:
            ask("nothing")
        assert caught.value.status == 404


def test_full_queue_is_refused_until_a_job_begins(store):
    add(store, max_queue=1)
    with pytest.raises(ServiceError, match="the limit is 1") as caught:
        add(store, max_queue=1)
    assert caught.value.status == 429
    store.claim()
    add(store, max_queue=1)


def test_two_jobs_never_make_a_model_of_one_name(store):
    first = add(store, name="mouse7")
    with pytest.raises(ServiceError, match=first.id) as caught:
        add(store, name="mouse7")
    assert caught.value.status == 409
    store.claim()
    store.finish(first.id, "failed", error="too few labels")
    add(store, name="mouse7")


def test_needed_uploads_are_those_of_jobs_that_have_not_ended(store):
    request = {
        "input": {"upload": "b.nwb"},
        "labels": {"upload": "c.nwb", "units": None},
        "inputs": [{"url": "x"}],
    }
    job = store.add("finetune", request, input_name="b", max_queue=9)
    add(store)
    assert store.needed_uploads() == {"a.nwb", "b.nwb", "c.nwb"}
    store.claim()
    store.finish(job.id, "done")
    assert store.needed_uploads() == {"a.nwb"}


def test_log_keeps_the_last_lines(store):
    job = add(store)
    store.add_log(job.id, [str(k) for k in range(MAX_LOG_LINES + 7)])
    store.add_log(job.id, ["end"])
    log = store.log_of(job.id)
    assert (log[0], log[-1], len(log)) == ("8", "end", MAX_LOG_LINES)


def test_old_jobs_are_forgotten_with_their_logs(store, tmp_path):
    old, waiting = add(store), add(store)
    store.claim()
    store.add_log(old.id, ["a line"])
    store.finish(old.id, "done")
    assert store.remove_finished("2000-01-01T00:00:00.000Z") == []
    assert store.remove_finished("9999-01-01T00:00:00.000Z") == [old.id]
    assert [job.id for job in store.recent()] == [waiting.id]
    with sqlite3.connect(tmp_path / "jobs.sqlite") as db:
        assert db.execute("SELECT count(*) FROM log").fetchone() == (0,)
    db.close()


def test_counts_and_stage_seconds_add_up(store):
    add(store)
    add(store)
    store.claim()
    assert store.count() == {"queued": 1, "running": 1, "done": 0, "failed": 0, "cancelled": 0}
    store.add_stage_seconds({"learn": 1.5, "match": 2.0})
    store.add_stage_seconds({"learn": 1.5})
    assert store.stage_seconds() == {"learn": 3.0, "match": 2.0}


def test_jobs_are_there_after_a_restart(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    job = add(store, model="m")
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    assert again.get(job.id) == job
    assert again.request_of(job.id) == REQUEST
    again.close()
