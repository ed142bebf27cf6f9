"""Rules for operators that only say where an element lies.

 1. Attributes take their normal form: axes count from the front, the -1 of a reshape is filled in.
 2. What changes nothing goes: identity, a cast to the same type, reshape, slice, expand to the same shape, pad by
    nothing, tile once, concat of one.
 3. A chain of reshapes and transposes takes the fewest steps (see ``views``); a transpose that only moves axes of
    length 1 is a reshape.
 4. Casts in a row become one where the first loses nothing.
 5. A slice of a slice is one slice; of a concat, of the part in which it lies.
 6. A concat swallows concats along its axis, drops empty parts, and puts neighbouring slices of one tensor together.
 7. A gather of constant, evenly spaced positions is a slice (and a reshape where the index is a scalar).
 8. Constant pads around a constant pad of the same value are one pad.
 9. An expand of an expand is one; a tile of axes of length 1 is an expand.
10. An expand into an elementwise operator is left to its implicit broadcast (and follows it, where all its inputs are
    narrow); so is one of a matmul's batch axes or of an attention's mask.
11. A reduction over nothing goes; over axes of length 1 it is a reshape.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import Graph, Value
from ..ops import OPS, Kind
from ..ops.selection import POSITIONAL
from ..types import DTYPES, is_float, is_integer
from .pattern import Match, Var, any_call, call
from .rewrite import Rule
from .views import shorter_chain

_X, _K, _V = Var("x"), Var("k"), Var("v")
_AXIS_OPS = "argmax|argmin|concat|cumprod|cumsum|gather|gather_elements|layer_norm|log_softmax|rms_norm|softmax"
_REDUCTIONS = "reduce_max|reduce_mean|reduce_min|reduce_prod|reduce_sum"
_BROADCASTING = "|".join(
    sorted(
        o.name
        for o in OPS.values()
        if o.kind is Kind.ELEMENTWISE and o.inputs and o.name not in ("identity", *POSITIONAL)
    )
)
_SIGNIFICANT = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_EXPONENT = {"float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}


# -- 1, 2: normal form, nothing to do ----------------------------------------------------------------------------


def _again(m: Match, **changes: Any) -> Value:
    """The same operation with other attributes."""
    return m.add(m.node.op, *m.graph.args(m.root), **{**m.node.attrs, **changes})


def _first_rank(m: Match) -> int:
    first = m.graph.args(m.root)[0]
    assert first is not None
    return m.graph.type(first).rank


def _normal_axis(m: Match) -> Value | None:
    axis = m.node.attrs["axis"]
    return _again(m, axis=axis + _first_rank(m)) if axis < 0 else None


def _normal_axes(m: Match) -> Value | None:
    axes, rank = tuple(m.node.attrs["axes"]), _first_rank(m)
    normal = tuple(sorted(a % rank for a in axes)) if rank else axes
    return None if normal == axes else _again(m, axes=normal)


def _normal_shape(m: Match) -> Value | None:
    shape = m.node.types[0].shape
    return None if tuple(m.node.attrs["shape"]) == shape else _again(m, shape=shape)


def _to_input(m: Match) -> Value | None:
    """The input itself, where that is the same tensor."""
    node, x = m.node, m["x"]
    if m.graph.type(x) != node.types[0]:
        return None
    if node.op == "slice" and any(step != 1 for step in node.attrs["steps"]):
        return None
    return source_of(m.graph, x)


def source_of(graph: Graph, value: Value) -> Value:
    """The tensor of which this is an ``identity``, else itself."""
    while graph.node(value).op == "identity":
        found = graph.args(value.node)[0]
        assert found is not None
        value = found
    return value


def _one_part(m: Match) -> Value | None:
    args = m.graph.args(m.root)
    return args[0] if len(args) == 1 else None


# -- 3, 4: views and casts ---------------------------------------------------------------------------------------


def _view_chain(m: Match) -> Value | None:
    found = shorter_chain(m.graph, m.out)
    if found is None:
        return None
    value, steps = found
    for kind, values in steps:
        value = m.add(kind, value, **{"shape" if kind == "reshape" else "perm": values})
    return value


def lossless(source: str, target: str) -> bool:
    """Whether every value of one element type is a value of the other."""
    if source == target or source == "bool":
        return True
    if target == "bool":
        return False
    if is_integer(source):
        signed, bits = source[0] == "i", 8 * DTYPES[source][0]
        if is_float(target):
            return bits - signed <= _SIGNIFICANT[target] and bits < 2 ** (_EXPONENT[target] - 1)
        wide = 8 * DTYPES[target][0]
        return wide >= bits if signed == (target[0] == "i") else not signed and wide > bits
    return is_float(target) and _SIGNIFICANT[source] <= _SIGNIFICANT[target] and _EXPONENT[source] <= _EXPONENT[target]


def _cast_chain(m: Match) -> Value | None:
    x, to = m["x"], m.node.types[0].dtype
    source, between = m.graph.type(x).dtype, m.graph.type(m["inner"]).dtype
    if not lossless(source, between):
        return None
    return x if source == to else m.add("cast", x, to=to)


# -- 5, 6, 7: slices, concats, gathers ---------------------------------------------------------------------------


def _bounds(start: int, step: int, count: int) -> tuple[int, int, int]:
    """A normal slice of ``count`` elements."""
    if count == 0:
        return 0, 0, 1
    return start, start + (count - 1) * step + (1 if step > 0 else -1), step


def _slice(m: Match, x: Value, bounds: Sequence[tuple[int, int, int]]) -> Value:
    starts, stops, steps = zip(*bounds, strict=True) if bounds else ((), (), ())
    return m.add("slice", x, starts=starts, stops=stops, steps=steps)


def _ranges(graph: Graph, key: int) -> list[tuple[int, int, int]]:
    attrs = graph.node(key).attrs
    return list(zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True))


def _slice_of_slice(m: Match) -> Value | None:
    inner, outer = _ranges(m.graph, m["inner"].node), _ranges(m.graph, m.root)
    counts = m.node.types[0].shape
    if not m.graph.type(m["x"]).static:
        return None
    both = zip(inner, outer, counts, strict=True)
    return _slice(m, m["x"], [_bounds(a[0] + a[2] * b[0], a[2] * b[2], int(n)) for a, b, n in both])


def _slice_of_concat(m: Match) -> Value | None:
    graph, axis = m.graph, m.graph.node(m["parts"]).attrs["axis"]
    ranges = _ranges(graph, m.root)
    rank = len(ranges)
    axis %= rank
    start, _, step = ranges[axis]
    count = m.node.types[0].shape[axis]
    if not isinstance(count, int) or count == 0:
        return None
    last = start + (count - 1) * step
    low, high, offset = min(start, last), max(start, last), 0
    for part in graph.args(m["parts"].node):
        assert part is not None
        size = graph.type(part).dims[axis]
        if offset <= low and high < offset + size:
            ranges[axis] = _bounds(start - offset, step, count)
            return _slice(m, part, ranges)
        offset += size
    return None


def _concat_parts(m: Match) -> Value | None:
    """Rule 6, all of it: the parts that remain, or None where they are the ones that are there."""
    graph, axis = m.graph, m.node.attrs["axis"] % m.node.types[0].rank
    parts = [p for p in graph.args(m.root) if p is not None]
    flat: list[Value] = []
    for part in parts:
        node = graph.node(part)
        inner = node.op == "concat" and node.attrs["axis"] % node.types[0].rank == axis and graph.uses(part) == 1
        flat += [a for a in graph.args(part.node) if a is not None] if inner else [part]
    full = [p for p in flat if graph.type(p).shape[axis] != 0] or flat[:1]
    joined: list[Value] = []
    for part in full:
        merged = _join_slices(m, joined[-1], part, axis) if joined else None
        if merged is None:
            joined.append(part)
        else:
            joined[-1] = merged
    if joined == parts:
        return None
    return joined[0] if len(joined) == 1 else m.add("concat", *joined, axis=axis)


def _join_slices(m: Match, a: Value, b: Value, axis: int) -> Value | None:
    """One slice for two of the same tensor that lie one behind the other along ``axis``."""
    graph = m.graph
    if graph.node(a).op != "slice" or graph.node(b).op != "slice" or graph.args(a.node) != graph.args(b.node):
        return None
    first, second = _ranges(graph, a.node), _ranges(graph, b.node)
    if any(p != q for i, (p, q) in enumerate(zip(first, second, strict=True)) if i != axis):
        return None
    (start, stop, step), (begin, end, stride) = first[axis], second[axis]
    if step != 1 or stride != 1 or stop != begin:
        return None
    source = graph.args(a.node)[0]
    assert source is not None
    first[axis] = (start, end, 1)
    return _slice(m, source, first)


def _gather_to_slice(m: Match) -> Value | None:
    graph, x = m.graph, m["x"]
    indices, type_ = graph.constant(m["indices"]), graph.type(x)
    if indices is None or indices.ndim > 1 or indices.size == 0 or not type_.static:
        return None
    axis = m.node.attrs["axis"] % type_.rank
    at = [int(i) % type_.dims[axis] for i in indices.reshape(-1)]
    step = at[1] - at[0] if len(at) > 1 else 1
    if step == 0 or any(b - a != step for a, b in itertools.pairwise(at)):
        return None
    bounds = [(0, d, 1) for d in type_.dims]
    bounds[axis] = _bounds(at[0], step, len(at))
    return m.add("reshape", _slice(m, x, bounds), shape=m.node.types[0].shape)


# -- 8, 9, 10, 11: pads, broadcasts, reductions of nothing --------------------------------------------------------


def _pad_of_pad(m: Match) -> Value | None:
    inner, outer = m.graph.node(m["inner"]).attrs, m.node.attrs
    if inner["value"] != outer["value"]:
        return None
    pads = tuple(a + b for a, b in zip(inner["pads"], outer["pads"], strict=True))
    return m.add("pad", m["x"], pads=pads, mode="constant", value=outer["value"])


def _expand_of_expand(m: Match) -> Value | None:
    return m.add("expand", m["x"], shape=m.node.types[0].shape)


def _tile_to_expand(m: Match) -> Value | None:
    repeats = m.node.attrs["repeats"]
    if any(r != 1 and d != 1 for r, d in zip(repeats, m.shape(m["x"]), strict=True)):
        return None
    return m.add("expand", m["x"], shape=m.node.types[0].shape)


def _narrow(graph: Graph, value: Value) -> Value:
    """The tensor of which this is an expand, else itself."""
    source = graph.args(value.node)[0] if graph.node(value).op == "expand" else None
    return value if source is None else source


def _implicit_broadcast(m: Match) -> Value | None:
    graph, node = m.graph, m.node
    args = [a for a in graph.args(m.root) if a is not None]
    narrow = [_narrow(graph, a) for a in args]
    if narrow == args or len(args) != len(graph.args(m.root)):
        return None
    made = m.add(node.op, *narrow, **node.attrs)
    return made if graph.type(made) == node.types[0] else m.add("expand", made, shape=node.types[0].shape)


def _implicit_batch(m: Match) -> Value | None:
    graph = m.graph
    args = [a for a in graph.args(m.root) if a is not None]
    for i, arg in enumerate(args):
        source = graph.args(arg.node)[0] if graph.node(arg).op == "expand" else None
        if source is None or graph.type(source).rank < 2:
            continue
        if graph.type(source).shape[-2:] != graph.type(arg).shape[-2:]:
            continue
        made = m.add("matmul", *[source if k == i else a for k, a in enumerate(args)])
        if graph.type(made) == m.node.types[0]:
            return made
    return None


def _implicit_mask(m: Match) -> Value | None:
    q, k, v, mask = m.graph.args(m.root)
    assert mask is not None
    return m.add("attention", q, k, v, _narrow(m.graph, mask), **m.node.attrs)


def _reduce_nothing(m: Match) -> Value | None:
    shape = m.shape(m["x"])
    if any(shape[a] != 1 for a in m.node.attrs["axes"]) or m.graph.type(m["x"]).dtype == "bool":
        return None
    return m.add("reshape", m["x"], shape=m.node.types[0].shape)


def _is_constant_pad(m: Match) -> bool:
    return bool(m.graph.node(m["inner"]).attrs["mode"] == "constant" == m.node.attrs["mode"])


def _in_range(m: Match) -> bool:
    """Positions that are outside the axis are the model's mistake, and stay for the reference to report."""
    indices, type_ = m.graph.constant(m["indices"]), m.graph.type(m["x"])
    if indices is None or not type_.static:
        return False
    size = type_.dims[m.node.attrs["axis"] % type_.rank]
    return bool(np.all((indices >= -size) & (indices < size)))


