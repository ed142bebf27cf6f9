"""Shapes and movement, with numpy's names and arguments."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .elementwise import emit
from .promote import as_tensor, dtype_name, same_type
from .reduce import axes_of
from .tensor import Tensor
from .trace import fail, public


def sizes(shape: Any) -> tuple[Any, ...]:
    """A shape given as one number, several or a sequence; named dimensions stay names."""
    if isinstance(shape, tuple) and len(shape) == 1 and isinstance(shape[0], list | tuple):
        shape = shape[0]
    given = list(shape) if isinstance(shape, list | tuple) else [shape]
    try:
        return tuple(str(d) if isinstance(d, str) else operator.index(d) for d in given)
    except TypeError:
        raise fail(f"a shape holds whole numbers, got {shape!r}") from None


@public
def reshape(x: Any, *shape: Any) -> Tensor:
    """The same elements in row-major order under another shape; one size may be -1."""
    return emit("reshape", as_tensor(x), shape=sizes(shape))


@public
def transpose(x: Any, *axes: Any) -> Tensor:
    """Axis i of the result is axis ``axes[i]`` of x; without axes they are reversed."""
    tensor = as_tensor(x)
    if not axes or axes == (None,):
        return emit("transpose", tensor, perm=tuple(reversed(range(tensor.ndim))))
    order = sizes(axes)
    return emit("transpose", tensor, perm=tuple(axes_of(a, tensor.ndim)[0] for a in order))


permute = transpose


@public
def swapaxes(x: Any, a: int, b: int) -> Tensor:
    """x with two axes exchanged."""
    tensor = as_tensor(x)
    perm = list(range(tensor.ndim))
    (i,), (j,) = axes_of(a, tensor.ndim), axes_of(b, tensor.ndim)
    perm[i], perm[j] = perm[j], perm[i]
    return emit("transpose", tensor, perm=tuple(perm))


@public
def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """x with axes at new places; the others keep their order."""
    tensor = as_tensor(x)
    taken = [axes_of(a, tensor.ndim)[0] for a in sizes(source)]
    to = [axes_of(a, tensor.ndim)[0] for a in sizes(destination)]
    perm = [a for a in range(tensor.ndim) if a not in taken]
    for place, axis in sorted(zip(to, taken, strict=True)):
        perm.insert(place, axis)
    return emit("transpose", tensor, perm=tuple(perm))


@public
def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes from ``start_dim`` to ``end_dim`` as one."""
    tensor = as_tensor(x)
    if not tensor.ndim:
        return emit("reshape", tensor, shape=(1,))
    (first,), (last,) = axes_of(start_dim, tensor.ndim), axes_of(end_dim, tensor.ndim)
    if first == last:
        return tensor
    return emit("reshape", tensor, shape=sizes((*tensor.shape[:first], -1, *tensor.shape[last + 1 :])))


ravel = flatten


