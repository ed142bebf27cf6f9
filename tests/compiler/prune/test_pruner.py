"""Pruning to a target: made networks, every kind of budget, refusals, and real models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.prune import patterned
from nervure.compiler.prune.budget import Target, counted, measure, parse, planned, static
from nervure.compiler.prune.criteria import scores
from nervure.compiler.prune.patterns import parse as pattern_of
from nervure.compiler.prune.pruner import Pruned, prune
from nervure.compiler.prune.rows import Cost, Plans, losing
from nervure.compiler.prune.settings import Settings
from nervure.compiler.prune.shrink import zero
from nervure.compiler.prune.structure import find_structure
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.targets import get

from tests import models

MACHINE = get("x86-64-v3")


def _network(batch: int | str = 1, width: int = 48, seed: int = 0) -> Graph:
    """Convolutions and batch norms around a residual sum, a depthwise and a pointwise one, two dense layers."""
    rng = np.random.default_rng(seed)
    graph = Graph("network")

    def const(name: str, *shape: int, low: float = -1.0) -> Value:
        return graph.const(rng.uniform(low, 1.0, shape).astype(np.float32), name)

    def conv(x: Value, name: str, outputs: int, kernel: int = 3, group: int = 1) -> Value:
        channels = graph.type(x).shape[1]
        assert isinstance(channels, int)
        pads = (kernel // 2,) * 4
        attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": pads, "group": group}
        w = const(f"{name}.w", outputs, channels // group, kernel, kernel)
        y = graph.add("conv", x, w, names=[name], origin=("net.py:7",), **attrs)
        norm = [const(f"{name}.{part}", outputs, low=0.3) for part in ("scale", "bias", "mean", "var")]
        return graph.add("relu", graph.add("batch_norm", y, *norm, epsilon=1e-3))

    x = conv(graph.input("x", TensorType("float32", (batch, 3, 8, 8))), "stem", width)
    x = graph.add("add", x, conv(conv(x, "a", 2 * width), "b", width))
    x = conv(conv(x, "dw", width, group=width), "pw", 2 * width, kernel=1)
    x = graph.add("reduce_mean", x, axes=(2, 3), keepdims=False)
    x = graph.add("relu", graph.add("matmul", x, const("d.w", 2 * width, 128), names=["d"]))
    graph.output(graph.add("matmul", x, const("e.w", 128, 10), names=["e"]), "y")
    return graph


def _samples(count: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def _prune(graph: Graph, structure: str = "channels", target: Target | None = None, **said: object) -> Pruned:
    return prune(graph, Settings(structure=structure, target=target, **said), MACHINE)  # type: ignore[arg-type]


def _constants(graph: Graph) -> dict[str, np.ndarray]:
    return {graph.tensor_name(Value(k)): graph.node(k).array for k in graph.find("const")}


# -- structure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("kind", ["sparsity", "macs", "params", "ram", "file", "latency"])
def test_every_budget_is_met_within_two_percent(kind: str, scope: str) -> None:
    graph = _network(width=96)
    target = Target(kind, 0.4 if kind == "sparsity" else 0.55)
    found = _prune(graph, target=target, scope=scope, multiple=1)
    found.graph.check()
    if kind == "sparsity":
        assert found.amount == pytest.approx(0.4, abs=0.02)
        return
    assert found.before[kind] == measure(graph, MACHINE)[kind]
    assert found.amount == found.after[kind] == measure(found.graph, MACHINE)[kind]
    fine = 0.06 if kind == "ram" else 0.02  # a tensor's channels are laid out in whole vectors
    assert 1 - fine <= found.after[kind] / (0.55 * found.before[kind]) <= 1 + 1e-9


def test_taylor_scores_are_weighed_against_what_they_cost() -> None:
    """Of two groups whose channels are worth the same those go first that save more."""
    graph = _network()
    weights = {n: a for n, a in _constants(graph).items() if a.ndim > 1}
    slopes = {n: 1 / np.where(a == 0, 1, a) / a.size for n, a in weights.items()}  # each tensor is worth 1
    settings = Settings(target=Target("macs", 0.7), criterion="taylor", multiple=1)
    by_cost = prune(graph, settings, MACHINE, gradients=slopes)
    plain = prune(graph, replace(settings, rank="score"), MACHINE, gradients=slopes)
    assert by_cost.removed != plain.removed
    lost = [sum(1 - r.kept for r in found.rows) for found in (by_cost, plain)]
    assert lost[0] < lost[1] and all(f.after["macs"] <= 0.7 * f.before["macs"] for f in (by_cost, plain))


def test_scores_serve_several_targets() -> None:
    graph = _network(width=16)
    scored = scores(graph, "l1")
    for left in (0.8, 0.5):
        settings = Settings(target=Target("macs", left), criterion="l1", multiple=1)
        found = prune(graph, settings, MACHINE)
        assert prune(graph, settings, MACHINE, scored=scored).removed == found.removed
        assert all(np.array_equal(found.scores[n], scored[n]) for n in scored)


def test_an_absolute_target_is_met() -> None:
    found = _prune(_network(), target=parse("60K", "file"), multiple=1)
    assert 0.97 * 60 * 1024 <= found.after["file"] <= 60 * 1024


def test_what_is_left_computes_what_the_zeroed_graph_does() -> None:
    graph = _network()
    found = _prune(graph, target=Target("macs", 0.5), multiple=1)
    assert found.removed and not found.masks
    x = _samples(1)["x"]
    (got,), (wanted,) = interpret(found.graph, [x]), interpret(zero(graph, found.removed), [x])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_layer_scope_takes_the_same_part_of_each_and_a_global_one_the_least() -> None:
    graph = _network()
    key = next(k for k in graph.find("const") if graph.tensor_name(Value(k)) == "a.w")
    array = graph.node(key).array.copy()
    array[:60] *= 0.01  # most of these channels are worth little
    graph.set_node(key, attrs={"value": array})
    alike = _prune(graph, target=Target("macs", 0.6), scope="layer", multiple=1, criterion="l1")
    sizes = {g.name: len(g.units) for g in find_structure(graph).groups}
    parts = [len(gone) / sizes[name] for name, gone in alike.removed.items()]
    assert len(parts) == len(sizes) and max(parts) - min(parts) < 0.03
    chosen = _prune(graph, target=Target("macs", 0.6), multiple=1, criterion="l1")
    assert set(range(60)) >= set(chosen.removed["a"]) and len(chosen.removed["a"]) / 96 > max(parts)


def test_no_group_is_emptied() -> None:
    graph = _network()
    for floor, least in ((0.0, 1), (0.25, 12)):
        with pytest.raises(NervureError, match="nearest"):
            _prune(graph, target=Target("macs", 1e-5), floor=floor)
        found = _prune(graph, target=Target("sparsity", 0.7), floor=floor, criterion="random", multiple=1)
        sizes = {g.name: len(g.units) for g in find_structure(graph).groups}
        assert all(sizes[n] - len(gone) >= min(least, sizes[n]) for n, gone in found.removed.items())


def test_what_is_kept_and_parts_that_are_said() -> None:
    graph = _network()
    found = _prune(graph, target=Target("macs", 0.7), keep=("a", "d.w"), parts={"pw": 0.5}, multiple=1)
    assert not {"a", "d"} & set(found.removed) and len(found.removed["pw"]) == 48
    rows = {r.layer: r for r in found.rows}
    assert rows["a"].shape_after[0] == 96 and rows["pw"].shape_after[0] == 48
    assert rows["e"].left_out and rows["a"].left_out == "it is kept, as asked"
    with pytest.raises(NervureError, match="matches nothing"):
        _prune(graph, target=Target("macs", 0.7), keep=("nothing*",))


def test_rows_add_up() -> None:
    found = _prune(_network(), target=Target("macs", 0.5), multiple=1)
    assert sum(r.macs_before for r in found.rows) == found.before["macs"]
    assert sum(r.macs_after for r in found.rows) == found.after["macs"]
    assert 0.8 * found.before["latency"] < sum(r.us_before for r in found.rows) <= found.before["latency"] * (1 + 1e-9)
    assert all(0 < r.kept <= 1 and r.us_after > 0 and r.bytes_after > 0 for r in found.rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["macs", "latency"])
def test_numbers_of_channels_suit_the_machine(kind: str) -> None:
    found = _prune(_network(width=64), target=Target(kind, 0.6))
    assert found.after[kind] <= 0.6 * found.before[kind]
    plain = _prune(_network(width=64), target=Target(kind, 0.6), multiple=1)
    better = "latency" if kind == "macs" else "macs"
    assert found.after[better] / found.before[better] <= plain.after[better] / plain.before[better] * 1.02 or (
        kind == "latency" and found.after["macs"] >= plain.after["macs"]
    )
    sizes = [r.shape_after[0] for r in found.rows if r.op == "conv"]
    assert kind == "latency" or all(n % (MACHINE.lanes // 4) == 0 for n in sizes)


def test_the_same_comes_out_twice() -> None:
    for criterion in ("l2", "random", "taylor"):
        settings = Settings(target=Target("macs", 0.6), criterion=criterion, seed=3, multiple=1)
        first, again = (prune(_network(width=16), settings, MACHINE, _samples()) for _ in range(2))
        assert first.removed == again.removed and first.rows == again.rows
        ours, theirs = _constants(first.graph), _constants(again.graph)
        assert list(ours) == list(theirs) and all(ours[n].tobytes() == theirs[n].tobytes() for n in ours)
    other = prune(_network(width=16), replace(settings, criterion="random", seed=4), MACHINE)
    third = prune(_network(width=16), replace(settings, criterion="random"), MACHINE)
    assert other.removed != third.removed


def test_an_open_batch_stays_open() -> None:
    settings = Settings(target=Target("macs", 0.5), criterion="taylor")
    found = prune(_network("batch"), settings, MACHINE, _samples(4), np.array([0, 1, 2, 3]))
    assert found.graph.node(found.graph.inputs[0]).types[0].shape == ("batch", 3, 8, 8)
    fixed = prune(_network(), settings, MACHINE, _samples(4), np.array([0, 1, 2, 3]))
    assert found.removed == fixed.removed and found.after == fixed.after


def test_params_are_weights_too() -> None:
    graph = _network()
    for key in graph.find("const"):
        graph.set_node(key, op="param")
    found, wanted = (_prune(g, target=Target("macs", 0.5), multiple=1).removed for g in (graph, _network()))
    assert found == wanted


def test_a_measured_latency_is_met() -> None:
    """The machine is not as the model says: some constant time, and another speed."""
    calls = []

    def clock(graph: Graph) -> float:
        calls.append(graph)
        return 20 + 1.7 * planned(static(graph), MACHINE)["latency"] ** 0.9

    for left in (0.8, 0.5):
        calls.clear()
        settings = Settings(target=Target("latency", left), multiple=1)
        found = prune(_network(), settings, MACHINE, measure=clock)
        wanted = left * clock(_network())
        assert clock(found.graph) == pytest.approx(wanted, rel=0.03) and found.amount == pytest.approx(
            clock(found.graph)
        )
        assert len(calls) <= 10


# -- patterns ----------------------------------------------------------------------------------------------------------


def _dense(sizes: Sequence[int] = (256, 512, 384, 10), rows: int = 16) -> Graph:
    rng = np.random.default_rng(2)
    graph = Graph("dense")
    x = graph.input("x", TensorType("float32", (rows, sizes[0])))
    for i, (k, n) in enumerate(pairwise(sizes)):
        w = graph.const((rng.normal(size=(k, n)) / np.sqrt(k)).astype(np.float32), f"w{i}")
        x = graph.add("matmul", x, w, names=[f"d{i}"])
        x = graph.add("relu", x) if i < len(sizes) - 2 else x
    graph.output(x, "y")
    return graph


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("structure", ["unstructured", "block", "block:4x4"])
@pytest.mark.parametrize(("kind", "value"), [("sparsity", 0.9), ("macs", 0.3), ("params", 0.3)])
def test_patterns_meet_budgets(structure: str, kind: str, value: float, scope: str) -> None:
    found = _prune(_dense(), structure, Target(kind, value), scope=scope, force=True)
    if kind == "sparsity":
        assert found.amount == pytest.approx(value, abs=0.005)
        zeros = sum(int((~m).sum()) for m in found.masks.values())
        taking = sum(r.shape_before[0] * r.shape_before[1] for r in found.rows if not r.left_out)
        assert zeros / taking == pytest.approx(value, abs=0.005)
    else:
        assert 0.98 * value <= found.after[kind] / found.before[kind] <= value + 1e-9
    pattern = pattern_of(structure, MACHINE)
    arrays = _constants(found.graph)
    for name, mask in found.masks.items():
        assert pattern.fits(arrays[name], arrays[name].shape[0])
        cells = pattern.pool(mask.astype(float), mask.shape[0])
        assert np.isin(cells, (0.0, 1.0)).all()
        assert np.array_equal(arrays[name], np.where(mask, _constants(_dense())[name], 0))
    parts = [float(m.mean()) for m in found.masks.values()]
    if scope == "layer":
        assert max(parts) - min(parts) < 0.05
    assert min(parts) >= 0.01


def test_a_pattern_of_groups_says_its_own_sparsity() -> None:
    found = _prune(_dense(), "2:4", force=True)
    assert found.amount == 0.5 and all(m.mean() == 0.5 for m in found.masks.values()) and len(found.masks) == 3
    assert _prune(_dense(), "2:4", Target("sparsity", 0.5), force=True).masks.keys() == found.masks.keys()
    with pytest.raises(NervureError, match=r"nearest that can is 50\.0%"):
        _prune(_dense(), "2:4", Target("sparsity", 0.75), force=True)


def test_a_pattern_of_groups_is_put_on_as_few_layers_as_it_takes() -> None:
    graph = _dense((256, 256, 256, 256, 256), rows=4)
    found = _prune(graph, "1:4", Target("macs", 0.65), force=True)
    assert len(found.masks) == 2 and found.after["macs"] == pytest.approx(0.625 * found.before["macs"])
    with pytest.raises(NervureError, match=r"0\.25x"):
        _prune(graph, "1:4", Target("macs", 0.2), force=True)


def test_layers_that_a_pattern_does_not_suit_are_left_out() -> None:
    found = _prune(_network(), "block", Target("sparsity", 0.5), force=True)
    rows = {r.layer: r for r in found.rows}
    assert "depthwise" in rows["dw"].left_out and "3 channels" in rows["stem"].left_out
    assert rows["dw"].kept == rows["stem"].kept == 1 and rows["a"].pattern == "block:1x8" and rows["a"].kept < 1
    narrow = _prune(_network(), "block:1x16", Target("sparsity", 0.5), force=True)
    assert "do not fill" in {r.layer: r for r in narrow.rows}["e"].left_out


def test_kept_and_said_layers_of_patterns() -> None:
    found = _prune(_dense(), "unstructured", Target("sparsity", 0.31), keep=("d0",), parts={"w1": 0.3}, force=True)
    assert "w0" not in found.masks and found.masks["w1"].mean() == pytest.approx(0.7, abs=0.01)
    assert found.amount >= 0.31 and found.masks["w2"].mean() < 0.3


def test_magnitudes_of_layers_compare_whatever_their_scale() -> None:
    graph = _dense()
    first = _prune(graph, "unstructured", Target("sparsity", 0.8), force=True)
    scaled = graph.copy()
    for key in scaled.find("const"):
        if scaled.tensor_name(Value(key)) == "w1":
            scaled.set_node(key, attrs={"value": scaled.node(key).array * np.float32(1024)})
    again = _prune(scaled, "unstructured", Target("sparsity", 0.8), force=True)
    assert all(np.array_equal(first.masks[n], again.masks[n]) for n in first.masks)


# -- what does not pay -------------------------------------------------------------------------------------------------


def test_what_does_not_pay_is_told_by_the_numbers() -> None:
    dense = Plans({"a": Cost(10.0, 4000), "b": Cost(10.0, 4000), "c": Cost(10.0, 4000)}, {})
    sparse = Plans({"a": Cost(5.0, 1000), "b": Cost(9.9, 1000), "c": Cost(12.0, 5000)}, {})
    layers = [(n, f"{n}.w") for n in "abc"]
    found = losing(layers, dense, sparse, "latency", {"b.w": 0.4})
    assert list(found) == ["b", "c"] and "10 us dense, 9.9 us with 40.0% of the weights" in found["b"]
    assert list(losing(layers, dense, sparse, "file", {})) == ["c"]


@pytest.fixture
def slow_layer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the cost model say that zeros are of no use in some layers."""

    def make(*names: str) -> None:
        real = patterned.plans

        def plans(graph: Graph, machine: object, optimize: str) -> Plans:
            found = real(graph, machine, optimize)  # type: ignore[arg-type]
            sparse = any((a == 0).any() for a in _constants(graph).values())
            halved = {n: Cost(c.us * (1 if n in names or not sparse else 0.5), c.bytes) for n, c in base.layers.items()}
            return Plans(halved, found.totals)

        base = real(static(_dense()), MACHINE)
        monkeypatch.setattr(patterned, "plans", plans)

    return make


