"""Softmax and the normalisations over an axis, a set of axes, or groups of channels (float64 inside)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..types import TensorType
from .channels import ALONG, BATCH_NORM, GROUP_NORM, LAST_AXES
from .gradient import Call as Grad
from .gradient import Sym
from .numeric import quiet, widen
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import f32, t
from .shapes import (
    FLOATS,
    count,
    known,
    normalise_axis,
    optional,
    require_broadcast,
    require_dtype,
    require_rank,
    require_same_dtype,
    require_shape,
)


def _float_input(call: Call, rank: int = 1) -> TensorType:
    x = call.type(0)
    require_dtype(x, FLOATS, "x")
    require_rank(x, rank, None, "x")
    return x


def _cost(work: float) -> Callable[[Call], Cost]:
    return lambda call: Cost(work * count(call.type(0).shape))


# -- softmax -----------------------------------------------------------------------------------------------------


def _softmax_infer(call: Call) -> Sequence[TensorType]:
    x = _float_input(call)
    normalise_axis(call.attrs["axis"], x.rank)
    return (x,)


def softmax_wide(x: np.ndarray, axis: int) -> np.ndarray:
    """Softmax in float64; a row that is -inf everywhere gives NaN."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return softmax_wide(widen(x), axis).astype(x.dtype)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    shifted = widen(x) - np.max(widen(x), axis=axis, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))).astype(x.dtype)


def _softmax_gradient(c: Grad) -> list[Sym]:
    axes = (normalise_axis(c.attrs["axis"], c.x.rank),)
    return [c.y * (c.g - (c.g * c.y).sum(axes, keepdims=True))]


def _log_softmax_gradient(c: Grad) -> list[Sym]:
    axes = (normalise_axis(c.attrs["axis"], c.x.rank),)
    return [c.g - c.y.op("exp") * c.g.sum(axes, keepdims=True)]


def _softmax_cases() -> Iterable[Case]:
    for axis in (0, 1, 2, -1):
        yield Case((f32(3, 4, 5),), {"axis": axis}, low=-9, high=9)
    yield Case((f32(1, 1000),), {"axis": 1}, low=-9, high=9)
    yield Case((f32(2, 3, 7, 33),), {"axis": -1}, low=-50, high=90, note="large")
    yield Case((f32(1, 5, 3, 3),), {"axis": 1})
    yield Case((f32(11),), {"axis": 0})
    yield Case((t("float64", 3, 9),), {"axis": -1})


# -- layer and RMS norm ------------------------------------------------------------------------------------------


def _layer_infer(call: Call) -> Sequence[TensorType]:
    x = _float_input(call)
    axis = normalise_axis(call.attrs["axis"], x.rank)
    for index, name in ((1, "scale"), (2, "bias")):
        given = optional(call, index)
        if given is not None:
            require_same_dtype(x, given, ("x", name))
            require_broadcast(given, x.shape[axis:], name)
    return (x,)


