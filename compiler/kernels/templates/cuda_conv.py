"""Convolutions on a GPU as implicit matrix products: rows are output points of all images, columns output channels,
the depth is taps times input channels. No matrix of windows is written: each copy to shared memory finds its own
address, and taps that fall outside become zeros (or zero points) there.

The core is that of ``cuda_matmul``: tensor cores for float16, bfloat16, float32 (as TF32) and 8-bit integers, FMA for
float64 and where ``exact`` is asked for; parts of the depth by blocks of their own where there are few points. Constant
weights are packed in lines along the depth; others are brought into that order by a phase of their own, which is
repeated only when they change. Groups are products of their own. Source of the idea: Chetlur et al., "cuDNN: Efficient
Primitives for Deep Learning" (2014).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template, deferred
from ._cuda_conv_parts import Part, arguments, axes_of, common, joined, reachable
from ._cuda_cost import Load, nanoseconds
from ._cuda_mma import CHUNK, ITEM, Cut, Product, choose, sum_blocks
from ._cuda_sides import Side, packed, side_of
from ._tile import epilogue_work, fits
from .conv import Geometry

FLOATS = ("float32", "float16", "bfloat16", "float64")
PACK_THREADS = 256
SCRATCH_STEP = 256  # bytes


def plan(region: Region) -> list[Plan]:
    """One plan, for element types that the GPU multiplies."""
    if region.machine.gpu is None or not fits(region) or None in (region.operand(0), region.operand(1)):
        return []
    g = Geometry(region)
    if (g.group > 1 and g.depth == 1) or not reachable(region):
        return []
    part = implicit(region, g)
    return [] if part is None else [joined(region, "cuda_conv", [part])]


def implicit(region: Region, g: Geometry) -> Part | None:
    """The kernels of one geometry; None where it has no products or the GPU does not multiply such elements."""
    x, w, gpu = g.x.type.dtype, g.w.type.dtype, region.machine.gpu
    depth = reduction(g)
    if gpu is None or depth == 0 or not ((x in FLOATS and x == w) or (x in ("int8", "uint8") and w == "int8")):
        return None
    if min(g.x.strides) < 0 or region.anchor_type.dtype not in (*FLOATS, "int32"):
        return None
    a = window_side(g)
    lines, b = weight_side(region, g)
    cut = choose(gpu, sizes(region, g, a, b))
    if cut is None:
        return None
    zero = region.attrs.get("zero_point", 0)
    consts: tuple[np.ndarray, ...] = () if lines is None else (lines.reshape(-1),)
    if lines is not None and zero:
        consts = (*consts, corrections(g, zero))
    return assembled(region, g, cut, (a, b), consts, zero)


def reduction(g: Geometry) -> int:
    depth: int = g.depth * math.prod(g.kernel)
    return depth


def points(g: Geometry) -> int:
    """Output points of all images."""
    return g.batch * math.prod(g.out)


def linear(g: Geometry) -> int | None:
    """The distance of neighbouring points in x, where each point reads but one and all lie evenly."""
    if math.prod(g.kernel) != 1 or any(g.border(i) for i in range(3)):
        return None
    axes = [(g.batch, g.x.strides[0])]
    axes += [(n, s * step) for n, s, step in zip(g.out, g.step, g.strides, strict=True)]
    axes = [(n, s) for n, s in axes if n > 1]
    whole = all(axes[i][1] == axes[i + 1][0] * axes[i + 1][1] for i in range(len(axes) - 1))
    return (axes[-1][1] if axes else 0) if whole and not any(g.pads) else None


def window_side(g: Geometry) -> Side:
    """How windows are copied: along the channels if these are neighbours, else one by one, or along the points of a
    convolution that reads each point once."""
    row, channel = linear(g), g.x.strides[1]
    if row is not None:
        return side_of(g.x, points(g), row, g.depth, channel, [g.depth * channel]) | {"linear": row}
    item = g.x.type.itemsize
    found: Side = {"dtype": g.x.type.dtype, "linear": None}
    steps = [s * n for s, n in zip(g.step, g.strides, strict=True)]
    for nbytes in (CHUNK, 4):
        width = nbytes // item
        aligned = width > 0 and g.x.aligned % nbytes == 0
        if aligned and channel == 1 and all(s % width == 0 for s in (g.depth, g.x.strides[0], *g.step)):
            return found | {"width": width, "copy": nbytes, "layout": "k", "walk": "k"}
    walk = "k" if not g.planes and abs(channel) <= abs(steps[2]) else "row"
    if item == 4:
        return found | {"width": 1, "copy": 4, "layout": walk, "walk": walk}
    # a thread's many small copies are all of one point: what is known of it takes few registers
    return found | {"width": 1, "copy": 0, "layout": "k", "walk": "row"}


def weight_side(region: Region, g: Geometry) -> tuple[np.ndarray | None, Side]:
    """Packed lines (None where they are packed at run time), and how they are copied."""
    if g.w.const is not None:
        return packed(g.reduction_major(g.w.const), g.w.type.dtype == "float32" and region.fast)
    item, depth = g.w.type.itemsize, reduction(g)
    unit = max(1, CHUNK // item)
    row = -(-depth // unit) * unit
    copied = {"width": unit, "copy": CHUNK, "layout": "k", "walk": "k"}
    return None, {"dtype": g.w.type.dtype, "row": row, "step": 1, "rounded": False, **copied}


def sizes(region: Region, g: Geometry, a: Side, b: Side) -> Product:
    """The product as the choice of a tile sees it."""
    return Product(
        rows=points(g),
        columns=g.columns,
        depth=reduction(g),
        batch=g.group,
        dtype=g.x.type.dtype,
        exact=region.exact,
        fast=region.fast,
        a_bytes=g.x.type.nbytes,
        b_bytes=g.w.type.nbytes,
        out_bytes=sum(o.type.nbytes for o in region.outputs),
        a_layout=a["layout"],
        b_layout=b["layout"],
        a_copy=a["copy"],
        b_copy=b["copy"],
        epilogue=epilogue_work(region),
    )


def corrections(g: Geometry, zero: int) -> np.ndarray:
    """int32 ``[channel]``: what x's zero point adds to the sums of each channel. Taps outside read the zero point."""
    assert g.w.const is not None
    matrix = g.reduction_major(g.w.const).astype(np.int64)
    return np.asarray(-zero * matrix.sum(axis=1)).astype(np.int32).reshape(-1)


