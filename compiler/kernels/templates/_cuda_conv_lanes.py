"""What the convolutions for GPUs share when they are written: indices, conditions, and an evaluator whose lanes are
loaded and stored together.

A thread has several neighbouring channels of a point. What follows a convolution is computed for each of them by
itself; where an operand holds them side by side they are one access of up to 16 bytes (CUDA C++ Programming Guide,
"Device Memory Accesses"). Runs in worker processes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..evaluate import Evaluator
from ..functions import cast
from ..tir import constant
from ._cuda_conv_parts import WIDEST, is_float


def decoded(k: Any, index: Any, extents: Sequence[int]) -> list[Any]:
    """Coordinates of a running index, the last one fastest. Extents of 1 give the number 0."""
    from tvm import tirx

    found: list[Any] = []
    for i, extent in reversed(list(enumerate(extents))):
        if extent == 1:
            found.append(0)
        elif all(e == 1 for e in extents[:i]):
            found.append(index)
        else:
            found.append(k.bind(tirx.truncmod(index, extent), "at"))
            index = k.bind(tirx.truncdiv(index, extent), "rest")
    return found[::-1]


def within(at: Any, size: int) -> Any:
    """Whether ``0 <= at < size``: a Python bool where that is known."""
    from tvm import tirx

    if isinstance(at, int):
        return 0 <= at < size
    return tirx.all(at >= 0, at < size)


def both(*conditions: Any) -> Any:
    """All of them; a Python bool where that is known."""
    from tvm import tirx

    if any(c is False for c in conditions):
        return False
    open_ones = [c for c in conditions if c is not True]
    return True if not open_ones else open_ones[0] if len(open_ones) == 1 else tirx.all(*open_ones)


def padding(k: Any, value: int, dtype: str) -> Any:
    """What a tap outside the input reads, as an argument whose type C++ sees."""
    if is_float(dtype) or dtype == "int32":
        return constant(value, dtype)
    return k.device(f"{dtype}_t", dtype, value)


def number(condition: Any) -> Any:
    """A condition as an argument of a function."""
    from tvm import tirx

    return int(condition) if isinstance(condition, bool) else tirx.Cast("int32", condition)


def placed(axis: dict[str, Any], at: Any) -> Any:
    """The output's coordinate of a point of an axis."""
    step, first = axis["apart"], axis["first"]
    return at * step + first if first else at * step if step > 1 else at