RULES: tuple[Rule, ...] = (
    Rule("identity", call("identity|stop_gradient|cast|reshape|expand|slice|pad|tile", _X), _to_input),
    Rule("straight through", call("straight_through", _X, Var("through")), _to_input),
    Rule("concat of one", any_call("concat"), _one_part),
    Rule("normal axis", any_call(_AXIS_OPS), _normal_axis),
    Rule("normal axes", any_call(_REDUCTIONS), _normal_axes),
    Rule("normal shape", any_call("reshape"), _normal_shape),
    Rule("view chain", call("reshape|transpose", _X), _view_chain, closed=False),
    Rule("cast chain", call("cast", call("cast", _X, name="inner")), _cast_chain, closed=False),
    Rule("slice of slice", call("slice", call("slice", _X, name="inner")), _slice_of_slice, closed=False),
    Rule("slice of concat", call("slice", any_call("concat", name="parts")), _slice_of_concat, closed=False),
    Rule("concat of parts", any_call("concat"), _concat_parts, closed=False),
    Rule("gather to slice", call("gather", _X, Var("indices")), _gather_to_slice, _in_range),
    Rule("pad of pad", call("pad", call("pad", _X, name="inner")), _pad_of_pad, _is_constant_pad),
    Rule("expand of expand", call("expand", call("expand", _X)), _expand_of_expand, closed=False),
    Rule("tile to expand", call("tile", _X), _tile_to_expand),
    Rule("implicit broadcast", any_call(_BROADCASTING), _implicit_broadcast, closed=False),
    Rule("implicit batch", any_call("matmul"), _implicit_batch, closed=False),
    Rule("implicit mask", call("attention", _X, _K, _V, call("expand", Var("mask"))), _implicit_mask, closed=False),
    Rule("reduce nothing", call(_REDUCTIONS, _X), _reduce_nothing),
)
