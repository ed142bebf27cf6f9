"""ONNX: files in (``load``) and out (``save``, ``to_model``). The onnx package is imported on first use.

At the package's face the two are ``nv.load_onnx`` and ``nv.save_onnx``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import save, to_model
    from .exporter import save as save_onnx
    from .importer import load
    from .importer import load as load_onnx

__all__ = ["load", "load_onnx", "save", "save_onnx", "to_model"]

_NAMES = {
    "load": ("importer", "load"),
    "load_onnx": ("importer", "load"),
    "save": ("exporter", "save"),
    "save_onnx": ("exporter", "save"),
    "to_model": ("exporter", "to_model"),
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    return getattr(import_module(f".{module}", __name__), attribute)
