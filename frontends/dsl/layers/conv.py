"""Convolutions.

Data are channels-first like PyTorch's, [batch, channels, height, width], unless ``data_format="channels_last"``, or
``set_image_data_format``, says otherwise. Argument names, their order and defaults are Keras's (``filters,
kernel_size``; PyTorch's ``stride``, ``dilation`` and ``bias`` are understood too); what follows ``kernel_size`` goes by
name. ``padding``: "valid", "same", one number, one for each axis, or begins and ends. Weights are laid out as
PyTorch's, [filters, channels / groups, kernel...], and start Glorot-uniform, biases at 0 (Keras).
"""

from __future__ import annotations

from typing import Any, ClassVar

from .. import nn
from .. import shaping as s
from ..elementwise import emit
from ..promote import as_tensor
from ..tensor import Tensor
from ..trace import current, fail
from ..variable import assign
from .base import Layer, activated, each, whole
from .windows import AXES, check_format, enter, leave, pads_for, resolve_padding

_NAMES = {"stride": "strides", "dilation": "dilation_rate", "bias": "use_bias", "out_channels": "filters"}


class Conv(Layer):
    """A convolution over ``rank`` axes; the base of ``Conv1d``, ``Conv2d`` and ``Conv3d``."""

    ALIASES: ClassVar = _NAMES
    rank = 2

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: Any = "valid",
        dilation_rate: Any = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
    ) -> None:
        self.filters = whole(filters, "filters")
        self.kernel_size = each(kernel_size, self.rank, "kernel_size")
        self.strides = each(strides, self.rank, "strides")
        self.dilation_rate = each(dilation_rate, self.rank, "dilation_rate")
        self.causal = padding == "causal" and self.rank == 1 and not isinstance(self, ConvTranspose)
        self.padding = (0, 0) if self.causal else resolve_padding(padding, self.rank)
        self.groups = whole(groups, "groups")
        self.activation = nn.activation(activation)
        self.use_bias = use_bias
        self.kernel_initializer, self.bias_initializer = kernel_initializer, bias_initializer
        self.channels_last = check_format(data_format)

    def channels(self, shape: Any) -> int:
        """The number of input channels, checked."""
        if len(shape) != self.rank + 2:
            return 1  # call refuses it
        found = shape[-1 if self.channels_last else 1]
        if isinstance(found, str):
            raise fail(f"the channels {str(found)!r} have no number yet")
        if found % self.groups or self.filters % self.groups:
            raise fail(f"groups: expected a divisor of {found} channels and {self.filters} filters, got {self.groups}")
        return int(found)

    def build(self, shape: Any) -> None:
        enter_rank(shape, self.rank, self.channels_last)
        self.inputs = self.channels(shape)
        extents = (self.filters, self.inputs // self.groups, *self.kernel_size)
        self.weight = self.add_weight("weight", extents, self.kernel_initializer)
        self.bias = self.add_weight("bias", (self.filters,), self.bias_initializer) if self.use_bias else None

    def call(self, x: Tensor) -> Tensor:
        x = enter(x, self.rank, self.channels_last)
        if x.shape[1] != self.inputs:
            raise fail(f"expected {self.inputs} channels on axis 1, got {list(x.shape)}")
        y = self.convolve(x)
        return leave(activated(self.activation, y), self.rank, self.channels_last)

    def convolve(self, x: Tensor) -> Tensor:
        return emit(
            "conv",
            self._after_its_past(x) if self.causal else x,
            as_tensor(self.weight, x.dtype),
            None if self.bias is None else as_tensor(self.bias, x.dtype),
            strides=self.strides,
            pads=pads_for(x, self.padding, self.kernel_size, self.strides, self.dilation_rate),
            dilations=self.dilation_rate,
            group=self.groups,
        )

    def _after_its_past(self, x: Tensor) -> Tensor:
        """The input behind as many frames as the kernel reaches back: zeros, in a stream those of the last calls."""
        reach = (self.kernel_size[0] - 1) * self.dilation_rate[0]
        if not current().streaming or not reach:
            return s.pad(x, ((0, 0), (0, 0), (reach, 0)))
        past = self.memory("past", (*x.shape[:2], reach), dtype=x.dtype)
        both = s.concat([as_tensor(past), x], 2)
        assign(past, both[:, :, -reach:])
        return both


def enter_rank(shape: Any, rank: int, channels_last: bool) -> None:
    """Refuses an input with another number of axes before weights are made for it."""
    if len(shape) != rank + 2:
        axes = f"batch, {AXES[rank]}, channels" if channels_last else f"batch, channels, {AXES[rank]}"
        hint = "nv.Input(shape) leaves out the batch axis; nv.Input(batch_shape=...) holds it"
        raise fail(
            f"expected an input [{axes}] with {rank + 2} axes, got {list(shape)}",
            hint=hint if len(shape) == rank + 3 else None,
        )


class Conv1d(Conv):
    """A convolution of [batch, channels, length]. ``padding="causal"`` (Keras) pads the beginning alone, so that an
    output hangs on nothing that comes after it."""

    rank = 1


class Conv2d(Conv):
    """A convolution of [batch, channels, height, width]."""


class Conv3d(Conv):
    """A convolution of [batch, channels, depth, height, width]."""

    rank = 3


class DepthwiseConv2d(Conv):
    """Every channel convolved on its own, ``depth_multiplier`` outputs each (Keras).

    ``weight``: [channels * depth_multiplier, 1, height, width].
    """

    def __init__(
        self,
        kernel_size: Any,
        *,
        depth_multiplier: int = 1,
        strides: Any = 1,
        padding: Any = "valid",
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
    ) -> None:
        super().__init__(
            1,
            kernel_size,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            data_format=data_format,
        )
        self.depth_multiplier = whole(depth_multiplier, "depth_multiplier")

    def channels(self, shape: Any) -> int:
        self.groups = 1
        self.groups = super().channels(shape)
        self.filters = self.groups * self.depth_multiplier
        return self.groups


class DepthwiseConv1d(DepthwiseConv2d):
    """Every channel of [batch, channels, length] convolved on its own."""

    rank = 1


class SeparableConv2d(Layer):
    """A depthwise convolution, then a 1x1 convolution with bias and activation (Keras)."""

    ALIASES: ClassVar = _NAMES
    rank = 2

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: Any = "valid",
        dilation_rate: Any = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        data_format: str | None = None,
    ) -> None:
        one = self.rank == 1
        self.depthwise: Layer = (DepthwiseConv1d if one else DepthwiseConv2d)(
            kernel_size,
            depth_multiplier=depth_multiplier,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            use_bias=False,
            data_format=data_format,
        )
        self.pointwise: Layer = (Conv1d if one else Conv2d)(
            filters, 1, activation=activation, use_bias=use_bias, data_format=data_format
        )

    def call(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class SeparableConv1d(SeparableConv2d):
    """A separable convolution of [batch, channels, length]."""

    rank = 1


class ConvTranspose(Conv):
    """A transposed convolution; the base of ``ConvTranspose1d`` and ``ConvTranspose2d``.

    ``weight``: [channels, filters / groups, kernel...] as PyTorch's. ``padding``: a number cuts that much off each side
    (PyTorch), "valid" is 0, "same" makes the output ``stride`` times the input (Keras).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: Any = "valid",
        output_padding: Any = 0,
        dilation_rate: Any = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        data_format: str | None = None,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            data_format=data_format,
        )
        self.output_padding = each(output_padding, self.rank, "output_padding", 0)

    def build(self, shape: Any) -> None:
        enter_rank(shape, self.rank, self.channels_last)
        self.inputs = self.channels(shape)
        extents = (self.inputs, self.filters // self.groups, *self.kernel_size)
        self.weight = self.add_weight("weight", extents, self.kernel_initializer)
        self.bias = self.add_weight("bias", (self.filters,), self.bias_initializer) if self.use_bias else None

    def convolve(self, x: Tensor) -> Tensor:
        pads, extra = self._frame()
        return emit(
            "conv_transpose",
            x,
            as_tensor(self.weight, x.dtype),
            None if self.bias is None else as_tensor(self.bias, x.dtype),
            strides=self.strides,
            pads=pads,
            dilations=self.dilation_rate,
            group=self.groups,
            output_padding=extra,
        )

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is cut off and what is added at the end."""
        if self.padding != "same":
            return self.padding, self.output_padding
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation_rate, strict=True)]
        over = [span - step for span, step in zip(spans, self.strides, strict=True)]
        begins = [max(o, 0) // 2 for o in over]
        ends = [max(o, 0) - b for o, b in zip(over, begins, strict=True)]
        return (*begins, *ends), tuple(max(-o, 0) for o in over)


class ConvTranspose1d(ConvTranspose):
    """A transposed convolution of [batch, channels, length]."""

    rank = 1


class ConvTranspose2d(ConvTranspose):
    """A transposed convolution of [batch, channels, height, width]."""


class ConvTranspose3d(ConvTranspose):
    """A transposed convolution of [batch, channels, depth, height, width]."""

    rank = 3


__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "SeparableConv1d",
    "SeparableConv2d",
]
