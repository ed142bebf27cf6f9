"""Training networks of the DSL: losses, optimizers, metrics and penalties, all of them written with nv's functions."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    if name not in ("losses", "metrics", "optimizers", "regularizers"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
