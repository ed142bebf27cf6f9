"""Rows of the elementwise tables: what all operators of one tensor, and all of two, have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import quiet, widen
from .record import Call, Case, Cost, Kind, Op
from .sampling import f32, t
from .shapes import FLOATS, NUMBERS, broadcast_shapes, count, require_dtype, require_same_dtype

Rule = Callable[[Grad], Sym | None]  # the gradient of an operator of one tensor
TRANSCENDENTAL = 10.0  # a polynomial approximation's operations, about
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.5, -1.5, 2.5], np.float32)


def _cost(work: float) -> Callable[[Call], Cost]:
    def cost(call: Call) -> Cost:
        return Cost(work * count(broadcast_shapes(*(i.shape for i in call.types if i is not None))))

    return cost


def _cases(accepts: frozenset[str], arity: int, low: float, high: float) -> Iterable[Case]:
    """The cases of an operator without attributes: plain, scalar, wide types, and every way to broadcast."""
    main = "float32" if "float32" in accepts else "int32" if "int32" in accepts else "bool"
    shapes: list[tuple[tuple[int, ...], ...]] = [((2, 3, 5),) * arity, ((),) * arity, ((67,),) * arity]
    if arity == 2:
        shapes += [((2, 3, 4), (4,)), ((2, 1, 4), (3, 1)), ((), (3, 2)), ((1, 3, 1, 5), (2, 1, 4, 1)), ((0, 3), (1, 3))]
    for shape in shapes:
        yield Case(tuple(t(main, *s) for s in shape), low=low, high=high)
    for dtype in ("float64", "float16", "int32", "int64", "int8", "uint8", "bool"):
        if dtype in accepts and dtype != main:
            yield Case((t(dtype, 4, 9),) * arity, low=low, high=high, note=dtype)


def unary(
    name: str,
    function: Callable[..., Any],
    doc: str,
    *,
    onnx: str = "",
    accepts: frozenset[str] = FLOATS,
    attrs: Mapping[str, Any] | None = None,
    variants: Sequence[Mapping[str, Any]] = (),
    predicate: bool = False,
    work: float = 1.0,
    wide: bool = False,
    special: bool = False,
    low: float = -3.0,
    high: float = 3.0,
    gradient: Rule | None = None,
) -> Op:
    """A row of the unary table. ``wide`` computes in float64, ``predicate`` gives bool, ``variants`` are attribute
    settings of further cases, ``special`` adds cases with infinities, NaN and halves, ``gradient`` is that of x."""

    def infer(call: Call) -> Sequence[TensorType]:
        x = call.type(0)
        require_dtype(x, accepts, "x")
        return (x.with_dtype("bool") if predicate else x,)

    def reference(x: np.ndarray, **given: Any) -> np.ndarray:
        result = function(widen(x) if wide else x, **given)
        return np.asarray(result).astype(bool if predicate else x.dtype, copy=False)

    def cases() -> Iterable[Case]:
        yield from _cases(accepts, 1, low, high)
        for variant in variants:
            yield Case((f32(3, 40),), variant, low=low, high=high)
        for variant in ({}, *variants) if special else ():
            yield Case((SPECIAL,), variant, note="special")

    return Op(
        name,
        Kind.ELEMENTWISE,
        infer,
        quiet(reference),
        doc,
        attrs=dict(attrs or {}),
        cost=_cost(work),
        cases=cases,
        onnx={onnx: {}} if onnx else {},
        inplace=() if predicate else (0,),
        gradient=gradient and (lambda c: [gradient(c)]),
    )


def binary(
    name: str,
    function: Callable[..., Any],
    doc: str,
    *,
    onnx: str = "",
    accepts: frozenset[str] = NUMBERS,
    predicate: bool = False,
    commutative: bool = False,
    work: float = 1.0,
    low: float = -3.0,
    high: float = 3.0,
    more: Sequence[Case] = (),
    gradient: Callable[[Grad], Sequence[Sym | None]] | None = None,
) -> Op:
    """A row of the binary table: numpy broadcasting, equal element types."""

    def infer(call: Call) -> Sequence[TensorType]:
        a, b = call.type(0), call.type(1)
        require_dtype(a, accepts, "a")
        require_same_dtype(a, b, ("a", "b"))
        return (TensorType("bool" if predicate else a.dtype, broadcast_shapes(a.shape, b.shape)),)

    def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(function(a, b)).astype(bool if predicate else a.dtype, copy=False)

    return Op(
        name,
        Kind.ELEMENTWISE,
        infer,
        quiet(reference),
        doc,
        inputs=("a", "b"),
        cost=_cost(work),
        cases=lambda: [*_cases(accepts, 2, low, high), *more],
        onnx={onnx: {}} if onnx else {},
        inplace=() if predicate else (0, 1),
        commutative=commutative,
        gradient=gradient,
    )


def transcendental(name: str, function: Callable[..., Any], doc: str, onnx: str = "", **rest: Any) -> Op:
    return unary(name, function, doc, onnx=onnx, work=TRANSCENDENTAL, wide=True, **rest)