def test_layers_in_which_a_pattern_does_not_pay_stay_dense(slow_layer: Callable[..., None]) -> None:
    slow_layer("d1")
    found = _prune(_dense(), "unstructured", Target("sparsity", 0.8))
    rows = {r.layer: r for r in found.rows}
    assert "w1" not in found.masks and {"w0", "w2"} == set(found.masks)
    assert "us dense" in rows["d1"].refused and " pays " in rows["d1"].refused
    assert rows["d1"].kept == 1 and not rows["d0"].refused
    assert found.notes and found.amount == pytest.approx(0.8, abs=0.01)
    forced = _prune(_dense(), "unstructured", Target("sparsity", 0.8), force=True)
    assert "w1" in forced.masks and not forced.notes


def test_a_pattern_that_pays_nowhere_is_refused(slow_layer: Callable[..., None]) -> None:
    slow_layer("d0", "d1", "d2")
    with pytest.raises(NervureError) as error:
        _prune(_dense(), "unstructured", Target("sparsity", 0.3))
    assert "does not pay in any layer" in str(error.value) and "us dense" in str(error.value)
    assert all(name in str(error.value) for name in ("d0", "d1", "d2")) and "force" in str(error.value)


# -- errors ------------------------------------------------------------------------------------------------------------


def test_where_nothing_can_go_the_reasons_are_told() -> None:
    graph = Graph("one")
    x = graph.input("x", TensorType("float32", (1, 6)))
    graph.output(graph.add("matmul", x, graph.const(np.eye(6, 4, dtype=np.float32), "w"), names=["only"]), "y")
    with pytest.raises(NervureError, match="nothing to prune") as error:
        _prune(graph, target=Target("macs", 0.5))
    assert "only stays: it is an output of the model" in str(error.value)
    with pytest.raises(NervureError, match="nothing to prune"):
        _prune(_network(), target=Target("macs", 0.5), keep=("*",))
    with pytest.raises(NervureError, match="nothing to prune"):
        _prune(graph, "block:16x16", Target("sparsity", 0.5))


