"""Where the encoder is trained and used."""

import torch

from accm_core.errors import ParamsError


def find_device(name: str) -> torch.device:
    """Return the torch device for 'auto', 'cpu' or 'cuda[:N]'.

    Raises
    ------
    ParamsError
        If it is none of these, or the GPU is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ParamsError(f"Device {name!r} is not known. Use auto, cpu, cuda or cuda:N.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ParamsError(
            f"Device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs. Use auto or cpu."
        )
    return torch.device(name)
