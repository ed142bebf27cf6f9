"""Normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...compiler.ir import Value
from .context import Context, OnnxNode, Unsupported
from .registry import Lowered, lowers


def _wide(c: Context, n: OnnxNode, x: Value, compute: Callable[[Value], Value], since: int = 0) -> Value:
    """Half floats are normalized in float32 where ``stash_type`` asks for it (its default does)."""
    narrow = c.dtype(x) in ("float16", "bfloat16") and n.attr("stash_type", 1) == 1 and n.version >= since
    return c.cast(compute(c.cast(x, "float32")), c.dtype(x)) if narrow else compute(x)


def _add(c: Context, a: Value, number: float) -> Value:
    return c.op("add", a, c.like(number, a))


def _moments(c: Context, x: Value, axes: Sequence[int]) -> tuple[Value, Value, Value]:
    """Mean, centred x and variance, axes kept."""
    mean = c.reduce("mean", x, axes)
    centred = c.op("sub", x, mean)
    return mean, centred, c.reduce("mean", c.op("mul", centred, centred), axes)


# -- batch, instance, group --------------------------------------------------------------------------------------------


@lowers("BatchNormalization")
def batch_norm(c: Context, n: OnnxNode) -> Lowered:
    x, scale, bias, mean, var = (n.input(i) for i in range(5))
    epsilon = n.attr("epsilon", 1e-5)
    if n.version < 9 and not n.attr("spatial", 1):
        raise Unsupported("statistics for each place (spatial=0)", "BatchNormalization with spatial=1")
    if n.attr("training_mode", 0) and n.version >= 14:
        return _training_batch_norm(c, n)
    dtype = c.dtype(x)
    scale, bias, mean, var = (c.cast(v, dtype) for v in (scale, bias, mean, var))
    y = c.reshape(x, (c.shape(x)[0], 1)) if c.rank(x) == 1 else x
    y = c.op("batch_norm", y, scale, bias, mean, var, epsilon=epsilon)
    return c.reshape(y, c.shape(x))


def _training_batch_norm(c: Context, n: OnnxNode) -> list[Value]:
    x, scale, bias, running_mean, running_var = (n.input(i) for i in range(5))
    momentum = n.attr("momentum", 0.9)
    axes = [a for a in range(c.rank(x)) if a != 1]
    mean, _, var = _moments(c, x, axes)
    mean, var = c.squeeze(mean, axes), c.squeeze(var, axes)
    y = c.op("batch_norm", x, scale, bias, mean, var, epsilon=n.attr("epsilon", 1e-5))

    def blend(old: Value, new: Value) -> Value:
        kept = c.op("mul", old, c.like(momentum, old))
        return c.op("add", kept, c.op("mul", new, c.like(1 - momentum, new)))

    return [y, blend(running_mean, mean), blend(running_var, var)]


@lowers("InstanceNormalization")
def instance_norm(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    return c.op("group_norm", x, n.input(1), n.input(2), num_groups=c.shape(x)[1], epsilon=n.attr("epsilon", 1e-5))


@lowers("GroupNormalization")
def group_norm(c: Context, n: OnnxNode) -> Lowered:
    x, groups = n.input(0), n.attr("num_groups")
    channels = c.shape(x)[1]

    def per_channel(v: Value) -> Value:
        """Opset 18 has one entry for each group."""
        if n.version >= 21 or c.shape(v) == (channels,):
            return v
        return c.reshape(c.expand(c.reshape(v, (groups, 1)), (groups, channels // groups)), (channels,))

    scale, bias = per_channel(n.input(1)), per_channel(n.input(2))
    epsilon = n.attr("epsilon", 1e-5)

    def compute(v: Value) -> Value:
        to = c.dtype(v)
        return c.op("group_norm", v, c.cast(scale, to), c.cast(bias, to), num_groups=groups, epsilon=epsilon)

    return _wide(c, n, x, compute, since=21)


# -- layer, rms --------------------------------------------------------------------------------------------------------


def _fitting(c: Context, v: Value | None, x: Value, axis: int) -> Value | None:
    """Scale or bias in the shape of the normalized axes, or None if only an elementwise operation can apply it."""
    if v is None:
        return None
    inner = c.shape(x)[axis:]
    if c.rank(v) > len(inner):
        lead = c.shape(v)[: c.rank(v) - len(inner)]
        if math.prod(lead) != 1:
            raise Unsupported("scale or bias differ outside of the normalized axes")
        v = c.reshape(v, c.shape(v)[len(lead) :])
    return c.expand(c.cast(v, c.dtype(x)), inner)


@lowers("LayerNormalization")
def layer_norm(c: Context, n: OnnxNode) -> Lowered:
    x, epsilon = n.input(0), n.attr("epsilon", 1e-5)
    axis = c.axis(n.attr("axis", -1), c.rank(x))

    def compute(v: Value) -> Value:
        scale, bias = _fitting(c, n.input(1), v, axis), _fitting(c, n.optional(2), v, axis)
        return c.op("layer_norm", v, scale, bias, axis=axis, epsilon=epsilon)

    results = [_wide(c, n, x, compute)]
    if n.wants(1) or n.wants(2):
        wide = c.cast(x, "float32") if n.attr("stash_type", 1) == 1 and c.dtype(x) != "float64" else x
        mean, _, var = _moments(c, wide, range(axis, c.rank(x)))
        results += [mean, c.op("rsqrt", _add(c, var, epsilon))]
    return results


@lowers("RMSNormalization")
def rms_norm(c: Context, n: OnnxNode) -> Lowered:
    x, epsilon = n.input(0), n.attr("epsilon", 1e-5)
    axis = c.axis(n.attr("axis", -1), c.rank(x))
    scale = n.input(1)
    y = _wide(c, n, x, lambda v: c.op("rms_norm", v, _fitting(c, scale, v, axis), axis=axis, epsilon=epsilon))
    return c.cast(y, c.dtype(scale))


# -- lp, mean-variance, local response ---------------------------------------------------------------------------------


@lowers("LpNormalization")
def lp_norm(c: Context, n: OnnxNode) -> Lowered:
    """x over its norm along an axis; rows of norm 0 stay 0."""
    x, p = n.input(0), n.attr("p", 2)
    axis = (c.axis(n.attr("axis", -1), c.rank(x)),)
    total = c.reduce("sum", c.op("abs", x) if p == 1 else c.op("mul", x, x), axis)
    norm = total if p == 1 else c.op("sqrt", total)
    return c.op("div", x, c.op("where", c.op("equal", norm, c.like(0, x)), c.like(1, x), norm))


@lowers("MeanVarianceNormalization")
def mean_variance_norm(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    axes = sorted(c.axis(a, c.rank(x)) for a in n.attr("axes", (0, 2, 3)))
    _, centred, var = _moments(c, x, axes)
    return c.op("div", centred, _add(c, c.op("sqrt", var), 1e-9))


@lowers("LRN")
def lrn(c: Context, n: OnnxNode) -> Lowered:
    """x / (bias + alpha / size * sum of squares over near channels)^beta: that sum is a pool along the channels."""
    x, size = n.input(0), n.attr("size")
    alpha, beta, bias = n.attr("alpha", 1e-4), n.attr("beta", 0.75), n.attr("bias", 1.0)
    batch, channels, *spatial = c.shape(x)
    flat = c.reshape(c.op("mul", x, x), (batch, 1, channels, math.prod(spatial)))
    before = (size - 1) // 2
    mean = c.op(
        "avg_pool",
        flat,
        kernel_shape=(size, 1),
        strides=(1, 1),
        pads=(before, 0, size - 1 - before, 0),
        dilations=(1, 1),
        ceil_mode=False,
        count_include_pad=True,
    )
    base = _add(c, c.op("mul", c.reshape(mean, c.shape(x)), c.like(alpha, x)), bias)
    return c.op("div", x, c.op("pow", base, c.like(beta, x)))
