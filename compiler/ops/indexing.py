"""Indexing: operators whose coordinates are data. Negative indices count from the end.

An index out of range is an error at compile time where it is constant; at run time native code stays inside the tensor
and the element is unspecified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ..types import Dim, TensorType
from .channels import TOPK
from .channels_moved import GATHER
from .gradient import Call as Grad
from .gradient import Sym
from .movement import free
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32
from .shapes import known, normalise_axis, require_dtype, require_rank, shape_text

INDEX = frozenset({"int32", "int64"})
REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _check_range(indices: np.ndarray | None, size: Dim) -> None:
    """Constant indices must lie in [-size, size)."""
    if indices is None or isinstance(size, str) or indices.size == 0:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -size or high >= size:
        raise OpError(f"index {low if low < -size else high} is out of range for an axis of {size} elements")


def _check_tuples(indices: np.ndarray | None, shape: tuple[Dim, ...]) -> None:
    for i, size in enumerate(shape):
        _check_range(None if indices is None else indices[..., i], size)


# -- gather ----------------------------------------------------------------------------------------------------


def _gather_infer(call: Call) -> list[TensorType]:
    x, indices = call.type(0), call.type(1)
    require_dtype(indices, INDEX, "indices")
    axis = normalise_axis(call.attrs["axis"], x.rank)
    _check_range(call.value(1), x.shape[axis])
    return [x.with_shape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])]


def _gather(x: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.take(x, indices, axis=axis))


def _gather_gradient(c: Grad) -> list[Sym | None]:
    """Rows added at their indices, the axis in front."""
    axis, indices = normalise_axis(c.attrs["axis"], c.x.rank), c.input(1)
    ahead = [axis, *(i for i in range(c.x.rank) if i != axis)]
    looked_up = range(axis, axis + indices.rank)
    g = c.g.transpose([*looked_up, *(i for i in range(c.g.rank) if i not in looked_up)])
    base = c.g.constant(0).expand([c.x.shape[i] for i in ahead])
    total = base.op("scatter_nd", indices.reshape([*indices.shape, 1]), g, reduction="add")
    return [total.transpose(np.argsort(ahead).tolist()), None]


def _fits(x: TensorType, indices: TensorType, axis: int) -> bool:
    """Whether ``indices`` lies inside x's shape on all other axes."""
    if indices.rank != x.rank:
        return False
    pairs = [(i, d) for k, (i, d) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != axis]
    return all(i == d or (isinstance(i, int) and isinstance(d, int) and i <= d) for i, d in pairs)


def _gather_elements_infer(call: Call) -> list[TensorType]:
    x, indices = call.type(0), call.type(1)
    require_dtype(indices, INDEX, "indices")
    axis = normalise_axis(call.attrs["axis"], x.rank)
    if not _fits(x, indices, axis):
        raise OpError(
            f"indices must be of rank {x.rank} and no larger than {x} except along axis {axis}, got {indices}"
        )
    _check_range(call.value(1), x.shape[axis])
    return [x.with_shape(indices.shape)]