@pytest.mark.parametrize("kind", ["macs", "params", "ram", "file", "latency"])
def test_a_budget_that_cannot_be_met_names_the_nearest(kind: str) -> None:
    with pytest.raises(NervureError, match="cannot be met; the nearest that can is") as error:
        _prune(_network(), target=Target(kind, 0.001))
    text = str(error.value)
    assert "10% of each group of channels always stay" in text and "e stays: it is an output" in text
    nearest = float(text.split("do: ")[1].split("x or more")[0])
    assert (
        _prune(_network(), target=Target(kind, nearest)).after[kind]
        <= nearest * 1.001 * measure(_network(), MACHINE)[kind]
    )


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(NervureError, match="how much"):
        _prune(_network())
    for said in ({"criterion": "l3"}, {"scope": "all"}, {"floor": 2.0}, {"parts": {"a": 1.5}}, {"tolerance": 0}):
        with pytest.raises(NervureError, match="pruning"):
            Settings(**said)  # type: ignore[arg-type]
    with pytest.raises(NervureError, match="pattern"):
        _prune(_network(), "stripes", Target("macs", 0.5))
    with pytest.raises(NervureError):
        prune(_network(), Settings(target=Target("macs", 0.5), criterion="taylor"), MACHINE, {"z": np.zeros((1, 3))})


