"""Matrix products, convolutions and pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...compiler.ir import Value
from ...errors import NervureError
from .context import Context, OnnxNode, Unsupported
from .registry import Lowered, lowers

# -- matrix products ---------------------------------------------------------------------------------------------------


@lowers("Gemm")
def gemm(c: Context, n: OnnxNode) -> Lowered:
    a, b, bias = n.input(0), n.input(1), n.optional(2)
    a = c.transpose(a, (1, 0)) if n.attr("transA", 0) else a
    b = c.transpose(b, (1, 0)) if n.attr("transB", 0) else b
    alpha, beta = n.attr("alpha", 1.0), n.attr("beta", 1.0)
    y = c.op("matmul", a, b)
    if alpha != 1.0:
        y = c.op("mul", y, c.like(alpha if c.is_float(y) else int(alpha), y))
    if bias is None or beta == 0.0:
        return y
    if beta != 1.0:
        bias = c.op("mul", bias, c.like(beta if c.is_float(bias) else int(beta), bias))
    return c.op("add", y, bias)


# -- windows -----------------------------------------------------------------------------------------------------------


class Windows:
    """Kernel, strides, dilations and explicit pads of a convolution or pool over ``size``."""

    def __init__(self, n: OnnxNode, size: Sequence[int], kernel: Sequence[int], *, pads: bool = True) -> None:
        self.rank = len(size)
        if not 1 <= self.rank <= 3:
            raise Unsupported(f"{self.rank} spatial dimensions", "1 to 3 spatial dimensions")
        self.kernel = tuple(kernel)
        self.strides = tuple(n.attr("strides") or (1,) * self.rank)
        self.dilations = tuple(n.attr("dilations") or (1,) * self.rank)
        if len(self.kernel) != self.rank or len(self.strides) != self.rank or len(self.dilations) != self.rank:
            raise NervureError("kernel, strides and dilations need one entry for each spatial axis", where=n.path)
        if min(*self.strides, *self.dilations, *self.kernel) < 1:
            raise NervureError("kernel, strides and dilations must be positive", where=n.path)
        self.extent = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        self.pads = self._pads(n, size) if pads else (0,) * (2 * self.rank)

    def _pads(self, n: OnnxNode, size: Sequence[int]) -> tuple[int, ...]:
        mode = n.attr("auto_pad", "NOTSET")
        if mode in ("NOTSET", ""):
            given = tuple(n.attr("pads") or (0,) * (2 * self.rank))
            if len(given) != 2 * self.rank:
                raise NervureError("pads need two entries for each spatial axis", where=n.path)
            return given
        if mode == "VALID":
            return (0,) * (2 * self.rank)
        totals = [max((-(-d // s) - 1) * s + e - d, 0) for d, s, e in zip(size, self.strides, self.extent, strict=True)]
        return split_pads(totals, more_at_end=mode == "SAME_UPPER")

    def closed(self, size: Sequence[int], ceil: bool) -> tuple[int, ...]:
        """Pads under which the windows tile the padded input exactly: what ceil_mode adds becomes padding."""
        ends = list(self.pads)
        for i, (d, s, e) in enumerate(zip(size, self.strides, self.extent, strict=True)):
            span = d + self.pads[i] + self.pads[self.rank + i] - e
            count = (-(-span // s) if ceil else span // s) + 1
            if ceil and (count - 1) * s >= d + self.pads[i]:  # the last window may not start in the padding
                count -= 1
            ends[self.rank + i] = (count - 1) * s + e - d - self.pads[i]
        return tuple(ends)


def split_pads(totals: Sequence[int], *, more_at_end: bool) -> tuple[int, ...]:
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return tuple(small + large if more_at_end else large + small)


# -- convolutions ------------------------------------------------------------------------------------------------------


@lowers("Conv")
def conv(c: Context, n: OnnxNode) -> Lowered:
    return convolve(c, n, n.input(0), n.input(1), n.optional(2))


def convolve(c: Context, n: OnnxNode, x: Value, w: Value, bias: Value | None, op: str = "conv", **attrs: Any) -> Value:
    """A convolution (of the table's operator ``op``) by the attributes of a Conv-like node. Negative pads cut the
    input."""
    windows = Windows(n, c.shape(x)[2:], c.shape(w)[2:])
    for i in range(windows.rank):
        low, high = min(windows.pads[i], 0), min(windows.pads[windows.rank + i], 0)
        x = c.slice(x, 2 + i, -low, c.shape(x)[2 + i] + high)
    return c.op(
        op,
        x,
        w,
        bias,
        strides=windows.strides,
        pads=tuple(max(p, 0) for p in windows.pads),
        dilations=windows.dilations,
        group=n.attr("group", 1),
        **attrs,
    )


@lowers("ConvTranspose")
def conv_transpose(c: Context, n: OnnxNode) -> Lowered:
    x, w = n.input(0), n.input(1)
    size = c.shape(x)[2:]
    windows = Windows(n, size, c.shape(w)[2:], pads=False)
    extra = list(n.attr("output_padding") or (0,) * windows.rank)
    wanted, mode = n.attr("output_shape"), n.attr("auto_pad", "NOTSET")
    pads: tuple[int, ...] = tuple(n.attr("pads") or (0,) * (2 * windows.rank))
    same = mode in ("SAME_UPPER", "SAME_LOWER")
    if wanted is None and same:
        wanted = [d * s for d, s in zip(size, windows.strides, strict=True)]
    if wanted is not None:
        totals = []
        for i, d in enumerate(size):
            full = (d - 1) * windows.strides[i] + extra[i] + windows.extent[i]
            target = list(wanted)[i - windows.rank]
            extra[i] += max(target - full, 0)
            totals.append(max(full - target, 0))
        pads = split_pads(totals, more_at_end=mode == "SAME_UPPER")
    elif mode == "VALID":
        pads = (0,) * (2 * windows.rank)
    return c.op(
        "conv_transpose",
        x,
        w,
        n.optional(2),
        strides=windows.strides,
        pads=pads,
        dilations=windows.dilations,
        group=n.attr("group", 1),
        output_padding=tuple(extra),
    )


# -- pools -------------------------------------------------------------------------------------------------------------


@lowers("MaxPool")
def max_pool(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    windows = Windows(n, c.shape(x)[2:], n.attr("kernel_shape"))
    wants = n.wants(1)
    results = c.many(
        "max_pool",
        x,
        kernel_shape=windows.kernel,
        strides=windows.strides,
        pads=windows.pads,
        dilations=windows.dilations,
        ceil_mode=bool(n.attr("ceil_mode", 0)),
        indices=wants,
    )
    if wants and n.attr("storage_order", 0):
        results[1] = _column_major(c, results[1], c.shape(x)[2:])
    return results


def _column_major(c: Context, flat: Value, size: Sequence[int]) -> Value:
    """Flat places within [N,C,spatial] counted with the first spatial axis running fastest."""

    def number(value: int) -> Value:
        return c.scalar(value, "int64")

    plane = math.prod(size)
    inside = c.op("mod", flat, number(plane))
    total = c.op("sub", flat, inside)
    stride = plane
    weight = 1
    for d in size:
        stride //= d
        at = c.op("mod", c.op("div", inside, number(stride)), number(d))
        total = c.op("add", total, c.op("mul", at, number(weight)))
        weight *= d
    return total


def average(c: Context, x: Value, windows: Windows, *, ceil: bool, whole: bool) -> Value:
    return c.op(
        "avg_pool",
        x,
        kernel_shape=windows.kernel,
        strides=windows.strides,
        pads=windows.pads,
        dilations=windows.dilations,
        ceil_mode=ceil,
        count_include_pad=whole,
    )


@lowers("AveragePool")
def average_pool(c: Context, n: OnnxNode) -> Lowered:
    x = n.input(0)
    windows = Windows(n, c.shape(x)[2:], n.attr("kernel_shape"))
    return average(c, x, windows, ceil=bool(n.attr("ceil_mode", 0)), whole=bool(n.attr("count_include_pad", 0)))


@lowers("LpPool")
def lp_pool(c: Context, n: OnnxNode) -> Lowered:
    """(sum |x|^p)^(1/p): the sum is an average over padded windows times the size of the kernel."""
    x, p = n.input(0), n.attr("p", 2)
    windows = Windows(n, c.shape(x)[2:], n.attr("kernel_shape"))
    windows.pads = windows.closed(c.shape(x)[2:], bool(n.attr("ceil_mode", 0)))
    if any(pad < 0 for pad in windows.pads):
        for i in range(windows.rank):
            x = c.slice(x, 2 + i, 0, c.shape(x)[2 + i] + min(windows.pads[windows.rank + i], 0))
        windows.pads = tuple(max(pad, 0) for pad in windows.pads)
    mean = average(c, raised(c, x, p), windows, ceil=False, whole=True)
    return rooted(c, c.op("mul", mean, c.like(math.prod(windows.kernel), mean)), p)


def raised(c: Context, x: Value, p: float) -> Value:
    """|x|^p."""
    if p == 2:
        return c.op("mul", x, x)
    size = c.op("abs", x)
    return size if p == 1 else c.op("pow", size, c.like(p, x))


def rooted(c: Context, x: Value, p: float) -> Value:
    """x^(1/p)."""
    if p == 1:
        return x
    return c.op("sqrt", x) if p == 2 else c.op("pow", x, c.like(1.0 / p, x))


def _spatial(c: Context, n: OnnxNode) -> tuple[int, ...]:
    return tuple(range(2, c.rank(n.input(0))))


@lowers("GlobalAveragePool")
def global_average_pool(c: Context, n: OnnxNode) -> Lowered:
    return c.reduce("mean", n.input(0), _spatial(c, n))


@lowers("GlobalMaxPool")
def global_max_pool(c: Context, n: OnnxNode) -> Lowered:
    return c.reduce("max", n.input(0), _spatial(c, n))


@lowers("GlobalLpPool")
def global_lp_pool(c: Context, n: OnnxNode) -> Lowered:
    p = n.attr("p", 2)
    return rooted(c, c.reduce("sum", raised(c, n.input(0), p), _spatial(c, n)), p)
