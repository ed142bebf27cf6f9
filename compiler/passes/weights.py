"""Narrow weights where floats are computed: they stay narrow, and the kernel widens them.

 1. conv, matmul and gather whose weights are a ``dequantize`` or a widening ``cast`` of constants (behind transposes,
    and reshapes that only add or drop axes of length 1) are one operator of ``ops.weights``.
 2. The scales of blocks of what is not constant are spelled out as one for each element.

This runs when nothing else fits any more: what could be integers is. The weights of a depthwise convolution are left
out; they are few, each is used in every point of the output, and as floats they need no unpacking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir import Graph, Value
from ..ops.blocks import Block
from ..ops.weights import CODES, HALVES
from .pattern import Match, any_call
from .rewrite import Rule, rewrite

PLACES = {"conv": 1, "matmul": 1, "gather": 0}  # the input that holds the weights


def lower_weights(graph: Graph) -> Graph:
    """A copy of ``graph`` whose narrow weights are the kernels' own affair."""
    return rewrite(graph, RULES)


def stored_narrow(graph: Graph, key: int) -> bool:
    """Whether a node makes floats of narrow constants that should stay what they are as long as possible."""
    node = graph.node(key)
    if node.op == "dequantize":
        return True
    if node.op != "cast" or node.attrs["to"] != "float32":
        return False
    (source,) = graph.args(key)
    if source is None or graph.node(source).op != "const" or graph.type(source).dtype not in HALVES:
        return False
    return bool(graph.users(Value(key))) and all(_is_weight(graph, *use) for use in graph.users(Value(key)))


def _is_weight(graph: Graph, user: int, arg: int) -> bool:
    """Whether a tensor ends, through views, as the weights of an operator that has a narrow form."""
    node = graph.node(user)
    if node.op in ("transpose", "reshape"):
        users = graph.users(Value(user))
        return bool(users) and all(_is_weight(graph, *use) for use in users)
    return PLACES.get(node.op) == arg and not (node.op == "conv" and _depthwise(graph, user))


@dataclass(frozen=True)
class Narrow:
    """Stored weights, as arrays of the weights' rank; ``like`` names them."""

    codes: np.ndarray
    scale: np.ndarray | None
    zero: np.ndarray | None
    block: Block
    like: Value

    @property
    def factors(self) -> tuple[np.ndarray | None, ...]:
        return self.scale, self.zero


def narrow_of(graph: Graph, value: Value | None) -> Narrow | None:
    """What a float32 tensor is widened from, where that is constant."""
    if value is None or graph.type(value).dtype != "float32" or not graph.type(value).size:
        return None
    node = graph.node(value)
    if node.op in ("transpose", "reshape"):
        inner = narrow_of(graph, graph.args(value.node)[0])
        if inner is None:
            return None
        return (
            _transposed(inner, node.attrs["perm"]) if node.op == "transpose" else _reshaped(inner, node.types[0].dims)
        )
    if node.op not in ("dequantize", "cast"):
        return None
    arrays = [None if a is None else graph.constant(a) for a in graph.args(value.node)]
    if any(found is None and a is not None for found, a in zip(arrays, graph.args(value.node), strict=True)):
        return None
    codes, *factors = arrays
    assert codes is not None
    like = graph.args(value.node)[0]
    assert like is not None
    if node.op == "cast":
        return Narrow(codes, None, None, None, like) if graph.type(like).dtype in HALVES else None
    if graph.type(like).dtype not in CODES:
        return None
    ranked = [None if f is None else f.reshape((1,) * (codes.ndim - f.ndim) + f.shape) for f in factors]
    scale, zero = (*ranked, None)[:2]
    assert scale is not None
    return Narrow(codes, scale.astype(np.float32), zero, node.attrs["block"], like)


def _transposed(w: Narrow, perm: Sequence[int]) -> Narrow:
    scale, zero = (None if f is None else f.transpose(perm) for f in w.factors)
    block = None if w.block is None else (list(perm).index(w.block[0]), w.block[1])
    return replace(w, codes=w.codes.transpose(perm), scale=scale, zero=zero, block=block)


