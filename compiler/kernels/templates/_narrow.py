"""How narrow weights lie in memory, and how a kernel makes floats of them.

Rows of the reduction that share their scales are a *segment*. Integers that 4 bits hold lie two rows to a byte: the
lower and the upper half are neighbours in depth, so that a vector of bytes becomes two vectors of columns by a mask and
a shift. Every segment begins with a byte of its own. Halves are stored unsigned: the zero point then is one of the
offsets that a weight has anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.blocks import Block, spread
from ..spec import Operand, Region


@dataclass(frozen=True)
class Stored:
    """Weights ``[group, rows, columns]`` as they are stored. ``zeros`` are zero points of the stored integers, one
    number where ``zeros`` is None; no offset at all where that is 0."""

    codes: np.ndarray  # [group, byte rows, columns]
    scales: np.ndarray  # [group, segments, columns]
    zeros: np.ndarray | None  # as the scales
    zero: int
    layout: dict[str, Any]


def operands(region: Region, first: int = 3) -> tuple[Operand | None, Operand | None]:
    """Scale and zero point."""
    found = [region.operand(i) for i in (first, first + 1)]
    return tuple(None if i is None else region.inputs[i] for i in found)  # type: ignore[return-value]


def known(region: Region, at: int, first: int) -> bool:
    """Whether weights, scales and zero points are constants."""
    args = region.body.args(region.anchor)  # type: ignore[arg-type]
    given = [i for i in (at, first, first + 1) if i < len(args) and args[i] is not None]
    places = [region.operand(i) for i in given]
    return all(p is not None and region.inputs[p].const is not None for p in places)


def steps(codes: np.ndarray, zero: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """Integers as they are stored, their zero points (an array, or one number), and how many bits they take."""
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    signed = codes.dtype == np.int8
    if low >= (-8 if signed else 0) and high <= (7 if signed else 15):
        shift, bits, dtype = (8 if signed else 0), 4, "uint8"
    else:
        shift, bits, dtype = (0 if signed else -128), 8, "int8"
    stored = (codes.astype(np.int16) + shift).astype(dtype)
    if zero is None or not zero.any():
        return stored, None, shift, bits
    points = zero.astype(np.int16) + shift
    if (points == points.reshape(-1)[0]).all():
        return stored, None, int(points.reshape(-1)[0]), bits
    return stored, points, 0, bits


def segments(rows: Sequence[np.ndarray], inner: int, block: int) -> tuple[int, int]:
    """``(period, size)``: every ``period`` rows begin a new segment, and so does every ``size``-th one within. ``rows``
    ([group, rows, columns]) are constant in each; ``inner`` rows are the innermost axis of the reduction."""
    depth = rows[0].shape[1]
    for period, size in ((depth, depth), (depth, block), (inner, block), (inner, inner)):
        if 0 < size <= period and all(_constant(r, period, size) for r in rows):
            return period, size
    return depth, 1


def _constant(rows: np.ndarray, period: int, size: int) -> bool:
    return bool((rows == rows[:, _heads(rows.shape[1], period, size)]).all())


def _heads(depth: int, period: int, size: int) -> np.ndarray:
    """For each row, the first one of its segment."""
    at = np.arange(depth)
    return at - (at % period) % size


def store(
    w: Operand, scale: Operand, zero: Operand | None, block: Block, rows: Callable[..., Any], inner: int
) -> Stored:
    """Weights for a kernel. ``rows`` puts a tensor of their shape in the order ``[group, rows, columns]``; ``inner``
    rows are the innermost axis of the reduction."""
    assert w.const is not None and scale.const is not None
    codes, points, point, bits = steps(w.const, None if zero is None else zero.const)

    def ordered(array: np.ndarray) -> np.ndarray:
        whole = np.broadcast_to(spread(array, w.const.shape, block), w.const.shape)  # type: ignore[union-attr]
        return np.asarray(rows(whole))

    matrix, scales = np.asarray(rows(codes)), ordered(scale.const)
    zeros = None if points is None else ordered(points)
    period, size = segments([scales, *([] if zeros is None else [zeros])], inner, 0 if block is None else block[1])
    if size == 1:
        bits, matrix = (8, matrix.astype(np.int8)) if bits == 4 else (bits, matrix)
    layout = _layout(matrix.shape[1], period, size, bits)
    heads = np.unique(_heads(matrix.shape[1], period, size))
    held = scales[:, heads]
    half = held.astype(np.float16)
    return Stored(
        _two_to_a_byte(matrix, period, size) if bits == 4 else matrix,
        half if (half.astype(np.float32) == held.astype(np.float32)).all() else held.astype(np.float32),
        None if zeros is None else zeros[:, heads].astype(np.int16),
        point,
        {**layout, "zero": point, "offset": zeros is not None or point != 0},
    )


def _layout(depth: int, period: int, size: int, bits: int) -> dict[str, Any]:
    full, rest = divmod(period, size)
    per = 8 // bits
    block = -(-size // per)
    return {
        "bits": bits,
        "periods": depth // period,
        "period": period,
        "size": size,
        "full": full,
        "rest": rest,
        "block_bytes": block,
        "period_bytes": full * block + -(-rest // per),
        "segments": depth // period * (full + (rest > 0)),
        "bytes": depth // period * (full * block + -(-rest // per)),
    }


def _two_to_a_byte(matrix: np.ndarray, period: int, size: int) -> np.ndarray:
    """``[group, rows, columns]`` of 4 bits with two rows in one, segment by segment."""
    parts = []
    for first in range(0, matrix.shape[1], period):
        for at in range(first, first + period, size):
            part = matrix[:, at : min(at + size, first + period)]
            low, high = part[:, ::2], part[:, 1::2]
            if high.shape[1] < low.shape[1]:
                high = np.concatenate([high, np.zeros_like(low[:, :1])], axis=1)
            parts.append(low | (high << 4))
    return np.concatenate(parts, axis=1)


# -- in the kernel ---------------------------------------------------------------------------------------------------


def over_segments(k: Any, layout: dict[str, Any], body: Callable[[Any, Any, Any, int], None]) -> None:
    """Calls ``body(number, first row, first row of bytes, rows)`` for every segment."""
    full, rest, per = layout["full"], layout["rest"], layout["full"] + (layout["rest"] > 0)
    with k.loop(layout["periods"]) as p:
        first, row, byte = p * per, p * layout["period"], p * layout["period_bytes"]
        if full:
            with k.loop(full) as i:
                body(first + i, row + i * layout["size"], byte + i * layout["block_bytes"], layout["size"])
        if rest:
            body(first + full, row + full * layout["size"], byte + full * layout["block_bytes"], rest)


def over_bytes(k: Any, bits: int, rows: int, unroll: int, body: Callable[[Any, Any, int], None]) -> None:
    """Calls ``body(row, row of bytes, rows in it)`` for every row of bytes of one segment."""
    per = 8 // bits
    whole, odd = divmod(rows, per)
    step = next(u for u in range(unroll, 0, -1) if whole % u == 0) if whole else 1
    with k.loop(whole // step) as i:
        for u in range(step):
            body((i * step + u) * per, i * step + u, per)
    if odd:
        body(whole * per, whole, 1)


def floats(k: Any, buffer: Any, at: Any, lanes: int, bits: int, count: int) -> list[Any]:
    """The stored integers of ``count`` rows that lie in one row of bytes, as float32."""
    from ..functions import cast
    from ..tir import constant, shift_right

    held = cast(k.load(buffer, at, lanes), "int32")
    if bits == 8:
        return [cast(held, "float32")]
    held = k.bind(held, "pair")
    parts = [held & constant(15, "int32", lanes), shift_right(held, constant(4, "int32", lanes))]
    return [cast(p, "float32") for p in parts[:count]]


def widened(k: Any, buffer: Any, at: Any, lanes: int) -> Any:
    """Elements of any stored float type as float32. bfloat16 is the upper half of a float32's bits."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import as_dtype, constant, dtype_of

    value = k.load(buffer, at, lanes)
    if dtype_of(value) == "uint16":
        bits = cast(value, "uint32") << constant(16, "uint32", lanes)
        return tirx.reinterpret(as_dtype("float32", lanes), bits)
    return cast(value, "float32")


def panels(outer: Sequence[dict[str, Any]], depth: int, packed: int) -> list[int]:
    """For each outer axis of a contraction, how many packed matrices one step goes on."""
    return [o["b"] // (depth * packed) if o["b"] else 0 for o in outer]


def worker_floats(depth: int, nv: int, lanes: int, packed: int) -> int:
    return depth * min(packed, nv * lanes)


def nbytes(*arrays: np.ndarray | None) -> int:
    return sum(a.nbytes for a in arrays if a is not None)


def bits_of(w: np.ndarray) -> np.ndarray:
    """bfloat16 as its bits; every other type as it is."""
    return w.view(np.uint16) if w.dtype.name == "bfloat16" else w


__all__ = [
    "Stored",
    "bits_of",
    "floats",
    "known",
    "nbytes",
    "operands",
    "over_bytes",
    "over_segments",
    "panels",
    "segments",
    "steps",
    "store",
    "widened",
    "worker_floats",
]
