"""Arithmetic on quantized tensors: integers that stand for ``(q - zero_point) scale``. Its rules are written here once.

- A product of integers is exact: sums are kept in int32, or in int64 where an operand has 16 bits. Padding is real 0.
- A sum becomes an output by ``rescale``: ``clip(round_half_even(float32(sum) * multiplier) + zero_point)``, the product
  one float32 multiplication. A float32 multiplier (24 bits) rather than a 31-bit one and a shift, because that is what
  ONNX Runtime (MLAS) and XNNPACK compute too, and every processor with an FPU gives the same bits for it.
- Two inputs are added with integer weights of 21 bits, and rounded half up by the shift (``add_shift``: XNNPACK's rule,
  so that LiteRT gives the same bits).
- Functions of one 8-bit input are tables; softmax is a table of exponentials, a sum and one ``rescale``.

The graph's ``quantize`` and ``dequantize`` say where values are integers; the pass ``integers`` turns what lies
between them into these operators. Training differentiates before that, so they have no gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .contractions import matmul_shape
from .convolutions import conv_columns, conv_output
from .record import REQUIRED, Call, Case, Cost, Kind, Op, OpError
from .sampling import t
from .selection import step_bounds
from .shapes import broadcast_shapes, count, optional, require_broadcast, require_dtype, require_shape
from .windows import output_extents, pad_spatial, padding_for, spatial_rank, taps

NARROW = ("int8", "uint8")
STEPS = ("int8", "uint8", "int16", "uint16")  # what a quantized tensor's elements may be
ADD_BITS = 20  # of the larger of add_integer's multipliers, a leading one not counted: 2 x 255 x 2^21 fits int32
ADD_SHIFTS = (9, 30)  # their fractional bits
MOST_RATIO = 2047.0  # the largest ratio of scales that they hold
EXP_BITS = 20  # fractional bits of softmax_integer's table


def total(dtype: str) -> str:
    """The type of sums of products with an operand of that type."""
    return "int64" if dtype.endswith("16") else "int32"


def rescale(
    sums: np.ndarray, multiplier: np.ndarray, zero_point: int, low: int | None, high: int | None, to: str
) -> np.ndarray:
    """``clip(round_half_even(float32(sums) * multiplier) + zero_point, low, high)``; bounds of None are ``to``'s."""
    real = sums.astype(np.float32) * np.asarray(multiplier, np.float32)
    return bounded(np.rint(real).astype(np.float64) + zero_point, low, high, to)


def bounded(values: np.ndarray, low: int | None, high: int | None, to: str) -> np.ndarray:
    """Values clipped to [low, high] and to what ``to`` holds."""
    least, most = step_bounds(low, high, to)
    return np.asarray(np.clip(values, least, most)).astype(to)


def add_shift(largest: float) -> int:
    """The fractional bits of add_integer's weights where the larger ratio of scales is that one."""
    return min(max(ADD_BITS + 1 - math.frexp(largest)[1], ADD_SHIFTS[0]), ADD_SHIFTS[1])


def add_multiplier(ratio: Any, shift: int = ADD_BITS) -> np.ndarray:
    """A ratio of scales (input over output) as add_integer's int32 weight."""
    most = 1 << (ADD_BITS + 1)
    return np.asarray(np.rint(np.clip(np.float32(ratio) * np.float32(1 << shift), -most, most)), np.int32)


def exp_table(scale: float, length: int) -> np.ndarray:
    """int32 [256]: exp(-d scale) for d = 0 .. 255 with as many fractional bits as ``length`` sums of them allow."""
    bits = min(EXP_BITS, 30 - max(1, math.ceil(math.log2(max(2, length)))))
    return np.asarray(np.rint(np.exp(-np.arange(256) * float(scale)) * (1 << bits)), np.int32)


def _shifted(x: np.ndarray, zero_point: int) -> np.ndarray:
    return x.astype(np.int64) - zero_point


