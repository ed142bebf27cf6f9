"""How far ahead of its input a result must start so that a kernel may write it over the input (``Plan.overlaps``).

A kernel works in pieces, one after the other: a piece reads a part of the input and writes a part of the output. What
counts for each piece is the byte behind the last one that has been written when it ends, and the first byte that it or
any later piece reads: the output may start ``lead`` bytes before the input if the first never passes the second
(Blacker et al. 2021, "Diagonal memory optimisation"). Both are counted from the starts of the tensors, which lie
without gaps and channels last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..spec import Operand, Region

Overlaps = tuple[tuple[int, int, int], ...]


def lead_of(pieces: Iterable[tuple[int, int]], buffered: bool = False) -> int:
    """The lead in bytes of a kernel whose pieces, in order, are ``(first byte read, end of what is written)``.

    ``buffered``: a piece has read all its input before it writes. Negative where the output may start behind the
    input's first byte."""
    rows = list(pieces)
    lead, needed = -(1 << 62), 1 << 62
    for first, end in reversed(rows):
        if not buffered:
            needed = min(needed, first)
        if needed < 1 << 62:
            lead = max(lead, end - needed)
        needed = min(needed, first)
    return lead


def windows(
    out: tuple[int, int], size: tuple[int, int], stride: tuple[int, int], pad: tuple[int, int], tile: tuple[int, int]
) -> Iterable[tuple[int, int]]:
    """The pieces of a sliding window, counted in points: ``tile`` lines and points of the output at a time, along each
    line of tiles. ``out`` and ``size`` are lines and points of the output and the input."""
    for y in range(0, out[0], tile[0]):
        bottom = min(y + tile[0], out[0])
        for x in range(0, out[1], tile[1]):
            right = min(x + tile[1], out[1])
            line, point = (max(0, at * s - p) for at, s, p in zip((y, x), stride, pad, strict=True))
            end = (bottom - 1) * out[1] + right
            yield min(line, size[0]) * size[1] + min(point, size[1]), end


def window_lead(
    x: Operand,
    y: Operand,
    stride: tuple[int, int],
    pad: tuple[int, int],
    tile: tuple[int, int],
    buffered: bool = False,
) -> int | None:
    """The lead of a window over ``x`` [1, channels, lines, points]; None where it has no such walk: several images,
    or tensors that do not lie channels last without gaps. A line may be absent (one spatial axis)."""
    if not (_channels_last(x) and _channels_last(y)):
        return None
    (out, size) = ((d[2] if len(d) == 4 else 1, d[-1]) for d in (y.type.dims, x.type.dims))
    rows = windows(out, size, stride, pad, tile)
    a, b = (o.type.dims[1] * o.type.itemsize for o in (x, y))
    return lead_of(((first * a, end * b) for first, end in rows), buffered)


def _channels_last(operand: Operand) -> bool:
    dims = operand.type.dims
    if len(dims) not in (3, 4) or dims[0] != 1 or operand.const is not None:
        return False
    step = 1
    for axis in (1, *reversed(range(2, len(dims)))):
        if dims[axis] != 1 and operand.strides[axis] != step:
            return False
        step *= dims[axis]
    return True


def of_contraction(region: Region, config: Mapping[str, Any]) -> Overlaps:
    """The overlap of a contraction's kernel (``_contract``): it goes through blocks of lines, or of the tiles of one
    line, and each has read its part of A before the next one starts. Nothing where several threads share the work."""
    source = region.operand(0)
    x, y = region.inputs[source or 0], region.outputs[0]
    outer = math.prod(o["extent"] for o in config["outer"])
    alone = region.machine.system == "bare" and len(region.outputs) == 1 and outer == 1 and config["slab"] is None
    if source is None or source in config["reads"] or not alone or config["point"]["apart"] != 1:
        return ()
    line, point = config["line"], config["point"]
    flat = x.type.rank == 4 and line["extent"] == 1 and y.type.dims[2] > 1
    if flat:
        lead = _flat_lead(x, y, point)
    else:
        stride, pad = (line["stride"], point["stride"]), (line["pad"], point["pad"])
        lead = window_lead(x, y, stride, pad, (line["block"], point["extent"]))
    return () if lead is None else ((source, 0, lead),)


def _flat_lead(x: Operand, y: Operand, point: Mapping[str, Any]) -> int | None:
    """The lead of a walk over all points as one line."""
    if not (_channels_last(x) and _channels_last(y)):
        return None
    tile = next((s["count"] * point["block"] for s in point["segments"] if s["inner"]), point["extent"])
    ends = list(range(tile, point["extent"] + 1, tile)) or [point["extent"]]
    ends[-1] = point["extent"]  # what does not fill a block belongs to the last one
    starts = [0, *ends[:-1]]
    a, b = (o.type.dims[1] * o.type.itemsize for o in (x, y))
    return lead_of((s * a, e * b) for s, e in zip(starts, ends, strict=True))
