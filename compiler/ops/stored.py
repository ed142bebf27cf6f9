"""Stored tensors: the graph's inputs and the three storage classes, which are nodes like any other."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import TensorType
from .record import Call, Kind, Op, OpError


def _declared(call: Call) -> Sequence[TensorType]:
    raise OpError("stored tensors are made by Graph.input, const, param and state")


OPS = (
    Op("input", Kind.STORED, _declared, doc="An argument of the entry point.", inputs=()),
    Op("const", Kind.STORED, _declared, doc="Read-only; may be folded and packed.", inputs=(), attrs={"value": None}),
    Op(
        "param",
        Kind.STORED,
        _declared,
        doc="Mutable, canonical layout.",
        inputs=(),
        attrs={"value": None},
    ),
    Op("state", Kind.STORED, _declared, doc="Lives from call to call.", inputs=(), attrs={"value": None}),
)
