"""Reverse-mode differentiation of a graph, from the gradient rules in the op table.

The backward operations are added to the graph that holds the forward ones, so that every pass sees both: what the
backward pass reads of the forward pass is kept, what no trained tensor needs is never computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import NervureError
from ..ir import STORED, Graph, Value
from ..ops import OPS, Kind
from ..ops.gradient import Call, Sym
from ..types import is_float


def gradients(graph: Graph, loss: Value, wrt: Sequence[Value], seed: Value | None = None) -> list[Value]:
    """The gradients of ``loss`` (a scalar, or with ``seed``, the gradient that arrives at it, any shape) for each of
    ``wrt``. The operations are added to ``graph``, which the caller owns; a tensor that the loss does not depend on
    gets zeros. ``NervureError`` names the operations on the way that have no gradient.
    """
    path = path_between(graph, loss, wrt)
    _check_rules(graph, path)
    grads: dict[Value, list[Sym]] = {}
    start = Sym(graph, loss, graph.node(loss).origin)
    grads[loss] = [Sym(graph, seed, start.origin) if seed is not None else start.constant(1).expand(start.shape)]
    order = [key for key in graph.order() if key in path]
    for key in reversed(order):
        if graph.node(key).op not in STORED:
            _step(graph, key, grads, path)
    found = []
    for value in wrt:
        parts = grads.get(value)
        found.append((_total(parts) if parts else Sym(graph, value, graph.node(value).origin).zeros()).value)
    return found


def training_form(graph: Graph, loss: Value, wrt: Sequence[Value]) -> dict[Value, Value]:
    """Writes the operations between ``wrt`` and ``loss`` in the form that is cheap to differentiate (records'
    ``training``): attention keeps its probabilities, recurrent layers their gates. The caller owns the graph. Returns
    what stands for the tensors that were replaced, which nothing in the graph uses any more."""
    replaced: dict[Value, Value] = {}
    path = path_between(graph, loss, wrt)
    for key in [k for k in graph.order() if k in path]:
        rule = OPS[graph.node(key).op].training
        if rule is None:
            continue
        before = graph.values(key)
        after = rule(call_of(graph, key, ()))
        for old, new in zip(before, after, strict=True):
            graph.replace(old, new.value)
            replaced[old] = new.value
    return replaced


def path_between(graph: Graph, loss: Value, wrt: Sequence[Value]) -> set[int]:
    """The nodes that depend on ``wrt`` and that ``loss`` depends on, floating-point ways only."""
    reached = {v.node for v in wrt}
    for key in graph.order():
        args = (a for a in graph.args(key) if a is not None)
        if any(a.node in reached and _carries(graph, a) for a in args) and _passes(graph, key):
            reached.add(key)
    needed = {loss.node}
    for key in reversed(graph.order()):
        if key in needed:
            needed.update(a.node for a in graph.args(key) if a is not None)
    return reached & needed


def _carries(graph: Graph, value: Value) -> bool:
    """Whether a tensor has a gradient: floats, and what ``quantize`` makes, as the real numbers that it stands for."""
    return is_float(graph.type(value).dtype) or graph.node(value).op == "quantize"


def _passes(graph: Graph, key: int) -> bool:
    """Whether a gradient can come back through an operation at all: something floating comes out."""
    return any(_carries(graph, v) for v in graph.values(key))


def _check_rules(graph: Graph, path: set[int]) -> None:
    lacking = [k for k in graph.order() if k in path and graph.node(k).op not in STORED]
    lacking = [k for k in lacking if OPS[graph.node(k).op].gradient is None]
    if lacking:
        ops = sorted({graph.node(k).op for k in lacking})
        raise NervureError(
            f"no gradient goes through {', '.join(ops)}",
            where=[o for k in lacking for o in graph.node(k).origin[:1]][:5],
            why="the loss depends on trained parameters through it",
            hint="freeze the parameters before it, or keep it out of the loss",
        )


def call_of(graph: Graph, key: int, grads: Sequence[Sym], used: tuple[bool, ...] = ()) -> Call:
    node = graph.node(key)
    args = graph.args(key)
    args += [None] * (len(OPS[node.op].inputs) - len(args))
    xs = tuple(None if a is None else Sym(graph, a, node.origin) for a in args)
    ys = tuple(Sym(graph, v, node.origin) for v in graph.values(key))
    return Call(xs, ys, tuple(grads), node.attrs, used)


def _step(graph: Graph, key: int, grads: dict[Value, list[Sym]], path: set[int]) -> None:
    """The gradients of one operation's inputs from those of its outputs."""
    node = graph.node(key)
    outputs = graph.values(key)
    used = tuple(v in grads for v in outputs)
    if not any(used):
        return
    arriving = [
        _total(grads[v])
        if v in grads
        else Sym(graph, v, node.origin).zeros()
        if is_float(graph.type(v).dtype)
        else None
        for v in outputs
    ]
    rule = OPS[node.op].gradient
    assert rule is not None
    call = call_of(graph, key, arriving, used)  # type: ignore[arg-type]
    for x, grad in zip(call.xs, rule(call), strict=False):
        if x is None or grad is None or x.value.node not in path or not _carries(graph, x.value):
            continue
        if OPS[node.op].kind is Kind.ELEMENTWISE:
            grad = grad.sum_to(x.shape) if len(grad.shape) >= len(x.shape) else grad
            grad = grad.expand(x.shape)
        if grad.shape != x.shape or (grad.dtype != x.dtype and is_float(x.dtype)):
            raise TypeError(f"gradient rule of {node.op}: {grad.type} for an input of {x.type}")
        grads.setdefault(x.value, []).append(grad)


def _total(parts: list[Sym]) -> Sym:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    parts[:] = [total]
    return total
