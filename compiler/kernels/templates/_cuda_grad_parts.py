"""What the kernels of weights' gradients on a GPU share: the work behind a sum, and numbers as indices."""

from __future__ import annotations

import math
from typing import Any

Data = dict[str, Any]


class Ending:
    """The elementwise work behind the sums, of one weight at a time. Takes what it reads and the outputs as arguments.
    ``dims``: input channels of a group, the kernel's three axes, how many of them the weights have."""

    def __init__(self, k: Any, finish: Data, dims: list[Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.dims, program = k, dims, finish["program"]
        buffers: list[Any] = [None] * len(program["inputs"])
        for i in finish["reads"]:
            buffers[i] = k.arg(f"e{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outs = [k.arg(f"y{j}", o["dtype"], o["span"]) for j, o in enumerate(program["outputs"])]
        self.sum: Any = None
        self.dtype = next(n["dtype"] for n in program["nodes"] if n["op"] == "anchor")
        self.ev = Evaluator(k, program, buffers, anchor=lambda _, coords: self._value())

    def _value(self) -> Any:
        from ..functions import cast

        return cast(self.sum, self.dtype)

    def put(self, number: Any, value: Any) -> None:
        """Ends a weight: its number by output channel, tap, input channel, and the sum."""
        from ..evaluate import scalar_coords

        k, (depth, kernel, rank) = self.k, self.dims
        taps = math.prod(kernel)
        number = k.bind(number, "number")
        tap = k.bind(mod(div(number, depth), taps), "tap")
        places = [k.bind(i, "index") for i in indices(tap, kernel)[3 - rank :]]
        coords = [k.bind(div(number, depth * taps), "channel"), k.bind(mod(number, depth), "input"), *places]
        self.sum = k.bind(value, "sum")
        self.ev.begin()
        self.ev.store_all(self.outs, scalar_coords(coords))


def leaves(config: Data, axis: int) -> bool:
    """Whether some tap of some point lies beside x along an axis."""
    reach = (config["out"][axis] - 1) * config["strides"][axis] + (config["kernel"][axis] - 1) * config["dilations"][
        axis
    ]
    pad = config["pads"][axis]
    return bool(pad > 0 or reach - pad >= config["size"][axis])


def indices(number: Any, extents: list[int]) -> list[Any]:
    """A number in row-major order as indices."""
    _, y, x = extents
    return [div(number, y * x), mod(div(number, x), y), mod(number, x)]


def div(a: Any, b: int) -> Any:
    from tvm import tirx

    return a if b == 1 else a // b if isinstance(a, int) else tirx.truncdiv(a, b)


def mod(a: Any, b: int) -> Any:
    from tvm import tirx

    return 0 if b == 1 else a % b if isinstance(a, int) else tirx.truncmod(a, b)


def every(conditions: list[Any]) -> Any:
    """All of them; those that are known now (Python's bools) cost nothing."""
    from tvm import tirx

    if any(c is False for c in conditions):
        return False
    rest = [c for c in conditions if c is not True]
    return tirx.all(*rest) if rest else True


def least(a: Any, b: int) -> Any:
    from tvm import tirx

    return tirx.Min(a, tirx.IntImm("int32", b)) if not isinstance(a, int) else min(a, b)