def _reshaped(w: Narrow, shape: tuple[int, ...]) -> Narrow | None:
    """Weights with axes of length 1 more or less; any shape where one scale serves all."""
    codes = w.codes.reshape(shape)
    if w.scale is None or (w.scale.size == 1 and (w.zero is None or w.zero.size == 1)):
        one = (1,) * len(shape)
        scale, zero = (None if f is None else f.reshape(one) for f in w.factors)
        return replace(w, codes=codes, scale=scale, zero=zero, block=None)
    kept = [a for a, d in enumerate(w.codes.shape) if d > 1]
    wanted = [a for a, d in enumerate(shape) if d > 1]
    if [w.codes.shape[a] for a in kept] != [shape[a] for a in wanted]:
        return None
    place = dict(zip(kept, wanted, strict=True))
    block = w.block
    if block is not None:
        block = (place[block[0]], block[1]) if block[0] in place else None

    def moved(f: np.ndarray | None) -> np.ndarray | None:
        if f is None:
            return None
        dims = [1] * len(shape)
        for old, new in place.items():
            dims[new] = f.shape[old]
        return f.reshape(dims)

    return replace(w, codes=codes, scale=moved(w.scale), zero=moved(w.zero), block=block)


def _constants(m: Match, w: Narrow) -> tuple[list[Value | None], dict[str, Block]]:
    """Codes, scale and zero point as constants, and the attribute that goes with them."""
    codes = np.ascontiguousarray(w.codes).reshape(w.codes.shape)
    own = m.graph.constant(w.like)
    made: list[Value | None] = [w.like if own is not None and own.shape == codes.shape and (own is w.codes) else None]
    if made[0] is None:
        made = [m.const(codes, w.like)]
    made += [None if f is None else m.const(np.ascontiguousarray(f), w.like) for f in w.factors]
    return made, {"block": w.block}


def _depthwise(graph: Graph, key: int) -> bool:
    w = graph.args(key)[1]
    return w is not None and graph.node(key).attrs["group"] > 1 and graph.type(w).dims[1] == 1


def _conv(m: Match) -> Value | None:
    graph = m.graph
    x, value, *rest = graph.args(m.root)
    if graph.type(x).dtype != "float32" or _depthwise(graph, m.root):  # type: ignore[arg-type]
        return None
    w = narrow_of(graph, value)
    if w is None:
        return None
    (codes, scale, zero), attrs = _constants(m, w)
    return m.add("conv_narrow", x, codes, rest[0] if rest else None, scale, zero, **m.node.attrs, **attrs)


def _matmul(m: Match) -> Value | None:
    graph = m.graph
    a, value = graph.args(m.root)
    w = narrow_of(graph, value)
    if w is None or w.codes.ndim != 2 or narrow_of(graph, a) is not None:
        return None
    (codes, scale, zero), attrs = _constants(m, w)
    return m.add("matmul_narrow", a, codes, None, scale, zero, **attrs)


def _gather(m: Match) -> Value | None:
    graph = m.graph
    table, indices = graph.args(m.root)
    w = narrow_of(graph, table)
    if w is None or m.node.attrs["axis"] % w.codes.ndim == w.codes.ndim - 1:
        return None
    (codes, scale, zero), attrs = _constants(m, w)
    return m.add("gather_narrow", codes, indices, scale, zero, axis=m.node.attrs["axis"] % w.codes.ndim, **attrs)


def _spelled_out(m: Match) -> Value | None:
    """dequantize with blocks of what is computed: scales are repeated."""
    graph, block = m.graph, m.node.attrs["block"]
    x, *factors = graph.args(m.root)
    if block is None or x is None or graph.constant(x) is not None or not m.node.types[0].static:
        return None
    dims = m.node.types[0].dims
    repeated = [None if f is None else _repeated(m, f, dims, block) for f in factors]
    return m.add("dequantize", x, *repeated, **{**m.node.attrs, "block": None})


def _repeated(m: Match, f: Value, dims: tuple[int, ...], block: tuple[int, int]) -> Value:
    axis, size = block
    shape = (1,) * (len(dims) - len(m.shape(f))) + tuple(int(d) for d in m.shape(f))
    if shape[axis] == 1:
        return m.add("reshape", f, shape=shape)
    lead, count, tail = shape[:axis], shape[axis], shape[axis + 1 :]
    one = m.add("reshape", f, shape=(*lead, count, 1, *tail))
    whole = m.add(
        "reshape", m.add("expand", one, shape=(*lead, count, size, *tail)), shape=(*lead, count * size, *tail)
    )
    if count * size == dims[axis]:
        return whole
    stops = (*lead, dims[axis], *tail)
    return m.add("slice", whole, starts=(0,) * len(dims), stops=stops, steps=(1,) * len(dims))


RULES = (
    Rule("narrow weights of a convolution", any_call("conv"), _conv, closed=False),
    Rule("narrow weights of a product", any_call("matmul"), _matmul, closed=False),
    Rule("narrow table", any_call("gather"), _gather, closed=False),
    Rule("scales of blocks", any_call("dequantize"), _spelled_out, closed=False),
)
