"""The record in which every operator is declared once.

What follows from a record: type inference, constant folding (from the reference), the docs page, the
generated tests (compiled against reference, round trips), fusion, cost. Only the first fields are required.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import TensorType

if TYPE_CHECKING:
    from .axes import Channels


class Kind(enum.Enum):
    """How an operator may be fused with its neighbours."""

    STORED = "stored"  # input, const, param, state
    ELEMENTWISE = "elementwise"  # one output element from the same (broadcast) element of each input
    INJECTIVE = "injective"  # one output element from one element of an input at computed coordinates
    VIEW = "view"  # injective, and often only another reading of the same bytes
    REDUCTION = "reduction"  # folds axes; elementwise work may follow it in the same kernel
    CONTRACTION = "contraction"  # matmul, convolution, pooling, ...: a template with an epilogue
    OPAQUE = "opaque"  # its own kernel, nothing fused (sort, scatter, recurrent layers, ...)


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()


class OpError(Exception):
    """Raised by an inference rule: the inputs or attributes do not fit. The caller adds the place."""


@dataclass(frozen=True)
class Call:
    """What an inference rule sees: the inputs' types (None for an absent optional one), the attributes with
    defaults filled in, and the arrays of those inputs that are constants."""

    types: tuple[TensorType | None, ...]
    attrs: Mapping[str, Any]
    values: tuple[np.ndarray | None, ...] = ()

    def type(self, index: int) -> TensorType:
        found = self.types[index] if index < len(self.types) else None
        if found is None:
            raise OpError(f"input {index} is missing")
        return found

    def value(self, index: int) -> np.ndarray | None:
        return self.values[index] if index < len(self.values) else None


@dataclass(frozen=True)
class Case:
    """One sample call of an operator, from which tests and micro-benchmarks are generated."""

    inputs: tuple[TensorType | np.ndarray | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    low: float = -2.0  # range of random float inputs
    high: float = 2.0
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """Work of one call: floating (or integer) operations; bytes are read off the types."""

    flops: float


@dataclass(frozen=True)
class Op:
    """One operator of the IR.

    ``reference(*arrays, **attrs)`` computes it with numpy: one array, or a tuple when there are several outputs.
    Absent optional inputs are passed as None. ``infer`` gives one type per output and raises ``OpError``.
    """

    name: str
    kind: Kind
    infer: Callable[[Call], Sequence[TensorType]]
    reference: Callable[..., Any] | None = None
    doc: str = ""  # one line: what it computes, where it is specified
    inputs: tuple[str, ...] = ("x",)  # names; a trailing "?" marks an optional one, "*" a variadic last one
    attrs: Mapping[str, Any] = field(default_factory=dict)  # name -> default, or REQUIRED
    cost: Callable[[Call], Cost] | None = None
    cases: Callable[[], Iterable[Case]] | None = None
    onnx: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # ONNX name -> attribute renames (plain data)
    gradient: Callable[..., Any] | None = None  # gradient.Gradient: one gradient for each input
    training: Callable[..., Any] | None = None  # gradient.Training: the outputs in a form cheap to differentiate
    quantize: Any = None
    channels: Channels | None = None  # which axes go together (pruning): axes.py; elementwise operators need none
    inplace: tuple[int, ...] = ()  # inputs whose buffer the output may take over
    commutative: bool = False
    pure: bool = True


def fill_attrs(op: Op, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """``attrs`` with the record's defaults, in the record's order; ``OpError`` for unknown or missing ones."""
    unknown = sorted(set(attrs) - set(op.attrs))
    if unknown:
        raise OpError(f"{op.name} has no attribute {', '.join(unknown)}; it has {', '.join(op.attrs) or 'none'}")
    filled = {name: attrs.get(name, default) for name, default in op.attrs.items()}
    missing = [name for name, value in filled.items() if value is REQUIRED]
    if missing:
        raise OpError(f"{op.name} needs {', '.join(missing)}")
    return filled
