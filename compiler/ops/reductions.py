"""Reductions over axes and running sums. Axes may count from the end; ``shapes.normalise_axes`` makes them positive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..types import Dim, TensorType
from .channels import ALONG, ARG, REDUCE, SUM
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import divide, highest, lowest, quiet, widen
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import BOOLS, NUMBERS, count, normalise_axes, normalise_axis, require_dtype

FOLDS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")


def reduced_shape(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """The shape with the axes (not negative) folded."""
    kept = ((1 if i in axes else d) for i, d in enumerate(shape) if keepdims or i not in axes)
    return tuple(kept)


def _input_cost(call: Call) -> Cost:
    return Cost(count(call.type(0).shape))


# -- folds -------------------------------------------------------------------------------------------------------


def _sum(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(widen(x), axis=axes, keepdims=keepdims)


def _prod(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.prod(widen(x), axis=axes, keepdims=keepdims)


def _mean(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    total = np.asarray(_sum(x, axes, keepdims))
    number = np.prod([x.shape[a] for a in axes], dtype=np.int64)
    return divide(total, np.asarray(number, total.dtype))


def _max(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.max(x, axis=axes, keepdims=keepdims, initial=lowest(x.dtype))


def _min(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> Any:
    return np.min(x, axis=axes, keepdims=keepdims, initial=highest(x.dtype))


def _spread(c: Grad, folded: Sym) -> Sym:
    """A value for each fold, at every element that was folded."""
    axes = normalise_axes(c.attrs["axes"], c.x.rank)
    return folded.reshape([1 if i in axes else d for i, d in enumerate(c.x.shape)]).expand(c.x.shape)


def _mean_gradient(c: Grad) -> Sym:
    return _spread(c, c.g * (c.y.type.size / max(c.x.type.size, 1)))


def _extremum_gradient(c: Grad) -> Sym:
    """Equals share, as in PyTorch's amax."""
    chosen = c.x.op("equal", _spread(c, c.y))
    number = chosen.op("cast", to=c.x.dtype).sum(c.attrs["axes"], c.attrs["keepdims"])
    return chosen.where(_spread(c, c.g / number), 0)


def _prod_gradient(c: Grad) -> Sym:
    """Of each element the product of all before it and all behind it: right where elements are 0 too."""
    axes = normalise_axes(c.attrs["axes"], c.x.rank)
    perm = [*(i for i in range(c.x.rank) if i not in axes), *axes]
    ordered = c.x.transpose(perm)
    lines = ordered.reshape([*ordered.shape[: c.x.rank - len(axes)], math.prod(c.x.shape[a] for a in axes)])
    before, behind = (lines.op("cumprod", axis=-1, exclusive=True, reverse=r) for r in (False, True))
    others = (before * behind).reshape(ordered.shape).transpose(np.argsort(perm).tolist())
    return _spread(c, c.g) * others


def _fold(
    name: str,
    function: Callable[..., Any],
    doc: str,
    gradient: Callable[[Grad], Sym],
    accepts: frozenset[str] = NUMBERS,
) -> Op:
    def infer(call: Call) -> Sequence[TensorType]:
        x = call.type(0)
        require_dtype(x, accepts, "x")
        return (
            x.with_shape(reduced_shape(x.shape, normalise_axes(call.attrs["axes"], x.rank), call.attrs["keepdims"])),
        )

    def reference(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
        return np.asarray(function(x, normalise_axes(axes, x.ndim), keepdims)).astype(x.dtype, copy=False)

    def cases() -> Iterable[Case]:
        for axes in ((0,), (1,), (2,), (-1,), (0, 2), (1, 2), (0, 1, 2)):
            yield Case((f32(3, 4, 5),), {"axes": axes})
        yield Case((f32(2, 3, 6, 7),), {"axes": (2, 3), "keepdims": True}, note="global pool")
        yield Case((f32(2, 3, 6, 7),), {"axes": (1,), "keepdims": True})
        yield Case((f32(3, 200),), {"axes": (1,)})
        yield Case((f32(6),), {"axes": (0,)})
        yield Case((f32(2, 3),), {"axes": ()})
        yield Case((f32(),), {"axes": ()})
        for dtype in ("float64", "int32", "int64", *(["bool"] if "bool" in accepts else [])):
            yield Case((t(dtype, 3, 4),), {"axes": (1,), "keepdims": True}, low=-9, high=9, note=dtype)

    return Op(
        name,
        Kind.REDUCTION,
        infer,
        quiet(reference),
        doc,
        attrs={"axes": REQUIRED, "keepdims": False},
        cost=_input_cost,
        cases=cases,
        gradient=lambda c: [gradient(c)],
        channels=SUM if name == "reduce_sum" else REDUCE,
    )


# -- positions ---------------------------------------------------------------------------------------------------


def _arg(name: str, function: Callable[..., Any], doc: str) -> Op:
    def infer(call: Call) -> Sequence[TensorType]:
        x = call.type(0)
        require_dtype(x, NUMBERS, "x")
        axis = normalise_axis(call.attrs["axis"], x.rank)
        if x.shape[axis] == 0:
            raise OpError(f"axis: expected at least one element along axis {axis}; got {x}")
        return (TensorType("int64", reduced_shape(x.shape, (axis,), call.attrs["keepdims"])),)

    def reference(x: np.ndarray, axis: int, keepdims: bool, select_last: bool) -> np.ndarray:
        if select_last:
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis, keepdims=keepdims)
        else:
            found = function(x, axis=axis, keepdims=keepdims)
        return np.asarray(found, np.int64)

    def cases() -> Iterable[Case]:
        ties = np.array([[3, 1, 3], [0, 0, 0], [1, 2, 2]], np.float32)
        for last in (False, True):
            yield Case((ties,), {"axis": 1, "select_last": last})
            yield Case((t("int32", 3, 9),), {"axis": 1, "select_last": last}, note="ties")
        yield Case((f32(3, 4, 5),), {"axis": 0})
        yield Case((f32(3, 4, 5),), {"axis": -1, "keepdims": True})
        yield Case((f32(1, 1000),), {"axis": 1})
        yield Case((t("int64", 7),), {"axis": 0})

    return Op(
        name,
        Kind.REDUCTION,
        infer,
        reference,
        doc,
        attrs={"axis": REQUIRED, "keepdims": False, "select_last": False},
        cost=_input_cost,
        cases=cases,
        channels=ARG,
    )


