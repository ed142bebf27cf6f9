"""Weights of which only some output channels are trained: they are split where they are used.

A weight that is a concat of params and constants along its output channels makes its convolution or matrix product a
concat of one for each part. So the trained part alone has a gradient, and the constant ones are packed as ever (sparse
update: Lin et al. 2022, On-device training under 256KB memory).
"""

from __future__ import annotations

from ..ir import STORED, Graph, Value


def split_partly_trained(graph: Graph) -> dict[Value, Value]:
    """Splits the convolutions and matrix products of such weights. The caller owns the graph. Returns what stands for
    the tensors that were replaced, which nothing in the graph uses any more."""
    replaced = {}
    for key in graph.find("concat"):
        parts = [a for a in graph.args(key) if a is not None]
        if not all(graph.node(p).op in STORED for p in parts) or not any(graph.node(p).op == "param" for p in parts):
            continue
        for user, arg in graph.users(Value(key)):
            if arg == 1 and _splits(graph, user, key):
                replaced[Value(user)] = _split(graph, user, parts, int(graph.node(key).attrs["axis"]))
    return replaced


def _splits(graph: Graph, user: int, concat: int) -> bool:
    node, weight = graph.node(user), graph.node(concat)
    axis = weight.attrs["axis"] % weight.types[0].rank
    if node.op == "matmul":
        return weight.types[0].rank == 2 and axis == 1
    if node.op != "conv" or axis != 0:
        return False
    group = node.attrs["group"]
    return bool(group == 1 or (group == weight.types[0].dims[0] and weight.types[0].dims[1] == 1))


def _split(graph: Graph, user: int, parts: list[Value], axis: int) -> Value:
    """One operation for each part of the weight, their results side by side."""
    node, args = graph.node(user), graph.args(user)
    x, bias = args[0], args[2] if len(args) > 2 else None
    assert x is not None
    results, at = [], 0
    for part in parts:
        width = graph.type(part).dims[axis]
        attrs = dict(node.attrs)
        source = x
        if node.op == "conv" and attrs["group"] != 1:
            attrs["group"] = width
            source = _cut(graph, x, 1, at, width)
        inputs = [source, part]
        if bias is not None:
            inputs.append(_cut(graph, bias, 0, at, width))
        results.append(graph.add(node.op, *inputs, origin=node.origin, **attrs))
        at += width
    side = 1 if node.op == "conv" else node.types[0].rank - 1
    whole = graph.add("concat", *results, axis=side, origin=node.origin)
    graph.replace(Value(user), whole)
    graph.remove(user)
    return whole


def _cut(graph: Graph, value: Value, axis: int, start: int, size: int) -> Value:
    dims = graph.type(value).dims
    starts, stops = [0] * len(dims), list(dims)
    starts[axis], stops[axis] = start, start + size
    return graph.add("slice", value, starts=tuple(starts), stops=tuple(stops), steps=(1,) * len(dims))