def _gather_elements(x: np.ndarray, indices: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(x[_grid(indices, axis)])


def _gather_elements_gradient(c: Grad) -> list[Sym | None]:
    return [c.x.zeros().op("scatter_elements", c.input(1), c.g, axis=c.attrs["axis"], reduction="add"), None]


def _grid(indices: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
    """One index array an axis: each element's own coordinate, and ``indices`` along ``axis``."""
    grid = list(np.ogrid[tuple(slice(d) for d in indices.shape)])
    grid[axis] = indices
    return tuple(grid)


def _gather_nd_infer(call: Call) -> list[TensorType]:
    x, indices, batch = call.type(0), call.type(1), call.attrs["batch_dims"]
    require_dtype(indices, INDEX, "indices")
    if indices.rank < 1 or not 0 <= batch < min(x.rank, indices.rank):
        raise OpError(f"batch_dims must be in [0, {min(x.rank, indices.rank) - 1}] for {x} and {indices}, got {batch}")
    if x.shape[:batch] != indices.shape[:batch]:
        raise OpError(f"the first {batch} axes must be alike, got {x} and {indices}")
    depth = known(indices.shape[-1], "the last axis of indices")
    if not 1 <= depth <= x.rank - batch:
        raise OpError(f"indices must hold 1 to {x.rank - batch} coordinates, got {indices}")
    _check_tuples(call.value(1), x.shape[batch : batch + depth])
    return [x.with_shape(indices.shape[:-1] + x.shape[batch + depth :])]


def _gather_nd(x: np.ndarray, indices: np.ndarray, batch_dims: int) -> np.ndarray:
    batch = np.ogrid[tuple(slice(d) for d in indices.shape[:-1])][:batch_dims] if batch_dims else []
    return np.asarray(x[(*batch, *np.moveaxis(indices, -1, 0))])


def _gather_nd_gradient(c: Grad) -> list[Sym | None]:
    indices, batch = c.input(1), c.attrs["batch_dims"]
    if batch:
        column = [*indices.shape[:-1], 1]
        indices = indices.iota(column, 0).concat(*(indices.iota(column, i) for i in range(1, batch)), indices)
    return [c.x.zeros().op("scatter_nd", indices, c.g, reduction="add"), None]


# -- scatter ---------------------------------------------------------------------------------------------------


def _expect_reduction(call: Call) -> None:
    reduction = call.attrs["reduction"]
    if reduction != "none" and reduction not in REDUCTIONS:
        raise OpError(f"reduction must be none, {', '.join(REDUCTIONS)}; got {reduction!r}")
    x, updates = call.type(0), call.type(2)
    if updates.dtype != x.dtype:
        raise OpError(f"updates must have x's element type: expected {x.dtype}, got {updates}")


def _scatter_elements_infer(call: Call) -> list[TensorType]:
    x, indices, updates = call.type(0), call.type(1), call.type(2)
    require_dtype(indices, INDEX, "indices")
    _expect_reduction(call)
    axis = normalise_axis(call.attrs["axis"], x.rank)
    if not _fits(x, indices, axis):
        raise OpError(
            f"indices must be of rank {x.rank} and no larger than {x} except along axis {axis}, got {indices}"
        )
    if updates.shape != indices.shape:
        raise OpError(f"updates must have the shape of indices: expected {shape_text(indices.shape)}, got {updates}")
    _check_range(call.value(1), x.shape[axis])
    return [x]


def _scatter(x: np.ndarray, at: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> np.ndarray:
    y = np.array(x)
    if reduction == "none":
        y[at] = updates
    else:
        REDUCTIONS[reduction].at(y, at, updates)
    return y


def _scatter_elements(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int, reduction: str) -> np.ndarray:
    return _scatter(x, _grid(indices, axis), updates, reduction)


def _scatter_nd_infer(call: Call) -> list[TensorType]:
    x, indices, updates = call.type(0), call.type(1), call.type(2)
    require_dtype(indices, INDEX, "indices")
    _expect_reduction(call)
    if indices.rank < 1:
        raise OpError(f"indices must have at least one axis, got {indices}")
    depth = known(indices.shape[-1], "the last axis of indices")
    if not 1 <= depth <= x.rank:
        raise OpError(f"indices must hold 1 to {x.rank} coordinates, got {indices}")
    wanted = indices.shape[:-1] + x.shape[depth:]
    if updates.shape != wanted:
        raise OpError(f"updates must have the shape {shape_text(wanted)}, got {updates}")
    _check_tuples(call.value(1), x.shape[:depth])
    return [x]


def _scatter_nd(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, reduction: str) -> np.ndarray:
    return _scatter(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


def _scatter_elements_gradient(c: Grad) -> list[Sym | None]:
    indices, axis = c.input(1), c.attrs["axis"]
    return _scatter_gradient(
        c,
        lambda base, updates, how: base.op("scatter_elements", indices, updates, axis=axis, reduction=how),
        lambda x: x.op("gather_elements", indices, axis=axis),
    )


def _scatter_nd_gradient(c: Grad) -> list[Sym | None]:
    indices = c.input(1)
    return _scatter_gradient(
        c,
        lambda base, updates, how: base.op("scatter_nd", indices, updates, reduction=how),
        lambda x: x.op("gather_nd", indices),
    )


def _scatter_gradient(c: Grad, put: Callable[[Sym, Sym, str], Sym], take: Callable[[Sym], Sym]) -> list[Sym | None]:
    """``put(base, updates, reduction)`` scatters, ``take(x)`` reads at the places that are scattered to."""
    x, updates, how = c.x, c.input(2), c.attrs["reduction"]
    if how == "add":
        return [c.g, None, take(c.g)]
    if how == "mul":
        return _product_gradient(c, put, take)
    if how == "none":  # where two write, the last one has the gradient: each leaves its number there
        number = c.input(1).iota((updates.type.size,), 0).reshape(updates.shape)
        last = take(put(c.input(1).constant(0).expand(x.shape), number, "none")).op("equal", number)
        return [put(c.g, updates.zeros(), "none"), None, last.where(take(c.g), 0)]
    kept, chosen = x.op("equal", c.y), updates.op("equal", take(c.y))  # equals share, as in PyTorch
    share = c.g / put(kept.cast(x.dtype), chosen.cast(x.dtype), "add")
    return [kept.where(share, 0), None, chosen.where(take(share), 0)]


def _product_gradient(c: Grad, put: Callable[[Sym, Sym, str], Sym], take: Callable[[Sym], Sym]) -> list[Sym | None]:
    """To each factor the product of all others: zeros are counted, and left out of it."""
    x, updates = c.x, c.input(2)
    zero = updates.op("equal", 0)
    factors = zero.where(1, updates)
    zeros = take(put(x.zeros(), zero.cast(x.dtype), "add")) - zero.cast(x.dtype)
    others = take(c.g * put(x, factors, "mul")) / factors
    return [c.g * put(x.constant(1).expand(x.shape), updates, "mul"), None, (zeros > 0).where(0, others)]


def _scatter_cost(call: Call) -> Cost:
    return Cost(0.0 if call.attrs["reduction"] == "none" else float(call.type(2).size))


# -- one_hot, topk, nonzero --------------------------------------------------------------------------------------


def _one_hot_infer(call: Call) -> list[TensorType]:
    indices, values = call.type(0), call.type(1)
    depth = call.attrs["depth"]
    if values.shape != (2,):
        raise OpError(f"values must be (off, on): expected shape [2], got {values}")
    if depth < 0:
        raise OpError(f"depth must not be negative, got {depth}")
    axis = normalise_axis(call.attrs["axis"], indices.rank + 1)
    return [values.with_shape((*indices.shape[:axis], depth, *indices.shape[axis:]))]


def _one_hot(indices: np.ndarray, values: np.ndarray, depth: int, axis: int) -> np.ndarray:
    wanted = indices.astype(np.int64)
    wanted = np.expand_dims(np.where(wanted < 0, wanted + depth, wanted), axis)
    along = [1] * wanted.ndim
    along[axis] = depth
    return np.asarray(np.where(wanted == np.arange(depth).reshape(along), values[1], values[0]))


def _one_hot_gradient(c: Grad) -> list[Sym | None]:
    hot = c.x.op("one_hot", c.g.constant([0, 1]), **c.attrs)
    axes = range(c.g.rank)
    off, on = (c.g * (1 - hot)).sum(axes), (c.g * hot).sum(axes)
    return [None, off.reshape((1,)).concat(on.reshape((1,)))]


def _topk_infer(call: Call) -> list[TensorType]:
    x, k = call.type(0), call.attrs["k"]
    axis = normalise_axis(call.attrs["axis"], x.rank)
    size = x.shape[axis]
    if k < 0 or (isinstance(size, int) and k > size):
        raise OpError(f"k must be in [0, {size}] (axis {axis} of {x}), got {k}")
    values = x.with_shape((*x.shape[:axis], k, *x.shape[axis + 1 :]))
    return [values, values.with_dtype("int64")]


def _topk(x: np.ndarray, k: int, axis: int, largest: bool) -> tuple[np.ndarray, np.ndarray]:
    size = x.shape[axis]
    if largest:  # a stable descending sort is a stable ascending one of the reversed axis, read from its end
        order = size - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    indices = np.take(order, np.arange(k), axis=axis).astype(np.int64)
    return np.take_along_axis(x, indices, axis), indices


def _topk_gradient(c: Grad) -> list[Sym | None]:
    axis = normalise_axis(c.attrs["axis"], c.x.rank)
    return [c.x.zeros().op("scatter_elements", c.ys[1], c.g, axis=axis)]


def _topk_cost(call: Call) -> Cost:
    x = call.type(0)
    return Cost(x.size * math.log2(max(call.attrs["k"], 2)))


COUNT = TensorType("int64", ())


def _nonzero_infer(call: Call) -> list[TensorType]:
    x = call.type(0)
    return [
        TensorType("int64", (x.rank, math.prod(known(d, "an axis that bounds the result") for d in x.shape))),
        COUNT,
    ]


def _nonzero(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = np.argwhere(x).T
    y = np.zeros((x.ndim, x.size), np.int64)
    y[:, : found.shape[1]] = found
    return y, np.asarray(np.count_nonzero(x), np.int64)


# -- non-maximum suppression -------------------------------------------------------------------------------------


def _nms_infer(call: Call) -> list[TensorType]:
    boxes, scores = call.type(0), call.type(1)
    require_rank(boxes, 3, 3, "boxes")
    require_rank(scores, 3, 3, "scores")
    if boxes.shape[2] != 4 or boxes.shape[:2] != (scores.shape[0], scores.shape[2]):
        raise OpError(f"expected boxes [batch,n,4] and scores [batch,classes,n], got {boxes} and {scores}")
    if boxes.dtype != "float32" or scores.dtype != "float32":
        raise OpError(f"boxes and scores must be f32, got {boxes} and {scores}")
    if call.attrs["max_output"] < 0:
        raise OpError(f"max_output must not be negative, got {call.attrs['max_output']}")
    batch, classes, count = (known(d, "an axis that bounds the result") for d in scores.shape)
    return [TensorType("int64", (batch * classes * min(count, call.attrs["max_output"]), 3)), COUNT]


def _nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    max_output: int,
    iou_threshold: float,
    score_threshold: float | None,
    center_point_box: bool,
) -> tuple[np.ndarray, np.ndarray]:
    batch, classes, count = scores.shape
    picked: list[tuple[int, int, int]] = []
    for b in range(batch):
        overlap = _iou(_corners(boxes[b], center_point_box)) > np.float32(iou_threshold)
        for c in range(classes):
            order = np.argsort(-scores[b, c], kind="stable")
            if score_threshold is not None:
                order = order[scores[b, c][order] > np.float32(score_threshold)]
            kept: list[int] = []
            for i in order.tolist():
                if len(kept) == max_output:
                    break
                if not overlap[i, kept].any():
                    kept.append(i)
            picked += [(b, c, i) for i in kept]
    y = np.zeros((batch * classes * min(count, max_output), 3), np.int64)
    y[: len(picked)] = np.asarray(picked, np.int64).reshape(-1, 3)
    return y, np.asarray(len(picked), np.int64)


def _corners(boxes: np.ndarray, center_point_box: bool) -> np.ndarray:
    """[n, 4] as (low, low, high, high); the corners of a box may come in any order."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if center_point_box:
        half = second / 2
        return np.concatenate([first - half, first + half], axis=1)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _iou(corners: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs; 0 where a box is empty."""
    low, high = corners[:, :2], corners[:, 2:]
    shared = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    intersection = np.prod(np.maximum(shared, 0), axis=2)
    area = np.prod(high - low, axis=1)
    union = area[:, None] + area[None] - intersection
    valid = (area[:, None] > 0) & (area[None] > 0) & (union > 0)
    return np.where(valid, intersection / np.where(valid, union, 1), 0)


def _nms_cost(call: Call) -> Cost:
    batch, classes, count = call.type(1).dims
    return Cost(12.0 * batch * classes * count * min(count, call.attrs["max_output"]))


# -- cases -------------------------------------------------------------------------------------------------------


def _i64(*values: object) -> np.ndarray:
    return np.array(values, np.int64)


def _gather_cases() -> Iterator[Case]:
    yield Case((f32(5, 4), _i64(0, -1, 2)), {"axis": 0})
    yield Case((f32(2, 5, 3), _i64([0, 4], [-5, 1])), {"axis": 1})
    yield Case((f32(5, 4), np.array(-2, np.int32)), {"axis": -1}, note="scalar index")
    yield Case((TensorType("int64", (4,)), _i64(3, 3)), {"axis": 0})


def _gather_elements_cases() -> Iterator[Case]:
    yield Case((f32(3, 3), _i64([1, 2, 0], [2, 0, 0])), {"axis": 0})
    yield Case((f32(2, 3), _i64([0, -1, -2, 1], [2, 1, 0, 0])), {"axis": -1})
    yield Case((f32(3, 2, 2), np.zeros((2, 2, 1), np.int32)), {"axis": 1})


def _gather_nd_cases() -> Iterator[Case]:
    yield Case((f32(2, 3), _i64([0, 0], [1, -1])))
    yield Case((f32(2, 3, 4), _i64([1], [0])))
    yield Case((f32(2, 3, 4), _i64([[1], [0]], [[-1], [2]])), {"batch_dims": 1})
    yield Case((f32(2, 2, 2), _i64([[0, 1]], [[1, 0]])))


def _scatter_elements_cases() -> Iterator[Case]:
    indices = _i64([1, 0, 2], [0, 2, 1])
    for reduction in ("none", *REDUCTIONS):
        yield Case((f32(3, 3), indices, f32(2, 3)), {"axis": 0, "reduction": reduction})
    yield Case((f32(2, 5), _i64([1, -1], [0, -2]), f32(2, 2)), {"axis": 1})
    yield Case((f32(1, 4), _i64([2, 2, 2]), f32(1, 3)), {"axis": 1, "reduction": "add"}, note="repeated")


def _scatter_nd_cases() -> Iterator[Case]:
    for reduction in ("none", *REDUCTIONS):
        yield Case((f32(4, 3), _i64([2], [-4]), f32(2, 3)), {"reduction": reduction})
    yield Case((f32(4, 3), _i64([2, 0], [3, -1]), f32(2)))
    yield Case((f32(6), _i64([[1], [1]], [[1], [5]]), f32(2, 2)), {"reduction": "add"}, note="repeated")


def _one_hot_cases() -> Iterator[Case]:
    values = np.array([0.0, 1.0], np.float32)
    for axis in (0, 1, -1):
        yield Case((_i64([0, 2, -1], [1, 7, -9]), values), {"depth": 3, "axis": axis}, note="7 and -9 are off")
    yield Case((np.array([1.0, 0.0], np.float32), _i64(5, 9)), {"depth": 2, "axis": 1})


def _topk_cases() -> Iterator[Case]:
    for axis in (0, 1, -1):
        for largest in (True, False):
            yield Case((f32(5, 6, 7),), {"k": 3, "axis": axis, "largest": largest})
    yield Case((np.array([2, 1, 2, 1, 2], np.int64),), {"k": 4, "axis": 0}, note="ties: lower index first")


def _nonzero_cases() -> Iterator[Case]:
    yield Case((np.array([[1, 0, 2], [0, 0, -3]], np.float32),))
    yield Case((TensorType("bool", (3, 4)),))
    yield Case((np.zeros((2, 2), np.int32),), note="none")


def _nms_cases() -> Iterator[Case]:
    y, x = np.mgrid[0:4, 0:5].astype(np.float32)
    boxes = np.stack([y, x, y + 1.7, x + 1.4], axis=-1).reshape(1, 20, 4)
    scores = np.sin(np.arange(40, dtype=np.float32)).reshape(1, 2, 20)
    for threshold in (0.0, 0.2, 0.5):
        yield Case((boxes, scores), {"max_output": 6, "iou_threshold": threshold})
    yield Case((boxes, scores), {"max_output": 30, "iou_threshold": 0.3, "score_threshold": 0.25})
    yield Case((boxes[..., [2, 3, 0, 1]], scores), {"max_output": 6, "iou_threshold": 0.1}, note="corners swapped")
    centred = np.stack([y, x, y * 0 + 1.9, x * 0 + 1.6], axis=-1).reshape(1, 20, 4)
    yield Case((centred, scores), {"max_output": 4, "iou_threshold": 0.2, "center_point_box": True})


OPS = (
    Op(
        "gather",
        Kind.INJECTIVE,
        _gather_infer,
        _gather,
        doc="The slices of x at indices along axis (ONNX Gather, numpy take).",
        inputs=("x", "indices"),
        attrs={"axis": 0},
        cost=free,
        cases=_gather_cases,
        gradient=_gather_gradient,
        onnx={"Gather": {}},
        channels=GATHER,
    ),
    Op(
        "gather_elements",
        Kind.INJECTIVE,
        _gather_elements_infer,
        _gather_elements,
        doc="For each element of indices, the element of x there along axis and at its own place on the others.",
        inputs=("x", "indices"),
        attrs={"axis": 0},
        cost=free,
        cases=_gather_elements_cases,
        gradient=_gather_elements_gradient,
        onnx={"GatherElements": {}},
    ),
    Op(
        "gather_nd",
        Kind.INJECTIVE,
        _gather_nd_infer,
        _gather_nd,
        doc="The slices of x at the coordinate tuples in the last axis of indices (ONNX GatherND).",
        inputs=("x", "indices"),
        attrs={"batch_dims": 0},
        cost=free,
        cases=_gather_nd_cases,
        gradient=_gather_nd_gradient,
        onnx={"GatherND": {}},
    ),
    Op(
        "scatter_elements",
        Kind.OPAQUE,
        _scatter_elements_infer,
        _scatter_elements,
        doc="x with updates written (the last one wins) or reduced at indices along axis (ONNX ScatterElements).",
        inputs=("x", "indices", "updates"),
        attrs={"axis": 0, "reduction": "none"},
        cost=_scatter_cost,
        cases=_scatter_elements_cases,
        gradient=_scatter_elements_gradient,
        onnx={"ScatterElements": {}},
        inplace=(0,),
    ),
    Op(
        "scatter_nd",
        Kind.OPAQUE,
        _scatter_nd_infer,
        _scatter_nd,
        doc="x with slices written (the last one wins) or reduced at the coordinates in indices (ONNX ScatterND).",
        inputs=("x", "indices", "updates"),
        attrs={"reduction": "none"},
        cost=_scatter_cost,
        cases=_scatter_nd_cases,
        gradient=_scatter_nd_gradient,
        onnx={"ScatterND": {}},
        inplace=(0,),
    ),
    Op(
        "one_hot",
        Kind.INJECTIVE,
        _one_hot_infer,
        _one_hot,
        doc="values[1] where the new axis equals the index, else values[0] (ONNX OneHot).",
        inputs=("indices", "values"),
        attrs={"depth": REQUIRED, "axis": -1},
        cost=free,
        cases=_one_hot_cases,
        gradient=_one_hot_gradient,
    ),
    Op(
        "topk",
        Kind.OPAQUE,
        _topk_infer,
        _topk,
        doc="The k largest or smallest along axis, sorted, first index first among equals; indices (ONNX TopK).",
        attrs={"k": REQUIRED, "axis": -1, "largest": True},
        cost=_topk_cost,
        cases=_topk_cases,
        gradient=_topk_gradient,
        channels=TOPK,
    ),
    Op(
        "nonzero",
        Kind.OPAQUE,
        _nonzero_infer,
        _nonzero,
        doc="Coordinates of the nonzero elements in row-major order, then zeros, and their number (ONNX NonZero).",
        cost=lambda call: Cost(float(call.type(0).size)),
        cases=_nonzero_cases,
    ),
    Op(
        "nms",
        Kind.OPAQUE,
        _nms_infer,
        _nms,
        doc="Rows (batch, class, box) that survive, then zeros, and their number (ONNX NonMaxSuppression).",
        inputs=("boxes", "scores"),
        attrs={"max_output": REQUIRED, "iou_threshold": 0.0, "score_threshold": None, "center_point_box": False},
        cost=_nms_cost,
        cases=_nms_cases,
    ),
)
