"""A queue of sorts on a server that is killed three times: each is to end once, with a whole result."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import accm_core

QUICK = {"learn": {"num_steps": 25}}
NUM_KILLS = 3
START_S = 120.0
KEY = "the key of a benchmark"


def make_session() -> Path:
    """Ten seconds of a tetrode, in a folder of its own."""
    path = Path(tempfile.mkdtemp(prefix="accm-load-")) / "session.nwb"
    arguments = ["simulate", str(path), "--probe", "tetrode", "--duration", "10", "--seed", "2", "--quiet"]
    subprocess.run([sys.executable, "-m", "accm_core.cli", *arguments], check=True)
    return path


@dataclass
class OwnServer:
    """``accm serve`` that can be killed with all that it started, and started again."""

    folder: Path
    roots: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "accm_core.cli", "serve", "--port", str(self.port)],
                env={
                    **os.environ,
                    "ACCM_API_KEY": KEY,
                    "ACCM_DATA": str(self.folder / "data"),
                    "ACCM_INPUT_ROOTS": str(self.roots),
                },
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        with self.client() as client:
            while time.monotonic() < deadline:
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.HTTPError:
                    time.sleep(0.2)
        raise RuntimeError(f"The server did not start; see {self.folder / 'log'}.")

    def kill(self) -> None:
        """Kill -9 the server and all that it started, jobs too."""
        if self.process is None:
            return
        for pid in [self.process.pid, *find_descendants(self.process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def client(self) -> httpx.Client:
        """A client with the key."""
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60, trust_env=False
        )


def find_descendants(pid: int) -> list[int]:
    """Processes that a process started, and those that they started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found: list[int] = []
    waiting = [pid]
    while waiting:
        here = waiting.pop()
        children = [child for child, parent in parents.items() if parent == here]
        found += children
        waiting += children
    return found


def run_kill_test(num_jobs: int) -> int:
    """Run it; 0 when every job ended once, with a whole result."""
    session = make_session()
    with tempfile.TemporaryDirectory(prefix="accm-kill-", ignore_cleanup_errors=True) as folder:
        server = OwnServer(Path(folder), session.parent)
        server.start()
        try:
            problems = _kill_and_wait(server, session.name, num_jobs)
        finally:
            server.kill()
    for problem in problems:
        print("WRONG:", problem)
    return 1 if problems else 0


def _kill_and_wait(server: OwnServer, session: str, num_jobs: int) -> list[str]:
    start = time.perf_counter()
    ids = []
    with server.client() as client:
        for seed in range(num_jobs):
            request = {"input": {"path": session}, "params": QUICK, "seed": seed}
            ids.append(client.post("/sort", json=request).raise_for_status().json()["id"])
    ended: dict[str, str] = {}
    problems: list[str] = []
    for kill in range(NUM_KILLS):
        wanted = (kill + 1) * num_jobs // (NUM_KILLS + 1)
        with server.client() as client:
            jobs = _wait(client, ended, problems, wanted)
        print(f"kill {kill + 1}: {_count(jobs, 'done')} done, {_count(jobs, 'running')} running")
        server.kill()
        server.start()
    with server.client() as client:
        jobs = _wait(client, ended, problems, num_jobs)
        problems += _check(client, server.folder / "data", jobs, ids)
    attempts = [job["attempts"] for job in jobs]
    print(
        f"{num_jobs} jobs, {NUM_KILLS} kills, {time.perf_counter() - start:.0f} s: "
        f"{_count(jobs, 'done')} done; {sum(attempts)} starts, {max(attempts)} at most of one"
    )
    return problems


def _wait(
    client: httpx.Client, ended: dict[str, str], problems: list[str], num_done: int
) -> list[dict[str, Any]]:
    """Wait until so many are done and another runs, or none is left; one that has ended must stay so."""
    while True:
        jobs: list[dict[str, Any]] = client.get("/jobs").json()["jobs"]
        for job in jobs:
            before = ended.get(job["id"])
            if before is not None and job["finished"] != before:
                problems.append(f"job {job['id']} ended at {before}, and again at {job['finished']}")
            if job["finished"] is not None:
                ended[job["id"]] = job["finished"]
        running = _count(jobs, "running")
        if (running and _count(jobs, "done") >= num_done) or not running + _count(jobs, "queued"):
            return jobs
        time.sleep(0.2)


def _count(jobs: list[dict[str, Any]], state: str) -> int:
    return sum(job["state"] == state for job in jobs)


def _check(client: httpx.Client, data: Path, jobs: list[dict[str, Any]], ids: list[str]) -> list[str]:
    """What is wrong with the results."""
    problems = []
    if sorted(job["id"] for job in jobs) != sorted(ids):
        problems.append(f"{len(ids)} jobs were asked for, {len(jobs)} are there")
    folders = sorted(path.name for path in (data / "jobs").iterdir())
    if folders != sorted(ids):
        problems.append(f"{len(folders)} folders of {len(ids)} jobs")
    for job in jobs:
        if job["state"] != "done":
            problems.append(f"job {job['id']} is {job['state']}: {job['error']}")
            continue
        path = data.parent / "result.nwb"
        path.write_bytes(client.get(f"/jobs/{job['id']}/result").content)
        units = accm_core.read_sorting(path).num_units
        if units != job["result"]["units"]:
            problems.append(f"job {job['id']} has {units} units in its file, {job['result']['units']} told")
        folder = data / "jobs" / job["id"]
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if files != [f"{job['attempts']}/report.html", f"{job['attempts']}/session_sorted.nwb"]:
            problems.append(f"job {job['id']} left {files}")
    return problems
