"""Reductions, ArgMax and ArgMin, the Softmax family, cumulative operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...compiler.ir import Value
from .context import Context, OnnxNode
from .registry import Lowered, lowers


def axes_of(c: Context, n: OnnxNode) -> tuple[int, ...]:
    """The reduced axes, sorted; none where an empty list means "do nothing"."""
    rank = c.rank(n.input(0))
    given = c.listed(n, "axes", 1, "the axes of a reduction")
    if not given:
        return () if n.attr("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted({c.axis(a, rank) for a in given}))


Step = Callable[[Context, Value], Value]


def _same(c: Context, x: Value) -> Value:
    return x


def _square(c: Context, x: Value) -> Value:
    return c.op("mul", x, x)


def _root(c: Context, x: Value) -> Value:
    return c.op("sqrt", x) if c.is_float(x) else c.cast(c.op("sqrt", c.cast(x, "float64")), c.dtype(x))


def _log(c: Context, x: Value) -> Value:
    return c.op("log", x) if c.is_float(x) else c.cast(c.op("log", c.cast(x, "float64")), c.dtype(x))


def _abs(c: Context, x: Value) -> Value:
    return c.op("abs", x) if not c.dtype(x).startswith("u") else x


# ONNX name -> what happens to each element, the reduction, what happens to its result
REDUCTIONS: dict[str, tuple[Step, str, Step]] = {
    "ReduceSum": (_same, "sum", _same),
    "ReduceProd": (_same, "prod", _same),
    "ReduceL1": (_abs, "sum", _same),
    "ReduceL2": (_square, "sum", _root),
    "ReduceSumSquare": (_square, "sum", _same),
    "ReduceLogSum": (_same, "sum", _log),
}


def _reduction(before: Step, kind: str, after: Step) -> Any:
    def rule(c: Context, n: OnnxNode) -> Lowered:
        x = before(c, n.input(0))
        return after(c, c.reduce(kind, x, axes_of(c, n), bool(n.attr("keepdims", 1))))

    return rule


for _name, (_before, _kind, _after) in REDUCTIONS.items():
    lowers(_name)(_reduction(_before, _kind, _after))


@lowers("ReduceMax", "ReduceMin")
def extremum(c: Context, n: OnnxNode) -> Lowered:
    x, kind = n.input(0), n.op_type[6:].lower()
    wide = c.cast(x, "uint8") if c.dtype(x) == "bool" else x
    return c.cast(c.reduce(kind, wide, axes_of(c, n), bool(n.attr("keepdims", 1))), c.dtype(x))


@lowers("ReduceMean")
def reduce_mean(c: Context, n: OnnxNode) -> Lowered:
    x, axes, keep = n.input(0), axes_of(c, n), bool(n.attr("keepdims", 1))
    if c.is_float(x):
        return c.reduce("mean", x, axes, keep)
    total = c.reduce("sum", x, axes, keep)
    return c.op("div", total, c.like(math.prod(c.shape(x)[a] for a in axes), total))


@lowers("ReduceLogSumExp")
def log_sum_exp(c: Context, n: OnnxNode) -> Lowered:
    """log(sum(exp(x - max))) + max, which does not overflow; infinite maxima are left out of the shift."""
    x, axes, keep = n.input(0), axes_of(c, n), bool(n.attr("keepdims", 1))
    if not axes:
        return x
    wide = x if c.is_float(x) else c.cast(x, "float64")
    if math.prod(c.shape(x)[a] for a in axes) == 0:
        return c.cast(c.op("log", c.reduce("sum", wide, axes, keep)), c.dtype(x))
    top = c.reduce("max", wide, axes)
    shift = c.op("where", c.op("isinf", top), c.like(0, top), top)
    total = c.op("log", c.reduce("sum", c.op("exp", c.op("sub", wide, shift)), axes))
    y = c.op("add", total, shift)
    return c.cast(y if keep else c.squeeze(y, axes), c.dtype(x))


@lowers("ArgMax", "ArgMin")
def arg_extremum(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    return c.op(
        n.op_type.lower(),
        x,
        axis=c.axis(n.attr("axis", 0), c.rank(x)),
        keepdims=bool(n.attr("keepdims", 1)),
        select_last=bool(n.attr("select_last_index", 0)),
    )


# -- softmax -----------------------------------------------------------------------------------------------------------


def along_axis(c: Context, n: OnnxNode, function: Callable[[Value, int], Value]) -> Value:
    """Applies ``function(x, axis)``; before opset 13 to the matrix that the axis cuts the tensor into."""
    x = n.input(0)
    rank, shape = c.rank(x), c.shape(x)
    axis = c.axis(n.attr("axis", -1 if n.version >= 13 else 1), rank) if n.attr("axis", 1) != rank else rank
    if n.version >= 13 or (math.prod(shape[axis + 1 :]) == 1 and axis < rank):
        return function(x, axis)
    matrix = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    return c.reshape(function(c.reshape(x, matrix), 1), shape)


@lowers("Softmax")
def softmax(c: Context, n: OnnxNode) -> Lowered:
    return along_axis(c, n, lambda x, axis: c.op("softmax", x, axis=axis))


@lowers("LogSoftmax")
def log_softmax(c: Context, n: OnnxNode) -> Lowered:
    return along_axis(c, n, lambda x, axis: c.op("log_softmax", x, axis=axis))


@lowers("Hardmax")
def hardmax(c: Context, n: OnnxNode) -> Lowered:
    def one_hot(x: Value, axis: int) -> Value:
        best = c.op("argmax", x, axis=axis, keepdims=False, select_last=False)
        values = c.const([0, 1], c.dtype(x))
        return c.op("one_hot", best, values, depth=c.shape(x)[axis], axis=axis)

    return along_axis(c, n, one_hot)


# -- cumulative --------------------------------------------------------------------------------------------------------


@lowers("CumSum", "CumProd")
def cumulative(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    (axis,) = c.ints(n.input(1), "the axis")
    return c.op(
        n.op_type.lower(),
        x,
        axis=c.axis(axis, c.rank(x)),
        exclusive=bool(n.attr("exclusive", 0)),
        reverse=bool(n.attr("reverse", 0)),
    )
