"""``nv.prune``: what becomes of a graph, of its accuracy, bytes and time; and every way in which it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.prune.shrink import zero
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.frontends import prune_choice, prune_job
from nervure.frontends.onnx import load
from nervure.frontends.prune_layers import form
from nervure.frontends.prune_pace import CLOSE, Record, Trial, best, search, shape_key
from prune_nets import dense, labelled, pictures, small

NET = small()
X, Y = labelled(NET, 60, 1)
DATA = {"x": X, "y": Y}


def _weights(graph: Graph) -> dict[str, np.ndarray]:
    return {graph.node(k).names[0]: graph.node(k).array for k in graph.find("const")}


def _shrunk(**more: Any) -> nv.frontends.prune.Pruning:  # type: ignore[name-defined]
    return nv.prune(NET, macs="0.5x", timed=False, **more)


# -- what is made ------------------------------------------------------------------------------------------------------


def test_channels_really_go(tmp_path: Path) -> None:
    made = nv.prune(NET, tmp_path / "out.onnx", macs="0.5x", timed=False)
    report = made.report
    assert made.path == tmp_path / "out.onnx"
    assert 0.4 < report.budget["reached"] / report.budget["dense"] <= 0.5
    rows = {r["name"]: r for r in report.layers}
    assert list(rows) == ["first", "second", "head"]
    assert rows["second"]["shape"]["pruned"][0] < 16 and rows["second"]["density"] == 1
    assert rows["head"]["shape"] == {"dense": [16, 4], "pruned": [rows["second"]["shape"]["pruned"][0], 4]}
    assert "output" in rows["head"]["why"] and report.fixed[0]["where"] == "head"
    assert (
        report.totals["pruned"]["macs"] == report.budget["reached"] == sum(r["macs"]["pruned"] for r in rows.values())
    )
    assert report.totals["pruned"]["library"] < report.totals["dense"]["library"] and "library" in report.gained
    # the file, the graph and the compiled model are one network: the dense one with the units' weights zero
    removed = {g["name"]: g["removed"] for g in report.groups}
    x = pictures(1, 5)
    ours = made.model(x)
    assert np.allclose(interpret(load(made.path), {"x": x})[0], ours, atol=1e-4)
    assert sum(removed.values()) > 0 and all(g["units"] == 16 for g in report.groups)


def test_what_it_says_went_is_what_went(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plain = prune_job.prune_graph
    monkeypatch.setattr(prune_job, "prune_graph", lambda *a, **k: seen.append(plain(*a, **k)) or seen[-1])
    made = _shrunk()
    x = pictures(1, 6)
    held = interpret(zero(NET, seen[0].removed), {"x": x})[0]
    assert np.allclose(made.model(x), held, atol=1e-4)
    assert {g["name"]: g["removed"] for g in made.report.groups if g["removed"]} == {
        n: len(u) for n, u in seen[0].removed.items() if u
    }


def test_biases_that_are_equal_by_chance_do_not_tie_layers() -> None:
    weights = _weights(NET)
    assert np.array_equal(weights["first.b"], weights["second.b"])
    assert [g["name"] for g in _shrunk().report.groups] == ["first", "second"]


@pytest.mark.parametrize("options", [{"criterion": "taylor", "data": DATA}, {"criterion": "random", "seed": 3}])
def test_the_same_again_is_the_same_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        nv.prune(NET, tmp_path / f"{name}.onnx", macs="0.6x", timed=False, **options)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
def test_the_same_training_again_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        nv.prune(NET, tmp_path / f"{name}.onnx", macs="0.6x", data=DATA, epochs=1, criterion="taylor", timed=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
def test_a_pattern_leaves_zeros_and_training_keeps_them() -> None:
    made = nv.prune(
        NET, structure="unstructured", sparsity=0.8, data=DATA, epochs=2, learning_rate=3e-3, force=True, timed=False
    )
    weights = _weights(made.graph)
    second = next(r for r in made.report.layers if r["name"] == "second")
    assert second["shape"]["pruned"] == [16, 16, 3, 3] and second["density"] == pytest.approx(second["kept"])
    assert np.mean(weights["second.w"] != 0) == pytest.approx(second["kept"]) and second["kept"] < 0.35
    assert not np.array_equal(weights["second.w"][weights["second.w"] != 0][:8], _weights(NET)["second.w"].ravel()[:8])
    assert made.report.training["epochs"] == 2 and len(made.report.training["history"]["loss"]) == 2
    assert made.report.budget["reached"] == pytest.approx(0.2, abs=0.01)


def test_layers_that_are_kept_stay() -> None:
    made = _shrunk(keep="second*")
    rows = {r["name"]: r for r in made.report.layers}
    assert rows["second"]["shape"]["pruned"][0] == 16 and rows["first"]["shape"]["pruned"][0] < 16
    assert any("kept" in r["why"] for r in rows.values()) or made.report.groups


# -- accuracy ----------------------------------------------------------------------------------------------------------


def test_a_fifth_is_held_out_and_said() -> None:
    found = _shrunk(data=DATA).report.accuracy
    assert found["dense"] == 1.0 and found["samples"] == 12 and found["tuned"] is None
    assert found["on"] == "every 5th sample of labelled (12 of 60), held out"
    assert found["drop"] == pytest.approx(1.0 - found["pruned"])


def test_samples_of_ones_own_judge() -> None:
    x, y = labelled(NET, 8, 7)
    found = _shrunk(test=(x, y)).report.accuracy
    assert found["samples"] == 8 and "(8 samples)" in found["on"]


def test_data_without_labels_can_decide() -> None:
    report = _shrunk(data={"x": X}, criterion="wanda").report
    assert report.accuracy is None and report.settings["criterion"] == "wanda"


@pytest.mark.slow
def test_steps_and_a_teacher() -> None:
    made = nv.prune(NET, macs="0.5x", data=DATA, epochs=3, steps=2, distill=True, timed=False)
    training = made.report.training
    assert training["distilled"] and training["epochs"] == 3 and len(training["history"]["loss"]) == 3
    assert 0.4 < made.report.budget["reached"] / made.report.budget["dense"] <= 0.5
    kept = {r["name"]: r["shape"]["pruned"][0] for r in made.report.layers}
    gone = {g["name"]: g["removed"] for g in made.report.groups}
    assert kept["first"] == 16 - gone["first"] and kept["second"] == 16 - gone["second"]


@pytest.mark.slow
def test_training_on_brings_accuracy_back() -> None:
    x, y = labelled(NET, 300, 11)
    made = nv.prune(NET, macs="0.35x", data=(x, y), epochs=12, learning_rate=5e-3, timed=False)
    found = made.report.accuracy
    assert found["tuned"] > found["pruned"], found


def test_a_scan_tells_which_layer_matters() -> None:
    found = _shrunk(data=DATA, scan=True).report.scan
    assert found["metric"] == "accuracy" and found["dense"] == 1.0
    assert [r["name"] for r in found["layers"]] == ["first", "second"]
    for row in found["layers"]:
        assert len(row["sparsities"]) == len(row["scores"]) and min(row["scores"]) < 1


# -- whether it pays ---------------------------------------------------------------------------------------------------


def test_a_pattern_that_does_not_pay_is_refused_with_figures() -> None:
    with pytest.raises(NervureError, match="does not pay") as told:
        nv.prune(dense(), structure="unstructured", sparsity=0.05, timed=False)
    assert "us dense" in str(told.value) and "fc1" in str(told.value) and "force" in str(told.value)
    made = nv.prune(dense(), structure="unstructured", sparsity=0.05, timed=False, force=True)
    assert made.report.layers[0]["kept"] < 1


def test_the_stopwatch_refuses_what_the_cost_model_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured times decide where they can be had."""
    monkeypatch.setattr(prune_choice, "time_pair", lambda *a: {"ratio": 1.01})
    with pytest.raises(NervureError, match=r"measured: 1\.01x of the dense") as told:
        nv.prune(dense(width=128), structure="block", sparsity=0.9)
    lines = [line for line in told.value.where if "us dense" in line]
    assert lines and all("it pays with" in line or "never pays" in line for line in lines)


