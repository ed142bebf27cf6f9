"""Convolutions: forward, transposed, and with respect to their weights. References accumulate in float64 (integers in
64 bits, so they wrap like the narrow type)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import Dim, TensorType
from .channels import CONV, CONV_TRANSPOSE
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import quiet, widen
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import (
    FLOATS,
    NUMBERS,
    count,
    known,
    optional,
    require_dtype,
    require_rank,
    require_same_dtype,
    require_shape,
    require_window,
    transposed_extent,
    window_extent,
)
from .windows import gather_columns, output_extents, pad_spatial, spatial_rank, taps

COLUMN_BYTES = 1 << 25  # of gathered windows held at a time by the reference of conv

# -- convolution -------------------------------------------------------------------------------------------------


def _conv_operands(call: Call, transposed: bool) -> tuple[TensorType, TensorType, int]:
    """Checks x, w, b and group; gives x, w and the number of output channels."""
    x, w, bias = call.type(0), call.type(1), optional(call, 2)
    require_dtype(x, NUMBERS, "x")
    require_same_dtype(x, w, ("x", "w"))
    outputs = _conv_channels(call, x, w, transposed)
    if bias is not None:
        require_same_dtype(x, bias, ("x", "b"))
        require_shape(bias, (outputs,), "b")
    return x, w, outputs


def _conv_channels(call: Call, x: TensorType, w: TensorType, transposed: bool) -> int:
    """The number of output channels; checks w and group against x."""
    group = call.attrs["group"]
    require_rank(w, x.rank, x.rank, "w")
    channels = known(x.shape[1], "channels")
    wide = [known(d, "w") for d in w.shape]
    if group < 1 or channels % group or (not transposed and wide[0] % group):
        raise OpError(f"group: expected a divisor of the channels; got {group} for x {x} and w {w}")
    expected = channels if transposed else channels // group
    if wide[0 if transposed else 1] != expected:
        raise OpError(f"w: expected {expected} input channels (group {group}); got {w} for x {x}")
    return wide[1] * group if transposed else wide[0]


def _conv_infer(call: Call) -> Sequence[TensorType]:
    spatial_rank(call.type(0), call.attrs, ("strides", "dilations"))
    x, w, outputs = _conv_operands(call, transposed=False)
    return (x.with_shape(_conv_shape(call, x, w, outputs)),)


def conv_output(call: Call, x: TensorType, w: TensorType) -> tuple[Dim, ...]:
    """The shape of a convolution's result, window and channels checked; element types and bias are the caller's."""
    spatial_rank(x, call.attrs, ("strides", "dilations"))
    return _conv_shape(call, x, w, _conv_channels(call, x, w, transposed=False))


def _conv_shape(call: Call, x: TensorType, w: TensorType, outputs: int) -> tuple[Dim, ...]:
    extents = [known(d, "spatial axis") for d in x.shape[2:]]
    attrs = call.attrs
    found = output_extents(extents, w.dims[2:], attrs["strides"], attrs["pads"], attrs["dilations"])
    return (x.shape[0], outputs, *found)


def _add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    return y if bias is None else y + widen(bias).reshape(-1, *[1] * (y.ndim - 2))


def _conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> np.ndarray:
    y = conv_columns(widen(x), widen(w), strides=strides, pads=pads, dilations=dilations, group=group)
    return _add_bias(y, b).astype(x.dtype)


def conv_columns(
    x: np.ndarray,
    w: np.ndarray,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> np.ndarray:
    """The convolution in the element type of its operands, some windows at a time."""
    kernel = w.shape[2:]
    outputs = output_extents(x.shape[2:], kernel, strides, pads, dilations)
    padded = pad_spatial(x, pads, 0)
    weights = w.reshape(group, w.shape[0] // group, -1)
    y = np.empty((x.shape[0], w.shape[0], *outputs), padded.dtype)
    row = x.shape[0] * math.prod((*x.shape[1:2], *kernel, *outputs[1:])) * padded.itemsize
    block = max(1, COLUMN_BYTES // max(1, row))
    for start in range(0, outputs[0], block):
        part = (min(block, outputs[0] - start), *outputs[1:])
        columns = gather_columns(padded, start * strides[0], group, kernel, part, strides, dilations)
        y[:, :, start : start + part[0]] = np.matmul(weights, columns).reshape(*y.shape[:2], *part)
    return y


def _conv_cost(call: Call) -> Cost:
    (y,) = _conv_infer(call)
    return Cost(2.0 * count(y.shape) * count(call.type(1).shape[1:]))


def _conv_case(x: Sequence[int], w: Sequence[int], bias: bool = True, dtype: str = "float32", **given: Any) -> Case:
    """A convolution with stride 1 and without padding, dilation and groups, unless given."""
    rank = len(x) - 2
    attrs = {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1, **given}
    return Case((t(dtype, *x), t(dtype, *w), *([t(dtype, w[0])] if bias else [])), attrs)


def _conv_cases() -> Iterable[Case]:
    yield _conv_case((1, 8, 7, 7), (16, 8, 1, 1))
    yield _conv_case((1, 3, 12, 13), (8, 3, 3, 3), pads=(1, 1, 1, 1))
    yield _conv_case((2, 4, 9, 9), (5, 4, 3, 3), bias=False)
    yield _conv_case((1, 3, 17, 15), (6, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3))
    yield _conv_case((1, 4, 11, 10), (6, 4, 3, 2), strides=(2, 1), pads=(0, 1, 2, 0))
    yield _conv_case((1, 4, 14, 14), (4, 4, 3, 3), dilations=(2, 3), pads=(2, 3, 2, 3))
    yield _conv_case((1, 8, 10, 10), (8, 1, 3, 3), group=8, pads=(1, 1, 1, 1))
    yield _conv_case((1, 8, 11, 11), (8, 1, 5, 5), group=8, strides=(2, 2), pads=(2, 2, 2, 2))
    yield _conv_case((1, 4, 9, 9), (12, 1, 3, 3), group=4, bias=False)
    yield _conv_case((2, 8, 6, 6), (12, 4, 3, 3), group=2, pads=(1, 1, 1, 1))
    yield _conv_case((1, 6, 8, 8), (4, 6, 1, 1), strides=(2, 2))
    yield _conv_case((2, 3, 20), (5, 3, 4), strides=(3,), pads=(1, 2))
    yield _conv_case((1, 6, 30), (6, 1, 7), group=6, dilations=(2,), pads=(6, 6))
    yield _conv_case((1, 2, 5, 6, 7), (3, 2, 3, 3, 3), pads=(1, 1, 1, 1, 1, 1))
    yield _conv_case((1, 4, 6, 6, 6), (4, 2, 2, 3, 1), group=2, strides=(2, 1, 2))
    yield _conv_case((1, 3, 6, 6), (4, 3, 3, 3), dtype="float64")
    yield _conv_case((1, 3, 6, 6), (4, 3, 3, 3), dtype="int32")


# -- transposed convolution --------------------------------------------------------------------------------------


def _conv_transpose_infer(call: Call) -> Sequence[TensorType]:
    attrs = call.attrs
    rank = spatial_rank(call.type(0), attrs, ("strides", "dilations"))
    require_window([("output_padding", attrs["output_padding"], rank)], minimum=0)
    x, w, outputs = _conv_operands(call, transposed=True)
    pads = attrs["pads"]
    found = [
        transposed_extent(
            known(x.shape[2 + i], "spatial axis"),
            w.dims[2 + i],
            attrs["strides"][i],
            attrs["dilations"][i],
            pads[i],
            pads[rank + i],
            attrs["output_padding"][i],
        )
        for i in range(rank)
    ]
    return (x.with_shape((x.shape[0], outputs, *found)),)


def _conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    output_padding: Sequence[int],
) -> np.ndarray:
    batch, channels, *extents = x.shape
    outputs, kernel = w.shape[1] * group, w.shape[2:]
    full = [
        transposed_extent(e, k, s, d, 0, 0, o)
        for e, k, s, d, o in zip(extents, kernel, strides, dilations, output_padding, strict=True)
    ]
    wide = widen(x).reshape(batch, group, channels // group, -1)
    weights = np.swapaxes(widen(w).reshape(group, channels // group, -1), 1, 2)
    spread = np.matmul(weights, wide).reshape(batch, outputs, math.prod(kernel), *extents)
    y = np.zeros((batch, outputs, *full), wide.dtype)
    for i, (_, cut) in enumerate(taps(kernel, extents, strides, dilations)):
        y[cut] += spread[:, :, i]
    kept: list[Any] = [
        slice(begin, n - end) for begin, end, n in zip(pads[: len(full)], pads[len(full) :], full, strict=True)
    ]
    return _add_bias(y[(Ellipsis, *kept)], b).astype(x.dtype)


def _conv_transpose_cost(call: Call) -> Cost:
    return Cost(2.0 * count(call.type(0).shape) * count(call.type(1).shape[1:]))


def _conv_transpose_case(x: Sequence[int], w: Sequence[int], bias: bool = True, **given: Any) -> Case:
    """A transposed convolution with stride 1 and without padding, dilation and groups, unless given."""
    rank = len(x) - 2
    attrs = {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1}
    attrs |= {"output_padding": (0,) * rank, **given}
    return Case((f32(*x), f32(*w), *([f32(w[1] * int(attrs["group"]))] if bias else [])), attrs)  # type: ignore[call-overload]


def _conv_transpose_cases() -> Iterable[Case]:
    yield _conv_transpose_case((1, 4, 5, 6), (4, 3, 3, 3))
    yield _conv_transpose_case((1, 8, 6, 6), (8, 4, 2, 2), strides=(2, 2))
    yield _conv_transpose_case((2, 4, 5, 5), (4, 6, 4, 4), strides=(2, 2), pads=(1, 1, 1, 1), bias=False)
    yield _conv_transpose_case((1, 4, 5, 5), (4, 3, 3, 3), strides=(2, 3), pads=(1, 0, 0, 1), output_padding=(1, 2))
    yield _conv_transpose_case((1, 4, 5, 5), (4, 2, 3, 3), dilations=(2, 2), pads=(1, 1, 1, 1))
    yield _conv_transpose_case((1, 6, 4, 4), (6, 2, 3, 3), group=3, strides=(2, 2))
    yield _conv_transpose_case((1, 5, 7, 7), (5, 1, 3, 3), group=5, pads=(1, 1, 1, 1))
    yield _conv_transpose_case((2, 3, 9), (3, 4, 4), strides=(2,), pads=(1, 1))
    yield _conv_transpose_case((1, 2, 3, 4, 3), (2, 3, 2, 3, 3), strides=(2, 1, 2))


# -- the weights' gradient of a convolution ----------------------------------------------------------------------


def _conv_grad_weight_infer(call: Call) -> Sequence[TensorType]:
    x, g, attrs = call.type(0), call.type(1), call.attrs
    spatial_rank(x, attrs, ("kernel_shape", "strides", "dilations"))
    require_dtype(x, FLOATS, "x")
    require_same_dtype(x, g, ("x", "g"))
    require_rank(g, x.rank, x.rank, "g")
    channels, outputs, group = known(x.shape[1], "channels"), known(g.shape[1], "g"), attrs["group"]
    if group < 1 or channels % group or outputs % group:
        raise OpError(f"group: expected a divisor of the channels; got {group} for x {x} and g {g}")
    extents = [known(d, "spatial axis") for d in x.shape[2:]]
    kernel = tuple(attrs["kernel_shape"])
    found = output_extents(extents, kernel, attrs["strides"], attrs["pads"], attrs["dilations"])
    require_shape(g, (x.shape[0], outputs, *found), "g")
    return (x.with_shape((outputs, channels // group, *kernel)),)


def _conv_grad_weight(
    x: np.ndarray,
    g: np.ndarray,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> np.ndarray:
    batch, channels = x.shape[:2]
    padded = pad_spatial(widen(x), pads, 0).reshape(batch, group, channels // group, *_padded_extents(x, pads))
    wide = widen(g).reshape(batch, group, g.shape[1] // group, -1)
    w = np.empty((group, g.shape[1] // group, channels // group, *kernel_shape))
    for at, cut in taps(kernel_shape, g.shape[2:], strides, dilations):
        met = padded[cut].reshape(*padded.shape[:3], -1)
        place: tuple[Any, ...] = (Ellipsis, *at)
        w[place] = np.matmul(wide, np.swapaxes(met, 2, 3)).sum(0)
    return w.reshape(g.shape[1], channels // group, *kernel_shape).astype(x.dtype)


def _padded_extents(x: np.ndarray, pads: Sequence[int]) -> list[int]:
    rank = x.ndim - 2
    return [n + begin + end for n, begin, end in zip(x.shape[2:], pads[:rank], pads[rank:], strict=True)]


def _conv_grad_weight_cost(call: Call) -> Cost:
    (w,) = _conv_grad_weight_infer(call)
    return Cost(2.0 * count(call.type(1).shape) * count(w.shape[1:]))


def _conv_grad_weight_cases() -> Iterable[Case]:
    for case in _conv_cases():
        x, w = case.inputs[:2]
        assert isinstance(x, TensorType) and isinstance(w, TensorType)
        if x.dtype in FLOATS:
            (g,) = _conv_infer(Call((x, w), case.attrs))
            yield Case((x, g), {"kernel_shape": w.dims[2:], **case.attrs})
    yield Case(
        (f32(4, 16, 6, 6), f32(4, 32, 3, 3)),
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1},
    )


# -- gradients ---------------------------------------------------------------------------------------------------

_WINDOW = ("strides", "pads", "dilations", "group")


def _window(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attrs[name] for name in _WINDOW}


def _bias_gradient(g: Sym) -> Sym:
    return g.sum((0, *range(2, g.rank)))


def _spread_back(g: Sym, w: Sym, extents: Sequence[int], attrs: Mapping[str, Any]) -> Sym:
    """The gradient of a conv's x, whose spatial extents are given: g spread by the same weights."""
    spans = [window_extent(k, d) for k, d in zip(w.shape[2:], attrs["dilations"], strict=True)]
    rank = len(spans)
    reach = [e + begin + end for e, begin, end in zip(extents, attrs["pads"][:rank], attrs["pads"][rank:], strict=True)]
    rows = zip(reach, g.shape[2:], attrs["strides"], spans, strict=True)
    rest = tuple(r - (n - 1) * stride - span for r, n, stride, span in rows)
    return g.op("conv_transpose", w, **_window(attrs), output_padding=rest)


