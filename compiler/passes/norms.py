"""Forms in which exporters write normalisations. ``d`` is x less its mean, ``v`` the mean of d squared.

1. layer_norm over all last axes: d / sqrt(v + e), d * rsqrt(v + e); with the scale and bias of one expression:
   x s r + (b - mean s r) where r = rsqrt(v + e).
2. rms_norm: x / sqrt(mean(x^2) + e) and its product form.
3. A constant factor or addend over the normalised axes becomes scale or bias of the norm before it.
4. group_norm: a norm of [N, groups, rest] between two reshapes; a layer_norm over the spatial axes of [N, C, ...] with
   a factor for each channel. Factors and addends for each channel become its scale and bias.
"""

from __future__ import annotations

import numpy as np

from ..ir import Value
from .pattern import Match, Pattern, Scalar, Var, any_call, call, either, uniform
from .rewrite import Rule

X = Var("x")
_MEAN = call("reduce_mean", X, name="mean")
_D = call("sub", X, _MEAN)


def _square(x: Pattern) -> Pattern:
    return either(call("mul", x, x), call("pow", x, Scalar(2.0)))


def _variance(d: Pattern) -> Pattern:
    mean: Pattern = call("reduce_mean", _square(d), name="var")
    if d is _D:  # the mean of the squares less the square of the mean
        mean = either(mean, call("sub", call("reduce_mean", _square(X), name="var"), _square(_MEAN)))
    return call("add", mean, Scalar(name="e"))


def _over_deviation(x: Pattern, d: Pattern) -> Pattern:
    """x / sqrt(mean(d^2) + e)."""
    v = _variance(d)
    root = either(call("sqrt", v), call("pow", v, Scalar(0.5)))
    inverse = either(call("rsqrt", v), call("reciprocal", root), call("pow", v, Scalar(-0.5)))
    return either(call("div", x, root), call("mul", x, inverse))


_INVERSE = call("rsqrt", _variance(_D))
_GAIN = either(call("mul", _INVERSE, Var("scale"), name="gain"), _INVERSE)


def _axis(m: Match, name: str) -> int | None:
    """The first normalised axis, if the reduction keeps its axes and they are the last ones."""
    node, rank = m.graph.node(m[name]), m.graph.type(m["x"]).rank
    axes: list[int] = sorted(a % rank for a in node.attrs["axes"])
    if not axes or not node.attrs["keepdims"] or axes != list(range(axes[0], rank)):
        return None
    return axes[0]


def _layer_norm(m: Match) -> Value | None:
    axis = _axis(m, "mean")
    if axis is None or _axis(m, "var") != axis:
        return None
    return m.add("layer_norm", m["x"], axis=axis, epsilon=m.number("e"))


def _layer_norm_affine(m: Match) -> Value | None:
    norm = _layer_norm(m)
    if norm is None:
        return None
    scaled = m.add("mul", norm, m["scale"]) if "scale" in m else norm
    return m.add("add", scaled, m["bias"])


def _rms_norm(m: Match) -> Value | None:
    axis = _axis(m, "var")
    return None if axis is None else m.add("rms_norm", m["x"], axis=axis, epsilon=m.number("e"))


# -- 3, 4: scales and biases, groups -----------------------------------------------------------------------------


