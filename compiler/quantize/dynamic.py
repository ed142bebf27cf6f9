"""Dynamic quantization: int8 weights, activations quantized while the network runs, by their own range. No samples.

A product with constant weights becomes ``matmul_integer`` of steps that are made on the spot: each row of the
activation (or the whole tensor) is divided by its largest magnitude over 127. The steps are uint8 around 128, a zero
point that is known at compile time, so that nothing stands behind the product but two factors: the row's scale and the
column's. (ONNX Runtime multiplies uint8 by int8 several times as fast as int8 by int8.) A row of zeros gives zeros; a
row with NaN or infinity gives NaN or infinity and leaves the others alone; an LSTM or GRU then gives that everywhere.

LSTM and GRU take x in steps of its own range, over all positions; their hidden states lie within [-1, 1] anyway. Tables
that are looked up in (embeddings) are stored as int8 with a scale for each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ..ir import Graph, Value
from ..ops.recurrent_integers import GATES
from .forms import Layer, layer_at, names_at
from .recurrent import Recurrent, hold_state, read_instead, recurrent_at, store_weights
from .scheme import Scheme, symmetric
from .settings import Settings, matching

MOST = 127  # the largest step, from
MIDDLE = 128  # the zero point
LEAST_RANGE = 1e-30  # of a row of zeros
LEAST_TABLE = 4096  # elements of a table that is worth it


@dataclass(frozen=True)
class Dynamic:
    """What dynamic quantization does with a graph: its layers, the tables (names), and why other layers stay in float
    (name -> why)."""

    graph: Graph
    products: tuple[Layer, ...]
    recurrences: tuple[Recurrent, ...]
    floats: dict[str, str]
    tables: tuple[str, ...] = ()


def quantize_dynamic(graph: Graph, settings: Settings | None = None, *, per_row: bool = True) -> Dynamic:
    """A canonical float graph with matmuls, LSTMs and GRUs in int8; ``per_row=False``: one scale for each activation.

    Of ``settings`` count ``weight_bits``, ``per_channel`` and ``float_patterns``; convolutions stay in float.
    ``NervureError`` for a pattern that matches nothing.
    """
    settings = settings or Settings()
    work = graph.copy()
    named = names_at(graph)
    kept = matching(settings.float_patterns, [n for names in named.values() for n in names], "float pattern")
    made = _Dynamic(work, settings, per_row)
    products, recurrences, floats = _layers(graph, named, kept)
    for layer in products:
        made.product(layer)
    for recurrent in recurrences:
        made.recurrence(recurrent)
    tables = [key for key in graph.find("gather") if _is_table(graph, key) and not {*named[key]} & kept]
    for key in tables:
        made.table(key)
    work.prune()
    names = tuple(dict.fromkeys(graph.tensor_name(graph.args(key)[0]) for key in tables))  # type: ignore[arg-type]
    return Dynamic(work, tuple(products), tuple(recurrences), floats, names)


def _is_table(graph: Graph, key: int) -> bool:
    """Whether a gather takes rows of a stored matrix."""
    table, axis = graph.constant(graph.args(key)[0]), graph.node(key).attrs["axis"]
    return (
        table is not None
        and table.dtype == np.float32
        and table.ndim == 2
        and axis % 2 == 0
        and (table.size >= LEAST_TABLE)
    )


def _layers(
    graph: Graph, named: Mapping[int, tuple[str, ...]], kept: set[str]
) -> tuple[list[Layer], list[Recurrent], dict[str, str]]:
    products: list[Layer] = []
    recurrences: list[Recurrent] = []
    floats: dict[str, str] = {}
    for key in graph.order():
        op, name = graph.node(key).op, graph.node(key).names[0]
        if op == "conv":
            floats[name] = "convolutions are not quantized dynamically"
        if op not in ("matmul", "rnn", *GATES):
            continue
        found = layer_at(graph, key) if op == "matmul" else recurrent_at(graph, key)
        x = graph.args(key)[0]
        if isinstance(found, str):
            floats[name] = found
        elif any(n in kept for n in named[key]):
            floats[name] = "a float pattern names it"
        elif isinstance(found, Recurrent):
            recurrences.append(found)
        elif x is None or graph.type(x).rank < 2 or graph.type(graph.args(key)[1]).rank != 2:  # type: ignore[arg-type]
            floats[name] = "it is not a product of rows and a matrix"
        else:
            products.append(found)
    return products, recurrences, floats


def _finite(array: np.ndarray, name: str, origin: tuple[str, ...]) -> None:
    if not np.isfinite(array).all():
        hint = "no scale follows from that: look at how the model was trained or exported"
        raise NervureError(f"the weights {name!r} hold NaN or infinity", where=origin, hint=hint)


class _Dynamic:
    """Rewrites a graph that it owns. An activation that several layers read is quantized once."""

    def __init__(self, graph: Graph, settings: Settings, per_row: bool) -> None:
        self.graph, self.settings, self.per_row = graph, settings, per_row
        self.made: dict[tuple[Value, bool], tuple[Value, Value]] = {}
        self.tables: dict[Value, Value] = {}

    def product(self, layer: Layer) -> None:
        graph, origin = self.graph, self.graph.node(layer.node).origin
        x, w = graph.args(layer.node)[:2]
        array = graph.constant(w)
        assert x is not None and array is not None
        steps, scale = self.steps(x, self.per_row)
        _finite(array, layer.weight, origin)
        reach = np.abs(array).max(axis=0 if self.settings.per_channel else None, keepdims=True)
        scheme = symmetric(reach, self.settings.weight_bits)
        weights = graph.const(scheme.steps(array), f"{layer.weight}_quantized", origin)
        each = graph.const(
            scheme.scale.reshape(-1) if scheme.scale.size > 1 else scheme.scale.reshape(()),
            f"{layer.weight}_scale",
            origin,
        )
        sums = graph.add("matmul_integer", steps, weights, origin=origin, zero_point=MIDDLE)
        real = graph.add("mul", graph.add("cast", sums, origin=origin, to="float32"), scale, origin=origin)
        graph.replace(Value(layer.node), graph.add("mul", real, each, origin=origin))

    def recurrence(self, layer: Recurrent) -> None:
        graph, origin = self.graph, self.graph.node(layer.node).origin
        x = graph.args(layer.node)[0]
        assert x is not None
        steps, scale = self.steps(x, False)
        graph.set_arg(layer.node, 0, graph.add("dequantize", steps, scale, self.zero(origin), origin=origin))
        store_weights(graph, layer, bits=self.settings.weight_bits, per_row=self.settings.per_channel)
        for index in range(len(graph.node(layer.node).types)):
            self.mark(Value(layer.node, index), scale)
        hold_state(graph, layer, Scheme("uint8", np.asarray(1 / MOST, np.float32), MIDDLE))

    def mark(self, value: Value, scale: Value) -> None:
        """What is computed from integers shows that x held NaN or infinity: its scale does, and takes its place."""
        graph, origin, users = self.graph, self.graph.node(value).origin, self.graph.users(value)
        if graph.uses(value):
            most = graph.const(np.finfo(np.float32).max, "most", origin)
            finite = graph.add("less_equal", scale, most, origin=origin)
            read_instead(graph, value, users, graph.add("where", finite, value, scale, origin=origin))

    def table(self, key: int) -> None:
        graph, origin = self.graph, self.graph.node(key).origin
        value = graph.args(key)[0]
        array = graph.constant(value)
        assert value is not None and array is not None
        if value not in self.tables:
            name = graph.tensor_name(value)
            _finite(array, name, origin)
            scheme = symmetric(np.abs(array).max(axis=1, keepdims=True), 8)
            q = graph.const(scheme.steps(array), f"{name}_quantized", origin)
            scale = graph.const(scheme.scale, f"{name}_scale", origin)
            zero = graph.const(np.zeros(scheme.scale.shape, np.int8), f"{name}_zero_point", origin)
            self.tables[value] = graph.add("dequantize", q, scale, zero, origin=origin)
        graph.set_arg(key, 0, self.tables[value])

    def steps(self, x: Value, per_row: bool) -> tuple[Value, Value]:
        """An activation's steps, and the scale of each row ``[..., 1]`` or of all of it ``[]``."""
        if (x, per_row) not in self.made:
            graph, origin, name = self.graph, self.graph.node(x).origin, self.graph.tensor_name(x)
            axes = (graph.type(x).rank - 1,) if per_row else tuple(range(graph.type(x).rank))
            size = graph.add("abs", x, origin=origin)
            reach = graph.add("reduce_max", size, origin=origin, axes=axes, keepdims=per_row)
            least = graph.const(np.float32(LEAST_RANGE), f"{name}_least", origin)
            part = graph.const(np.float32(1 / MOST), f"{name}_part", origin)
            scale = graph.add("mul", graph.add("maximum", reach, least, origin=origin), part, origin=origin)
            q = graph.add("quantize", x, scale, self.zero(origin), origin=origin, names=[f"{name}_steps"], to="uint8")
            self.made[x, per_row] = q, scale
        return self.made[x, per_row]

    def zero(self, origin: tuple[str, ...]) -> Value:
        return self.graph.const(np.asarray(MIDDLE, np.uint8), "zero_point", origin)