def _exact(x: np.ndarray, zero_point: int) -> np.ndarray:
    """For products: float64 holds sums of fewer than 2^53, and numpy multiplies such matrices much faster."""
    return x.astype(np.float64) - zero_point


def _operand(call: Call, index: int, name: str, accepted: Sequence[str] = STEPS) -> TensorType:
    found = call.type(index)
    require_dtype(found, accepted, name)
    return found


def _range(call: Call) -> str:
    """The output type that ``to`` names; ``OpError`` for bounds that leave nothing."""
    to = str(call.attrs["to"])
    if to not in STEPS:
        raise OpError(f"to: expected one of {', '.join(STEPS)}; got {to!r}")
    low, high = step_bounds(call.attrs["low"], call.attrs["high"], to)
    if low > high:
        raise OpError(f"low, high: expected a range within {to}; got {call.attrs['low']} and {call.attrs['high']}")
    return to


_BOUNDS: Mapping[str, Any] = {"zero_point": 0, "low": None, "high": None, "to": REQUIRED}

# -- products ------------------------------------------------------------------------------------------------------


def _conv_infer(call: Call) -> Sequence[TensorType]:
    x, w, bias = _operand(call, 0, "x"), _operand(call, 1, "w", ("int8", "int16")), optional(call, 2)
    y = conv_output(call, x, w)
    if bias is not None:
        require_dtype(bias, (total(x.dtype),), "b")
        require_shape(bias, (y[1],), "b")
    return (TensorType(total(x.dtype), y),)


def _conv(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, zero_point: int, group: int, **window: Any
) -> np.ndarray:
    y = conv_columns(_exact(x, zero_point), w.astype(np.float64), group=group, **window).astype(np.int64)
    y = y if b is None else y + b.reshape(-1, *[1] * (y.ndim - 2))
    return y.astype(total(str(x.dtype)))


def _matmul_infer(call: Call) -> Sequence[TensorType]:
    a, b, bias = _operand(call, 0, "a"), _operand(call, 1, "b"), optional(call, 2)
    shape = matmul_shape(a.shape, b.shape)
    if bias is not None:
        require_dtype(bias, (total(a.dtype),), "bias")
        require_shape(bias, shape[-1:], "bias")
    return (TensorType(total(a.dtype), shape),)


def _matmul(
    a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None, *, zero_point: int, b_zero_point: int
) -> np.ndarray:
    y = np.asarray(np.matmul(_exact(a, zero_point), _exact(b, b_zero_point))).astype(np.int64)
    return np.asarray(y if bias is None else y + bias).astype(total(str(a.dtype)))


def _sum_pool_infer(call: Call) -> Sequence[TensorType]:
    x, attrs = _operand(call, 0, "x"), call.attrs
    spatial_rank(x, attrs, ("kernel_shape", "strides", "dilations"))
    window = (attrs["kernel_shape"], attrs["strides"], attrs["pads"], attrs["dilations"], False)
    return (TensorType("int32", (*x.shape[:2], *output_extents(list(x.dims[2:]), *window))),)


def _sum_pool(
    x: np.ndarray,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    zero_point: int,
) -> np.ndarray:
    outputs = output_extents(x.shape[2:], kernel_shape, strides, pads, dilations, False)
    reach = padding_for(x.shape[2:], outputs, kernel_shape, strides, pads, dilations)
    padded = pad_spatial(_shifted(x, zero_point), reach, 0)
    y = np.zeros((*x.shape[:2], *outputs), np.int64)
    for _, cut in taps(kernel_shape, outputs, strides, dilations):
        y += padded[cut]
    return y.astype(np.int32)


# -- element by element --------------------------------------------------------------------------------------------


def _requantize_infer(call: Call) -> Sequence[TensorType]:
    x, multiplier = call.type(0), call.type(1)
    require_dtype(x, (*STEPS, "int32", "int64"), "x")
    require_dtype(multiplier, ("float32",), "multiplier")
    require_broadcast(multiplier, x.shape, "multiplier")
    return (x.with_dtype(_range(call)),)