def _fitted(array: np.ndarray, rank: int, first: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """A constant that is broadcast to a tensor of ``rank`` axes, as one of ``shape`` from axis ``first`` on.

    None where it differs along other axes.
    """
    if array.ndim > rank:
        return None
    full = (1,) * (rank - array.ndim) + array.shape
    if any(d != 1 for d in full[:first]) or any(d != 1 for d in full[first + len(shape) :]):
        return None
    middle = full[first : first + len(shape)]
    if any(have not in (1, want) for have, want in zip(middle, shape, strict=True)):
        return None
    return np.broadcast_to(array.reshape(middle), shape)


def _absorb(m: Match) -> Value | None:
    """The factor or addend ``c`` goes into the scale or bias of the norm."""
    graph, norm = m.graph, m.graph.node(m["norm"])
    x, scale, bias = [*graph.args(m["norm"].node), None, None][:3]
    assert x is not None
    type_ = graph.type(x)
    if not type_.static or (norm.op == "rms_norm" and m.node.op == "add"):
        return None
    first = 1 if norm.op == "group_norm" else norm.attrs["axis"] % type_.rank
    shape = type_.dims[1:2] if norm.op == "group_norm" else type_.dims[first:]
    if graph.node(m["c"]).op == "const":
        found = _merged(m, scale, bias, type_.rank, first, shape)
    else:
        found = _parameter(m, scale, bias, shape if first + len(shape) == type_.rank else None)
    if found is None:
        return None
    return m.add(norm.op, x, *found[: 1 if norm.op == "rms_norm" else 2], **norm.attrs)


Affine = tuple[Value | None, Value | None]


def _parameter(m: Match, scale: Value | None, bias: Value | None, shape: tuple[int, ...] | None) -> Affine | None:
    """A parameter in the place of a scale or bias that is not there; it cannot be computed with."""
    if m.shape(m["c"]) != shape or bias is not None or (m.node.op == "mul" and scale is not None):
        return None
    return (m["c"], None) if m.node.op == "mul" else (scale, m["c"])


def _merged(
    m: Match, scale: Value | None, bias: Value | None, rank: int, first: int, shape: tuple[int, ...]
) -> Affine | None:
    factor = _fitted(m.array("c"), rank, first, shape)
    old = [None if v is None else m.graph.constant(v) for v in (scale, bias)]
    if factor is None or any(v is not None and a is None for v, a in zip((scale, bias), old, strict=True)):
        return None
    wide = factor.astype(np.float64)
    if m.node.op == "add":
        return scale, _updated(m, bias, old[1], wide, np.add, shape)
    scaled = _updated(m, scale, old[0], wide, np.multiply, shape)
    return scaled, bias if bias is None else _updated(m, bias, old[1], wide, np.multiply, shape)


def _updated(
    m: Match, value: Value | None, old: np.ndarray | None, wide: np.ndarray, merge: np.ufunc, shape: tuple[int, ...]
) -> Value:
    merged = wide if old is None else merge(np.broadcast_to(old.astype(np.float64), shape), wide)
    return m.const(merged.astype(m.array("c").dtype), value or m["c"])


def _groups_between_reshapes(m: Match) -> Value | None:
    graph, x, norm = m.graph, m["x"], m.graph.node(m["norm"])
    outer, inner = m.node.types[0], graph.type(m["inner"])
    if not (outer.static and inner.static) or graph.type(x).shape[:2] != outer.shape[:2] or outer.rank < 3:
        return None
    batch, channels = outer.dims[:2]
    if norm.op == "layer_norm":
        axis = norm.attrs["axis"] % inner.rank
        groups = inner.dims[1] if axis == 2 and inner.dims[0] == batch else 0
        if axis == 1 and batch and inner.dims[0] % batch == 0:
            groups = inner.dims[0] // batch
    else:
        groups = inner.dims[1] if inner.dims[:2] == (batch, norm.attrs["num_groups"]) else 0
        args = [*graph.args(m["norm"].node), None, None][1:3]
        plain = [
            v is None or uniform(graph.constant(v)) == neutral for v, neutral in zip(args, (1.0, 0.0), strict=True)
        ]
        groups = groups if all(plain) else 0
    if groups < 1 or channels % groups:
        return None
    if graph.type(x) != outer:
        x = m.add("reshape", x, shape=outer.shape)
    return m.add("group_norm", x, num_groups=groups, epsilon=norm.attrs["epsilon"])


def _spatial_layer_norm(m: Match) -> Value | None:
    x, norm = m["x"], m.graph.node(m["norm"])
    type_ = m.graph.type(x)
    if not type_.static or type_.rank < 3 or norm.attrs["axis"] % type_.rank != 2:
        return None
    factor, channels = m.array("c"), type_.dims[1]
    if factor.size == 1 or _fitted(factor, type_.rank, 1, (channels,)) is None:
        return None
    return m.add(m.node.op, m.add("group_norm", x, num_groups=channels, epsilon=norm.attrs["epsilon"]), m["c"])


_C = Var("c")
_INNER = call("reshape", X, name="inner")
_GROUPED = either(
    call("layer_norm|group_norm", _INNER, name="norm"),
    call("group_norm", _INNER, Var("scale"), Var("bias"), name="norm"),
)
_NORM = any_call("layer_norm|rms_norm|group_norm", name="norm")


def _stored(m: Match) -> bool:
    return m.graph.node(m["c"]).op in ("const", "param")


def _constant(m: Match) -> bool:
    return m.graph.constant(m["c"]) is not None


RULES: tuple[Rule, ...] = (
    Rule("layer_norm", _over_deviation(_D, _D), _layer_norm),
    Rule(
        "layer_norm affine",
        call("add", call("mul", X, _GAIN), call("sub", Var("bias"), call("mul", _MEAN, _GAIN))),
        _layer_norm_affine,
    ),
    Rule("rms_norm", _over_deviation(X, X), _rms_norm),
    Rule("norm affine", call("mul|add", _NORM, _C), _absorb, _stored),
    Rule("group_norm", call("reshape", _GROUPED), _groups_between_reshapes),
    Rule("instance_norm", call("mul|add", call("layer_norm", X, name="norm"), _C), _spatial_layer_norm, _constant),
)
