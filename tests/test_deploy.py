"""Dockerfile, bentofile and the files of deploy/ say the same as each other and as the code."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from accm_core.cli_serve import serve
from service.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PORT = 3000
USER = 10001
SCRIPTS = sorted(DEPLOY.glob("*.sh"))


def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the last stage, each with its arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    last = max(i for i, line in enumerate(lines) if line[0] == "FROM")
    return [(name, arguments.strip()) for name, arguments in lines[last:]]


def instruction(name: str) -> str:
    (arguments,) = [arguments for found, arguments in dockerfile() if found == name]
    return arguments


def environment() -> dict[str, str]:
    pairs = [pair for name, arguments in dockerfile() if name == "ENV" for pair in shlex.split(arguments)]
    return dict(pair.split("=", 1) for pair in pairs)


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def kubernetes() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pod() -> dict[str, Any]:
    return kubernetes()["Deployment"]["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    return only


def test_the_image_serves_as_a_user_without_rights_on_its_volume():
    assert instruction("USER") == f"{USER}:{USER}"
    assert instruction("VOLUME") == environment()["ACCM_DATA"] == "/data"
    assert instruction("EXPOSE") == str(PORT)
    assert json.loads(instruction("ENTRYPOINT")) == ["accm"]  # a list: signals reach it, not a shell
    assert json.loads(instruction("CMD")) == ["serve", "--host", "0.0.0.0"]
    assert environment()["BENTOML_DO_NOT_TRACK"] == "True"
    assert "ACCM_API_KEY" not in environment()
    written_to = (environment()[name] for name in ("BENTOML_HOME", "HOME", "NUMBA_CACHE_DIR"))
    assert all(path.startswith(("/tmp", "/data")) for path in written_to)


def test_the_settings_that_are_named_are_the_service_s():
    known = {f"ACCM_{name.upper()}" for name in Settings.model_fields}
    by_compose = set(compose()["services"]["accm"]["environment"])
    by_kubernetes = {variable["name"] for variable in container()["env"]}
    by_docker = {name for name in environment() if name.startswith("ACCM_")}
    assert by_compose | by_kubernetes | by_docker <= known
    assert "ACCM_API_KEY" in by_compose & by_kubernetes


def test_the_default_port_of_the_command_is_the_image_s():
    assert inspect.signature(serve).parameters["port"].default == PORT


def test_compose_confines_the_service_and_keeps_its_data():
    services, volumes = compose()["services"], compose()["volumes"]
    assert set(services) == {"accm", "accm-cpu"}
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [entry.split(":")[0] for entry in service["tmpfs"]] == ["/tmp"]
        assert [entry.split(":") for entry in service["volumes"]] == [["data", instruction("VOLUME")]]
        assert service["volumes"][0].split(":")[0] in volumes
        assert service["ports"] == [f"${{ACCM_LISTEN:-127.0.0.1}}:{PORT}:{PORT}"]
        assert ":?" in service["environment"]["ACCM_API_KEY"]  # compose refuses to go on without
    (gpu,) = services["accm"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["driver"] == "nvidia"
    assert gpu["capabilities"] == ["gpu"]
    assert [services[name]["build"]["args"]["TORCH"] for name in ("accm", "accm-cpu")] == ["gpu", "cpu"]


def test_compose_and_the_image_check_health_alike():
    options, command = instruction("HEALTHCHECK").split(" CMD ")
    by_image = dict(option.removeprefix("--").split("=") for option in options.split())
    by_compose = dict(compose()["services"]["accm"]["healthcheck"])
    assert by_compose.pop("test") == ["CMD", *json.loads(command)]
    assert {name.replace("_", "-"): str(value) for name, value in by_compose.items()} == by_image


def test_the_health_check_fails_when_nothing_is_ready():
    """With nothing listening at a port it has to say so by its exit code, and quickly."""
    command = json.loads(instruction("HEALTHCHECK").split(" CMD ")[1])
    assert f"127.0.0.1:{PORT}/readyz" in command[2]
    code = command[2].replace(f":{PORT}", ":9")  # the discard port; nothing listens there
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=10).returncode == 1


def test_kubernetes_confines_the_service_and_keeps_its_data():
    assert pod()["securityContext"]["runAsNonRoot"]
    assert {pod()["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {USER}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounts == {"data": "/data", "tmp": "/tmp"}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    claim = volumes["data"]["persistentVolumeClaim"]["claimName"]
    assert claim == kubernetes()["PersistentVolumeClaim"]["metadata"]["name"]
    assert "emptyDir" in volumes["tmp"]
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert kubernetes()["Deployment"]["spec"]["strategy"] == {"type": "Recreate"}  # two never share the data


def test_kubernetes_asks_the_service_where_it_listens():
    (port,) = container()["ports"]
    assert port["containerPort"] == PORT
    (exposed,) = kubernetes()["Service"]["spec"]["ports"]
    assert (exposed["port"], exposed["targetPort"]) == (PORT, port["name"])
    probes = {name: container()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert [probe["path"] for probe in probes.values()] == ["/readyz", "/readyz", "/livez"]
    labels = kubernetes()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kubernetes()["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert kubernetes()["Service"]["spec"]["selector"].items() <= labels.items()


def test_kubernetes_sets_no_variables_of_its_own_among_our_settings():
    """For a Service named accm it would set ACCM_PORT and the like."""
    assert pod()["enableServiceLinks"] is False


def test_one_image_goes_by_one_name():
    name = compose()["services"]["accm"]["image"]
    assert container()["image"] == name
    assert f"From: {name}" in (DEPLOY / "accm.def").read_text().splitlines()


def test_the_bento_needs_what_the_package_needs():
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert bento["python"]["packages"] == [
        *project["dependencies"],
        *project["optional-dependencies"]["service"],
    ]
    module, name = bento["service"].split(":")
    assert (module, name) == ("service", "SpikeSorter")
    assert {entry["name"]: entry["value"] for entry in bento["envs"]} == {"BENTOML_DO_NOT_TRACK": "True"}


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # BentoML's import of pathspec
def test_bentoml_reads_the_bentofile():
    """It refuses keys and values that it does not know."""
    from bentoml._internal.bento.build_config import BentoBuildConfig

    assert BentoBuildConfig.from_file(str(ROOT / "bentofile.yaml")).service == "service:SpikeSorter"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound_bash(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def sort_task(tmp_path):
    """Run a task of the array with an `accm` that notes how it is called.

    Returns the exit code, what was said, and the notes.
    """
    accm = tmp_path / "bin" / "accm"
    accm.parent.mkdir()
    accm.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n')
    accm.chmod(0o755)

    def run(sessions: list[str], task: int, *options: str) -> tuple[int, str, str]:
        (tmp_path / "sessions.txt").write_text("".join(f"{session}\n" for session in sessions))
        done = subprocess.run(
            ["bash", DEPLOY / "slurm_array.sh", "sessions.txt", "out", *options],
            env={"PATH": f"{accm.parent}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=10,
        )
        calls = tmp_path / "calls"
        return done.returncode, done.stderr, calls.read_text() if calls.exists() else ""

    return run


def test_a_task_sorts_the_session_of_its_number(sort_task):
    code, _, calls = sort_task(["a/one.nwb", "a/two words.nwb"], 2, "--seed", "1")
    assert code == 0
    assert calls == "sort a/two words.nwb -o out/two words_sorted.nwb --seed 1\n"


def test_a_task_leaves_a_result_that_is_there(sort_task, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one_sorted.nwb").touch()
    assert sort_task(["a/one.nwb"], 1) == (0, "", "")


def test_a_task_beyond_the_list_or_with_a_result_that_another_writes_is_refused(sort_task):
    code, said, calls = sort_task(["a/one.nwb"], 2)
    assert (code, calls) == (2, "")
    assert said == "sessions.txt has no line 2; --array begins with 1.\n"
    code, said, calls = sort_task(["a/one.nwb", "b/one.nwb"], 1)
    assert (code, calls) == (2, "")
    assert said == "2 sessions in sessions.txt are called one.nwb; their results would be one file.\n"
