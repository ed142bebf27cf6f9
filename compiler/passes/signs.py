"""8-bit steps take the sign that the machine's folding instructions want: int8 for sdot, uint8 for VNNI.

1. Tensors that only movement (views, max pools, concat, ...) lies between are a group: all its tensors change, or none.
2. A group may change if everything that makes it rounds to steps (requantize, add_integer, quantize, ...) and all that
   reads it knows its zero point: then each number, its zero point and bounds move by 128, and the results are the same.
3. It does change if a convolution or matrix product of integers reads it and it has the other sign.

Arguments, results and stored tensors stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...targets.machine import Machine
from ..ir import Graph, Value
from ..types import TensorType

OTHER = {"int8": "uint8", "uint8": "int8"}
MOVES = ("reshape", "transpose", "slice", "expand", "max_pool", "tile", "identity", "copy", "concat", "pad", "gather")
# operators that round to steps, and the attributes that lie on the same scale as their result
MAKERS = ("requantize", "add_integer", "softmax_integer", "quantize", "lookup")
PLACED = ("zero_point", "low", "high")
# which inputs of a reader are steps, and the attribute that holds the zero point of each (None where none is needed)
READERS: dict[str, dict[int, str | None]] = {
    "conv_integer": {0: "zero_point"},
    "matmul_integer": {0: "zero_point", 1: "b_zero_point"},
    "sum_pool_integer": {0: "zero_point"},
    "requantize": {0: "x_zero_point"},
    "add_integer": {0: "a_zero_point", 1: "b_zero_point"},
    "mul_integer": {0: "a_zero_point", 1: "b_zero_point"},
    "lookup": {0: None},
    "softmax_integer": {0: None},
    "dequantize": {0: None},
}
WEIGHED = ("conv_integer", "matmul_integer")


def match_signs(graph: Graph, machine: Machine) -> Graph:
    """A copy of ``graph`` whose steps have the sign that ``machine`` wants; ``graph`` itself where nothing changes."""
    wanted = machine.steps_dtype
    if wanted is None or not any(graph.find(op) for op in WEIGHED):
        return graph
    chosen = [g for g in groups(graph) if _wanted(graph, g, wanted) and _free(graph, g)]
    if not chosen:
        return graph
    work = graph.copy()
    for group in chosen:
        _change(work, group, wanted)
    return work


def groups(graph: Graph) -> Iterator[list[Value]]:
    """The 8-bit tensors that no constant is, those that movement ties together as one group."""
    home: dict[Value, Value] = {}

    def find(value: Value) -> Value:
        while home[value] != value:
            value = home[value]
        return value

    order = graph.order()
    for key in order:
        for value in graph.values(key):
            if graph.type(value).dtype in OTHER:
                home[value] = value
    for key in order:
        for source in _moved(graph, key):
            if source in home and Value(key) in home:
                home[find(source)] = find(Value(key))
    found: dict[Value, list[Value]] = {}
    for value in home:
        found.setdefault(find(value), []).append(value)
    yield from found.values()


def _moved(graph: Graph, key: int) -> list[Value]:
    """The inputs whose elements a movement's result consists of."""
    if graph.node(key).op not in MOVES:
        return []
    args = [a for a in graph.args(key) if a is not None]
    return args if graph.node(key).op == "concat" else args[:1]


def _wanted(graph: Graph, group: list[Value], wanted: str) -> bool:
    if graph.type(group[0]).dtype == wanted:
        return False
    users = [(graph.node(user).op, arg) for value in group for user, arg in graph.users(value)]
    return any(op in WEIGHED and arg == 0 for op, arg in users)


def _free(graph: Graph, group: list[Value]) -> bool:
    kept = {*graph.outputs, *graph.bindings.values()}
    return all(v not in kept and _makes(graph, v) and _reads(graph, v) for v in group)


def _makes(graph: Graph, value: Value) -> bool:
    node = graph.node(value)
    if node.op == "pad":
        return node.attrs["mode"] != "constant" or float(node.attrs["value"]).is_integer()
    if node.op in MOVES:
        return len(node.types) == 1
    args = graph.args(value.node)
    if node.op == "quantize":
        return len(args) < 3 or args[2] is None or graph.constant(args[2]) is not None
    return node.op in MAKERS and (node.op != "lookup" or graph.constant(args[1]) is not None)


def _reads(graph: Graph, value: Value) -> bool:
    for user, arg in graph.users(value):
        node = graph.node(user)
        if node.op in MOVES:
            if arg > 0 and node.op != "concat":
                return False
        elif arg not in READERS.get(node.op, {}):
            return False
        elif node.op == "dequantize":
            zero = graph.args(user)[2:3]
            if node.attrs.get("block") is not None or (zero and zero[0] and graph.constant(zero[0]) is None):
                return False
    return True


def _change(graph: Graph, group: list[Value], to: str) -> None:
    by = 128 if to == "uint8" else -128
    for value in group:
        for user, arg in graph.users(value):
            _change_reader(graph, user, arg, to, by)
    for value in group:
        _change_maker(graph, value.node, to, by)


def _change_reader(graph: Graph, user: int, arg: int, to: str, by: int) -> None:
    """Before the tensor itself changes: its zero point, where it is read."""
    node = graph.node(user)
    if node.op == "dequantize":
        _change_zero(graph, user, to, by)
    elif node.op in READERS:
        zero = READERS[node.op][arg]
        if zero is not None:
            graph.set_node(user, attrs={**node.attrs, zero: node.attrs[zero] + by})


def _change_zero(graph: Graph, user: int, to: str, by: int) -> None:
    """The zero point of ``quantize`` and ``dequantize``, an argument that may be absent."""
    args = graph.args(user)
    held = graph.constant(args[2]) if len(args) > 2 and args[2] is not None else None
    array = np.zeros((), np.int64) if held is None else held.astype(np.int64)
    graph.set_arg(user, 2, graph.const((array + by).astype(to), origin=graph.node(user).origin))


def _change_maker(graph: Graph, key: int, to: str, by: int) -> None:
    node = graph.node(key)
    attrs = dict(node.attrs)
    if node.op == "pad" and attrs["mode"] == "constant":
        attrs["value"] = attrs["value"] + by
    elif node.op == "lookup":
        table = graph.args(key)[1]
        assert table is not None
        moved = graph.node(table).array.astype(np.int64) + by
        graph.set_arg(key, 1, graph.const(moved.astype(to), origin=node.origin))
    elif node.op in MAKERS:
        if node.op == "quantize":
            _change_zero(graph, key, to, by)
        attrs["to"] = to
        for name in PLACED:
            if attrs.get(name) is not None:
                attrs[name] = attrs[name] + by
    graph.set_node(key, attrs=attrs, types=(TensorType(to, node.types[0].shape), *node.types[1:]))
