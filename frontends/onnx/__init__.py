"""ONNX: files in (``load``) and out (``save``, ``to_model``). The onnx package is imported on first use.

``load_network``: a file as a network that can be trained.
At the package's face they are ``nv.load_onnx``, ``nv.load_network`` and ``nv.save_onnx``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import save, to_model
    from .exporter import save as save_onnx
    from .importer import load
    from .importer import load as load_onnx
    from .network import load_network

__all__ = ["load", "load_network", "load_onnx", "save", "save_onnx", "to_model"]

_NAMES = {
    "load": ("importer", "load"),
    "load_onnx": ("importer", "load"),
    "load_network": ("network", "load_network"),
    "save": ("exporter", "save"),
    "save_onnx": ("exporter", "save"),
    "to_model": ("exporter", "to_model"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    return getattr(import_module(f".{module}", __name__), attribute)
