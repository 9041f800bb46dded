"""The package from outside: quick to import, without torch, every public name there."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import accm_core

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "pynwb", "h5py", "spikeinterface", "numba", "scipy", "sklearn")
MAX_IMPORT_S = 0.3


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


@pytest.mark.parametrize("module", ["accm_core", "accm_core.cli"])
def test_import_is_light(module):
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run_python(code))
    assert [name for name in HEAVY if name in loaded] == []


def test_import_is_quick():
    code = "import time; t = time.perf_counter(); import accm_core; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < MAX_IMPORT_S


def test_public_names_are_there():
    for name in accm_core.__all__:
        assert getattr(accm_core, name) is not None
    assert set(accm_core.__all__) <= set(dir(accm_core))


@pytest.mark.parametrize(
    "before",
    ["pass", "accm_core.simulate, accm_core.evaluate", "import accm_core.simulate, accm_core.evaluate"],
)
def test_functions_are_not_hidden_by_the_modules_of_their_name(before):
    code = (
        f"import accm_core; {before}; print(*(callable(f) for f in (accm_core.simulate, accm_core.evaluate)))"
    )
    assert run_python(code).split() == ["True", "True"]


def test_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="nothing_such"):
        accm_core.nothing_such  # noqa: B018


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert accm_core.__version__ == project["version"]
    assert f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_versions_alone():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert [line for line in lines if line.count("==") != 1 or "/" in line or " " in line] == []
