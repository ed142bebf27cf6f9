"""Indexing with numpy's semantics, and gathering."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ...compiler.ops.movement import normal_slice
from .elementwise import emit
from .promote import as_tensor
from .reduce import axes_of
from .shaping import broadcast_to, expand_dims, moveaxis, sizes, stack
from .tensor import Tensor, Weight
from .trace import fail, public

FULL = slice(None)


@public
def getitem(x: Any, key: Any) -> Tensor:
    """``x[key]``: integers, slices with steps, ``...``, ``None`` and integer arrays, as in numpy.

    Masks must be known arrays: how many elements a computed mask keeps is not known when a network is compiled.
    """
    tensor = as_tensor(x)
    items = _complete(tensor, _items(key))
    cut = _slice(tensor, [i for i in items if i is not None])
    arrays = [i for i, item in enumerate(items) if _is_array(item)]
    shape: list[Any] = []  # of the result of integers, slices and None; arrays still stand for their whole axis
    axes: list[int] = []  # where the arrays work on it
    sliced = iter(cut.shape)
    for item in items:
        size = 1 if item is None else next(sliced)
        if _is_array(item):
            axes.append(len(shape))
        if not isinstance(item, int):
            shape.append(size)
    if tuple(shape) != cut.shape:
        cut = emit("reshape", cut, shape=sizes(tuple(shape)))
    if not arrays:
        return cut
    advanced = [i for i, item in enumerate(items) if _is_array(item) or isinstance(item, int)]
    together = advanced == list(range(advanced[0], advanced[-1] + 1))
    before = sum(1 for item in items[: advanced[0]] if not isinstance(item, int))
    return _gather(cut, axes, [items[i] for i in arrays], before if together else 0)


def _items(key: Any) -> list[Any]:
    """The parts of a key: Python integers, slices, None, Ellipsis, integer arrays and tensors."""
    found: list[Any] = []
    for item in key if isinstance(key, tuple) else (key,):
        if item is None or item is Ellipsis or isinstance(item, slice):
            found.append(item)
        elif isinstance(item, Tensor | Weight):
            if item.dtype == "bool":
                raise fail(
                    "a computed mask cannot index a tensor",
                    why="how many elements it keeps is not known when the network is compiled",
                    hint="use nv.where(mask, x, 0)",
                )
            found.append(as_tensor(item))
        elif isinstance(item, list | np.ndarray):
            array = np.asarray(item) if np.size(item) else np.zeros(np.shape(item), np.int64)
            found.extend(np.nonzero(array) if array.dtype == bool else [array])
        else:
            try:
                found.append(operator.index(item))
            except TypeError:
                raise fail(f"an index must be an integer, a slice or an array of integers, got {item!r}") from None
    for item in found:
        if isinstance(item, np.ndarray) and item.dtype.kind not in "iu":
            raise fail(f"an index array must hold integers, got {item.dtype}")
    return found


def _is_array(item: Any) -> bool:
    return isinstance(item, Tensor | np.ndarray)


def _complete(x: Tensor, items: list[Any]) -> list[Any]:
    """The key with one item for each axis of ``x``: the ellipsis written out, negative integers counted from 0."""
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    given = sum(1 for item in items if item is not None and item is not Ellipsis)
    if len(dots) > 1:
        raise fail("an index can have one ellipsis (...) only")
    if given > x.ndim:
        raise fail(f"too many indices: expected at most {x.ndim} for {x.type}, got {given}")
    at = dots[0] if dots else len(items)
    whole = [*items[:at], *[FULL] * (x.ndim - given), *items[at + 1 :]]
    axis = 0
    for i, item in enumerate(whole):
        if item is None:
            continue
        size = x.shape[axis]
        if isinstance(size, str) and item != FULL:
            raise fail(
                f"axis {axis} ({size!r}) has no number yet and cannot be cut with {item!r}",
                hint=f"bind it when the network is compiled: dims={{{str(size)!r}: 1}}",
            )
        if isinstance(item, int):
            if not -size <= item < size:
                raise fail(f"index {item} is out of range for axis {axis} with size {size}")
            whole[i] = item % size
        elif isinstance(item, np.ndarray) and item.size and not -size <= item.min() <= item.max() < size:
            raise fail(f"an index array reaches from {item.min()} to {item.max()}, axis {axis} has size {size}")
        axis += 1
    return whole


def _slice(x: Tensor, items: list[Any]) -> Tensor:
    """``x`` cut by slices and integers (which leave an axis of size 1)."""
    if all(item == FULL for item in items if not _is_array(item)):
        return x
    starts: list[Any] = []
    stops: list[Any] = []
    steps: list[int] = []
    for size, item in zip(x.shape, items, strict=True):
        if isinstance(size, str) or _is_array(item):
            start, stop, step = 0, size, 1
        elif isinstance(item, int):
            start, stop, step = item, item + 1, 1
        else:
            start, stop, step = _bounds(item, size)
        starts.append(start)
        stops.append(str(stop) if isinstance(stop, str) else stop)
        steps.append(step)
    return emit("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def _bounds(item: slice, size: int) -> tuple[int, int, int]:
    try:
        start, stop, step = item.indices(size)
    except (TypeError, ValueError) as error:
        raise fail(f"slice {item!r}: {error}") from None
    normal = normal_slice((size,), (start,), (stop if stop >= 0 else -size - 1,), (step,))
    return normal["starts"][0], normal["stops"][0], normal["steps"][0]


def _gather(x: Tensor, axes: list[int], arrays: list[Any], place: int) -> Tensor:
    """Index arrays on several axes; the axes that they make together go to ``place``."""
    if len(arrays) == 1:
        index = as_tensor(arrays[0])
        result, first = emit("gather", x, _wide(index), axis=axes[0]), axes[0]
    else:
        try:
            shape = np.broadcast_shapes(*(a.shape for a in arrays))
        except ValueError:
            shapes = " and ".join(str(list(a.shape)) for a in arrays)
            raise fail(f"index arrays: expected shapes that broadcast together, got {shapes}") from None
        index = stack([broadcast_to(_wide(as_tensor(a)), shape) for a in arrays], -1)
        result, first = emit("gather_nd", moveaxis(x, axes, list(range(len(axes)))), index), 0
        index = index[..., 0]
    if first == place or not index.ndim:
        return result
    return moveaxis(result, list(range(first, first + index.ndim)), list(range(place, place + index.ndim)))


def _wide(index: Tensor) -> Tensor:
    return index if index.dtype in ("int32", "int64") else as_tensor(index, "int64")


def _indices(indices: Any) -> Tensor:
    tensor = as_tensor(indices)
    if not tensor.dtype.startswith(("int", "uint")):
        raise fail(f"indices must be integers, got {tensor.type}")
    return _wide(tensor)


@public
def take(x: Any, indices: Any, axis: int | None = None) -> Tensor:
    """The slices of x at indices along an axis (None: of the flat tensor), as ``numpy.take``."""
    tensor = as_tensor(x)
    if axis is None:
        tensor, axis = emit("reshape", tensor, shape=(-1,)), 0
    return emit("gather", tensor, _indices(indices), axis=axes_of(axis, tensor.ndim)[0])


@public
def take_along_axis(x: Any, indices: Any, axis: int) -> Tensor:
    """For each element of indices, the element of x there along an axis, as ``numpy.take_along_axis``."""
    tensor = as_tensor(x)
    return emit("gather_elements", tensor, _indices(indices), axis=axes_of(axis, tensor.ndim)[0])


@public
def put(x: Any, indices: Any, values: Any, axis: int = 0) -> Tensor:
    """x with the slices at indices along an axis replaced: the new tensor after ``x[indices] = values`` in numpy, the
    counterpart of ``take``. ``values`` broadcasts to the shape of ``take(x, indices, axis)``; of several for one place
    the last one stays. ``nv.assign(v, nv.put(v, i, row))`` writes a row of a variable."""
    tensor = as_tensor(x)
    (along,) = axes_of(axis, tensor.ndim)
    at, front = _indices(indices), moveaxis(tensor, along, 0)
    shape = (*tensor.shape[:along], *at.shape, *tensor.shape[along + 1 :])
    given = broadcast_to(as_tensor(values, tensor.dtype), shape)
    rows = moveaxis(given, list(range(along, along + at.ndim)), list(range(at.ndim)))
    return moveaxis(emit("scatter_nd", front, expand_dims(at, at.ndim), rows, reduction="none"), 0, along)


gather = take


@public
def one_hot(indices: Any, depth: int, dtype: Any = "float32", axis: int = -1) -> Tensor:
    """1 where the new axis of size ``depth`` equals the index, else 0."""
    from .promote import dtype_name

    values = as_tensor(np.array([0, 1]), dtype_name(dtype))
    return emit("one_hot", _indices(indices), values, depth=depth, axis=axis)


__all__ = ["expand_dims", "gather", "getitem", "one_hot", "put", "take", "take_along_axis"]
