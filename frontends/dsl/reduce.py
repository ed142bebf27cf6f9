"""Reductions with numpy's names and arguments: ``axis`` None, a number or several; ``keepdims``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...compiler.types import is_float
from .elementwise import divide, emit, emit_all, exp, log, sqrt, square, subtract, truth
from .promote import as_float, as_tensor
from .tensor import Tensor
from .trace import fail, public

Axis = int | Sequence[int] | None


def axes_of(axis: Axis, rank: int) -> tuple[int, ...]:
    """Axes in [0, rank); None is all of them."""
    given = range(rank) if axis is None else [axis] if isinstance(axis, int) else list(axis)
    for a in given:
        if isinstance(a, bool) or not isinstance(a, int) or not -rank <= a < rank:
            raise fail(f"axis {a!r} is out of range for a tensor of rank {rank}")
    return tuple(sorted({a % rank for a in given}))


def _reduce(op: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    axes = axes_of(axis, x.ndim)
    return emit(op, x, axes=axes, keepdims=bool(keepdims)) if axes else x


def _number(x: Any) -> Tensor:
    tensor = as_tensor(x)
    return as_tensor(tensor, "int64") if tensor.dtype == "bool" else tensor


def _total(x: Any) -> Tensor:
    """Integers are summed in 64 bits, as in numpy."""
    tensor = as_tensor(x)
    if is_float(tensor.dtype):
        return tensor
    return as_tensor(tensor, "uint64" if tensor.dtype.startswith("uint") else "int64")


def _reduction(name: str, doc: str, prepare: Callable[[Any], Tensor]) -> Callable[..., Tensor]:
    def function(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
        return _reduce(f"reduce_{name}", prepare(x), axis, keepdims)

    function.__name__, function.__doc__ = name, doc
    return public(function)


sum = _reduction("sum", "The sum over axes; of integers in 64 bits.", _total)
mean = _reduction("mean", "The mean over axes; of integers as float32.", as_float)
max = _reduction("max", "The largest element over axes.", as_tensor)
min = _reduction("min", "The smallest element over axes.", as_tensor)
prod = _reduction("prod", "The product over axes; of integers in 64 bits.", _total)


@public
def var(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The variance over axes; ``ddof`` is taken from the number of elements that the sum is divided by."""
    tensor = as_float(x)
    squares = square(subtract(tensor, mean(tensor, axis, keepdims=True)))
    if not ddof:
        return mean(squares, axis, keepdims)
    count = 1
    for a in axes_of(axis, tensor.ndim):
        count *= tensor.shape[a]
    return divide(sum(squares, axis, keepdims), float(count - ddof))


@public
def std(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor:
    """The standard deviation over axes (see ``var``)."""
    return sqrt(var(x, axis, ddof, keepdims))


@public
def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether every element is true."""
    return _reduce("reduce_min", truth(x), axis, keepdims)


@public
def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether some element is true."""
    return _reduce("reduce_max", truth(x), axis, keepdims)


@public
def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))), without overflow."""
    tensor = as_float(x)
    top = max(tensor, axis, keepdims=True)
    total = log(sum(exp(subtract(tensor, top)), axis, keepdims=True)) + top
    return total if keepdims else _reduce("reduce_sum", total, axis, False)


@public
def norm(x: Any, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The Euclidean length over axes."""
    return sqrt(sum(square(as_float(x)), axis, keepdims))


def _arg(name: str, doc: str) -> Callable[..., Tensor]:
    def function(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
        tensor = _number(x)
        if axis is None:
            tensor, axis = emit("reshape", tensor, shape=(-1,)), 0
        return emit(name, tensor, axis=axes_of(axis, tensor.ndim)[0], keepdims=keepdims)

    function.__name__, function.__doc__ = name, doc
    return public(function)


argmax = _arg("argmax", "The int64 index of the first largest element along an axis (None: of the flat tensor).")
argmin = _arg("argmin", "The int64 index of the first smallest element along an axis (None: of the flat tensor).")


def _running(name: str, doc: str) -> Callable[..., Tensor]:
    def function(x: Any, axis: int | None = None) -> Tensor:
        tensor = _total(x)
        if axis is None:
            tensor, axis = emit("reshape", tensor, shape=(-1,)), 0
        return emit(name, tensor, axis=axes_of(axis, tensor.ndim)[0])

    function.__name__, function.__doc__ = name, doc
    return public(function)


cumsum = _running("cumsum", "Running sums along an axis (None: of the flat tensor).")
cumprod = _running("cumprod", "Running products along an axis (None: of the flat tensor).")


@public
def topk(x: Any, k: int, axis: int = -1, largest: bool = True) -> tuple[Tensor, ...]:
    """The k largest (or smallest) elements along an axis, sorted, and their int64 indices."""
    tensor = as_tensor(x)
    values, indices = emit_all("topk", tensor, k=k, axis=axes_of(axis, tensor.ndim)[0], largest=largest)
    return values, indices


@public
def sort(x: Any, axis: int = -1) -> Tensor:
    """x in rising order along an axis."""
    tensor = as_tensor(x)
    return topk(tensor, tensor.shape[axis], axis, largest=False)[0]


@public
def argsort(x: Any, axis: int = -1) -> Tensor:
    """The int64 indices that sort x along an axis."""
    tensor = as_tensor(x)
    return topk(tensor, tensor.shape[axis], axis, largest=False)[1]
