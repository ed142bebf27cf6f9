"""Layers of graph networks: against dense matrices in numpy, with their gradients; edges that are data; networkx."""

from __future__ import annotations

from typing import Any

import nervure as nv
import networkx
import numpy as np
import pytest
from nervure import layers

Array = np.ndarray
CLUB = nv.graphs.from_networkx(networkx.karate_club_graph(), label="club", weight="weight")
N = len(CLUB.nodes)
X = np.random.default_rng(0).standard_normal((N, 7)).astype(np.float32)


def adjacency(index: Array, weight: Array | None = None, nodes: int = N) -> Array:
    """[target, source], float64; -1 is no edge."""
    a = np.zeros((nodes, nodes))
    for i, (source, target) in enumerate(index.T):
        if source >= 0:
            a[target, source] += 1 if weight is None else weight[i]
    return a


# -- the same, plainly, as products of matrices -----------------------------------------------------------------------


def dense_gcn(w: dict[str, Array], x: Array, a: Array, loops: float = 1.0) -> Array:
    a = a + np.diag(np.where(np.diag(a) > 0, 0, loops))  # a loop that is there keeps its weight
    root = a.sum(axis=1) ** -0.5
    return root[:, None] * a * root @ (x @ w["weight"]) + w["bias"]


def dense_sage(w: dict[str, Array], x: Array, a: Array, aggr: str = "mean") -> Array:
    if aggr == "max":
        met = np.array([x[row > 0].max(axis=0) if row.any() else np.zeros(x.shape[1]) for row in a])
    else:
        met = a @ x / (np.maximum(a.sum(axis=1, keepdims=True), 1) if aggr == "mean" else 1)
    return met @ w["lin_l.weight"] + w["lin_l.bias"] + x @ w["lin_r.weight"]


def dense_gat(w: dict[str, Array], x: Array, a: Array, concat: bool = True) -> Array:
    heads, channels = w["att_src"].shape
    h, found = (x @ w["lin.weight"]).reshape(len(x), heads, channels), []
    for k in range(heads):
        scores = (h[:, k] @ w["att_dst"][k])[:, None] + h[:, k] @ w["att_src"][k]
        scores = np.where(scores > 0, scores, 0.2 * scores)
        raised = np.exp(scores - scores.max()) * ((a > 0) | np.eye(len(a), dtype=bool))
        found.append(raised / raised.sum(axis=1, keepdims=True) @ h[:, k])
    return (np.concatenate(found, 1) if concat else np.mean(found, 0)) + w["bias"]


CASES: dict[str, tuple[Any, Any, bool]] = {  # the layer, its dense form, whether it takes weights of edges
    "gcn": (lambda: layers.GCNConv(5), dense_gcn, True),
    "gcn, improved": (lambda: layers.GCNConv(5, improved=True), lambda *a: dense_gcn(*a, loops=2.0), True),
    "sage": (lambda: layers.SAGEConv(5), dense_sage, False),
    "sage, sum": (lambda: layers.SAGEConv(5, aggr="sum"), lambda *a: dense_sage(*a, aggr="sum"), False),
    "sage, max": (lambda: layers.SAGEConv(5, aggr="max"), lambda *a: dense_sage(*a, aggr="max"), False),
    "gat": (lambda: layers.GATConv(4), dense_gat, False),
    "gat, 3 heads": (lambda: layers.GATConv(4, 3), dense_gat, False),
    "gat, mean": (lambda: layers.GATConv(4, 3, concat=False), lambda *a: dense_gat(*a, concat=False), False),
}


