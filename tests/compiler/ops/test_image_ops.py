"""Image operators against ONNX Runtime and onnx's own reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.ops import OPS, OpError, infer
from nervure.compiler.ops.image import COORDINATES, NEAREST
from nervure.compiler.types import TensorType

X = TensorType("float32", (1, 2, 5, 6))


def filled(op, case):
    return infer(op, [None if a is None else TensorType("float32", a.shape) for a in case.inputs], case.attrs)[1]


def resize_node(x, attrs):
    """The inputs and attributes of ONNX Resize for those of ``resize``."""
    roi = None if attrs["roi"] is None else np.array(attrs["roi"], np.float32)
    scales = None if attrs["scales"] is None else np.array(attrs["scales"], np.float32)
    shape = None if attrs["scales"] is not None else np.array(attrs["shape"], np.int64)
    named = {
        "mode": attrs["mode"],
        "coordinate_transformation_mode": attrs["coordinate"],
        "nearest_mode": attrs["nearest"],
        "cubic_coeff_a": attrs["cubic_a"],
        "exclude_outside": int(attrs["exclude_outside"]),
        "extrapolation_value": attrs["extrapolation"],
        "antialias": int(attrs["antialias"]),
    }
    if attrs["mode"] != "nearest":
        del named["nearest_mode"]
    return [x, roi, scales] if shape is None else [x, roi, None, shape], named


RESIZE = list(OPS["resize"].cases())


@pytest.mark.parametrize("case", RESIZE, ids=[f"{i}-{c.attrs.get('mode', 'nearest')}" for i, c in enumerate(RESIZE)])
def test_resize_agrees_with_both_oracles(case, arrays_of, reference, onnxruntime_node, onnx_reference_node):
    (x,) = arrays_of(case)
    inputs, attrs = resize_node(x, filled("resize", case))
    (found,) = reference("resize", [x], case.attrs)
    for oracle in (onnxruntime_node, onnx_reference_node):
        (expected,) = oracle("Resize", inputs, attrs, opset=19)
        np.testing.assert_allclose(found, expected, atol=3e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_resize_by_any_scale_agrees_with_onnxruntime(reference, onnxruntime_node, data):
    size = [data.draw(st.integers(1, 9)) for _ in range(2)]
    scales = (1.0, 1.0, *(data.draw(st.sampled_from([0.3, 0.5, 0.8, 1.0, 1.3, 2.0, 2.6])) for _ in range(2)))
    shape = (1, 2, *(int(np.floor(np.float32(d) * np.float32(s))) for d, s in zip(size, scales[2:], strict=True)))
    if 0 in shape or shape[2:] == tuple(size):  # ONNX Runtime copies x where no size changes, whatever the scales
        return
    attrs = {
        "shape": shape,
        "scales": scales,
        "mode": data.draw(st.sampled_from(["nearest", "linear", "cubic"])),
        "coordinate": data.draw(st.sampled_from([c for c in COORDINATES[:5]])),
        "nearest": data.draw(st.sampled_from(NEAREST)),
    }
    x = np.random.default_rng(7).normal(size=(1, 2, *size)).astype(np.float32)
    _, full = infer("resize", [TensorType("float32", x.shape)], attrs)
    inputs, named = resize_node(x, full)
    (expected,) = onnxruntime_node("Resize", inputs, named, opset=19)
    (found,) = reference("resize", [x], attrs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_linear_resize_of_integers_agrees_with_onnxruntime(dtype, reference, onnxruntime_node):
    x = np.random.default_rng(0).integers(0, 120, (1, 3, 5, 4)).astype(dtype)
    attrs = {"shape": (1, 3, 10, 8), "mode": "linear", "coordinate": "asymmetric"}
    _, full = infer("resize", [TensorType(dtype, x.shape)], attrs)
    inputs, named = resize_node(x, full)
    (expected,) = onnxruntime_node("Resize", inputs, named, opset=19)
    (found,) = reference("resize", [x], attrs)
    np.testing.assert_array_equal(found, expected)


def _cubic_volume(case):
    """ONNX Runtime has none; at a border onnx's reference bounds the place, but ONNX Runtime (in 2-D) each tap."""
    return case.attrs["mode"] == "cubic" and case.inputs[0].rank == 5


