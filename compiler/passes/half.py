"""Half precision: float32 weights and activations become float16 or bfloat16, in memory.

``half(graph, dtype)`` works on a canonical graph, before fusion. Kernels compute in float32 whatever they read (tensor
cores sum in float32, and fused work is float32 from load to store), so that what counts is which *tensors* are narrow.
Inputs, outputs, params and states keep their types: casts stand at the border, and fuse with what is beside them.

Four kinds of operators:

- ``NARROW``: contractions. What they read and give is narrow, unless what they multiply counts something (below).
- ``KEPT``: what must stay float32, with the reason. Products that only feed these are float32 too. So is the mean of
  products (a variance); other means are no larger than what they are of.
- ``BOUNDED``: results are small numbers whatever went in: float32 ends here, where one began.
- All others go with their inputs: float32 where one of them is.

A number that float16 does not hold (masks of -1e9, epsilons of 1e-12) keeps its operation in float32, and so does what
an integer was made of (positions, counts: float16 is exact up to 2048, bfloat16 up to 256), through elementwise work
and contractions of nothing but that. What leaves float32 for float16 is clipped to its range, so that a mask stays a
mask. Infinite masks are held as they are. A second run changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from ...errors import NervureError
from ...targets.machine import Machine
from ..ir import STORED, Graph, Node, Value
from ..ops import OPS, Kind, infer
from ..ops.numeric import numpy_dtype
from ..ops.weights import HALVES

PRECISIONS: Final[Mapping[str, str]] = {"fp16": "float16", "bf16": "bfloat16"}
LARGEST = 65504.0  # of float16
_LEAST = 2.0**-14  # the least number that float16 holds with all its bits
_SUMS = "a sum or product of many numbers leaves the range, and its rounding errors add up"
_RANGE = "its results leave the range of float16 for ordinary arguments"
_TIME = "rounding errors add up from step to step"
_PLACES = "coordinates: half types do not hold places in a picture"
_INTEGERS = "its scales and sums are part of integer arithmetic"

NARROW = ("matmul", "conv", "conv_transpose", "attention")
KEPT: Final[Mapping[str, str]] = {
    **dict.fromkeys(("reduce_sum", "reduce_prod", "cumsum", "cumprod"), _SUMS),
    **dict.fromkeys(("exp", "expm1", "sinh", "cosh", "tan", "pow", "reciprocal", "rsqrt", "log", "log1p"), _RANGE),
    **dict.fromkeys(("mod", "fmod", "batch_norm"), _RANGE),
    **dict.fromkeys(("lstm", "gru", "rnn", "lstm_scan", "gru_scan", "rnn_scan"), _TIME),
    **dict.fromkeys(("lstm_scan_grad", "gru_scan_grad", "rnn_scan_grad"), _TIME),
    **dict.fromkeys(("conv_grad_weight", "max_pool_grad"), "gradients"),
    **dict.fromkeys(("iota", "nms", "grid_sample", "roi_align"), _PLACES),
    **dict.fromkeys(("quantize", "dequantize", "requantize", "softmax_integer", "conv_integer"), _INTEGERS),
    **dict.fromkeys(("lstm_integer", "gru_integer", "matmul_integer", "sum_pool_integer"), _INTEGERS),
    **dict.fromkeys(("matmul_narrow", "conv_narrow", "gather_narrow"), "weights are narrow already"),
    "log_softmax": "losses are computed from it",
    "scatter_elements": "updates may be sums",
    "scatter_nd": "updates may be sums",
}
BOUNDED = (
    *("softmax", "layer_norm", "rms_norm", "group_norm", "sigmoid", "tanh", "erf", "sin", "cos", "atan"),
    *("hard_sigmoid", "sign"),
)
_SCALING = ("mul", "div")  # may leave the range where their factors do not
_EXACT = {"float16": ("bool", "int8", "uint8"), "bfloat16": ("bool", "int8", "uint8")}  # integers that fit


def half_type(precision: str, machine: Machine, graph: Graph) -> str | None:
    """The element type of ``--precision fp16`` and ``bf16``, None for the others (``tf32`` changes products alone).

    ``NervureError`` where the machine has no arithmetic of such types, or where the graph trains.
    """
    dtype = PRECISIONS.get(precision)
    if machine.gpu is None and (dtype or precision == "tf32"):
        raise NervureError(
            f"--precision {precision} on {machine.name}",
            why="it is for GPUs: this target has no fast arithmetic of that type",
            hint="compile for cuda (--target cuda-sm80, ...)"
            + (f", or store the weights alone in half: nervure quantize --mode {precision}" if dtype else ""),
        )
    if dtype is None:
        return None
    if any(graph.node(key).op == "param" for key in graph.bindings):
        raise NervureError(
            f"--precision {precision} for a network that trains",
            why="gradients and the optimizer's steps would be lost in the rounding",
            hint="leave it out: float32 products run on tensor cores too (TF32)",
        )
    return dtype


def half(graph: Graph, dtype: str) -> Graph:
    """A copy of a canonical graph that computes in ``dtype``: see the module's text."""
    return _Rewriting(graph.copy(), _Kept(graph, dtype)).done()