def weights_of(layer: Any, seed: int = 1) -> dict[str, Array]:
    """The layer's weights, biases too, at random; as float64."""
    rng, found = np.random.default_rng(seed), {}
    for name, weight in layer.named_weights():
        weight.assign(rng.standard_normal(weight.shape) * 0.5)
        found[name] = weight.numpy().astype(np.float64)
    return found


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_those_of_dense_matrices(name: str) -> None:
    """Compiled, over the club's edges; gradients for nodes and weights against differences of the dense form."""
    make, dense, weighted = CASES[name]
    layer = make()
    more = (CLUB.edge_weight,) if weighted else ()
    layer(X, CLUB.edge_index, *more)  # makes the weights
    w, a = weights_of(layer), adjacency(CLUB.edge_index, *more)
    x, g = X.astype(np.float64), np.random.default_rng(2).standard_normal(dense(w, X, a).shape)

    @nv.network
    def net(x: nv.Input(batch_shape=X.shape)):
        y = layer(x, CLUB.edge_index, *more)
        return (y, *nv.grad(nv.sum(y * g.astype(np.float32)), [x, *(t for _, t in layer.named_weights())]))

    y, at_x, *at_weights = nv.compile(net)(X)
    np.testing.assert_allclose(y, dense(w, x, a), atol=1e-5)

    def slope(moved: dict[str, Array], to: Array, way: Array, key: str) -> float:
        ends = []
        for step in (1e-5, -1e-5):
            changed = {**moved, key: moved[key] + step * way} if key else moved
            ends.append((dense(changed, to if key else to + step * way, a) * g).sum())
        return float(ends[0] - ends[1]) / 2e-5

    rng = np.random.default_rng(3)
    for key, found in zip(["", *w], [at_x, *at_weights], strict=True):
        way = rng.standard_normal(found.shape)
        wanted = slope(w, x, way, key)
        assert float((found * way).sum()) == pytest.approx(wanted, abs=2e-4 * max(1, np.abs(found * way).sum()))


@pytest.mark.parametrize("name", ["gcn", "sage", "sage, max", "gat, 3 heads"])
def test_edges_may_be_data(name: str) -> None:
    """One compiled network, three graphs: the club, one with fewer edges and a node without any, one with a loop."""
    make, dense, _ = CASES[name]
    layer, room = make(), CLUB.edge_index.shape[1] + 10

    @nv.network
    def net(x: nv.Input(batch_shape=X.shape), edges: nv.Input(batch_shape=(2, room), dtype="int32")):
        return layer(x, edges)

    layer(X, CLUB.edge_index)
    w = weights_of(layer)
    model = nv.compile(net)
    fewer = CLUB.edge_index[:, (CLUB.edge_index > 3).all(axis=0)]
    loop = np.concatenate([fewer, [[5], [5]]], axis=1)
    for index in (CLUB.edge_index, fewer, *([loop] if name != "sage" else [])):
        wanted = dense(w, X.astype(np.float64), adjacency(index))
        np.testing.assert_allclose(model(X, nv.graphs.padded(index, room)), wanted, atol=1e-5)
        np.testing.assert_allclose(layer(X, index), wanted, atol=1e-5)  # and as a part of the network


@pytest.mark.parametrize("known", [True, False])
def test_loops_keep_their_weights(known: bool) -> None:
    index = np.concatenate([CLUB.edge_index, [[5, 7], [5, 7]]], axis=1).astype(np.int32)
    weight = np.append(CLUB.edge_weight, [2.5, 0.25]).astype(np.float32)
    layer = layers.GCNConv(3)
    layer(X, index, weight)
    w = weights_of(layer)
    edges, values = nv.Input(batch_shape=index.shape, dtype="int32"), nv.Input(batch_shape=weight.shape)
    shape = {"x": nv.Input(batch_shape=X.shape)}
    if known:
        found = nv.compile(nv.network(lambda x: layer(x, index, weight), name="net", **shape))(X)
    else:
        net = nv.network(lambda x, e, v: layer(x, e, v), name="net", **shape, e=edges, v=values)
        found = nv.compile(net)(X, index, weight)
    np.testing.assert_allclose(found, dense_gcn(w, X.astype(np.float64), adjacency(index, weight)), atol=1e-5)


