"""Folding of per-channel factors and addends (batch normalisation above all) into constant weights.

 1. batch_norm with constant statistics behind conv, conv_transpose, or matmul by a constant matrix: the weights are
    scaled, the rest becomes the bias.
 2. So is a multiplication by a constant that only depends on the channel.
 3. An addition of such a constant behind conv or conv_transpose becomes its bias; behind matmul it stays what it is,
    an elementwise epilogue.
 4. batch_norm, a factor, or a factor and an addend *before* a conv whose padding is zero or none: the weights' input
    channels are scaled; the addend, seen through the weights, joins the bias (only where nothing is padded).
 5. A batch_norm that remains is a multiplication and an addition.

All of it is computed in float64 and rounded once. A result that something else uses is left alone, and weights that
are shared are only folded while they are small.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ir import Graph, Node, Value
from ..ops.numeric import numpy_dtype
from ..types import is_float
from .fold import LIMIT
from .pattern import Const, Match, Pattern, Var, any_call, call
from .rewrite import Rule, rewrite

_CONVS = "conv|conv_transpose"


def fold_batch_norm(graph: Graph) -> Graph:
    """A copy of ``graph`` whose per-channel arithmetic lies in the weights before or behind it."""
    return rewrite(rewrite(graph, FOLDING), REMAINING)


def channel_values(graph: Graph, value: Value, rank: int, axis: int, channels: int) -> np.ndarray | None:
    """A constant that a tensor of ``rank`` axes is combined with, as float64 [channels]; None if it is no constant or
    differs along another axis than ``axis``."""
    array = graph.constant(value)
    if array is None or array.ndim > rank:
        return None
    full = (1,) * (rank - array.ndim) + array.shape
    if full[axis] not in (1, channels) or any(d != 1 for i, d in enumerate(full) if i != axis):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def statistics(m: Match, key: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and addend of a batch_norm, float64 [channels]; None where one of its inputs is no constant."""
    arrays = [m.graph.constant(a) for a in m.graph.args(key)[1:]]
    if any(a is None for a in arrays):
        return None
    scale, bias, mean, var = (np.asarray(a, np.float64) for a in arrays)
    factor = scale / np.sqrt(var + m.graph.node(key).attrs["epsilon"])
    return factor, bias - mean * factor


