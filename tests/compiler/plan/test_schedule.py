"""The order of the steps: for small graphs no order has a smaller peak."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes.fuse import fuse
from nervure.compiler.plan.schedule import live_bytes, schedule
from nervure.compiler.types import TensorType


def branches(seed: int) -> Graph:
    """Steps of random sizes that read one or two earlier ones; what nothing reads is an output."""
    random, graph = np.random.default_rng(seed), Graph("branches")
    at = [graph.input("x", TensorType("float32", (8,)))]
    for _ in range(6):
        picked = [at[int(i)] for i in random.choice(len(at), min(len(at), int(random.integers(1, 3))), replace=False)]
        columns = int(random.integers(1, 60))
        made = [graph.add("reshape", v, shape=(1, graph.type(v).size)) for v in picked]
        rows = graph.add("concat", *made, axis=1) if len(made) > 1 else made[0]
        w = graph.const(np.ones((graph.type(rows).dims[1], columns), np.float32))
        at.append(graph.add("matmul", rows, w))
    for value in at[1:]:
        if not graph.users(value):
            graph.output(value)
    return fuse(graph)


@pytest.mark.parametrize("seed", range(12))
def test_no_order_has_a_smaller_peak(seed: int) -> None:
    graph = branches(seed)
    roots: dict[Value, int] = {}

    def buffer_of(value: Value) -> int | None:
        while graph.node(value).op == "reshape":
            (value,) = (a for a in graph.args(value.node) if a is not None)
        return None if graph.node(value).op == "const" else roots.setdefault(value, len(roots))

    def nbytes(buffer: int) -> int:
        return next(graph.type(v).nbytes for v, b in roots.items() if b == buffer)

    order = schedule(graph, buffer_of, nbytes)
    peak = max(live_bytes(graph, order, buffer_of, nbytes).values())
    flow = nx.transitive_closure_dag(nx.DiGraph(graph.nx)).subgraph(order)
    peaks = [
        max(live_bytes(graph, list(other), buffer_of, nbytes).values()) for other in nx.all_topological_sorts(flow)
    ]
    assert peak == min(peaks)
    assert all(order.index(a) < order.index(b) for a, b in flow.edges)
