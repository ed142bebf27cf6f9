"""What convolutions and pools share: padding by name, data formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..elementwise import emit
from ..tensor import Tensor
from ..trace import fail
from .base import each, expect_rank

AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}


def resolve_padding(given: Any, rank: int) -> Any:
    """``"same"``, ``"valid"`` as 0, or numbers: one, one an axis, or begins and ends, as (begins..., ends...)."""
    if isinstance(given, str):
        name = given.lower()
        if name not in ("same", "valid"):
            raise fail(f'padding: expected "valid", "same" or numbers, got {given!r}')
        return name if name == "same" else (0,) * (2 * rank)
    if isinstance(given, list | tuple) and given and all(isinstance(p, list | tuple) and len(p) == 2 for p in given):
        pairs = [each(tuple(p), 2, "padding", 0) for p in given]  # Keras: ((top, bottom), (left, right))
        if len(pairs) != rank:
            raise fail(f"padding: expected {rank} pairs, got {given!r}")
        return (*(p[0] for p in pairs), *(p[1] for p in pairs))
    if isinstance(given, list | tuple) and len(given) == 2 * rank and rank > 1:
        return each(given, 2 * rank, "padding", 0)
    return each(given, rank, "padding", 0) * 2


def pads_for(x: Tensor, padding: Any, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Any:
    """The numbers behind ``"same"``: the output has ceil(size / stride) elements, an odd one is padded at the end
    (TensorFlow's rule, which for stride 1 is PyTorch's too)."""
    if padding != "same":
        return padding
    begins, ends = [], []
    for size, k, step, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        if isinstance(size, str):
            raise fail(f'padding "same": dimension {str(size)!r} has no number yet')
        total = max((-(-size // step) - 1) * step + (k - 1) * d + 1 - size, 0)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return (*begins, *ends)


_FORMATS = ("channels_first", "channels_last")
_default = {"data_format": "channels_first"}


def set_image_data_format(data_format: str) -> None:
    """What ``data_format=None`` means from here on: "channels_first" (at the start) or "channels_last" (Keras)."""
    check_format(data_format)
    _default["data_format"] = data_format


def image_data_format() -> str:
    """What ``data_format=None`` means now."""
    return _default["data_format"]


def check_format(given: str | None) -> bool:
    """Whether data come with the channels last."""
    name = image_data_format() if given is None else given
    if name not in _FORMATS:
        raise fail(f'data_format: expected "channels_first" or "channels_last", got {given!r}')
    return name == "channels_last"


def default_axis(axis: int | None) -> int:
    """The channels' axis of layers that take ``axis=None``: 1, or the last where the data format is channels-last."""
    return axis if axis is not None else -1 if check_format(None) else 1


def channel_axis(axis: int, rank: int) -> int:
    """``axis`` in [0, rank), checked."""
    if rank < 2 or not -rank <= axis < rank:
        raise fail(f"axis: expected an axis of an input with batch and channels, got {axis} for {rank} axes")
    return axis % rank


def enter(x: Tensor, rank: int, channels_last: bool) -> Tensor:
    """The input with its channels on axis 1."""
    axes = f"batch, {AXES[rank]}, channels" if channels_last else f"batch, channels, {AXES[rank]}"
    expect_rank(x, rank + 2, axes)
    return emit("transpose", x, perm=(0, rank + 1, *range(1, rank + 1))) if channels_last else x


def leave(y: Tensor, rank: int, channels_last: bool) -> Tensor:
    """The output with its channels where the user has them."""
    return emit("transpose", y, perm=(0, *range(2, rank + 2), 1)) if channels_last else y
