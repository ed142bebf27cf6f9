"""The rules of the op table beyond its cases: refusals, symbolic dimensions, special values, window arithmetic."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.ops import OPS, OpError, infer
from nervure.compiler.ops.shapes import broadcast_shapes, normalise_axes, pooled_extent
from nervure.compiler.types import TensorType

F, L, B = "float32", "int64", "bool"


def ty(dtype: str, *shape: int | str) -> TensorType:
    return TensorType(dtype, shape)


def call(name: str, *types: TensorType | None, **attrs: Any) -> tuple[TensorType, ...]:
    return infer(name, types, attrs)[0]


CONV: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
POOL: dict[str, Any] = {"kernel_shape": (2, 2), **CONV}
X, W = ty(F, 1, 4, 8, 8), ty(F, 6, 4, 3, 3)
SEQ, GATES, BACK = ty(F, 5, 2, 3), ty(F, 1, 16, 3), ty(F, 1, 16, 4)

REFUSED: list[tuple[str, tuple[TensorType | None, ...], dict[str, Any], str]] = [
    ("exp", (ty("int32", 3),), {}, "x: expected a float type; got i32[3]"),
    ("logical_not", (ty(F, 3),), {}, "x: expected bool; got f32[3]"),
    ("bitwise_and", (ty(F, 3), ty(F, 3)), {}, "a: expected an integer type; got f32[3]"),
    ("add", (ty(F, 2, 3), ty(F, 4)), {}, "broadcast together; got [2,3] and [4]"),
    ("add", (ty(F, 3), ty(L, 3)), {}, "expected one element type; got f32[3] and i64[3]"),
    ("add", (ty(F, "n"), ty(F, "m")), {}, "got [n] and [m] (m against n)"),
    ("where", (ty(F, 3), ty(F, 3), ty(F, 3)), {}, "condition: expected bool; got f32[3]"),
    ("cast", (ty(F, 3),), {"to": "complex64"}, "got 'complex64'"),
    ("cast", (ty(F, 3),), {}, "cast needs to"),
    ("elu", (ty(F, 3),), {"gamma": 1.0}, "elu has no attribute gamma; it has alpha"),
    ("add", (ty(F, 3),), {}, "add takes a, b; got 1 inputs"),
    ("quantize", (ty(F, 3), ty(F), ty("int8")), {"to": "uint8"}, "zero_point: expected uint8; got i8[]"),
    ("quantize", (ty(F, 3), ty(F, 2)), {"to": "int8"}, "scale: expected a shape that broadcasts to [3]; got [2]"),
    ("trilu", (ty(F, 3),), {}, "x: expected rank at least 2; got f32[3]"),
    ("reduce_sum", (ty(F, 2, 3),), {"axes": (2,)}, "axes: expected -2 to 1 for rank 2; got 2"),
    ("reduce_sum", (ty(F, 2, 3),), {"axes": (1, -1)}, "expected each axis once; got (1, -1)"),
    ("argmax", (ty(F, 2, 0),), {"axis": 1}, "at least one element along axis 1; got f32[2,0]"),
    ("cumsum", (ty(F, 2),), {"axis": 1}, "axis: expected -1 to 0 for rank 1; got 1"),
    ("matmul", (ty(F, 2, 3), ty(F, 4, 5)), {}, "equal inner dimensions; got [2,3] and [4,5] (3 against 4)"),
    ("matmul", (ty(F), ty(F, 4)), {}, "rank 1 or more; got [] and [4]"),
    ("matmul", (ty(F, 2, 3, 4), ty(F, 3, 4, 5)), {}, "got [2] and [3]"),
    ("conv", (X, ty(F, 6, 3, 3, 3)), CONV, "w: expected 4 input channels (group 1); got f32[6,3,3,3]"),
    ("conv", (X, W), {**CONV, "group": 3}, "group: expected a divisor of the channels; got 3"),
    ("conv", (X, W, ty(F, 5)), CONV, "b: expected shape [6]; got [5]"),
    ("conv", (X, W), {**CONV, "strides": (1,)}, "strides: expected 2 values; got (1,)"),
    ("conv", (X, W), {**CONV, "strides": (0, 1)}, "strides: expected values of at least 1; got (0, 1)"),
    ("conv", (X, W), {**CONV, "pads": (0, 0, -1, 0)}, "pads: expected values of at least 0"),
    (
        "conv",
        (ty(F, 1, 4, 2, 8), W),
        CONV,
        "expected at least 3 elements (kernel 3, dilation 1); got 2 + padding 0 + 0",
    ),
    ("conv", (ty(F, 1, 4, "h", 8), W), CONV, "spatial axis: expected a bound dimension; got 'h'"),
    ("conv", (ty(F, 4, 8), ty(F, 6, 4)), CONV, "x: expected rank 3 to 5; got f32[4,8]"),
    (
        "conv_transpose",
        (X, ty(F, 3, 4, 3, 3)),
        {**CONV, "output_padding": (0, 0)},
        "w: expected 4 input channels (group 1); got f32[3,4,3,3]",
    ),
    ("max_pool", (ty(B, 1, 4, 8, 8),), POOL, "x: expected a number type; got b1[1,4,8,8]"),
    ("avg_pool", (X,), {**POOL, "kernel_shape": (9, 2)}, "at least 9 elements"),
    (
        "max_pool",
        (X,),
        {**POOL, "pads": (0, 0, 0, 2)},
        "expected less than the window's extent (2, 2); got (0, 0, 0, 2)",
    ),
    ("softmax", (ty(F, 2),), {"axis": 1}, "axis: expected -1 to 0 for rank 1; got 1"),
    (
        "layer_norm",
        (ty(F, 2, 3), ty(F, 2)),
        {"axis": -1, "epsilon": 1e-5},
        "scale: expected a shape that broadcasts to [3]",
    ),
    ("batch_norm", (X, *[ty(F, 5)] * 4), {"epsilon": 1e-5}, "scale: expected shape [4]; got [5]"),
    ("group_norm", (X,), {"num_groups": 3, "epsilon": 1e-5}, "expected a divisor of 4 channels; got 3"),
    ("attention", (ty(F, 2, 3, 4), ty(F, 2, 5, 6), ty(F, 2, 5, 6)), {"scale": 1.0}, "last extent of q f32[2,3,4]"),
    ("attention", (ty(F, 2, 3, 4), ty(F, 2, 5, 4), ty(F, 2, 6, 4)), {"scale": 1.0}, "v: expected the shape of k"),
    ("attention", (*[ty(F, 3, 4)] * 3, ty(F, 3, 4)), {"scale": 1.0}, "mask: expected a shape that broadcasts to [3,3]"),
    ("lstm", (SEQ, GATES, BACK), {"direction": "up"}, "direction: expected one of forward, reverse, bidirectional"),
    ("lstm", (SEQ, GATES, BACK), {"direction": "bidirectional"}, "w: expected shape [2,16,3]; got [1,16,3]"),
    ("lstm", (SEQ, GATES, BACK), {"activations": ("Tanh",)}, "activations: expected 3; got 1"),
    ("gru", (SEQ, ty(F, 1, 12, 3), ty(F, 1, 12, 4)), {"activations": ("Foo", "Tanh")}, "got Foo"),
    ("rnn", (SEQ, ty(F, 1, 4, 3), ty(F, 1, 4, 4), None, ty(L, 3)), {}, "lengths: expected shape [2]; got [3]"),
]


@pytest.mark.parametrize("name, types, attrs, message", REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
def test_refusals_show_expected_and_got(
    name: str, types: tuple[TensorType | None, ...], attrs: dict[str, Any], message: str
) -> None:
    with pytest.raises(OpError, match=re.escape(message)):
        call(name, *types, **attrs)


def test_symbolic_dimensions_pass_through() -> None:
    n, text = ty(F, "n", 4, 8, 8), ty(F, "n", "s", 64)
    assert call("add", n, ty(F, 4, 1, 1)) == (n,)
    assert call("less", text, text)[0].shape == ("n", "s", 64)
    assert call("conv", n, W, **CONV)[0].shape == ("n", 6, 6, 6)
    assert call("max_pool", n, **POOL, indices=True)[1] == ty(L, "n", 4, 7, 7)
    assert call("reduce_mean", n, axes=(2, 3), keepdims=True)[0].shape == ("n", 4, 1, 1)
    assert call("reduce_max", text, axes=(0,))[0].shape == ("s", 64)
    assert call("argmin", text, axis=-1)[0] == ty(L, "n", "s")
    assert call("matmul", text, ty(F, 64, 5))[0].shape == ("n", "s", 5)
    assert call("matmul", ty(F, "n", "s", 8), ty(F, "n", 8, "s"))[0].shape == ("n", "s", "s")
    assert call("layer_norm", text, ty(F, 64), axis=-1, epsilon=1e-5) == (text,)
    assert call("softmax", text, axis=-1) == (text,)
    head = ty(F, "n", 2, "s", 16)
    assert call("attention", head, head, head, ty(B, "n", 1, 1, "s"), scale=0.25) == (head,)
    y, h, _ = call("lstm", ty(F, "t", "n", 3), GATES, BACK)
    assert (y.shape, h.shape) == (("t", 1, "n", 4), (1, "n", 4))


def reference(name: str, *arrays: Any, **attrs: Any) -> Any:
    op = OPS[name]
    assert op.reference is not None
    return op.reference(*arrays, **{**op.attrs, **attrs})


def test_error_function_to_fifteen_digits() -> None:
    x = np.array([0.5, 1.0, 2.0, -1.0])
    expected = [0.5204998778130465, 0.8427007929497149, 0.9953222650189527, -0.8427007929497149]
    np.testing.assert_allclose(reference("erf", x), expected, rtol=1e-15)


def test_gelu_keeps_its_tail() -> None:
    # 10 erfc(10 / sqrt 2) / 2 from tables of the normal distribution: 1 - Phi(10) = 7.61985302416e-24
    np.testing.assert_allclose(reference("gelu", np.array([-10.0])), [-7.61985302416e-23], rtol=1e-10)


def test_special_values() -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    x = np.array([nan, inf, -inf, 0.0], np.float32)
    np.testing.assert_array_equal(reference("relu", x), [nan, inf, 0, 0])
    np.testing.assert_array_equal(reference("maximum", x, np.zeros(4, np.float32)), [nan, inf, 0, 0])
    np.testing.assert_array_equal(reference("clip", x, low=-1.0, high=1.0), [nan, 1, -1, 0])
    np.testing.assert_array_equal(reference("sigmoid", x), [nan, 1, 0, 0.5])
    np.testing.assert_array_equal(reference("softplus", x[1:3]), [inf, 0])
    np.testing.assert_array_equal(reference("silu", np.array([-200.0, 200.0], np.float32)), [0, 200])
    np.testing.assert_array_equal(reference("reduce_max", x[1:], axes=(0,)), inf)
    np.testing.assert_array_equal(reference("softmax", x[1:3].clip(-1e30, 1e30), axis=0), [1, 0])


def test_integers_wrap_and_truncate() -> None:
    big = np.array([127, -128], np.int8)
    np.testing.assert_array_equal(reference("add", big, np.array([1, -1], np.int8)), [-128, 127])
    np.testing.assert_array_equal(reference("neg", big), [-127, -128])
    np.testing.assert_array_equal(reference("div", np.array([7, -7, 9]), np.array([-2, 2, 0])), [-3, -3, 0])
    np.testing.assert_array_equal(reference("clip", np.array([0, 200], np.uint8), low=-3.0, high=99.5), [0, 99])
    assert reference("reduce_mean", np.array([-3, 0], np.int32), axes=(0,)) == -1
    assert reference("reduce_sum", np.full(300, 1, np.int8), axes=(0,)) == 300 - 256


def test_convolution_in_blocks_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 4, 19, 9)), rng.standard_normal((6, 2, 3, 2))
    attrs = {"strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (2, 3), "group": 2}
    whole = reference("conv", x, w, **attrs)
    monkeypatch.setattr("nervure.compiler.ops.convolutions.COLUMN_BYTES", 3 * 2 * 4 * 6 * 7 * 8)  # three rows
    np.testing.assert_allclose(reference("conv", x, w, **attrs), whole, rtol=1e-13, atol=1e-13)


def test_folds_of_nothing_give_their_unit() -> None:
    empty = np.zeros((2, 0), np.float32)
    for name, unit in (("reduce_sum", 0), ("reduce_prod", 1), ("reduce_max", -np.inf), ("reduce_min", np.inf)):
        np.testing.assert_array_equal(reference(name, empty, axes=(1,)), [unit, unit])


@settings(deadline=None)
@given(*[st.integers(a, b) for a, b in ((1, 20), (1, 5), (1, 4), (1, 3), (0, 4), (0, 4))], st.booleans())
def test_pooled_extent_counts_windows(
    extent: int, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: bool
) -> None:
    span = (kernel - 1) * dilation + 1
    begin, end = min(begin, span - 1), min(end, span - 1)  # what pools take
    padded = extent + begin + end
    if span > padded:
        with pytest.raises(OpError, match="does not fit"):
            pooled_extent(extent, kernel, stride, dilation, begin, end, ceil)
        return
    whole = [s for s in range(0, padded, stride) if s + span <= padded]
    # ceil_mode goes on while elements are left over, but starts no window in the end padding.
    reaching = [s for s in range(0, padded, stride) if s == 0 or s - stride + span < padded]
    reaching = [s for s in reaching if s == 0 or s < extent + begin]
    assert pooled_extent(extent, kernel, stride, dilation, begin, end, ceil) == len(reaching if ceil else whole)


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=3))
def test_broadcast_shapes_is_numpys(shapes: list[list[int]]) -> None:
    try:
        expected: tuple[int, ...] | None = np.broadcast_shapes(*map(tuple, shapes))
    except ValueError:
        expected = None
    if expected is None:
        with pytest.raises(OpError):
            broadcast_shapes(*shapes)
    else:
        assert broadcast_shapes(*shapes) == expected


def test_axes_are_counted_from_either_end() -> None:
    assert normalise_axes((-1, 0), 3) == (0, 2)
