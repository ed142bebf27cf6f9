"""Channels, heads and blocks of a network as its weights know them: masked together while it is trained, and taken out
when they are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.ir import Graph
from ...compiler.prune.layers import prepare
from ...compiler.prune.rules import divides
from ...compiler.prune.shrink import shrink
from ...compiler.prune.structure import ALL_KINDS, Unit, find_structure
from ...errors import NervureError
from ..dsl.network import Network


@dataclass(frozen=True)
class Piece:
    """Positions ``index`` along ``axis`` of a weight."""

    weight: str
    axis: int
    index: np.ndarray

    def of(self, shape: Sequence[int]) -> tuple[slice | np.ndarray, ...]:
        """The place in an array of that shape."""
        return (*[slice(None)] * (self.axis % len(shape)), self.index)


Groups = Mapping[str, tuple[tuple[Piece, ...], ...]]  # of each group the pieces of its units


def groups_of(net: Network, kind: str) -> dict[str, tuple[tuple[Piece, ...], ...]]:
    """The groups of a kind (``channels``, ``heads``, ...) of which any unit but the last can go, by name.
    ``NervureError`` says why there are none."""
    graph = prepare(net.to_graph())
    structure = find_structure(graph, (kind,))
    if not structure.groups:
        raise NervureError(
            f"no {kind} of network {net.name!r} can go",
            why="; ".join(f"{f.where}: {f.why}" for f in structure.fixed[:4]) or None,
        )
    places = _places(net, graph)
    return {g.name: tuple(_pieces(unit, places) for unit in g.units) for g in structure.groups}


def _places(net: Network, graph: Graph) -> dict[str, tuple[str, bool]]:
    """Of the graph's constants the weight that each one is, and whether it is turned; no running variances, which are
    no zeros."""
    weights = {n: w for n, w in net.named_weights() if w.trainable}
    found = {}
    for key in graph.find("const"):
        node = graph.node(key)
        name = node.names[0]
        if divides(graph, key):
            continue
        if name in weights:
            found[name] = (name, False)
        elif node.array.ndim == 2:
            same = [n for n, w in weights.items() if w.shape == node.array.T.shape and (w.array == node.array.T).all()]
            if same:
                found[name] = (same[0], True)
    return found


def _pieces(unit: Unit, places: Mapping[str, tuple[str, bool]]) -> tuple[Piece, ...]:
    pieces = []
    for part in unit.slices:
        if part.tensor in places:
            name, turned = places[part.tensor]
            pieces.append(Piece(name, 1 - part.axis if turned else part.axis, part.index))
    return tuple(pieces)


def unit_masks(
    groups: Groups, scores: Mapping[str, np.ndarray], sparsity: float, scope: str = "layer"
) -> dict[str, np.ndarray]:
    """Masks of the weights (for scores of their shapes) under which a part of the units is zero: those with the
    smallest mean score of their matrices and kernels. ``scope``: of every group, or ``global``: of all, each unit
    measured by the mean of its group. One unit of a group stays."""
    means = {name: np.array([_mean(unit, scores) for unit in units]) for name, units in groups.items()}
    lost = {n: np.argsort(m, kind="stable")[: round(sparsity * len(m))] for n, m in means.items()}
    if scope == "global":
        relative = np.concatenate([m / max(float(m.mean()), 1e-30) for m in means.values()])
        limit = np.sort(relative)[max(round(sparsity * relative.size) - 1, 0)] if sparsity > 0 else -np.inf
        lost = {n: np.flatnonzero(m / max(float(m.mean()), 1e-30) <= limit) for n, m in means.items()}
    masks = {n: np.ones(s.shape, bool) for n, s in scores.items()}
    for name, units in groups.items():
        best = int(np.argmax(means[name]))
        for number in lost[name]:
            for piece in units[number] if number != best else ():
                if piece.weight in masks:
                    masks[piece.weight][piece.of(masks[piece.weight].shape)] = False
    return masks


def _mean(unit: Sequence[Piece], scores: Mapping[str, np.ndarray]) -> float:
    parts = [scores[p.weight][p.of(scores[p.weight].shape)] for p in unit if p.weight in scores]
    wide = [p for p in parts if p.ndim > 1] or parts
    count = sum(p.size for p in wide)
    return sum(float(p.sum()) for p in wide) / count if count else np.inf


def shrunk(net: Network) -> Network:
    """The network without the channels, heads and blocks whose weights are all zero: it computes the same with smaller
    tensors, and can be trained on. Weights keep their names. ``NervureError`` where none are zero."""
    from ..onnx import load_network, to_model

    graph = prepare(net.to_graph())
    places = _places(net, graph)
    arrays = {n: graph.node(k).array for k in graph.find("const") for n in graph.node(k).names if n in places}
    removed = {}
    for group in find_structure(graph, ALL_KINDS).groups:
        silent = [i for i, unit in enumerate(group.units) if _silent(unit, arrays)]
        if silent:
            removed[group.name] = silent[1:] if len(silent) == len(group.units) else silent
    if not removed:
        raise NervureError(f"no channel of network {net.name!r} is zero", hint='nv.sparsify(net, 0.5, "channels")')
    return load_network(to_model(shrink(graph, removed)), name=net.name)


def _silent(unit: Unit, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether all trained weights of a unit are zero, those that read it too: then its running mean says nothing."""
    parts = [(s, arrays[s.tensor]) for s in unit.slices if s.tensor in arrays]
    return bool(parts) and not any(np.take(a, s.index, s.axis).any() for s, a in parts)
