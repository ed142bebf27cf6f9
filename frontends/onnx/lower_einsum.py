"""Einsum as transposes, reshapes, one batched matmul per pair of operands, and sums."""

from __future__ import annotations

import math

from ...compiler.ir import Value
from ...errors import NervureError
from .context import Context, OnnxNode
from .registry import Lowered, lowers

Labels = tuple[str, ...]  # one label an axis; those of an ellipsis are "...0", "...1", ... counted from the right


@lowers("Einsum")
def einsum(c: Context, n: OnnxNode) -> Lowered:
    operands = [n.input(i) for i in range(len(n.inputs))]
    terms, output = parse(n.attr("equation", ""), [c.rank(v) for v in operands], n.path)
    pairs = [_diagonal(c, v, t) for v, t in zip(operands, terms, strict=True)]
    sizes: dict[str, int] = {}
    for value, labels in pairs:
        for label, size in zip(labels, c.shape(value), strict=True):
            if sizes.setdefault(label, size) != size and 1 not in (size, sizes[label]):
                raise NervureError(f"Einsum: {label} is {sizes[label]} and {size}", where=n.path)
            sizes[label] = max(sizes[label], size) if 0 not in (size, sizes[label]) else 0
    value, labels = pairs[0]
    for i, (right, right_labels) in enumerate(pairs[1:], 1):
        later = {label for _, ls in pairs[i + 1 :] for label in ls} | set(output)
        value, labels = _contract(c, (value, labels), (right, right_labels), later)
    value, labels = _sum_out(c, value, labels, set(output))
    shape = [sizes[label] for label in output]
    return c.expand(c.transpose(value, [labels.index(label) for label in output]), shape)


def parse(equation: str, ranks: list[int], where: str) -> tuple[list[Labels], Labels]:
    """Labels of each operand and of the output. Raises ``NervureError`` for an equation that does not fit."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    words = left.split(",")
    if len(words) != len(ranks):
        raise NervureError(f"Einsum {equation!r} names {len(words)} operands, there are {len(ranks)}", where=where)
    terms = [_labels(word, rank, equation, where) for word, rank in zip(words, ranks, strict=True)]
    dots = sorted({label for term in terms for label in term if label.startswith("...")}, key=lambda d: -int(d[3:]))
    if not arrow:
        seen = [label for term in terms for label in term if not label.startswith("...")]
        return terms, (*dots, *sorted(label for label in set(seen) if seen.count(label) == 1))
    before, ellipsis, after = right.partition("...")
    output = (*before, *(dots if ellipsis else ()), *after)
    known = {label for term in terms for label in term}
    if len(set(output)) != len(output) or not set(output) <= known:
        raise NervureError(
            f"Einsum {equation!r}: its output names a label twice or one that no operand has", where=where
        )
    return terms, output


def _labels(word: str, rank: int, equation: str, where: str) -> Labels:
    before, ellipsis, after = word.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not ellipsis) or (not (before + after).isalpha() and before + after):
        raise NervureError(f"Einsum {equation!r}: {word!r} does not fit an operand of rank {rank}", where=where)
    return (*before, *(f"...{hidden - 1 - i}" for i in range(hidden)), *after)


def _diagonal(c: Context, value: Value, labels: Labels) -> tuple[Value, Labels]:
    """A label that one operand has twice picks the diagonal: flattened, that is every (size + 1)-th element."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            rest = [i for i in range(len(labels)) if i not in (first, second)]
            size = c.shape(value)[first]
            value = c.transpose(value, [first, second, *rest])
            tail = c.shape(value)[2:]
            value = c.slice(c.reshape(value, (size * size, *tail)), 0, 0, size * size, size + 1)
            labels = (label, *(labels[i] for i in rest))
    return value, labels


def _sum_out(c: Context, value: Value, labels: Labels, keep: set[str]) -> tuple[Value, Labels]:
    gone = [i for i, label in enumerate(labels) if label not in keep]
    if not gone:
        return value, labels
    return c.reduce("sum", value, gone, keepdims=False), tuple(label for label in labels if label in keep)


def _contract(
    c: Context, left: tuple[Value, Labels], right: tuple[Value, Labels], later: set[str]
) -> tuple[Value, Labels]:
    """Two operands into one: shared labels that are needed later are batch axes, the others are summed by a matmul."""
    a, a_labels = _sum_out(c, *left, later | set(right[1]))
    b, b_labels = _sum_out(c, *right, later | set(left[1]))
    sizes = dict(zip(a_labels, c.shape(a), strict=True))
    other = dict(zip(b_labels, c.shape(b), strict=True))
    shared = [label for label in a_labels if label in other]
    if any(sizes[label] != other[label] for label in shared):  # an axis of 1 that broadcasts
        return _multiply(c, (a, a_labels), (b, b_labels), later)
    batch = [label for label in shared if label in later]
    inner = [label for label in shared if label not in later]
    rows = [label for label in a_labels if label not in other]
    columns = [label for label in b_labels if label not in sizes]
    if not inner:
        return _multiply(c, (a, a_labels), (b, b_labels), later)

    def matrix(v: Value, labels: Labels, order: list[list[str]], known: dict[str, int]) -> Value:
        v = c.transpose(v, [labels.index(label) for group in order for label in group])
        return c.reshape(v, [*(known[b] for b in order[0]), *(math.prod(known[x] for x in g) for g in order[1:])])

    y = c.op(
        "matmul", matrix(a, a_labels, [batch, rows, inner], sizes), matrix(b, b_labels, [batch, inner, columns], other)
    )
    shape = [*(sizes[x] for x in batch), *(sizes[x] for x in rows), *(other[x] for x in columns)]
    return c.reshape(y, shape), (*batch, *rows, *columns)


def _multiply(
    c: Context, left: tuple[Value, Labels], right: tuple[Value, Labels], later: set[str]
) -> tuple[Value, Labels]:
    """The elementwise product over the union of the labels, then the sum over those that nobody needs."""
    union = tuple(dict.fromkeys(left[1] + right[1]))

    def aligned(v: Value, labels: Labels) -> Value:
        order = [label for label in union if label in labels]
        v = c.transpose(v, [labels.index(label) for label in order])
        known = dict(zip(order, c.shape(v), strict=True))
        return c.reshape(v, [known.get(label, 1) for label in union])

    return _sum_out(c, c.op("mul", aligned(*left), aligned(*right)), union, later)
