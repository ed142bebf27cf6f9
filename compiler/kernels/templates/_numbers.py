"""Numbers that tell layers of one shape apart, as data: zero points, bounds, multipliers of one tensor.

Kept in a small constant array that the kernel reads, they let such layers share one kernel; written into the code they
would make a copy of it for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.selection import step_bounds
from ..expr import Program

ATTRS = ("x_zero_point", "zero_point", "a_zero_point", "b_zero_point", "low", "high")
OPS = ("requantize", "add_integer", "mul_integer")


class Numbers:
    """Collects them; ``array`` is what the kernel gets."""

    def __init__(self) -> None:
        self.values: list[int] = []

    @property
    def array(self) -> np.ndarray:
        return np.array(self.values or [0], np.int32)

    def put(self, value: int) -> dict[str, int]:
        """The place of an int32."""
        self.values.append(value)
        return {"at": len(self.values) - 1}

    def program(self, program: Program) -> Program:
        """The program without such numbers of its own."""
        users = {a for n in program["nodes"] if n["op"] in OPS for a in n["args"][1:]}
        first = len(program["inputs"])
        nodes = [self._node(n, first + i in users) for i, n in enumerate(program["nodes"])]
        found = {**program, "nodes": nodes}
        return {**found, "rescale": self._attrs(program["rescale"])} if "rescale" in program else found

    def _node(self, node: dict[str, Any], scales: bool) -> dict[str, Any]:
        if node["op"] in OPS:
            return {**node, "attrs": self._attrs(node["attrs"])}
        if scales and node["op"] == "const" and node["dtype"] in ("float32", "int32"):
            value = np.asarray(node["value"], node["dtype"]).view(np.int32)
            plain = {k: v for k, v in node.items() if k != "value"}
            return {**plain, "op": "number", "attrs": self.put(int(value))}
        return node

    def _attrs(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """What costs nothing as it is stays: no zero point, no bounds."""
        least, most = step_bounds(None, None, attrs["to"]) if "to" in attrs else (0, 0)
        free = {"low": (None, least), "high": (None, most), "zero_point": ()}
        return {k: self.put(v) if k in ATTRS and v not in free.get(k, (0,)) else v for k, v in attrs.items()}


def number(k: Any, held: Any, value: Any) -> Any:
    """An int32 number, known or read from the array ``held``."""
    from ..tir import constant

    return k.load(held, value["at"]) if isinstance(value, dict) else constant(value, "int32")
