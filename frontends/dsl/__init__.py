"""The Python DSL: networks as plain functions over symbolic tensors, or as a sequence of layers."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name not in ("layers", "random", "spiking"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
