"""The exporter's table: operator of the IR -> function that writes its ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable

from . import export_index, export_math, export_nn, export_quant, export_tensor
from .export_quant import keep
from .exporter import Call, Writer

EXPORT: dict[str, Callable[[Writer, Call], object]] = {
    **export_math.RULES,
    **export_tensor.RULES,
    **export_index.RULES,
    **export_nn.RULES,
    **export_quant.RULES,
}

__all__ = ["EXPORT", "keep"]