GRID = [c for c in OPS["grid_sample"].cases() if not (_cubic_volume(c) and c.attrs["padding"] == "border")]


@pytest.mark.parametrize("case", GRID, ids=[f"{i}-{c.attrs['mode']}-{c.attrs['padding']}" for i, c in enumerate(GRID)])
def test_grid_sample_agrees_with_its_oracle(case, arrays_of, reference, onnxruntime_node, onnx_reference_node):
    x, grid = arrays_of(case)
    attrs = {
        "mode": case.attrs["mode"],
        "padding_mode": case.attrs["padding"],
        "align_corners": int(case.attrs["align_corners"]),
    }
    oracle = onnx_reference_node if _cubic_volume(case) else onnxruntime_node
    (expected,) = oracle("GridSample", [x, grid], attrs, opset=20)
    (found,) = reference("grid_sample", [x, grid], case.attrs)
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_cubic_volume_at_a_border_is_the_picture_of_each_slice(arrays_of, reference):
    """A volume that is constant along depth samples like one of its slices."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 2, 5, 6)).astype(np.float32)
    grid = rng.uniform(-2, 2, (1, 4, 3, 2)).astype(np.float32)
    volume = np.repeat(x[:, :, None], 4, axis=2)
    deep = np.concatenate([grid, rng.uniform(-2, 2, (1, 4, 3, 1))], axis=-1)[:, None].astype(np.float32)
    attrs = {"mode": "cubic", "padding": "border", "align_corners": False}
    (flat,) = reference("grid_sample", [x, grid], attrs)
    (found,) = reference("grid_sample", [volume, deep], attrs)
    np.testing.assert_allclose(found[:, :, 0], flat, atol=1e-5)


@pytest.mark.parametrize(
    "case", list(OPS["roi_align"].cases()), ids=lambda c: f"{c.attrs['mode']}-{c.attrs['coordinate']}"
)
def test_roi_align_agrees_with_onnxruntime(case, arrays_of, reference, onnxruntime_node):
    arrays = arrays_of(case)
    attrs = {k: v for k, v in case.attrs.items() if k != "coordinate"}
    attrs["coordinate_transformation_mode"] = case.attrs["coordinate"]
    (expected,) = onnxruntime_node("RoiAlign", arrays, attrs, opset=16)
    (found,) = reference("roi_align", arrays, case.attrs)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("op", "types", "attrs", "message"),
    [
        ("resize", (X,), {"shape": (1, 2, 3)}, "4 values"),
        ("resize", (X,), {"shape": (1, 2, 3, 3), "mode": "area"}, "nearest, linear, cubic"),
        ("resize", (X,), {"shape": (1, 2, 3, 3), "scales": (1, 1, 0, 1)}, "positive"),
        ("resize", (X,), {"shape": (1, 2, 3, 3), "roi": (0, 1)}, "8 values"),
        ("resize", (TensorType("float32", (1, "h")),), {"shape": (1, 4)}, "'h'"),
        ("grid_sample", (X, TensorType("float32", (1, 4, 4, 3))), {}, "expected x"),
        ("grid_sample", (X, TensorType("float32", (2, 4, 4, 2))), {}, "expected x"),
        ("grid_sample", (X, TensorType("int64", (1, 4, 4, 2))), {}, "floats"),
        ("roi_align", (X, TensorType("float32", (3, 5)), TensorType("int64", (3,))), {}, "expected rois"),
        ("roi_align", (X, TensorType("float32", (3, 4)), TensorType("float32", (3,))), {}, "batch_indices"),
    ],
)
def test_errors_show_what_was_expected_and_what_came(op, types, attrs, message):
    with pytest.raises(OpError, match=message):
        infer(op, types, attrs)