def test_no_matrix_of_nodes_by_nodes_is_made() -> None:
    """A ring of 20,000 nodes: 1.6 GB, if there were one."""
    index = np.stack([np.arange(20_000), (np.arange(20_000) + 1) % 20_000]).astype(np.int32)
    conv = layers.GCNConv(4)
    net = nv.network(lambda x: conv(x, index), name="ring", x=nv.Input(batch_shape=(20_000, 4)))
    model = nv.compile(net)
    x = np.random.default_rng(0).random((20_000, 4), np.float32)
    wanted = (x + np.roll(x, 1, axis=0)) / 2 @ conv.weight.numpy()
    np.testing.assert_allclose(model(x), wanted, atol=1e-5)
    assert model.report.arena_bytes < 8e6


# -- from networkx ----------------------------------------------------------------------------------------------------


def test_the_karate_club_as_arrays() -> None:
    club = networkx.karate_club_graph()
    assert CLUB.x.shape == (34, 34) and CLUB.edge_index.shape == (2, 156) and CLUB.edge_index.dtype == np.int32
    assert CLUB.classes == ["Mr. Hi", "Officer"] and CLUB.y is not None
    assert [CLUB.classes[c] for c in CLUB.y] == [club.nodes[n]["club"] for n in club]
    np.testing.assert_array_equal(
        adjacency(CLUB.edge_index, CLUB.edge_weight), networkx.to_numpy_array(club, weight="weight")
    )


def test_directions_features_and_names_of_nodes() -> None:
    graph = networkx.DiGraph([("b", "a"), ("a", "c"), ("c", "c")])
    for i, node in enumerate(graph):
        graph.nodes[node].update(age=i, place=[0.5, i])
    data = nv.graphs.from_networkx(graph, ["age", "place"])
    assert data.nodes == ["b", "a", "c"] and data.y is None and data.edge_weight is None
    np.testing.assert_array_equal(data.x, [[0, 0.5, 0], [1, 0.5, 1], [2, 0.5, 2]])
    np.testing.assert_array_equal(data.edge_index, [[0, 1, 2], [1, 2, 2]])


def test_what_is_wrong_is_said() -> None:
    club = networkx.karate_club_graph()
    with pytest.raises(nv.NervureError, match="node 0 has no attribute 'team'") as caught:
        nv.graphs.from_networkx(club, label="team")
    assert caught.value.hint == "it has club"
    with pytest.raises(nv.NervureError, match="no rows of numbers"):
        nv.graphs.from_networkx(club, "club")
    with pytest.raises(nv.NervureError, match="156 edges, there is room for 9"):
        nv.graphs.padded(CLUB.edge_index, 9)
    with pytest.raises(nv.NervureError, match="names node 40, there are 34"):
        layers.GCNConv(2)(X, np.array([[0], [40]]))
    with pytest.raises(nv.NervureError, match=r"expected whole numbers \[2, edges\]"):
        layers.GATConv(2)(X, CLUB.edge_index.T)
    with pytest.raises(nv.NervureError, match="aggr: expected one of"):
        layers.SAGEConv(2, aggr="median")


# -- segments ---------------------------------------------------------------------------------------------------------


def test_segments_against_numpy() -> None:
    ids = np.array([2, 0, 2, 2, 4, 0], np.int32)
    x = np.random.default_rng(0).normal(0, 30, (6, 3)).astype(np.float32)
    parts = [x[ids == s].astype(np.float64) for s in range(5)]
    zero = np.zeros(3)
    np.testing.assert_allclose(nv.segment_sum(x, ids, 5), [p.sum(axis=0) for p in parts], rtol=1e-6)
    wanted = [p.mean(axis=0) if len(p) else zero for p in parts]
    np.testing.assert_allclose(nv.segment_mean(x, ids, 5), wanted, rtol=1e-5)
    np.testing.assert_allclose(nv.segment_max(x, ids, 5), [p.max(axis=0) if len(p) else zero for p in parts])
    soft = nv.segment_softmax(x, ids, 5)
    for s, part in enumerate(parts):
        if len(part):
            raised = np.exp(part - part.max(axis=0))
            np.testing.assert_allclose(soft[ids == s], raised / raised.sum(axis=0), rtol=1e-5, atol=1e-7)
    with pytest.raises(nv.NervureError, match="a number for each row"):
        nv.segment_sum(x, ids[:3], 5)
