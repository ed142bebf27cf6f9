"""What the kernels of Helium's templates share: sums requantized as four int32, and bytes that are scattered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ROWS = {"round": "round", "half": "narrow.even.int16", "byte": "narrow.even.int8"}  # that ``rescaled`` asks for
SMALL = 1 << 16  # instructions; a layer of more is worth a kernel of its own, which knows its shape
_SCATTER = "llvm.arm.mve.vstr.scatter.offset.p0.v4i32.v4i32"


def address(buffer: Any, at: Any) -> Any:
    from tvm import tirx

    return tirx.call_intrin("handle", "tirx.address_of", tirx.BufferLoad(buffer, [at]))


def scatter(k: Any, buffer: Any, at: Any, places: Any, value: Any) -> None:
    """Stores the lowest bytes of four int32, ``places`` behind ``at``."""
    from tvm import tirx

    from ..tir import constant

    args = [address(buffer, at), places, k.bind(value), constant(8, "int32"), constant(0, "int32")]
    k.emit(tirx.Evaluate(tirx.call_llvm_intrin("void", _SCATTER, *args)))


def rescaled(
    k: Any, rows: dict[str, Any], attrs: dict[str, Any], number: Callable[[Any], Any], sums: Any, scale: Any
) -> Any:
    """Four sums requantized, as int32 of which the lowest bytes are stored. ``number`` resolves those of ``attrs``."""
    from ...ops.selection import step_bounds
    from ..functions import cast
    from ..integers import spread
    from ..tir import maximum, minimum, reinterpreted

    real = k.bind(cast(k.bind(sums), "float32") * scale)
    value = k.instruction(rows["round"], a=real)
    value = k.bind(value + spread(number(attrs["zero_point"]), value))
    least, most = step_bounds(None, None, attrs["to"])
    low, high = number(attrs["low"]), number(attrs["high"])
    if low not in (None, least) or high not in (None, most) or attrs["to"] != "int8":
        value = k.bind(maximum(value, spread(least if low is None else low, value)))
        return k.bind(minimum(value, spread(most if high is None else high, value)))
    half = k.bind(k.instruction(rows["half"], into=reinterpreted(value, "int16x8"), a=value))
    return reinterpreted(k.instruction(rows["byte"], into=reinterpreted(half, "int8x16"), a=half), "int32x4")
