"""Hostile models, end to end: inert in every output, or refused with a clear error, in 20 s and 2 GiB."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import onnx
import pytest
from nervure.targets import get, toolchain
from onnx import helper, numpy_helper

SECONDS, BYTES = 20, 2 << 30
NAMES = {
    "comment": '*/ int main(void) { return 1; } /* " \\" %s %n ${x} `id` $(id)',
    "newline": 'a\n#error "b"\r\n\0c',
    "html": "</script><script>alert(1)</script><img src=x onerror=alert(1)>'\"&lt;",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x9b31m\x1b[31mred",
    "long": "n" * 10_000,
    "unicode": "模型/вес\u202e\u2028\U0001f600é",
    "path": "../../../../etc/passwd",
    "markup": "[bold red]x[/] [link=file:///etc/passwd]y[/link] :smile: {{ 7 * 7 }} {% raw %}",
    "keyword": "int",
    "digits": "123",
    "surrounding": "  spaces\tand tabs  ",
}


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    consts: Mapping[str, Any] | None = None,
    name: str = "net",
    kind: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (consts or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def everywhere(name: str) -> onnx.ModelProto:
    """The name in every place that has one."""
    nodes = [
        helper.make_node("MatMul", [f"{name}x", f"{name}w"], [f"{name}t"], name=name, doc_string=name),
        helper.make_node("Relu", [f"{name}t"], [f"{name}y"], name=f"{name} "),
        helper.make_node("TopK", [f"{name}t", "k"], [f"{name}v", f"{name}i"], name=f"{name}2"),
    ]
    weights = {f"{name}w": np.eye(4, 6, dtype=np.float32), "k": np.array([2])}
    outputs = [f"{name}y", f"{name}v", f"{name}i"]
    model = network(nodes, {f"{name}x": [f"{name}batch", 4]}, outputs, weights, name=name)
    model.producer_name = model.doc_string = name
    return model


def cli(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nervure", *map(str, arguments)]
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def assert_terminal_safe(text: str) -> None:
    """Colours are ours; nothing else that a terminal acts on."""
    rest = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert not [c for c in rest if c != "\n" and not c.isprintable()], repr(rest[:2000])
    assert "\x1b[31mred" not in text
    assert max(map(len, text.splitlines()), default=0) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_names_are_inert_in_every_output(kind: str, tmp_path: Path) -> None:
    name = NAMES[kind]
    path = tmp_path / "model.onnx"
    onnx.save(everywhere(name), path)
    dim = f"{name}batch"
    model = nv.compile(path, dims={dim: (1, 3)}, out=tmp_path / "model.so", name=name)
    x = np.arange(-4, 8, dtype=np.float32).reshape(3, 4)
    y, v, i = model.run(None, {f"{name}x": x})
    np.testing.assert_array_equal(y, np.maximum(x @ np.eye(4, 6, dtype=np.float32), 0))
    assert v.shape == i.shape == (3, 2)

    header = (tmp_path / "model.h").read_text()
    assert header.isascii() and all(c.isprintable() or c == "\n" for c in header)
    (tmp_path / "use.c").write_text('#include "model.h"\nint used(void) { return sizeof(int) == 4; }\n')
    strict = ("-Wall", "-Wextra", "-Werror", "-Wcomment")
    toolchain.compile_c(tmp_path / "use.c", tmp_path / "use.o", get("host"), flags=strict)

    binding = f"{dim}=1"
    for arguments in (
        ["inspect", path, "--dim", binding],
        ["inspect", path, "--dim", binding, "--graph", "fused"],
        ["inspect", tmp_path / "model.so"],
        ["inspect", tmp_path / "model.so", "--json"],
        ["inspect", path, "--dim", binding, "--html", tmp_path / "page.html"],
        ["verify", path, "--dim", binding],
    ):
        if "\0" in binding and "--dim" in arguments:
            continue  # no command line can hold it
        done = cli(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_terminal_safe(done.stderr)
        if "--json" in arguments:
            assert json.loads(done.stdout)
            assert done.stdout.isascii() and "\x1b" not in done.stdout
        else:
            assert_terminal_safe(done.stdout)
    if (tmp_path / "page.html").exists():
        page = (tmp_path / "page.html").read_text()
        assert "<script>alert" not in page and "<img src=x" not in page
        assert page.count("</script>") == page.count("<script")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".so", ".h")) == ["model.h", "model.so"]


def test_errors_about_hostile_names_are_inert(tmp_path: Path) -> None:
    for kind, name in NAMES.items():
        path = tmp_path / "model.onnx"
        node = helper.make_node(f"Nothing{name}", [f"{name}x"], [f"{name}y"], name=name)
        onnx.save(network([node], {f"{name}x": [2]}, [f"{name}y"], name=name), path)
        with pytest.raises(nv.NervureError) as caught:
            nv.compile(path)
        assert_terminal_safe(str(caught.value))
        assert len(str(caught.value)) < 5000, kind


@pytest.mark.slow
def test_names_that_fall_together_stay_apart(tmp_path: Path) -> None:
    inputs = ["a b", "a_b", "a.b", "A_B", "a/b", "a__b", "é", "è"]
    nodes = [helper.make_node("Mul", [n, "two"], [f"out {n}"], name="same") for n in inputs]
    consts = {"two": np.float32(2)}
    model = nv.compile(network(nodes, {n: [3] for n in inputs}, [f"out {n}" for n in inputs], consts), cache=False)
    given = {n: np.full(3, i, np.float32) for i, n in enumerate(inputs)}
    assert [float(y[0]) for y in model.run(None, given)] == [2.0 * i for i in range(len(inputs))]
    macros = re.findall(r"#define (\w+)", model.path.with_suffix(".h").read_text())
    assert len(macros) == len(set(macros))


# -- sizes -------------------------------------------------------------------------------------------------------------

HUGE = 10**12
ONE = {"x": [2, 3]}
node = helper.make_node


def _loop(count: int, depth: int = 0) -> onnx.ModelProto:
    def body(inner: onnx.NodeProto, name: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info
        nodes = [node("Identity", ["g"], ["g2"]), inner]
        given = [info("i", 7, []), info("g", 9, []), info("v", 1, [2, 3])]
        return helper.make_graph(nodes, name, given, [info("g2", 9, []), info("v2", 1, [2, 3])])

    graph = body(node("Relu", ["v"], ["v2"]), "body")
    for level in range(depth):
        graph = body(node("Loop", ["n", "yes", "v"], ["v2"], body=graph), f"body{level}")
    return network([node("Loop", ["n", "yes", "x"], ["y"], body=graph)], ONE, ["y"], {"n": count, "yes": True})


def _nested_ifs(depth: int, both: bool) -> onnx.ModelProto:
    def branch(op: onnx.NodeProto, name: str) -> onnx.GraphProto:
        return helper.make_graph([op], name, [], [onnx.ValueInfoProto(name=op.output[0])])

    inner, other = branch(node("Relu", ["x"], ["r"]), "leaf"), branch(node("Neg", ["x"], ["e"]), "other")
    for level in range(depth):
        choice = node("If", ["yes"], [f"o{level}"], then_branch=inner, else_branch=inner if both else other)
        inner = branch(choice, f"level{level}")
    last = node("If", ["yes"], ["y"], then_branch=inner, else_branch=other)
    return network([last], ONE, ["y"], {"yes": True})


def _laughs(depth: int, width: int) -> onnx.ModelProto:
    """Functions that call each other: width ** depth nodes if they are written out."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    functions = []
    for level in range(depth):
        op, domain = (f"F{level + 1}", "d") if level + 1 < depth else ("Relu", "")
        calls = [node(op, [f"t{i - 1}" if i else "a"], [f"t{i}"], domain=domain) for i in range(width)]
        functions.append(helper.make_function("d", f"F{level}", ["a"], [f"t{width - 1}"], calls, opsets))
    model = network([node("F0", ["x"], ["y"], domain="d")], ONE, ["y"])
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("d", 1))
    return model