class _Kept:
    """Which nodes stay float32 (``wide``), and which of these are bounded (``tame``)."""

    def __init__(self, graph: Graph, dtype: str) -> None:
        self.graph, self.dtype = graph, dtype
        self.wide: set[int] = set()
        self.tame: set[int] = set()
        self.counts: set[int] = set()  # made of nothing but integers and constants
        self.order = [k for k in graph.order() if graph.node(k).op not in STORED and _real(graph, k)]
        for key in self.order:
            self._decide(key)
        for key in reversed(self.order):
            self._lift(key)
            self._lower(key)

    def _decide(self, key: int) -> None:
        node = self.graph.node(key)
        given = [a for a in self.graph.args(key) if a is not None and self.graph.type(a).dtype == "float32"]
        if node.op == "cast":
            self._cast(key, node)
            return
        computed = [a.node for a in given if self.graph.node(a).op not in STORED]
        counts = bool(computed) and all(n in self.counts for n in computed)
        if node.op == "iota" or (counts and node.op not in BOUNDED):
            self.counts.add(key)
        forced = any(n in self.wide and n not in self.tame for n in computed)
        misfit = any(not self._fits(a) for a in given)
        squares = node.op == "reduce_mean" and any(self.graph.node(n).op in _SCALING for n in computed)
        if node.op in KEPT or squares:
            self.wide.add(key)
        elif node.op in NARROW:
            if counts or (node.op != "attention" and misfit):
                self.wide.add(key)
        elif forced or misfit:
            self.wide.add(key)
            if node.op in BOUNDED:
                self.tame.add(key)

    def _cast(self, key: int, node: Node) -> None:
        """To float32: narrow where the type holds such integers; from float32: that of what is cast."""
        source = self.graph.args(key)[0]
        assert source is not None
        have = self.graph.type(source).dtype
        if node.attrs["to"] == "float32" and have not in _EXACT[self.dtype]:
            self.wide.add(key)
            if have not in HALVES:
                self.counts.add(key)
            else:
                self.tame.add(key)

    def _fits(self, value: Value) -> bool:
        """Whether the type holds a constant, but for infinities; of a single number also its smallness."""
        array = self.graph.constant(value)
        if array is None or self.dtype != "float16":
            return True
        size = np.abs(array[np.isfinite(array) & (array != 0)])
        if not size.size:
            return True
        return bool(size.max() <= LARGEST) and (array.size > 1 or bool(size.min() >= _LEAST))

    def _lift(self, key: int) -> None:
        """Products, and views of them, that only float32 reads are float32, and elementwise work and scores that are
        shown: a softmax of rounded scores would be wrong in its third digit."""
        node = self.graph.node(key)
        kind = OPS[node.op].kind
        plain = (kind in (Kind.ELEMENTWISE, Kind.VIEW) and node.op != "cast") or node.op in BOUNDED
        if key in self.wide or not plain or any(t.dtype != "float32" for t in node.types):
            return
        users = {user for value in self.graph.values(key) for user, _ in self.graph.users(value)}
        shown = self._shown(key)
        casts = all(self.graph.node(u).op == "cast" for u in users)
        moves = node.op in (*_SCALING, *BOUNDED) or kind == Kind.VIEW or casts
        if (shown or (users and moves)) and all(u in self.wide or self.graph.node(u).op == "cast" for u in users):
            self.wide.add(key)

    def _lower(self, key: int) -> None:
        """Views of float32 that nothing reads as such are narrow: the cast then stands before them, beside work."""
        graph, node = self.graph, self.graph.node(key)
        if key not in self.wide or key in self.counts or OPS[node.op].kind != Kind.VIEW or self._shown(key):
            return
        users = {user for user, _ in graph.users(Value(key))}
        if users and not any(u in self.wide or graph.node(u).op == "cast" for u in users):
            self.wide.remove(key)

    def _shown(self, key: int) -> bool:
        return any(v.node == key for v in (*self.graph.outputs, *self.graph.bindings.values()))


