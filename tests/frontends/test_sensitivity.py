"""The scan of what it costs to prune each layer alone: its numbers against pruning by hand, and its picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers as L
from nervure.compiler.interpret import interpret
from nervure.compiler.prune.layers import prepare
from nervure.compiler.prune.shrink import zero
from nervure.compiler.prune.structure import find_structure
from nervure.frontends import build
from nervure.frontends.sensitivity import Point, Sensitivity

RNG = np.random.default_rng(0)
X = RNG.standard_normal((72, 3, 8, 8)).astype(np.float32)
NAMES = ("a.weight", "b.weight", "head.weight")


@cache
def net() -> nv.Network:
    """Two convolutions, a batch norm with a history, a dense layer."""
    layers = [nv.Input((3, 8, 8)), L.Conv2d(8, 3, name="a"), L.BatchNorm(name="norm"), L.ReLU()]
    layers += [L.Conv2d(12, 3, name="b"), L.ReLU(), L.GlobalAvgPool2d(), L.Dense(4, name="head")]
    made = nv.Sequential(layers, name="net")
    state = made.state_dict()
    rng = np.random.default_rng(1)
    for name in ("norm.running_mean", "norm.bias"):
        state[name] = rng.standard_normal(8) * 0.2
    made.load_state_dict(state)
    return made


def labels() -> np.ndarray:
    """What the network says, but for every fifth."""
    found = net()(X).argmax(1)
    return np.where(np.arange(len(X)) % 5 == 0, (found + 1) % 4, found).astype(np.int32)


def pruned_by_hand(name: str, sparsity: float) -> np.ndarray:
    """The outputs with the smallest weights of one layer set to 0."""
    state = net().state_dict()
    array = state[name]
    limit = np.sort(np.abs(array).ravel())[int(sparsity * array.size + 1e-6) - 1]
    twin = net().to_graph({"batch": len(X)})
    for key in twin.find("const"):
        if twin.node(key).names[0] == name:
            value = np.where(np.abs(array) <= limit, np.float32(0), array)
            value.flags.writeable = False
            twin.set_node(key, attrs={"value": value})
    return interpret(twin, [X])[0]


def close(a: float, b: float) -> bool:
    return a == pytest.approx(b, rel=1e-3, abs=1e-9)


def test_each_point_is_what_pruning_by_hand_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    whole = build.compile

    def counted(*args: Any, **options: Any) -> Any:
        compiled.append(args)
        return whole(*args, **options)

    monkeypatch.setattr(build, "compile", counted)
    found = nv.sensitivity(net(), (X, labels()), sparsities=(0.5, 0.9))
    assert len(compiled) == 1
    assert found.layers == NAMES and len(found.rows) == 6 and found.samples == 72
    dense, y = net()(X), labels()
    assert found.metric == "accuracy" and found.dense == (dense.argmax(1) == y).mean()
    for point in found.rows:
        outputs = pruned_by_hand(point.layer, point.asked)
        assert abs(point.sparsity - point.asked) < 0.02
        assert close(point.noise, np.square(outputs - dense).sum() / np.square(dense).sum())
        assert point.score == (outputs.argmax(1) == y).mean()
        assert point.agreement == (outputs.argmax(1) == dense.argmax(1)).mean()
        assert found.damage(point) == found.dense - point.score


def test_channels_are_the_zeros_that_the_shrinking_is_held_against() -> None:
    found = nv.sensitivity(net(), X, structure="channels", sparsities=(0.5,))
    graph = prepare(net().to_graph({"batch": len(X)}))
    groups = {g.name: g for g in find_structure(graph, ("channels",)).groups}
    arrays = {graph.node(k).names[0]: graph.node(k).array for k in graph.find("const")}
    assert found.layers == tuple(groups) and found.metric is None
    dense = interpret(graph, [X])[0]
    for point in found.rows:
        units = groups[point.layer].units
        parts = [[np.take(arrays[s.tensor], s.index, s.axis) for s in u.slices] for u in units]
        wide = [np.concatenate([p.ravel() for p in part if p.ndim > 1]) for part in parts]
        order = np.argsort([np.abs(w).mean() for w in wide], kind="stable")
        outputs = interpret(zero(graph, {point.layer: order[: len(units) // 2]}), [X])[0]
        assert close(point.noise, np.square(outputs - dense).sum() / np.square(dense).sum())


def test_files_graphs_and_a_fixed_batch_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    nv.save_onnx(net(), path)
    np.savez(tmp_path / "data.npz", input=X, y=labels())
    options: dict[str, Any] = {"sparsities": (0.8,), "structure": "unstructured"}
    whole = nv.sensitivity(net(), (X, labels()), **options)
    for model in (path, path.read_bytes(), net().to_graph(symbolic=True), net().to_graph({"batch": 1})):
        found = nv.sensitivity(model, tmp_path / "data.npz", **options)
        assert [p.score for p in found.rows] == [p.score for p in whole.rows]
        assert found.dense == whole.dense and found.samples == whole.samples


def test_a_pattern_says_its_own_sparsity_and_leaves_out_what_it_cannot_prune() -> None:
    found = nv.sensitivity(net(), X, structure="2:4")
    assert {p.layer: round(p.sparsity, 2) for p in found.rows} == {
        "a.weight": 0.33,
        "b.weight": 0.5,
        "head.weight": 0.5,
    }
    few = nv.sensitivity(net(), X, samples=8, sparsities=(0.5,))
    assert all(p.agreement is None and few.damage(p) == p.noise for p in few.rows)


def test_the_largest_sparsity_within_a_bound() -> None:
    rows = [Point("a", 10, s, s, 0.9 - d, 0.9, 0.0) for s, d in ((0.5, 0.0), (0.7, 0.02), (0.9, 0.005))]
    rows += [Point("b", 10, s, s, 0.9 - d, 0.9, 0.0) for s, d in ((0.5, 0.2), (0.7, 0.3))]
    found = Sensitivity("unstructured", "accuracy", 0.9, 100, tuple(rows))
    assert found.allowed(0.01) == {"a": 0.5, "b": 0.0} and found.allowed(0.21) == {"a": 0.9, "b": 0.5}


def test_the_picture_has_a_cell_for_each_point_darker_for_more_damage(tmp_path: Path) -> None:
    drops = (0.0, 0.01, 0.05, 0.15, 0.5)
    rows = [Point(f"layer <{n}>", 100 * (n + 1), s, s, 0.9 - drops[i], None, 0.0) for n in range(2) for i, s in SPARSE]
    found = Sensitivity("unstructured", "accuracy", 0.9, 100, tuple(rows))
    text = found.save(tmp_path / "scan.svg").read_text()
    assert text == found.svg()
    tree = ET.fromstring(text)
    cells = [e.get("fill") for e in tree.iter() if e.tag.endswith("rect") and e.get("width") == "62"]
    light = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in cells if c]
    assert len(cells) == 10 and light[:5] == light[5:] == sorted(light[:5], reverse=True) and len(set(light)) == 5
    said = "".join(tree.itertext())
    assert all(part in said for part in ("layer <0>", "90.0", "75.0", "66.7%", "accuracy of the dense model 90.0"))
    with pytest.raises(nv.NervureError, match=r"\.svg"):
        found.save(tmp_path / "scan.png")


SPARSE = tuple(enumerate((0.1, 0.3, 0.5, 0.7, 0.9)))


def test_what_cannot_be_scanned_is_one_clear_error() -> None:
    bare = nv.Sequential([nv.Input((3, 8, 8)), L.GlobalAvgPool2d()], name="bare")
    for make, said in (
        (lambda: nv.sensitivity(bare, X), "nothing can be pruned"),
        (lambda: nv.sensitivity(bare, X, structure="channels"), "nothing can be pruned"),
        (lambda: nv.sensitivity(net(), X, sparsities=(0.5, 1.0)), r"sparsity 1\.0"),
        (lambda: nv.sensitivity(net(), X[:, :2]), "do not fit input"),
        (lambda: nv.sensitivity(net(), X, structure="3x3"), "no sparse pattern"),
    ):
        with pytest.raises(nv.NervureError, match=said):
            make()
