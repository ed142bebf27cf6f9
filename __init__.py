"""nervure compiles neural networks into self-contained native programs for CPUs and edge devices.

``nv.compile(path_or_network, target="host")`` gives a model that can be called; ``nv.network``, ``nv.Sequential`` and
``nv.layers`` describe networks; ``nv.load_onnx`` and ``nv.save_onnx`` read and write ONNX; ``nv.load`` opens a compiled
library. Names are imported when they are first used, so that a device needs only what it runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .errors import missing_package
from .frontends.dsl.names import PUBLIC as _DSL

__version__ = "0.1.0"

# public name -> module that defines it
_NAMES = {
    "NervureError": "errors",
    "compile": "frontends.build",
    "Model": "frontends.model",
    "plan": "frontends.plan",
    "build_c": "frontends.native",
    "run_in_c": "frontends.native",
    "load": "runtime.session",
    "Session": "runtime.session",
    "Trainer": "runtime.trainer",
    "load_onnx": "frontends.onnx",
    "load_network": "frontends.onnx",
    "prune": "frontends.prune",
    "quantize": "frontends.quantize",
    "quantize_aware": "frontends.qat",
    "QuantizedNetwork": "frontends.training.quantized",
    "masked": "frontends.training.pruning",
    "masks_of_zeros": "frontends.training.pruning",
    "sparsify": "frontends.training.pruning",
    "shrunk": "frontends.training.units",
    "search": "frontends.search",
    "sensitivity": "frontends.sensitivity",
    "save_onnx": "frontends.onnx",
    "Graph": "compiler.ir",
    "losses": "frontends.training",
    "metrics": "frontends.training",
    "optimizers": "frontends.training",
    "regularizers": "frontends.training",
    "zoo": "frontends.zoo",
    **_DSL,
}
# beside this file, for users
_MODULES = {"callbacks", "datasets", "explain", "federated", "graphs", "models", "schedules", "utils"}

__all__ = sorted(["__version__", *_NAMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _NAMES:
        raise AttributeError(f"module 'nervure' has no attribute {name!r}")
    try:
        value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        raise missing_package(f"nervure.{name}", error) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
