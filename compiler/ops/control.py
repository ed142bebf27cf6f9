"""Operators with a graph inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import TensorType
from .record import REQUIRED, Call, Cost, Kind, Op, OpError

if TYPE_CHECKING:
    from ..ir import Graph


def _fused_infer(call: Call) -> list[TensorType]:
    body: Graph = call.attrs["body"]
    wanted = [body.node(n).types[0] for n in body.inputs]
    given = [call.type(i) for i in range(len(call.types))]
    if given != wanted:
        raise OpError(f"the body takes ({_shown(wanted)}), got ({_shown(given)})")
    return [body.type(v) for v in body.outputs]


def _shown(types: list[TensorType]) -> str:
    return ", ".join(map(str, types))


def _fused(*xs: np.ndarray, body: Graph) -> tuple[np.ndarray, ...]:
    from ..interpret import interpret

    return tuple(interpret(body, xs))


def _fused_cost(call: Call) -> Cost:
    from . import OPS as TABLE

    body: Graph = call.attrs["body"]
    total = 0.0
    for key in body.order():
        node = body.node(key)
        rule = TABLE[node.op].cost
        if rule is not None:
            args = body.args(key)
            attrs: Mapping[str, Any] = node.attrs
            total += rule(Call(tuple(None if a is None else body.type(a) for a in args), attrs)).flops
    return Cost(total)


OPS = (
    Op(
        "fused",
        Kind.OPAQUE,
        _fused_infer,
        _fused,
        doc="The outputs of body, a Graph, on the inputs: what the fusion pass computes in one step.",
        inputs=("xs*",),
        attrs={"body": REQUIRED},
        cost=_fused_cost,
    ),
)
