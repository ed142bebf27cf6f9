"""The table that ``net.summary()`` prints."""

from __future__ import annotations

from typing import Any

from ...errors import printable
from .network import Network
from .trace import Row

_WIDTHS = (32, 26, 12)  # at least; the first two columns grow with what they hold


def summary_text(network: Network) -> str:
    """Layers, output shapes and parameters, with the totals, as Keras's summary."""
    trace = network.inspect()
    weights = [weight for _, weight in network.named_weights()]
    total = sum(w.size for w in weights)
    trained = sum(w.size for w in weights if w.trained)
    size = sum(w.array.nbytes for w in weights)
    counted: set[int] = set()
    head = ("Layer (type)", "Output Shape", "Param #")
    rows = [_row(row, counted) for row in trace.rows]
    first, second = (max(least, *(len(r[i]) + 2 for r in rows)) for i, least in enumerate(_WIDTHS[:2]))
    width = first + second + _WIDTHS[2]
    lines = [f"{a:<{first}}{b:<{second}}{c}" for a, b, c in [head, *rows]]
    return "\n".join(
        [
            f'{network.kind}: "{printable(network.name or "")}"',
            "_" * width,
            lines[0],
            "=" * width,
            *lines[1:],
            "=" * width,
            f"Total params: {total:,} ({_bytes(size)})",
            f"Trainable params: {trained:,}",
            f"Non-trainable params: {total - trained:,}",
            "_" * width,
        ]
    )


def _row(row: Row, counted: set[int]) -> tuple[str, str, str]:
    """One layer; a layer that is called again shows no parameters the second time."""
    params = "0"
    if row.layer is not None and id(row.layer) in counted:
        params = "shared"
    elif row.layer is not None:
        counted.add(id(row.layer))
        params = f"{sum(w.size for _, w in row.layer.named_weights()):,}"
    shapes = ", ".join(_shape(shape) for shape in row.shapes) or "-"
    return printable(f"{row.name} ({row.kind})"), shapes, params


def _shape(shape: tuple[Any, ...]) -> str:
    inner = ", ".join(map(str, shape))
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def _bytes(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    scaled = float(size)
    for unit in ("KB", "MB", "GB"):  # noqa: B007
        scaled /= 1024
        if scaled < 1024:
            break
    return f"{scaled:.2f} {unit}"
