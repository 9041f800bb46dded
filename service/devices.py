"""Which devices there are, without torch: the front of the service does not load it for this."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from accm_core.errors import ParamsError

TIMEOUT_S = 20.0
"""For nvidia-smi, which is slow when the driver has to be loaded."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its memory in use, bytes."""

    name: str
    memory_used: int


def find_gpus() -> list[Gpu]:
    """GPUs that this process may use, in the order of their numbers; none where there is no driver."""
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    query = ["nvidia-smi", "--query-gpu=uuid,name,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    gpus = {row[0]: Gpu(row[1], int(row[2]) << 20) for row in rows if len(row) == 3}
    return _select(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _select(gpus: dict[str, Gpu], visible: str | None) -> list[Gpu]:
    """Of all GPUs by UUID, those that CUDA_VISIBLE_DEVICES names by number or UUID, in its order."""
    if visible is None:
        return list(gpus.values())
    found = []
    for name in (part.strip() for part in visible.split(",")):
        by_number = name.isdecimal() and int(name) < len(gpus)
        uuid = list(gpus)[int(name)] if by_number else next((u for u in gpus if u.startswith(name)), None)
        if uuid is None:  # CUDA stops at the first that is not there
            break
        found.append(gpus[uuid])
    return found


def list_devices(device: str) -> list[str]:
    """Names of the devices to compute on, as torch has them.

    Raises
    ------
    ParamsError
        If a GPU is asked for that is not there.
    """
    if device == "cpu":
        return ["cpu"]
    gpus = find_gpus()
    if device == "auto" and not gpus:
        return ["cpu"]
    number = device.partition(":")[2]
    if not gpus or (number and int(number) >= len(gpus)):
        raise ParamsError(
            f"ACCM_DEVICE is {device} but {len(gpus)} GPUs are seen here. Check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use auto or cpu."
        )
    return [f"cuda:{number}"] if number else [f"cuda:{k}" for k in range(len(gpus))]
