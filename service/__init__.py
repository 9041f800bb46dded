"""The service over HTTP: sort, fine-tune, embed, classify, stream. ``bentoml serve service:SpikeSorter``."""

from typing import Any

__all__ = ["SpikeSorter"]


def __getattr__(name: str) -> Any:
    if name == "SpikeSorter":  # when it is served; a job's process needs no BentoML
        from service.sorter import SpikeSorter

        return SpikeSorter
    raise AttributeError(f"module 'service' has no attribute {name!r}")
