"""Gather, scatter, TopK, OneHot and the operators whose length is only bounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...compiler.ir import Value
from .context import Context, OnnxNode, Unsupported
from .registry import Lowered, lowers


@lowers("Gather")
def gather(c: Context, n: OnnxNode) -> Lowered:
    x, indices = n.input(0), n.input(1)
    axis = c.axis(n.attr("axis", 0), c.rank(x))
    at = c.array(indices)
    if at is not None and at.ndim == 0 and c.array(x) is None:  # one row: a view instead of a copy by index
        place = int(at) % c.shape(x)[axis]
        return c.squeeze(c.slice(x, axis, place, place + 1), [axis])
    return c.op("gather", x, indices, axis=axis)


@lowers("GatherND")
def gather_nd(c: Context, n: OnnxNode) -> Lowered:
    return c.op("gather_nd", n.input(0), n.input(1), batch_dims=n.attr("batch_dims", 0))


@lowers("ScatterElements", "Scatter")
def scatter_elements(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    axis = c.axis(n.attr("axis", 0), c.rank(x))
    return c.op("scatter_elements", x, n.input(1), n.input(2), axis=axis, reduction=n.attr("reduction", "none"))


@lowers("ScatterND")
def scatter_nd(c: Context, n: OnnxNode) -> Lowered:
    return c.op("scatter_nd", n.input(0), n.input(1), n.input(2), reduction=n.attr("reduction", "none"))


@lowers("OneHot")
def one_hot(c: Context, n: OnnxNode) -> Lowered:
    indices, values = n.input(0), n.input(2)
    depth = int(c.need(n.input(1), "the depth").reshape(-1)[0])
    if c.is_float(indices) or c.dtype(indices).startswith("u"):
        indices = c.cast(indices, "int64")
    return c.op("one_hot", indices, values, depth=depth, axis=c.axis(n.attr("axis", -1), c.rank(indices) + 1))


@lowers("TopK")
def topk(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    k = n.attr("k") if n.version < 10 else c.ints(n.input(1), "k")[0]
    return c.many("topk", x, k=int(k), axis=c.axis(n.attr("axis", -1), c.rank(x)), largest=bool(n.attr("largest", 1)))


@lowers("Compress")
def compress(c: Context, n: OnnxNode) -> Lowered:
    """With a fixed condition it is a gather."""
    x, axis = n.input(0), n.attr("axis")
    places = np.flatnonzero(c.need(n.input(1), "the condition"))
    if axis is None:
        x, axis = c.reshape(x, (int(np.prod(c.shape(x))),)), 0
    axis = c.axis(axis, c.rank(x))
    if places.size and places[-1] >= c.shape(x)[axis]:
        raise Unsupported("the condition is longer than the axis")
    return c.op("gather", x, c.const(places.astype(np.int64)), axis=axis)


@lowers("NonZero")
def nonzero(c: Context, n: OnnxNode) -> Lowered:
    """Places of what is not zero. Of a constant they are known; otherwise their number is bounded and counted."""
    x = n.input(0)
    array = c.array(x)
    if array is not None:
        return [c.const(np.array(np.nonzero(array), np.int64)), c.scalar(-1, "int64")]
    if c.rank(x) == 0:
        x = c.reshape(x, (1,))
    return c.many("nonzero", x)


@lowers("NonMaxSuppression")
def non_max_suppression(c: Context, n: OnnxNode) -> Lowered:
    def number(index: int, default: Any, what: str) -> Any:
        value = n.optional(index)
        return default if value is None else c.need(value, what).reshape(-1)[0].item()

    boxes, scores = n.input(0), n.input(1)
    limit = min(int(number(2, 0, "max_output_boxes_per_class")), c.shape(boxes)[1])
    if limit <= 0:
        return [c.const(np.zeros((0, 3), np.int64)), c.scalar(-1, "int64")]
    return c.many(
        "nms",
        boxes,
        scores,
        max_output=limit,
        iou_threshold=float(number(3, 0.0, "iou_threshold")),
        score_threshold=number(4, None, "score_threshold"),
        center_point_box=bool(n.attr("center_point_box", 0)),
    )


@lowers("BoundedNonZero", domain="nervure")
def bounded_nonzero(c: Context, n: OnnxNode) -> Lowered:
    return c.many("nonzero", n.input(0))


@lowers("BoundedNonMaxSuppression", domain="nervure")
def bounded_nms(c: Context, n: OnnxNode) -> Lowered:
    score = n.attr("score_threshold", -3.0e38)
    return c.many(
        "nms",
        n.input(0),
        n.input(1),
        max_output=n.attr("max_output"),
        iou_threshold=n.attr("iou_threshold", 0.0),
        score_threshold=None if score <= -2.9e38 else score,
        center_point_box=bool(n.attr("center_point_box", 0)),
    )


@lowers("TensorScatter")
def tensor_scatter(c: Context, n: OnnxNode) -> Lowered:
    """Writes ``update`` into ``past`` at a place per batch row along an axis: elements scattered at computed places."""
    past, update = n.input(0), n.input(1)
    rank, shape = c.rank(past), c.shape(update)
    axis = c.axis(n.attr("axis", -2), rank)
    steps: Value = c.op("iota", shape=shape, axis=axis, dtype="int64")
    if n.optional(2) is not None:
        steps = c.op("add", steps, c.per_axis(n.input(2), rank, 0))
    if n.attr("mode", "linear") == "circular":
        steps = c.op("mod", steps, c.scalar(c.shape(past)[axis], "int64"))
    return c.op("scatter_elements", past, steps, update, axis=axis, reduction="none")