def _conv_gradient(c: Grad) -> list[Sym]:
    x, w = c.x, c.input(1)
    to_w = x.op("conv_grad_weight", c.g, kernel_shape=w.shape[2:], **_window(c.attrs))
    return [_spread_back(c.g, w, x.shape[2:], c.attrs), to_w, _bias_gradient(c.g)]


def _conv_grad_weight_gradient(c: Grad) -> list[Sym]:
    x, g = c.x, c.input(1)
    return [_spread_back(g, c.g, x.shape[2:], c.attrs), x.op("conv", c.g, **_window(c.attrs))]


def _without_overhang(c: Grad) -> tuple[Sym, dict[str, Any]]:
    """The output's gradient and the window of the convolution back to x. Output padding of a whole stride or more makes
    rows that a convolution would count as further positions: they leave the end padding, then the gradient."""
    g, window, rank = c.g, _window(c.attrs), c.g.rank - 2
    pads, stops = list(c.attrs["pads"]), list(g.shape)
    for axis, (extra, stride) in enumerate(zip(c.attrs["output_padding"], c.attrs["strides"], strict=True)):
        surplus = extra // stride * stride
        padding = min(surplus, pads[rank + axis])
        pads[rank + axis] -= padding
        stops[2 + axis] -= surplus - padding
    if tuple(stops) != g.shape:
        g = g.op("slice", starts=(0,) * g.rank, stops=tuple(stops), steps=(1,) * g.rank)
    return g, {**window, "pads": tuple(pads)}


