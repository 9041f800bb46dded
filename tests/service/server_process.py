"""``accm serve`` as a process, for tests from outside."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

KEY = "a key for tests only"
START_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class RealServer:
    """``accm serve`` in a process group of its own; it can be killed and started again."""

    folder: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def client(self, key: str | None = KEY) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=60, trust_env=False)

    def start(self) -> None:
        log = (self.folder / "log").open("a")
        arguments = ["serve", "--port", str(self.port), "--data", str(self.data), "--device", "cpu"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "accm_core.cli", *arguments],
            env={**os.environ, "ACCM_API_KEY": KEY, **self.environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        deadline = time.monotonic() + START_S
        with self.client() as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        raise RuntimeError(f"the server did not start: {self.log()[-3000:]}")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, number)
            self.process.wait(timeout=60)
            self.process = None
            while self._answers():  # BentoML's worker is in another process group: it follows its parent
                time.sleep(0.1)

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                client.get("/livez")
            except httpx.HTTPError:
                return False
            return True


def wait_for(client: httpx.Client, job_id: str, *states: str) -> dict:
    """The job, once it is in one of the states."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        job = client.get(f"/jobs/{job_id}").json()
        if job["state"] in states:
            return job
        time.sleep(0.2)
    raise AssertionError(f"job {job_id} is still {job['state']} ({job['stage']}): {job['log']}")
