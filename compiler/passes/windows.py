"""Rules for convolutions and pools.

1. A constant pad by 0 of spatial axes goes into the pads of a conv.
2. The same goes into an avg_pool that counts its padding, or that has none so far and counts it from then on.
3. A pad goes into a max_pool where no window can tell: the value is the type's lowest (or -inf), or it is 0 and what
   is pooled is never negative; and every window reaches an element that is real.
4. A pool of one window that covers everything is a reduction, which is what a global pool is.
"""

from __future__ import annotations

import math
from typing import Any

from ..ir import Graph, Value
from .pattern import Match, Var, call
from .rewrite import Rule

_X = Var("x")
_NOT_NEGATIVE = ("relu", "sigmoid", "hard_sigmoid", "softmax", "softplus", "abs", "exp", "sqrt")
_PASSING = ("max_pool", "avg_pool", "reshape", "transpose", "slice", "reduce_mean", "reduce_max", "expand", "concat")


def _spatial_pads(m: Match) -> tuple[int, ...] | None:
    """The pads' spatial part, or None where another axis is padded or by something else than a constant."""
    attrs = m.graph.node(m["pad"]).attrs
    pads, rank = tuple(attrs["pads"]), len(attrs["pads"]) // 2
    if attrs["mode"] != "constant" or any((*pads[:2], *pads[rank : rank + 2])):
        return None
    return pads[2:rank] + pads[rank + 2 :]


def _sum(a: Any, b: Any) -> tuple[int, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))


def _pad_conv(m: Match) -> Value | None:
    extra = _spatial_pads(m)
    if extra is None or m.graph.node(m["pad"]).attrs["value"] != 0:
        return None
    rest = m.graph.args(m.root)[1:]
    return m.add("conv", m["x"], *rest, **{**m.node.attrs, "pads": _sum(m.node.attrs["pads"], extra)})


def _below_kernel(m: Match, pads: tuple[int, ...]) -> bool:
    """What ONNX demands of a pool's pads; with no dilation it means that every window reaches a real element."""
    attrs = m.node.attrs
    kernel = tuple(attrs["kernel_shape"])
    return (
        not attrs["ceil_mode"]
        and all(d == 1 for d in attrs["dilations"])
        and all(p < k for p, k in zip(pads, kernel * 2, strict=True))
    )


def _pad_avg_pool(m: Match) -> Value | None:
    extra, attrs = _spatial_pads(m), m.node.attrs
    if extra is None or m.graph.node(m["pad"]).attrs["value"] != 0:
        return None
    pads = _sum(attrs["pads"], extra)
    if not _below_kernel(m, pads) or (any(attrs["pads"]) and not attrs["count_include_pad"]):
        return None
    return m.add("avg_pool", m["x"], **{**attrs, "pads": pads, "count_include_pad": True})


def not_negative(graph: Graph, value: Value, depth: int = 3) -> bool:
    """Whether no element can be below 0, as far as the operations before tell."""
    node = graph.node(value)
    if node.op in _NOT_NEGATIVE:
        return True
    if node.op == "clip":
        return node.attrs["low"] is not None and node.attrs["low"] >= 0
    if node.op in _PASSING and depth:
        return all(a is not None and not_negative(graph, a, depth - 1) for a in graph.args(value.node))
    return False


def _pad_max_pool(m: Match) -> Value | None:
    extra, attrs = _spatial_pads(m), m.node.attrs
    if extra is None or attrs["indices"]:
        return None
    fill = float(m.graph.node(m["pad"]).attrs["value"])
    lowest = {"float32": -3.4028234e38, "float64": -1.7976931348623157e308, "float16": -65504.0}
    dtype = m.node.types[0].dtype
    if not (fill == -math.inf or fill <= lowest.get(dtype, -math.inf) or (fill == 0 and not_negative(m.graph, m["x"]))):
        return None
    pads = _sum(attrs["pads"], extra)
    return m.add("max_pool", m["x"], **{**attrs, "pads": pads}) if _below_kernel(m, pads) else None


def _global(m: Match) -> Value | None:
    attrs, type_ = m.node.attrs, m.graph.type(m["x"])
    whole = type_.static and tuple(attrs["kernel_shape"]) == type_.dims[2:]
    if not whole or any(attrs["pads"]) or any(d != 1 for d in attrs["dilations"]) or attrs.get("indices"):
        return None
    if any(d != 1 for d in m.node.types[0].shape[2:]):
        return None
    reduction = "reduce_mean" if m.node.op == "avg_pool" else "reduce_max"
    return m.add(reduction, m["x"], axes=tuple(range(2, type_.rank)), keepdims=True)


_PAD = call("pad", _X, name="pad")

RULES: tuple[Rule, ...] = (
    Rule("pad into conv", call("conv", _PAD, Var("w")), _pad_conv),
    Rule("pad into conv with bias", call("conv", _PAD, Var("w"), Var("b")), _pad_conv),
    Rule("pad into avg_pool", call("avg_pool", _PAD), _pad_avg_pool),
    Rule("pad into max_pool", call("max_pool", _PAD), _pad_max_pool),
    Rule("global pool", call("avg_pool|max_pool", _X), _global),
)
