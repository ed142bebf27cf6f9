"""An evaluator that reads ahead: what does not change in a loop is read before it.

Kernels that may write over what they have read (``Builder.noalias``) leave LLVM unable to move a load before a loop
that stores. This evaluator takes the numbers of a program at the kernel's start, and what ``hold`` names where it is
called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .evaluate import Coord, Evaluator
from .tir import Builder, Expr


class Ahead(Evaluator):
    """``count`` numbers of ``numbers`` are read at once."""

    def __init__(
        self, k: Builder, program: dict[str, Any], buffers: Sequence[Any], anchor: Any, numbers: Any, count: int
    ) -> None:
        self.values = [k.bind(k.load(numbers, i), "number") for i in range(count)]
        self.ahead: dict[tuple[int, int], Expr] = {}
        super().__init__(k, program, buffers, anchor, numbers)

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        attrs = node.get("attrs", {})
        return {**node, "attrs": {n: self.values[v["at"]] if isinstance(v, dict) else v for n, v in attrs.items()}}

    def read(self, index: int, coords: list[Coord], lanes: int = 1) -> Expr:
        found = self.ahead.get((index, lanes))
        return super().read(index, coords, lanes) if found is None else found

    def hold(self, reads: Sequence[int], axis: int, rank: int, first: Any, lanes: int) -> None:
        """Reads the inputs that vary along ``axis`` of ``rank`` alone, or not at all, for its elements from ``first``
        on; the lanes of others are forgotten."""
        self.ahead.clear()
        for index in reads:
            operand = self.inputs[index]
            shape = operand["shape"]
            own = axis - (rank - len(shape))
            if any(d > 1 for a, d in enumerate(shape) if a != own) or operand["dtype"] == "bool":
                continue
            varies = own >= 0 and shape[own] > 1
            coords: list[Coord] = [(0, 0)] * len(shape)
            if varies:
                coords[own] = (first, 1 if lanes > 1 else 0)
            self.ahead[index, lanes] = self.k.bind(super().read(index, coords, lanes), "ahead")
