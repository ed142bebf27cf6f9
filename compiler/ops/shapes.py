"""Shape and element type rules that several operator families share. All of them raise ``OpError``."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ..types import DTYPES, Dim, TensorType, is_float, is_integer
from .record import Call, OpError

FLOATS = frozenset(d for d in DTYPES if is_float(d))
INTEGERS = frozenset(d for d in DTYPES if is_integer(d))
NUMBERS = FLOATS | INTEGERS
BOOLS = frozenset({"bool"})
ANY = frozenset(DTYPES)
WIDEST = 1 << 24  # elements that a window may span, and be padded and moved by: kernels have 32-bit indices
_CLASSES = {FLOATS: "a float type", INTEGERS: "an integer type", NUMBERS: "a number type", BOOLS: "bool"}


def shape_text(shape: Sequence[Dim]) -> str:
    """``[2,3,n]``"""
    return f"[{','.join(map(str, shape))}]"


def count(shape: Sequence[Dim]) -> float:
    """Number of elements; a symbolic dimension counts as 1."""
    return float(math.prod(d for d in shape if isinstance(d, int)))


def optional(call: Call, index: int) -> TensorType | None:
    """The type of an optional input, or None."""
    return call.types[index] if index < len(call.types) else None


def require_dtype(type: TensorType, accepted: Collection[str], name: str) -> None:
    """Refuses an input whose element type is not among ``accepted``."""
    if type.dtype not in accepted:
        wanted = _CLASSES.get(frozenset(accepted)) or " or ".join(sorted(accepted))
        raise OpError(f"{name}: expected {wanted}; got {type}")


def require_same_dtype(first: TensorType, other: TensorType, names: tuple[str, str]) -> None:
    """Refuses two inputs of different element types: there is no implicit promotion in the IR."""
    if first.dtype != other.dtype:
        raise OpError(f"{names[0]} and {names[1]}: expected one element type; got {first} and {other}")


def require_shape(type: TensorType, expected: Sequence[Dim], name: str) -> None:
    """Refuses an input that does not have exactly the expected shape."""
    if type.shape != tuple(expected):
        raise OpError(f"{name}: expected shape {shape_text(expected)}; got {shape_text(type.shape)}")


def require_rank(type: TensorType, at_least: int, at_most: int | None, name: str) -> None:
    """Refuses an input whose rank is outside the bounds (``at_most`` None: no upper bound)."""
    if type.rank < at_least or (at_most is not None and type.rank > at_most):
        wanted = f"at least {at_least}" if at_most is None else f"{at_least} to {at_most}"
        raise OpError(f"{name}: expected rank {wanted if at_least != at_most else at_least}; got {type}")


def require_length(values: Sequence[object], length: int, name: str) -> None:
    """Refuses an attribute that does not have one entry for each axis it speaks of."""
    if len(values) != length:
        raise OpError(f"{name}: expected {length} values; got {tuple(values)}")


def normalise_axis(axis: int, rank: int, name: str = "axis") -> int:
    """``axis`` in ``[0, rank)``; negative axes count from the end."""
    if not -rank <= axis < rank:
        raise OpError(f"{name}: expected {-rank} to {rank - 1} for rank {rank}; got {axis}")
    return axis % rank


def normalise_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Sorted axes in ``[0, rank)``; refuses repeated ones."""
    found = sorted(normalise_axis(a, rank, "axes") for a in axes)
    if len(set(found)) != len(found):
        raise OpError(f"axes: expected each axis once; got {tuple(axes)} for rank {rank}")
    return tuple(found)


def broadcast_shapes(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """numpy's broadcasting. A symbolic dimension goes with itself and with 1."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Dim] = []
    for axis in range(rank):
        dims = [s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0]
        wide = sorted({d for d in dims if d != 1}, key=str)
        if len(wide) > 1:
            shown = " and ".join(shape_text(s) for s in shapes)
            raise OpError(f"expected shapes that broadcast together; got {shown} ({wide[0]} against {wide[1]})")
        result.append(wide[0] if wide else 1)
    return tuple(result)


def require_broadcast(type: TensorType, target: Sequence[Dim], name: str) -> None:
    """Refuses an input that cannot be broadcast to ``target`` without widening it."""
    try:
        fits = broadcast_shapes(type.shape, target) == tuple(target)
    except OpError:
        fits = False
    if not fits:
        raise OpError(f"{name}: expected a shape that broadcasts to {shape_text(target)}; got {shape_text(type.shape)}")


def known(dim: Dim, name: str) -> int:
    """The extent of an axis whose size the rule computes with."""
    if not isinstance(dim, int):
        raise OpError(f"{name}: expected a bound dimension; got {dim!r}, bind it")
    return dim


def window_extent(kernel: int, dilation: int) -> int:
    """How many elements a dilated window spans; ``OpError`` for more than 32-bit indices reach."""
    extent = (kernel - 1) * dilation + 1
    if extent > WIDEST:
        raise OpError(f"a window of {kernel} elements, dilated by {dilation}, is wider than {WIDEST}")
    return extent


def pooled_extent(
    extent: int, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil_mode: bool = False
) -> int:
    """Number of windows along one axis (ONNX Conv and MaxPool): a window that would start in the end padding,
    which only ``ceil_mode`` can make, is dropped (there is at most one: pools refuse pads as large as the window)."""
    room = extent + begin + end - window_extent(kernel, dilation)
    if room < 0:
        raise OpError(
            f"the window does not fit: expected at least {window_extent(kernel, dilation)} elements "
            f"(kernel {kernel}, dilation {dilation}); got {extent} + padding {begin} + {end}"
        )
    count = -(-room // stride) + 1 if ceil_mode else room // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= extent + begin else count


def transposed_extent(extent: int, kernel: int, stride: int, dilation: int, begin: int, end: int, extra: int) -> int:
    """Output extent of a transposed convolution along one axis (ONNX ConvTranspose)."""
    result = (extent - 1) * stride + window_extent(kernel, dilation) + extra - begin - end
    if result < 1:
        raise OpError(f"expected an output extent of at least 1; got {result} from {extent} elements")
    return result


def require_window(attrs: Sequence[tuple[str, Sequence[int], int]], minimum: int = 1) -> None:
    """Refuses window attributes ``(name, values, expected length)`` of the wrong length or below ``minimum``."""
    for name, values, length in attrs:
        require_length(values, length, name)
        if any(v < minimum for v in values):
            raise OpError(f"{name}: expected values of at least {minimum}; got {tuple(values)}")
        if any(v > WIDEST for v in values):
            raise OpError(f"{name}: expected values of at most {WIDEST}; got {tuple(values)}")
