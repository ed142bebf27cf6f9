"""Convolutions, pools, norms and image layers against single ONNX nodes run by ONNX Runtime, and against numpy."""

from __future__ import annotations

import nervure as nv
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

L = nv.layers
X = np.random.default_rng(0).standard_normal((2, 6, 9, 11)).astype(np.float32)


def onnx_node(op, inputs, opset=18, **attrs):
    """One ONNX node run by ONNX Runtime; None is an absent input."""
    names = [f"i{k}" if a is not None else "" for k, a in enumerate(inputs)]
    present = [(n, np.asarray(a)) for n, a in zip(names, inputs, strict=True) if n]
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attrs)],
        "one",
        [helper.make_tensor_value_info(n, types[a.dtype], a.shape) for n, a in present],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(present))[0]


def shaken(layer, x):
    """The layer's output on ``x`` with every weight replaced by random numbers, and its weights by name."""
    layer(x)
    rng = np.random.default_rng(7)
    layer.load_state_dict(
        {
            n: rng.uniform(0.5, 1.5, w.shape) * (1 if "var" in n else rng.choice([-1, 1], w.shape))
            for n, w in layer.state_dict().items()
        }
    )
    return layer(x), layer.state_dict()


def close(found, want):
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-5)


CONVS = [
    ({}, {}),
    ({"padding": "same"}, {"auto_pad": "SAME_UPPER"}),
    ({"padding": "same", "strides": 2}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ({"padding": "same", "strides": (3, 2)}, {"auto_pad": "SAME_UPPER", "strides": [3, 2]}),
    ({"padding": 1, "stride": (1, 2)}, {"pads": [1, 1, 1, 1], "strides": [1, 2]}),
    ({"padding": (0, 2)}, {"pads": [0, 2, 0, 2]}),
    ({"padding": ((1, 0), (2, 3))}, {"pads": [1, 2, 0, 3]}),
    ({"dilation": 2, "padding": "same"}, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    ({"groups": 3}, {"group": 3}),
]


@pytest.mark.parametrize(("ours", "theirs"), CONVS, ids=str)
def test_conv2d(ours, theirs):
    y, w = shaken(L.Conv2d(12, 3, **ours), X)
    assert w["weight"].shape == (12, 6 // ours.get("groups", 1), 3, 3)
    close(y, onnx_node("Conv", [X, w["weight"], w["bias"]], kernel_shape=[3, 3], **theirs))


def test_other_convolutions():
    x1, x3 = X[:, :, :, 0], X[:1, :, :5, :6, None] * np.ones(4, np.float32)
    y, w = shaken(L.Conv1d(4, 5, padding="same", use_bias=False), x1)
    close(y, onnx_node("Conv", [x1, w["weight"]], auto_pad="SAME_UPPER"))
    y, w = shaken(L.Conv3d(2, (2, 3, 1)), x3)
    close(y, onnx_node("Conv", [x3, w["weight"], w["bias"]]))
    y, w = shaken(L.DepthwiseConv2d(3, depth_multiplier=2), X)
    assert w["weight"].shape == (12, 1, 3, 3)
    close(y, onnx_node("Conv", [X, w["weight"], w["bias"]], group=6))
    y, w = shaken(L.SeparableConv2d(5, 3, activation="relu"), X)
    middle = onnx_node("Conv", [X, w["depthwise.weight"]], group=6)
    close(y, np.maximum(onnx_node("Conv", [middle, w["pointwise.weight"], w["pointwise.bias"]]), 0))


@pytest.mark.parametrize(
    ("kernel", "ours", "theirs"),
    [
        (3, {}, {}),
        (4, {"stride": 2, "padding": 1}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (
            3,
            {"stride": 2, "padding": 1, "output_padding": 1},
            {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
        ),
        (3, {"groups": 2, "dilation": 2}, {"group": 2, "dilations": [2, 2]}),
        (3, {"strides": 2, "padding": "same"}, {"strides": [2, 2], "output_shape": [18, 22], "auto_pad": "SAME_UPPER"}),
        (2, {"strides": 3, "padding": "same"}, {"strides": [3, 3], "output_padding": [1, 1]}),
    ],
    ids=str,
)
def test_conv_transpose(kernel, ours, theirs):
    y, w = shaken(L.ConvTranspose2d(4, kernel, **ours), X)
    close(y, onnx_node("ConvTranspose", [X, w["weight"], w["bias"]], kernel_shape=[kernel] * 2, **theirs))
    if ours.get("padding") == "same":
        assert y.shape[2:] == (9 * ours["strides"], 11 * ours["strides"])


@pytest.mark.parametrize(
    ("layer", "op", "theirs"),
    [
        (L.MaxPool2d(), "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        (L.MaxPool2d(3, 2, 1), "MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
        (L.MaxPool2d(3, 2, "same"), "MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        (L.MaxPool2d(2, ceil_mode=True), "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        (L.AvgPool2d(), "AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        (
            L.AvgPool2d(3, 2, 1),
            "AveragePool",
            {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "count_include_pad": 1},
        ),
        (
            L.AvgPool2d(3, 2, "same"),
            "AveragePool",
            {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        ),
    ],
    ids=lambda v: str(v) if not isinstance(v, L.Layer) else v.kind,
)
def test_pools(layer, op, theirs):
    close(layer(X), onnx_node(op, [X], **theirs))


def test_global_and_adaptive_pools():
    close(L.GlobalAvgPool2d()(X), X.mean((2, 3)))
    close(L.GlobalMaxPool2d(keepdims=True)(X), X.max((2, 3), keepdims=True))
    close(L.AdaptiveAvgPool2d(1)(X), X.mean((2, 3), keepdims=True))
    for rows, columns in [(3, 11), (4, 5), (2, 1), (12, 3)]:
        want = np.empty((2, 6, rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):  # PyTorch's windows
                part = X[:, :, i * 9 // rows : -(-(i + 1) * 9 // rows), j * 11 // columns : -(-(j + 1) * 11 // columns)]
                want[:, :, i, j] = part.mean((2, 3))
        close(L.AdaptiveAvgPool2d((rows, columns))(X), want)


def test_batch_norm_and_its_two_conventions():
    for layer, eps in ((L.BatchNorm(), 1e-5), (L.BatchNormalization(), 1e-3)):
        y, w = shaken(layer, X)
        order = ["weight", "bias", "running_mean", "running_var"]
        assert list(w) == order
        close(y, onnx_node("BatchNormalization", [X, *(w[n] for n in order)], epsilon=eps))
        assert [v.trainable for v in layer.weights] == [True, True, False, False]
    assert L.BatchNorm().momentum == 0.1
    assert L.BatchNormalization().momentum == pytest.approx(0.01)
    x = X[:, :, 0, 0]
    close(L.BatchNorm(affine=False)(x), x / np.sqrt(np.float32(1 + 1e-5)))
    assert L.BatchNormalization(scale=False)(x).shape == x.shape


def test_norms_over_the_last_axes_and_over_groups():
    y, w = shaken(L.LayerNorm((9, 11)), X)
    close(y, onnx_node("LayerNormalization", [X, w["weight"], w["bias"]], axis=2, epsilon=1e-5))
    y, w = shaken(L.LayerNormalization(), X)
    close(y, onnx_node("LayerNormalization", [X, w["weight"], w["bias"]], axis=-1, epsilon=1e-3))
    y, w = shaken(L.RMSNorm(), X)
    close(y, X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6) * w["weight"])
    y, w = shaken(L.GroupNorm(3), X)
    close(y, onnx_node("GroupNormalization", [X, w["weight"], w["bias"]], opset=21, num_groups=3, epsilon=1e-5))
    y, w = shaken(L.InstanceNorm(affine=True), X)
    close(y, onnx_node("InstanceNormalization", [X, w["weight"], w["bias"]], epsilon=1e-5))
    assert L.InstanceNorm()(X).shape == X.shape
    assert not L.InstanceNorm().weights


def test_images():
    doubled = np.array([1, 1, 2, 2], np.float32)
    close(L.Upsample(2)(X), X.repeat(2, 2).repeat(2, 3))
    close(L.UpSampling2D((2, 1))(X), X.repeat(2, 2))
    close(L.Upsample(2, "bilinear")(X), onnx_node("Resize", [X, None, doubled], mode="linear"))
    sizes = np.array([2, 6, 5, 20], np.int64)
    close(L.Resize(5, 20)(X), onnx_node("Resize", [X, None, None, sizes], mode="linear"))
    close(
        L.Upsample(2, "bilinear", align_corners=True)(X),
        onnx_node("Resize", [X, None, doubled], mode="linear", coordinate_transformation_mode="align_corners"),
    )
    close(L.Upsample(2, "bicubic")(X), onnx_node("Resize", [X, None, doubled], mode="cubic"))
    close(L.ZeroPad2d((1, 2, 3, 0))(X), np.pad(X, ((0, 0), (0, 0), (3, 0), (1, 2))))
    close(L.ZeroPadding2D(((1, 2), (3, 0)))(X), np.pad(X, ((0, 0), (0, 0), (1, 2), (3, 0))))
    close(L.Cropping2D((1, 2))(X), X[:, :, 1:-1, 2:-2])
    shuffled = onnx_node("DepthToSpace", [np.concatenate([X, X[:, :2]], 1)], blocksize=2, mode="CRD")
    close(L.PixelShuffle(2)(np.concatenate([X, X[:, :2]], 1)), shuffled)


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: L.Conv2d(4, 3, padding="same", strides=2, **k),
        lambda **k: L.DepthwiseConv2d(3, **k),
        lambda **k: L.SeparableConv2d(4, 3, **k),
        lambda **k: L.ConvTranspose2d(4, 3, **k),
        lambda **k: L.MaxPool2d(**k),
        lambda **k: L.AvgPool2d(3, 1, "same", **k),
        lambda **k: L.AdaptiveAvgPool2d(2, **k),
        lambda **k: L.Upsample(2, **k),
        lambda **k: L.ZeroPad2d(1, **k),
    ],
)
def test_channels_last_is_the_same_layer_between_transposes(make):
    first, last = make(), make(data_format="channels_last")
    close(last(X.transpose(0, 2, 3, 1)), first(X).transpose(0, 2, 3, 1))


def test_keras_programs_can_set_the_data_format_once():
    image = X.transpose(0, 2, 3, 1)
    try:
        L.set_image_data_format("channels_last")
        net = nv.Sequential(
            [
                L.Conv2D(8, (3, 3), activation="relu", input_shape=(9, 11, 6)),
                L.BatchNormalization(),
                L.MaxPooling2D((2, 2)),
                L.GlobalAveragePooling2D(),
                L.Dense(3, activation="softmax"),
            ]
        )
    finally:
        L.set_image_data_format("channels_first")
    assert net(image).shape == (2, 3)
    assert net.state_dict()["batch_normalization.weight"].shape == (8,)
