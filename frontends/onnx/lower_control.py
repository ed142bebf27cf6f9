"""If whose condition is known, Loop and Scan with a known number of trips: all of them unrolled while importing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from ...compiler.ir import Value
from ...compiler.ops.numeric import numpy_dtype
from ...errors import NervureError
from .context import MAX_UNROLLED, OnnxNode, Unsupported
from .registry import lowers
from .tensors import DTYPES

if TYPE_CHECKING:
    from .walk import Scope, Walker


def _body(n: OnnxNode, name: str) -> onnx.GraphProto:
    graph = n.attr(name)
    if not isinstance(graph, onnx.GraphProto):
        raise NervureError(f"{n.op_type} has no graph {name!r}", where=n.path)
    return graph


def _lost(values: Sequence[Value]) -> bool:
    from .walk import POISON

    return POISON in values


@lowers("If", control=True)
def if_(walker: Walker, n: OnnxNode) -> list[Value]:
    condition = walker.context.array(n.input(0))
    if condition is None:
        raise Unsupported("its condition is computed at run time", "Where, or a condition that follows from shapes")
    name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    return walker.run(_body(n, name), n.scope.inside(f"{n.path}/{name}"))


@lowers("Loop", control=True)
def loop(walker: Walker, n: OnnxNode) -> list[Value]:
    c, body = walker.context, _body(n, "body")
    trips = None if n.optional(0) is None else int(c.need(n.optional(0), "the trip count").reshape(-1)[0])
    going = n.optional(1) is None or bool(c.need(n.optional(1), "the condition of a loop").reshape(-1)[0])
    carried = [n.input(i) for i in range(2, len(n.inputs))]
    if len(body.input) != len(carried) + 2:
        raise NervureError("the loop's body does not take what the loop carries", where=n.path)
    if going and (trips is None or trips * max(1, len(body.node)) > MAX_UNROLLED) and not _may_stop(n, body):
        walker.spend((1 << 62) if trips is None else trips * max(1, len(body.node)), n.path)
    rows: list[list[Value]] = [[] for _ in body.output[1 + len(carried) :]]
    i = 0
    condition = c.scalar(True, "bool")
    while going and (trips is None or i < trips):
        walker.spend(len(body.node), n.path)
        scope = n.scope.inside(f"{n.path}/{body.name or 'body'}[{i}]")
        names = [info.name for info in body.input]
        scope.env.update(zip(names, [c.scalar(i, "int64"), condition, *carried], strict=True))
        results = walker.run(body, scope)
        if _lost(results):
            return _poison(n)
        condition, carried = results[0], results[1 : 1 + len(carried)]
        for row, value in zip(rows, results[1 + len(carried) :], strict=True):
            row.append(c.unsqueeze(value, [0]))
        if n.optional(1) is not None:
            going = bool(c.need(condition, "the condition of a loop").reshape(-1)[0])
        i += 1
    infos = body.output[1 + len(carried) :]
    return [
        *carried,
        *(c.concat(r, 0) if r else _no_rows(walker, n, info) for r, info in zip(rows, infos, strict=True)),
    ]


def _poison(n: OnnxNode) -> list[Value]:
    from .walk import POISON

    return [POISON] * len(n.outputs)


def _may_stop(n: OnnxNode, body: onnx.GraphProto) -> bool:
    """Whether the body computes a condition, or only hands on the one that it gets."""
    if n.optional(1) is None or not body.output:
        return False
    name = body.output[0].name
    makers = {o: node for node in body.node for o in node.output}
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    maker = makers.get(name)
    return maker is not None and maker.op_type != "Constant"


def _no_rows(walker: Walker, n: OnnxNode, info: onnx.ValueInfoProto) -> Value:
    """What a loop without trips stacks: no rows of the declared type."""
    tensor = info.type.tensor_type
    if tensor.elem_type not in DTYPES or not tensor.HasField("shape"):
        raise Unsupported("it makes no trip, and its body does not declare what it would stack")
    dims = [int(d.dim_value) for d in tensor.shape.dim]
    return walker.context.const(np.zeros((0, *dims), numpy_dtype(DTYPES[tensor.elem_type])))


@lowers("Scan", control=True)
def scan(walker: Walker, n: OnnxNode) -> list[Value]:
    if n.version < 9:
        return _batched_scan(walker, n)
    body, count = _body(n, "body"), n.attr("num_scan_inputs", 0)
    inputs = [n.input(i) for i in range(len(n.inputs))]
    return _scan(walker, n, body, inputs[: len(inputs) - count], inputs[len(inputs) - count :], "")


def _batched_scan(walker: Walker, n: OnnxNode) -> list[Value]:
    """Opset 8: every state and sequence has a batch axis in front, every batch row is scanned by itself."""
    c, body, count = walker.context, _body(n, "body"), n.attr("num_scan_inputs", 0)
    if n.optional(0) is not None:
        raise Unsupported("sequence lengths", "Scan without sequence_lens")
    inputs = [n.input(i) for i in range(1, len(n.inputs))]
    rows = []
    for b in range(c.shape(inputs[-1])[0]):
        row = [c.squeeze(c.slice(v, 0, b, b + 1), [0]) for v in inputs]
        rows.append(_scan(walker, n, body, row[: len(row) - count], row[len(row) - count :], f"{b},"))
        if _lost(rows[-1]):
            return _poison(n)
    return [c.concat([c.unsqueeze(v, [0]) for v in column], 0) for column in zip(*rows, strict=True)]


def _scan(
    walker: Walker, n: OnnxNode, body: onnx.GraphProto, states: list[Value], sequences: list[Value], at: str
) -> list[Value]:
    c = walker.context
    backward = n.attr("scan_input_directions" if n.version >= 9 else "directions") or (0,) * len(sequences)
    axes = [
        c.axis(a, c.rank(v)) for a, v in zip(n.attr("scan_input_axes") or [0] * len(sequences), sequences, strict=True)
    ]
    lengths = {c.shape(v)[a] for a, v in zip(axes, sequences, strict=True)}
    if len(lengths) != 1 or len(body.input) != len(states) + len(sequences):
        raise NervureError("the scanned inputs do not fit each other or the body", where=n.path)
    length = lengths.pop()
    rows: list[list[Value]] = [[] for _ in body.output[len(states) :]]
    for i in range(length):
        walker.spend(len(body.node), n.path)
        places = [length - 1 - i if b else i for b in backward]
        steps = [c.squeeze(c.slice(v, a, p, p + 1), [a]) for v, a, p in zip(sequences, axes, places, strict=True)]
        scope: Scope = n.scope.inside(f"{n.path}/{body.name or 'body'}[{at}{i}]")
        scope.env.update(zip([info.name for info in body.input], [*states, *steps], strict=True))
        results = walker.run(body, scope)
        if _lost(results):
            return _poison(n)
        states = results[: len(states)]
        for row, value in zip(rows, results[len(states) :], strict=True):
            row.append(value)
    return [*states, *_stacked(walker, n, rows)]


def _stacked(walker: Walker, n: OnnxNode, rows: list[list[Value]]) -> list[Value]:
    c = walker.context
    backward = n.attr("scan_output_directions") or (0,) * len(rows)
    axes = n.attr("scan_output_axes") or (0,) * len(rows)
    found = []
    for row, reverse, wanted in zip(rows, backward, axes, strict=True):
        if not row:
            raise Unsupported("it scans no elements")
        axis = c.axis(wanted, c.rank(row[0]) + 1)
        found.append(c.concat([c.unsqueeze(v, [axis]) for v in (reversed(row) if reverse else row)], axis))
    return found
