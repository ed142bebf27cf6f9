"""Targets, what graphs cost, and the search for the place in a ranking."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nervure.compiler.ir import Graph, Value
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.compiler.prune.budget import Target, counted, measure, parse, stages, static
from nervure.compiler.prune.select import Pool, Ranking, search
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from nervure.targets import get

MACHINE = get("x86-64-v3")


def _graph(batch: int | str = 1) -> Graph:
    """A convolution [8,3,3,3] with padding on 6x5, and a matmul [8,10] on the means."""
    rng = np.random.default_rng(0)
    graph = Graph("budget")
    x = graph.input("x", TensorType("float32", (batch, 3, 6, 5)))
    w, b, d = (graph.const(rng.normal(size=s).astype(np.float32), n) for n, s in _SHAPES.items())
    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1), "group": 1}
    y = graph.add("reduce_mean", graph.add("conv", x, w, b, **attrs), axes=(2, 3), keepdims=False)
    graph.output(graph.add("matmul", y, d), "y")
    return graph


_SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "d": (8, 10)}


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value", "relative"),
    [
        ("0.6x", "latency", 0.6, True),
        ("60%", "macs", 0.6, True),
        ("0.5", "params", 0.5, True),
        ("200us", "latency", 200, False),
        ("1.5ms", "latency", 1500, False),
        ("44K", "ram", 44 * 1024, False),
        ("44KiB", "file", 44 * 1024, False),
        ("4096", "file", 4096, False),
        ("4096B", "file", 4096, False),
        ("1.2M", "params", 1.2e6, False),
        ("3G", "macs", 3e9, False),
        ("0.75", "sparsity", 0.75, True),
        ("75%", "sparsity", 0.75, True),
    ],
)
def test_targets_are_read(text: str, kind: str, value: float, relative: bool) -> None:
    found = parse(text, kind)
    assert (found.kind, found.relative) == (kind, relative) and found.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("1.2x", "macs"), ("0x", "file"), ("0", "ram"), ("", "macs"), ("-1", "macs"), ("200us", "macs")),
        *(("fast", "latency"), ("44K", "latency"), ("200", "latency"), ("1.0", "sparsity"), ("0.5x", "sparsity")),
        ("1", "speed"),
    ],
)
def test_what_is_no_target_is_refused(text: str, kind: str) -> None:
    with pytest.raises(NervureError):
        parse(text, kind)


@given(left=st.floats(0.02, 0.98), steps=st.integers(1, 12))
def test_each_stage_leaves_the_same_part_of_the_one_before(left: float, steps: int) -> None:
    found = stages(Target("macs", left), steps)
    parts = [1.0, *(t.value for t in found)]
    assert len(found) == steps and found[-1].value == left
    assert np.allclose(np.divide(parts[1:], parts[:-1]), left ** (1 / steps))
    sparse = stages(Target("sparsity", 1 - left), steps)
    assert np.allclose([1 - t.value for t in sparse], parts[1:])


def test_stages_need_a_part() -> None:
    with pytest.raises(NervureError, match="dense model"):
        stages(Target("macs", 1e6, relative=False), 3)
    with pytest.raises(NervureError):
        stages(Target("macs", 0.5), 0)


# -- measures ----------------------------------------------------------------------------------------------------------


def test_what_is_counted() -> None:
    graph = _graph()
    found = measure(graph, MACHINE, ("macs", "params", "sparsity"))
    assert found == {"macs": 216 * 30 + 80, "params": 216 + 8 + 80, "sparsity": 0.0}
    less = pytest.approx({"macs": 108 * 30 + 80, "params": 196, "sparsity": 108 / 296})
    mask = np.ones((8, 3, 3, 3), bool)
    mask[:4] = False
    assert counted(graph, {"w": mask}) == less
    key = next(k for k in graph.find("const") if graph.tensor_name(Value(k)) == "w")
    graph.set_node(key, attrs={"value": np.where(mask, graph.node(key).array, 0).astype(np.float32)})
    assert counted(graph) == less


def test_what_is_planned() -> None:
    found = measure(_graph(), MACHINE, ("ram", "file", "latency"))
    program, _ = plan_program([EntryGraph(_graph())], MACHINE, Options())
    (entry,) = program.entries
    assert found["ram"] == program.arena_bytes(entry)
    assert found["latency"] == pytest.approx(sum(s.estimate for s in entry.steps) / 1000)
    assert len(program.const) < found["file"] < len(program.const) + 100_000


def test_open_sizes_count_as_one_and_a_measurement_goes_before_the_model() -> None:
    assert measure(_graph("batch"), MACHINE) == measure(_graph(), MACHINE)
    assert static(_graph("batch"), {"batch": 3}).node(0).types[0].dims == (3, 3, 6, 5)
    assert measure(_graph(), MACHINE, ("latency",), measured=lambda g: 7.0) == {"latency": 7.0}


# -- rankings ----------------------------------------------------------------------------------------------------------


@st.composite
def _pools(draw: st.DrawFn) -> list[Pool]:
    found = []
    for i in range(draw(st.integers(1, 4))):
        keys = np.array(draw(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=12)))
        floor = draw(st.integers(0, len(keys)))
        part = draw(st.one_of(st.none(), st.floats(0, 0.99)))
        found.append(Pool(f"p{i}", keys, floor, part, draw(st.sampled_from([1, 2, 4]))))
    return found


@given(pools=_pools(), scope=st.sampled_from(["global", "layer"]), part=st.floats(0, 1))
def test_what_goes_is_lowest_and_floors_stay(pools: list[Pool], scope: str, part: float) -> None:
    ranking = Ranking(pools, scope)
    count = round(part * len(ranking))
    removed = ranking.removed(count)
    for pool, gone in zip(pools, removed, strict=True):
        kept = int((~gone).sum())
        assert kept >= min(pool.floor, len(pool.keys))
        assert kept % pool.multiple == 0 or kept == len(pool.keys)
        if gone.any() and kept:
            assert pool.keys[gone].max() <= pool.keys[~gone].min()
    if all(p.part is None and p.multiple == 1 for p in pools):
        assert sum(int(g.sum()) for g in removed) == count
    more = ranking.removed(len(ranking))
    assert all((g <= m).all() for g, m in zip(removed, more, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(removed, Ranking(pools, scope).removed(count), strict=True))


def test_a_global_ranking_takes_the_lowest_of_all_and_a_layers_the_same_part() -> None:
    pools = [Pool("low", np.arange(8.0)), Pool("high", np.arange(8.0) + 100)]
    assert [int(g.sum()) for g in Ranking(pools).removed(6)] == [6, 0]
    assert [int(g.sum()) for g in Ranking(pools, "layer").removed(6)] == [3, 3]
    fixed = [*pools, Pool("said", np.arange(8.0), part=0.25)]
    assert [int(g.sum()) for g in Ranking(fixed).removed(6)] == [6, 0, 2]


@given(
    drops=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60),
    left=st.floats(0.05, 1.0),
    tolerance=st.floats(0.001, 0.1),
)
def test_a_search_ends_at_the_target(drops: list[float], left: float, tolerance: float) -> None:
    amounts = np.cumsum([sum(drops) + 1, *(-d for d in drops)])
    spent = []

    def amount(count: int) -> float:
        spent.append(count)
        return float(amounts[count])

    target = Target("macs", left)
    if amounts[-1] > left * amounts[0] * (1 + 1e-9):
        with pytest.raises(NervureError, match="cannot be met; the nearest"):
            search(len(drops), amount, target, tolerance)
        return
    found = search(len(drops), amount, target, tolerance)
    wanted = left * amounts[0]
    assert found.amount == amounts[found.count] <= wanted * (1 + 1e-9)
    fewer = amounts[found.count - 1] if found.count else math.inf
    assert found.amount >= wanted * (1 - tolerance) or fewer > wanted * (1 - 1e-9)
    assert len(spent) <= 26


def test_a_target_out_of_reach_names_the_nearest() -> None:
    with pytest.raises(NervureError) as error:
        search(2, lambda count: [1000.0, 700.0, 400.0][count], Target("macs", 0.3), 0.02, lambda: "two stay")
    assert "0.4x" in str(error.value) and "two stay" in str(error.value)
    with pytest.raises(NervureError, match=r"60\.0%"):
        search(2, lambda count: [1.0, 0.7, 0.4][count], Target("sparsity", 0.9), 0.02)
