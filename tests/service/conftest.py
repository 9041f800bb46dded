"""A real server, as a user starts it, and a session to sort."""

import signal
from pathlib import Path

import pytest
from server_process import RealServer, free_port
from typer.testing import CliRunner

from accm_core.cli import app as command


@pytest.fixture(scope="session")
def session_file(tmp_path_factory) -> Path:
    """Ten seconds of a tetrode."""
    path = tmp_path_factory.mktemp("session") / "session.nwb"
    arguments = ["simulate", str(path), "--probe", "tetrode", "--duration", "10", "--seed", "2", "--quiet"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    return path


@pytest.fixture(scope="session")
def real_server(tmp_path_factory, session_file):
    """One server for all tests that do not stop it."""
    server = RealServer(
        tmp_path_factory.mktemp("server"), free_port(), {"ACCM_INPUT_ROOTS": str(session_file.parent)}
    )
    server.start()
    yield server
    server.kill(signal.SIGTERM)


@pytest.fixture
def own_server(tmp_path, session_file):
    """A server that a test may kill."""
    server = RealServer(tmp_path, free_port(), {"ACCM_INPUT_ROOTS": str(session_file.parent)})
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(real_server):
    with real_server.client() as client:
        yield client
