"""The op table: every operator of the IR, declared once.

A family is one module with a tuple ``OPS`` of records; adding an operator is adding a record to one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from . import (
    attention,
    contractions,
    control,
    convolutions,
    elementwise,
    image,
    indexing,
    integers,
    movement,
    normalisation,
    pooling,
    recurrent,
    recurrent_integers,
    recurrent_scans,
    reductions,
    selection,
    stored,
    weights,
)
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError, fill_attrs

FAMILIES = (
    stored,
    elementwise,
    selection,
    reductions,
    contractions,
    convolutions,
    pooling,
    normalisation,
    attention,
    recurrent,
    recurrent_scans,
    recurrent_integers,
    integers,
    weights,
    movement,
    indexing,
    image,
    control,
)

OPS: dict[str, Op] = {}
for _family in FAMILIES:
    for _op in _family.OPS:
        if _op.name in OPS:
            raise RuntimeError(f"operator {_op.name} is declared twice")
        OPS[_op.name] = _op


def infer(
    name: str,
    types: Sequence[TensorType | None],
    attrs: Mapping[str, Any],
    values: Sequence[np.ndarray | None] = (),
) -> tuple[tuple[TensorType, ...], dict[str, Any]]:
    """The output types of one call and its attributes with defaults; raises ``OpError``."""
    op = OPS.get(name)
    if op is None:
        raise OpError(f"no operator {name!r}")
    filled = fill_attrs(op, attrs)
    found = tuple(types)
    while found and found[-1] is None:
        found = found[:-1]
    variadic = bool(op.inputs) and op.inputs[-1].endswith("*")
    needed = sum(1 for i in op.inputs if not i.endswith(("?", "*")))
    if len(found) < needed or (len(found) > len(op.inputs) and not variadic):
        raise OpError(f"{name} takes {', '.join(op.inputs) or 'nothing'}; got {len(found)} inputs")
    return tuple(op.infer(Call(tuple(types), filled, tuple(values)))), filled


__all__ = ["OPS", "REQUIRED", "Call", "Case", "Cost", "Kind", "Op", "OpError", "infer"]
