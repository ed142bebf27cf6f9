"""float16 and bfloat16: sound graphs that compute the same within the type's precision, and what stays float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import models
import nervure as nv
import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import STORED, Graph, Value
from nervure.compiler.ops import OPS
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.fuse import fuse
from nervure.compiler.passes.half import BOUNDED, KEPT, LARGEST, NARROW, half
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.frontends.onnx import load
from nervure.frontends.verify import TOLERANCE, slice_error

TYPES = {"float16": "fp16", "bfloat16": "bf16"}


def types_of(graph: Graph, op: str) -> list[str]:
    return [graph.node(k).types[0].dtype for k in graph.find(op)]


def halved(graph: Graph, dtype: str) -> Graph:
    """The pass's result: sound, of the same signature, the same again after a second run; the argument unchanged."""
    text = graph.text()
    after = half(graph, dtype)
    after.check()
    assert graph.text() == text
    assert half(after, dtype).text() == after.text()
    assert [graph.node(k).types for k in graph.inputs] == [after.node(k).types for k in after.inputs]
    assert [graph.type(v) for v in graph.outputs] == [after.type(v) for v in after.outputs]
    assert after.output_names == graph.output_names
    return after


def close(graph: Graph, after: Graph, given: Any, limit: float) -> None:
    for y, wanted in zip(interpret(after, given), interpret(graph, given), strict=True):
        assert slice_error(y, wanted) <= limit


def test_every_operator_of_the_tables_exists() -> None:
    assert not {*NARROW, *BOUNDED, *KEPT} - set(OPS)
    assert not set(NARROW) & set(KEPT) and not set(BOUNDED) & {*KEPT, *NARROW}


@pytest.mark.parametrize("dtype", TYPES)
def test_layers_are_narrow_and_the_border_is_not(kit: Any, dtype: str) -> None:
    b = kit.Builder()
    y = b.relu(b.conv(b.x(1, 3, 8, 8), b.w(4, 3, 3, 3), b.w(4), pads=1))
    graph = kit.finish(b, b.matmul(b.reshape(y, shape=(1, 256)), b.w(256, 10)))
    after = halved(graph, dtype)
    assert [types_of(after, op) for op in ("conv", "relu", "reshape", "matmul")] == [[dtype]] * 4
    assert {after.node(k).types[0].dtype for k in after.find("const")} == {dtype}
    close(graph, after, kit.random_inputs(graph), TOLERANCE[TYPES[dtype]])


def test_masks_survive(kit: Any) -> None:
    b = kit.Builder()
    scores, mask = b.matmul(b.x(4, 8), b.w(8, 6)), b.x(1, 6, name="mask")
    hidden = b.mul(b.sub(b.c(1.0), mask), b.c(-3.4028235e38))
    graph = kit.finish(b, b.matmul(b.softmax(b.add(scores, hidden), axis=1), b.w(6, 5)))
    after = halved(graph, "float16")
    assert types_of(after, "matmul") == ["float16"] * 2 and types_of(after, "add") == ["float32"]
    given = {**kit.random_inputs(graph), "mask": np.array([[1, 0, 1, 1, 0, 1]], np.float32)}
    close(graph, after, given, 1e-2)


@pytest.mark.parametrize("hidden", [-1e9, -np.inf])
def test_masks_of_attention_survive(kit: Any, hidden: float) -> None:
    b = kit.Builder()
    table = np.where(np.tri(5, dtype=bool), 0, hidden).astype(np.float32)
    q, k, v = (b.x(2, 5, 8, name=n) for n in "qkv")
    graph = kit.finish(b, b.attention(q, k, v, b.c(table), scale=0.35))
    after = halved(graph, "float16")
    assert types_of(after, "attention") == ["float16"]
    close(graph, after, kit.random_inputs(graph), 1e-2)


def test_small_and_large_numbers_stay_float32(kit: Any) -> None:
    b = kit.Builder()
    x = b.matmul(b.x(3, 8), b.w(8, 8))
    length = b.sqrt(b.add(b.reduce_sum(b.mul(x, x), axes=(1,), keepdims=True), b.c(1e-12)))
    graph = kit.finish(b, b.mul(b.matmul(b.div(x, length), b.w(8, 4)), b.c(1e5)))
    after = halved(graph, "float16")
    for op, dtype in (("mul", "float32"), ("add", "float32"), ("div", "float32"), ("matmul", "float16")):
        assert set(types_of(after, op)) == {dtype}, op
    large = {"x": np.linspace(-200, 200, 24, dtype=np.float32).reshape(3, 8)}  # squares beyond 65504
    close(graph, after, large, 1e-2)


