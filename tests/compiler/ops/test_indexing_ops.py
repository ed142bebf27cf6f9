"""Indexing operators against ONNX Runtime and plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.ops import OPS, OpError, infer
from nervure.compiler.types import TensorType

X = TensorType("float32", (3, 4))
FEW = settings(max_examples=40, deadline=None)


def i64(*shape):
    return TensorType("int64", shape)


DIRECT = {
    "gather": ("Gather", 13),
    "gather_elements": ("GatherElements", 13),
    "gather_nd": ("GatherND", 13),
    "scatter_elements": ("ScatterElements", 18),
    "scatter_nd": ("ScatterND", 18),
}
CASES = [(op, case) for op in DIRECT for case in OPS[op].cases()]


@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{i}" for i, (op, _) in enumerate(CASES)])
def test_cases_agree_with_onnxruntime(op, case, arrays_of, reference, onnxruntime_node):
    arrays = arrays_of(case)
    op_type, opset = DIRECT[op]
    (expected,) = onnxruntime_node(op_type, arrays, dict(case.attrs), opset=opset)
    (found,) = reference(op, arrays, case.attrs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("case", list(OPS["one_hot"].cases()), ids=lambda c: f"axis{c.attrs['axis']}")
def test_one_hot_agrees_with_onnxruntime(case, arrays_of, reference, onnxruntime_node):
    indices, values = arrays_of(case)
    depth = np.array(case.attrs["depth"], np.int64)
    (expected,) = onnxruntime_node("OneHot", [indices, depth, values], {"axis": case.attrs["axis"]}, opset=11)
    (found,) = reference("one_hot", [indices, values], case.attrs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", list(OPS["topk"].cases()), ids=lambda c: c.note or str(dict(c.attrs)))
def test_topk_agrees_with_onnxruntime(case, arrays_of, reference, onnxruntime_node):
    (x,) = arrays_of(case)
    attrs = {"axis": case.attrs["axis"], "largest": int(case.attrs.get("largest", True)), "sorted": 1}
    expected = onnxruntime_node("TopK", [x, np.array([case.attrs["k"]], np.int64)], attrs, outputs=2, opset=11)
    found = reference("topk", [x], case.attrs)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("case", list(OPS["nonzero"].cases()))
def test_nonzero_agrees_with_onnxruntime(case, arrays_of, reference, onnxruntime_node):
    (x,) = arrays_of(case)
    (expected,) = onnxruntime_node("NonZero", [x], opset=13)
    found, count = reference("nonzero", [x], case.attrs)
    assert count == expected.shape[1]
    np.testing.assert_array_equal(found[:, :count], expected)
    assert not found[:, count:].any()


def nms_attrs(attrs):
    threshold = attrs.get("score_threshold")
    scalars = [
        np.array([attrs["max_output"]], np.int64),
        np.array([attrs["iou_threshold"]], np.float32),
        None if threshold is None else np.array([threshold], np.float32),
    ]
    return scalars, {"center_point_box": int(attrs.get("center_point_box", False))}


@pytest.mark.parametrize("case", list(OPS["nms"].cases()), ids=lambda c: c.note or str(c.attrs["iou_threshold"]))
def test_nms_agrees_with_onnxruntime(case, arrays_of, reference, onnxruntime_node):
    arrays = arrays_of(case)
    scalars, attrs = nms_attrs(case.attrs)
    (expected,) = onnxruntime_node("NonMaxSuppression", [*arrays, *scalars], attrs, opset=11)
    found, count = reference("nms", arrays, case.attrs)
    assert count == len(expected)
    np.testing.assert_array_equal(found[:count], expected)
    assert not found[count:].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 2), st.integers(1, 3), st.integers(1, 25), st.booleans())
def test_nms_of_random_boxes_agrees_with_onnxruntime(
    reference, onnxruntime_node, seed, batch, classes, count, center_point_box
):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 4, (batch, count, 4)).astype(np.float32)
    scores = rng.choice(np.float32([0.1, 0.4, 0.5, 0.9]), (batch, classes, count))  # many ties
    attrs = {"max_output": 7, "iou_threshold": 0.25, "score_threshold": 0.1, "center_point_box": center_point_box}
    scalars, onnx_attrs = nms_attrs(attrs)
    (expected,) = onnxruntime_node("NonMaxSuppression", [boxes, scores, *scalars], onnx_attrs, opset=11)
    found, kept = reference("nms", [boxes, scores], attrs)
    np.testing.assert_array_equal(found[:kept], expected)


# -- drawn shapes, plain loops ---------------------------------------------------------------------------------------


@FEW
@given(st.data())
def test_gather_of_any_shape(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    indices = np.array(data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=5)))
    x = np.arange(np.prod(shape)).reshape(shape)
    expected = np.stack([x.take(int(i), axis=axis) for i in indices], axis=axis)
    (found_type,), _ = infer("gather", [i64(*shape), i64(len(indices))], {"axis": axis})
    assert found_type.shape == expected.shape
    np.testing.assert_array_equal(OPS["gather"].reference(x, indices, axis=axis), expected)


@FEW
@given(st.data())
def test_gather_and_scatter_elements_of_any_shape(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    axis = data.draw(st.integers(0, len(shape) - 1))
    part = tuple(data.draw(st.integers(1, d)) for d in shape)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.integers(-9, 9, shape)
    indices = rng.integers(-shape[axis], shape[axis], part)
    updates = rng.integers(-9, 9, part)
    gathered, added = np.empty(part, x.dtype), x.copy()
    for at in np.ndindex(part):
        place = (*at[:axis], indices[at], *at[axis + 1 :])
        gathered[at] = x[place]
        added[place] += updates[at]
    np.testing.assert_array_equal(OPS["gather_elements"].reference(x, indices, axis=axis), gathered)
    found = OPS["scatter_elements"].reference(x, indices, updates, axis=axis, reduction="add")
    np.testing.assert_array_equal(found, added)


@FEW
@given(st.data())
def test_gather_nd_and_scatter_nd_of_any_shape(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    batch = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape) - batch))
    outer = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.integers(-9, 9, shape)
    limits = shape[batch : batch + depth]
    indices = np.stack([rng.integers(-d, d, (*shape[:batch], *outer)) for d in limits], axis=-1)
    expected = np.empty((*shape[:batch], *outer, *shape[batch + depth :]), x.dtype)
    for at in np.ndindex(*shape[:batch], *outer):
        expected[at] = x[(*at[:batch], *indices[at])]
    np.testing.assert_array_equal(OPS["gather_nd"].reference(x, indices, batch_dims=batch), expected)
    if batch == 0:
        updates = rng.integers(-9, 9, expected.shape)
        y = x.copy()
        for at in np.ndindex(*outer):
            y[tuple(indices[at])] = updates[at]
        np.testing.assert_array_equal(OPS["scatter_nd"].reference(x, indices, updates, reduction="none"), y)


def test_topk_puts_nan_where_numpy_sorts_it():
    x = np.array([1, np.nan, 3], np.float32)
    assert OPS["topk"].reference(x, k=2, axis=0, largest=True)[1].tolist() == [1, 2]
    assert OPS["topk"].reference(x, k=2, axis=0, largest=False)[1].tolist() == [0, 2]


# -- inference -------------------------------------------------------------------------------------------------------


def test_unbound_dimensions_pass_through():
    x = TensorType("float32", ("n", 4))
    assert infer("gather", [x, i64("t")], {"axis": 1})[0][0].shape == ("n", "t")
    assert infer("gather_elements", [x, i64("n", 9)], {"axis": 1})[0][0].shape == ("n", 9)
    assert infer("topk", [x], {"k": 2, "axis": 1})[0][1] == i64("n", 2)


@pytest.mark.parametrize(
    ("op", "types", "attrs", "message"),
    [
        ("gather", (X, X), {}, "indices: expected"),
        ("gather", (X, i64(2)), {"axis": 2}, "axis"),
        ("gather_elements", (X, i64(2)), {}, "rank 2"),
        ("gather_elements", (X, i64(3, 5)), {}, r"got i64\[3,5\]"),
        ("gather_nd", (X, i64(2, 3)), {}, "1 to 2 coordinates"),
        ("gather_nd", (X, i64(2, 1)), {"batch_dims": 1}, "first 1 axes"),
        ("gather_nd", (X, i64(3, 1)), {"batch_dims": 2}, "batch_dims must be in"),
        ("scatter_elements", (X, i64(1, 2), TensorType("float32", (2, 2))), {}, r"expected \[1,2\], got f32\[2,2\]"),
        ("scatter_elements", (X, i64(1, 2), i64(1, 2)), {}, "element type"),
        ("scatter_elements", (X, i64(1, 2), X), {"reduction": "sum"}, "add, mul, max, min"),
        ("scatter_nd", (X, i64(2, 1), X), {}, r"\[2,4\]"),
        ("one_hot", (i64(2), X), {"depth": 3}, r"shape \[2\]"),
        ("topk", (X,), {"k": 5}, r"\[0, 4\]"),
        ("nonzero", (TensorType("float32", ("n",)),), {}, "'n'"),
        ("nms", (X, X), {"max_output": 1}, "boxes"),
        (
            "nms",
            (TensorType("float32", (1, 5, 4)), TensorType("float32", (1, 2, 6))),
            {"max_output": 1},
            "expected boxes",
        ),
    ],
)
def test_errors_show_what_was_expected_and_what_came(op, types, attrs, message):
    with pytest.raises(OpError, match=message):
        infer(op, types, attrs)


@pytest.mark.parametrize("op", ["gather", "gather_elements"])
def test_a_constant_index_out_of_range_is_an_error(op):
    indices = np.array([[0, 1], [-4, 2]])
    with pytest.raises(OpError, match="index -4 is out of range for an axis of 3"):
        infer(op, [X, i64(2, 2)], {"axis": 0}, [None, indices])
    with pytest.raises(OpError, match="index 3 "):
        infer("scatter_nd", [X, i64(1, 1), TensorType("float32", (1, 4))], {}, [None, np.array([[3]])])