# -- real models -------------------------------------------------------------------------------------------------------


def _model(name: str) -> Graph:
    from nervure.frontends.onnx import load

    if models.folder() is None:
        pytest.skip("needs ../shared")
    return load(models.model(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["macs", "latency"])
def test_mobilenet_to_half(kind: str) -> None:
    found = _prune(_model("mobilenet_v2"), target=Target(kind, 0.5))
    assert 0.98 <= found.after[kind] / (0.5 * found.before[kind]) <= 1
    assert found.after["latency"] <= 0.6 * found.before["latency"]
    assert counted(found.graph)["macs"] == found.after["macs"]


@pytest.mark.slow
def test_resnet_loses_a_branch() -> None:
    graph = _model("resnet8_cifar")
    if not any(g.kind == "blocks" for g in find_structure(graph).groups):
        pytest.skip("no branch of it can go")
    found = _prune(graph, "blocks", Target("macs", 0.85))
    assert found.after["macs"] <= 0.85 * found.before["macs"] and len(found.graph) < len(graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "mlp_784"])
def test_ninety_percent_of_each_layer(name: str) -> None:
    found = _prune(_model(name), "unstructured", Target("sparsity", 0.9), scope="layer", force=True)
    parts = [float(m.mean()) for m in found.masks.values()]
    assert found.amount == pytest.approx(0.9, abs=0.005) and max(parts) < 0.13
    limit = {"mobilenet_v2": 0.2, "mlp_784": 0.55}[name]  # of one row the fastest kernel is not the smallest
    assert found.after["file"] <= limit * found.before["file"] and found.after["latency"] < found.before["latency"]


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
def test_criteria_that_see_data_on_a_real_model(criterion: str) -> None:
    name = "tiny_kws01"
    graph = _model(name)
    feed = models.model(name)[1]
    ports = {graph.node(k).names[0] for k in graph.inputs}
    found = prune(
        graph,
        Settings(target=Target("macs", 0.6), criterion=criterion),
        MACHINE,
        [{k: v for k, v in feed.items() if k in ports}],
    )
    assert found.after["macs"] <= 0.6 * found.before["macs"]
