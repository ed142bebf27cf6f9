"""Pools: windows, the whole image, and windows fitted to a wanted output.

Data are channels-first unless ``data_format`` says otherwise. Windows have Keras's arguments and defaults
(``pool_size`` 2, ``strides`` as large); PyTorch's ``kernel_size`` and ``stride`` are understood too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..elementwise import emit, maximum
from ..promote import as_float, as_tensor
from ..shaping import sizes
from ..tensor import Tensor
from ..trace import current, fail
from ..variable import assign
from .base import Layer, each
from .windows import check_format, enter, leave, pads_for, resolve_padding


class Pool(Layer):
    """The base of the window pools."""

    ALIASES: ClassVar = {"kernel_size": "pool_size", "stride": "strides", "dilation": "dilation_rate"}
    rank = 2

    def __init__(
        self,
        pool_size: Any = 2,
        strides: Any = None,
        padding: Any = "valid",
        *,
        dilation_rate: Any = 1,
        ceil_mode: bool = False,
        data_format: str | None = None,
    ) -> None:
        self.pool_size = each(pool_size, self.rank, "pool_size")
        self.strides = self.pool_size if strides is None else each(strides, self.rank, "strides")
        self.padding = resolve_padding(padding, self.rank)
        self.dilation_rate = each(dilation_rate, self.rank, "dilation_rate")
        self.ceil_mode = bool(ceil_mode)
        self.channels_last = check_format(data_format)

    def call(self, x: Tensor) -> Tensor:
        x = enter(x, self.rank, self.channels_last)
        pads = pads_for(x, self.padding, self.pool_size, self.strides, self.dilation_rate)
        return leave(self.pool(x, pads), self.rank, self.channels_last)

    def pool(self, x: Tensor, pads: Any) -> Tensor:
        """The pool itself, channels first."""
        raise NotImplementedError

    def _window(self, pads: Any) -> dict[str, Any]:
        return {
            "kernel_shape": self.pool_size,
            "strides": self.strides,
            "pads": pads,
            "dilations": self.dilation_rate,
            "ceil_mode": self.ceil_mode,
        }


class MaxPool2d(Pool):
    """The largest element of each window of [batch, channels, height, width]."""

    def pool(self, x: Tensor, pads: Any) -> Tensor:
        return emit("max_pool", x, **self._window(pads))


class MaxPool1d(MaxPool2d):
    """The largest element of each window of [batch, channels, length]."""

    rank = 1


class MaxPool3d(MaxPool2d):
    """The largest element of each window of [batch, channels, depth, height, width]."""

    rank = 3


class AvgPool2d(Pool):
    """The mean of each window of [batch, channels, height, width].

    Padding counts as zeros where it is given in numbers (PyTorch's default), not with "same" (Keras);
    ``count_include_pad`` decides.
    """

    def __init__(
        self,
        pool_size: Any = 2,
        strides: Any = None,
        padding: Any = "valid",
        *,
        ceil_mode: bool = False,
        count_include_pad: bool | None = None,
        data_format: str | None = None,
    ) -> None:
        super().__init__(pool_size, strides, padding, ceil_mode=ceil_mode, data_format=data_format)
        self.count_include_pad = self.padding != "same" if count_include_pad is None else bool(count_include_pad)

    def pool(self, x: Tensor, pads: Any) -> Tensor:
        include = self.count_include_pad
        return emit("avg_pool", as_float(x), count_include_pad=include, **self._window(pads))


class AvgPool1d(AvgPool2d):
    """The mean of each window of [batch, channels, length]."""

    rank = 1


class AvgPool3d(AvgPool2d):
    """The mean of each window of [batch, channels, depth, height, width]."""

    rank = 3


class GlobalAvgPool(Layer):
    """The mean over all axes but batch and channels: [batch, channels]; with ``keepdims`` the axes stay, of size 1."""

    operator = "reduce_mean"
    rank: int | None = None  # any

    def __init__(self, keepdims: bool = False, data_format: str | None = None) -> None:
        self.keepdims = bool(keepdims)
        self.channels_last = check_format(data_format)

    def call(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or (self.rank is not None and x.ndim != self.rank + 2):
            wanted = "at least 3" if self.rank is None else str(self.rank + 2)
            raise fail(
                f"expected an input with {wanted} axes (batch, channels and what is pooled), got {list(x.shape)}"
            )
        axes = range(1, x.ndim - 1) if self.channels_last else range(2, x.ndim)
        value = as_float(x) if self.operator == "reduce_mean" else x
        if current().streaming and x.ndim == 3:
            return self._until_now(value, axes[0])
        return emit(self.operator, value, axes=tuple(axes), keepdims=self.keepdims)

    def _until_now(self, x: Tensor, axis: int) -> Tensor:
        """Of all frames since the stream began."""
        if self.operator == "reduce_max":
            now = emit("reduce_max", x, axes=(axis,), keepdims=self.keepdims)
            largest = self.memory("largest", now.shape, -np.inf, dtype=x.dtype)
            return assign(largest, maximum(largest, now))
        now = emit("reduce_sum", x, axes=(axis,), keepdims=self.keepdims)
        total, count = self.memory("sum", now.shape, dtype=x.dtype), self.memory("count", (), dtype="float32")
        return assign(total, total + now) / as_tensor(assign(count, count + float(x.shape[axis])), x.dtype)


class GlobalMaxPool(GlobalAvgPool):
    """The largest element over all axes but batch and channels."""

    operator = "reduce_max"


class GlobalAvgPool1d(GlobalAvgPool):
    """The mean over the length: [batch, channels, length] to [batch, channels]."""

    rank = 1


class GlobalAvgPool2d(GlobalAvgPool):
    """The mean over the image: [batch, channels, height, width] to [batch, channels]."""

    rank = 2


class GlobalMaxPool1d(GlobalMaxPool):
    """The largest over the length: [batch, channels, length] to [batch, channels]."""

    rank = 1


class GlobalMaxPool2d(GlobalMaxPool):
    """The largest over the image: [batch, channels, height, width] to [batch, channels]."""

    rank = 2


class AdaptiveAvgPool2d(Layer):
    """Means over windows fitted to ``output_size`` (PyTorch): window i reaches from floor(i size / out) to
    ceil((i + 1) size / out). Where the sizes do not divide, it is a product with a constant matrix for each axis."""

    rank = 2

    def __init__(self, output_size: Any, data_format: str | None = None) -> None:
        self.output_size = each(output_size, self.rank, "output_size")
        self.channels_last = check_format(data_format)

    def call(self, x: Tensor) -> Tensor:
        x = as_float(enter(x, self.rank, self.channels_last))
        if self.output_size == (1,) * self.rank:
            y = emit("reduce_mean", x, axes=tuple(range(2, x.ndim)), keepdims=True)
        elif all(isinstance(n, int) and n % out == 0 for n, out in zip(x.shape[2:], self.output_size, strict=True)):
            kernel = tuple(n // out for n, out in zip(x.shape[2:], self.output_size, strict=True))
            zero, one = (0,) * (2 * self.rank), (1,) * self.rank
            y = emit("avg_pool", x, kernel_shape=kernel, strides=kernel, pads=zero, dilations=one)
        else:
            y = self._by_matrix(x)
        return leave(y, self.rank, self.channels_last)

    def _by_matrix(self, x: Tensor) -> Tensor:
        for axis, out in enumerate(self.output_size, 2):
            size = x.shape[axis]
            if isinstance(size, str):
                raise fail(f"dimension {str(size)!r} has no number yet")
            order = [a for a in range(x.ndim) if a != axis]
            turned = emit("transpose", x, perm=(*order, axis))
            pooled = emit("matmul", turned, as_tensor(_means(size, out), x.dtype))
            back = [*range(axis), x.ndim - 1, *range(axis, x.ndim - 1)]
            x = emit("transpose", pooled, perm=tuple(back))
        return x


class AdaptiveAvgPool1d(AdaptiveAvgPool2d):
    """Means over windows of [batch, channels, length] fitted to ``output_size`` (PyTorch)."""

    rank = 1


def _means(size: int, out: int) -> np.ndarray:
    """The matrix [size, out] that takes the mean of each fitted window."""
    matrix = np.zeros((size, out), np.float32)
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        matrix[start:stop, i] = 1.0 / (stop - start)
    return matrix


class PixelShuffle(Layer):
    """[batch, channels r r, height, width] as [batch, channels, height r, width r] (PyTorch; Shi et al. 2016)."""

    def __init__(self, upscale_factor: int) -> None:
        self.factor = each(upscale_factor, 1, "upscale_factor")[0]

    def call(self, x: Tensor) -> Tensor:
        x = enter(x, 2, False)
        n, c, h, w = x.shape
        r = self.factor
        if c % (r * r):
            raise fail(f"expected channels that {r * r} divides, got {list(x.shape)}")
        wide = emit("reshape", x, shape=sizes((n, c // (r * r), r, r, h, w)))
        turned = emit("transpose", wide, perm=(0, 1, 4, 2, 5, 3))
        return emit("reshape", turned, shape=sizes((n, c // (r * r), h * r, w * r)))


__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "GlobalAvgPool",
    "GlobalAvgPool1d",
    "GlobalAvgPool2d",
    "GlobalMaxPool",
    "GlobalMaxPool1d",
    "GlobalMaxPool2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "PixelShuffle",
]