def _affine(m: Match, key: int, axis: int, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What the operation ``key`` does to each channel: ``x * factor + addend``."""
    graph, node = m.graph, m.graph.node(key)
    if node.op == "batch_norm":
        return statistics(m, key) if axis == 1 else None
    values = channel_values(graph, m["c"], node.types[0].rank, axis, channels)
    if values is None:
        return None
    return (values, np.zeros(channels)) if node.op == "mul" else (np.ones(channels), values)


def _may_fold(m: Match, weight: Value) -> bool:
    return m.graph.uses(weight) == 1 or m.graph.type(weight).nbytes <= LIMIT


def _rounded(m: Match, wide: np.ndarray, like: Value) -> Value | None:
    """A constant with ``like``'s element type; None where a weight would leave its range."""
    with np.errstate(all="ignore"):
        narrow = wide.astype(m.array("w").dtype)
    if not bool(np.all(np.isfinite(narrow.astype(np.float64)))):
        return None
    return m.const(narrow, like)


# -- 1, 2, 3: behind ---------------------------------------------------------------------------------------------


def _behind_conv(m: Match) -> Value | None:
    graph, conv = m.graph, m.graph.node(m["conv"])
    x, w, *rest = graph.args(m["conv"].node)
    assert x is not None and w is not None
    channels = conv.types[0].dims[1] if conv.types[0].static else None
    old = graph.constant(rest[0]) if rest else None
    if channels is None or (rest and old is None) or not _may_fold(m, w):
        return None
    affine = _affine(m, m.root, 1, channels)
    if affine is None:
        return None
    factor, addend = affine
    bias = factor * (0.0 if old is None else old.astype(np.float64)) + addend
    weight = w if m.node.op == "add" else _rounded(m, _scaled_outputs(m, conv.op, factor), w)
    return _new_conv(m, conv, weight, bias, rest[0] if rest and rest[0] else _addend(m, m.root))


def _new_conv(m: Match, conv: Node, weight: Value | None, bias: np.ndarray, like: Value) -> Value | None:
    """The convolution with other weights; ``like`` is the constant after which a bias that it needs is named."""
    args = [m["x"], weight]
    if bias.any():
        args.append(_rounded(m, bias, like))
    return None if None in args else m.add(conv.op, *args, **conv.attrs)


def _addend(m: Match, key: int) -> Value:
    """The constant that an affine operation adds (or is, where it only multiplies)."""
    return m["c"] if "c" in m else next(a for a in m.graph.args(key)[2:] if a is not None)


def _scaled_outputs(m: Match, op: str, factor: np.ndarray) -> np.ndarray:
    w: np.ndarray = m.array("w").astype(np.float64)
    spatial = (1,) * (w.ndim - 2)
    group = m.graph.node(m["conv"]).attrs["group"]
    if op == "conv":
        w *= factor.reshape(-1, 1, *spatial)
    else:  # [C, O/group, ...]: the outputs of group g are factor[g * O/group : (g + 1) * O/group]
        grouped = w.reshape(group, w.shape[0] // group, *w.shape[1:])
        grouped *= factor.reshape(group, 1, -1, *spatial)
    return w


def _behind_matmul(m: Match) -> Value | None:
    product = m.graph.node(m["product"])
    w, rank = m["w"], product.types[0].rank
    matrix = m.array("w")
    if matrix.ndim != 2 or not product.types[0].static or rank < 2 or not _may_fold(m, w):
        return None
    if m.node.op == "batch_norm" and rank != 2:
        return None
    affine = _affine(m, m.root, rank - 1, matrix.shape[1])
    if affine is None:
        return None
    factor, addend = affine
    weight = _rounded(m, matrix.astype(np.float64) * factor, w)
    if weight is None:
        return None
    made = m.add("matmul", m["x"], weight)
    if not addend.any():
        return made
    bias = _rounded(m, addend, _addend(m, m.root))
    return None if bias is None else m.add("add", made, bias)


# -- 4: before ---------------------------------------------------------------------------------------------------


def _before_conv(m: Match) -> Value | None:
    graph, node, w = m.graph, m.node, m.array("w")
    inner = m["affine"]
    type_ = graph.type(inner)
    if not type_.static or graph.type(m["x"]) != type_ or not _may_fold(m, m["w"]):
        return None
    channels = type_.dims[1]
    affine = _affine(m, inner.node, 1, channels)
    if affine is None:
        return None
    factor, addend = affine
    if addend.any() and any(node.attrs["pads"]):
        return None
    group = node.attrs["group"]
    outputs, per_group = w.shape[:2]
    owner = np.arange(outputs) // (outputs // group)
    taken = owner[:, None] * per_group + np.arange(per_group)  # the input channel of each weight
    wide = w.astype(np.float64).reshape(outputs, per_group, -1)
    rest = graph.args(m.root)[2:]
    old = graph.constant(rest[0]) if rest else None
    if rest and old is None:
        return None
    weight = _rounded(m, (wide * factor[taken][:, :, None]).reshape(w.shape), m["w"])
    bias = (wide.sum(axis=2) * addend[taken]).sum(axis=1) + (0.0 if old is None else old.astype(np.float64))
    return _new_conv(m, node, weight, bias, rest[0] if rest and rest[0] else _addend(m, inner.node))


# -- 5: what remains ---------------------------------------------------------------------------------------------


def _to_affine(m: Match) -> Value | None:
    found = statistics(m, m.root)
    args = [a for a in m.graph.args(m.root) if a is not None]
    channels = m.node.types[0].dims[1]
    shape = (channels, *(1,) * (m.node.types[0].rank - 2))
    dtype = m.graph.type(args[0]).dtype
    if found is None:
        return _computed(m, args, shape, dtype)
    factor, addend = (v.reshape(shape).astype(numpy_dtype(dtype)) for v in found)
    return m.add("add", m.add("mul", args[0], m.const(factor, args[1])), m.const(addend, args[2]))


def _computed(m: Match, args: list[Value], shape: tuple[int, ...], dtype: str) -> Value:
    """The same with statistics that are known at run time only."""
    spread = [m.add("reshape", a, shape=shape) for a in args[1:]]
    scale, bias, mean, var = (a if m.graph.type(a).dtype == dtype else m.add("cast", a, to=dtype) for a in spread)
    epsilon = m.const(np.asarray(m.node.attrs["epsilon"], numpy_dtype(dtype)), args[4])
    factor = m.add("mul", scale, m.add("rsqrt", m.add("add", var, epsilon)))
    return m.add("add", m.add("mul", m.add("sub", args[0], mean), factor), bias)


_X, _W, _B, _C = Var("x"), Const("w"), Const("b"), Const("c")
_BEHIND = (call(_CONVS, _X, _W, name="conv"), call(_CONVS, _X, _W, _B, name="conv"))
_PRODUCT = call("matmul", _X, _W, name="product")
_STATISTICS = (Const("scale"), Const("bias"), Const("mean"), Const("var"))
_BEFORE = (call("mul|add", _X, _C, name="affine"), call("batch_norm", _X, *_STATISTICS, name="affine"))


def _floating(m: Match) -> bool:
    return is_float(m.node.types[0].dtype)


def _rules(name: str, build: Callable[[Match], Value | None], *patterns: Pattern) -> tuple[Rule, ...]:
    return tuple(Rule(name, pattern, build, _floating) for pattern in patterns)


FOLDING: tuple[Rule, ...] = (
    *_rules("batch_norm behind conv", _behind_conv, *(call("batch_norm", conv, *_STATISTICS) for conv in _BEHIND)),
    *_rules("constant behind conv", _behind_conv, *(call("mul|add", conv, _C) for conv in _BEHIND)),
    *_rules("batch_norm behind matmul", _behind_matmul, call("batch_norm", _PRODUCT, *_STATISTICS)),
    *_rules("factor behind matmul", _behind_matmul, call("mul", _PRODUCT, _C)),
    *_rules("before conv", _before_conv, *(call("conv", inner, _W) for inner in _BEFORE)),
    *_rules("before conv with bias", _before_conv, *(call("conv", inner, _W, _B) for inner in _BEFORE)),
)
REMAINING: tuple[Rule, ...] = (Rule("batch_norm", any_call("batch_norm"), _to_affine),)
