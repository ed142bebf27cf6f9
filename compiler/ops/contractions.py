"""Matrix products. The reference accumulates in float64 (integers in 64 bits, so they wrap like the narrow type)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..types import Dim, TensorType
from .channels import MATMUL
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import quiet, widen
from .record import Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import NUMBERS, broadcast_shapes, count, require_dtype, require_same_dtype, shape_text


def matmul_shape(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of ``numpy.matmul``: vectors are rows on the left, columns on the right, and leave no axis."""
    if not a or not b:
        raise OpError(f"expected operands of rank 1 or more; got {shape_text(a)} and {shape_text(b)}")
    inner = b[-2] if len(b) > 1 else b[0]
    if a[-1] != inner:
        raise OpError(
            f"expected equal inner dimensions; got {shape_text(a)} and {shape_text(b)} ({a[-1]} against {inner})"
        )
    batch = broadcast_shapes(a[:-2], b[:-2])
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def _matmul_infer(call: Call) -> Sequence[TensorType]:
    a, b = call.type(0), call.type(1)
    require_dtype(a, NUMBERS, "a")
    require_same_dtype(a, b, ("a", "b"))
    return (a.with_shape(matmul_shape(a.shape, b.shape)),)


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.matmul(widen(a), widen(b))).astype(a.dtype)


def _matmul_cost(call: Call) -> Cost:
    a, b = call.type(0), call.type(1)
    return Cost(2.0 * count(matmul_shape(a.shape, b.shape)) * count(a.shape[-1:]))


def _matmul_cases() -> Iterable[Case]:
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((4, 5), (5, 6)),
        ((1, 64), (64, 10)),
        ((33, 17), (17, 65)),
        ((5,), (5,)),
        ((5,), (5, 3)),
        ((4, 5), (5,)),
        ((2, 4, 5), (5, 6)),
        ((2, 4, 5), (2, 5, 6)),
        ((4, 5), (3, 5, 6)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((2, 3, 1, 8), (2, 3, 8, 7)),
        ((5,), (2, 5, 3)),
    ]
    for a, b in pairs:
        yield Case((f32(*a), f32(*b)))
    for dtype in ("float64", "float16", "int32", "int64"):
        yield Case((t(dtype, 3, 7), t(dtype, 7, 5)), low=-9, high=9, note=dtype)


def _matmul_gradient(c: Grad) -> list[Sym]:
    """Vectors are handled as matrices of one row or column; a matrix that a whole batch is multiplied by gets its
    gradient from one product over all rows of the batch."""
    a, b = c.x, c.input(1)
    rows = a.reshape((1, *a.shape)) if a.rank == 1 else a
    columns = b.reshape((*b.shape, 1)) if b.rank == 1 else b
    g = c.g.reshape(_dims(matmul_shape(rows.shape, columns.shape)))
    to_a = (g @ columns.swap()).sum_to(rows.shape)
    if columns.rank == 2:
        rows, g = (s.reshape((math.prod(s.shape[:-1]), s.shape[-1])) for s in (rows, g))
    to_b = (rows.swap() @ g).sum_to(columns.shape)
    return [to_a.reshape(a.shape), to_b.reshape(b.shape)]


def _dims(shape: Sequence[Dim]) -> tuple[int, ...]:
    return tuple(int(d) for d in shape)


OPS = (
    Op(
        "matmul",
        Kind.CONTRACTION,
        _matmul_infer,
        quiet(_matmul),
        "The matrix product as numpy.matmul: batch axes broadcast, vectors allowed.",
        inputs=("a", "b"),
        cost=_matmul_cost,
        cases=_matmul_cases,
        gradient=_matmul_gradient,
        onnx={"MatMul": {}},
        channels=MATMUL,
    ),
)
