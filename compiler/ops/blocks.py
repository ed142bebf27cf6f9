"""Blocks: neighbours along one axis of a tensor that share a scale (ONNX's ``block_size``).

``block = (axis, size)``: every ``size`` elements along ``axis`` have one scale, the last ones may be fewer; along any
other axis there is one, or one for each element. None: scales broadcast as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .record import OpError

Block = tuple[int, int] | None


def blocks_shape(shape: Sequence[Any], block: Block) -> tuple[Any, ...]:
    """The shape of a tensor's scales where every element, or every block of them, has one."""
    found = list(shape)
    if block is not None:
        axis, size = block
        found[axis] = -(-found[axis] // size)
    return tuple(found)


def require_block(block: Any, x: TensorType, scale: TensorType, name: str = "scale") -> None:
    """``OpError`` unless ``scale`` has, for every axis of ``x``, one entry, or one for each element or block."""
    whole: tuple[Any, ...] = x.shape
    if block is not None:
        axis, size = block
        if not (0 <= axis < x.rank) or size < 1:
            raise OpError(f"block: expected an axis of {x} and a positive size; got {block}")
        whole = blocks_shape(x.dims, block)
    if scale.rank > x.rank or any(s not in (1, d) for s, d in zip(scale.shape[::-1], whole[::-1], strict=False)):
        raise OpError(f"{name}: expected a shape that broadcasts to {list(whole)}; got {scale}")


def spread(scale: np.ndarray, shape: Sequence[int], block: Block) -> np.ndarray:
    """Scales as they stand at each element of a tensor of that shape (broadcast along all axes but the blocks')."""
    if block is None or scale.ndim == 0:
        return scale
    axis, size = block
    full = scale.reshape((1,) * (len(shape) - scale.ndim) + scale.shape)
    return full if full.shape[axis] == 1 else np.repeat(full, size, axis).take(np.arange(shape[axis]), axis)
