"""Sliding windows of convolutions and pools: their attributes, their number, and for the numpy references one strided
view of the padded input for each element of the kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .shapes import pooled_extent, require_rank, require_window, window_extent

Index = tuple[int, ...]


def spatial_rank(x: TensorType, attrs: Mapping[str, Any], names: Sequence[str]) -> int:
    """The number of spatial axes of ``x``, with the window attributes checked against it."""
    require_rank(x, 3, 5, "x")
    rank = x.rank - 2
    require_window([(n, attrs[n], rank) for n in names])
    require_window([("pads", attrs["pads"], 2 * rank)], minimum=0)
    return rank


def output_extents(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool = False,
) -> Index:
    """Number of windows along each spatial axis; ``pads`` holds all begins, then all ends."""
    rank = len(kernel)
    rows = zip(extents, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
    return tuple(pooled_extent(e, k, s, d, begin, end, ceil_mode) for e, k, s, d, begin, end in rows)


def pad_spatial(x: np.ndarray, pads: Sequence[int], fill: Any) -> np.ndarray:
    """``x`` with its last axes padded by a value; ``pads`` holds all begins, then all ends."""
    if not any(pads):
        return x
    rank = len(pads) // 2
    widths = [(0, 0)] * (x.ndim - rank) + list(zip(pads[:rank], pads[rank:], strict=True))
    return np.pad(x, widths, constant_values=fill)


def padding_for(
    extents: Sequence[int],
    outputs: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Index:
    """The pads, with ends that reach as far as the last window does (``ceil_mode`` windows overhang)."""
    rank = len(kernel)
    ends = []
    for axis in range(rank):
        reach = (outputs[axis] - 1) * strides[axis] + window_extent(kernel[axis], dilations[axis])
        ends.append(max(pads[rank + axis], reach - extents[axis] - pads[axis]))
    return (*pads[:rank], *ends)


def taps(
    kernel: Sequence[int], outputs: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Iterator[tuple[Index, tuple[Any, ...]]]:
    """``(kernel index, index into the padded array)`` of each kernel element: ``padded[index]`` holds, for every
    output position, the input element that this kernel element meets."""
    for at in np.ndindex(*kernel):
        cut = [
            slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, n, s in zip(at, dilations, outputs, strides, strict=True)
        ]
        yield at, (Ellipsis, *cut)


def gather_columns(
    padded: np.ndarray,
    start: int,
    group: int,
    kernel: Sequence[int],
    outputs: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> np.ndarray:
    """The windows of each group as columns, ``[batch, group, channels of a group * kernel, outputs]``; the first
    spatial axis is read from ``start`` on. A convolution is the weights times these."""
    batch, channels = padded.shape[:2]
    columns = np.empty((batch, channels, math.prod(kernel), *outputs), padded.dtype)
    for i, (_, cut) in enumerate(taps(kernel, outputs, strides, dilations)):
        columns[:, :, i] = padded[:, :, start:][cut]
    return columns.reshape(batch, group, -1, math.prod(outputs))
