"""What is found to go together, and the words for what cannot go."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.prune.shrink import shrink, zero
from nervure.compiler.prune.structure import Structure, find_structure
from nervure.compiler.types import TensorType


class Net:
    """A graph with one input, and its layers."""

    def __init__(self, *shape: int) -> None:
        self.graph = Graph("net")
        self.x = self.graph.input("x", TensorType("float32", shape))
        self.rng = np.random.default_rng(3)

    def weight(self, name: str, *shape: int) -> Value:
        return self.graph.const(self.rng.normal(size=shape).astype(np.float32) / 3, name)

    def conv(self, x: Value, name: str, outputs: int, kernel: int = 1, group: int = 1, w: Value | None = None) -> Value:
        channels = self.graph.type(x).dims[1]
        w = w if w is not None else self.weight(f"{name}.w", outputs, channels // group, kernel, kernel)
        attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (kernel // 2,) * 4, "group": group}
        return self.graph.add("conv", x, w, self.weight(f"{name}.b", outputs), names=[name], **attrs)

    def dense(self, x: Value, name: str, outputs: int) -> Value:
        w = self.weight(f"{name}.w", self.graph.type(x).dims[-1], outputs)
        return self.graph.add("matmul", x, w, names=[name])

    def done(self, y: Value) -> Structure:
        self.graph.output(y, "y")
        self.graph.check()
        return find_structure(self.graph)

    def agrees(self, **removed: Sequence[int]) -> Graph:
        """The graph without some units, held against the one in which they are zero."""
        inputs = [self.rng.normal(size=self.graph.type(self.x).dims).astype(np.float32)]
        less = shrink(self.graph, removed)
        less.check()
        (got,), (wanted,) = interpret(less, inputs), interpret(zero(self.graph, removed), inputs)
        np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)
        assert np.abs(got).max() > 0
        return less


def shown(found: Structure) -> list[tuple[str, str, int]]:
    return [(g.name, g.kind, len(g.units)) for g in found.groups]


def sizes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {graph.node(k).names[0]: graph.node(k).types[0].dims for k in graph if graph.node(k).op == "const"}


def test_the_parts_of_a_concat_are_groups_of_their_own() -> None:
    net = Net(1, 3, 4, 4)
    a, b = net.conv(net.x, "a", 4), net.conv(net.x, "b", 6)
    found = net.done(net.conv(net.graph.add("concat", a, b, axis=1), "last", 2))
    assert shown(found) == [("a", "channels", 4), ("b", "channels", 6)]
    assert [(s.tensor, s.axis, s.index.tolist()) for s in found.group("b").units[2].slices] == [
        ("b.w", 0, [2]),
        ("b.b", 0, [2]),
        ("last.w", 1, [6]),
    ]
    assert sizes(net.agrees(a=[0], b=[1, 5]))["last.w"] == (2, 7, 1, 1)


def test_a_tensor_that_is_cut_has_a_group_for_each_part() -> None:
    net = Net(1, 3, 4, 4)
    x = net.conv(net.x, "a", 6)
    cut = [
        net.graph.add("slice", x, starts=(0, lo, 0, 0), stops=(1, hi, 4, 4), steps=(1,) * 4)
        for lo, hi in ((0, 2), (2, 6))
    ]
    found = net.done(net.graph.add("add", net.conv(cut[0], "b", 2), net.conv(cut[1], "c", 2)))
    assert shown(found) == [("a", "channels", 2), ("a#2", "channels", 4)]
    less = net.agrees(**{"a": [1], "a#2": [0, 3]})
    assert sizes(less)["a.w"] == (3, 3, 1, 1) and sizes(less)["c.w"] == (2, 2, 1, 1)


def test_grouped_convolutions_lose_whole_groups() -> None:
    net = Net(1, 3, 4, 4)
    y = net.conv(net.conv(net.conv(net.x, "a", 8), "b", 12, 3, group=4), "c", 2)
    found = net.done(y)
    assert shown(found) == [("a", "groups", 4)]
    less = net.agrees(a=[2])
    assert sizes(less)["b.w"] == (9, 2, 3, 3) and less.node(less.find("conv")[1]).attrs["group"] == 3


def test_depthwise_channels_go_one_by_one_with_all_their_multiples() -> None:
    net = Net(1, 3, 4, 4)
    y = net.conv(net.conv(net.conv(net.x, "a", 4), "b", 8, 3, group=4), "c", 2)
    assert shown(net.done(y)) == [("a", "channels", 4)]
    assert sizes(net.agrees(a=[0, 3]))["c.w"] == (2, 4, 1, 1)


def test_shared_weights_tie_what_they_are_used_on() -> None:
    net = Net(1, 4, 4, 4)
    w = net.weight("shared", 5, 5, 1, 1)
    x = net.conv(net.x, "a", 5)
    y = net.conv(net.graph.add("relu", net.conv(x, "b", 5, w=w)), "c", 5, w=w)
    found = net.done(net.conv(y, "d", 2))
    assert shown(found) == [("a", "channels", 5)]
    assert sizes(net.agrees(a=[1, 2]))["shared"] == (3, 3, 1, 1)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_flatten_goes_by_channels(last: bool) -> None:
    net = Net(2, 3, 4, 4)
    x = net.conv(net.x, "a", 6)
    x = net.graph.add("transpose", x, perm=(0, 2, 3, 1)) if last else x
    found = net.done(net.dense(net.graph.add("reshape", x, shape=(2, 96)), "b", 5))
    assert shown(found) == [("a", "channels", 6)]
    assert sizes(net.agrees(a=[0, 4]))["b.w"] == (64, 5)


def test_shuffled_channels_go_by_what_is_shuffled_together() -> None:
    """ShuffleNet: the halves' channels take turns, then they are parted again."""
    net = Net(1, 4, 3, 3)
    x = net.graph.add("concat", net.conv(net.x, "a", 6), net.conv(net.x, "b", 6), axis=1)
    x = net.graph.add("transpose", net.graph.add("reshape", x, shape=(1, 2, 6, 3, 3)), perm=(0, 2, 1, 3, 4))
    x = net.graph.add("reshape", x, shape=(1, 12, 3, 3))
    found = net.done(net.conv(x, "c", 2))
    assert shown(found) == [("a", "channels", 6)]
    less = net.agrees(a=[1, 2])
    assert sizes(less)["a.w"][0] == sizes(less)["b.w"][0] == 4 and sizes(less)["c.w"][1] == 8


