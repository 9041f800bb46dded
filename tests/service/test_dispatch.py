"""The dispatcher with a cluster that does what a test says: claims, outcomes, lost workers, cancels."""

from concurrent.futures import Future

import pytest

from service import dispatch
from service.cluster import Place
from service.dispatch import Dispatcher
from service.jobs import JobStore
from service.settings import read_settings
from service.supervise import Outcome
from service.uploads import Uploads


class FakeCluster:
    """Workers by address, and the futures of what was given to them."""

    def __init__(self, *addresses):
        self.addresses, self.futures, self.stopped = list(addresses), {}, []

    def places(self):
        return [Place(address, "cpu") for address in self.addresses]

    def submit(self, task, place):
        self.futures[task.id] = (place.address, Future())
        return self.futures[task.id][1]

    def stop(self, job_id, place):
        self.stopped.append((job_id, place.address))

    @staticmethod
    def outcome_of(future):
        return future.result()


@pytest.fixture
def jobs(tmp_path):
    store = JobStore(tmp_path / "jobs.sqlite")
    yield store
    store.close()


@pytest.fixture
def dispatcher(tmp_path, jobs):
    settings = read_settings({"ACCM_DATA": str(tmp_path), "ACCM_DEVICE": "cpu"})
    settings.jobs_folder.mkdir()
    return Dispatcher(settings, jobs, Uploads(settings.uploads_folder, max_bytes=1, quota=None))


def add(jobs):
    return jobs.add("sort", {"input": {"upload": "a.nwb"}}, input_name="a", max_queue=99).id


def test_one_job_at_a_time_for_each_worker(dispatcher, jobs):
    ids, cluster = [add(jobs) for _ in range(3)], FakeCluster("a", "b")
    dispatcher._tick(cluster)
    dispatcher._tick(cluster)
    assert {job: address for job, (address, _) in cluster.futures.items()} == {ids[0]: "a", ids[1]: "b"}
    cluster.futures[ids[0]][1].set_result(Outcome(result={"units": 1}, stage_seconds={"learn": 2.0}))
    dispatcher._tick(cluster)
    assert jobs.get(ids[0]).result == {"units": 1}
    assert jobs.stage_seconds() == {"learn": 2.0}
    assert cluster.futures[ids[2]][0] == "a"


def test_failures_are_told_and_interruptions_tried_again(dispatcher, jobs):
    failing, interrupted = add(jobs), add(jobs)
    cluster = FakeCluster("a", "b")
    dispatcher._tick(cluster)
    cluster.futures[failing][1].set_result(Outcome(error="too few peaks"))
    cluster.futures[interrupted][1].set_result(Outcome(interrupted="ended by SIGKILL."))
    dispatcher._tick(cluster)
    assert (jobs.get(failing).state, jobs.get(failing).error) == ("failed", "too few peaks")
    assert (jobs.get(interrupted).state, jobs.get(interrupted).attempts) == ("running", 2)


def test_worker_that_is_missed_for_a_moment_keeps_its_job(dispatcher, jobs, monkeypatch):
    job, cluster = add(jobs), FakeCluster("a")
    dispatcher._tick(cluster)
    cluster.addresses = []
    dispatcher._tick(cluster)
    assert "no workers" in dispatcher.problem
    assert jobs.get(job).state == "running"
    monkeypatch.setattr(dispatch, "GONE_AFTER_S", -1.0)
    dispatcher._tick(cluster)
    assert jobs.get(job).state == "queued"
    cluster.addresses = ["b"]
    dispatcher._tick(cluster)
    assert dispatcher.problem is None
    assert (cluster.futures[job][0], jobs.get(job).attempts) == ("b", 2)


def test_running_job_is_stopped_once_when_cancelled(dispatcher, jobs):
    job, cluster = add(jobs), FakeCluster("a")
    dispatcher._tick(cluster)
    jobs.cancel(job)
    dispatcher._tick(cluster)
    dispatcher._tick(cluster)
    assert cluster.stopped == [(job, "a")]
    cluster.futures[job][1].set_result(Outcome(interrupted="The job was stopped."))
    dispatcher._tick(cluster)
    assert jobs.get(job).state == "cancelled"


def test_old_jobs_and_folders_that_no_job_owns_are_removed(dispatcher, jobs, tmp_path):
    job, cluster = add(jobs), FakeCluster()
    for name in (job, "20200101-000000-gone"):
        (tmp_path / "jobs" / name).mkdir()
    dispatcher._tick(cluster)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [job]