# -- running folds -----------------------------------------------------------------------------------------------


def _cumsum_gradient(c: Grad) -> Sym:
    return c.g.op("cumsum", **{**c.attrs, "reverse": not c.attrs["reverse"]})


def _cumprod_gradient(c: Grad) -> Sym:
    """Of x[j]: the product before it, times the sum over i >= j of g[i] x[j + 1] ... x[i]; right at zeros too.

    The inner products are a triangle, [n, n] for a line of n elements.
    """
    axis, last = normalise_axis(c.attrs["axis"], c.x.rank), c.x.rank - 1
    perm = [*(i for i in range(c.x.rank) if i != axis), axis]
    turned = [last] if c.attrs["reverse"] else []
    x, g = (v.transpose(perm).flip(turned) for v in (c.x, c.g))
    n, none = x.shape[-1], (0,) * last
    if c.attrs["exclusive"]:  # y[i + 1] is what y[i] would be
        g = g.cut((*none, min(1, n)), g.shape).pad((*none, 0), (*none, min(1, n)))
    square = x.reshape([*x.shape[:-1], 1, n]).expand([*x.shape[:-1], n, n])
    behind = square.constant(np.triu(np.ones((n, n), bool), 1), "bool").where(square, 1).op("cumprod", axis=-1)
    total = (behind.op("trilu") @ g.reshape([*g.shape, 1])).reshape(g.shape)
    found = x.op("cumprod", axis=-1, exclusive=True) * total
    return found.flip(turned).transpose(np.argsort(perm).tolist())


def _running(name: str, function: Callable[..., Any], unit: int, doc: str, gradient: Callable[[Grad], Sym]) -> Op:
    def infer(call: Call) -> Sequence[TensorType]:
        x = call.type(0)
        require_dtype(x, NUMBERS, "x")
        normalise_axis(call.attrs["axis"], x.rank)
        return (x,)

    def reference(x: np.ndarray, axis: int, exclusive: bool, reverse: bool) -> np.ndarray:
        moved = np.moveaxis(widen(x), axis, -1)
        moved = moved[..., ::-1] if reverse else moved
        if exclusive:
            first = np.full((*moved.shape[:-1], min(1, moved.shape[-1])), unit, moved.dtype)
            moved = np.concatenate([first, moved[..., :-1]], -1)
        folded = function(moved, axis=-1)
        folded = folded[..., ::-1] if reverse else folded
        return np.ascontiguousarray(np.moveaxis(folded, -1, axis)).astype(x.dtype)

    def cases() -> Iterable[Case]:
        for exclusive in (False, True):
            for reverse in (False, True):
                attrs = {"exclusive": exclusive, "reverse": reverse}
                yield Case((f32(3, 5),), {"axis": 1, **attrs})
                yield Case((f32(3, 4, 2),), {"axis": 0, **attrs})
        yield Case((f32(2, 6, 2),), {"axis": -2})
        yield Case((t("int64", 2, 6),), {"axis": 1})
        yield Case((t("int32", 9),), {"axis": 0, "exclusive": True})
        yield Case((t("float64", 2, 40),), {"axis": 1})

    return Op(
        name,
        Kind.OPAQUE,
        infer,
        quiet(reference),
        doc,
        attrs={"axis": REQUIRED, "exclusive": False, "reverse": False},
        cost=_input_cost,
        cases=cases,
        inplace=(0,),
        gradient=lambda c: [gradient(c)],
        channels=ALONG,
    )


OPS = (
    _fold("reduce_sum", _sum, "The sum over the axes (of none: x).", lambda c: _spread(c, c.g)),
    _fold("reduce_mean", _mean, "The mean over the axes; of integers truncated toward 0.", _mean_gradient),
    _fold("reduce_max", _max, "The largest over the axes; NaN wins.", _extremum_gradient, NUMBERS | BOOLS),
    _fold("reduce_min", _min, "The smallest over the axes; NaN wins.", _extremum_gradient, NUMBERS | BOOLS),
    _fold("reduce_prod", _prod, "The product over the axes.", _prod_gradient),
    _arg(
        "argmax", np.argmax, "Position (int64) of the largest along an axis: the first, or the last with select_last."
    ),
    _arg(
        "argmin", np.argmin, "Position (int64) of the smallest along an axis: the first, or the last with select_last."
    ),
    _running("cumsum", np.cumsum, 0, "The running sum along an axis (ONNX CumSum).", _cumsum_gradient),
    _running("cumprod", np.cumprod, 1, "The running product along an axis (ONNX CumProd).", _cumprod_gradient),
)
