"""numpy arrays as the compiled code wants them: exact dtype and shape, contiguous, aligned."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import NervureError
from .artifact import Port

ALIGN = 64


def host_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype for a model's; bfloat16 is held as uint16."""
    return np.dtype("uint16" if name == "bfloat16" else name)


def empty(nbytes: int) -> np.ndarray:
    """Bytes at an address that is a multiple of 64."""
    block = np.empty(nbytes + ALIGN, np.uint8)
    start = -block.ctypes.data % ALIGN
    return block[start : start + nbytes]


def check_array(value: Any, port: Port, kind: str, *, copy: bool = True, write: bool = False) -> np.ndarray:
    """``value`` as a contiguous, aligned array of exactly the port's dtype and shape.

    ``NervureError`` names what was expected and what came. With ``copy`` an array that lies otherwise is copied.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise NervureError(f"{kind} {port.name!r} is no array", why=str(error)) from error
    dtype = host_dtype(port.dtype)
    if array.dtype.name == "bfloat16" and port.dtype == "bfloat16":
        array = array.view(np.uint16)
    if array.dtype != dtype or tuple(array.shape) != port.shape:
        raise NervureError(
            f"{kind} {port.name!r}: expected {port.dtype}{list(port.shape)}, got {array.dtype}{list(array.shape)}",
            hint=f"convert it: array.astype({dtype.name!r})" if array.dtype != dtype else "reshape or resize it",
        )
    if array.flags.c_contiguous and array.flags.aligned and (array.flags.writeable or not write):
        return array
    if not copy:
        needs = "contiguous, aligned" + (" and writable" if write else "")
        raise NervureError(f"{kind} {port.name!r} cannot be bound: the array must be {needs}")
    return np.require(array, requirements=["C", "A"])
