"""Normalisation. ``BatchNorm``, ``LayerNorm``, ``GroupNorm``, ``InstanceNorm`` and ``RMSNorm`` have PyTorch's arguments
and defaults; the classes with Keras's names (``BatchNormalization``, ...) have Keras's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ..elementwise import emit, maximum, stop_gradient, where
from ..promote import as_float, as_tensor
from ..tensor import Tensor, Weight
from ..trace import current, fail
from .base import Layer, whole
from .windows import channel_axis, default_axis

_NAMES = {"epsilon": "eps", "gamma_regularizer": "kernel_regularizer", "beta_regularizer": "bias_regularizer"}


def _to_channels(x: Tensor, axis: int) -> Tensor:
    """``x`` with the channels on axis 1."""
    order = [a for a in range(x.ndim) if a != axis]
    return x if axis == 1 else emit("transpose", x, perm=(order[0], axis, *order[1:]))


def _from_channels(y: Tensor, axis: int) -> Tensor:
    order = [0, *range(2, y.ndim)]
    return y if axis == 1 else emit("transpose", y, perm=(*order[:axis], 1, *order[axis:]))


def _fit(weight: Weight | None, x: Tensor) -> Tensor | None:
    return None if weight is None else as_tensor(weight, x.dtype)


def _sample_mask(x: Tensor) -> Tensor | None:
    """Which samples are no padding, for every row of ``x``: its first axis may be batch and time in one."""
    mask = current().sample_mask
    if mask is None or x.shape[0] % mask.shape[0]:
        return None
    rows = (mask.shape[0], x.shape[0] // mask.shape[0])
    spread = emit("expand", emit("reshape", mask, shape=(rows[0], 1)), shape=rows)
    return emit("reshape", spread, shape=(x.shape[0], *[1] * (x.ndim - 1)))


def batch_statistics(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Any]:
    """Mean and (biased) variance of each channel over the batch, [channels], and the number of elements that they are
    of; padded samples do not count.

    Both come from one pass over x less the mean of the first sample, which costs no digits where the mean is large. No
    gradient goes through that shift: neither result depends on it.
    """
    axes = tuple(a for a in range(x.ndim) if a != axis)
    first = emit("slice", x, starts=(0,) * x.ndim, stops=(1, *x.shape[1:]), steps=(1,) * x.ndim)
    shift = stop_gradient(emit("reduce_mean", first, axes=axes, keepdims=True))
    near, mask = x - shift, _sample_mask(x)
    if mask is None:
        count: Any = math.prod(x.shape[a] for a in axes)
        mean, square = (emit("reduce_mean", t, axes=axes, keepdims=False) for t in (near, near * near))
    else:
        per_row = math.prod(x.shape[a] for a in axes[1:])
        rows = emit("reduce_sum", as_tensor(mask, x.dtype), axes=tuple(range(x.ndim)), keepdims=False)
        count, near = maximum(rows * float(per_row), 1.0), where(mask, near, 0)
        mean, square = (emit("reduce_sum", t, axes=axes, keepdims=False) / count for t in (near, near * near))
    shift = emit("reshape", shift, shape=(x.shape[axis],))
    return shift + mean, emit("relu", square - mean * mean), count


def moving_statistics(
    x: Tensor, axis: int, running_mean: Weight, running_var: Weight, momentum: float, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """The batch's mean and variance; the running ones move towards them (``unbiased``: by that of n - 1)."""
    mean, var, count = batch_statistics(x, axis)
    seen = var
    if unbiased:
        seen = var * (count / max(count - 1, 1) if isinstance(count, int) else count / maximum(count - 1.0, 1.0))
    _move(running_mean, mean, momentum)
    _move(running_var, seen, momentum)
    return mean, var