def test_nothing_gained_is_said() -> None:
    made = nv.prune(NET, structure="unstructured", sparsity=0.02, force=True, timed=False)
    share = made.report.totals["pruned"]["library"] / made.report.totals["dense"]["library"]
    assert share > 0.97 and not made.report.gained
    assert any("nothing was gained" in n for n in made.report.notes)


def test_the_report_is_plain_data() -> None:
    found = json.loads(json.dumps(_shrunk(data=DATA).report.as_dict(), allow_nan=False))
    assert {"model", "target", "machine", "settings", "budget", "layers", "totals", "latency", "accuracy"} <= set(found)
    assert found["latency"] is None and found["timed"] is False
    assert found["layers"][0]["us"]["dense"] > 0, "estimates stand in for times"


# -- a latency that is measured ----------------------------------------------------------------------------------------


def _clock(bias: float, least: float = 0.0) -> Any:
    """A machine on which a candidate takes ``bias`` more of what it saves than the cost model thinks."""

    def attempt(asked: float) -> Trial | None:
        ratio = 1 - (1 - asked) * bias
        return None if asked < least else Trial(asked, ratio, 100 * ratio, 100.0)

    return attempt


@pytest.mark.parametrize("bias", [0.5, 0.8, 1.0, 1.3])
@pytest.mark.parametrize("wanted", [0.6, 0.85])
def test_the_search_learns_how_far_off_the_cost_model_is(bias: float, wanted: float) -> None:
    trials = search(wanted, _clock(bias))
    assert abs(best(trials, wanted).off(wanted)) <= CLOSE and len(trials) <= 3


