"""The service under load: many clients at once, one giant upload, kills in the middle of a queue.

``python -m benchmarks.service_load --server http://127.0.0.1:3000 --key KEY --clients 32 --seconds 300``
``python -m benchmarks.service_load --server http://127.0.0.1:3000 --key KEY --upload-gb 4``
``python -m benchmarks.service_load --kill-test 50``

The server's memory is read from /proc, so that it has to run on this machine, as the same user.
"""

import argparse
import hashlib
import io
import itertools
import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

MB = 1 << 20
SORT_EVERY_S = 4.0
"""Between two sorts that all clients together ask for; beyond what two cores do, so that a queue grows."""
QUICK = {"learn": {"num_steps": 25}}
EVENTS_S = 5.0
"""Longest look at the events of a job."""
FINE = {"429", "DELETE /jobs/ID 409"}
"""Documented refusals that clients who do not know of each other meet."""


@dataclass
class Tally:
    """What was answered, and how fast."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def timing(self, route: str) -> Iterator[list[str]]:
        """Time what happens inside; its status is put into the list."""
        told: list[str] = []
        start = time.perf_counter()
        try:
            yield told
        except httpx.HTTPError as error:
            told.append(type(error).__name__)
        with self.lock:
            self.seconds[route, told[0] if told else "?"].append(time.perf_counter() - start)

    def errors(self) -> Counter[str]:
        """Answers that no client should see."""
        return Counter(
            {
                f"{route} {status}": len(times)
                for (route, status), times in self.seconds.items()
                if not status.startswith("2") and not {status, f"{route} {status}"} & FINE
            }
        )

    def show(self) -> None:
        """Print a table."""
        print("| route | status | calls | median ms | 99th ms | longest ms |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        for (route, status), times in sorted(self.seconds.items()):
            median, slow = (1e3 * np.quantile(times, [0.5, 0.99])).tolist()
            print(
                f"| {route} | {status} | {len(times)} | {median:.0f} | {slow:.0f} | {1e3 * max(times):.0f} |"
            )


class Memory:
    """The largest memory of the processes that listen at a port, while it is watched."""

    def __init__(self, port: int) -> None:
        self._pids = find_listeners(port)
        self.before = self.peak = self.now()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def now(self) -> int:
        """Bytes in memory, of all of them together."""
        return sum(read_resident(pid) for pid in self._pids)

    def stop(self) -> str:
        """Stop watching; what was seen."""
        self._stopping.set()
        self._thread.join()
        after = self.now()
        if not self._pids:
            return "server memory: unknown (it is not of this machine or user)"
        return (
            f"server memory ({len(self._pids)} processes): before {self.before / MB:.0f} MiB, "
            f"peak +{(self.peak - self.before) / MB:.1f} MiB, after +{(after - self.before) / MB:.1f} MiB"
        )

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            self.peak = max(self.peak, self.now())


def find_listeners(port: int) -> list[int]:
    """Processes of this machine that listen at a port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        inodes |= {
            f"socket:[{row[9]}]"
            for row in rows
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port
        }
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(str(link.readlink()) in inodes for link in folder.iterdir()):
                found.append(int(folder.parent.name))
        except OSError:
            continue  # it is gone, or another user's
    return found


