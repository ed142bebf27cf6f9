"""ONNX: files in (``load``) and out (``save``, ``to_model``). The onnx package is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import save, to_model
    from .importer import load

__all__ = ["load", "save", "to_model"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from .importer import load

        return load
    if name in ("save", "to_model"):
        from . import exporter

        return getattr(exporter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