def _scaled(y: np.ndarray, scale: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    y = y if scale is None else y * widen(scale)
    return y if bias is None else y + widen(bias)


def _standardised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    centred = x - np.mean(x, axis=axes, keepdims=True)
    return np.asarray(centred / np.sqrt(np.mean(centred**2, axis=axes, keepdims=True) + epsilon))


def _layer_norm(
    x: np.ndarray, scale: np.ndarray | None = None, bias: np.ndarray | None = None, *, axis: int, epsilon: float
) -> np.ndarray:
    axes = tuple(range(axis % x.ndim, x.ndim))
    return _scaled(_standardised(widen(x), axes, epsilon), scale, bias).astype(x.dtype)


def _rms_norm(x: np.ndarray, scale: np.ndarray | None = None, *, axis: int, epsilon: float) -> np.ndarray:
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = widen(x)
    return _scaled(wide / np.sqrt(np.mean(wide**2, axis=axes, keepdims=True) + epsilon), scale, None).astype(x.dtype)


def _standardised_gradient(x: Sym, g: Sym, axes: Sequence[int], epsilon: float) -> tuple[Sym, Sym]:
    """The gradient of x from that of x standardised, and x standardised. The statistics are computed again, which is
    cheaper than the forward pass in pieces."""
    centred = x - x.mean(axes, keepdims=True)
    inverse = ((centred * centred).mean(axes, keepdims=True) + epsilon).op("rsqrt")
    y = centred * inverse
    rest = g - g.mean(axes, keepdims=True) - y * (g * y).mean(axes, keepdims=True)
    return inverse * rest, y


def _layer_norm_gradient(c: Grad) -> list[Sym | None]:
    scale, bias = c.optional(1), c.optional(2)
    axes = range(normalise_axis(c.attrs["axis"], c.x.rank), c.x.rank)
    to_x, y = _standardised_gradient(c.x, c.g if scale is None else c.g * scale, tuple(axes), c.attrs["epsilon"])
    to_scale = None if scale is None else (c.g * y).sum_to(scale.shape)
    return [to_x, to_scale, None if bias is None else c.g.sum_to(bias.shape)]


def _rms_norm_gradient(c: Grad) -> list[Sym | None]:
    scale = c.optional(1)
    axes = tuple(range(normalise_axis(c.attrs["axis"], c.x.rank), c.x.rank))
    inverse = ((c.x * c.x).mean(axes, keepdims=True) + c.attrs["epsilon"]).op("rsqrt")
    y = c.x * inverse
    g = c.g if scale is None else c.g * scale
    to_x = inverse * (g - y * (g * y).mean(axes, keepdims=True))
    return [to_x, None if scale is None else (c.g * y).sum_to(scale.shape)]


def _layer_cases(bias: bool) -> Iterable[Case]:
    def case(x: tuple[int, ...], scale: tuple[int, ...] | None, axis: int, epsilon: float = 1e-5) -> Case:
        given = [] if scale is None else [f32(*scale)] * (2 if bias else 1)
        return Case((f32(*x), *given), {"axis": axis, "epsilon": epsilon})

    yield case((2, 7, 64), (64,), -1)
    yield case((2, 7, 33), (33,), 2, 1e-12)
    yield case((2, 3, 5), (3, 5), 1, 0.5)
    yield case((2, 3, 5), (2, 3, 5), 0)
    yield case((2, 3, 5), (5,), 1)
    yield case((4, 19), None, -1)
    yield case((4, 768), (768,), -1)
    if bias:
        yield Case((f32(4, 19), f32(19)), {"axis": -1, "epsilon": 1e-5}, note="no bias")
        yield Case((f32(4, 19), None, f32(19)), {"axis": -1, "epsilon": 1e-5}, note="no scale")


# -- batch norm --------------------------------------------------------------------------------------------------


def _batch_infer(call: Call) -> Sequence[TensorType]:
    x = _float_input(call, 2)
    for index, name in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "var")):
        require_same_dtype(x, call.type(index), ("x", name))
        require_shape(call.type(index), (x.shape[1],), name)
    return (x,)


def _by_channel(values: np.ndarray, rank: int) -> np.ndarray:
    return widen(values).reshape(-1, *[1] * (rank - 2))


def _batch_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray, *, epsilon: float
) -> np.ndarray:
    gain = _by_channel(scale, x.ndim) / np.sqrt(_by_channel(var, x.ndim) + epsilon)
    shifted = (widen(x) - _by_channel(mean, x.ndim)) * gain + _by_channel(bias, x.ndim)
    return np.asarray(shifted).astype(x.dtype)


def _batch_norm_gradient(c: Grad) -> list[Sym]:
    """All from two sums over the same tensors: of g, and of g times x less the mean."""
    scale, mean, var = c.input(1), c.input(3), c.input(4)
    axes, shape = (0, *range(2, c.x.rank)), (c.x.shape[1], *[1] * (c.x.rank - 2))
    inverse = (var + c.attrs["epsilon"]).op("rsqrt")
    gain = scale * inverse
    total = c.g.sum(axes)
    moment = (c.g * (c.x - mean.reshape(shape))).sum(axes)
    to_var = moment * gain * inverse * inverse * -0.5
    return [c.g * gain.reshape(shape), moment * inverse, total, -(total * gain), to_var]


def _batch_cases() -> Iterable[Case]:
    for shape, epsilon in (
        ((2, 3, 4, 5), 1e-5),
        ((1, 8, 6, 6), 1e-3),
        ((4, 7), 1e-5),
        ((2, 3, 9), 1e-5),
        ((1, 2, 3, 4, 5), 0.1),
    ):
        yield Case((f32(*shape), *[f32(shape[1])] * 4), {"epsilon": epsilon}, low=0.1, high=2.0)
    yield Case((t("float64", 2, 3, 4), *[t("float64", 3)] * 4), {"epsilon": 1e-5}, low=0.1, high=2.0)


# -- group norm --------------------------------------------------------------------------------------------------


def _group_infer(call: Call) -> Sequence[TensorType]:
    x = _float_input(call, 3)
    channels, groups = known(x.shape[1], "channels"), call.attrs["num_groups"]
    if groups < 1 or channels % groups:
        raise OpError(f"num_groups: expected a divisor of {channels} channels; got {groups}")
    for index, name in ((1, "scale"), (2, "bias")):
        given = optional(call, index)
        if given is not None:
            require_same_dtype(x, given, ("x", name))
            require_shape(given, (channels,), name)
    return (x,)


