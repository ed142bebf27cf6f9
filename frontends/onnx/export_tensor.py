"""Movement, coordinates and image operators, written as ONNX."""

from __future__ import annotations

import math

import numpy as np

from .export_math import Rule
from .exporter import Call, Writer

RULES: dict[str, Rule] = {}
_TO_START = -(1 << 62)  # the stop of a slice that walks down to the first element


def _reshape(w: Writer, n: Call) -> None:
    shape = n.out_types[0].dims
    w.emit("Reshape", [n.inputs[0], w.const(shape)], n.outs, allowzero=1 if 0 in shape else None)


def _slice(w: Writer, n: Call) -> None:
    bounds = zip(n.attrs["starts"], n.attrs["stops"], n.attrs["steps"], n.type().dims, strict=True)
    rows = [(axis, *b[:3]) for axis, b in enumerate(bounds) if b[:3] != (0, b[3], 1)]
    if not rows:
        w.emit("Identity", n.inputs, n.outs)
        return
    axes, starts, stops, steps = zip(*rows, strict=True)
    ends = [_TO_START if e < 0 else e for e in stops]
    w.emit("Slice", [n.inputs[0], w.const(starts), w.const(ends), w.const(axes), w.const(steps)], n.outs)


def _expand(w: Writer, n: Call) -> None:
    w.emit("Expand", [n.inputs[0], w.const(n.out_types[0].dims)], n.outs)


def _concat(w: Writer, n: Call) -> None:
    w.emit("Concat", n.inputs, n.outs, axis=n.attrs["axis"])


def _pad(w: Writer, n: Call) -> None:
    if n.attrs["mode"] == "reflect" and any(p >= d for p, d in zip(n.attrs["pads"], n.type().dims * 2, strict=True)):
        _reflect(w, n)
        return
    value = w.const(n.attrs["value"], n.type().dtype) if n.attrs["mode"] == "constant" else ""
    w.emit("Pad", [n.inputs[0], w.const(n.attrs["pads"]), value], n.outs, mode=n.attrs["mode"])


def _reflect(w: Writer, n: Call) -> None:
    """Reflections that go to and fro more than once: each axis gathered at its places."""
    x, rank = n.inputs[0], n.type().rank
    for axis, size in enumerate(n.type().dims):
        around = (n.attrs["pads"][axis], n.attrs["pads"][rank + axis])
        if any(around):
            x = w.emit("Gather", [x, w.const(np.pad(np.arange(size), around, mode="reflect"))], axis=axis)
    w.emit("Identity", [x], n.outs)


def _transpose(w: Writer, n: Call) -> None:
    if n.attrs["perm"]:
        w.emit("Transpose", n.inputs, n.outs, perm=n.attrs["perm"])
    else:
        w.emit("Identity", n.inputs, n.outs)


def _tile(w: Writer, n: Call) -> None:
    w.emit("Tile", [n.inputs[0], w.const(n.attrs["repeats"])], n.outs)


def _iota(w: Writer, n: Call) -> None:
    """The coordinate along one axis: a Range, broadcast."""
    t, axis = n.out_types[0], n.attrs["axis"]
    if t.rank == 0:
        w.emit("Identity", [w.const(0, t.dtype)], n.outs)
        return
    line = w.emit("Range", [w.const(0), w.const(t.dims[axis]), w.const(1)])
    line = w.emit("Reshape", [line, w.const([-1 if a == axis % t.rank else 1 for a in range(t.rank)])])
    if 0 in t.dims:
        w.emit("Cast", [w.emit("Expand", [w.const([0]), w.const(t.dims)])], n.outs, to=_code(t.dtype))
        return
    w.cast(w.emit("Expand", [line, w.const(t.dims)]), t.dtype, n.outs)


def _code(dtype: str) -> int:
    from .exporter import CODES

    return CODES[dtype]


def _trilu(w: Writer, n: Call) -> None:
    w.emit("Trilu", [n.inputs[0], w.const(n.attrs["k"])], n.outs, upper=int(n.attrs["upper"]))


def _resize(w: Writer, n: Call) -> None:
    """By scales where they give the wanted shape, else by sizes."""
    x, shape, scales = n.type().dims, n.out_types[0].dims, n.attrs["scales"]
    by_scale = scales is not None and all(math.floor(d * s) == o for d, s, o in zip(x, scales, shape, strict=True))
    roi = "" if n.attrs["roi"] is None else w.const(n.attrs["roi"], "float32")
    size = [w.const(scales, "float32"), ""] if by_scale else ["", w.const(shape)]
    w.emit(
        "Resize",
        [n.inputs[0], roi, *size],
        n.outs,
        mode=n.attrs["mode"],
        coordinate_transformation_mode=n.attrs["coordinate"],
        nearest_mode=n.attrs["nearest"],
        cubic_coeff_a=float(n.attrs["cubic_a"]),
        exclude_outside=int(n.attrs["exclude_outside"]),
        extrapolation_value=float(n.attrs["extrapolation"]),
        antialias=int(n.attrs["antialias"]) or None,
    )


def _grid_sample(w: Writer, n: Call) -> None:
    corners = int(n.attrs["align_corners"])
    w.emit("GridSample", n.inputs, n.outs, mode=n.attrs["mode"], padding_mode=n.attrs["padding"], align_corners=corners)


def _roi_align(w: Writer, n: Call) -> None:
    attrs = {k: v for k, v in n.attrs.items() if k != "coordinate"}
    w.emit("RoiAlign", n.inputs, n.outs, coordinate_transformation_mode=n.attrs["coordinate"], **attrs)


RULES.update(
    reshape=_reshape,
    slice=_slice,
    expand=_expand,
    concat=_concat,
    pad=_pad,
    tile=_tile,
    iota=_iota,
    trilu=_trilu,
    transpose=_transpose,
    resize=_resize,
    grid_sample=_grid_sample,
    roi_align=_roi_align,
)
