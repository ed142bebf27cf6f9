"""What gradient rules are written in: symbolic tensors with operators, over the graph that is being differentiated.

A rule stands in its operator's record, beside the reference. It gets a ``Call`` of the forward operation and returns
one gradient for each input, None where there is none (indices, masks, what is not floating point)::

    def _tanh(c):
        return [c.g * (1 - c.y * c.y)]

Rules are written for whole outputs; sums over broadcast axes of elementwise operators are added by ``autodiff``. What a
rule reads of the forward pass (inputs ``c.x``, outputs ``c.y``) is what has to be kept for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import Graph, Value
from ..types import TensorType
from .numeric import numpy_dtype


class Sym:
    """A tensor of a graph under construction. Python numbers beside it take its element type; shapes broadcast."""

    __slots__ = ("graph", "origin", "value")

    def __init__(self, graph: Graph, value: Value, origin: tuple[str, ...]) -> None:
        self.graph, self.value, self.origin = graph, value, origin

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def type(self) -> TensorType:
        return self.graph.type(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.dims

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def rank(self) -> int:
        return self.type.rank

    # -- any operator ----------------------------------------------------------------------------------------------

    def op(self, name: str, *others: Any, **attrs: Any) -> Sym:
        """The first output of operator ``name`` on this tensor and ``others`` (tensors, numbers, None)."""
        return self.ops(name, *others, **attrs)[0]

    def ops(self, name: str, *others: Any, **attrs: Any) -> list[Sym]:
        """All outputs of operator ``name``."""
        args = [None if o is None else self._like(o).value for o in others]
        first = self.graph.add(name, self.value, *args, origin=self.origin, **attrs)
        return [Sym(self.graph, v, self.origin) for v in self.graph.values(first.node)]

    def constant(self, array: Any, dtype: str | None = None) -> Sym:
        """A constant tensor, of this one's element type unless said."""
        held = np.asarray(array, numpy_dtype(dtype or self.dtype))
        return Sym(self.graph, self.graph.const(held, origin=self.origin), self.origin)

    def _like(self, other: Any) -> Sym:
        return other if isinstance(other, Sym) else self.constant(other)

    # -- operators -------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Sym:
        return self.op("add", other)

    def __radd__(self, other: Any) -> Sym:
        return self._like(other).op("add", self)

    def __sub__(self, other: Any) -> Sym:
        return self.op("sub", other)

    def __rsub__(self, other: Any) -> Sym:
        return self._like(other).op("sub", self)

    def __mul__(self, other: Any) -> Sym:
        return self.op("mul", other)

    def __rmul__(self, other: Any) -> Sym:
        return self._like(other).op("mul", self)

    def __truediv__(self, other: Any) -> Sym:
        return self.op("div", other)

    def __rtruediv__(self, other: Any) -> Sym:
        return self._like(other).op("div", self)

    def __matmul__(self, other: Any) -> Sym:
        return self.op("matmul", other)

    def __neg__(self) -> Sym:
        return self.op("neg")

    def __lt__(self, other: Any) -> Sym:
        return self.op("less", other)

    def __le__(self, other: Any) -> Sym:
        return self.op("less_equal", other)

    def __gt__(self, other: Any) -> Sym:
        return self.op("greater", other)

    def __ge__(self, other: Any) -> Sym:
        return self.op("greater_equal", other)

    # -- what rules often want -------------------------------------------------------------------------------------

    def where(self, yes: Any, no: Any) -> Sym:
        """``yes`` where this (bool) tensor holds, else ``no``; one of them must be a tensor."""
        like = yes if isinstance(yes, Sym) else no
        return self.op("where", like._like(yes), like._like(no))

    def cast(self, dtype: str) -> Sym:
        return self if dtype == self.dtype else self.op("cast", to=dtype)

    def iota(self, shape: Sequence[int], axis: int) -> Sym:
        """The coordinate along one axis, of this tensor's element type."""
        found = self.graph.add("iota", shape=tuple(shape), axis=axis, dtype=self.dtype, origin=self.origin)
        return Sym(self.graph, found, self.origin)

    def concat(self, *others: Sym, axis: int = -1) -> Sym:
        return self.op("concat", *others, axis=axis)

    def sum(self, axes: Sequence[int], keepdims: bool = False) -> Sym:
        return self.op("reduce_sum", axes=tuple(axes), keepdims=keepdims) if axes else self

    def mean(self, axes: Sequence[int], keepdims: bool = False) -> Sym:
        return self.op("reduce_mean", axes=tuple(axes), keepdims=keepdims)

    def reshape(self, shape: Sequence[int]) -> Sym:
        return self if tuple(shape) == self.shape else self.op("reshape", shape=tuple(shape))

    def transpose(self, perm: Sequence[int]) -> Sym:
        return self.op("transpose", perm=tuple(perm))

    def swap(self) -> Sym:
        """The last two axes changed over."""
        lead = range(self.rank - 2)
        return self.transpose((*lead, self.rank - 1, self.rank - 2))

    def expand(self, shape: Sequence[int]) -> Sym:
        return self if tuple(shape) == self.shape else self.op("expand", shape=tuple(shape))

    def flip(self, axes: Sequence[int]) -> Sym:
        """Some axes (not negative) backwards."""
        turned = [i for i in axes if self.shape[i] > 1]
        ranges = [(d - 1, -1, -1) if i in turned else (0, d, 1) for i, d in enumerate(self.shape)]
        return self.cut(*zip(*ranges, strict=True)) if turned else self

    def cut(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int] | None = None) -> Sym:
        """``slice``, steps of 1 unless said."""
        steps = [1] * self.rank if steps is None else steps
        return self.op("slice", starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Sym:
        """Zeros around."""
        return self.op("pad", pads=(*before, *after)) if any((*before, *after)) else self

    def along(self, axis: int, matrix: np.ndarray) -> Sym:
        """Every line along ``axis`` (not negative) times a constant matrix [extent, new extent]."""
        lead, rest = self.shape[:axis], self.shape[axis + 1 :]
        if not rest:
            return self @ self.constant(matrix)
        flat = self.reshape((*lead, self.shape[axis], math.prod(rest)))
        return (self.constant(matrix.T) @ flat).reshape((*lead, matrix.shape[1], *rest))

    def zeros(self) -> Sym:
        """Zeros of this tensor's type."""
        return self.constant(0).expand(self.shape)

    def sum_to(self, shape: Sequence[int]) -> Sym:
        """Summed over the axes along which ``shape`` would be broadcast to this shape: the gradient of ``expand``."""
        lead = self.rank - len(shape)
        spread = [i + lead for i, d in enumerate(shape) if d == 1 and self.shape[i + lead] != 1]
        return self.sum([*range(lead), *spread]).reshape(shape)


@dataclass(frozen=True)
class Call:
    """One forward operation, as its gradient rule sees it. ``g`` holds a gradient for every output (zeros where nothing
    reads the output; ``used`` says which are real)."""

    xs: tuple[Sym | None, ...]
    ys: tuple[Sym, ...]
    gs: tuple[Sym, ...]
    attrs: Mapping[str, Any]
    used: tuple[bool, ...] = (True,)

    @property
    def x(self) -> Sym:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Sym:
        """The first output."""
        return self.ys[0]

    @property
    def g(self) -> Sym:
        """The gradient of the first output."""
        return self.gs[0]

    def input(self, index: int) -> Sym:
        """An input that must be there."""
        found = self.xs[index]
        assert found is not None
        return found

    def optional(self, index: int) -> Sym | None:
        """An input that may be absent."""
        return self.xs[index] if index < len(self.xs) else None


Gradient = Callable[[Call], Sequence[Sym | None]]
Training = Callable[[Call], Sequence[Sym]]
