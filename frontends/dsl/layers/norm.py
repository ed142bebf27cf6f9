"""Normalisation. ``BatchNorm``, ``LayerNorm``, ``GroupNorm``, ``InstanceNorm`` and ``RMSNorm`` have PyTorch's arguments
and defaults; the classes with Keras's names (``BatchNormalization``, ...) have Keras's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..elementwise import emit
from ..promote import as_float, as_tensor
from ..tensor import Tensor, Weight
from ..trace import fail
from .base import Layer, whole
from .windows import channel_axis, default_axis

_NAMES = {"epsilon": "eps"}


def _to_channels(x: Tensor, axis: int) -> Tensor:
    """``x`` with the channels on axis 1."""
    order = [a for a in range(x.ndim) if a != axis]
    return x if axis == 1 else emit("transpose", x, perm=(order[0], axis, *order[1:]))


def _from_channels(y: Tensor, axis: int) -> Tensor:
    order = [0, *range(2, y.ndim)]
    return y if axis == 1 else emit("transpose", y, perm=(*order[:axis], 1, *order[axis:]))


def _fit(weight: Weight | None, x: Tensor) -> Tensor | None:
    return None if weight is None else as_tensor(weight, x.dtype)


class BatchNorm(Layer):
    """Each channel by its running mean and variance, scaled and shifted (Ioffe and Szegedy 2015).

    Channels are axis 1 (``axis``). Weights: ``weight`` 1, ``bias`` 0, and ``running_mean`` 0, ``running_var`` 1, which
    training updates: new = (1 - momentum) old + momentum seen (PyTorch).
    """

    ALIASES: ClassVar = {**_NAMES, "num_features": "channels"}

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
        statistics = [_fit(self.running_mean, x), _fit(self.running_var, x)]
        y = emit("batch_norm", _to_channels(x, axis), scale, bias, *statistics, epsilon=self.eps)
        return _from_channels(y, axis)


class BatchNormalization(BatchNorm):
    """``BatchNorm`` with Keras's arguments and defaults: epsilon 1e-3, momentum 0.99 (of the old value)."""

    ALIASES: ClassVar = {}

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
