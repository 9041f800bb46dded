"""Spike sorting by adaptive contrastive learning.

Public names are imported when first used, so that ``import accm_core`` is quick and needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accm_core.evaluate import evaluate as evaluate
    from accm_core.io.nwb_read import read_nwb as read_nwb
    from accm_core.io.nwb_units import read_sorting as read_sorting
    from accm_core.io.nwb_write import write_nwb as write_nwb
    from accm_core.io.spikeinterface import read_spikeinterface as read_spikeinterface
    from accm_core.learning.finetune import finetune as finetune
    from accm_core.models import load_model as load_model
    from accm_core.params import SorterParams as SorterParams
    from accm_core.pipeline import sort as sort
    from accm_core.simulate import simulate as simulate
    from accm_core.types import ArrayRecording as ArrayRecording
    from accm_core.types import Sorting as Sorting

__version__ = "0.1.0"

_HOME = {
    "ArrayRecording": "accm_core.types",
    "SorterParams": "accm_core.params",
    "Sorting": "accm_core.types",
    "evaluate": "accm_core.evaluate",
    "finetune": "accm_core.learning.finetune",
    "load_model": "accm_core.models",
    "read_nwb": "accm_core.io.nwb_read",
    "read_sorting": "accm_core.io.nwb_units",
    "read_spikeinterface": "accm_core.io.spikeinterface",
    "simulate": "accm_core.simulate",
    "sort": "accm_core.pipeline",
    "write_nwb": "accm_core.io.nwb_write",
}
__all__ = ["__version__", *sorted(_HOME)]


class _Package(ModuleType):
    """Keeps `simulate` and `evaluate` the functions: importing their modules would set these names too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'accm_core' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