class BatchNorm(Layer):
    """Each channel by its running mean and variance, scaled and shifted (Ioffe and Szegedy 2015). A network that is
    trained takes the mean and variance of the batch instead; a layer that is frozen does not.

    Channels are axis 1 (``axis``). Weights: ``weight`` 1, ``bias`` 0, and ``running_mean`` 0, ``running_var`` 1, which
    training updates: new = (1 - momentum) old + momentum seen (PyTorch).
    """

    ALIASES: ClassVar = {**_NAMES, "num_features": "channels"}
    UNBIASED: ClassVar = True  # whether the running variance is that of the population (n - 1), as in PyTorch

    def __init__(
        self,
        channels: int | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        *,
        axis: int | None = None,
    ) -> None:
        self.expected = None if channels is None else whole(channels, "channels")
        self.eps, self.momentum, self.affine, self.axis = float(eps), float(momentum), affine, default_axis(axis)

    def build(self, shape: Any) -> None:
        axis = channel_axis(self.axis, len(shape))
        size = shape[axis]
        if self.expected is not None and size != self.expected:
            raise fail(f"expected {self.expected} channels on axis {axis}, got {list(shape)}")
        self.weight = self.add_weight("weight", (size,), "ones") if self.affine else None
        self.bias = self.add_weight("bias", (size,), "zeros") if self.affine else None
        self.running_mean = self.add_weight("running_mean", (size,), "zeros", trainable=False)
        self.running_var = self.add_weight("running_var", (size,), "ones", trainable=False)

    def call(self, x: Tensor) -> Tensor:
        x = as_float(x)
        axis = channel_axis(self.axis, x.ndim)
        size = self.running_mean.shape[0]
        if x.shape[axis] != size:
            raise fail(f"expected {size} channels on axis {axis}, got {list(x.shape)}")
        scale = as_tensor(1.0, x.dtype) if self.weight is None else None
        scale = _fit(self.weight, x) if scale is None else emit("expand", scale, shape=(size,))
        bias = emit("expand", as_tensor(0.0, x.dtype), shape=(size,)) if self.bias is None else _fit(self.bias, x)
        if current().training and not self.running_mean.frozen:
            moved = (self.running_mean, self.running_var, self.momentum, self.UNBIASED)
            statistics: list[Tensor | None] = [*moving_statistics(x, axis, *moved)]
        else:
            statistics = [_fit(self.running_mean, x), _fit(self.running_var, x)]
        y = emit("batch_norm", _to_channels(x, axis), scale, bias, *statistics, epsilon=self.eps)
        return _from_channels(y, axis)


def _move(weight: Weight, seen: Tensor, momentum: float) -> None:
    """A running statistic's next value; a layer that is called twice moves it twice."""
    trace = current()
    held = trace.weight(weight)
    bound = trace.graph.bindings.get(held.value.node)
    old = held if bound is None else Tensor(trace, bound)
    trace.update(weight, old * (1 - momentum) + as_tensor(seen, weight.array.dtype.name) * momentum)


class BatchNormalization(BatchNorm):
    """``BatchNorm`` with Keras's arguments and defaults: epsilon 1e-3, momentum 0.99 (of the old value)."""

    ALIASES: ClassVar = {}
    UNBIASED: ClassVar = False

    def __init__(
        self,
        axis: int | None = None,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__(None, epsilon, 1.0 - momentum, True, axis=axis)
        self.center, self.scale = center, scale

    def build(self, shape: Any) -> None:
        axis = channel_axis(self.axis, len(shape))
        self.weight = self.add_weight("weight", (shape[axis],), "ones") if self.scale else None
        self.bias = self.add_weight("bias", (shape[axis],), "zeros") if self.center else None
        self.running_mean = self.add_weight("running_mean", (shape[axis],), "zeros", trainable=False)
        self.running_var = self.add_weight("running_var", (shape[axis],), "ones", trainable=False)


class LayerNorm(Layer):
    """Mean 0 and variance 1 over the last axes of each sample, scaled and shifted (Ba et al. 2016).

    ``normalized_shape``: sizes of the axes (PyTorch); without it the last axis, or all from ``axis`` on.
    """

    ALIASES: ClassVar = {**_NAMES, "scale": "elementwise_affine", "center": "bias"}

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        axis: int = -1,
    ) -> None:
        given = [normalized_shape] if isinstance(normalized_shape, int) else normalized_shape
        self.expected = None if given is None else tuple(whole(n, "normalized_shape") for n in given)
        self.axis = axis if self.expected is None else -len(self.expected)
        self.eps, self.scaled, self.shifted = float(eps), elementwise_affine, elementwise_affine and bias

    def build(self, shape: Any) -> None:
        if not -len(shape) <= self.axis < len(shape):
            raise fail(f"axis {self.axis} is out of range for {list(shape)}")
        extents = tuple(shape[self.axis % len(shape) :])
        if self.expected is not None and extents != self.expected:
            raise fail(f"expected the last axes {list(self.expected)}, got {list(shape)}")
        self.weight = self.add_weight("weight", extents, "ones") if self.scaled else None
        self.bias = self.add_weight("bias", extents, "zeros") if self.shifted else None

    def call(self, x: Tensor) -> Tensor:
        x = as_float(x)
        axis = self.axis % x.ndim
        return emit("layer_norm", x, _fit(self.weight, x), _fit(self.bias, x), axis=axis, epsilon=self.eps)


