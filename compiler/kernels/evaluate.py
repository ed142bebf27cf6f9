"""Evaluates a serialized body inside a kernel: at scalar coordinates, or for a vector of lanes along one axis.

A coordinate is a pair ``(base, step)``: lane ``l`` is at ``base + step * l``; ``step`` is an integer, 0 where all lanes
agree, or None where ``base`` is itself a vector of indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from .functions import COORDINATE, FUNCTIONS, MOVES, cast
from .tir import Builder, Expr, constant, dtype_of, lanes_of, reinterpreted, splat

Coord = tuple[Any, int | None]
HALVES = ("float16", "bfloat16")


def scalar_coords(indices: Sequence[Expr]) -> list[Coord]:
    return [(i, 0) for i in indices]


class Evaluator:
    """Reads one program. ``buffers`` are the region inputs' buffers (None for those the template reads itself);
    ``anchor`` maps an anchor output's number (0 for the first) and coordinates to its value. ``numbers`` is the array
    that ``templates._numbers`` put some of the program's numbers into.

    Values with several users are computed once into a register: ``begin()`` forgets them, and must be called wherever
    the coordinates' loop variables change (at the top of each innermost body).

    Where the builder says so (``widens``: GPUs) values of float16 and bfloat16 are float32 from load to store, so that
    fused work rounds once: ``value`` then gives float32, ``result`` and ``store`` the element type of the result.
    """

    def __init__(
        self,
        builder: Builder,
        program: dict[str, Any],
        buffers: Sequence[Any],
        anchor: Callable[[int, list[Coord]], Expr] | None = None,
        numbers: Any = None,
    ) -> None:
        self.k, self.program, self.buffers, self.anchor = builder, program, list(buffers), anchor
        self.numbers = numbers
        self.inputs = program["inputs"]
        self.nodes = [self.resolved(n) for n in program["nodes"]]
        self._uses: dict[int, int] = {}
        for node in self.nodes:
            for a in node["args"]:
                if a is not None:
                    self._uses[a] = self._uses.get(a, 0) + 1
        for r in program["results"]:
            self._uses[r] = self._uses.get(r, 0) + 1
        self._held: dict[Any, Expr] = {}
        self._kept: list[Any] = []

    def resolved(self, node: dict[str, Any]) -> dict[str, Any]:
        """A node whose attributes that lie in ``numbers`` are read from there."""
        held = self.numbers
        if held is None or not any(isinstance(v, dict) for v in node.get("attrs", {}).values()):
            return node
        found = {n: self.k.load(held, v["at"]) if isinstance(v, dict) else v for n, v in node["attrs"].items()}
        return {**node, "attrs": found}

    def begin(self) -> None:
        self._held.clear()
        self._kept.clear()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is computed inside, under a condition, is forgotten afterwards; what was known before is not."""
        before = dict(self._held)
        yield
        self._held = before

    def result(self, index: int, coords: list[Coord], lanes: int = 1) -> Expr:
        """The value of result ``index`` there, of the result's element type."""
        value = splat(self.value(self.program["results"][index], coords, lanes), lanes)
        return cast(value, self.program["outputs"][index]["dtype"]) if self.k.widens else value

    def store(self, index: int, buffer: Any, coords: list[Coord], lanes: int = 1) -> None:
        """Evaluates result ``index`` and stores it by the output operand's strides."""
        out = self.program["outputs"][index]
        value = self.result(index, coords, lanes)
        if out["dtype"] == "bool":
            value = tirx.Cast("uint8" if lanes == 1 else f"uint8x{lanes}", value)
        base, step = self.address(out["strides"], coords)
        if step is None:
            self.k.emit(tirx.BufferStore(buffer, value, [base]))
        else:
            self.k.store(buffer, base, value, step)

    def store_all(self, buffers: Sequence[Any], coords: list[Coord], lanes: int = 1) -> None:
        """Stores every result there. All are computed before the first is stored: an output may lie where an input
        of another one does."""
        if len(buffers) > 1:
            for index in self.program["results"]:
                self._held[self._key(index, coords, lanes)] = self.k.bind(self.value(index, coords, lanes))
        for index, buffer in enumerate(buffers):
            self.store(index, buffer, coords, lanes)

    def address(self, strides: Sequence[int], coords: Sequence[Coord]) -> Coord:
        """The element offset of coordinates."""
        base: Any = 0
        step: int | None = 0
        lanes = max((lanes_of(b) for b, s in coords if s is None), default=1)
        for (b, s), stride in zip(coords, strides, strict=True):
            if stride == 0:
                continue
            base = base + b * stride if not (isinstance(b, int) and b == 0) else base
            step = None if s is None or step is None else step + s * stride
        if step is None:
            base = sum(
                (
                    _lanewise(b, s, lanes) * constant(stride, "int32", lanes)
                    for (b, s), stride in zip(coords, strides, strict=True)
                    if stride
                ),
                start=constant(0, "int32", lanes),
            )
        return base, step

    def read(self, index: int, coords: list[Coord], lanes: int = 1) -> Expr:
        """Element(s) of region input ``index``."""
        operand = self.inputs[index]
        base, step = self.address(operand["strides"], coords)
        buffer = self.buffers[index]
        if step is None:
            value = tirx.BufferLoad(buffer, [base])
        elif step == 0:
            value = self.k.load(buffer, base)
        else:
            value = self.k.load(buffer, base, lanes, step)
        if operand["dtype"] == "bool":
            value = tirx.NE(value, constant(0, "uint8", lanes_of(value)))
        return value

    def value(self, at: int, coords: list[Coord], lanes: int = 1) -> Expr:
        """The value numbered ``at`` at its own coordinates."""
        key = self._key(at, coords, lanes)
        if key in self._held:
            return self._held[key]
        found = self._compute(at, coords, lanes)
        if self.k.widens and not isinstance(found, int | float) and dtype_of(found) in HALVES:
            found = cast(found, "float32")
        if self._uses.get(at, 0) > 1 and not isinstance(found, int | float):
            found = self.k.bind(found)
        self._held[key] = found
        self._kept.append(coords)  # keys hold identities: keep the objects alive
        return found

    def _key(self, at: int, coords: list[Coord], lanes: int) -> Any:
        return (at, lanes, tuple((id(b) if not isinstance(b, int) else ("n", b), s) for b, s in coords))

    def _compute(self, at: int, coords: list[Coord], lanes: int) -> Expr:
        if at < len(self.inputs):
            return self.read(at, coords, lanes)
        node = self.nodes[at - len(self.inputs)]
        op = node["op"]
        if op == "anchor":
            assert self.anchor is not None
            return self.anchor(self.program["anchor"].index(at), coords)
        if op == "const":
            return constant(node["value"], node["dtype"])
        if op == "number":
            return reinterpreted(self.k.load(self.numbers, node["attrs"]["at"]), node["dtype"])
        if op in MOVES:
            return MOVES[op](self, node, coords, lanes)
        if op in COORDINATE:
            return COORDINATE[op](self, node, coords, lanes)
        args = [None if a is None else self.value(a, self.broadcast(a, node, coords), lanes) for a in node["args"]]
        width = max((lanes_of(a) for a in args if a is not None), default=1)
        return FUNCTIONS[op](self.k, node, *[None if a is None else splat(a, width) for a in args])

    def shape(self, at: int) -> list[int]:
        found: list[int] = (self.inputs[at] if at < len(self.inputs) else self.nodes[at - len(self.inputs)])["shape"]
        return found

    def dtype(self, at: int) -> str:
        """The element type in which ``value`` gives it."""
        found: str = (self.inputs[at] if at < len(self.inputs) else self.nodes[at - len(self.inputs)])["dtype"]
        return "float32" if self.k.widens and found in HALVES else found

    def broadcast(self, at: int, node: dict[str, Any], coords: list[Coord]) -> list[Coord]:
        """The coordinates of an argument that is broadcast to ``node``'s shape."""
        shape, out = self.shape(at), node["shape"]
        own = coords[len(coords) - len(shape) :] if shape else []
        return [
            (0, 0) if d == 1 and o != 1 else c for d, o, c in zip(shape, out[len(out) - len(shape) :], own, strict=True)
        ]


def _lanewise(base: Expr, step: int | None, lanes: int) -> Expr:
    if step is None:
        return base
    if isinstance(base, int):
        base = constant(base, "int32")
    return tirx.Broadcast(base, lanes) if step == 0 else tirx.Ramp(base, step, lanes)


def lanewise(coord: Coord, lanes: int) -> Expr:
    """A coordinate as a plain expression: scalar for one lane, a vector of indices otherwise."""
    base, step = coord
    if lanes == 1:
        return base if not isinstance(base, int) else constant(base, "int32")
    return _lanewise(base, step, lanes)