def _conv_transpose_gradient(c: Grad) -> list[Sym]:
    x, w = c.x, c.input(1)
    g, window = _without_overhang(c)
    to_w = g.op("conv_grad_weight", x, kernel_shape=w.shape[2:], **window)
    return [g.op("conv", w, **window), to_w, _bias_gradient(c.g)]


_CONV = {"strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED, "group": 1}

OPS = (
    Op(
        "conv",
        Kind.CONTRACTION,
        _conv_infer,
        quiet(_conv),
        "Cross-correlation of x [N,C,spatial] with w [O,C/group,kernel], 1-D to 3-D; pads: begins, ends (ONNX Conv).",
        inputs=("x", "w", "b?"),
        attrs=_CONV,
        cost=_conv_cost,
        cases=_conv_cases,
        gradient=_conv_gradient,
        channels=CONV,
    ),
    Op(
        "conv_transpose",
        Kind.CONTRACTION,
        _conv_transpose_infer,
        quiet(_conv_transpose),
        "The transpose of conv: x [N,C,spatial] spread by w [C,O/group,kernel] (ONNX ConvTranspose).",
        inputs=("x", "w", "b?"),
        attrs={**_CONV, "output_padding": REQUIRED},
        cost=_conv_transpose_cost,
        cases=_conv_transpose_cases,
        gradient=_conv_transpose_gradient,
        channels=CONV_TRANSPOSE,
    ),
    Op(
        "conv_grad_weight",
        Kind.CONTRACTION,
        _conv_grad_weight_infer,
        quiet(_conv_grad_weight),
        "The gradient of conv's w [O,C/group,kernel] from its x [N,C,spatial] and its output's gradient g [N,O,out].",
        inputs=("x", "g"),
        attrs={"kernel_shape": REQUIRED, **_CONV},
        cost=_conv_grad_weight_cost,
        cases=_conv_grad_weight_cases,
        gradient=_conv_grad_weight_gradient,
    ),
)
