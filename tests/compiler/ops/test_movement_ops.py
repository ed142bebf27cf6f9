"""Movement operators against numpy and ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervure.compiler.ops import OPS, OpError, infer
from nervure.compiler.ops.movement import PAD_MODES, normal_slice
from nervure.compiler.types import TensorType

X = TensorType("float32", (2, 3, 4))
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
FEW = settings(max_examples=40, deadline=None)


def numbered(shape, dtype="float32"):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def shape_of(op, *types, **attrs):
    return infer(op, types, attrs)[0][0].shape


# -- against ONNX Runtime ------------------------------------------------------------------------------------------

ONNX_FORMS = {
    "reshape": lambda a: ("Reshape", [a["shape"]], {"allowzero": 1}),
    "transpose": lambda a: ("Transpose", [], {"perm": a["perm"]}),
    "expand": lambda a: ("Expand", [a["shape"]], {}),
    "tile": lambda a: ("Tile", [a["repeats"]], {}),
    "copy": lambda a: ("Identity", [], {}),
    "concat": lambda a: ("Concat", [], {"axis": a["axis"]}),
}
CASES = [(op, case) for op in ONNX_FORMS for case in OPS[op].cases()]


@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op}-{i}" for i, (op, _) in enumerate(CASES)])
def test_cases_agree_with_onnxruntime(op, case, arrays_of, reference, onnxruntime_node):
    arrays = arrays_of(case)
    op_type, lists, attrs = ONNX_FORMS[op](case.attrs)
    feeds = [*arrays, *(np.array(values, np.int64) for values in lists)]
    (expected,) = onnxruntime_node(op_type, feeds, attrs)
    (found,) = reference(op, arrays, case.attrs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", list(OPS["slice"].cases()), ids=lambda c: c.note or str(c.attrs["steps"]))
def test_slice_cases_agree_with_onnxruntime(case, arrays_of, reference, onnxruntime_node):
    (x,) = arrays_of(case)
    stops = [-(10**6) if e < 0 else e for e in case.attrs["stops"]]
    lists = [case.attrs["starts"], stops, range(x.ndim), case.attrs["steps"]]
    (expected,) = onnxruntime_node("Slice", [x, *(np.array(v, np.int64) for v in lists)])
    (found,) = reference("slice", [x], case.attrs)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", list(OPS["pad"].cases()), ids=lambda c: c.note or c.attrs["mode"])
def test_pad_cases_agree_with_numpy(case, arrays_of, reference):
    (x,) = arrays_of(case)
    pads, mode = case.attrs["pads"], case.attrs["mode"]
    extra = {"constant_values": case.attrs.get("value", 0)} if mode == "constant" else {}
    expected = np.pad(x, list(zip(pads[: x.ndim], pads[x.ndim :], strict=True)), mode=mode, **extra)
    (found,) = reference("pad", [x], case.attrs)
    np.testing.assert_array_equal(found, expected)


# -- drawn shapes --------------------------------------------------------------------------------------------------


@FEW
@given(st.data())
def test_any_slice_has_a_normal_form(data):
    x = numbered(data.draw(SHAPES))
    bound = st.integers(-9, 9)
    axes = data.draw(st.permutations(range(x.ndim)))[: data.draw(st.integers(0, x.ndim))]
    ranges = [(data.draw(bound), data.draw(bound), data.draw(bound.filter(bool))) for _ in axes]
    starts, stops, steps = ([r[i] for r in ranges] for i in range(3))
    attrs = normal_slice(x.shape, starts, stops, steps, [a - x.ndim for a in axes])
    wanted = [slice(None)] * x.ndim
    for axis, bounds in zip(axes, ranges, strict=True):
        wanted[axis] = slice(*bounds)
    expected = x[tuple(wanted)]
    assert shape_of("slice", TensorType("float32", x.shape), **attrs) == expected.shape
    np.testing.assert_array_equal(OPS["slice"].reference(x, **attrs), expected)


@FEW
@given(SHAPES, st.sampled_from(PAD_MODES), st.data())
def test_pad_of_any_shape_agrees_with_numpy(shape, mode, data):
    x = numbered(shape)
    pads = tuple(data.draw(st.lists(st.integers(0, 6), min_size=2 * x.ndim, max_size=2 * x.ndim)))
    expected = np.pad(x, list(zip(pads[: x.ndim], pads[x.ndim :], strict=True)), mode=mode)
    found = OPS["pad"].reference(x, pads=pads, mode=mode, value=0)
    assert shape_of("pad", TensorType("float32", shape), pads=pads, mode=mode) == expected.shape
    np.testing.assert_array_equal(found, expected)


@FEW
@given(SHAPES, st.data())
def test_concat_undoes_a_split(shape, data):
    x = numbered(shape)
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, x.shape[axis]), max_size=3)))
    parts = np.split(x, cuts, axis)
    types = [TensorType("float32", p.shape) for p in parts]
    assert shape_of("concat", *types, axis=axis) == shape
    np.testing.assert_array_equal(OPS["concat"].reference(*parts, axis=axis), x)


# -- inference: unbound dimensions and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "expected"),
    [
        ("reshape", ("n", 3, 4), {"shape": (-1, 12)}, ("n", 12)),
        ("reshape", ("n", 3, 4), {"shape": ("n", -1)}, ("n", 12)),
        ("reshape", ("n", "t", 4), {"shape": ("n", 2, 2, "t")}, ("n", 2, 2, "t")),
        ("transpose", ("n", 3), {"perm": (1, 0)}, (3, "n")),
        ("expand", ("n", 1), {"shape": (2, "n", 5)}, (2, "n", 5)),
        ("slice", ("n", 9), {"starts": (0, 2), "stops": ("n", 8), "steps": (1, 3)}, ("n", 2)),
        ("pad", ("n", 9), {"pads": (0, 2, 0, 1)}, ("n", 12)),
        ("tile", ("n", 2), {"repeats": (1, 3)}, ("n", 6)),
    ],
)
def test_unbound_dimensions_pass_through(op, shape, attrs, expected):
    assert shape_of(op, TensorType("float32", shape), **attrs) == expected


def test_concat_joins_beside_an_unbound_dimension():
    a, b = TensorType("float32", ("n", 3)), TensorType("float32", ("n", 4))
    assert shape_of("concat", a, b, axis=1) == ("n", 7)


@pytest.mark.parametrize(
    ("op", "types", "attrs", "message"),
    [
        ("reshape", (X,), {"shape": (5, 5)}, "24 elements into 25"),
        ("reshape", (X,), {"shape": (-1, 5)}, "-1"),
        ("reshape", (X,), {"shape": (-1, -1)}, "at most one -1"),
        ("reshape", (X,), {"shape": (-2, 12)}, "at most one -1"),
        ("reshape", (TensorType("float32", ("n", 3)),), {"shape": (6,)}, r"f32\[n,3\]"),
        ("transpose", (X,), {"perm": (0, 1)}, "axes 0..2"),
        ("transpose", (X,), {"perm": (0, 0, 1)}, "axes 0..2"),
        ("expand", (X,), {"shape": (2, 3, 5)}, r"f32\[2,3,4\] to \[2,3,5\]"),
        ("expand", (X,), {"shape": (3, 4)}, "broadcast"),
        ("slice", (X,), {"starts": (0, 0), "stops": (1, 1), "steps": (1, 1)}, "3 values"),
        ("slice", (X,), {"starts": (0, 0, -1), "stops": (2, 3, 4), "steps": (1, 1, 1)}, "-1:4:1.*4 elements"),
        ("slice", (X,), {"starts": (0, 0, 0), "stops": (2, 3, 5), "steps": (1, 1, 1)}, "0:5:1"),
        ("slice", (X,), {"starts": (0, 0, 0), "stops": (2, 3, 4), "steps": (1, 1, 0)}, "0:4:0"),
        ("concat", (X, TensorType("float32", (2, 4, 4))), {"axis": 2}, r"expected f32\[2,3,4\], got f32\[2,4,4\]"),
        ("concat", (X, TensorType("int32", (2, 3, 4))), {"axis": 2}, "got i32"),
        ("concat", (), {"axis": 0}, "at least one"),
        ("concat", (X, X), {"axis": 3}, "axis"),
        ("pad", (X,), {"pads": (1, 1)}, "6 sizes"),
        ("pad", (X,), {"pads": (0, 0, -1, 0, 0, 0)}, "6 sizes"),
        ("pad", (X,), {"pads": (0,) * 6, "mode": "mirror"}, "constant, reflect, edge, wrap"),
        ("pad", (TensorType("float32", ("n",)),), {"pads": (1, 0)}, "'n'"),
        ("tile", (X,), {"repeats": (1, 2)}, "3 values"),
        ("tile", (X,), {"repeats": (1, 2, -1)}, "negative"),
    ],
)
def test_errors_show_what_was_expected_and_what_came(op, types, attrs, message):
    with pytest.raises(OpError, match=message):
        infer(op, types, attrs)


def test_normal_slice_refuses_a_step_of_zero():
    with pytest.raises(OpError, match="step"):
        normal_slice((3,), [0], [1], [0])
