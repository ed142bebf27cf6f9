"""The table that ``net.summary()`` prints."""

from __future__ import annotations

from typing import Any

from ...errors import printable
from .network import Network
from .trace import Row

_WIDTHS = (32, 26, 12)


def summary_text(network: Network) -> str:
    """Layers, output shapes and parameters, with the totals, as Keras's summary; lines of 70 characters."""
    trace = network.inspect()
    weights = [weight for _, weight in network.named_weights()]
    total = sum(w.size for w in weights)
    trained = sum(w.size for w in weights if w.trainable)
    size = sum(w.array.nbytes for w in weights)
    width = sum(_WIDTHS)
    lines = [f'{network.kind}: "{printable(network.name or "")}"', "_" * width]
    lines += [_line("Layer (type)", "Output Shape", "Param #"), "=" * width]
    counted: set[int] = set()
    lines += [_row(row, counted) for row in trace.rows]
    lines += ["=" * width]
    lines += [f"Total params: {total:,} ({_bytes(size)})"]
    lines += [f"Trainable params: {trained:,}", f"Non-trainable params: {total - trained:,}", "_" * width]
    return "\n".join(lines)


def _row(row: Row, counted: set[int]) -> str:
    """One layer; a layer that is called again shows no parameters the second time."""
    params = ""
    if row.layer is None:
        params = "0"
    elif id(row.layer) not in counted:
        counted.add(id(row.layer))
        params = f"{sum(w.size for _, w in row.layer.named_weights()):,}"
    else:
        params = "shared"
    shapes = ", ".join(_shape(shape) for shape in row.shapes) or "-"
    return _line(printable(f"{row.name} ({row.kind})"), shapes, params)


def _shape(shape: tuple[Any, ...]) -> str:
    inner = ", ".join(map(str, shape))
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def _line(*cells: str) -> str:
    """Cells padded to their columns; one that is too long pushes the next ones."""
    text = ""
    for cell, end in zip(cells, (_WIDTHS[0], sum(_WIDTHS[:2]), sum(_WIDTHS)), strict=True):
        text = f"{text}{cell}"
        text += " " * max(end - len(text), 1 if end < sum(_WIDTHS) else 0)
    return text.rstrip()


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size_next = size / 1024
        size = size_next  # type: ignore[assignment]
    return f"{size:.2f} GB"