def _requantize(
    x: np.ndarray,
    multiplier: np.ndarray,
    *,
    x_zero_point: int,
    zero_point: int,
    low: int | None,
    high: int | None,
    to: str,
) -> np.ndarray:
    return rescale(_shifted(x, x_zero_point), multiplier, zero_point, low, high, to)


def _pair_infer(call: Call) -> tuple[TensorType, TensorType]:
    a, b = _operand(call, 0, "a"), _operand(call, 1, "b")
    if a.itemsize != b.itemsize:
        raise OpError(f"a, b: expected elements of the same width; got {a.dtype} and {b.dtype}")
    return a, b


def _add_infer(call: Call) -> Sequence[TensorType]:
    a, b = _pair_infer(call)
    for i, name in ((2, "a_multiplier"), (3, "b_multiplier"), (4, "by")):
        given = optional(call, i)
        if given is not None:
            require_dtype(given, ("int32",), name)
            require_shape(given, (), name)
    if not ADD_SHIFTS[0] <= call.attrs["shift"] <= ADD_SHIFTS[1]:
        raise OpError(f"shift: expected {ADD_SHIFTS[0]} to {ADD_SHIFTS[1]}; got {call.attrs['shift']}")
    return (TensorType(_range(call), broadcast_shapes(a.shape, b.shape)),)


def _add(
    a: np.ndarray,
    b: np.ndarray,
    a_multiplier: np.ndarray,
    b_multiplier: np.ndarray,
    by: np.ndarray | None = None,
    *,
    shift: int,
    a_zero_point: int,
    b_zero_point: int,
    zero_point: int,
    low: int | None,
    high: int | None,
    to: str,
) -> np.ndarray:
    sums = _shifted(a, a_zero_point) * a_multiplier.astype(np.int64)
    sums = sums + _shifted(b, b_zero_point) * b_multiplier.astype(np.int64)
    bits = np.int64(shift if by is None else by)
    return bounded(((sums + (np.int64(1) << (bits - 1))) >> bits) + zero_point, low, high, to)


def _mul_infer(call: Call) -> Sequence[TensorType]:
    a, b = _pair_infer(call)
    return (TensorType(total(a.dtype), broadcast_shapes(a.shape, b.shape)),)


def _mul(a: np.ndarray, b: np.ndarray, *, a_zero_point: int, b_zero_point: int) -> np.ndarray:
    product = _shifted(a, a_zero_point) * _shifted(b, b_zero_point)
    return np.asarray(product, total(str(a.dtype)))


def _lookup_infer(call: Call) -> Sequence[TensorType]:
    x, table = _operand(call, 0, "x", NARROW), call.type(1)
    require_shape(table, (256,), "table")
    return (x.with_dtype(table.dtype),)


