"""From Python's and numpy's values to tensors of one element type."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...compiler.ops.numeric import numpy_dtype
from ...compiler.types import DTYPES, is_float
from .tensor import Tensor, Weight
from .trace import current, fail

_FLOATS = {float: "float32", "float": "float32", int: "int64", "int": "int64", bool: "bool"}


def dtype_name(dtype: Any) -> str:
    """numpy's name of an element type given as a name, a numpy type or a Python type (``float`` is float32)."""
    if not isinstance(dtype, np.dtype) and dtype in _FLOATS:
        return _FLOATS[dtype]
    name = dtype if isinstance(dtype, str) and dtype in DTYPES else ""
    if not name:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = str(dtype)
    if name not in DTYPES:
        raise fail(f"element type {dtype!r} is unknown", hint=f"use one of: {', '.join(DTYPES)}")
    return name


def _is_scalar(x: Any) -> bool:
    """Python's own numbers, which take the type of what they meet."""
    return isinstance(x, bool | int | float) and (not isinstance(x, np.generic) or x.dtype == np.float64)


def as_array(x: Any) -> np.ndarray:
    """A constant's array: float32 and int64 where numpy was not told which type."""
    array = np.asarray(x)
    if isinstance(x, np.ndarray | np.generic) and not _is_scalar(x):
        return array
    return array.astype(np.float32) if array.dtype == np.float64 else array


def as_tensor(x: Any, dtype: str | None = None) -> Tensor:
    """``x`` (a tensor, weight, array, number or nested list) as a tensor of the trace, cast to ``dtype`` if given."""
    trace = current()
    if isinstance(x, Weight):
        x = trace.read(x)
    if isinstance(x, Tensor):
        if x.trace is not trace:
            raise fail(
                "a tensor of another trace was used",
                why="it was made while another network was traced, or by an earlier call of this one",
                hint="pass it to the function as an argument; do not store tensors between calls",
            )
        return x if dtype is None or x.dtype == dtype else trace.emit("cast", [x], {"to": dtype})[0]
    if isinstance(x, list | tuple) and any(isinstance(item, Tensor | Weight) for item in x):
        from .shaping import stack

        return as_tensor(stack(list(x)), dtype)
    array = as_array(x)
    if dtype is not None and array.dtype.name != dtype:
        array = _cast(array, dtype)
    return trace.constant(array)


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    target = numpy_dtype(dtype)
    if array.dtype.kind in "iu" and target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            raise fail(f"{array.min() if array.min() < limits.min else array.max()} does not fit into {dtype}")
    if array.dtype.kind not in "biuf" and array.dtype.name not in DTYPES:
        raise fail(f"an array of {array.dtype} cannot be a tensor")
    with np.errstate(all="ignore"):
        return array.astype(target)


def _known(array: np.ndarray) -> str:
    """The element type of an array that can be a constant."""
    if array.dtype.name not in DTYPES:
        raise fail(f"an array of {array.dtype} cannot be a tensor", hint=f"element types: {', '.join(DTYPES)}")
    return array.dtype.name


def result_dtype(*operands: Any) -> str:
    """The element type of an operation on ``operands``: numpy's, but float64 only where a tensor is float64."""
    tensors = [x.dtype for x in operands if isinstance(x, Tensor | Weight)]
    scalars = [x for x in operands if _is_scalar(x)]
    arrays = [_known(as_array(x)) for x in operands if not isinstance(x, Tensor | Weight) and not _is_scalar(x)]
    strong = [d for d in tensors + arrays if d != "float64" or d in tensors]
    found = np.result_type(*map(numpy_dtype, strong)).name if strong else "bool"
    if found == "float64" and "float64" not in tensors:
        floats = [numpy_dtype(d) for d in strong if is_float(d)]
        found = np.result_type(*floats).name if floats else "float32"
    if len(strong) < len(tensors + arrays) or any(isinstance(x, float) for x in scalars):
        return found if is_float(found) else "float32"
    return "int64" if found == "bool" and any(not isinstance(x, bool) for x in scalars) else found


def same_type(*operands: Any) -> tuple[Tensor, ...]:
    """The operands as tensors of their common element type."""
    dtype = result_dtype(*operands)
    return tuple(as_tensor(x, dtype) for x in operands)


def as_float(x: Any) -> Tensor:
    """``x`` as a tensor of a float type: integers become float32."""
    tensor = as_tensor(x)
    return tensor if is_float(tensor.dtype) else as_tensor(tensor, "float32")