class _Rewriting:
    """Casts where narrow and wide meet, and types that follow."""

    def __init__(self, graph: Graph, kept: _Kept) -> None:
        self.graph, self.dtype, self.wide, self.tame, self.order = graph, kept.dtype, kept.wide, kept.tame, kept.order
        self.before = {v for key in graph.nx for v in graph.values(key) if graph.type(v).dtype == "float32"}
        self.narrowed: dict[Value, Value] = {}
        self.widened: dict[Value, Value] = {}

    def done(self) -> Graph:
        graph = self.graph
        for key in self.order:
            self._node(key, graph.node(key))
        graph.outputs = [self._wide(v) for v in graph.outputs]
        graph.bindings = {k: self._wide(v) for k, v in graph.bindings.items()}
        graph.prune()
        return graph

    def _node(self, key: int, node: Node) -> None:
        graph = self.graph
        for i, arg in enumerate(graph.args(key)):
            if arg is not None and node.op != "cast":
                found = self._wide(arg) if key in self.wide else self._narrow(arg)
                if found != arg:
                    graph.set_arg(key, i, found)
        attrs = dict(node.attrs)
        if node.op == "cast" and attrs["to"] == "float32" and key not in self.wide:
            attrs["to"] = self.dtype
        args = graph.args(key)
        types, filled = infer(
            node.op, [None if a is None else graph.type(a) for a in args], attrs, [graph.constant(a) for a in args]
        )
        if types != node.types:
            graph.set_node(key, types=tuple(types), attrs=filled)

    def _narrow(self, value: Value) -> Value:
        """The tensor in the narrow type, where it is float32."""
        graph, node = self.graph, self.graph.node(value)
        if graph.type(value).dtype != "float32":
            return value
        if value not in self.narrowed:
            name = f"{graph.tensor_name(value)}.{self.dtype}"
            if node.op == "const":
                self.narrowed[value] = graph.const(_held(node.array, self.dtype), name, node.origin)
            else:
                inside = value
                if self.dtype == "float16" and value.node not in self.tame:
                    inside = graph.add("clip", value, names=[f"{name}.clip"], low=-LARGEST, high=LARGEST)
                self.narrowed[value] = graph.add("cast", inside, names=[name], to=self.dtype)
        return self.narrowed[value]

    def _wide(self, value: Value) -> Value:
        """The tensor in float32, where it was that and is narrow."""
        graph = self.graph
        if graph.type(value).dtype != self.dtype or value not in self.before:
            return value
        if value not in self.widened:
            name = f"{graph.tensor_name(value)}.float32"
            self.widened[value] = graph.add("cast", value, names=[name], to="float32")
        return self.widened[value]


def _real(graph: Graph, key: int) -> bool:
    """Whether an operation reads or gives float32."""
    given = [graph.type(a) for a in graph.args(key) if a is not None]
    return any(t.dtype == "float32" for t in (*graph.node(key).types, *given))


def _held(array: np.ndarray, dtype: str) -> np.ndarray:
    """A constant in the narrow type; finite numbers beyond its range become its ends."""
    bounded = array
    if dtype == "float16":
        bounded = np.where(np.isfinite(array), np.clip(array, -LARGEST, LARGEST), array)
    return np.asarray(bounded.astype(numpy_dtype(dtype)))


__all__ = ["BOUNDED", "KEPT", "NARROW", "PRECISIONS", "half", "half_type"]