def read_resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Load:
    """Clients that do what people and programs do, all at once.

    Parameters
    ----------
    address, key : str
    session : bytes
        A short session to sort.
    """

    def __init__(self, address: str, key: str, session: bytes) -> None:
        self.address, self.key, self.tally = address, key, Tally()
        self.jobs: list[str] = []
        self.done: list[str] = []
        self._sorts = itertools.count()
        self._began = time.monotonic()
        with self.client() as client:
            client.put("/uploads/load.nwb?overwrite=true", content=session).raise_for_status()
        snippets = np.random.default_rng(0).normal(size=(200, 60, 10)).astype(np.float32)
        file = io.BytesIO()
        np.save(file, snippets)
        self._snippets = file.getvalue()
        self._block = os.urandom(4 * MB)

    def client(self) -> httpx.Client:
        """A client with the key."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.address, headers=headers, timeout=60, trust_env=False)

    def run(self, num_clients: int, seconds: float) -> None:
        """Let the clients call until the time is over; then take back what they asked for."""
        stop = time.monotonic() + seconds
        threads = [threading.Thread(target=self._call, args=(number, stop)) for number in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with self.client() as client:
            for job_id in self.jobs:
                client.delete(f"/jobs/{job_id}")
            while client.get("/jobs?state=running").json()["jobs"]:
                time.sleep(0.5)
            client.delete("/uploads/load.nwb").raise_for_status()

    def _call(self, number: int, stop: float) -> None:
        rng = random.Random(number)
        actions: dict[Callable[[httpx.Client, random.Random, int], None], int] = {
            self._upload: 3,
            self._sort: 3,
            self._poll: 10,
            self._list: 4,
            self._events: 2,
            self._embed: 6,
            self._models: 4,
            self._download: 4,
            self._cancel: 1,
            self._look: 3,
        }
        with self.client() as client:
            while time.monotonic() < stop:
                (action,) = rng.choices(list(actions), list(actions.values()))
                action(client, rng, number)
                time.sleep(rng.uniform(0, 0.2))

    def _ask(
        self, client: httpx.Client, method: str, route: str, path: str, **rest: object
    ) -> httpx.Response:
        with self.tally.timing(f"{method} {route}") as told:
            answer = client.request(method, path, **rest)  # type: ignore[arg-type]
            told.append(str(answer.status_code))
            return answer
        return httpx.Response(599)

    def _upload(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        name, content = f"load-{number}.bin", self._block[: rng.randrange(MB, 4 * MB)]
        checksum = hashlib.sha256(content).hexdigest()
        path = f"/uploads/{name}?overwrite=true&sha256={checksum}"
        self._ask(client, "PUT", "/uploads/NAME", path, content=content)
        self._ask(client, "GET", "/uploads", "/uploads")
        self._ask(client, "DELETE", "/uploads/NAME", f"/uploads/{name}")

    def _sort(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        if (time.monotonic() - self._began) / SORT_EVERY_S < len(self.jobs):
            return
        request = {"input": {"upload": "load.nwb"}, "params": QUICK, "seed": next(self._sorts)}
        answer = self._ask(client, "POST", "/sort", "/sort", json=request)
        if answer.status_code == 200:
            self.jobs.append(answer.json()["id"])

    def _poll(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        if self.jobs:
            job_id = rng.choice(self.jobs)
            answer = self._ask(client, "GET", "/jobs/ID", f"/jobs/{job_id}")
            if answer.status_code == 200 and answer.json()["state"] == "done" and job_id not in self.done:
                self.done.append(job_id)

    def _list(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        self._ask(client, "GET", "/jobs", "/jobs?limit=100")

    def _events(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        if not self.jobs:
            return
        stop = time.monotonic() + EVENTS_S
        with (
            self.tally.timing("GET /jobs/ID/events (whole)") as told,
            client.stream("GET", f"/jobs/{rng.choice(self.jobs)}/events") as answer,
        ):
            told.append(str(answer.status_code))
            for _ in answer.iter_lines():
                if time.monotonic() > stop:
                    break

    def _embed(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        self._ask(client, "POST", "/embed", "/embed", content=self._snippets, headers=headers)

    def _models(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        self._ask(client, "GET", "/models", "/models")
        self._ask(client, "GET", "/models/NAME", "/models/pretrained")

    def _download(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        if self.done:
            job_id = rng.choice(self.done)
            self._ask(client, "GET", "/jobs/ID/result", f"/jobs/{job_id}/result")
            self._ask(client, "GET", "/jobs/ID/report", f"/jobs/{job_id}/report")

    def _cancel(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        if self.jobs:
            self._ask(client, "DELETE", "/jobs/ID", f"/jobs/{rng.choice(self.jobs)}")

    def _look(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        for path in ("/server", "/docs.json", "/metrics", "/"):
            self._ask(client, "GET", path, path)


def upload_giant(client: httpx.Client, gigabytes: float) -> str:
    """Send a file that is nowhere stored here; what was answered."""
    block, total = os.urandom(MB), int(gigabytes * 1024) * MB
    checksum = hashlib.sha256()

    def parts() -> Iterator[bytes]:
        for number in range(total // MB):
            part = number.to_bytes(8, "little") + block[8:]
            checksum.update(part)
            yield part

    start = time.perf_counter()
    answer = client.put(
        "/uploads/giant.bin?overwrite=true", content=parts(), headers={"Content-Length": str(total)}
    )
    seconds = time.perf_counter() - start
    answer.raise_for_status()
    if answer.json()["sha256"] != checksum.hexdigest():
        raise SystemExit("The server kept other bytes than were sent.")
    client.delete("/uploads/giant.bin").raise_for_status()
    return f"{total / MB:.0f} MiB in {seconds:.1f} s, {total / MB / seconds:.0f} MiB/s, checksum equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:3000")
    parser.add_argument("--key", default=os.environ.get("ACCM_API_KEY", ""))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--upload-gb", type=float, help="send one file of this size instead")
    parser.add_argument(
        "--kill-test", type=int, metavar="JOBS", help="kill an own server three times instead"
    )
    given = parser.parse_args()
    if given.kill_test is not None:
        from benchmarks.service_kills import run_kill_test

        sys.exit(run_kill_test(given.kill_test))
    memory = Memory(urlsplit(given.server).port or 80)
    if given.upload_gb is not None:
        headers = {"Authorization": f"Bearer {given.key}"}
        with httpx.Client(base_url=given.server, headers=headers, timeout=600, trust_env=False) as client:
            print(upload_giant(client, given.upload_gb))
        print(memory.stop())
        return
    from benchmarks.service_kills import make_session

    load = Load(given.server, given.key, make_session().read_bytes())
    load.run(given.clients, given.seconds)
    load.tally.show()
    calls = sum(map(len, load.tally.seconds.values()))
    print(
        f"\n{given.clients} clients, {given.seconds:g} s: {calls} calls, "
        f"{calls / given.seconds:.0f} a second; {len(load.jobs)} sorts asked for, {len(load.done)} seen done"
    )
    print(memory.stop())
    errors = load.tally.errors()
    print("errors:", dict(errors) if errors else "none")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()
