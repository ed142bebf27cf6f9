"""Pictures as model inputs: resized, scaled, normalised, in the input's own layout. Pillow is imported on first use."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MissingTool, NervureError
from ...runtime.artifact import Port

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
LAYOUTS = ("nchw", "nhwc", "chw", "hwc", "nhw", "hw")
COLORS = {"rgb": 3, "bgr": 3, "gray": 1}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an array: 0..255 is mapped to ``range`` (or multiplied by ``scale``), then ``mean`` is
    subtracted and divided by ``std`` (one figure, or one a channel). ``size`` is (height, width), by default that of
    the input. ``crop`` (0..1]: the part of the picture's middle that is kept, shorter side; without it the whole
    picture is stretched."""

    size: tuple[int, int] | None = None
    range: tuple[float, float] | None = None
    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    color: str | None = None
    crop: float | None = None


PRESETS = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.875),  # torchvision's weights
    "tf": Preprocess(range=(-1.0, 1.0)),
    "unit": Preprocess(range=(0.0, 1.0)),
    "raw": Preprocess(scale=1.0),
}


def parse_preprocess(text: str) -> Preprocess:
    """A preset, ``key=value`` pairs, or a preset followed by pairs: ``imagenet,crop=1,color=bgr``."""
    made = Preprocess()
    for i, part in enumerate(text.split(",")):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals:
            if i or key not in PRESETS:
                raise NervureError(
                    f"--preprocess {part!r} is unknown", hint=f"presets: {', '.join(PRESETS)}; or key=value"
                )
            made = PRESETS[key]
            continue
        if key not in Preprocess.__dataclass_fields__:
            keys = ", ".join(Preprocess.__dataclass_fields__)
            raise NervureError(f"--preprocess has no key {key!r}", hint=f"keys: {keys}")
        try:
            made = replace(made, **{key: _value(key, value)})
        except ValueError as error:
            raise NervureError(f"--preprocess {key}={value!r} is wrong", why=str(error) or None) from error
    return made


def _value(key: str, text: str) -> Any:
    if key == "layout":
        return _one_of(text.lower(), LAYOUTS)
    if key == "color":
        return _one_of(text.lower(), tuple(COLORS))
    if key == "size":
        sides = [int(v) for v in text.lower().split("x")]
        if len(sides) > 2 or not all(0 < s <= 16384 for s in sides):
            raise ValueError("a size is 224 or HEIGHTxWIDTH")
        return (sides[0], sides[-1])
    figures = tuple(float(v) for v in text.split(":"))
    if not all(np.isfinite(figures)):
        raise ValueError("finite figures are wanted")
    if key == "range":
        if len(figures) != 2:
            raise ValueError("a range is LOW:HIGH")
        return figures
    if key in ("mean", "std"):
        if len(figures) not in (1, 3) or (key == "std" and 0.0 in figures):
            raise ValueError("one figure or three (R:G:B); std is not 0")
        return figures
    if len(figures) != 1 or (key == "crop" and not 0 < figures[0] <= 1):
        raise ValueError("one figure" + (" above 0 and at most 1" if key == "crop" else ""))
    return figures[0]


def _one_of(text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise ValueError(f"one of {', '.join(allowed)}")
    return text


def read_picture(path: Path, port: Port, how: Preprocess) -> np.ndarray:
    """The picture as an array of the port's dtype (and shape, unless ``size`` says otherwise)."""
    layout, height, width, channels = _place(port, how)
    color = how.color or ("gray" if channels == 1 else "rgb")
    if COLORS[color] != channels:
        raise NervureError(f"input {port.name!r} has {channels} channels, color={color} gives {COLORS[color]}")
    pixels = _pixels(path, (height, width), "L" if color == "gray" else "RGB", how.crop).reshape(height, width, -1)
    values = _normalised(pixels, port, how)
    if color == "bgr":
        values = values[:, :, ::-1]
    if "c" in layout and layout.index("c") < layout.index("h"):
        values = values.transpose(2, 0, 1)
    elif "c" not in layout:
        values = values[:, :, 0]
    return np.ascontiguousarray(values[None] if layout.startswith("n") else values)


def _place(port: Port, how: Preprocess) -> tuple[str, int, int, int]:
    """Layout, height, width and channels of an input; NervureError where it holds no picture."""
    shape = port.shape
    layout = how.layout or _guess(shape)
    if layout is None or len(layout) != len(shape) or (layout.startswith("n") and shape[0] != 1):
        why = f"{port.dtype}{list(shape)} is no picture" + (f" in layout {how.layout}" if how.layout else "")
        raise NervureError(f"a picture does not fit input {port.name!r}", why=why, hint="give a .npy or .npz file")
    size = dict(zip(layout, shape, strict=True))
    height, width = how.size or (size["h"], size["w"])
    return layout, height, width, size.get("c", 1)


def _guess(shape: tuple[int, ...]) -> str | None:
    if len(shape) == 2:
        return "hw"
    if len(shape) not in (3, 4):
        return None
    batch, rest = ("n", shape[1:]) if len(shape) == 4 else ("", shape)
    if rest[0] in (1, 3):
        return f"{batch}chw"
    return f"{batch}hwc" if rest[2] in (1, 3) else None


def _pixels(path: Path, size: tuple[int, int], mode: str, crop: float | None) -> np.ndarray:
    """Height x width (x 3) bytes."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingTool("reading pictures needs Pillow", hint="pip install pillow, or give a .npy file") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as held:
                picture = ImageOps.exif_transpose(held).convert(mode)
    except Exception as error:  # a broken file can fail anywhere in its decoder
        raise NervureError(
            "the picture cannot be read", where=str(path), why=f"{type(error).__name__}: {error}"
        ) from error
    if crop is not None:
        picture = _middle(picture, size, crop)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _middle(picture: Any, size: tuple[int, int], crop: float) -> Any:
    """The middle of a picture in the shape of ``size``; its tighter side is ``crop`` of the picture's."""
    factor = min(picture.height / size[0], picture.width / size[1]) * crop
    height, width = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _normalised(pixels: np.ndarray, port: Port, how: Preprocess) -> np.ndarray:
    dtype = np.dtype(port.dtype)
    plain = how == Preprocess(size=how.size, layout=how.layout, color=how.color, crop=how.crop)
    if dtype.kind in "iu" and plain:
        return pixels.astype(dtype)
    low, high = how.range or (0.0, 1.0)
    scale = (high - low) / 255 if how.scale is None else how.scale
    values = pixels.astype(np.float32) * np.float32(scale) + np.float32(low if how.scale is None else 0)
    mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
    if values.shape[-1] == 1:
        mean, std = mean.mean(), std.mean()
    values = (values - mean) / std
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)