class LayerNormalization(LayerNorm):
    """``LayerNorm`` with Keras's arguments and defaults: epsilon 1e-3."""

    ALIASES: ClassVar = {}

    def __init__(self, axis: int = -1, epsilon: float = 1e-3, center: bool = True, scale: bool = True) -> None:
        super().__init__(None, epsilon, True, True, axis=axis)
        self.scaled, self.shifted = scale, center


class RMSNorm(LayerNorm):
    """Each sample over the root mean square of its last axes, scaled (Zhang and Sennrich 2019); no bias."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | None = None,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        *,
        axis: int = -1,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, axis=axis)

    def call(self, x: Tensor) -> Tensor:
        x = as_float(x)
        return emit("rms_norm", x, _fit(self.weight, x), axis=self.axis % x.ndim, epsilon=self.eps)


class GroupNorm(Layer):
    """Mean 0 and variance 1 over groups of channels of each sample, scaled and shifted for each channel (Wu and He
    2018). Channels are axis 1 (``axis``)."""

    ALIASES: ClassVar = _NAMES

    def __init__(
        self,
        num_groups: int,
        num_channels: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        axis: int | None = None,
    ) -> None:
        self.num_groups: int | None = whole(num_groups, "num_groups")
        self.expected = None if num_channels is None else whole(num_channels, "num_channels")
        self.eps, self.affine, self.axis = float(eps), affine, default_axis(axis)

    def build(self, shape: Any) -> None:
        axis = channel_axis(self.axis, len(shape))
        size = shape[axis]
        if self.expected is not None and size != self.expected:
            raise fail(f"expected {self.expected} channels on axis {axis}, got {list(shape)}")
        if isinstance(size, int) and size % (self.num_groups or size):
            raise fail(f"num_groups: expected a divisor of {size} channels, got {self.num_groups}")
        self.weight = self.add_weight("weight", (size,), "ones") if self.affine else None
        self.bias = self.add_weight("bias", (size,), "zeros") if self.affine else None

    def call(self, x: Tensor) -> Tensor:
        x = as_float(x)
        axis = channel_axis(self.axis, x.ndim)
        groups = self.num_groups or x.shape[axis]
        scale, bias = _fit(self.weight, x), _fit(self.bias, x)
        y = emit("group_norm", _to_channels(x, axis), scale, bias, num_groups=groups, epsilon=self.eps)
        return _from_channels(y, axis)


class GroupNormalization(GroupNorm):
    """``GroupNorm`` with Keras's arguments and defaults: 32 groups, epsilon 1e-3."""

    ALIASES: ClassVar = {}

    def __init__(self, groups: int = 32, axis: int | None = None, epsilon: float = 1e-3) -> None:
        super().__init__(groups, None, epsilon, axis=axis)


class InstanceNorm(GroupNorm):
    """Mean 0 and variance 1 of each channel of each sample (Ulyanov et al. 2016); no weights unless ``affine``."""

    ALIASES: ClassVar = {**_NAMES, "num_features": "channels"}

    def __init__(
        self, channels: int | None = None, eps: float = 1e-5, affine: bool = False, *, axis: int | None = None
    ) -> None:
        super().__init__(1, channels, eps, affine, axis=axis)
        self.num_groups = None


__all__ = [
    "BatchNorm",
    "BatchNormalization",
    "GroupNorm",
    "GroupNormalization",
    "InstanceNorm",
    "LayerNorm",
    "LayerNormalization",
    "RMSNorm",
]