def test_positions_stay_exact(kit: Any) -> None:
    b = kit.Builder()
    angles = b.matmul(b.cast(b.x(7, 1, dtype="int64"), to="float32"), b.w(1, 4))
    graph = kit.finish(b, b.matmul(b.sin(angles), b.w(4, 3)))
    after = halved(graph, "float16")
    assert types_of(after, "matmul") == ["float32", "float16"] and types_of(after, "sin") == ["float32"]
    close(graph, after, {"x": np.arange(5000, 5007).reshape(7, 1)}, 1e-2)


def test_pictures_of_bytes_are_narrow(kit: Any) -> None:
    b = kit.Builder()
    graph = kit.finish(b, b.conv(b.cast(b.x(1, 3, 6, 6, dtype="uint8"), to="float32"), b.w(4, 3, 3, 3)))
    after = halved(graph, "float16")
    assert types_of(after, "conv") == ["float16"] and not after.find("clip")


def test_what_leaves_float32_is_clipped(kit: Any) -> None:
    b = kit.Builder()
    graph = kit.finish(b, b.matmul(b.exp(b.x(2, 4)), b.w(4, 3, low=0.1, high=0.2)))
    after = halved(graph, "float16")
    assert np.isfinite(interpret(after, {"x": np.full((2, 4), 30, np.float32)})[0]).all()
    assert [after.node(k).attrs["high"] for k in after.find("clip")] == [LARGEST]
    assert not halved(graph, "bfloat16").find("clip")


def test_casts_stand_beside_work_and_not_behind_views(kit: Any) -> None:
    b = kit.Builder()
    total = b.reduce_sum(b.relu(b.conv(b.x(1, 3, 6, 6), b.w(8, 3, 3, 3))), axes=(2, 3), keepdims=True)
    graph = kit.finish(b, b.matmul(b.reshape(total, shape=(1, 8)), b.w(8, 4)))
    after = halved(graph, "float16")
    assert types_of(after, "reduce_sum") == ["float32"] and types_of(after, "reshape") == ["float16"]
    fused = fuse(after)
    ops = [operations(fused.node(k).attrs["body"]) for k in fused.find("fused")]
    assert {"cast": 1, "clip": 1, "reduce_sum": 1} in ops and len(ops) == 4


def operations(body: Graph) -> dict[str, int]:
    return dict(sorted(Counter(body.node(k).op for k in body if body.node(k).op not in STORED).items()))


def test_means_are_narrow_and_variances_are_not(kit: Any) -> None:
    b = kit.Builder()
    x = b.relu(b.matmul(b.x(3, 8), b.w(8, 8)))
    parts = [b.reduce_mean(v, axes=(1,), keepdims=True) for v in (x, b.mul(x, x))]
    graph = kit.finish(b, b.matmul(b.concat(*parts, axis=1), b.w(2, 4)))
    assert types_of(halved(graph, "float16"), "reduce_mean") == ["float16", "float32"]


def test_states_keep_their_type() -> None:
    graph = Graph("state")
    x = graph.input("x", TensorType("float32", (1, 8)))
    held = graph.state(np.zeros((1, 8), np.float32), "held")
    w = graph.const(np.eye(8, dtype=np.float32) / 2, "w")
    y = graph.add("matmul", graph.add("add", x, held), w)
    graph.output(y, "y")
    graph.bind(held, y)
    after = halved(graph, "float16")
    assert types_of(after, "matmul") == ["float16"] and types_of(after, "state") == ["float32"]
    state: dict[str, np.ndarray] = {}
    for _ in range(3):
        y_now = interpret(after, {"x": np.ones((1, 8), np.float32)}, state)[0]
    np.testing.assert_allclose(y_now, 0.875, rtol=2e-3)


