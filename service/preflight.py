"""Look before the start: what would let the service fail for ever is said at once."""

import os
import socket
from pathlib import Path

from accm_core.errors import AccmError
from service.auth import is_loopback
from service.devices import find_gpus, list_devices
from service.settings import Settings


class SetupError(AccmError):
    """The service cannot start as it is set up."""


def check_setup(settings: Settings, host: str, port: int) -> list[str]:
    """Check the data folder, the port, the key, the model and the devices.

    Parameters
    ----------
    settings : Settings
    host, port
        To listen at.

    Returns
    -------
    list of str
        What was found, one line each, to be shown.

    Raises
    ------
    SetupError
        With all that is wrong, one line each.
    """
    problems: list[str] = []
    found: list[str] = []
    for check in (_check_key, _check_port, _check_data, _check_inputs, _check_devices, _check_model):
        try:
            found.append(check(settings, host, port))
        except AccmError as error:
            problems.append(str(error))
    if problems:
        raise SetupError("\n".join(problems))
    return found


def _check_key(settings: Settings, host: str, port: int) -> str:
    if settings.api_key is not None:
        return "key          asked for (ACCM_API_KEY)"
    if is_loopback(host):
        return "key          none: this machine alone is listened to"
    if settings.allow_no_key:
        return (
            f"key          NONE, and {host} is seen by others: whoever reaches it may sort, read and delete"
        )
    raise SetupError(
        f"{host} is seen from other machines, and no key is set. Set ACCM_API_KEY (8 characters or more), "
        "listen to 127.0.0.1, or say --allow-no-key."
    )


def _check_port(settings: Settings, host: str, port: int) -> str:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SetupError(
            f"Cannot listen at {host}:{port}: {error.strerror or error}. Choose another --port, or stop what "
            "uses it."
        ) from error
    return f"address      http://{host}:{port}"


def _check_data(settings: Settings, host: str, port: int) -> str:
    folder = settings.data
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"The data folder {folder} cannot be written to: {error.strerror}. Choose another with --data or "
            "ACCM_DATA."
        ) from error
    return f"data         {folder}"


def _check_inputs(settings: Settings, host: str, port: int) -> str:
    missing = [str(root) for root in settings.input_roots if not Path(root).is_dir()]
    if missing:
        raise SetupError(
            f"ACCM_INPUT_ROOTS names {missing[0]}, which is no folder. Make it, or leave it out."
        )
    named = ", ".join([*map(str, settings.input_roots), *settings.url_hosts])
    return f"inputs       uploads{', ' + named if named else ''}"


def _check_devices(settings: Settings, host: str, port: int) -> str:
    if settings.scheduler is not None:
        return f"jobs         on the workers of {settings.scheduler}"
    devices = list_devices(settings.device)
    names = [gpu.name for gpu in find_gpus()] if devices != ["cpu"] else []
    return f"jobs         on {', '.join(devices)}{' (' + ', '.join(names) + ')' if names else ''}"


def _check_model(settings: Settings, host: str, port: int) -> str:
    from accm_core.models import PRETRAINED, load_model

    return f"model        {PRETRAINED} loads (sha256 {load_model(PRETRAINED).sha256[:12]})"