def attention(net: Net, heads: int, size: int, steps: int = 5) -> Value:
    def parted(name: str, perm: tuple[int, ...]) -> Value:
        made = net.graph.add("reshape", net.dense(net.x, name, heads * size), shape=(2, steps, heads, size))
        return net.graph.add("transpose", made, perm=perm)

    q, k, v = parted("q", (0, 2, 1, 3)), parted("k", (0, 2, 3, 1)), parted("v", (0, 2, 1, 3))
    weights = net.graph.add("softmax", net.graph.add("matmul", q, k), axis=-1)
    mixed = net.graph.add("transpose", net.graph.add("matmul", weights, v), perm=(0, 2, 1, 3))
    return net.dense(net.graph.add("reshape", mixed, shape=(2, steps, heads * size)), "o", 6)


def test_heads_go_whole() -> None:
    net = Net(2, 5, 6)
    found = net.done(attention(net, 3, 4))
    assert shown(found) == [("q", "heads", 3)]
    assert set(found.groups[0].layers) == {"q", "k", "v", "o"}
    less = net.agrees(q=[1])
    assert sizes(less)["q.w"] == (6, 8) and sizes(less)["o.w"] == (8, 6)


def test_queries_that_share_keys_go_with_them() -> None:
    """Two heads of keys and values, each for three of queries."""
    net = Net(2, 5, 6)
    q = net.graph.add("reshape", net.dense(net.x, "q", 24), shape=(2, 5, 6, 4))
    k, v = (net.graph.add("reshape", net.dense(net.x, name, 8), shape=(2, 5, 2, 4)) for name in "kv")
    shared = []
    for x in (k, v):
        x = net.graph.add("reshape", net.graph.add("transpose", x, perm=(0, 2, 1, 3)), shape=(2, 2, 1, 5, 4))
        shared.append(net.graph.add("reshape", net.graph.add("expand", x, shape=(2, 2, 3, 5, 4)), shape=(2, 6, 5, 4)))
    y = net.graph.add("attention", net.graph.add("transpose", q, perm=(0, 2, 1, 3)), *shared, scale=0.5, causal=True)
    y = net.graph.add("reshape", net.graph.add("transpose", y, perm=(0, 2, 1, 3)), shape=(2, 5, 24))
    assert shown(net.done(net.dense(y, "o", 6))) == [("q", "heads", 2)]
    less = net.agrees(q=[0])
    assert sizes(less)["q.w"] == (6, 12) and sizes(less)["k.w"] == (6, 4) and sizes(less)["o.w"] == (12, 6)


def test_a_single_head_goes_by_its_features() -> None:
    net = Net(2, 5, 6)
    assert shown(net.done(attention(net, 1, 8))) == [("q", "channels", 8), ("v", "channels", 8)]
    net.agrees(q=[0, 3], v=[1])


def test_features_of_scores_stay_where_zero_does_not_stay_zero() -> None:
    net = Net(2, 5, 6)
    q, k = (net.graph.add("sigmoid", net.dense(net.x, name, 8)) for name in "qk")
    scores = net.graph.add("matmul", q, net.graph.add("transpose", k, perm=(0, 2, 1)))
    found = net.done(net.dense(net.graph.add("softmax", scores, axis=-1), "o", 3))
    assert shown(found) == []
    assert found.fixed[0].where == "q" and "what goes is not zero there" in found.fixed[0].why


