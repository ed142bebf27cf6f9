"""How the axes of an operator's operands hang together: the words in which a record says it (``Op.channels``).

Pruning takes positions out of an axis: a channel, a head, a unit. A rule says, for one call, which positions of which
axes must then go too (``Tie``), which must stay and why (``Pin``), and how the attributes that speak of sizes change
(``Channels.shrink``). An axis of which a rule does not speak stays as it is. What must hold of a rule: the operator of
the operands without some positions is its result without the positions tied to these; and in a sum over an axis
(``Dot``) a position goes without a trace if it is zero in one of the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..types import TensorType
from .record import Call


class Axis(NamedTuple):
    """An axis of a call: of an input or output by number, or one of the operator's ``own`` (groups of channels, units
    of a recurrent layer), for which ``axis`` is its extent."""

    side: str  # "in", "out" or "own"
    tensor: int
    axis: int


def into(tensor: int, axis: int) -> Axis:
    """An axis of an input; negative axes are the rule's to resolve."""
    return Axis("in", tensor, axis)


def out(axis: int, tensor: int = 0) -> Axis:
    """An axis of an output."""
    return Axis("out", tensor, axis)


def own(extent: int, number: int = 0) -> Axis:
    """An axis that the operator has in itself."""
    return Axis("own", number, extent)


@dataclass(frozen=True, eq=False, slots=True)
class Tie:
    """Position ``p`` of ``a`` goes with position ``at[p]`` of ``b`` (None: with ``p``; -1: with none). Several
    positions of ``a`` may go with one of ``b``, which then all go together."""

    a: Axis
    b: Axis
    at: np.ndarray | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Pin:
    """Positions (None: all) that must stay; ``why`` is read by people."""

    axis: Axis
    why: str
    at: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """``whole`` counts through ``parts`` in row-major order. One of the parts can go along with it; which one, the
    whole graph decides: the others then stay."""

    whole: Axis
    parts: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """A sum of products over two tied axes (or over one: ``a`` is ``b``): what goes must be zero in one of the factors.
    Constants are zero where something goes; of an operand that is computed it follows from the operators."""

    a: Axis
    b: Axis


@dataclass(frozen=True, slots=True)
class Mark:
    """What a position of an axis is to people: ``heads``, ``units`` or ``groups``. Without, it is a channel."""

    axis: Axis
    kind: str


Relation = Tie | Pin | Merge | Dot | Mark
Kept = Callable[[Axis], np.ndarray]  # the positions of an axis that stay, in order


@dataclass(frozen=True, slots=True)
class Change:
    """What is different in a call whose axes have lost positions: attributes, and constant inputs (indices)."""

    attrs: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Channels:
    """An operator's rule: ``relations(call, result types)``; ``shrink(call, result types, kept)`` where attributes
    speak of sizes."""

    relations: Callable[[Call, Sequence[TensorType]], Iterable[Relation]]
    shrink: Callable[[Call, Sequence[TensorType], Kept], Change] | None = None


# -- what many rules need ----------------------------------------------------------------------------------------


def extent(call: Call, outs: Sequence[TensorType], axis: Axis) -> int | None:
    """Positions of an axis; None where they are not known yet (a batch that is still open)."""
    if axis.side == "own":
        return axis.axis
    type_ = call.type(axis.tensor) if axis.side == "in" else outs[axis.tensor]
    size = type_.shape[axis.axis]
    return size if isinstance(size, int) else None


def given(call: Call) -> list[int]:
    """The numbers of the inputs that are there."""
    return [i for i, t in enumerate(call.types) if t is not None]


def same(rank: int, but: Iterable[int] = (), tensor: int = 0, result: int = 0) -> Iterable[Tie]:
    """Every axis of an input is that of the result, but for some."""
    left = set(but)
    return [Tie(into(tensor, i), out(i, result)) for i in range(rank) if i not in left]


def pinned(axes: Iterable[Axis], why: str) -> Iterable[Pin]:
    return [Pin(axis, why) for axis in axes]


def aligned(call: Call, outs: Sequence[TensorType], tensors: Iterable[int]) -> Iterable[Tie]:
    """numpy's broadcasting: an axis of an operand is that of the result unless it is stretched."""
    result = outs[0]
    for i in tensors:
        operand = call.type(i)
        ahead = result.rank - operand.rank
        for axis, size in enumerate(operand.shape):
            if size == result.shape[ahead + axis]:
                yield Tie(into(i, axis), out(ahead + axis))


def fans(wide: int, narrow: int) -> np.ndarray:
    """Where ``narrow`` things have as many neighbours each among ``wide``: to which each of them belongs."""
    return np.arange(wide) // (wide // narrow)


def everything(call: Call, outs: Sequence[TensorType], why: str) -> Iterable[Pin]:
    """Every axis of the call, pinned."""
    for i in given(call):
        yield from pinned((into(i, a) for a in range(call.type(i).rank)), why)
    for i, result in enumerate(outs):
        yield from pinned((out(a, i) for a in range(result.rank)), why)
