"""Where every tensor lies: its buffer, its element strides in it and its offset.

A layout is an order of axes. Convolutional work wants channels last (one pixel's channels side by side: the vector
axis), matrix work wants rows; elementwise work takes what it is given. Transpose, slice, expand and most reshapes are
then only other strides over the same bytes, and the parts of a concat are written in their place from the start.
Where a consumer cannot be served by strides, a ``copy`` node is put in: ``Layout.graph`` is the graph with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from ..ir import STORED, Graph, Value
from ..passes.fuse import VIEWS
from ..types import TensorType
from .images import POOLS, batch_last, image_nodes, is_batch_last, misplaced
from .strides import dense, is_dense, order_of, reshape_view, same_walk

CHANNELS_LAST = ("conv", "conv_integer", "conv_narrow", "conv_transpose", *POOLS, "resize", "grid_sample", "group_norm")
FOLLOWS = (
    "pointwise",
    "lookup",
    "softmax_integer",
    "softmax",
    "log_softmax",
    "layer_norm",
    "rms_norm",
    "cumsum",
    "cumprod",
    "batch_norm",
    "copy",
)
# their kernels write each row wherever it belongs
ROWS_ANYWHERE = ("matmul", "matmul_integer", "matmul_narrow", "attention")
REDUCES = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")


@dataclass(frozen=True)
class Place:
    """A tensor's elements in buffer ``buffer``: element ``i`` lies at ``offset + sum(i[a] * strides[a])``."""

    buffer: int
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True)
class Slot:
    """A concat input's place in the buffer of ``root``, the outermost concat."""

    concat: int
    root: Value
    strides: tuple[int, ...]
    offset: int


@dataclass
class Storage:
    """A buffer before it has an address. ``kind``: ``arena``, ``const``, ``param``, ``state``, ``input``, ``output``;
    ``index`` is the input or output number; ``root`` the value that owns it."""

    kind: str
    type: TensorType  # element type, and the shape of the root
    root: Value
    index: int = 0

    @property
    def nbytes(self) -> int:
        return self.type.nbytes


@dataclass
class Layout:
    """``places`` holds every value of ``graph``. ``writes`` maps a concat node to the inputs that still must be copied
    to their place (the others are written there by their producers)."""

    graph: Graph
    places: dict[Value, Place] = field(default_factory=dict)
    buffers: list[Storage] = field(default_factory=list)
    roots: dict[Value, int] = field(default_factory=dict)
    writes: dict[int, list[int]] = field(default_factory=dict)
    updates: dict[Value, int] = field(default_factory=dict)  # next value -> the param or state whose place it takes
    waits: dict[int, set[int]] = field(default_factory=dict)  # node -> nodes that read what it overwrites


def lay_out(graph: Graph, plain: Sequence[int] = (), apart: Sequence[int] = (), lanes: int = 1) -> Layout:
    """Places every tensor of a fused graph. Nodes in ``plain`` (no template takes other strides) get and give
    row-major tensors. The next values of the params and states in ``apart`` are not made in their place. ``lanes`` of
    float32 fill a vector."""
    work = graph.copy()
    _separate_outputs(work)
    for key in plain:
        for arg, value in enumerate(work.args(key)):
            if value is not None and work.node(value).op != "const":
                insert_copy(work, value, users=[(key, arg)])
    images = image_nodes(work, lanes, set(plain))
    orders = _orders(work, set(plain), images)
    _turn(work, orders, images)
    slots = _concat_slots(work, orders)
    outputs = _output_roots(work, orders, slots)
    layout = Layout(work)
    _plan_updates(layout, set(outputs), set(apart))
    for key in work.order():
        _place(layout, key, orders, slots, outputs)
    return layout


def anchor_op(graph: Graph, key: int) -> str:
    """The operator that a node's layout goes by: its anchor's, or ``pointwise``."""
    node = graph.node(key)
    if node.op != "fused":
        return node.op
    body: Graph = node.attrs["body"]
    from ..ops import OPS, Kind

    found = [body.node(n).op for n in body if OPS[body.node(n).op].kind not in (Kind.STORED, Kind.ELEMENTWISE)]
    return found[0] if found else "pointwise"


def copy_body(graph: Graph, value: Value, made_for: int) -> Graph:
    """The body of a fused copy of ``value``, on behalf of node ``made_for``."""
    body = Graph("copy")
    inner = body.input("x", graph.type(value), graph.node(value).origin)
    body.output(body.add("copy", inner, origin=graph.node(made_for).origin))
    return body


def insert_copy(graph: Graph, value: Value, users: Sequence[tuple[int, int]] | None = None) -> Value:
    """A fused ``copy`` of ``value``, to which ``users`` (default: all) are rewired. Its layout is row-major."""
    body = copy_body(graph, value, value.node)
    wired = graph.users(value) if users is None else users
    name = graph.tensor_name(value)
    new = graph.add("fused", value, names=[f"{name}.copy"], origin=graph.node(value).origin, body=body)
    for user, arg in wired:
        graph.set_arg(user, arg, new)
    return new


