"""Cutting, joining and rearranging tensors."""

from __future__ import annotations

from ...compiler.ir import Value
from ...compiler.ops.movement import normal_slice
from ...errors import NervureError
from .context import Context, OnnxNode, Unsupported
from .registry import Lowered, lowers


@lowers("Concat")
def concat(c: Context, n: OnnxNode) -> Lowered:
    parts = [n.input(i) for i in range(len(n.inputs))]
    return c.concat(parts, c.axis(n.attr("axis", 1), c.rank(parts[0])))


@lowers("Split")
def split(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    axis = c.axis(n.attr("axis", 0), c.rank(x))
    size, parts = c.shape(x)[axis], len(n.outputs)
    sizes = c.listed(n, "split", 1, "the sizes of a split")
    if sizes is None:
        chunk = -(-size // n.attr("num_outputs", parts))
        sizes = tuple(max(0, min(chunk, size - i * chunk)) for i in range(parts))
    if sum(sizes) != size or any(s < 0 for s in sizes):
        raise NervureError(f"a split of {size} into {list(sizes)}", where=n.path)
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [c.slice(x, axis, stop - s, stop) for stop, s in zip(stops, sizes, strict=True)]


@lowers("Slice")
def slice_(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (c.listed(n, name, 1 + i, f"{name} of a slice") for i, name in enumerate(names))
    if starts is None or ends is None:
        raise NervureError("a slice needs starts and ends", where=n.path)
    bounds = normal_slice(c.shape(x), starts, ends, steps, axes)
    whole = all(b == (0, d, 1) for b, d in zip(zip(*bounds.values(), strict=True), c.shape(x), strict=True))
    return x if whole else c.op("slice", x, **bounds)


@lowers("Pad")
def pad(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    rank, mode, value = c.rank(x), n.attr("mode", "constant"), n.attr("value", 0.0)
    if n.version < 11:
        pads = tuple(n.attr("pads", n.attr("paddings", ())))
    else:
        pads = c.ints(n.input(1), "the pads")
        given = n.optional(2)
        value = 0 if given is None else c.need(given, "the padding value").reshape(-1)[0].item()
        if n.optional(3) is not None:
            pads = _spread(c, pads, c.ints(n.optional(3), "the axes of a pad"), rank)
    if len(pads) != 2 * rank:
        raise NervureError(f"{len(pads)} pads for a tensor of rank {rank}", where=n.path)
    for axis in range(rank):  # negative pads cut
        low, high, size = min(pads[axis], 0), min(pads[rank + axis], 0), c.shape(x)[axis]
        if low or high:
            x = c.slice(x, axis, min(-low, size), max(size + high, 0))
    pads = tuple(max(p, 0) for p in pads)
    return c.op("pad", x, pads=pads, mode=mode, value=value) if any(pads) else x


def _spread(c: Context, pads: tuple[int, ...], axes: tuple[int, ...], rank: int) -> tuple[int, ...]:
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        at = c.axis(axis, rank)
        full[at], full[rank + at] = pads[i], pads[len(axes) + i]
    return tuple(full)


@lowers("Trilu")
def trilu(c: Context, n: OnnxNode) -> Lowered:
    k = 0 if n.optional(1) is None else c.ints(n.optional(1), "the diagonal")[0]
    return c.op("trilu", n.input(0), k=max(-(1 << 40), min(k, 1 << 40)), upper=bool(n.attr("upper", 1)))


@lowers("DepthToSpace")
def depth_to_space(c: Context, n: OnnxNode) -> Lowered:
    x, size = n.input(0), n.attr("blocksize")
    batch, depth, *spatial = c.shape(x)
    rank, rest = len(spatial), depth // size ** len(spatial)
    blocks = [size] * rank
    last = n.attr("mode", "DCR") == "DCR"
    inner = (batch, *blocks, rest, *spatial) if last else (batch, rest, *blocks, *spatial)
    first, channel = (1, rank + 1) if last else (2, 1)
    perm = [0, channel]
    for i in range(rank):
        perm += [rank + 2 + i, first + i]
    y = c.transpose(c.reshape(x, inner), perm)
    return c.reshape(y, (batch, rest, *(d * size for d in spatial)))


@lowers("SpaceToDepth")
def space_to_depth(c: Context, n: OnnxNode) -> Lowered:
    x, size = n.input(0), n.attr("blocksize")
    batch, depth, *spatial = c.shape(x)
    rank = len(spatial)
    inner = [batch, depth]
    for d in spatial:
        inner += [d // size, size]
    blocks, places = [3 + 2 * i for i in range(rank)], [2 + 2 * i for i in range(rank)]
    order = [0, *blocks, 1, *places] if n.attr("mode", "DCR") == "DCR" else [0, 1, *blocks, *places]
    y = c.transpose(c.reshape(x, inner), order)
    return c.reshape(y, (batch, depth * size**rank, *(d // size for d in spatial)))


@lowers("ReverseSequence")
def reverse_sequence(c: Context, n: OnnxNode) -> Lowered:
    """Rows reversed up to fixed lengths: a gather with fixed places."""
    import numpy as np

    x = n.input(0)
    lengths = c.ints(n.input(1), "the lengths of the sequences")
    batch, time = c.axis(n.attr("batch_axis", 1), c.rank(x)), c.axis(n.attr("time_axis", 0), c.rank(x))
    if {batch, time} != {0, 1}:
        raise Unsupported("its axes must be 0 and 1")
    steps = np.arange(c.shape(x)[time])
    rows = [np.where(steps < s, s - 1 - steps, steps) for s in lengths]
    at = np.array(rows, np.int64) if batch == 0 else np.array(rows, np.int64).T
    index = c.const(at.reshape(*at.shape, *[1] * (c.rank(x) - 2)))
    return c.op("gather_elements", x, c.expand(index, c.shape(x)), axis=time)


@lowers("CenterCropPad")
def center_crop_pad(c: Context, n: OnnxNode) -> Lowered:
    x: Value = n.input(0)
    rank = c.rank(x)
    wanted = c.ints(n.input(1), "the shape")
    axes = [c.axis(a, rank) for a in n.attr("axes", tuple(range(rank)))]
    pads = [0] * (2 * rank)
    for axis, size in zip(axes, wanted, strict=True):
        have = c.shape(x)[axis]
        if size < have:
            start = (have - size) // 2
            x = c.slice(x, axis, start, start + size)
        else:
            pads[axis] = (size - have) // 2
            pads[rank + axis] = size - have - pads[axis]
    return c.op("pad", x, pads=tuple(pads), mode="constant", value=0) if any(pads) else x