def _recursive() -> onnx.ModelProto:
    model = _laughs(1, 1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "F0", "d"
    return model


REFUSED = {
    "expand": lambda: network([node("Expand", ["x", "s"], ["y"])], ONE, ["y"], {"s": [HUGE, 2, 3]}),
    "range": lambda: network(
        [node("Range", ["a", "b", "c"], ["y"])], ONE, ["y"], {"a": np.array(0), "b": np.array(HUGE), "c": np.array(1)}
    ),
    "constant of shape": lambda: network([node("ConstantOfShape", ["s"], ["y"])], ONE, ["y"], {"s": [HUGE]}),
    "constant that is summed": lambda: network(
        [node("ConstantOfShape", ["s"], ["t"]), node("ReduceSum", ["t"], ["y"])], ONE, ["y"], {"s": [10**6, 10**6]}
    ),
    "tile": lambda: network([node("Tile", ["x", "s"], ["y"])], ONE, ["y"], {"s": [HUGE, 1]}),
    "pad": lambda: network([node("Pad", ["x", "s"], ["y"])], ONE, ["y"], {"s": [HUGE, 0, 0, 0]}),
    "one hot": lambda: network(
        [node("Cast", ["x"], ["i"], to=7), node("OneHot", ["i", "d", "v"], ["y"])],
        ONE,
        ["y"],
        {"d": np.array(HUGE), "v": np.array([0.0, 1.0], np.float32)},
    ),
    "resize": lambda: network(
        [node("Resize", ["x", "", "s"], ["y"])],
        {"x": [1, 1, 4, 4]},
        ["y"],
        {"s": np.array([1, 1, 1e6, 1e6], np.float32)},
    ),
    "outer product": lambda: network([node("Mul", ["x", "z"], ["y"])], {"x": [10**6, 1], "z": [1, 10**6]}, ["y"]),
    "concat of concats": lambda: network(
        [node("Concat", [f"t{i}" if i else "x"] * 10, [f"t{i + 1}"], axis=0) for i in range(12)], ONE, ["t12"]
    ),
    "einsum": lambda: network(
        [node("Einsum", ["x"] * 8, ["y"], equation="ab,cd,ef,gh,ij,kl,mn,op->abcdefghijklmnop")], {"x": [50, 50]}, ["y"]
    ),
    "boxes": lambda: network(
        [node("NonMaxSuppression", ["b", "s", "k"], ["y"])],
        {"b": [1, 10**6, 4], "s": [1, 1000, 10**6]},
        ["y"],
        {"k": np.array([10**6])},
    ),
    "nonzero": lambda: network([node("NonZero", ["x"], ["y"])], {"x": [2**12, 2**12, 2**6]}, ["y"]),
    "padded convolution": lambda: network(
        [node("Conv", ["x", "w"], ["y"], pads=[10**9] * 4)],
        {"x": [1, 1, 4, 4]},
        ["y"],
        {"w": np.ones((1, 1, 3, 3), np.float32)},
    ),
    "wide pool": lambda: network(
        [node("MaxPool", ["x"], ["y"], kernel_shape=[10**9] * 2, pads=[5 * 10**8] * 4)], {"x": [1, 1, 4, 4]}, ["y"]
    ),
    "dilated pool": lambda: network(
        [node("MaxPool", ["x"], ["y"], kernel_shape=[3] * 2, dilations=[2**40] * 2, pads=[2**41] * 4)],
        {"x": [1, 1, 4, 4]},
        ["y"],
    ),
    "long strides": lambda: network(
        [node("MaxPool", ["x"], ["y"], kernel_shape=[3] * 2, strides=[2**62] * 2)], {"x": [1, 1, 4, 4]}, ["y"]
    ),
    "input": lambda: network([node("Relu", ["x"], ["y"])], {"x": [65536, 65536]}, ["y"]),
    "input of 2**31 bytes": lambda: network(
        [node("Neg", ["x"], ["y"])], {"x": [2**16, 2**15]}, ["y"], kind=onnx.TensorProto.INT8
    ),
    "dimensions beyond int64": lambda: network([node("Relu", ["x"], ["y"])], {"x": [2**40, 2**40]}, ["y"]),
    "unused input": lambda: network([node("Relu", ["x"], ["y"])], ONE | {"z": [2**40, 2**40]}, ["y"]),
    "many dimensions": lambda: network([node("Relu", ["x"], ["y"])], {"x": [1] * 300}, ["y"]),
    "reshape": lambda: network([node("Reshape", ["x", "s"], ["y"])], ONE, ["y"], {"s": [2**62, 2**62, -1]}),
    "cycle": lambda: network(
        [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["y"])], ONE, ["y"]
    ),
    "loop": lambda: _loop(10**9),
    "loops in loops": lambda: _loop(50, depth=5),
    "functions of functions": lambda: _laughs(30, 8),
    "function of itself": _recursive,
    "empty input name": lambda: network([node("Relu", [""], ["y"])], {"": [2]}, ["y"]),
}
COMPILED = {
    "loop of 5,000": lambda: _loop(5000),
    "nested ifs": lambda: _nested_ifs(25, both=False),
    "nested ifs, both branches": lambda: _nested_ifs(12, both=True),
    "a thousand inputs": lambda: network(
        [node("Sum", [f"x{i}" for i in range(1000)], ["y"])], {f"x{i}": [4] for i in range(1000)}, ["y"]
    ),
    "outputs that are inputs": lambda: network([], ONE, ["x"]),
    "the same output twice": lambda: network([node("Relu", ["x"], ["y"])], ONE, ["y", "y"]),
    "no input": lambda: network([node("Relu", ["c"], ["y"])], {}, ["y"], {"c": np.ones(4, np.float32)}),
    "no element": lambda: network([node("Relu", ["x"], ["y"])], {"x": [0, 4]}, ["y"]),
    "constants that overflow": lambda: network(
        [node("Exp", ["a"], ["b"]), node("Div", ["b", "z"], ["c"]), node("Add", ["x", "c"], ["y"])],
        ONE,
        ["y"],
        {"a": np.float32(1e30), "z": np.float32(0)},
    ),
    "integers divided by zero": lambda: network(
        [node("Div", ["a", "z"], ["b"]), node("Cast", ["b"], ["c"], to=1), node("Add", ["x", "c"], ["y"])],
        ONE,
        ["y"],
        {"a": np.array([7]), "z": np.array([0])},
    ),
}
SCRIPT = """
import json, resource, sys, time
import nervure as nv
from nervure.compiler.kernels.pool import stop_workers
from nervure.errors import NervureError
import numpy as np
begin = time.perf_counter()
try:
    model = nv.compile(sys.argv[1], cache=False)
    model.run(None, {p.name: np.ones(p.shape, p.dtype) for p in model.get_inputs()})
    said = None
except NervureError as error:
    said = str(error)
spent = time.perf_counter() - begin
stop_workers()  # only children that have ended are counted
most = max(resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024
print(json.dumps([said, spent, most]))
"""


def _limits() -> None:
    """A net, should the bounds that are tested not hold."""
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))


def _outcome(model: onnx.ModelProto, folder: Path) -> str | None:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=_limits,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    said, spent, most = json.loads(done.stdout)
    print(f"{spent:.2f} s, {most / 2**20:.0f} MB: {said}")
    assert spent < SECONDS
    assert most < BYTES
    return said


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_bounded_time_and_memory(case: str, tmp_path: Path) -> None:
    said = _outcome(REFUSED[case](), tmp_path)
    assert said, "it was compiled"
    assert_terminal_safe(said)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_in_bounded_time_and_memory(case: str, tmp_path: Path) -> None:
    assert _outcome(COMPILED[case](), tmp_path) is None


@pytest.mark.parametrize("location", ["../../secret", "link", "folder/secret", "/etc/hostname"])
def test_external_data_outside_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(24))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    model = network([node("Add", ["x", "w"], ["y"])], ONE, ["y"], {"w": np.zeros((2, 3), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(nv.NervureError, match="refused"):
        nv.compile(folder / "model.onnx", out=folder / "model.so")
    assert not (folder / "model.so").exists()