def test_the_search_finds_the_edge_of_what_can_be_made() -> None:
    trials = search(0.1, _clock(1.0, least=0.3))
    assert min(t.ratio for t in trials) < 0.35 and len(trials) <= 6


def _fake(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Timing by the cost model with an error of its own: the real one's figures change from run to run."""
    seen: list[float] = []

    def pair(was: Any, now: Any, feed: Any, tell: Any) -> dict[str, Any]:
        parts = [sum(s["flops"] for s in m.artifact.entries[0].steps) for m in (was, now)]
        ratio = 0.1 + 0.9 * parts[1] / parts[0]
        seen.append(ratio)
        return {"dense": 0.1, "pruned": 0.1 * ratio, "ratio": ratio, "rounds": {}}

    monkeypatch.setattr(prune_choice, "time_pair", pair)
    monkeypatch.setattr(prune_choice, "time_alone", lambda *a: 100.0)
    monkeypatch.setattr("nervure.frontends.prune_report.time_pair", pair)
    return seen


def test_a_record_is_measured_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _fake(monkeypatch)
    record = tmp_path / "tuning.json"
    first = nv.prune(NET, tmp_path / "a.onnx", latency="0.6x", tune=record)
    held, measured = record.read_bytes(), len(seen)
    assert first.report.trials and abs(first.report.trials[-1]["ratio"] - 0.6) < 0.06
    assert json.loads(held)["kind"] == "nervure pruning record"
    second = nv.prune(NET, tmp_path / "b.onnx", latency="0.6x", tune=record)
    assert len(seen) == measured + 1, "only the report's own timing is done again"
    assert record.read_bytes() == held and second.report.trials == first.report.trials
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    third = nv.prune(NET, latency="60us", tune=record)
    assert abs(third.report.trials[-1]["ratio"] - 0.6) < 0.06, "100 us is what the dense model takes"


def test_a_latency_out_of_reach_names_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake(monkeypatch)
    with pytest.raises(NervureError, match=r"latency of 0\.05x cannot be met; the nearest that can is 0\.\d\dx"):
        nv.prune(NET, tmp_path / "out.onnx", latency="0.05x")
    with pytest.raises(NervureError, match="meets the target already"):
        nv.prune(NET, tmp_path / "out.onnx", latency="1ms")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: "no json", "cannot be read"),
        (lambda r: json.dumps({**r, "format": 99}), "cannot be read"),
        (lambda r: json.dumps({**r, "measured": {"a": {"ratio": -1, "us": 1, "dense_us": 1}}}), "cannot be read"),
        (lambda r: json.dumps({**r, "machine": {"family": "other"}}), "of another machine"),
        (lambda r: json.dumps({**r, "network": "0000"}), "of another network"),
    ],
)
def test_a_record_that_does_not_fit(change: Any, said: str, tmp_path: Path) -> None:
    machine, held = targets.host(), form(NET, targets.host())
    record = Record(tmp_path / "r.json", machine, held)
    record.add("key", {"ratio": 0.5, "pruned": 0.01, "dense": 0.02}, 0.5)
    record.write()
    again = Record(tmp_path / "r.json", machine, held)
    assert again.find("key", 0.4) == Trial(0.4, 0.5, 10.0, 20.0) and again.find("other", 0.4) is None
    (tmp_path / "r.json").write_text(change(json.loads((tmp_path / "r.json").read_text())))
    with pytest.raises(NervureError, match=said):
        Record(tmp_path / "r.json", machine, held)


def test_what_was_measured_is_known_by_its_layers_alone() -> None:
    machine = targets.host()
    tuned = NET.copy()
    key = next(k for k in tuned.find("const") if tuned.node(k).names[0] == "second.w")
    tuned.set_node(key, attrs={"value": tuned.node(key).array * 2})
    held = form(NET, machine)
    assert shape_key(held) == shape_key(form(tuned, machine)) != shape_key(form(small(8), machine))
    fewer = {n: replace(m, nonzeros=m.nonzeros - 1) for n, m in held.layers.items()}
    assert shape_key(replace(held, layers=fewer)) != shape_key(held)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [0.6, 0.8])
