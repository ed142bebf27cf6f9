"""Layers on images: resizing, borders."""

from __future__ import annotations

from typing import Any, ClassVar

from ..elementwise import emit
from ..shaping import sizes
from ..tensor import Tensor
from ..trace import fail
from .base import Layer, each, whole
from .windows import check_format, enter, leave

_MODES: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest", "coordinate": "asymmetric", "nearest": "floor"},
    "bilinear": {"mode": "linear", "coordinate": "half_pixel"},
    "linear": {"mode": "linear", "coordinate": "half_pixel"},
    "trilinear": {"mode": "linear", "coordinate": "half_pixel"},
    "bicubic": {"mode": "cubic", "coordinate": "half_pixel", "cubic_a": -0.75},
}


def resize(x: Tensor, extents: tuple[int, ...], mode: str, align_corners: bool) -> Tensor:
    """``x`` [batch, channels, spatial...] interpolated to other spatial extents, as PyTorch's ``interpolate``."""
    if mode not in _MODES:
        raise fail(f"mode: expected one of {', '.join(_MODES)}, got {mode!r}")
    attrs = dict(_MODES[mode])
    if align_corners and mode != "nearest":
        attrs["coordinate"] = "align_corners"
    return emit("resize", x, shape=sizes((*x.shape[:2], *extents)), **attrs)


class Upsample(Layer):
    """An image ``scale_factor`` times as large, or of the given ``size`` (PyTorch).

    Modes: nearest, bilinear, bicubic.
    """

    ALIASES: ClassVar = {"interpolation": "mode"}

    def __init__(
        self,
        scale_factor: Any = 2,
        mode: str = "nearest",
        *,
        size: Any = None,
        align_corners: bool = False,
        data_format: str | None = None,
    ) -> None:
        self.factors = each(scale_factor, 2, "scale_factor")
        self.size = None if size is None else each(size, 2, "size")
        self.mode, self.align_corners = mode, align_corners
        self.channels_last = check_format(data_format)

    def call(self, x: Tensor) -> Tensor:
        x = enter(x, 2, self.channels_last)
        extents = self.size or tuple(n * f for n, f in zip(x.shape[2:], self.factors, strict=True))
        return leave(resize(x, extents, self.mode, self.align_corners), 2, self.channels_last)


class UpSampling2D(Upsample):
    """``Upsample`` with Keras's arguments: ``size`` is the factor."""

    def __init__(self, size: Any = 2, interpolation: str = "nearest", data_format: str | None = None) -> None:
        super().__init__(size, interpolation, data_format=data_format)


class Resize(Upsample):
    """An image of ``height`` by ``width``, bilinear unless ``interpolation`` says otherwise (Keras's Resizing)."""

    ALIASES: ClassVar = {"mode": "interpolation"}

    def __init__(
        self, height: int, width: int, interpolation: str = "bilinear", data_format: str | None = None
    ) -> None:
        extents = (whole(height, "height"), whole(width, "width"))
        super().__init__(1, interpolation, size=extents, data_format=data_format)


class ZeroPad2d(Layer):
    """Zeros around an image: one number, (left, right, top, bottom) as PyTorch's, or Keras's (height, width) and
    ((top, bottom), (left, right))."""

    def __init__(self, padding: Any = 1, data_format: str | None = None) -> None:
        if isinstance(padding, list | tuple) and len(padding) == 4:
            left, right, top, bottom = each(padding, 4, "padding", 0)
            self.rows: tuple[int, ...] = (top, bottom)
            self.columns: tuple[int, ...] = (left, right)
        else:
            rows, columns = padding if isinstance(padding, list | tuple) and len(padding) == 2 else (padding, padding)
            self.rows, self.columns = each(rows, 2, "padding", 0), each(columns, 2, "padding", 0)
        self.channels_last = check_format(data_format)

    def call(self, x: Tensor) -> Tensor:
        x = enter(x, 2, self.channels_last)
        pads = (0, 0, self.rows[0], self.columns[0], 0, 0, self.rows[1], self.columns[1])
        return leave(emit("pad", x, pads=pads), 2, self.channels_last)


class Cropping2D(ZeroPad2d):
    """An image without its border; ``cropping`` as ``ZeroPad2d``'s ``padding`` (Keras)."""

    ALIASES: ClassVar = {"cropping": "padding"}

    def call(self, x: Tensor) -> Tensor:
        x = enter(x, 2, self.channels_last)
        (top, bottom), (left, right) = self.rows, self.columns
        cut = x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]
        return leave(cut, 2, self.channels_last)


__all__ = ["Cropping2D", "Resize", "UpSampling2D", "Upsample", "ZeroPad2d"]