def assembled(
    region: Region, g: Geometry, cut: Cut, sides: tuple[Side, Side], consts: tuple[np.ndarray, ...], zero: int
) -> Part:
    """The phases: weights brought into order where they are not constant, products, and the sum of parts."""
    tile, rows = cut.tile, points(g)
    config = described(region, g, cut, sides, consts, zero)
    drafts: list[Draft] = []
    scratch, cost = 0, cut.cost
    if consts:
        weights = Arg("const", 0)
    else:
        drafts.append(pack(region, g, sides[1]))
        weights = Arg("shared", 0)
        scratch = -(-drafts[0].prepares // SCRATCH_STEP) * SCRATCH_STEP
        cost += nanoseconds(region.machine.gpu, Load(drafts[0].tasks or 1, PACK_THREADS, far=2.0 * g.w.type.nbytes))  # type: ignore[arg-type]
    operands = [Arg("in", region.operand(0) or 0), weights]
    tail = [Arg("const", 1)] if len(consts) > 1 else []
    if cut.parts == 1:
        drafts.append(Draft(KernelSpec("cuda_conv", config), arguments(region, [*operands, *tail]), config["blocks"]))
    else:
        sums = Arg("shared", 0, scratch)
        scratch += cut.parts * g.group * rows * g.columns * tile.out_item
        partial = {n: v for n, v in config.items() if n not in _OF_SUMS}
        drafts.append(Draft(KernelSpec("cuda_conv.parts", partial), (*operands, sums), config["blocks"]))
        last = {n: v for n, v in config.items() if n not in _OF_PRODUCTS} | {"dtype": tile.sums}
        blocks = sum_blocks(g.group, rows, g.columns)
        drafts.append(Draft(KernelSpec("cuda_conv.sum", last), arguments(region, [sums, *tail]), blocks))
    detail = f"implicit product, {tile.describe()}{f', {cut.parts} parts' if cut.parts > 1 else ''}"
    return Part(tuple(drafts), consts, scratch, cost, detail)


_OF_SUMS = ("program", "reads", "bias", "fixes", "down", "type")
_OF_PRODUCTS = ("tile", "a", "b", "grid", "blocks", "zero")


def described(
    region: Region, g: Geometry, cut: Cut, sides: tuple[Side, Side], consts: tuple[np.ndarray, ...], zero: int
) -> dict[str, Any]:
    """What the emitters read."""
    tile, (a, b) = cut.tile, sides
    across, down = -(-g.columns // tile.columns), -(-points(g) // tile.rows)
    out = region.outputs[0].strides
    return {
        **common(region),
        "tile": tile.data(),
        "a": a | {"span": g.x.span, "batch": g.x.strides[0], "channel": g.x.strides[1]},
        "b": b | {"span": consts[0].size if consts else g.group * g.columns * b["row"]},
        "axes": axes_of(g),
        "order": "czyx" if g.planes else "zyxc",
        "batch": g.batch,
        "group": g.group,
        "channels": g.depth,
        "columns": g.columns,
        "parts": cut.parts,
        "grid": [down, across],
        "blocks": down * across * g.group * cut.parts,
        "fixes": consts[1].size if len(consts) > 1 else 0,
        "zero": zero,
        "by_lines": bool(zero) and not consts,
        "down": out[1] != 1 and out[-1] == 1,
    }


def pack(region: Region, g: Geometry, side: Side) -> Draft:
    """The phase that brings weights into lines ``[group][channel][reduction]``, padded with zeros."""
    base, axes = g.weight_rows()
    outer, column = g.weight_columns()
    count = g.group * g.columns * side["row"]
    config = {
        "type": g.w.type.dtype,
        "span": g.w.span,
        "base": base,
        "axes": axes,
        "line": side["row"],
        "group": outer[1],
        "column": column,
        "extents": [g.group, g.columns],
        "blocks": -(-count // PACK_THREADS),
        "threads": PACK_THREADS,
    }
    args = (Arg("in", region.operand(1) or 0), Arg("shared", 0))
    nbytes = count * ITEM[g.w.type.dtype]
    return Draft(KernelSpec("cuda_conv.pack", config), args, config["blocks"], prepares=nbytes)


EMITTERS = {
    "cuda_conv": deferred("_cuda_conv_emit"),
    "cuda_conv.parts": deferred("_cuda_conv_emit", "emit_parts"),
    "cuda_conv.sum": deferred("_cuda_conv_emit", "emit_sum"),
    "cuda_conv.pack": deferred("_cuda_conv_emit", "emit_pack"),
}
TEMPLATE = Template("cuda_conv", ("conv", "conv_integer"), plan, EMITTERS, device=True)