class Lanes(Evaluator):
    """Evaluates neighbouring channels one by one; loads and stores them together where ``accesses`` says so."""

    def __init__(self, k: Any, config: dict[str, Any], reads: Sequence[Any], value: Callable[[], Any]) -> None:
        self.k: Any
        super().__init__(k, config["program"], reads, lambda _, coords: value())
        self.wide = config["accesses"]
        self.lanes, self.axis = self.wide["lanes"], self.wide["axis"]
        self.lane, self.first, self.here = 0, 0, 0
        self.loaded: dict[Any, Any] = {}

    def read(self, index: int, coords: list[Any], lanes: int = 1) -> Any:
        """One lane; of a load for all of them where it is the channel that runs."""
        from tvm import tirx

        mine = [a for a, (at, _) in enumerate(coords) if at is self.here]
        if self.lanes == 1 or len(mine) != 1 or mine[0] not in self.wide["inputs"][index]:
            return super().read(index, coords, lanes)
        others = tuple(id(at) if not isinstance(at, int) else ("n", at) for at, _ in coords if at is not self.here)
        key = (index, mine[0], others)
        if key not in self.loaded:
            base = [(self.first, 0) if a == mine[0] else c for a, c in enumerate(coords)]
            self.loaded[key] = (self._load(index, base), coords)
        value = self.k.load(self.loaded[key][0], self.lane)
        return tirx.NE(value, constant(0, "uint8")) if self.inputs[index]["dtype"] == "bool" else value

    def _load(self, index: int, coords: list[Any]) -> Any:
        dtype = _stored(self.inputs[index]["dtype"])
        held = self.k.array(wide_type(dtype), self.lanes, "lanes")
        base, _ = self.address(self.inputs[index]["strides"], coords)
        step = min(self.lanes, WIDEST // _itemsize(dtype))
        for at in range(0, self.lanes, step):
            self.k.run(f"nv_read<{step}>", (held, at), (self.buffers[index], base + at))
        return held

    def store_lanes(self, buffers: Sequence[Any], coords: list[Any], first: Any) -> None:
        """Every result at ``coords``, whose channels begin at ``first``."""
        self.begin()
        self.loaded.clear()
        self.first = first
        outs = self.program["outputs"]
        held = [self.k.array(_stored(o["dtype"]), self.lanes, "out") for o in outs]
        for lane in range(self.lanes):
            self.lane, self.here = lane, first + lane
            here = [(self.here, 0) if a == self.axis else c for a, c in enumerate(coords)]
            for j, out in enumerate(outs):
                value = self.result(j, here)
                self.k.store(held[j], self.lane, _as_stored(value, out["dtype"]))
        for j, out in enumerate(outs):
            self._write(buffers[j], held[j], out, coords, self.wide["outputs"][j])
        self.begin()

    def _write(self, buffer: Any, held: Any, out: dict[str, Any], coords: list[Any], wide: bool) -> None:
        step = min(self.lanes, WIDEST // _itemsize(_stored(out["dtype"]))) if wide else 1
        for at in range(0, self.lanes, step):
            here = [(self.first + at, 0) if a == self.axis else c for a, c in enumerate(coords)]
            base, _ = self.address(out["strides"], here)
            if step == 1:
                self.k.store(buffer, base, self.k.load(held, at))
            else:
                self.k.run(f"nv_write<{step}>", (buffer, base), (held, at))


def _stored(dtype: str) -> str:
    return "uint8" if dtype == "bool" else dtype


def wide_type(dtype: str) -> str:
    """The type that arithmetic is done in."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def _as_stored(value: Any, dtype: str) -> Any:
    from tvm import tirx

    return tirx.Cast("uint8", value) if dtype == "bool" else value


def _itemsize(dtype: str) -> int:
    return {"bfloat16": 2}.get(dtype) or np.dtype(dtype).itemsize


class Kernel:
    """A convolution's arguments and its epilogue, for one thread's channels of a point."""

    def __init__(self, k: Any, config: dict[str, Any], first: Sequence[Any]) -> None:
        """``first``: the arguments before those of the epilogue, already made."""
        program = config["program"]
        self.k, self.config = k, config
        self.first = first
        reads: list[Any] = [None] * len(program["inputs"])
        for i in config["reads"]:
            reads[i] = k.arg(f"x{i}", program["inputs"][i]["dtype"], program["inputs"][i]["span"])
        self.outputs = [k.arg(f"y{j}", o["dtype"], o["span"]) for j, o in enumerate(program["outputs"])]
        self.sums: tuple[Any, Any] = (None, 0)
        self.ev = Lanes(k, config, reads, self._value)
        k.contract = is_float(config["dtype"])

    def _value(self) -> Any:
        value, bias = self.k.load(self.sums[0], self.sums[1] + self.ev.lane), self.config["bias"]
        if bias is not None:
            value = value + cast(self.ev.read(bias, [(self.ev.here, 0)]), self.config["dtype"])
        return cast(value, wide_type(self.config["type"]))

    def finish(self, place: Sequence[Any], channel: Any, sums: tuple[Any, Any]) -> None:
        """Stores a point at ``place`` (batch and three spatial coordinates, of which those of the rank count), whose
        channels begin at ``channel`` and their sums at that place of an array."""
        rank = self.config["rank"]
        self.sums = sums
        spatial = [(p, 0) for p in place[1:]][3 - (rank - 2) :]
        self.ev.store_lanes(self.outputs, [(place[0], 0), (channel, 0), *spatial], channel)
