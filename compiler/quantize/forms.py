"""Which operators have an integer form, and which tensors that form reads: what ``passes.integers`` can lower."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..ir import STORED, Graph, Value
from ..ops import OPS, Kind
from ..passes.integers import DEEPEST
from ..passes.requantized import MOST_NODES

LAYERS = ("conv", "matmul")
PAIRS = ("add", "sub", "mul")
ABSORBED = ("relu", "clip", "identity")  # a quantizer behind them clips by itself
CARRIERS = ("reshape", "transpose", "slice", "expand", "max_pool", "gather", "tile", "identity", "copy", "pad")
_NO_TABLE = ("iota", "trilu", "random_bits", "quantize", "dequantize", "where", "cast")


@dataclass(frozen=True)
class Layer:
    """A convolution or matmul with constant weights.

    ``name`` is that of its result, behind a matmul's added bias; ``node`` the convolution or matmul itself,
    ``bias_at`` the operator and input that the bias is. Weights have their ``channels`` along ``axis``.
    """

    name: str
    op: str
    node: int
    result: Value
    weight: str
    channels: int
    axis: int
    bias: str | None = None
    bias_at: tuple[int, int] | None = None


@dataclass(frozen=True)
class Form:
    """An integer form that computes a tensor: ``kind`` sum, pair, pool, softmax or function; the tensors that it
    reads, and the operators that it takes the place of (relu and clip behind it too)."""

    kind: str
    inputs: tuple[Value, ...]
    nodes: frozenset[int]


def layer_at(graph: Graph, key: int) -> Layer | str:
    """The layer of a convolution or matmul, or why it is none."""
    node = graph.node(key)
    x, w, *rest = graph.args(key)
    array = graph.constant(w)
    if x is None or w is None or graph.constant(x) is not None or array is None:
        return "its weights are not constant"
    if node.types[0].dtype != "float32" or not node.types[0].static:
        return "it is not of float32 and known shape"
    if node.op == "conv":
        if math.prod(array.shape[1:]) > DEEPEST:
            return f"a sum of more than {DEEPEST} products"
        bias = rest[0] if rest else None
        if bias is not None and graph.constant(bias) is None:
            return "its bias is not constant"
        at = None if bias is None else (key, 2)
        name = None if bias is None else graph.tensor_name(bias)
        result = Value(key)
        return Layer(node.names[0], "conv", key, result, graph.tensor_name(w), array.shape[0], 0, name, at)
    if array.ndim < 2 or graph.type(x).rank < 2 or array.shape[-2] > DEEPEST:
        return "its weights are no matrix of at most {DEEPEST} rows" if array.ndim > 1 else "its weights are a vector"
    if math.prod(array.shape[:-2]) > 1:
        return "a matrix of its own for each batch"
    result, at, name = Value(key), None, None
    found = _matmul_bias(graph, key, array.shape[-1])
    if found is not None:
        at, result = found, Value(found[0])
        name = graph.tensor_name(graph.args(at[0])[at[1]])  # type: ignore[arg-type]
    names = graph.node(result).names
    return Layer(names[0], "matmul", key, result, graph.tensor_name(w), array.shape[-1], array.ndim - 1, name, at)


def _matmul_bias(graph: Graph, key: int, channels: int) -> tuple[int, int] | None:
    """The addition of constants for each column that follows a matmul, and their place in it."""
    users = graph.users(Value(key))
    if len(users) != 1 or graph.uses(Value(key)) != 1 or graph.node(users[0][0]).op != "add":
        return None
    user, arg = users[0]
    other = graph.args(user)[1 - arg]
    array = graph.constant(other)
    if array is None or array.size not in (1, channels) or array.ndim > graph.node(user).types[0].rank:
        return None
    if array.size > 1 and array.shape[-1] != channels:
        return None
    return user, 1 - arg


def sum_at(graph: Graph, value: Value) -> int | None:
    """The convolution or matmul whose sums (with the bias) a tensor is."""
    node = graph.node(value)
    if node.op in LAYERS:
        return value.node
    if node.op == "add":
        for arg in graph.args(value.node):
            if arg is not None and graph.node(arg).op == "matmul":
                made = layer_at(graph, arg.node)
                if isinstance(made, Layer) and made.result == value:
                    return arg.node
    return None


def carried(graph: Graph, key: int) -> Value | None:
    """What an operator that only moves or chooses elements reads them from; None for others (and for concat)."""
    node = graph.node(key)
    if node.op not in CARRIERS or node.types[0].dtype != "float32":
        return None
    if node.op == "max_pool" and node.attrs["indices"]:
        return None
    if node.op == "pad" and node.attrs["mode"] == "constant" and node.attrs["value"] != 0:
        return None
    source = graph.args(key)[0]
    return None if source is None or graph.node(source).op in STORED[1:] else source


def form_of(graph: Graph, value: Value) -> Form | None:
    """The integer form that computes a tensor; None where there is none."""
    if len(graph.node(value).types) != 1 or graph.type(value).dtype != "float32" or not graph.type(value).static:
        return None
    inner, over = value, set()
    while graph.node(inner).op in ABSORBED:
        over.add(inner.node)
        inner = graph.args(inner.node)[0]  # type: ignore[assignment]
    node = graph.node(inner)
    over.add(inner.node)
    if sum_at(graph, inner) is not None:
        return Form("sum", (inner,), frozenset(over))
    args = [a for a in graph.args(inner.node) if a is not None]
    if node.op in PAIRS and len(set(args)) == 2 and not any(graph.node(a).op in STORED for a in args):
        made = _function(graph, value)
        return made or Form("pair", tuple(args), frozenset(over))
    if (node.op == "softmax" and len(over) == 1) or _is_mean(graph, inner):
        return Form("softmax" if node.op == "softmax" else "pool", (args[0],), frozenset(over))
    return _function(graph, value)


def _is_mean(graph: Graph, value: Value) -> bool:
    """A mean over windows of equal size, or over all spatial axes."""
    node = graph.node(value)
    rank = graph.type(graph.args(value.node)[0]).rank if node.op in ("avg_pool", "reduce_mean") else 0  # type: ignore[arg-type]
    if node.op == "avg_pool":
        return not node.attrs["ceil_mode"] and (node.attrs["count_include_pad"] or not any(node.attrs["pads"]))
    return node.op == "reduce_mean" and rank > 2 and sorted(a % rank for a in node.attrs["axes"]) == [*range(2, rank)]


def _function(graph: Graph, value: Value) -> Form | None:
    """Elementwise operators that make a tensor of one other tensor and of numbers: a table for 8 bits.

    The region grows backwards. It ends at a tensor that something else uses too, and behind relu and clip.
    """
    if not _tabular(graph, value):
        return None
    place = {key: i for i, key in enumerate(graph.order())}
    region, best = {value.node}, None
    while len(region) <= MOST_NODES:
        front = {
            a for k in region for a in graph.args(k) if a is not None and a.node not in region and not _number(graph, a)
        }
        if not front:
            return None
        last = max(front, key=lambda v: (place[v.node], v.index))
        if len(front) == 1:
            if graph.type(last) == graph.type(value) and graph.node(last).op not in STORED[1:]:
                best = Form("function", (last,), frozenset(region))
            outside = any(user not in region for user, _ in graph.users(last)) or last in graph.outputs
            if outside or graph.node(last).op in ABSORBED:
                break
        if sum_at(graph, last) is not None or not _tabular(graph, last):
            break
        region.add(last.node)
    return best


def _tabular(graph: Graph, value: Value) -> bool:
    node = graph.node(value)
    plain = OPS[node.op].kind is Kind.ELEMENTWISE and node.op not in _NO_TABLE and len(node.types) == 1
    return plain and bool(graph.args(value.node)) and graph.type(value).dtype == "float32"


def _number(graph: Graph, value: Value) -> bool:
    node = graph.node(value)
    return node.op == "const" and node.types[0].size == 1


def names_at(graph: Graph) -> dict[int, tuple[str, ...]]:
    """What patterns may call each operator: its tensors' names, its origins, and the node names in those."""
    found = {}
    for key in graph.order():
        node = graph.node(key)
        if node.op in STORED and node.op != "input":
            continue
        short = (o.rpartition(" (")[0].partition("/")[2] for o in node.origin)
        found[key] = tuple(dict.fromkeys(n for n in (*node.names, *node.origin, *short) if n))
    return found
