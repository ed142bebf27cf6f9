"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..types import TensorType
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
    ),
)