@pytest.mark.parametrize(("op", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_units_of_recurrent_layers(op: str, gates: int) -> None:
    net = Net(4, 2, 3)
    w, r = (net.weight(f"{op}.{n}", 2, gates * 6, size) for n, size in (("w", 3), ("r", 6)))
    b = net.weight(f"{op}.b", 2, 2 * gates * 6)
    y = net.graph.add(op, net.x, w, r, b, names=[op], direction="bidirectional")
    y = net.graph.add("reshape", net.graph.add("transpose", y, perm=(0, 2, 1, 3)), shape=(4, 2, 12))
    assert shown(net.done(net.dense(y, "last", 3))) == [(op, "units", 6)]
    less = net.agrees(**{op: [0, 4]})
    assert sizes(less)[f"{op}.r"] == (2, gates * 4, 4) and sizes(less)["last.w"] == (8, 3)


def residual(net: Net, x: Value, name: str, outputs: int) -> Value:
    """A branch with a batch norm at its end; where channels change, the shortcut has a layer."""
    inner = net.graph.add("relu", net.conv(x, f"{name}.0", 4, 3))
    inner = net.conv(inner, f"{name}.1", outputs)
    norm = [net.weight(f"{name}.{part}", outputs) for part in ("scale", "bias", "mean")]
    norm.append(net.graph.const(np.full(outputs, 0.5, np.float32), f"{name}.var"))
    inner = net.graph.add("batch_norm", inner, *norm, epsilon=1e-5)
    kept = x if net.graph.type(x).dims[1] == outputs else net.conv(x, f"{name}.short", outputs)
    return net.graph.add("relu", net.graph.add("add", inner, kept))


def test_residual_branches_go_whole() -> None:
    net = Net(1, 3, 4, 4)
    x = net.conv(net.x, "stem", 5)
    for name, outputs in (("a", 5), ("b", 7), ("c", 7)):
        x = residual(net, x, name, outputs)
    found = net.done(net.conv(x, "last", 2))
    blocks = found.group("blocks")
    assert blocks.kind == "blocks" and len(blocks.units) == 3
    assert [s.tensor for s in blocks.units[1].slices] == ["b.scale", "b.bias"]
    less = net.agrees(blocks=[0, 1], stem=[2])
    assert "b.0.w" not in sizes(less) and "b.short.w" in sizes(less) and "c.0.w" in sizes(less)


def test_kinds_choose_groups_and_do_not_rename_them() -> None:
    net = Net(1, 3, 4, 4)
    x = net.conv(net.conv(net.conv(net.x, "a", 8), "b", 12, 3, group=4), "c", 5)
    net.done(net.conv(x, "d", 2))
    assert shown(find_structure(net.graph)) == [("a", "groups", 4), ("c", "channels", 5)]
    assert shown(find_structure(net.graph, ("channels",))) == [("c", "channels", 5)]


@pytest.mark.parametrize(
    ("op", "attrs", "why"),
    [
        ("layer_norm", {"axis": -1, "epsilon": 1e-5}, "a norm is taken over it"),
        ("softmax", {"axis": -1}, "each element along it changes the others"),
        ("reduce_mean", {"axes": (-1,), "keepdims": True}, "all along it are folded into one"),
        ("topk", {"k": 3}, "its positions are the result"),
        ("relu", {}, "it is an output of the model"),
        ("nonzero", {}, "nonzero has no rule"),
    ],
)
def test_what_cannot_go_says_why(op: str, attrs: dict[str, object], why: str) -> None:
    net = Net(2, 5)
    found = net.done(net.graph.add(op, net.dense(net.x, "a", 6), names=["behind"], **attrs))
    assert found.groups == ()
    (fixed,) = found.fixed
    assert fixed.where == "a" and fixed.why == f"{why}{', which each element changes' * (op == 'layer_norm')} (behind)"
    assert fixed.origin


def test_channels_that_go_ways_of_their_own_stay() -> None:
    net = Net(1, 3, 4, 4)
    x = net.conv(net.x, "a", 2)
    cut = [net.graph.add("slice", x, starts=(0, i, 0, 0), stops=(1, i + 1, 4, 4), steps=(1,) * 4) for i in (0, 1)]
    found = net.done(net.graph.add("sub", net.conv(cut[0], "b", 2), net.conv(cut[1], "c", 2)))
    assert found.groups == () and found.fixed[0].where == "a" and found.fixed[0].why.startswith("no two")


def test_a_thousand_nodes_take_less_than_a_second() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv(net.x, "stem", 32)
    number = 0
    while len(net.graph) < 1000:
        x = residual(net, x, f"b{number}", 32 if number % 7 else 32 + number // 7 % 2 * 8)
        number += 1
    net.graph.output(x, "y")
    best = min(_timed(net.graph) for _ in range(3))
    assert best < 1.0


def _timed(graph: Graph) -> float:
    start = time.process_time()
    find_structure(graph)
    return time.process_time() - start