def test_integers_are_untouched(kit: Any) -> None:
    b = kit.Builder()
    x, scale, zero = b.x(1, 8), b.c(0.05), b.c(3, dtype="uint8")
    w = b.dequantize(b.c(np.arange(32).reshape(8, 4), dtype="int8"), b.c(0.02))
    q = b.dequantize(b.quantize(x, scale, zero, to="uint8"), scale, zero)
    y = b.matmul(q, w)
    graph = canonicalize(kit.finish(b, b.dequantize(b.quantize(y, scale, zero, to="uint8"), scale, zero)))
    assert graph.find("matmul_integer")
    assert halved(graph, "float16").text() == graph.text()


class Maker:
    """Networks of matrices [rows, 8], combined at random."""

    def __init__(self, seed: int, kit: Any) -> None:
        self.rng, self.b = np.random.default_rng(seed), kit.Builder()
        self.held = [self.b.x(5, 8, name=f"x{i}") for i in range(2)]

    def pick(self) -> Value:
        return self.held[-1 - min(int(self.rng.exponential(2)), len(self.held) - 1)]

    def step(self) -> Value:
        b, x, y = self.b, self.pick(), self.pick()
        mean = (("reduce_mean", "reduce_max", "reduce_sum")[self.rng.integers(3)], {"axes": (1,), "keepdims": True})
        return (
            lambda: b.matmul(x, b.mul(b.w(8, 8), b.c(0.5))),
            lambda: b.add(x, y),
            lambda: b.mul(b.tanh(x), y),
            lambda: b.gelu(x),
            lambda: b.softmax(x, axis=1),
            lambda: b.layer_norm(x, b.w(8), b.w(8), axis=1, epsilon=1e-5),
            lambda: b.div(x, b.add(b.exp(b.tanh(y)), b.c(1.0))),
            lambda: b.sub(x, b.mul(getattr(b, mean[0])(x, **mean[1]), b.c(0.1))),
            lambda: b.transpose(
                b.concat(
                    b.slice(x, starts=(0, 4), stops=(5, 8), steps=(1, 1)),
                    b.relu(b.slice(y, starts=(0, 0), stops=(5, 4), steps=(1, 1))),
                    axis=1,
                ),
                perm=(0, 1),
            ),
            lambda: b.where(b.less(x, b.c(-1e9)), y, x),
        )[self.rng.integers(10)]()

    def graph(self) -> Graph:
        for _ in range(int(self.rng.integers(4, 16))):
            self.held.append(self.step())
        for i, value in enumerate(self.held[-2:]):
            self.b.graph.output(value, f"y{i}")
        return canonicalize(self.b.graph)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize(("dtype", "limit"), [("float16", 2e-2), ("bfloat16", 1.5e-1)])
def test_random_networks(seed: int, dtype: str, limit: float, kit: Any) -> None:
    """Chains of up to 16 roundings: a little beyond what is asked of models."""
    graph = Maker(seed, kit).graph()
    given = kit.random_inputs(graph, seed, -1.0, 1.0)
    for y, wanted in zip(interpret(halved(graph, dtype), given), interpret(graph, given), strict=True):
        assert np.abs(y - wanted).max() <= limit * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["shipped", "lenet", "resnet8_cifar", "tiny_kws01", "silero_vad_16k", "bert_mini_128"])
def test_models(name: str, dtype: str) -> None:
    if name not in models.names():
        pytest.skip("no ../shared")
    path, given = models.model(name)
    graph = canonicalize(load(path))
    names = [graph.node(k).names[0] for k in graph.inputs]
    after = halved(graph, dtype)
    works = [k for k in after if after.node(k).op in NARROW]
    assert works and all(after.node(k).types[0].dtype == dtype for k in works)
    close(graph, after, [given[n] for n in names], TOLERANCE[TYPES[dtype]])


def test_other_targets_say_what_to_use(kit: Any, tmp_path: Path) -> None:
    b = kit.Builder()
    graph = kit.finish(b, b.matmul(b.x(1, 8), b.w(8, 4)))
    with pytest.raises(NervureError, match="fp16 on x86-64-v3") as said:
        nv.compile(graph, "x86-64-v3", precision="fp16", out=tmp_path / "m.so")
    assert "cuda" in str(said.value)
    with pytest.raises(NervureError, match="precision 'half'"):
        nv.compile(graph, precision="half")


def test_stored_tensors_are_shared(kit: Any) -> None:
    b = kit.Builder()
    w, x = b.w(8, 8), b.x(2, 8)
    graph = kit.finish(b, b.matmul(b.matmul(x, w), w))
    after = halved(graph, "float16")
    assert len(after.find("const")) == 1
