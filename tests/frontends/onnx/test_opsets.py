"""Every opset from 7 to the newest: each operator in every form that it has had, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

NEWEST = onnx.defs.onnx_opset_version()
RNG = np.random.default_rng(7)
X = RNG.standard_normal((2, 3, 8, 9)).astype(np.float32)
WEIGHTS = RNG.random((8, 9)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
Make = Callable[[int], tuple[list[Any], dict[str, np.ndarray]]]  # opset -> nodes, constants
SWEEP: dict[str, tuple[Make, int, np.ndarray]] = {}  # name -> form, first opset, input


def _node(op: str, inputs: list[str], **attrs: Any) -> Any:
    return onnx.helper.make_node(op, inputs, ["y"], **{k: v for k, v in attrs.items() if v is not None})


def case(name: str, make: Make, since: int = 7, x: np.ndarray = X) -> None:
    SWEEP[name] = (make, since, x)


def plain(op: str, since: int = 7, x: np.ndarray = X, **attrs: Any) -> None:
    case(op + "".join(f"-{k}={v}" for k, v in attrs.items()), lambda opset: ([_node(op, ["x"], **attrs)], {}), since, x)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def attribute_or_input(op: str, moved: int, field: str, values: tuple[int, ...], since: int = 7, **attrs: Any) -> None:
    """A list of integers that was an attribute before opset ``moved`` and is an input from there on."""

    def make(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
        if opset < moved:
            return [_node(op, ["x"], **{field: values}, **attrs)], {}
        return [_node(op, ["x", "l"], **attrs)], {"l": ints(*values)}

    case(f"{op}-{field}{values}" + "".join(f"-{k}={v}" for k, v in attrs.items()), make, since)


ACTIVATIONS = "Abs Neg Exp Floor Ceil Sigmoid Relu Tanh Sin Cos Atan Identity Elu Selu LeakyRelu Softplus Softsign"
for _op in ACTIVATIONS.split():
    plain(_op)
for _op in ("Sqrt", "Log", "Reciprocal"):
    plain(_op, x=POSITIVE)
for _op, _since in {
    "Erf": 9,
    "Sign": 9,
    "Sinh": 9,
    "Round": 11,
    "Celu": 12,
    "HardSwish": 14,
    "Mish": 18,
    "Gelu": 20,
}.items():
    plain(_op, _since)
plain("Shrink", 9, lambd=0.4, bias=0.2)
plain("ThresholdedRelu", 10, alpha=0.3)
plain("HardSigmoid", alpha=0.3, beta=0.4)
plain("IsNaN", 9, np.array([0, np.nan, np.inf], np.float32))
plain("IsInf", 10, np.array([0, np.nan, np.inf, -np.inf], np.float32), detect_negative=0)
for _op in ("Softmax", "LogSoftmax", "Hardmax"):
    plain(_op)
    plain(_op, axis=1)
    plain(_op, axis=0)
KINDS = "Max Mean Min Prod L1 L2 LogSum LogSumExp SumSquare"
for _kind in KINDS.split():
    attribute_or_input(f"Reduce{_kind}", 18, "axes", (1, 3))
    plain(f"Reduce{_kind}", x=POSITIVE, keepdims=0)
attribute_or_input("ReduceSum", 13, "axes", (0, 2), keepdims=0)
plain("ReduceSum")
for _op in ("ArgMax", "ArgMin"):
    plain(_op, axis=2, keepdims=0)
plain("ArgMax", 12, np.array([[1, 2, 2], [3, 3, 0]], np.float32), axis=1, select_last_index=1)
plain("Flatten", axis=2)
plain("Transpose", perm=[2, 0, 3, 1])
plain("DepthToSpace", x=RNG.standard_normal((1, 12, 2, 3)).astype(np.float32), blocksize=2)
plain("DepthToSpace", 11, RNG.standard_normal((1, 12, 2, 3)).astype(np.float32), blocksize=2, mode="CRD")
plain("SpaceToDepth", x=RNG.standard_normal((1, 3, 4, 6)).astype(np.float32), blocksize=2)
plain("LRN", size=3, alpha=0.2, beta=0.6, bias=1.5)
plain("LpNormalization", axis=1, p=1)
plain("LpNormalization", axis=2)
plain("MeanVarianceNormalization", 9)
plain("GlobalAveragePool")
plain("GlobalMaxPool")
plain("GlobalLpPool", p=3)
plain("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
plain("MaxPool", 10, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 1])
plain("MaxPool", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2])
plain("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 3])
plain("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
plain("AveragePool", 10, kernel_shape=[3, 3], pads=[1, 0, 1, 1], strides=[2, 2], ceil_mode=1)
plain("AveragePool", 19, kernel_shape=[2, 2], dilations=[2, 3])
plain("LpPool", kernel_shape=[3, 2], strides=[2, 1], p=3)
plain("LpPool", 18, kernel_shape=[3, 2], strides=[2, 2], p=2, ceil_mode=1, dilations=[1, 2])
plain("EyeLike", 9, X[0, 0], k=1)
plain("Shape")
plain("Shape", 15, start=1, end=-1)
plain("Size")
plain("NonZero", 9, np.array([[1, 0, 2], [0, 0, 3]], np.float32))
attribute_or_input("Squeeze", 13, "axes", (0,))
SWEEP["Squeeze-axes(0,)"] = (*SWEEP["Squeeze-axes(0,)"][:2], X[:1])
plain("Squeeze", x=X[:1])
attribute_or_input("Unsqueeze", 13, "axes", (0, 5))
plain("Cast", to=6, x=X * 10)
plain("Cast", to=9, x=np.array([0, 1.5, -2], np.float32))


def _clip(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    if opset < 11:
        return [_node("Clip", ["x"], min=-0.5, max=0.7)], {}
    return [_node("Clip", ["x", "low", "high"])], {"low": np.float32(-0.5), "high": np.float32(0.7)}


def _dropout(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    return [_node("Dropout", ["x"], ratio=0.3 if opset < 12 else None)], {}


def _split(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    pieces = onnx.helper.make_node("Split", ["x"] if opset < 13 else ["x", "s"], ["a", "b"], axis=3)
    if opset < 13:
        pieces.attribute.append(onnx.helper.make_attribute("split", [4, 5]))
    return [pieces, _node("Concat", ["b", "a"], axis=3)], {} if opset < 13 else {"s": ints(4, 5)}


def _uneven_split(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    pieces = onnx.helper.make_node("Split", ["x"], ["a", "b"], axis=3, num_outputs=2)
    return [pieces, _node("Concat", ["b", "a"], axis=3)], {}


def _slice(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    if opset < 10:
        return [_node("Slice", ["x"], starts=[1, -4], ends=[9999, -1], axes=[2, 3])], {}
    consts = {"s": ints(6, -1), "e": ints(1, -9999), "a": ints(2, 3), "p": ints(-2, -3)}
    return [_node("Slice", ["x", "s", "e", "a", "p"])], consts


def _pad(mode: str) -> Make:
    pads = (0, 0, 2, 1, 0, 0, -1, 3)

    def make(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
        if opset < 11:
            return [_node("Pad", ["x"], pads=pads, mode=mode, value=1.5 if mode == "constant" else None)], {}
        inputs = ["x", "p", "v"] if mode == "constant" else ["x", "p"]
        return [_node("Pad", inputs, mode=mode)], {"p": ints(*pads), "v": np.float32(1.5)}

    return make


def _pad_axes(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    return [_node("Pad", ["x", "p", "", "a"], mode="edge")], {"p": ints(1, 2, 3, 0), "a": ints(-1, 1)}


def _topk(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    names = ["y", "i"]
    if opset < 10:
        return [onnx.helper.make_node("TopK", ["x"], names, k=3, axis=1)], {}
    largest = {"largest": 0} if opset >= 11 else {}
    return [onnx.helper.make_node("TopK", ["x", "k"], names, axis=2, **largest)], {"k": ints(3)}


def _upsample(mode: str) -> Make:
    def make(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
        scales = [1.0, 1.0, 2.0, 3.0]
        if opset < 9:
            return [_node("Upsample", ["x"], scales=scales, mode=mode)], {}
        if opset == 9:
            return [_node("Upsample", ["x", "s"], mode=mode)], {"s": np.array(scales, np.float32)}
        if opset == 10:
            return [_node("Resize", ["x", "s"], mode=mode)], {"s": np.array(scales, np.float32)}
        attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        consts = {"s": np.array(scales, np.float32), "r": np.zeros(0, np.float32)}
        return [_node("Resize", ["x", "r", "s"], mode=mode, **attrs)], consts

    return make


def _resize(mode: str, coordinate: str, shape: tuple[int, ...] | None = None, **attrs: Any) -> Make:
    def make(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
        empty = np.zeros(0, np.float32)
        common = {"mode": mode, "coordinate_transformation_mode": coordinate, **attrs}
        if shape is None:
            inputs, consts = ["x", "r", "s"], {"s": np.array([1, 1, 0.6, 1.7], np.float32)}
        else:
            inputs, consts = ["x", "r", "" if opset >= 13 else "e", "z"], {"z": ints(*shape)}
        return [_node("Resize", inputs, **common)], {"r": empty, "e": empty, **consts}

    return make


def _batch_norm(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    consts = {k: WEIGHTS[i, :3] for i, k in enumerate("sbmv")}
    return [_node("BatchNormalization", ["x", *"sbmv"], epsilon=1e-3)], consts


def _gemm(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    consts = {"w": X[0, 0], "b": X[0, 0, 0:1]}
    return [_node("Gemm", ["x", "w", "b"], alpha=0.5, beta=2.0, transA=1)], consts


def _prelu(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    return [_node("PRelu", ["x", "s"])], {"s": WEIGHTS[:3, :1, None]}


def _scatter(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    consts = {"i": np.zeros((1, 3, 1, 1), np.int64) - (1 if opset >= 11 else 0), "u": np.ones((1, 3, 1, 1), np.float32)}
    return [_node("Scatter" if opset < 11 else "ScatterElements", ["x", "i", "u"], axis=2)], consts


def _cumsum(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    return [_node("CumSum", ["x", "a"], exclusive=1, reverse=1)], {"a": np.array(-1, np.int32)}


def _one_hot(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    return [_node("OneHot", ["x", "d", "v"], axis=1)], {"d": ints(5), "v": np.array([0, 2], np.float32)}


def _group_norm(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    size = 2 if opset < 21 else 4
    consts = {"s": np.arange(1, 1 + size, dtype=np.float32), "b": np.ones(size, np.float32)}
    return [_node("GroupNormalization", ["x", "s", "b"], num_groups=2)], consts


def _layer_norm(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    names = ["y", "m", "r"]
    consts = {"s": WEIGHTS, "b": WEIGHTS[::-1]}
    return [onnx.helper.make_node("LayerNormalization", ["x", "s", "b"], names, axis=-2)], consts


def _quantize(opset: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    scale = np.array(0.05, np.float32) if opset < 13 else np.array([0.05, 0.1, 0.02], np.float32)
    consts = {"s": scale, "z": np.full(scale.shape, 128, np.uint8)}
    axis = {} if opset < 13 else {"axis": 1}
    first = onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis)
    return [first, _node("DequantizeLinear", ["q", "s", "z"], **axis)], consts


case("Clip", _clip)
case("Dropout", _dropout)
case("Split", _split)
case("Split-uneven", _uneven_split, 18)
case("Slice", _slice)
for _mode in ("constant", "edge"):
    case(f"Pad-{_mode}", _pad(_mode))
case("Pad-reflect", _pad("reflect"), 13)
case("Pad-axes", _pad_axes, 18)
case("TopK", _topk, x=RNG.permutation(432).astype(np.float32).reshape(X.shape))
for _mode in ("nearest", "linear"):
    case(f"Upsample-{_mode}", _upsample(_mode))
for _mode, _coordinate in (("nearest", "half_pixel"), ("linear", "align_corners"), ("cubic", "pytorch_half_pixel")):
    case(f"Resize-{_mode}-{_coordinate}", _resize(_mode, _coordinate), 11)
    case(f"Resize-{_mode}-sizes", _resize(_mode, _coordinate, (2, 3, 5, 14)), 11)
case("Resize-antialias", _resize("linear", "half_pixel", (2, 3, 5, 4), antialias=1), 18)
case("BatchNormalization", _batch_norm)
case("Gemm", _gemm, x=X[0, 1])
case("PRelu", _prelu)
case("Scatter", _scatter, 9)
case("CumSum", _cumsum, 11)
case("OneHot", _one_hot, 9, np.array([[0, 3], [4, 1]], np.int64))
case("GroupNormalization", _group_norm, 18, RNG.standard_normal((2, 4, 5)).astype(np.float32))
case("LayerNormalization", _layer_norm, 17)
case("QuantizeLinear", _quantize, 10)


def _sweep(kit: SimpleNamespace, name: str) -> Iterator[int]:
    """Runs one form through all opsets; ONNX Runtime's last result stands in for opsets that it does not know."""
    make, since, x = SWEEP[name]
    wanted = None
    for opset in range(since, NEWEST + 1):
        nodes, consts = make(opset)
        outputs = [o for o in nodes[-1].output]
        used = {i for n in nodes for i in n.input}
        model = kit.build(nodes, {"x": x}, outputs, {k: v for k, v in consts.items() if k in used}, opset)
        try:
            wanted = kit.reference(model, {"x": x})
        except Exception:
            assert wanted is not None and opset > 20, f"{name}: ONNX Runtime does not run it at opset {opset}"
        for a, b in zip(kit.imported(model, {"x": x}), wanted, strict=True):
            kit.assert_close(a, b)
        yield opset


@pytest.mark.parametrize("name", sorted(SWEEP))
def test_every_opset(name: str, onnx_kit: SimpleNamespace) -> None:
    assert list(_sweep(onnx_kit, name))[-1] == NEWEST


@pytest.mark.parametrize("opset", [1, 6, NEWEST + 1])
def test_other_opsets_are_refused(opset: int, onnx_kit: SimpleNamespace) -> None:
    from nervure.errors import NervureError
    from nervure.frontends.onnx import load

    model = onnx_kit.build([_node("Relu", ["x"])], {"x": X}, opset=opset)
    with pytest.raises(NervureError, match=f"opset {opset}; 7 to {NEWEST} can be read"):
        load(model)
