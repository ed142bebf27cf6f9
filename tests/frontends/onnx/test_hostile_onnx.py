"""Broken and hostile files: a NervureError or a good import, in bounded time and memory, never anything else."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from nervure.errors import NervureError  # noqa: E402
from nervure.frontends.onnx import load  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

X = np.ones((2, 3), np.float32)


def _network(kit: SimpleNamespace) -> bytes:
    """A small model with many kinds of content: weights, attributes, bodies, names, strings."""
    rng = np.random.default_rng(0)
    body = helper.make_graph([helper.make_node("Relu", ["r"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        helper.make_node("Shape", ["b"], ["c"]),
        helper.make_node("Slice", ["c", "zero", "one"], ["d"]),
        helper.make_node("Concat", ["d", "minus"], ["e"], axis=0),
        helper.make_node("Reshape", ["b", "e"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["r"], transB=1, alpha=0.5),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]
    consts = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "zero": np.array([0]), "one": np.array([1])}
    consts |= {"minus": np.array([-1]), "g": rng.standard_normal((5, 36)).astype(np.float32), "yes": np.array(True)}
    return kit.build(nodes, {"x": np.zeros((1, 3, 6, 6), np.float32)}, consts=consts).SerializeToString()


def _survives(data: bytes) -> bool:
    """Whether the file imports; any error but NervureError goes through."""
    try:
        load(data).check()
    except NervureError as error:
        assert str(error).isprintable() or "\n" in str(error)
        return False
    return True


def test_a_thousand_damaged_files(onnx_kit: SimpleNamespace) -> None:
    good = _network(onnx_kit)
    assert _survives(good)
    rng = random.Random(0)
    begin, survived = time.perf_counter(), 0
    for i in range(1000):
        data = bytearray(good)
        if i % 4 == 0:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.choice([1, 1, 2, 8])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        survived += _survives(bytes(data))
    assert 0 < survived < 900
    assert time.perf_counter() - begin < 60


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"PK\3\4", b"\x08\x0a", bytes(range(256)) * 40])
def test_files_that_are_no_model(data: bytes) -> None:
    with pytest.raises(NervureError, match="no ONNX model"):
        load(data)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NervureError, match="cannot be read"):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(NervureError, match="cannot be read"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(NervureError, match="no regular file"):
        load(tmp_path / "pipe.onnx")
    with (tmp_path / "holes.onnx").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(NervureError, match="larger than 2 GiB"):
        load(tmp_path / "holes.onnx")


# -- structure ---------------------------------------------------------------------------------------------------------


def test_a_cycle_is_named(onnx_kit: SimpleNamespace) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    with pytest.raises(NervureError, match="the graph has a cycle") as caught:
        load(onnx_kit.build(nodes, {"x": X}))
    assert "first" in str(caught.value) and "second" in str(caught.value)


def test_nodes_out_of_order_are_sorted(onnx_kit: SimpleNamespace) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Neg", ["x"], ["a"])]
    assert load(onnx_kit.build(nodes, {"x": X})).text().count(" = ") == 2


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Relu", ["ghost"], ["y"])], "nothing produces tensor 'ghost'"),
        ([("Relu", ["x"], ["a"])], "nothing produces"),
        ([("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])], "more than one producer"),
        ([("Relu", ["x"], ["x"]), ("Neg", ["x"], ["y"])], "more than one producer"),
        ([("Relu", [], ["y"])], "lacks input|does not fit"),
        ([("Conv", ["x"], ["y"])], "lacks input"),
        ([("Transpose", ["x"], ["y"], {"perm": [0, 0]})], "transpose does not fit"),
        ([("Concat", ["x", "x"], ["y"], {"axis": 7})], "axis 7 does not exist"),
        ([("Softmax", ["x"], ["y"], {"axis": "wide"})], "cannot be imported"),
    ],
)
def test_broken_structure(nodes: list, message: str, onnx_kit: SimpleNamespace) -> None:
    made = [helper.make_node(op, i, o, **(rest[0] if rest else {})) for op, i, o, *rest in nodes]
    with pytest.raises(NervureError, match=message):
        load(onnx_kit.build(made, {"x": X}))


def _with_weight(kit: SimpleNamespace, tensor: TensorProto) -> onnx.ModelProto:
    model = kit.build([helper.make_node("Add", ["x", tensor.name], ["y"])], {"x": X})
    model.graph.initializer.append(tensor)
    return model


@pytest.mark.parametrize(
    "change", [{"dims": [2, 4]}, {"dims": [-2, -3]}, {"dims": [1 << 40, 1 << 40]}, {"data_type": 11}, {"data_type": 8}]
)
def test_stored_tensors_that_lie(change: dict, onnx_kit: SimpleNamespace) -> None:
    fields = {"dims": [2, 3], "data_type": TensorProto.FLOAT, "raw_data": X.tobytes(), "name": "w"}
    with pytest.raises(NervureError, match=r"truncated|impossible shape|not supported"):
        load(_with_weight(onnx_kit, TensorProto(**{**fields, **change})))


# -- external data -----------------------------------------------------------------------------------------------------


def _external(kit: SimpleNamespace, folder: Path, location: str, **entries: int) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "model.onnx"
    path.write_bytes(_with_weight(kit, tensor).SerializeToString())
    return path


def test_external_data(onnx_kit: SimpleNamespace, tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"\0" * 16 + weight.tobytes())
    graph = load(_external(onnx_kit, tmp_path, "sub/w.bin", offset=16, length=24))
    stored = next(k for k in graph if graph.node(k).op == "const")
    np.testing.assert_array_equal(graph.node(stored).array, weight)


@pytest.mark.parametrize(
    "location", ["../w.bin", "sub/../../w.bin", "/etc/hostname", "link.bin", "", "a\0b", "linked/w.bin"]
)
def test_external_data_outside_the_folder_is_refused(location: str, onnx_kit: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(X.tobytes())
    os.symlink(tmp_path / "w.bin", folder / "link.bin")
    os.symlink(tmp_path, folder / "linked")
    with pytest.raises(NervureError, match="refused"):
        load(_external(onnx_kit, folder, location))


@pytest.mark.parametrize("entries", [{"length": 20}, {"offset": 8}, {"offset": -1}, {"length": 1 << 40}])
def test_external_data_of_the_wrong_size(entries: dict, onnx_kit: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(X.tobytes())
    with pytest.raises(NervureError, match="wrong size"):
        load(_external(onnx_kit, tmp_path, "w.bin", **entries))


def test_external_data_without_a_file(onnx_kit: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(NervureError, match="missing"):
        load(_external(onnx_kit, tmp_path, "w.bin"))
    with pytest.raises(NervureError, match="not read from a file"):
        load(_external(onnx_kit, tmp_path, "w.bin").read_bytes())


# -- sizes -------------------------------------------------------------------------------------------------------------

HUGE = 10**12


def _huge(op: str) -> tuple[list, dict]:
    one = np.array(1)
    if op == "Loop":
        ports = [("i", 7, []), ("g", 9, []), ("v", 1, [2, 3])], [("g2", 9, []), ("v2", 1, [2, 3])]
        infos = [[helper.make_tensor_value_info(*p) for p in side] for side in ports]
        inner = [helper.make_node("Identity", ["g"], ["g2"]), helper.make_node("Relu", ["v"], ["v2"])]
        loop = helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=helper.make_graph(inner, "body", *infos))
        return [loop], {"n": np.array(10**9), "yes": np.array(True)}
    forms = {
        "Expand": (["x", "s"], {"s": np.array([HUGE, 2, 3])}),
        "Range": (["zero", "n", "one"], {"zero": np.array(0), "n": np.array(HUGE), "one": one}),
        "ConstantOfShape": (["s"], {"s": np.array([HUGE])}),
        "Tile": (["x", "s"], {"s": np.array([HUGE, 1])}),
        "Pad": (["x", "s"], {"s": np.array([HUGE, 0, 0, 0])}),
        "OneHot": (["i", "d", "v"], {"i": np.array([0]), "d": np.array(HUGE), "v": np.array([0.0, 1.0])}),
        "Resize": (["x", "", "s"], {"s": np.array([1e8, 1e8], np.float32)}),
    }
    inputs, consts = forms[op]
    return [helper.make_node(op, inputs, ["y"])], consts


@pytest.mark.parametrize("op", ["Expand", "Range", "ConstantOfShape", "Tile", "Pad", "OneHot", "Resize", "Loop"])
def test_huge_results_are_refused_at_once(op: str, onnx_kit: SimpleNamespace) -> None:
    nodes, consts = _huge(op)
    begin = time.perf_counter()
    with pytest.raises(NervureError):
        load(onnx_kit.build(nodes, {"x": X}, consts=consts))
    assert time.perf_counter() - begin < 2


def test_a_constant_is_not_grown_beyond_a_megabyte(onnx_kit: SimpleNamespace) -> None:
    nodes = [helper.make_node("Expand", ["c", "s"], ["e"]), helper.make_node("Add", ["x", "e"], ["y"])]
    consts = {"c": np.float32(1), "s": np.array([1000, 1000])}
    graph = load(onnx_kit.build(nodes, {"x": np.zeros((1, 1), np.float32)}, consts=consts))
    assert len(graph.find("expand")) == 1
    assert all(graph.node(k).array.nbytes <= 1 << 20 for k in graph if graph.node(k).op == "const")


def test_a_large_constant_that_two_nodes_share_is_not_doubled(onnx_kit: SimpleNamespace) -> None:
    """A table that embeds and, transposed, projects: one copy in the graph."""
    consts = {"table": np.zeros((3000, 128), np.float32), "axis": np.array([0])}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Gemm", ["e", "table"], ["y"], transB=1),
    ]
    graph = load(onnx_kit.build(nodes, {"ids": np.array([5, 7])}, consts=consts))
    assert sum(graph.node(k).array.nbytes for k in graph if graph.node(k).op == "const") < 1.1 * consts["table"].nbytes


def test_a_larger_constant_may_be_rearranged(onnx_kit: SimpleNamespace) -> None:
    consts = {"w": np.arange(1 << 20, dtype=np.float32).reshape(1 << 10, 1 << 10)}
    graph = load(
        onnx_kit.build(
            [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
            {"x": np.ones((1, 1 << 10), np.float32)},
            consts=consts,
        )
    )
    assert not graph.find("transpose")


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ['a"b', "*/", "a\nb", "<script>alert(1)</script>", "\x1b[31mred", "n" * 10_000, "日本 \u202e x"]
)
def test_hostile_names_are_inert(name: str, onnx_kit: SimpleNamespace) -> None:
    nodes = [helper.make_node("Relu", ["x"], [name], name=name), helper.make_node("Neg", [name], ["y"])]
    graph = load(onnx_kit.build(nodes, {"x": X}))
    assert name in {n for k in graph for n in graph.node(k).names}
    assert "\x1b" not in graph.text() and "\u202e" not in graph.text()
    nodes[0].op_type = "Mystery"
    with pytest.raises(NervureError) as caught:
        load(onnx_kit.build(nodes, {"x": X}))
    assert len(str(caught.value)) < 4000 and "\x1b" not in str(caught.value)


def test_numbers_of_the_file_are_not_trusted_with_memory(onnx_kit: SimpleNamespace) -> None:
    """A sparse tensor that would be 4 TB when written out."""
    model = onnx_kit.build([helper.make_node("Add", ["x", "w"], ["y"])], {"x": X})
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [HUGE]))
    with pytest.raises(NervureError, match="impossible shape"):
        load(model)