def _lookup(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.asarray(table[x.astype(np.int64) - np.iinfo(x.dtype).min])


def _softmax_infer(call: Call) -> Sequence[TensorType]:
    x, table, multiplier = _operand(call, 0, "x", NARROW), call.type(1), call.type(2)
    require_dtype(table, ("int32",), "table")
    require_shape(table, (256,), "table")
    require_dtype(multiplier, ("float32",), "multiplier")
    require_shape(multiplier, (), "multiplier")
    if not -x.rank <= call.attrs["axis"] < x.rank:
        raise OpError(f"axis: expected one of the {x.rank} axes; got {call.attrs['axis']}")
    return (x.with_dtype(_range(call)),)


def _softmax(
    x: np.ndarray,
    table: np.ndarray,
    multiplier: np.ndarray,
    *,
    axis: int,
    zero_point: int,
    low: int | None,
    high: int | None,
    to: str,
) -> np.ndarray:
    wide = x.astype(np.int64)
    parts = table[wide.max(axis=axis, keepdims=True) - wide]
    sums = parts.sum(axis=axis, keepdims=True, dtype=np.int64)
    each = np.float32(multiplier) / sums.astype(np.float32)
    return rescale(parts, each, zero_point, low, high, to)


# -- samples -------------------------------------------------------------------------------------------------------


def _conv_case(x: Sequence[int], w: Sequence[int], dtype: str = "uint8", zero: int = 0, **given: Any) -> Case:
    rank = len(x) - 2
    attrs = {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1, **given}
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    rng = np.random.default_rng(len(x) + sum(w))
    weight = rng.integers(-127, 128, w).astype(np.int8)
    bias = rng.integers(-9999, 9999, w[0]).astype(total(dtype))
    return Case((t(dtype, *x), weight, bias), {**attrs, "zero_point": zero}, low=low, high=high, note=dtype)


def _conv_cases() -> Iterable[Case]:
    yield _conv_case((1, 8, 7, 7), (16, 8, 1, 1), zero=3)
    yield _conv_case((1, 8, 7, 7), (16, 8, 1, 1), "int8", zero=-5)
    yield _conv_case((1, 3, 12, 13), (8, 3, 3, 3), zero=128, pads=(1, 1, 1, 1))
    yield _conv_case((2, 4, 9, 9), (5, 4, 3, 3), "int8", pads=(1, 0, 1, 2))
    yield _conv_case((1, 3, 17, 15), (6, 3, 7, 7), strides=(2, 2), pads=(3, 3, 3, 3), zero=100)
    yield _conv_case((1, 16, 33, 32), (32, 16, 3, 3), pads=(1, 1, 1, 1), zero=7)
    yield _conv_case((1, 24, 9, 40), (70, 24, 1, 1), "int8", zero=1)
    yield _conv_case((1, 4, 14, 14), (4, 4, 3, 3), dilations=(2, 3), pads=(2, 3, 2, 3), zero=9)
    yield _conv_case((1, 40, 10, 10), (40, 1, 3, 3), group=40, pads=(1, 1, 1, 1), zero=2)
    yield _conv_case((1, 8, 11, 11), (8, 1, 5, 5), "int8", group=8, strides=(2, 2), pads=(2, 2, 2, 2), zero=-100)
    yield _conv_case((1, 4, 9, 9), (12, 1, 3, 3), group=4, zero=1)
    yield _conv_case((2, 8, 6, 6), (12, 4, 3, 3), group=2, pads=(1, 1, 1, 1), zero=4)
    yield _conv_case((1, 6, 8, 8), (4, 6, 1, 1), strides=(2, 2), zero=4)
    yield _conv_case((2, 3, 20), (5, 3, 4), strides=(3,), pads=(1, 2), zero=77)
    yield _conv_case((1, 2, 5, 6, 7), (3, 2, 3, 3, 3), pads=(1, 1, 1, 1, 1, 1), zero=50)
    yield _conv_case((1, 5, 6, 6), (4, 5, 3, 3), "int16", zero=0, pads=(1, 1, 1, 1))


def _matmul_cases() -> Iterable[Case]:
    rng = np.random.default_rng(7)
    for shape, other in (((1, 64), (64, 10)), ((33, 17), (17, 65)), ((2, 4, 5), (5, 6)), ((1, 640), (640, 128))):
        w = rng.integers(-127, 128, other).astype(np.int8)
        bias = rng.integers(-9999, 9999, other[-1]).astype(np.int32)
        yield Case((t("uint8", *shape), w, bias), {"zero_point": 5}, low=0, high=255, note="weights")
        yield Case((t("int8", *shape), w), {"zero_point": -3}, low=-128, high=127, note="weights")
    yield Case((t("int8", 2, 4, 8), t("int8", 2, 8, 5)), {"zero_point": 2, "b_zero_point": -1}, low=-128, high=127)


def _sum_pool_cases() -> Iterable[Case]:
    window = {"strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    yield Case((t("uint8", 1, 20, 8, 8),), {"kernel_shape": (8, 8), **window, "zero_point": 3}, low=0, high=255)
    yield Case((t("int8", 2, 5, 9, 9),), {"kernel_shape": (2, 2), **window, "zero_point": -3}, low=-128, high=127)
    yield Case(
        (t("int8", 1, 5, 9, 9),),
        {**window, "kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "zero_point": 9},
        low=-128,
        high=127,
    )


def _requantize_cases() -> Iterable[Case]:
    each = np.array([0.01, 0.002, 0.5], np.float32).reshape(3, 1, 1)
    one = np.array(0.00731, np.float32)
    yield Case((t("int32", 1, 3, 5, 7), each), {"to": "int8", "zero_point": -9}, low=-30000, high=30000)
    yield Case((t("int32", 40, 35), one), {"to": "uint8", "zero_point": 4, "low": 4, "high": 90}, low=-9999, high=50000)
    yield Case((t("int32", 7), one), {"to": "int16"}, low=-5000000, high=5000000)
    yield Case((t("uint8", 3, 70), np.array(1.7, np.float32)), {"to": "int8", "x_zero_point": 120}, low=0, high=255)
    yield Case((np.arange(-33, 33, dtype=np.int32), np.array(0.5, np.float32)), {"to": "int8"}, note="halves")
    yield Case((t("int64", 3, 9), one), {"to": "int16"}, low=-(2**40), high=2**40)


def _add_cases() -> Iterable[Case]:
    weights = (add_multiplier(0.73), add_multiplier(1.21))
    attrs = {"a_zero_point": 3, "b_zero_point": -7, "zero_point": 5, "to": "int8"}
    for a, b in (((1, 8, 6, 7), (1, 8, 6, 7)), ((3, 40), (40,))):
        yield Case((t("int8", *a), t("int8", *b), *weights), attrs, low=-128, high=127)
    pair = (t("uint8", 9, 37), t("uint8", 9, 37))
    yield Case((*pair, *weights), {"zero_point": 9, "low": 9, "to": "uint8"}, low=0, high=255)
    yield Case((t("int16", 5, 9), t("int16", 5, 9), *weights), {"to": "int16"}, low=-32768, high=32767)
    for ratios in ((0.02, 0.011), (2.1, 0.4), (300.0, 900.0)):
        shift = add_shift(max(ratios))
        parts = tuple(add_multiplier(r, shift) for r in ratios)
        to = "int16" if ratios[0] > 9 else "int8"
        yield Case((t("int8", 70), t("int8", 70), *parts), {**attrs, "shift": shift, "to": to}, low=-128, high=127)
        yield Case(
            (t("int8", 70), t("int8", 70), *parts, np.array(shift, np.int32)), {**attrs, "to": to}, low=-99, high=99
        )


def _lookup_cases() -> Iterable[Case]:
    table = np.random.default_rng(3).integers(-128, 128, 256).astype(np.int8)
    yield Case((t("int8", 3, 50), table), low=-128, high=127)
    yield Case((t("uint8", 1, 20, 5, 5), table.view(np.uint8)), low=0, high=255)


def _softmax_cases() -> Iterable[Case]:
    for dtype, low, high in (("int8", -128, 127), ("uint8", 0, 255)):
        inputs = (t(dtype, 6, 12), exp_table(0.06, 12), np.array(256.0, np.float32))
        yield Case(inputs, {"zero_point": -128, "to": "int8"}, low=low, high=high)


def _per_output(work: float, operands: int = 2) -> Any:
    def cost(call: Call) -> Cost:
        return Cost(work * count(broadcast_shapes(*(i.shape for i in call.types[:operands] if i is not None))))

    return cost


def _conv_cost(call: Call) -> Cost:
    (y,) = _conv_infer(call)
    return Cost(2.0 * count(y.shape) * count(call.type(1).shape[1:]))


def _matmul_cost(call: Call) -> Cost:
    a, b = call.type(0), call.type(1)
    return Cost(2.0 * count(matmul_shape(a.shape, b.shape)) * count(a.shape[-1:]))


_WINDOW: Mapping[str, Any] = {"strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED}

OPS = (
    Op(
        "conv_integer",
        Kind.CONTRACTION,
        _conv_infer,
        _conv,
        "Exact sums of (x - zero_point) w, plus b; what is padded counts as zero_point (ONNX ConvInteger).",
        inputs=("x", "w", "b?"),
        attrs={**_WINDOW, "group": 1, "zero_point": 0},
        cost=_conv_cost,
        cases=_conv_cases,
    ),
    Op(
        "matmul_integer",
        Kind.CONTRACTION,
        _matmul_infer,
        _matmul,
        "Exact sums of (a - zero_point) (b - b_zero_point), plus a bias for each column (ONNX MatMulInteger).",
        inputs=("a", "b", "bias?"),
        attrs={"zero_point": 0, "b_zero_point": 0},
        cost=_matmul_cost,
        cases=_matmul_cases,
    ),
    Op(
        "sum_pool_integer",
        Kind.CONTRACTION,
        _sum_pool_infer,
        _sum_pool,
        "The sum of x - zero_point over windows; what is padded counts as zero_point.",
        attrs={"kernel_shape": REQUIRED, **_WINDOW, "zero_point": 0},
        cost=lambda call: Cost(count(_sum_pool_infer(call)[0].shape) * math.prod(call.attrs["kernel_shape"])),
        cases=_sum_pool_cases,
    ),
    Op(
        "requantize",
        Kind.ELEMENTWISE,
        _requantize_infer,
        _requantize,
        "clip(round_half_even(float32(x - x_zero_point) multiplier) + zero_point, low, high).",
        inputs=("x", "multiplier"),
        attrs={"x_zero_point": 0, **_BOUNDS},
        cost=_per_output(6),
        cases=_requantize_cases,
    ),
    Op(
        "add_integer",
        Kind.ELEMENTWISE,
        _add_infer,
        _add,
        "clip((((a - a_zero_point) a_multiplier + (b - b_zero_point) b_multiplier + 2^(shift - 1)) >> shift) + "
        "zero_point); ``by`` is a shift that is computed.",
        inputs=("a", "b", "a_multiplier", "b_multiplier", "by?"),
        attrs={"shift": ADD_BITS, "a_zero_point": 0, "b_zero_point": 0, **_BOUNDS},
        cost=_per_output(9),
        cases=_add_cases,
    ),
    Op(
        "mul_integer",
        Kind.ELEMENTWISE,
        _mul_infer,
        _mul,
        "(a - a_zero_point) (b - b_zero_point).",
        inputs=("a", "b"),
        attrs={"a_zero_point": 0, "b_zero_point": 0},
        cost=_per_output(3),
        cases=lambda: [
            Case((t("int8", 4, 33), t("int8", 4, 33)), {"a_zero_point": 3, "b_zero_point": -9}, low=-128, high=127),
            Case((t("uint8", 2, 8, 5), t("uint8", 8, 1)), {"a_zero_point": 128}, low=0, high=255),
        ],
    ),
    Op(
        "lookup",
        Kind.OPAQUE,
        _lookup_infer,
        _lookup,
        "table[x - the least value of x's type]: any function of one 8-bit tensor.",
        inputs=("x", "table"),
        cost=_per_output(1, 1),
        cases=_lookup_cases,
    ),
    Op(
        "softmax_integer",
        Kind.OPAQUE,
        _softmax_infer,
        _softmax,
        "Along an axis: table[max(x) - x] times multiplier over the sum of those, rounded half to even, "
        "plus zero_point.",
        inputs=("x", "table", "multiplier"),
        attrs={"axis": -1, **_BOUNDS},
        cost=_per_output(12, 1),
        cases=_softmax_cases,
    ),
)