def _separate_outputs(graph: Graph) -> None:
    """An output that is a stored tensor, or is an output twice, gets a buffer of its own."""
    seen: set[Value] = set()
    for i, value in enumerate(graph.outputs):
        if value in seen or graph.node(value).op in STORED:
            graph.outputs[i] = insert_copy(graph, value, users=[])
        seen.add(graph.outputs[i])
    for stored, value in sorted(graph.bindings.items()):
        if value.node != stored and graph.node(_seen(graph, value)).op in STORED:
            graph.bindings[stored] = insert_copy(graph, value, users=[])


def _seen(graph: Graph, value: Value) -> Value:
    """The tensor whose bytes a value shows, through views."""
    while graph.node(value).op in VIEWS:
        source = graph.args(value.node)[0]
        assert source is not None
        value = source
    return value


def _plan_updates(layout: Layout, outputs: set[Value], apart: set[int]) -> None:
    """Which next values are made where the old ones lie: their kernels run when all else has read the old ones."""
    graph = layout.graph
    order: nx.DiGraph[Any] = nx.DiGraph(graph.nx)
    bound = list(graph.bindings.values())
    for stored, value in sorted(graph.bindings.items()):
        node = graph.node(value)
        if stored in apart or node.op != "fused" or value in outputs or bound.count(value) > 1:
            continue
        if graph.type(value) != graph.type(Value(stored)):
            continue
        readers = {k for k in _readers(graph, stored) if k != value.node}
        if readers & nx.descendants(order, value.node):
            continue
        order.add_edges_from((k, value.node) for k in sorted(readers))
        layout.updates[value] = stored
        layout.waits.setdefault(value.node, set()).update(readers)


def _readers(graph: Graph, stored: int) -> set[int]:
    """The nodes that read the bytes of a stored tensor, through views; a concat copies."""
    found: set[int] = set()
    stack = [stored]
    while stack:
        for user in graph.nx.successors(stack.pop()):
            if user not in found:
                found.add(user)
                if graph.node(user).op in VIEWS:
                    stack.append(user)
    return found


# -- orders --------------------------------------------------------------------------------------------------------


def _channels_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


def _turn(graph: Graph, orders: dict[Value, tuple[int, ...]], images: set[int]) -> None:
    """Transposing copies of what convolutions and pools would read across their vectors."""
    for value, order, users in list(misplaced(graph, images, orders)):
        orders[insert_copy(graph, value, users=users)] = order


def _orders(graph: Graph, plain: set[int], images: set[int]) -> dict[Value, tuple[int, ...]]:
    """The order of axes that each value would have if it were alone: roots choose, views follow their source. Nodes in
    ``images`` have the batch innermost."""
    orders: dict[Value, tuple[int, ...]] = {}
    for key in graph.order():
        node = graph.node(key)
        for value in graph.values(key):
            rank = graph.type(value).rank
            if node.op in VIEWS:
                source = graph.args(key)[0]
                assert source is not None
                orders[value] = _view_order(graph, key, source, orders[source])
            elif node.op == "concat":
                orders[value] = _majority(graph, key, orders)
            elif node.op == "fused" and key not in plain:
                orders[value] = _chosen(graph, key, value, orders, key in images)
            else:
                orders[value] = tuple(range(rank))
    return orders


def _view_order(graph: Graph, key: int, source: Value, order: tuple[int, ...]) -> tuple[int, ...]:
    shape = graph.type(source).dims
    strides = _view(graph, key, shape, dense(shape, order), 0)
    out = graph.node(key).types[0].dims
    return tuple(range(len(out))) if strides is None else order_of(out, strides[0])


def _majority(graph: Graph, key: int, orders: dict[Value, tuple[int, ...]]) -> tuple[int, ...]:
    votes: dict[tuple[int, ...], int] = {}
    for a in graph.args(key):
        if a is not None and graph.node(a).op != "const":
            shape = graph.type(a).dims
            kind = order_of(shape, dense(shape, orders[a]))
            votes[kind] = votes.get(kind, 0) + graph.type(a).size
    rank = graph.node(key).types[0].rank
    return max(sorted(votes), key=lambda o: votes[o]) if votes else tuple(range(rank))


