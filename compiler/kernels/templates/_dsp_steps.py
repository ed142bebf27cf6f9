"""Tiles whose results are requantized: what follows the sums is known, and is done while they are in registers.

Channels whose weights are all 0 give the same everywhere: they are copied from a constant row, and the others written
to where they belong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.integers import rescale
from ...ops.selection import step_bounds
from ..expr import plain
from ..spec import Region

LEAST_MULTIPLIER = 2.0**-100  # of those, a 256th is exact, too
FITS = 0.25  # products of int32 with smaller multipliers fit int32, zero point included


@dataclass(frozen=True)
class Steps:
    """A requantization at the end of a region: its multipliers [channels], its attributes."""

    multipliers: np.ndarray
    zero_point: int
    low: int
    high: int
    to: str

    def of(self, sums: np.ndarray) -> np.ndarray:
        """What sums [channels] become."""
        return rescale(sums, self.multipliers, self.zero_point, self.low, self.high, self.to)

    def data(self) -> dict[str, Any]:
        """For the emitter."""
        return {"zero": self.zero_point, "low": self.low, "high": self.high, "to": self.to}


def steps_of(region: Region, columns: int) -> Steps | None:
    """The requantization to 8 bits, with known multipliers, that is all that follows the anchor."""
    body, anchor = region.body, region.anchor
    if len(body.outputs) != 1:
        return None
    last = body.outputs[0].node
    node = body.node(last)
    if last == anchor or node.op != "requantize" or node.attrs["to"] not in ("int8", "uint8"):
        return None
    x, multiplier = body.args(last)
    if x is None or multiplier is None or x.node != anchor or node.attrs["x_zero_point"]:
        return None
    array = body.constant(multiplier)
    if multiplier.node in body.inputs:
        operand = region.inputs[body.inputs.index(multiplier.node)]
        channel_axis = 1 if region.op == "conv_integer" else region.anchor_type.rank - 1
        dims = [1] * (region.anchor_type.rank - operand.type.rank) + list(operand.type.dims)
        if any(d != 1 for i, d in enumerate(dims) if i != channel_axis):
            return None
        array = operand.const
    if array is None or array.size not in (1, columns):
        return None
    size = np.abs(array)
    if not ((size < FITS) & (size > LEAST_MULTIPLIER)).all():
        return None
    attrs = {key: plain(value) for key, value in node.attrs.items()}
    low, high = step_bounds(attrs["low"], attrs["high"], attrs["to"])
    full = np.broadcast_to(array.reshape(-1), (columns,)).astype(np.float32)
    return Steps(full, attrs["zero_point"], low, high, attrs["to"])
