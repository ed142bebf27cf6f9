"""Which operations of a training step want the images of the batch innermost in memory, and which want channels.

Channels last is the rule: a vector holds neighbouring channels of one pixel. Where a convolution has few channels
(``FEW``), such a vector would be mostly empty, so the images of the batch become the lanes: axes C, spatial, N in
memory. That needs a batch that fills vectors and weights that are read as they lie, which is training; with constant
weights, packed and padded while compiling, channels last is as good. A first convolution from few channels (a picture
that comes from outside) to many stays with channels last: it has nothing to transpose then, and no gradient to send
back. Pools take the order of what they pool.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..ir import Graph, Value
from ..passes.fuse import VIEWS

FEW = 16  # channels: below, their gradients are faster with images as lanes on every machine measured
CONVOLUTIONS = ("conv", "conv_transpose", "conv_grad_weight")
POOLS = ("max_pool", "avg_pool", "max_pool_grad")

Order = tuple[int, ...]


def batch_last(rank: int) -> Order:
    return (*range(1, rank), 0)


def is_batch_last(order: Order) -> bool:
    return len(order) > 2 and order[-1] == 0


def image_nodes(graph: Graph, lanes: int, plain: Collection[int]) -> set[int]:
    """The convolutions and weight gradients of a fused graph that work on images side by side; ``lanes`` of float32
    fill a vector, nodes in ``plain`` take row-major tensors only."""
    if lanes < 2:
        return set()
    return {key for key in graph.order() if key not in plain and _wants_images(graph, key, lanes)}


def _wants_images(graph: Graph, key: int, lanes: int) -> bool:
    op, args = anchor_of(graph, key)
    if op not in CONVOLUTIONS or args[0] is None or args[1] is None:
        return False
    x = graph.type(args[0])
    if x.dtype != "float32" or not x.dims[0] or x.dims[0] % lanes:
        return False
    if op == "conv_grad_weight":
        ends = {args[0]: x.dims[1], args[1]: graph.type(args[1]).dims[1]}
    elif graph.node(args[1]).op == "const":
        return False
    else:
        ends = {args[0]: x.dims[1], Value(key): graph.node(key).types[0].dims[1]}
    few = [value for value, channels in ends.items() if channels < FEW]
    return bool(few) and not (len(few) == 1 and _from_outside(graph, few[0]))


def _from_outside(graph: Graph, value: Value) -> bool:
    """Whether a tensor is an input of the graph, up to views and elementwise work on nothing but inputs."""
    node = graph.node(value)
    if node.op in ("input", "const"):
        return True
    if node.op in VIEWS or (node.op == "fused" and anchor_of(graph, value.node)[0] == "pointwise"):
        return all(_from_outside(graph, a) for a in graph.args(value.node) if a is not None)
    return False


def anchor_of(graph: Graph, key: int) -> tuple[str, list[Value | None]]:
    """The operator of a fused node's anchor and the graph's values that it reads (None: absent, or computed)."""
    from ..ops import OPS, Kind

    node = graph.node(key)
    if node.op != "fused":
        return node.op, graph.args(key)
    body: Graph = node.attrs["body"]
    for n in body:
        if OPS[body.node(n).op].kind not in (Kind.STORED, Kind.ELEMENTWISE):
            outer = dict(zip(body.inputs, graph.args(key), strict=True))
            return body.node(n).op, [None if a is None else outer.get(a.node) for a in body.args(n)]
    return "pointwise", []


def misplaced(
    graph: Graph, images: Collection[int], orders: dict[Value, Order]
) -> Iterator[tuple[Value, Order, list[tuple[int, int]]]]:
    """The tensors that convolutions and pools read across their vectors: ``(value, order they want, who wants it)``."""
    wanted: dict[tuple[Value, Order], list[tuple[int, int]]] = {}
    for key in graph.order():
        op, read = anchor_of(graph, key)
        if op not in (*CONVOLUTIONS, *POOLS) or read[0] is None:
            continue
        x = graph.type(read[0])
        own = batch_last(x.rank) if key in images else (0, *range(2, x.rank), 1)
        wish = orders[Value(key)] if op in POOLS else own
        weights = read[1] if op in ("conv", "conv_transpose") else None
        for arg, value in enumerate(graph.args(key)):
            if value is None or value == weights or graph.node(value).op == "const":
                continue
            type_, order = graph.type(value), orders[value]
            if type_.rank != x.rank or type_.dims[0] != x.dims[0]:
                continue
            across = op == "max_pool_grad" and order == tuple(range(x.rank))  # both of its inputs are walked alike
            if is_batch_last(order) != is_batch_last(wish) or (across and order != wish):
                wanted.setdefault((value, wish), []).append((key, arg))
    for (value, order), users in wanted.items():
        yield value, order, users
