"""Forms of ONNX graphs: control flow, functions, captured tensors, bounded lengths, bindings, and their errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from nervure.compiler.interpret import interpret  # noqa: E402
from nervure.compiler.ir import STORED  # noqa: E402
from nervure.errors import NervureError  # noqa: E402
from nervure.frontends.onnx import load  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

RNG = np.random.default_rng(3)
X = RNG.standard_normal((4, 6)).astype(np.float32)


def info(name: str, kind: int = TensorProto.FLOAT, shape: Any = None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def ops(graph: Any) -> list[str]:
    return [graph.node(k).op for k in graph if graph.node(k).op not in STORED]


# -- control flow ------------------------------------------------------------------------------------------------------


def _branches() -> tuple[Any, Any]:
    """Two branches that use ``x`` of the graph around them."""
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [info("t")])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [info("e")])
    return then, other


@pytest.mark.parametrize("rank", [2, 3])
def test_if_whose_condition_follows_from_shapes(rank: int, onnx_kit: SimpleNamespace) -> None:
    then, other = _branches()
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Size", ["s"], ["n"]),
        helper.make_node("Equal", ["n", "two"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    feeds = {"x": X if rank == 2 else X[None]}
    model = onnx_kit.build(nodes, feeds, consts={"two": np.array(2)})
    onnx_kit.agree(model, feeds)
    assert ops(load(model)) == (["relu"] if rank == 2 else ["neg"])


def test_if_at_run_time_is_refused(onnx_kit: SimpleNamespace) -> None:
    then, other = _branches()
    feeds = {"x": X, "c": np.array(True)}
    model = onnx_kit.build([helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)], feeds)
    with pytest.raises(NervureError, match="If: its condition is computed at run time"):
        load(model)


def _loop_body(stop: int | None) -> Any:
    """acc = acc * w + x, stacked; stops early after ``stop`` trips if that is given."""
    nodes = [
        helper.make_node("Mul", ["acc", "w"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["next"]),
        helper.make_node("Identity", ["next"], ["row"]),
    ]
    if stop is None:
        nodes.append(helper.make_node("Identity", ["going"], ["more"]))
    else:
        limit = helper.make_tensor("limit", TensorProto.INT64, [], [stop])
        nodes += [helper.make_node("Constant", [], ["l"], value=limit), helper.make_node("Less", ["i", "l"], ["more"])]
    inputs = [info("i", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("acc", shape=[4, 6])]
    outputs = [info("more", TensorProto.BOOL, []), info("next", shape=[4, 6]), info("row", shape=[4, 6])]
    return helper.make_graph(nodes, "body", inputs, outputs)


@pytest.mark.parametrize("stop", [None, 2])
def test_loop_is_unrolled(stop: int | None, onnx_kit: SimpleNamespace) -> None:
    loop = helper.make_node("Loop", ["trips", "yes", "x"], ["y", "rows"], body=_loop_body(stop))
    consts = {"trips": np.array(5), "yes": np.array(True), "w": np.float32(0.5)}
    model = onnx_kit.build([loop], {"x": X}, ["y", "rows"], consts)
    onnx_kit.agree(model, {"x": X})
    assert ops(load(model)).count("add") == (5 if stop is None else 3)


def test_loop_whose_trips_are_an_input_is_refused(onnx_kit: SimpleNamespace) -> None:
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y", "rows"], body=_loop_body(None))
    feeds = {"x": X, "trips": np.array(3)}
    with pytest.raises(NervureError, match="the trip count is computed at run time"):
        load(onnx_kit.build([loop], feeds, ["y", "rows"], {"w": np.float32(0.5)}))


@pytest.mark.parametrize("reverse", [0, 1])
def test_scan_is_unrolled(reverse: int, onnx_kit: SimpleNamespace) -> None:
    nodes = [helper.make_node("Add", ["s", "e"], ["n"]), helper.make_node("Tanh", ["n"], ["o"])]
    ports = [info("s", shape=[4]), info("e", shape=[4])], [info("n", shape=[4]), info("o", shape=[4])]
    scan = helper.make_node(
        "Scan",
        ["zero", "x"],
        ["last", "y"],
        body=helper.make_graph(nodes, "body", *ports),
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_input_directions=[reverse],
        scan_output_axes=[1],
        scan_output_directions=[reverse],
    )
    onnx_kit.agree(onnx_kit.build([scan], {"x": X}, ["last", "y"], {"zero": np.zeros(4, np.float32)}), {"x": X})


# -- functions ---------------------------------------------------------------------------------------------------------


def test_functions_of_the_model_are_expanded(onnx_kit: SimpleNamespace) -> None:
    """One function calls another and hands an attribute on."""
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    inner = helper.make_function("mine", "Act", ["a"], ["b"], [leaky], opset, ["slope"])
    call = helper.make_node("Act", ["p"], ["q"], domain="mine")
    call.attribute.add(name="slope", type=onnx.AttributeProto.FLOAT, ref_attr_name="steep")
    nodes = [call, helper.make_node("Add", ["q", "p"], ["r"])]
    outer = helper.make_function("mine", "Block", ["p"], ["r"], nodes, opset, ["steep"])
    twice = [
        helper.make_node("Block", ["x"], ["m"], domain="mine", steep=0.3),
        helper.make_node("Block", ["m"], ["y"], domain="mine", steep=0.1, name="second"),
    ]
    model = onnx_kit.build(twice, {"x": X}, functions=[inner, outer])
    onnx_kit.agree(model, {"x": X})
    graph = load(model)
    assert ops(graph) == ["leaky_relu", "add", "leaky_relu", "add"]
    assert graph.node(graph.outputs[0]).origin == ("net/second (Block)/Add:#1 (Add)",)


def test_a_function_that_calls_itself_is_refused(onnx_kit: SimpleNamespace) -> None:
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    nodes = [helper.make_node("F", ["a"], ["c"], domain="mine"), helper.make_node("F", ["c"], ["b"], domain="mine")]
    again = helper.make_function("mine", "F", ["a"], ["b"], nodes, opset)
    model = onnx_kit.build([helper.make_node("F", ["x"], ["y"], domain="mine")], {"x": X}, functions=[again])
    with pytest.raises(NervureError, match="nested too deeply"):
        load(model)


def test_operators_that_onnx_defines_as_functions(onnx_kit: SimpleNamespace) -> None:
    """The windows have no rule here: their body, and the defaults of their attributes, come from ONNX itself."""
    nodes = [helper.make_node("HannWindow", ["size"], ["w"]), helper.make_node("Mul", ["x", "w"], ["y"])]
    onnx_kit.agree(onnx_kit.build(nodes, {"x": X}, consts={"size": np.array(6)}), {"x": X})


def test_functions_whose_body_depends_on_the_node() -> None:
    """ONNX builds this body natively, in a process of its own: a loss over the rows of a matrix."""
    nodes = [helper.make_node("SoftmaxCrossEntropyLoss", ["x", "t"], ["y"], reduction="mean")]
    ports = [info("x", shape=[4, 6]), info("t", TensorProto.INT64, [4])], [info("y", shape=[])]
    model = helper.make_model(helper.make_graph(nodes, "net", *ports), opset_imports=[helper.make_opsetid("", 21)])
    target = np.array([1, 0, 5, 2])
    rows = X - np.log(np.exp(X).sum(axis=1, keepdims=True))
    (loss,) = interpret(load(model), {"x": X, "t": target})
    np.testing.assert_allclose(loss, -rows[np.arange(4), target].mean(), rtol=1e-5)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("size", [(1, 3, 4, 5), (2, 1, 3, 4, 2)])
def test_affine_grid(size: tuple[int, ...], corners: int, onnx_kit: SimpleNamespace) -> None:
    axes = len(size) - 2
    feeds = {"theta": RNG.standard_normal((size[0], axes, axes + 1)).astype(np.float32)}
    node = helper.make_node("AffineGrid", ["theta", "size"], ["y"], align_corners=corners)
    onnx_kit.agree(onnx_kit.build([node], feeds, consts={"size": np.array(size)}), feeds)


# -- bounded lengths ---------------------------------------------------------------------------------------------------


def test_non_max_suppression_and_what_follows(onnx_kit: SimpleNamespace) -> None:
    """The usual end of a detector: suppress, split the indices, pick the boxes and their scores."""
    corner = RNG.random((1, 20, 2)).astype(np.float32)
    size = RNG.random((1, 20, 2)).astype(np.float32) * np.float32(0.5)
    feeds = {
        "boxes": np.concatenate([corner, corner + size], axis=2),
        "scores": RNG.random((1, 3, 20)).astype(np.float32),
    }
    consts = {"most": np.array([5]), "iou": np.array([0.4], np.float32), "score": np.array([0.3], np.float32)}
    consts |= {"two": np.array(2), "flat": np.array([0]), "a": np.array([2]), "b": np.array([3]), "one": np.array([1])}
    nodes = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["kept"]),
        helper.make_node("Gather", ["kept", "two"], ["which"], axis=1),
        helper.make_node("Squeeze", ["boxes", "flat"], ["table"]),
        helper.make_node("Gather", ["table", "which"], ["picked"], axis=0),
        helper.make_node("Slice", ["kept", "one", "a", "one"], ["class"]),
        helper.make_node("GatherND", ["scores", "kept"], ["points"]),
    ]
    outputs = ["kept", "picked", "class", "points"]
    model = onnx_kit.build(nodes, feeds, outputs, consts)
    onnx_kit.agree(model, feeds)
    graph = load(model)
    assert graph.output_names[:4] == outputs
    assert graph.meta["counts"] == {0: (4, 0), 1: (5, 0), 2: (6, 0), 3: (7, 0)}


def test_non_zero_is_bounded(onnx_kit: SimpleNamespace) -> None:
    feeds = {"x": np.maximum(X, 0)}
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Transpose", ["n"], ["y"])]
    model = onnx_kit.build(nodes, feeds, ["y"])
    onnx_kit.agree(model, feeds)
    assert load(model).meta["counts"] == {0: (1, 0)}


def test_sum_over_a_bounded_length_is_refused(onnx_kit: SimpleNamespace) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("ReduceSum", ["n"], ["y"])]
    with pytest.raises(NervureError, match="the length of its input is only known at run time"):
        load(onnx_kit.build(nodes, {"x": X}))


# -- bindings ----------------------------------------------------------------------------------------------------------


def test_an_unbound_dimension_is_asked_for_by_name(onnx_kit: SimpleNamespace) -> None:
    model = onnx_kit.build([helper.make_node("Relu", ["x"], ["y"])], {"x": X}, dims={"x": ["batch", "width"]})
    with pytest.raises(NervureError, match="not bound: batch, width") as caught:
        load(model)
    assert "--shape batch=1 --shape width=1" in str(caught.value) and "x[batch, width]" in str(caught.value)
    assert load(model, {"batch": 2, "width": 3}).node(load(model, {"batch": 2, "width": 3}).inputs[0]).types[
        0
    ].dims == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("bindings", "shapes", "message"),
    [
        ({"bach": 1}, {}, "no symbolic dimension 'bach'"),
        ({"batch": 0}, {}, "positive integer"),
        ({}, {"z": (1, 6)}, "no input 'z'"),
        ({}, {"x": (1, 6, 1)}, "has 2 dimensions, 3 were given"),
        ({}, {"x": (1, 7)}, "dimension 1 of input 'x' is 6 in the model, 7 was given"),
        ({"batch": 2}, {"x": (1, 6)}, "dimension 0 of input 'x' is 2 in the model, 1 was given"),
    ],
)
def test_bindings_that_do_not_fit(bindings: dict, shapes: dict, message: str, onnx_kit: SimpleNamespace) -> None:
    model = onnx_kit.build([helper.make_node("Relu", ["x"], ["y"])], {"x": X}, dims={"x": ["batch", 6]})
    with pytest.raises(NervureError, match=message):
        load(model, bindings, shapes)


def test_a_shape_binds_its_symbols_for_other_inputs(onnx_kit: SimpleNamespace) -> None:
    feeds = {"x": X, "z": X}
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    model = onnx_kit.build(nodes, feeds, dims={"x": ["n", 6], "z": ["n", 6]})
    onnx_kit.agree(model, feeds, shapes={"x": (4, 6)})


# -- what is not supported ---------------------------------------------------------------------------------------------


def test_one_error_names_everything_unsupported(onnx_kit: SimpleNamespace) -> None:
    """Also what lies behind an unsupported node, and inside a body."""
    then = helper.make_graph([helper.make_node("RandomNormalLike", ["u"], ["t"])], "then", [], [info("t")])
    other = helper.make_graph([helper.make_node("Wobble", ["u"], ["e"])], "else", [], [info("e")])
    nodes = [
        helper.make_node("Unique", ["x"], ["u"], name="find unique"),
        helper.make_node("Reluu", ["u"], ["r"], domain="custom"),
        helper.make_node("Det", ["x"], ["d"]),
        helper.make_node("Det", ["u"], ["d2"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    model = onnx_kit.build(nodes, {"x": X}, ["y", "r", "d", "d2"], {"c": np.array(True)})
    with pytest.raises(NervureError) as caught:
        load(model)
    text = str(caught.value)
    assert "operator(s) of this model are not supported: Det, RandomNormalLike, Unique, custom.Reluu" in text
    assert "net/find unique (Unique)" in text and "net/Det:#2 (Det), net/Det:#3 (Det)" in text
    assert "nearest supported form: Relu" in text and "TopK" in text


def test_unsupported_forms_name_the_nearest(onnx_kit: SimpleNamespace) -> None:
    feeds = {"x": X, "shape": np.array([6, 4])}
    with pytest.raises(NervureError, match="Reshape: the shape is computed at run time"):
        load(onnx_kit.build([helper.make_node("Reshape", ["x", "shape"], ["y"])], feeds))


def test_int4_weights_are_widened(onnx_kit: SimpleNamespace) -> None:
    """Blocked, 4-bit: the scale changes every two rows."""
    packed = helper.make_tensor("q", TensorProto.INT4, [4, 6], RNG.integers(-8, 8, 24).tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    feeds = {"x": X[:, :4]}
    model = onnx_kit.build(nodes, feeds, consts={"scale": RNG.random((2, 6)).astype(np.float32)})
    model.graph.initializer.append(packed)
    onnx_kit.agree(model, feeds)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
        ("ij->ji", [(3, 4)]),
        ("ij->", [(3, 4)]),
        ("ij->i", [(3, 4)]),
        ("ii->i", [(4, 4)]),
        ("ii", [(4, 4)]),
        ("i,j->ij", [(3,), (4,)]),
        ("i,i", [(5,), (5,)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("bn,anm,bm->ba", [(2, 5), (3, 5, 4), (2, 4)]),
        ("ijk,ik->ij", [(2, 3, 4), (2, 4)]),
        ("ij,ij->ij", [(3, 4), (3, 4)]),
        ("ab,cd->acbd", [(2, 3), (4, 5)]),
    ],
)
def test_einsum(equation: str, shapes: list, onnx_kit: SimpleNamespace) -> None:
    feeds = {f"x{i}": RNG.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    model = onnx_kit.build([helper.make_node("Einsum", list(feeds), ["y"], equation=equation)], feeds)
    onnx_kit.agree(model, feeds)
