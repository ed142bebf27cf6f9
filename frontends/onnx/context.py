"""What a lowering rule works with: the node that it lowers and a builder that folds constants as it goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...compiler.interpret import evaluate
from ...compiler.ir import Graph, Node, Value
from ...compiler.ops import OPS, OpError, infer
from ...compiler.ops.numeric import numpy_dtype
from ...compiler.ops.weights import HALVES
from ...compiler.types import TensorType, is_float
from ...errors import NervureError
from .tensors import MAX_BYTES

MAX_UNROLLED = 20_000  # nodes that loops and functions may become
FOLD_BYTES = 1 << 20  # a constant may grow up to here; beyond, only if it does not outgrow what it is made of


class Unsupported(Exception):
    """Raised by a rule: this form of the operator cannot be imported. All of a model's are reported together."""

    def __init__(self, why: str, hint: str | None = None) -> None:
        self.why = why
        self.hint = hint
        super().__init__(why)


@dataclass(slots=True)
class OnnxNode:
    """One ONNX node with its inputs resolved. ``version`` is the opset of its domain; ``path`` its place."""

    op_type: str
    domain: str
    version: int
    inputs: list[Value | None]
    outputs: list[str]  # "" for one that nobody asked for
    attrs: Mapping[str, Any]
    path: str
    scope: Any = None
    proto: Any = None
    sources: list[str] = field(default_factory=list)  # the inputs' ONNX names

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def input(self, index: int) -> Value:
        """A required input."""
        found = self.optional(index)
        if found is None:
            raise NervureError(f"{self.op_type} lacks input {index}", where=self.path)
        return found

    def optional(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def wants(self, index: int) -> bool:
        """Whether output ``index`` has a name, so that somebody may use it."""
        return index < len(self.outputs) and bool(self.outputs[index])


class Context:
    """Builds the graph. Every operation on constants alone is computed at once (``op``), within bounds."""

    def __init__(self, graph: Graph, reserved: set[str]) -> None:
        self.graph = graph
        self.reserved = reserved  # names that belong to tensors of the file
        self.origin: tuple[str, ...] = ()
        self.hint = "tensor"
        self.shared: set[Value] = set()  # constants that several nodes of the file use
        self.stored_as: dict[Value, str] = {}  # constants of a type that was widened -> ONNX's name of it
        self._scalars: dict[tuple[str, bytes], Value] = {}
        self._tried: dict[str, int] = {}  # hint -> the last number that was tried behind it

    # -- reading ---------------------------------------------------------------------------------------------------

    def type(self, value: Value) -> TensorType:
        return self.graph.type(value)

    def shape(self, value: Value) -> tuple[int, ...]:
        return self.graph.type(value).dims

    def rank(self, value: Value) -> int:
        return self.graph.type(value).rank

    def dtype(self, value: Value) -> str:
        return self.graph.type(value).dtype

    def is_float(self, value: Value) -> bool:
        return is_float(self.dtype(value))

    def array(self, value: Value | None) -> np.ndarray | None:
        found = self.graph.constant(value)
        if found is None and value is not None and self.graph.node(value).op in ("dequantize", "cast"):
            arrays = [self.graph.constant(a) for a in self.graph.args(value.node)]
            if all(a is not None for a in arrays):
                found = evaluate(self.graph.node(value), arrays)[0]
        return found

    def need(self, value: Value | None, what: str) -> np.ndarray:
        """The array of a constant; ``Unsupported`` where it is only known at run time."""
        if value is None:
            raise NervureError(f"{what} is missing", where=self.origin)
        found = self.array(value)
        if found is None:
            raise Unsupported(f"{what} is computed at run time", f"make {what} a constant of the model")
        return found

    def ints(self, value: Value | None, what: str) -> tuple[int, ...]:
        """A constant of integers as a flat tuple."""
        array = self.need(value, what)
        if array.size > 4096:
            raise NervureError(f"{what} has {array.size} elements", where=self.origin)
        return tuple(int(v) for v in array.reshape(-1))

    def listed(self, n: OnnxNode, name: str, index: int, what: str) -> tuple[int, ...] | None:
        """Integers that old opsets give as attribute ``name`` and new ones as input ``index``; None if absent."""
        if (given := n.attr(name)) is not None:
            return tuple(given)
        return None if n.optional(index) is None else self.ints(n.optional(index), what)

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise NervureError(f"axis {axis} does not exist in a tensor of rank {rank}", where=self.origin)
        return axis % rank if rank else 0

    # -- building --------------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A tensor name that neither the file nor the graph has."""
        i = self._tried.get(hint, 0)
        name = f"{hint}.{i}" if i else hint
        while name in self.reserved or self.graph.unique(name) != name:
            i += 1
            name = f"{hint}.{i}"
        self._tried[hint] = i
        return name

    def const(self, array: Any, dtype: str | None = None) -> Value:
        held = np.asarray(array, dtype=None if dtype is None else numpy_dtype(dtype))
        return self.graph.const(held, self.fresh(f"{self.hint}/const"), self.origin)

    def scalar(self, number: Any, dtype: str) -> Value:
        """A constant of rank 0; equal ones are one tensor."""
        with np.errstate(all="ignore"):
            array = np.asarray(number).astype(numpy_dtype(dtype))
        key = (dtype, array.tobytes())
        if key not in self._scalars:
            self._scalars[key] = self.graph.const(array, self.fresh(f"const/{number}"), self.origin)
        return self._scalars[key]

    def like(self, number: Any, value: Value) -> Value:
        """A scalar of ``value``'s element type."""
        return self.scalar(number, self.dtype(value))

    def many(self, name: str, *args: Value | None, **attrs: Any) -> list[Value]:
        """All outputs of one operation of the table, folded if its inputs are constants."""
        try:
            folded = self._fold(name, args, attrs)
            if folded is not None:
                return folded
            hint = [self.fresh(f"{self.hint}/{name}")]
            first = self.graph.add(name, *args, names=hint, origin=self.origin, **attrs)
        except OpError as error:
            raise NervureError(f"{name} does not fit its inputs", where=self.origin, why=str(error)) from error
        results = self.graph.values(first.node)
        self.guard(*(self.graph.type(v) for v in results))
        return results

    def op(self, name: str, *args: Value | None, **attrs: Any) -> Value:
        """The first output of one operation of the table."""
        return self.many(name, *args, **attrs)[0]

    def guard(self, *types: TensorType) -> None:
        for t in types:
            if t.rank > 32:
                raise NervureError(f"a tensor of {t.rank} dimensions", where=self.origin)
            if t.nbytes > MAX_BYTES:
                raise NervureError(
                    f"a tensor of {t.nbytes / 1e9:.3g} GB",
                    where=self.origin,
                    why=f"{t}; nothing beyond {MAX_BYTES / 1e9:.3g} GB is compiled",
                    hint="check the shapes of the model's inputs",
                )

    def _fold(self, name: str, args: Sequence[Value | None], attrs: Mapping[str, Any]) -> list[Value] | None:
        arrays = [self.graph.constant(a) if a is not None else None for a in args]
        record = OPS.get(name)
        if record is None or record.reference is None or not record.pure:
            return None
        if any(a is not None and v is None for a, v in zip(args, arrays, strict=True)):
            return None
        types, filled = infer(name, [None if a is None else self.type(a) for a in args], attrs, arrays)
        self.guard(*types)
        if name == "dequantize" and types[0].size > 1:
            return None  # quantized weights stay integers: see passes/integers.py
        source = args[0] if args else None
        halved = name == "cast" and source is not None and self.dtype(source) in HALVES and filled["to"] == "float32"
        if halved and types[0].rank > 1:
            return None  # and halved ones halves: see passes/weights.py
        size = sum(t.nbytes for t in types)
        if size > FOLD_BYTES and size > self._released(args):
            return None
        node = Node(name, filled, tuple(types), ("",) * len(types), self.origin)
        return [self.const(result) for result in evaluate(node, arrays)]

    def _released(self, args: Sequence[Value | None]) -> int:
        """Bytes of constants that folding makes superfluous: those that other nodes use too stay."""
        return sum(self.type(a).nbytes for a in set(args) if a is not None and a not in self.shared)

    # -- everyday forms (each is nothing where there is nothing to do) ---------------------------------------------

    def reshape(self, x: Value, shape: Iterable[int]) -> Value:
        wanted = tuple(int(d) for d in shape)
        return x if self.shape(x) == wanted else self.op("reshape", x, shape=wanted)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        return x if tuple(perm) == tuple(range(len(perm))) else self.op("transpose", x, perm=tuple(perm))

    def cast(self, x: Value, to: str) -> Value:
        return x if self.dtype(x) == to else self.op("cast", x, to=to)

    def expand(self, x: Value, shape: Iterable[int]) -> Value:
        wanted = tuple(int(d) for d in shape)
        return x if self.shape(x) == wanted else self.op("expand", x, shape=wanted)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        return parts[0] if len(parts) == 1 else self.op("concat", *parts, axis=axis)

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """One axis, numpy's rules for bounds."""
        from ...compiler.ops.movement import normal_slice

        if (start, stop, step) == (0, self.shape(x)[axis], 1):
            return x
        return self.op("slice", x, **normal_slice(self.shape(x), (start,), (stop,), (step,), (axis,)))

    def squeeze(self, x: Value, axes: Iterable[int]) -> Value:
        drop = {self.axis(a, self.rank(x)) for a in axes}
        shape = self.shape(x)
        wrong = [a for a in drop if shape[a] != 1]
        if wrong:
            raise NervureError(f"axis {wrong[0]} of {self.type(x)} is not 1 and cannot be squeezed", where=self.origin)
        return self.reshape(x, [d for i, d in enumerate(shape) if i not in drop])

    def unsqueeze(self, x: Value, axes: Iterable[int]) -> Value:
        listed = list(axes)
        rank = self.rank(x) + len(listed)
        at = {self.axis(a, rank) for a in listed}
        if len(at) != len(listed):
            raise NervureError(f"axes {listed} name one axis twice", where=self.origin)
        rest = iter(self.shape(x))
        return self.reshape(x, [1 if i in at else next(rest) for i in range(rank)])

    def filled(self, shape: Sequence[int], number: Any, dtype: str) -> Value:
        """A constant tensor of one value, stored only if it is small."""
        t = TensorType(dtype, tuple(shape))
        self.guard(t)
        return self.expand(self.scalar(number, dtype), shape)

    def per_axis(self, x: Value, rank: int, axis: int) -> Value:
        """A vector shaped to broadcast along ``axis`` of a tensor of ``rank``."""
        return self.reshape(x, [math.prod(self.shape(x)) if i == axis else 1 for i in range(rank)])

    def reduce(self, kind: str, x: Value, axes: Sequence[int], keepdims: bool = True) -> Value:
        """``reduce_sum``, ``reduce_mean``, ...; over no axes it is nothing."""
        return self.op(f"reduce_{kind}", x, axes=tuple(axes), keepdims=keepdims) if axes else x
