"""How an operand of a matrix product reaches shared memory: along which axis, how many bytes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..spec import Operand
from ._cuda_mma import CHUNK, ITEM

Side = dict[str, Any]


def side_of(operand: Operand, rows: int, row: int, depth: int, step: int, others: Sequence[int]) -> Side:
    """The widest copy that strides and alignment allow. ``rows`` elements lie ``row`` apart, ``depth`` ones ``step``;
    ``others`` are the strides of all other axes that a block begins at."""
    item = operand.type.itemsize
    row = row if rows > 1 else 0
    found: Side = {"dtype": operand.type.dtype, "row": row, "step": step}

    def allowed(nbytes: int, extent: int, strides: Sequence[int]) -> bool:
        width = nbytes // item
        return width > 0 and operand.aligned % nbytes == 0 and all(s % width == 0 for s in (extent, *strides))

    for nbytes in (16, 4):
        if step == 1 and nbytes >= item and allowed(nbytes, depth, (row, *others)):
            return found | {"width": nbytes // item, "copy": nbytes, "layout": "k", "walk": "k"}
        if row == 1 and item > 1 and nbytes >= item and allowed(nbytes, rows, (step, *others)):
            return found | {"width": nbytes // item, "copy": nbytes, "layout": "row", "walk": "row"}
    walk = "row" if rows > 1 and abs(row) < abs(step) else "k"
    if item == 4:
        return found | {"width": 1, "copy": 4, "layout": walk, "walk": walk}
    return found | {"width": 1, "copy": 0, "layout": "k", "walk": walk}


def packed(matrix: np.ndarray, rounded: bool) -> tuple[np.ndarray, Side]:
    """``[..., depth, columns]`` as lines along the depth, each padded so that wide copies reach its end, and its side;
    float32 is rounded to TF32 where ``rounded``."""
    depth, item = matrix.shape[-2], matrix.itemsize
    units = [max(1, n // item) for n in (CHUNK, 4, item) if n >= item]
    unit = next((u for u in units if -(-depth // u) * u <= 1.25 * depth), units[-1])
    lines = np.swapaxes(matrix, -1, -2)
    lines = tf32(lines) if rounded else lines
    pad = -depth % unit
    if pad:
        lines = np.concatenate([lines, np.zeros((*lines.shape[:-1], pad), lines.dtype)], axis=-1)
    copy = unit * item if unit * item in (4, CHUNK) else 0
    assert str(matrix.dtype) in ITEM
    side = {"dtype": str(matrix.dtype), "row": depth + pad, "step": 1, "width": unit if copy else 1, "copy": copy}
    return np.ascontiguousarray(lines), side | {"layout": "k", "walk": "k", "rounded": rounded}


def tf32(array: np.ndarray) -> np.ndarray:
    """float32 rounded to 10 bits of fraction, ties away from zero, as ``cvt.rna.tf32`` does (PTX ISA)."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    finite = (bits & 0x7F800000) != 0x7F800000
    return np.where(finite, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits).view(np.float32)
