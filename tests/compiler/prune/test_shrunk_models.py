"""Real models: units of every group taken out, against zeros in their place, and as ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import models
import nervure as nv
import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.prune.layers import prepare
from nervure.compiler.prune.shrink import shrink, zero
from nervure.compiler.prune.structure import Structure, find_structure
from nervure.frontends.onnx import load, load_network, save, to_model

# model -> groups that must be found, by kind
WANTED = {
    "shipped": {"channels": 14},
    "resnet8_cifar": {"channels": 6, "blocks": 1},
    "mobilenet_v2": {"channels": 25, "blocks": 1},
    "lstm_2x128": {"units": 2},
    "gru_2x128": {"units": 2},
    "bert_mini_128": {"channels": 4, "heads": 4, "blocks": 1},
    "vit_tiny": {"channels": 12, "heads": 12, "blocks": 1},
    "unet_16_256": {"channels": 17},
}


def part(structure: Structure, share: float, seed: int) -> dict[str, list[int]]:
    """A share of the units of every group."""
    rng = np.random.default_rng(seed)
    return {
        g.name: sorted(rng.choice(len(g.units), int(share * len(g.units)), replace=False).tolist())
        for g in structure.groups
    }


def stored(graph: Graph) -> int:
    return sum(graph.node(k).array.size for k in graph.find("const"))


def load_model(name: str) -> tuple[Graph, dict[str, np.ndarray]]:
    file, given = models.model(name)
    graph = prepare(load(file))
    return graph, {k: given[k] for k in (graph.node(i).names[0] for i in graph.inputs)}


@pytest.mark.parametrize(
    "name", [n if n == "shipped" else pytest.param(n, marks=pytest.mark.slow) for n in models.names()]
)
def test_a_model_loses_three_tenths_of_every_group(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    graph, inputs = load_model(name)
    structure = find_structure(graph)
    kinds = [g.kind for g in structure.groups]
    assert {k: kinds.count(k) for k in sorted(set(kinds))} == WANTED.get(name, {k: kinds.count(k) for k in set(kinds)})
    assert structure.groups and all(f.why and f.origin for f in structure.fixed)
    removed = part(structure, 0.3, seed=1)
    less = shrink(graph, removed)
    less.check()
    assert stored(less) < 0.95 * stored(graph)
    wanted = interpret(zero(graph, removed), inputs)
    for got, whole in zip(interpret(less, inputs), wanted, strict=True):
        np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(whole).max())))
    save(less, tmp_path / "less.onnx")
    session = ort.InferenceSession(str(tmp_path / "less.onnx"), providers=["CPUExecutionProvider"])
    feeds = dict(zip((i.name for i in session.get_inputs()), inputs.values(), strict=True))
    for got, whole in zip(session.run(None, feeds), wanted, strict=True):
        np.testing.assert_allclose(got, whole, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(whole).max())))


@nv.network
def _net(x: nv.Input((3, 8, 8))):
    for width in (8, 12, 12):
        x = nv.relu(nv.layers.BatchNorm2d()(nv.layers.Conv2d(width, 3, padding="same")(x)))
    return nv.layers.Dense(5)(nv.layers.Flatten()(x))


def test_a_network_of_open_batch_shrinks_and_can_be_trained_on() -> None:
    open_graph = prepare(_net.to_graph(symbolic=True))
    groups = find_structure(open_graph).groups
    assert [(g.kind, len(g.units)) for g in groups] == [("channels", 8), ("channels", 12), ("channels", 12)]
    removed = {g.name: [1, 4, 5] for g in groups}
    shrink(open_graph, removed).check()
    graph = prepare(_net.to_graph())
    less = shrink(graph, removed)
    again = load_network(to_model(less).SerializeToString())
    shapes = {name: weight.shape for name, weight in again.named_weights()}
    wanted = {less.node(k).names[0]: less.node(k).types[0].dims for k in less.find("const")}
    assert {name: shapes[name] for name in shapes if name in wanted} == {k: v for k, v in wanted.items() if k in shapes}
    assert shapes["conv2d_1.weight"] == (9, 5, 3, 3) and shapes["batch_norm_2.weight"] == (9,)
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    zeroed = load_network(to_model(zero(graph, removed)).SerializeToString())
    np.testing.assert_allclose(again(x), zeroed(x), rtol=1e-5, atol=1e-5)