def test_a_latency_target_is_met_when_measured_afterwards(wanted: float) -> None:
    """Within a tenth, by a measurement that the choice did not see."""
    made = nv.prune(small(96), latency=f"{wanted}x")
    assert made.report.latency["ratio"] == pytest.approx(wanted, rel=0.1)
    assert 1 <= len(made.report.trials) <= 6 and made.report.budget["measured"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def _plain() -> Graph:
    graph = Graph("plain")
    graph.output(graph.add("relu", graph.input("x", TensorType("float32", (1, 8)))), "y")
    return graph


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs a target"),
        ({"macs": 0.5, "sparsity": 0.5}, "one target"),
        ({"macs": "half"}, "is no macs"),
        ({"macs": True}, "is no macs"),
        ({"latency": "12"}, "is no latency"),
        ({"sparsity": 1.0}, "no target"),
        ({"macs": 0.5, "structure": "rows"}, "no sparse pattern"),
        ({"macs": 0.5, "criterion": "l3"}, "use one of: l1"),
        ({"macs": 0.5, "scope": "each"}, "use one of: global"),
        ({"macs": 0.5, "nonsense": 1}, "no option 'nonsense'"),
        ({"macs": 0.5, "target": "moon"}, "no target 'moon'"),
        ({"macs": 0.5, "keep": "absent*"}, "matches nothing"),
        ({"macs": 0.5, "layers": {"first": 2.0}}, "from 0 to below 1"),
        ({"macs": 0.001}, "nearest that can is"),
        ({"ram": "100"}, "nearest that can is"),
        ({"macs": "1G"}, "meets the target already"),
        ({"structure": "heads", "macs": 0.5}, "nothing to prune"),
        ({"structure": "2:4", "sparsity": 0.9}, "50.0%"),
        ({"macs": 0.5, "epochs": 1}, "needs data"),
        ({"macs": 0.5, "criterion": "taylor"}, "looks at samples"),
        ({"macs": 0.5, "scan": True}, "needs data"),
        ({"macs": 0.5, "epochs": -1}, "from 0 on"),
        ({"macs": 0.5, "steps": 3}, "needs an epoch"),
        ({"macs": 0.5, "distill": True}, "only where there is training"),
        ({"macs": 0.5, "data": DATA, "epochs": 1, "learning_rate": 0.0}, "learning_rate"),
        ({"macs": 0.5, "data": {"x": X}, "epochs": 1}, "no array 'y'"),
        ({"macs": 0.5, "data": {"x": X, "y": Y + 4}}, "is no class of the 4"),
        ({"macs": 0.5, "data": {"x": X[:, :, :5], "y": Y}}, "do not fit input 'x'"),
        ({"macs": 0.5, "data": {"x": X, "y": Y[:7]}}, "different numbers"),
        ({"macs": 0.5, "data": {"a": X, "b": X, "y": Y}}, "no array for input 'x'"),
        ({"macs": 0.5, "data": {"x": np.where(X > 1, np.nan, X), "y": Y}}, "hold NaN"),
        ({"macs": 0.5, "data": "absent.npz"}, "cannot read the data"),
        ({"macs": 0.5, "tune": "record.txt"}, "JSON"),
        ({"macs": 0.5, "tune": "record.json", "target": "rpi4"}, "nothing is timed for rpi4"),
        ({"macs": 0.5, "out": "out.so"}, "ONNX file"),
        ({"macs": 0.5, "out": "absent/out.onnx"}, "no such folder"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NervureError) as told:
        nv.prune(NET, **{"timed": False, "out": "out.onnx", **options})
    assert said in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_network_in_which_nothing_can_go_says_why() -> None:
    with pytest.raises(NervureError, match="nothing to prune"):
        nv.prune(_plain(), sparsity=0.5, timed=False)
    graph = Graph("one")
    x = graph.input("x", TensorType("float32", (1, 8)))
    graph.output(graph.add("matmul", x, graph.const(np.ones((8, 4), np.float32), "w"), names=["fc"]), "y")
    with pytest.raises(NervureError, match="fc stays: it is an output of the model"):
        nv.prune(graph, sparsity=0.5, timed=False)


def test_another_machine_is_estimated() -> None:
    made = nv.prune(NET, latency="0.7x", target="rpi4", timed=False)
    budget = made.report.budget
    assert not budget["measured"] and 0.5 < budget["reached"] / budget["dense"] <= 0.7 and not made.report.trials
