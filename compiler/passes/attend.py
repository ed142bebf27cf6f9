"""Scaled dot-product attention as exporters write it: matmul, scale, mask, softmax, matmul.

1. softmax(s q kT + mask) v is attention, where kT is an explicit transpose (or a constant). The scale may stand behind
   the product, on q, on k or on several of them, as factor or divisor; a soft cap c tanh(s/c) may lie around it.
2. The mask is added (two are added up first) or chosen: where(keep, s, low) and where(drop, low, s) with ``low``
   so low that nothing is left of the score. The zeros that some exporters write in place of a row of NaN (a query
   that may look at nothing) are what attention gives anyway.
3. Constant factors of q and k go into the scale.
4. A constant mask that hides exactly what is behind the query is ``causal``.
"""

from __future__ import annotations

import math

import numpy as np

from ..ir import Value
from .activations import one_axis
from .pattern import Match, Pattern, Scalar, Var, call, either, scaled
from .rewrite import Rule

LOW = -9e3  # the highest number that exporters write to hide a score: exp(LOW) is 0
LOWEST = -3e38

_SCORES = scaled("s", call("matmul", scaled("sq", Var("q")), scaled("sk", Var("kt"))))
_CAPPED = either(_SCORES, scaled("cap", call("tanh", _SCORES)))


def _masked(scores: Pattern) -> Pattern:
    return either(
        scores,
        call("add", scores, Var("mask")),
        call("add", call("add", scores, Var("mask")), Var("mask2")),
        call("where", Var("keep"), scores, Scalar(name="low")),
        call("where", Var("drop"), Scalar(name="low"), scores),
    )


_WEIGHTS = call("softmax", _masked(_CAPPED), name="weights")
_BLIND = call("equal", call("reduce_max", Var("mask"), name="top"), Scalar(-math.inf))
_SAFE = either(
    _WEIGHTS,
    call("where", call("isnan", _WEIGHTS), Scalar(0.0), _WEIGHTS),
    call("where", _BLIND, Scalar(0.0), _WEIGHTS),
)


def _swap(m: Match, value: Value) -> Value:
    rank = m.graph.type(value).rank
    return m.add("transpose", value, perm=(*range(rank - 2), rank - 1, rank - 2))


def _mask(m: Match) -> Value | None:
    """The additive mask, or None where there is none."""
    if "mask" in m:
        return m.add("add", m["mask"], m["mask2"]) if "mask2" in m else m["mask"]
    for choice, order in (("keep", (0, 1)), ("drop", (1, 0))):
        if choice in m:
            # So low that a sum is the number itself: a row of them keeps equal weights, as where it was chosen.
            low = -math.inf if m.number("low") == -math.inf else LOWEST
            numbers = (m.scalar(0.0, m["q"]), m.scalar(low, m["q"]))
            return m.add("where", m[choice], *(numbers[i] for i in order))
    return None


def _attention(m: Match) -> Value:
    k = _swap(m, m["kt"])
    mask = _mask(m)
    scale = m.number("s") * m.number("sq") * m.number("sk")
    cap = m.number("cap") if "cap" in m else 0.0
    args = [m["q"], k, m["v"]] if mask is None else [m["q"], k, m["v"], mask]
    return m.add("attention", *args, scale=scale * cap if cap else scale, causal=False, softcap=cap)


def _is_attention(m: Match) -> bool:
    graph, weights = m.graph, m.graph.node(m["weights"])
    rank = weights.types[0].rank
    free = graph.node(m["kt"]).op in ("transpose", "const") or 1 in m.shape(m["kt"])[-2:]
    if weights.attrs["axis"] % rank != rank - 1 or not free:
        return False
    if "top" in m and one_axis(graph, m["top"]) != len(m.shape(m["mask"])) - 1:
        return False
    if "cap" in m and m.number("cap") <= 0:
        return False
    if "low" in m:
        return m.number("low") == -math.inf or (m.number("low") <= LOW and graph.type(m["q"]).dtype != "float16")
    return True


def _scale_inside(m: Match) -> Value | None:
    graph, factor = m.graph, m.number("sq") * m.number("sk")
    if m["q"] == graph.args(m.root)[0] and m["k"] == graph.args(m.root)[1]:
        return None
    rest = graph.args(m.root)[2:]
    attrs = {**m.node.attrs, "scale": m.node.attrs["scale"] * factor}
    return m.add("attention", m["q"], m["k"], *rest, **attrs)


def _causal(m: Match) -> Value | None:
    mask = m.array("mask")
    rows, columns = m.shape(m["q"])[-2], m.shape(m["k"])[-2]
    if not (isinstance(rows, int) and isinstance(columns, int)) or mask.shape[-2:] != (rows, columns) or rows < 2:
        return None
    seen = mask if mask.dtype == np.bool_ else mask == 0
    hidden = ~mask if mask.dtype == np.bool_ else mask <= LOW
    triangle = np.tri(rows, columns, dtype=bool)
    if not (bool(np.all(seen == triangle)) and bool(np.all(hidden == ~triangle))):
        return None
    return m.add("attention", m["q"], m["k"], m["v"], **{**m.node.attrs, "causal": True})


def _finite(m: Match) -> bool:
    return math.isfinite(m.number("sq") * m.number("sk"))


_Q, _K, _V = scaled("sq", Var("q")), scaled("sk", Var("k")), Var("v")

RULES: tuple[Rule, ...] = (
    Rule("attention", call("matmul", _SAFE, Var("v")), _attention, _is_attention),
    Rule(
        "attention scale",
        either(call("attention", _Q, _K, _V), call("attention", _Q, _K, _V, Var("mask"))),
        _scale_inside,
        _finite,
    ),
    Rule(
        "attention causal",
        call("attention", Var("q"), Var("k"), Var("v"), Var("mask")),
        _causal,
        lambda m: m.graph.constant(m["mask"]) is not None,
    ),
)
