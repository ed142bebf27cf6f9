"""Chains of reshape and transpose, brought to the fewest operations.

A chain only moves whole factors of the shape about. It is followed factor by factor: a reshape splits and joins
factors without changing their order, a transpose changes their order. What remains is one permutation of factors,
for which at most reshape, transpose, reshape is needed, and often less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import Graph, Value

Step = tuple[str, tuple[int, ...]]  # ("reshape", shape) or ("transpose", perm)
Shape = tuple[int, ...]


@dataclass
class _Factors:
    """``source``: factors of the first shape, in its order. ``axes``: the factors of each axis of the current one."""

    size: dict[int, int]
    source: list[int]
    axes: list[list[int]]

    @classmethod
    def of(cls, shape: Shape) -> _Factors:
        size = {i: d for i, d in enumerate(shape) if d != 1}
        return cls(size, list(size), [[i] if d != 1 else [] for i, d in enumerate(shape)])

    def transpose(self, perm: Sequence[int]) -> None:
        self.axes = [self.axes[p] for p in perm]

    def reshape(self, shape: Sequence[int]) -> bool:
        """False where an axis of the new shape is no product of (parts of) neighbouring factors."""
        flat = [f for axis in self.axes for f in axis]
        axes: list[list[int]] = []
        for dim in shape:
            axis: list[int] = []
            while dim != 1:
                have = self.size[flat[0]]
                if dim % have == 0:
                    dim //= have
                elif have % dim == 0:
                    self._split(flat, dim)
                    dim = 1
                else:
                    return False
                axis.append(flat.pop(0))
            axes.append(axis)
        self.axes = axes
        return True

    def _split(self, flat: list[int], first: int) -> None:
        """Splits the factor ``flat[0]`` into one of size ``first`` and the rest."""
        old, new = flat[0], max(self.size) + 1
        self.size[new] = self.size[old] // first
        self.size[old] = first
        flat.insert(1, new)
        self.source.insert(self.source.index(old) + 1, new)

    def runs(self) -> list[list[int]]:
        """Factors in their present order, those together that also lay together in the source."""
        place = {f: i for i, f in enumerate(self.source)}
        runs: list[list[int]] = []
        for factor in (f for axis in self.axes for f in axis):
            if runs and place[factor] == place[runs[-1][-1]] + 1:
                runs[-1].append(factor)
            else:
                runs.append([factor])
        return runs


def shortest(source: Shape, steps: Sequence[Step], target: Shape) -> list[Step] | None:
    """The fewest steps that do the same as ``steps``, which lead from ``source`` to ``target``; None if not known."""
    if all(kind == "reshape" for kind, _ in steps):
        return [] if source == target else [("reshape", target)]
    if 0 in source:
        return None
    factors = _Factors.of(source)
    for kind, values in steps:
        if kind == "transpose":
            factors.transpose(values)
        elif not factors.reshape(values):
            return None
    runs = factors.runs()
    if len(runs) <= 1:
        return [] if source == target else [("reshape", target)]
    # Among equally short ones the transpose goes last, where a product that wants it can see it.
    plans = [_on_target_axes(factors, source, target), _on_source_axes(factors, source, runs, target)]
    plans.append(_on_runs(factors, runs, target))
    return min((plan for plan in plans if plan is not None), key=len)


def _on_source_axes(factors: _Factors, source: Shape, runs: list[list[int]], target: Shape) -> list[Step] | None:
    """A transpose of the source's own axes, if each of them stays whole; then a reshape if one is needed."""
    owner, place = _owners(factors, source), {f: i for i, f in enumerate(factors.source)}
    flat = [f for run in runs for f in run]
    if any(owner[a] == owner[b] and place[b] != place[a] + 1 for a, b in itertools.pairwise(flat)):
        return None  # the parts of one axis changed places: channels are shuffled
    order = [axis for axis, _ in _grouped([owner[f] for f in flat])]
    if len(order) != len(set(order)):
        return None
    units = [i for i, d in enumerate(source) if d == 1]
    moving, spare, perm = list(order), list(units), []
    for dim in target:
        pool = spare if dim == 1 else moving
        if not pool or source[pool[0]] != dim:
            break
        perm.append(pool.pop(0))
    if len(perm) == len(target) and not moving and not spare:
        return [("transpose", tuple(perm))]
    return [("transpose", tuple(units + order)), ("reshape", target)]