@public
def squeeze(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x without axes of size 1 (all of them, or those given)."""
    tensor = as_tensor(x)
    gone = [i for i, d in enumerate(tensor.shape) if d == 1] if axis is None else axes_of(axis, tensor.ndim)
    for a in gone:
        if tensor.shape[a] != 1:
            raise fail(f"squeeze: expected size 1 along axis {a}, got {tensor.shape[a]}")
    return emit("reshape", tensor, shape=sizes(tuple(d for i, d in enumerate(tensor.shape) if i not in gone)))


@public
def expand_dims(x: Any, axis: int | Sequence[int]) -> Tensor:
    """x with new axes of size 1 at the given places of the result."""
    tensor = as_tensor(x)
    given = sizes(axis)
    rank = tensor.ndim + len(given)
    new = axes_of(given, rank)
    rest = iter(tensor.shape)
    return emit("reshape", tensor, shape=sizes(tuple(1 if i in new else next(rest) for i in range(rank))))


unsqueeze = expand_dims


@public
def broadcast_to(x: Any, *shape: Any) -> Tensor:
    """x repeated along its axes of size 1 until it has the shape."""
    return emit("expand", as_tensor(x), shape=sizes(shape))


@public
def concat(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """The tensors one after another along an axis."""
    parts = same_type(*xs)
    if not parts:
        raise fail("concat needs at least one tensor")
    (at,) = axes_of(axis, parts[0].ndim)
    return emit("concat", *parts, axis=at) if len(parts) > 1 else parts[0]


concatenate = concat


@public
def stack(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape side by side along a new axis."""
    return concat([expand_dims(x, axis) for x in same_type(*xs)], axis)


@public
def split(x: Any, parts: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """x cut into equal parts (a number) or at the given indices, as ``numpy.split``."""
    tensor = as_tensor(x)
    (at,) = axes_of(axis, tensor.ndim)
    size = tensor.shape[at]
    if isinstance(size, str):
        raise fail(f"split: dimension {size!r} is not bound")
    if isinstance(parts, int):
        if parts < 1 or size % parts:
            raise fail(f"split: expected a size that {parts} divides along axis {at}, got {size}")
        cuts = [size // parts * i for i in range(1, parts)]
    else:
        cuts = list(parts)
    bounds = [0, *cuts, size]
    lead = (slice(None),) * at
    return [tensor[(*lead, slice(a, b))] for a, b in itertools.pairwise(bounds)]


@public
def chunk(x: Any, chunks: int, axis: int = 0) -> list[Tensor]:
    """x in ``chunks`` parts along an axis, the last one perhaps smaller, as ``torch.chunk``."""
    tensor = as_tensor(x)
    size = tensor.shape[axes_of(axis, tensor.ndim)[0]]
    step = -(-size // chunks)
    return split(tensor, list(range(step, size, step)), axis)


@public
def pad(x: Any, pad_width: Any, mode: str = "constant", value: float = 0.0) -> Tensor:
    """x with a border: ``pad_width`` is one number, (before, after) for every axis, or one pair for each axis.

    Modes: constant, reflect, edge, wrap, as ``numpy.pad``.
    """
    tensor = as_tensor(x)
    try:
        pairs = np.broadcast_to(np.asarray(pad_width), (tensor.ndim, 2)).tolist()
    except ValueError:
        raise fail(f"pad: expected a pair for each of {tensor.ndim} axes, got {pad_width!r}") from None
    pads = (*(int(p[0]) for p in pairs), *(int(p[1]) for p in pairs))
    return emit("pad", tensor, pads=pads, mode=mode, value=value)


@public
def tile(x: Any, *repeats: Any) -> Tensor:
    """x repeated along its axes, as ``numpy.tile``."""
    tensor, times = as_tensor(x), sizes(repeats)
    rank = max(tensor.ndim, len(times))
    if tensor.ndim < rank:
        tensor = emit("reshape", tensor, shape=sizes((*(1,) * (rank - tensor.ndim), *tensor.shape)))
    return emit("tile", tensor, repeats=(*(1,) * (rank - len(times)), *times))


@public
def repeat(x: Any, repeats: int, axis: int) -> Tensor:
    """Each element along an axis ``repeats`` times, as ``numpy.repeat``."""
    tensor = as_tensor(x)
    (at,) = axes_of(axis, tensor.ndim)
    wide = expand_dims(tensor, at + 1)
    times = [1] * wide.ndim
    times[at + 1] = repeats
    return flatten(emit("tile", wide, repeats=tuple(times)), at, at + 1)


@public
def flip(x: Any, axis: int | Sequence[int] | None = None) -> Tensor:
    """x in reverse order along axes."""
    tensor = as_tensor(x)
    turned = axes_of(axis, tensor.ndim)
    return tensor[tuple(slice(None, None, -1 if i in turned else 1) for i in range(tensor.ndim))]


@public
def roll(x: Any, shift: int, axis: int) -> Tensor:
    """x shifted along an axis; what falls off comes in at the other end."""
    tensor = as_tensor(x)
    (at,) = axes_of(axis, tensor.ndim)
    by = shift % tensor.shape[at]
    lead = (slice(None),) * at
    return concat([tensor[(*lead, slice(-by, None))], tensor[(*lead, slice(None, -by))]], at) if by else tensor


def _triangle(x: Any, k: int, upper: bool) -> Tensor:
    return emit("trilu", as_tensor(x), k=k, upper=upper)


@public
def tril(x: Any, k: int = 0) -> Tensor:
    """The lower triangle of the last two axes, 0 above diagonal k."""
    return _triangle(x, k, False)


@public
def triu(x: Any, k: int = 0) -> Tensor:
    """The upper triangle of the last two axes, 0 below diagonal k."""
    return _triangle(x, k, True)


# -- new tensors ---------------------------------------------------------------------------------------------------


@public
def constant(x: Any, dtype: Any = None) -> Tensor:
    """An array, number or nested list as a tensor."""
    return as_tensor(x, None if dtype is None else dtype_name(dtype))


@public
def full(shape: Any, value: Any, dtype: Any = "float32") -> Tensor:
    """A tensor of one value; the shape may hold named dimensions."""
    return emit("expand", as_tensor(value, dtype_name(dtype)), shape=sizes(shape))


def zeros(shape: Any, dtype: Any = "float32") -> Tensor:
    """A tensor of zeros; the shape may hold named dimensions."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = "float32") -> Tensor:
    """A tensor of ones; the shape may hold named dimensions."""
    return full(shape, 1, dtype)


@public
def zeros_like(x: Any) -> Tensor:
    """Zeros of the shape and element type of x."""
    tensor = as_tensor(x)
    return full(tensor.shape, 0, tensor.dtype)


@public
def ones_like(x: Any) -> Tensor:
    """Ones of the shape and element type of x."""
    tensor = as_tensor(x)
    return full(tensor.shape, 1, tensor.dtype)


@public
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """Evenly spaced numbers, as ``numpy.arange``; floats are float32."""
    array = np.arange(start, stop, step) if stop is not None else np.arange(0, start, step)
    return as_tensor(array if array.dtype != np.float64 else array.astype(np.float32), dtype and dtype_name(dtype))