def _chosen(
    graph: Graph, key: int, value: Value, orders: dict[Value, tuple[int, ...]], images: bool
) -> tuple[int, ...]:
    op, type_ = anchor_op(graph, key), graph.type(value)
    args = [a for a in graph.args(key) if a is not None and graph.node(a).op != "const"]
    if op in CHANNELS_LAST:
        images = images or (op in POOLS and bool(args) and is_batch_last(orders[args[0]]))
        return batch_last(type_.rank) if images else _channels_last(type_.rank)
    if op in REDUCES and args:
        return _reduced(graph, key, type_, max(args, key=lambda a: graph.type(a).size), orders)
    if op in FOLLOWS:
        same = [a for a in args if graph.type(a).shape == type_.shape]
        dense_first = [a for a in same if orders[a] != tuple(range(type_.rank))] or same
        if dense_first:
            return orders[dense_first[0]]
    if op in ROWS_ANYWHERE:
        return _as_read(graph, value)
    return tuple(range(type_.rank))


def _as_read(graph: Graph, value: Value) -> tuple[int, ...]:
    """The order in which the one reader of a value transposes it, where its rows stay whole: then the reader's view is
    row-major (the heads of an attention, put side by side again)."""
    rank = graph.type(value).rank
    users = graph.users(value)
    if len(users) == 1 and graph.node(users[0][0]).op == "transpose" and value not in graph.outputs:
        perm: tuple[int, ...] = graph.node(users[0][0]).attrs["perm"]
        if perm[-1] == rank - 1:
            return tuple(perm)
    return tuple(range(rank))


def _reduced(
    graph: Graph, key: int, type_: TensorType, source: Value, orders: dict[Value, tuple[int, ...]]
) -> tuple[int, ...]:
    if graph.type(source).rank == type_.rank:
        return orders[source]
    body: Graph = graph.node(key).attrs["body"]
    attrs = next(body.node(n).attrs for n in body if body.node(n).op in REDUCES)
    gone = attrs.get("axes", (attrs.get("axis"),))
    kept = [a for a in orders[source] if a not in gone]
    return tuple(sum(1 for b in kept if b < a) for a in kept)


# -- places --------------------------------------------------------------------------------------------------------


