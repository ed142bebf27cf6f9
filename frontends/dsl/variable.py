"""``nv.assign``: the next value of something stored. What a network remembers from call to call (a cache, a membrane's
potential, a buffer of past samples) and what learns by a rule that is no gradient are both written with it."""

from __future__ import annotations

from typing import Any

from .promote import as_tensor
from .tensor import Tensor, Weight
from .trace import current, fail


def assign(variable: Weight, value: Any) -> Tensor:
    """``value``, of the shape of ``variable`` and cast to its type, becomes its next value when the call ends; further
    down in the same function the variable already stands for it. Returns the new value.

    Works on ``nv.Variable`` and on a layer's weights, in steps and at inference. ``NervureError``: another shape.
    """
    trace = current()
    if not isinstance(variable, Weight):
        hint = "make it by nv.Variable(value), outside of the function"
        raise fail(f"nv.assign needs a variable or a layer's weight, got {type(variable).__name__}", hint=hint)
    new = as_tensor(value, variable.dtype)
    if new.shape != variable.shape:
        raise fail(f"variable {variable.name!r} has shape {list(variable.shape)}, got {list(new.shape)}")
    trace.assign(variable, new)
    return new
