"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..types import TensorType
from .channels import ATTENTION
from .gradient import Call as Grad
from .gradient import Sym
from .normalisation import softmax_wide
from .numeric import quiet, widen
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import FLOATS, count, optional, require_broadcast, require_dtype, require_rank, require_same_dtype


def _infer(call: Call) -> Sequence[TensorType]:
    q, k, v, mask = call.type(0), call.type(1), call.type(2), optional(call, 3)
    require_dtype(q, FLOATS, "q")
    require_rank(q, 2, None, "q")
    require_same_dtype(q, k, ("q", "k"))
    require_same_dtype(q, v, ("q", "v"))
    lead = q.shape[:-2]
    if k.rank != q.rank or k.shape != (*lead, *k.shape[-2:-1], q.shape[-1]):
        raise OpError(f"k: expected the leading axes and last extent of q {q}; got {k}")
    if v.rank != q.rank or v.shape != (*k.shape[:-1], v.shape[-1]):
        raise OpError(f"v: expected the shape of k {k} but for the last extent; got {v}")
    if mask is not None:
        require_dtype(mask, (q.dtype, "bool"), "mask")
        require_broadcast(mask, (*lead, q.shape[-2], k.shape[-2]), "mask")
    return (q.with_shape((*q.shape[:-1], v.shape[-1])),)


def _attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    scale: float,
    causal: bool,
    softcap: float,
) -> np.ndarray:
    scores = np.matmul(widen(q), np.swapaxes(widen(k), -1, -2)) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    bias = np.zeros(scores.shape[-2:])
    if mask is not None:
        bias = bias + (np.where(mask, 0.0, -np.inf) if mask.dtype == bool else widen(mask))
    if causal:
        bias = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), bias, -np.inf)
    # A query that may look at nothing gets zeros (ONNX Attention), where softmax alone would give NaN.
    blind = np.all(np.isneginf(bias), axis=-1, keepdims=True)
    weights = np.where(blind, 0.0, softmax_wide(scores + bias, -1))
    return np.asarray(np.matmul(weights, widen(v))).astype(q.dtype)


def _cost(call: Call) -> Cost:
    q, v = call.type(0), call.type(2)
    pairs = count(q.shape[:-1]) * count(v.shape[-2:-1])
    return Cost(pairs * (2.0 * count(q.shape[-1:]) + 2.0 * count(v.shape[-1:]) + 14.0))


def _cases() -> Iterable[Case]:
    q, k, v = f32(2, 3, 7, 8), f32(2, 3, 9, 8), f32(2, 3, 9, 5)
    yield Case((q, k, v), {"scale": 8**-0.5})
    yield Case((f32(1, 2, 16, 16),) * 3, {"scale": 0.25, "causal": True})
    yield Case((q, k, v), {"scale": 0.3, "causal": True})
    yield Case((q, k, v, f32(7, 9)), {"scale": 0.3}, note="additive mask")
    yield Case((q, k, v, f32(2, 1, 1, 9)), {"scale": 0.3})
    yield Case((q, k, v, t("bool", 7, 9)), {"scale": 0.3}, note="bool mask")
    yield Case((q, k, v, t("bool", 2, 1, 7, 9)), {"scale": 0.3, "causal": True})
    yield Case((q, k, v, np.arange(7)[:, None] > np.arange(9)[None]), {"scale": 0.3}, note="blind first query")
    yield Case((q, k, v), {"scale": 1.0, "softcap": 2.0})
    yield Case((q, k, v, f32(7, 9)), {"scale": 1.0, "softcap": 2.0, "causal": True})
    yield Case((f32(5, 4), f32(6, 4), f32(6, 4)), {"scale": 0.5}, note="no leading axes")
    yield Case((f32(2, 2, 1, 64), f32(2, 2, 33, 64), f32(2, 2, 33, 64)), {"scale": 0.125}, note="one query")


# -- gradient ----------------------------------------------------------------------------------------------------


def _position(like: Sym, shape: tuple[int, int], axis: int) -> Sym:
    value = like.graph.add("iota", origin=like.origin, shape=shape, axis=axis, dtype="int32")
    return Sym(like.graph, value, like.origin)


def _visible(c: Grad) -> Sym | None:
    """Which keys each query may look at; None where it is all of them."""
    q, k, mask = c.x, c.input(1), c.optional(3)
    found: Sym | None = None
    if mask is not None:
        found = mask if mask.dtype == "bool" else mask > float("-inf")
    if c.attrs["causal"]:
        query, key = (_position(q, (q.shape[-2], k.shape[-2]), axis) for axis in (0, 1))
        past = key <= query
        found = past if found is None else found.op("logical_and", past)
    return found


def _of_seeing(c: Grad, visible: Sym | None, x: Sym) -> Sym:
    """``x`` [..., queries, any], 0 for the queries that may look at nothing: only a mask can have such."""
    if visible is None or c.optional(3) is None:
        return x
    return visible.op("reduce_max", axes=(visible.rank - 1,), keepdims=True).where(x, 0)


def _probabilities(c: Grad, visible: Sym | None) -> tuple[Sym, Sym]:
    """The weights of the keys, and the scores before the mask. A mask is a large negative number, not -inf: the weights
    of a query that may look at nothing stay finite, and what is made of them is set to 0 (``_of_seeing``)."""
    mask, softcap = c.optional(3), c.attrs["softcap"]
    scores = (c.x @ c.input(1).swap()) * c.attrs["scale"]
    if softcap:
        scores = (scores * (1 / softcap)).op("tanh") * softcap
    shown = scores if mask is None or mask.dtype == "bool" else scores + mask
    if visible is None:
        return shown.op("softmax", axis=shown.rank - 1), scores
    hidden = -3e4 if scores.dtype == "float16" else -1e30
    return visible.where(shown, hidden).op("softmax", axis=shown.rank - 1), scores


def _training(c: Grad) -> list[Sym]:
    visible = _visible(c)
    weights, _ = _probabilities(c, visible)
    return [_of_seeing(c, visible, weights @ c.input(2))]


def _gradient(c: Grad) -> list[Sym | None]:
    q, k, v, mask, softcap = c.x, c.input(1), c.input(2), c.optional(3), c.attrs["softcap"]
    visible = _visible(c)
    weights, scores = _probabilities(c, visible)
    g = _of_seeing(c, visible, c.g)
    to_weights = g @ v.swap()
    to_scores = weights * (to_weights - (to_weights * weights).sum((weights.rank - 1,), keepdims=True))
    to_mask = None if mask is None or mask.dtype == "bool" else to_scores.sum_to(mask.shape)
    if softcap:
        capped = scores * (1 / softcap)
        to_scores = to_scores * (1 - capped * capped)
    to_scores = to_scores * c.attrs["scale"]
    return [to_scores @ k, to_scores.swap() @ q, weights.swap() @ g, to_mask]


OPS = (
    Op(
        "attention",
        Kind.OPAQUE,
        _infer,
        quiet(_attention),
        "softmax(softcap(scale q kT) + mask) v; causal: key <= query position (Vaswani et al. 2017; ONNX Attention).",
        inputs=("q", "k", "v", "mask?"),
        attrs={"scale": REQUIRED, "causal": False, "softcap": 0.0},
        cost=_cost,
        cases=_cases,
        gradient=_gradient,
        training=_training,
        channels=ATTENTION,
    ),
)
