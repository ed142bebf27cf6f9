"""Graphs to learn on (``nv.graphs``): a graph of networkx as the arrays that ``GCNConv``, ``SAGEConv`` and ``GATConv``
take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NervureError

if TYPE_CHECKING:
    import networkx

    Graph = networkx.Graph[Any]

__all__ = ["GraphData", "from_networkx", "padded"]


@dataclass(frozen=True)
class GraphData:
    """A graph as arrays: ``x`` float32 [nodes, features], ``edge_index`` int32 [2, edges] (sources, targets),
    ``edge_weight`` float32 [edges] or None, ``y`` int32 [nodes] or None with the ``classes`` that its numbers stand
    for, and the ``nodes`` in their order."""

    x: np.ndarray
    edge_index: np.ndarray
    edge_weight: np.ndarray | None
    y: np.ndarray | None
    classes: list[Any]
    nodes: list[Any]


def from_networkx(
    graph: Graph, features: str | Sequence[str] = (), *, label: str | None = None, weight: str | None = None
) -> GraphData:
    """The arrays of a graph of networkx. ``features``: attributes of the nodes, numbers or rows of numbers, one behind
    the other; without any a node's feature is which node it is (the identity matrix). ``label``: the attribute that is
    the class; ``weight``: that of an edge which is its weight. An edge without direction goes each way.

    ``NervureError``: a node or an edge lacks an attribute, or it is no number.
    """
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    ends, weights = [], []
    for source, target, held in graph.edges(data=True):
        both = [(source, target)] if graph.is_directed() or source == target else [(source, target), (target, source)]
        ends += [(place[a], place[b]) for a, b in both]
        weights += [_attribute(held, weight, f"edge {source!r} - {target!r}")] * len(both) if weight else []
    names = [features] if isinstance(features, str) else list(features)
    y, classes = None, []
    if label is not None:
        given = [_attribute(graph.nodes[node], label, f"node {node!r}") for node in nodes]
        classes = sorted(set(given))
        y = np.array([classes.index(c) for c in given], np.int32)
    return GraphData(
        x=_features(graph, nodes, names) if names else np.eye(len(nodes), dtype=np.float32),
        edge_index=np.array(ends, np.int32).reshape(-1, 2).T.copy(),
        edge_weight=np.array(weights, np.float32) if weight else None,
        y=y,
        classes=classes,
        nodes=nodes,
    )


def padded(edge_index: np.ndarray, edges: int) -> np.ndarray:
    """The edges [2, n] with edges of -1, -1, which are none, behind them: int32 [2, edges]. ``NervureError``: there are
    more of them."""
    short = edges - edge_index.shape[1]
    if short < 0:
        raise NervureError(f"the graph has {edge_index.shape[1]} edges, there is room for {edges}")
    return np.pad(np.asarray(edge_index, np.int32), ((0, 0), (0, short)), constant_values=-1)


def _features(graph: Graph, nodes: list[Any], names: list[str]) -> np.ndarray:
    rows = [[_attribute(graph.nodes[node], name, f"node {node!r}") for name in names] for node in nodes]
    try:
        return np.array([np.concatenate([np.ravel(v) for v in row]) for row in rows], np.float32)
    except ValueError as error:
        raise NervureError(f"the attributes {', '.join(names)} are no rows of numbers", why=str(error)) from None


def _attribute(held: Any, name: str, of: str) -> Any:
    if name not in held:
        raise NervureError(f"{of} has no attribute {name!r}", hint=f"it has {', '.join(map(str, held)) or 'none'}")
    return held[name]
