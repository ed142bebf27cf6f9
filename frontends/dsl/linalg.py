"""Matrix products, with numpy's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .elementwise import emit, maximum, multiply, sqrt, square
from .promote import as_float, same_type
from .reduce import sum as reduce_sum
from .shaping import expand_dims, sizes, swapaxes
from .tensor import Tensor
from .trace import fail, public


@public
def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product ``a @ b``: batch axes broadcast, vectors allowed, as ``numpy.matmul``."""
    return emit("matmul", *same_type(a, b))


@public
def dot(a: Any, b: Any) -> Tensor:
    """The product of vectors or matrices, as ``numpy.dot`` for at most two axes each."""
    x, y = same_type(a, b)
    if x.ndim > 2 or y.ndim > 2:
        raise fail(f"dot: expected at most two axes each, got {x.type} and {y.type}", hint="use nv.matmul")
    return multiply(x, y) if not x.ndim or not y.ndim else emit("matmul", x, y)


@public
def outer(a: Any, b: Any) -> Tensor:
    """The products of every element of a with every one of b."""
    x, y = same_type(a, b)
    return multiply(emit("reshape", x, shape=(-1, 1)), emit("reshape", y, shape=(1, -1)))


@public
def einsum(equation: str, *operands: Any) -> Tensor:
    """Einstein's summation, as ``numpy.einsum`` with letters and ``->`` (no ellipsis, no repeated label in one
    operand): shared labels that the output lacks are summed, by a matrix product where there is one."""
    tensors = same_type(*operands)
    terms, output = _parse(equation, tensors)
    value, labels = tensors[0], terms[0]
    for i, (right, right_labels) in enumerate(zip(tensors[1:], terms[1:], strict=True), 1):
        later = {label for term in terms[i + 1 :] for label in term} | set(output)
        value, labels = _contract(value, labels, right, right_labels, later)
    value, labels = _sum_out(value, labels, set(output))
    return _ordered(value, labels, output)


@public
def cdist(a: Any, b: Any, metric: str = "euclidean") -> Tensor:
    """How far every row of a is from every row of b: [..., n, size] and [..., m, size] make [..., n, m], as SciPy's
    ``cdist``; ``metric`` is ``"euclidean"`` or ``"sqeuclidean"``.

    It is made of one matrix product, |a|² + |b|² - 2ab, and so exact to the rounding of |a|² and |b|²: rows that are
    equal have the distance 0 up to that, and a gradient of 0.
    """
    if metric not in ("euclidean", "sqeuclidean"):
        raise fail(f"cdist has no metric {metric!r}", hint="it has 'euclidean' and 'sqeuclidean'")
    x, y = same_type(as_float(a), as_float(b))
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1]:
        raise fail(f"cdist: expected rows of one length, got {x.type} and {y.type}", hint="[n, size] and [m, size]")
    ones = expand_dims(reduce_sum(square(x), -1), -1) + expand_dims(reduce_sum(square(y), -1), -2)
    squared = maximum(ones - 2.0 * (x @ swapaxes(y, -1, -2)), 1e-12)
    return squared if metric == "sqeuclidean" else sqrt(squared)


def _parse(equation: str, tensors: Sequence[Tensor]) -> tuple[list[str], str]:
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        raise fail(f"einsum {equation!r}: expected {len(terms)} operands, got {len(tensors)}")
    for term, tensor in zip(terms, tensors, strict=True):
        if len(term) != tensor.ndim or len(set(term)) != len(term) or not (term.isalpha() or not term):
            raise fail(f"einsum {equation!r}: expected one letter for each axis, got {term!r} for {tensor.type}")
    if not arrow:
        output = "".join(sorted(c for c in set(left) if c != "," and left.count(c) == 1))
    if len(set(output)) != len(output) or not set(output) <= set(left) - {","}:
        raise fail(f"einsum {equation!r}: the output names a label twice or one that no operand has")
    extents: dict[str, Any] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for label, size in zip(term, tensor.shape, strict=True):
            if extents.setdefault(label, size) != size:
                raise fail(f"einsum {equation!r}: expected size {extents[label]} for {label!r}, got {size}")
    return terms, output


def _ordered(x: Tensor, labels: str, order: str) -> Tensor:
    if labels == order:
        return x
    return emit("transpose", x, perm=tuple(labels.index(label) for label in order))


def _sum_out(x: Tensor, labels: str, keep: set[str]) -> tuple[Tensor, str]:
    gone = [i for i, label in enumerate(labels) if label not in keep]
    return (reduce_sum(x, gone), "".join(c for c in labels if c in keep)) if gone else (x, labels)


def _contract(a: Tensor, a_labels: str, b: Tensor, b_labels: str, later: set[str]) -> tuple[Tensor, str]:
    """Two operands into one: shared labels needed later are batch axes, the others are summed by a matmul."""
    a, a_labels = _sum_out(a, a_labels, later | set(b_labels))
    b, b_labels = _sum_out(b, b_labels, later | set(a_labels))
    extents = {**dict(zip(a_labels, a.shape, strict=True)), **dict(zip(b_labels, b.shape, strict=True))}
    batch = "".join(c for c in a_labels if c in b_labels and c in later)
    inner = "".join(c for c in a_labels if c in b_labels and c not in later)
    rows = "".join(c for c in a_labels if c not in b_labels)
    columns = "".join(c for c in b_labels if c not in a_labels)

    def matrix(x: Tensor, labels: str, first: str, second: str) -> Tensor:
        ordered = _ordered(x, labels, batch + first + second)
        return emit("reshape", ordered, shape=sizes((*(extents[c] for c in batch), _size(first), _size(second))))

    def _size(labels: str) -> Any:
        found = [extents[c] for c in labels]
        return found[0] if len(found) == 1 else math.prod(found)

    product = emit("matmul", matrix(a, a_labels, rows, inner), matrix(b, b_labels, inner, columns))
    order = batch + rows + columns
    return emit("reshape", product, shape=sizes(tuple(extents[c] for c in order))), order