def _group_norm(
    x: np.ndarray,
    scale: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    num_groups: int,
    epsilon: float,
) -> np.ndarray:
    grouped = widen(x).reshape(x.shape[0], num_groups, -1)
    y = _standardised(grouped, (2,), epsilon).reshape(x.shape)
    y = y if scale is None else y * _by_channel(scale, x.ndim)
    return (y if bias is None else y + _by_channel(bias, x.ndim)).astype(x.dtype)


def _group_norm_gradient(c: Grad) -> list[Sym | None]:
    scale, bias = c.optional(1), c.optional(2)
    batch, channels, groups = *c.x.shape[:2], c.attrs["num_groups"]
    shape = (batch, groups, channels // groups, c.x.type.size // max(1, batch * channels))
    x, g = c.x.reshape(shape), c.g.reshape(shape)
    weighted = g if scale is None else g * scale.reshape((groups, channels // groups, 1))
    to_x, y = _standardised_gradient(x, weighted, (2, 3), c.attrs["epsilon"])
    to_scale = None if scale is None else (g * y).sum((0, 3)).reshape((channels,))
    return [to_x.reshape(c.x.shape), to_scale, None if bias is None else g.sum((0, 3)).reshape((channels,))]


def _group_cases() -> Iterable[Case]:
    for shape, groups in (((2, 6, 5, 5), 3), ((1, 8, 4, 4), 8), ((2, 4, 7), 1), ((1, 4, 3, 3, 3), 2)):
        yield Case((f32(*shape), f32(shape[1]), f32(shape[1])), {"num_groups": groups, "epsilon": 1e-5})
    yield Case((f32(2, 6, 5, 5),), {"num_groups": 2, "epsilon": 1e-3})
    yield Case((f32(2, 6, 5, 5), f32(6)), {"num_groups": 6, "epsilon": 1e-3})


OPS = (
    Op(
        "softmax",
        Kind.REDUCTION,
        _softmax_infer,
        quiet(_softmax),
        "exp(x) over its sum along the axis.",
        attrs={"axis": REQUIRED},
        cost=_cost(14),
        cases=_softmax_cases,
        gradient=_softmax_gradient,
        inplace=(0,),
        channels=ALONG,
    ),
    Op(
        "log_softmax",
        Kind.REDUCTION,
        _softmax_infer,
        quiet(_log_softmax),
        "The logarithm of softmax along the axis.",
        attrs={"axis": REQUIRED},
        cost=_cost(14),
        cases=_softmax_cases,
        gradient=_log_softmax_gradient,
        inplace=(0,),
        channels=ALONG,
    ),
    Op(
        "layer_norm",
        Kind.REDUCTION,
        _layer_infer,
        quiet(_layer_norm),
        "x less its mean over its deviation, over all axes from `axis` on, then scale and bias (Ba et al. 2016).",
        inputs=("x", "scale?", "bias?"),
        attrs={"axis": REQUIRED, "epsilon": REQUIRED},
        cost=_cost(8),
        cases=lambda: _layer_cases(bias=True),
        gradient=_layer_norm_gradient,
        inplace=(0,),
        channels=LAST_AXES,
    ),
    Op(
        "rms_norm",
        Kind.REDUCTION,
        _layer_infer,
        quiet(_rms_norm),
        "x over its root mean square, over all axes from `axis` on, then scale (Zhang and Sennrich 2019).",
        inputs=("x", "scale?"),
        attrs={"axis": REQUIRED, "epsilon": REQUIRED},
        cost=_cost(5),
        cases=lambda: _layer_cases(bias=False),
        gradient=_rms_norm_gradient,
        inplace=(0,),
        channels=LAST_AXES,
    ),
    Op(
        "batch_norm",
        Kind.INJECTIVE,
        _batch_infer,
        quiet(_batch_norm),
        "(x - mean) / sqrt(var + epsilon) scale + bias for each channel (axis 1), with given statistics.",
        inputs=("x", "scale", "bias", "mean", "var"),
        attrs={"epsilon": REQUIRED},
        cost=_cost(2),
        cases=_batch_cases,
        gradient=_batch_norm_gradient,
        inplace=(0,),
        channels=BATCH_NORM,
    ),
    Op(
        "group_norm",
        Kind.REDUCTION,
        _group_infer,
        quiet(_group_norm),
        "x [N,C,...] standardised over each group of channels, scale and bias for each channel (Wu and He 2018).",
        inputs=("x", "scale?", "bias?"),
        attrs={"num_groups": REQUIRED, "epsilon": REQUIRED},
        cost=_cost(8),
        cases=_group_cases,
        gradient=_group_norm_gradient,
        inplace=(0,),
        channels=GROUP_NORM,
    ),
)