def _view(
    graph: Graph, key: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> tuple[tuple[int, ...], int] | None:
    """Strides and offset of a view node over a source placed so; None where a reshape needs a copy."""
    node = graph.node(key)
    if node.op == "reshape":
        found = reshape_view(shape, strides, node.types[0].dims)
        return None if found is None else (found, offset)
    if node.op == "transpose":
        return tuple(strides[a] for a in node.attrs["perm"]), offset
    if node.op == "slice":
        starts, steps = node.attrs["starts"], node.attrs["steps"]
        moved = offset + sum(s * b for s, b, d in zip(strides, starts, node.types[0].dims, strict=True) if d)
        return tuple(s * step for s, step in zip(strides, steps, strict=True)), moved
    out = node.types[0].dims  # expand
    lead = len(out) - len(shape)
    spread = tuple(0 if d == 1 and o != 1 else s for d, o, s in zip(shape, out[lead:], strides, strict=True))
    return (0,) * lead + spread, offset


def _concat_slots(graph: Graph, orders: dict[Value, tuple[int, ...]]) -> dict[Value, Slot]:
    """``value -> (concat, strides, offset)`` for the concat inputs that their producers can write in place."""
    slots: dict[Value, Slot] = {}
    taken = set(graph.outputs) | set(graph.bindings.values())
    for key in reversed([n for n in graph.order() if graph.node(n).op == "concat"]):
        result = Value(key)
        shape, axis = graph.type(result).dims, graph.node(key).attrs["axis"] % graph.type(result).rank
        outer = slots.get(result)
        root, strides, offset = (
            (outer.root, outer.strides, outer.offset) if outer else (result, dense(shape, orders[result]), 0)
        )
        args = graph.args(key)
        for value in args:
            assert value is not None
            if _can_be_placed(graph, value, args, orders, orders[result], taken, slots, strides):
                slots[value] = Slot(key, root, strides, offset)
            offset += graph.type(value).dims[axis] * strides[axis]
    return slots


def _can_be_placed(
    graph: Graph,
    value: Value,
    args: Sequence[Value | None],
    orders: dict[Value, tuple[int, ...]],
    order: tuple[int, ...],
    taken: set[Value],
    slots: dict[Value, Slot],
    strides: tuple[int, ...],
) -> bool:
    node, shape = graph.node(value), graph.type(value).dims
    if node.op not in ("fused", "concat") or value in taken or value in slots or args.count(value) > 1:
        return False
    if not same_walk(shape, dense(shape, orders[value]), dense(shape, order)):
        return False
    if node.op == "fused" and len(node.types) > 1:
        return False
    for user, _ in graph.users(value):
        if graph.node(user).op == "reshape":
            target = graph.node(user).types[0].dims
            alone = reshape_view(shape, dense(shape, orders[value]), target)
            if alone is not None and reshape_view(shape, strides, target) is None:
                return False
    return True


def _output_roots(
    graph: Graph, orders: dict[Value, tuple[int, ...]], slots: dict[Value, Slot]
) -> dict[Value, tuple[int, tuple[int, ...]]]:
    """``root -> (output number, strides)``: values that are made in an output's buffer.

    The buffer is row-major in the output's own shape. A reshape or transpose of the root is followed back where the
    root, seen so, covers the buffer; else the output gets a copy.
    """
    found: dict[Value, tuple[int, tuple[int, ...]]] = {}
    for i, output in enumerate(list(graph.outputs)):
        value, strides = output, dense(graph.type(output).dims)
        while graph.node(value).op in ("reshape", "transpose"):
            source = graph.args(value.node)[0]
            assert source is not None
            back = _backwards(graph, value.node, source, strides)
            if back is None:
                break
            value, strides = source, back
        fits = graph.node(value).op in ("fused", "concat") and value not in slots and value not in found
        fits = fits and (value == output or value not in graph.outputs)
        if fits and graph.node(value).op == "concat":
            fits = is_dense(graph.type(value).dims, strides) and orders[value] == tuple(range(len(strides)))
        if fits and not _writes_strided(graph, value, strides):
            fits = False
        if fits:
            found[value] = (i, strides)
        else:
            copied = insert_copy(graph, output, users=[])
            graph.outputs[i] = copied
            orders[copied] = tuple(range(graph.type(copied).rank))
            found[copied] = (i, dense(graph.type(copied).dims))
    return found


def _backwards(graph: Graph, key: int, source: Value, strides: tuple[int, ...]) -> tuple[int, ...] | None:
    node, shape = graph.node(key), graph.type(source).dims
    if node.op == "reshape":
        return reshape_view(node.types[0].dims, strides, shape)
    back = [0] * len(shape)
    for out_axis, in_axis in enumerate(node.attrs["perm"]):
        back[in_axis] = strides[out_axis]
    return tuple(back)


def _writes_strided(graph: Graph, value: Value, strides: tuple[int, ...]) -> bool:
    """Whether the producer writes well with these strides: channels-last work wants its channels side by side."""
    shape = graph.type(value).dims
    if anchor_op(graph, value.node) not in CHANNELS_LAST:
        return True
    return same_walk(shape, strides, dense(shape, _channels_last(len(shape))))


def _place(
    layout: Layout,
    key: int,
    orders: dict[Value, tuple[int, ...]],
    slots: dict[Value, Slot],
    outputs: dict[Value, tuple[int, tuple[int, ...]]],
) -> None:
    graph = layout.graph
    node = graph.node(key)
    for value in graph.values(key):
        if node.op in VIEWS:
            layout.places[value] = _place_view(layout, key)
        elif value in layout.updates:
            buffer = _buffer_of(layout, Value(layout.updates[value]), orders, outputs)
            layout.places[value] = Place(buffer, dense(graph.type(value).dims))
        elif value in slots:
            slot = slots[value]
            buffer = _buffer_of(layout, slot.root, orders, outputs)
            layout.places[value] = Place(buffer, slot.strides, slot.offset)
        else:
            buffer = _buffer_of(layout, value, orders, outputs)
            strides = outputs[value][1] if value in outputs else dense(graph.type(value).dims, orders[value])
            layout.places[value] = Place(buffer, strides)
    if node.op == "concat":
        placed = {v for v, slot in slots.items() if slot.concat == key}
        layout.writes[key] = [i for i, a in enumerate(graph.args(key)) if a not in placed]


def _buffer_of(
    layout: Layout,
    root: Value,
    orders: dict[Value, tuple[int, ...]],
    outputs: dict[Value, tuple[int, tuple[int, ...]]],
) -> int:
    if root in layout.roots:
        return layout.roots[root]
    graph = layout.graph
    node = graph.node(root)
    kind, index = (node.op if node.op in STORED else "arena"), 0
    if node.op == "input":
        index = graph.inputs.index(root.node)
    if root in outputs:
        kind, index = "output", outputs[root][0]
    return _new_buffer(layout, Storage(kind, graph.type(root), root, index))


def _new_buffer(layout: Layout, storage: Storage) -> int:
    layout.buffers.append(storage)
    layout.roots[storage.root] = len(layout.buffers) - 1
    return layout.roots[storage.root]


def _place_view(layout: Layout, key: int) -> Place:
    graph = layout.graph
    source = graph.args(key)[0]
    assert source is not None
    at = layout.places[source]
    shape = graph.type(source).dims
    found = _view(graph, key, shape, at.strides, at.offset)
    if found is None:
        copied = insert_copy(graph, source, users=[(key, 0)])
        buffer = _new_buffer(layout, Storage("arena", graph.type(copied), copied))
        layout.places[copied] = Place(buffer, dense(shape))
        found = _view(graph, key, shape, dense(shape), 0)
        assert found is not None
        return Place(layout.places[copied].buffer, *found)
    return Place(at.buffer, *found)
