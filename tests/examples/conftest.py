"""The stand-in of the service, and the examples as the programs that they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.fake_server import serving

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "uploads").mkdir()
    with serving(tmp_path / "uploads") as server:
        yield server


@pytest.fixture
def start(fake):
    """Start an example; it is ended with the test."""
    running = []

    def begin(script, *args, **variables):
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / script, "--server", fake.address, *map(str, args)],
            env={**os.environ, **variables, "PYTHONPATH": str(EXAMPLES.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()