def _owners(factors: _Factors, source: Shape) -> dict[int, int]:
    """The source axis that each factor is a part of."""
    owner: dict[int, int] = {}
    at = iter(factors.source)
    for axis, dim in enumerate(source):
        while dim != 1:
            factor = next(at)
            owner[factor] = axis
            dim //= factors.size[factor]
    return owner


def _grouped(values: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of equal values with their lengths."""
    found: list[tuple[int, int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1] = (value, found[-1][1] + 1)
        else:
            found.append((value, 1))
    return found


def _on_target_axes(factors: _Factors, source: Shape, target: Shape) -> list[Step] | None:
    """A reshape into the target's axes in the source's order, then a transpose; if each of them is one piece there."""
    place = {f: i for i, f in enumerate(factors.source)}
    for axis in factors.axes:
        if any(place[b] != place[a] + 1 for a, b in itertools.pairwise(axis)):
            return None
    order = sorted(range(len(target)), key=lambda i: (place[factors.axes[i][0]] if factors.axes[i] else -1, i))
    shape = tuple(target[i] for i in order)
    perm = tuple(order.index(i) for i in range(len(target)))
    steps: list[Step] = [("transpose", perm)]
    return steps if shape == source else [("reshape", shape), *steps]


def _on_runs(factors: _Factors, runs: list[list[int]], target: Shape) -> list[Step]:
    place = {f: i for i, f in enumerate(factors.source)}
    order = sorted(range(len(runs)), key=lambda i: place[runs[i][0]])
    shape = tuple(math.prod(factors.size[f] for f in runs[i]) for i in order)
    perm = tuple(order.index(i) for i in range(len(runs)))
    return [("reshape", shape), ("transpose", perm), ("reshape", target)]


def shorter_chain(graph: Graph, root: Value) -> tuple[Value, list[Step]] | None:
    """Where the chain that ends in ``root`` may start instead, and the fewer steps from there; None if there are none.

    Longer chains are tried first. Where other operations look into the chain, its part before that stays: then the new
    steps may be no more, and hold no more transposes, than the part that goes.
    """
    chain = _chain(graph, root)
    target = graph.type(root).dims if graph.type(root).static else ()
    own = next((i for i, key in enumerate(chain) if i and graph.uses(Value(key)) > 1), len(chain))
    for length in range(len(chain), 0, -1):
        start = graph.args(chain[length - 1])[0]
        assert start is not None
        steps = [_step(graph, key) for key in reversed(chain[:length])]
        plan = shortest(graph.type(start).dims, steps, target)
        if plan is None:
            continue
        freed = steps[-min(own, length) :]
        if len(plan) > len(freed) or _transposes(plan) > _transposes(freed):
            continue
        if len(plan) < length or _transposes(plan) < _transposes(steps):
            return start, plan
    return None


def _transposes(steps: Sequence[Step]) -> int:
    return sum(1 for kind, _ in steps if kind == "transpose")


def _chain(graph: Graph, root: Value, limit: int = 8) -> list[int]:
    """Reshapes and transposes of bound shapes that end in ``root``, the last one first."""
    found: list[int] = []
    value: Value | None = root
    while value is not None and len(found) < limit:
        node = graph.node(value)
        if node.op not in ("reshape", "transpose") or not node.types[0].static:
            break
        inner = graph.args(value.node)[0]
        if inner is None or not graph.type(inner).static:
            break
        found.append(value.node)
        value = inner
    return found


def _step(graph: Graph, key: int) -> Step:
    node = graph.node(key)
    return ("reshape", node.types[0].dims) if node.op == "reshape" else ("transpose", tuple(node.attrs["perm"]))
