"""Every operator's rule on every one of its cases: what it says goes together, taken out, is the result without it."""

from __future__ import annotations

import numpy as np
import pytest
from nervure.compiler.interpret import evaluate
from nervure.compiler.ir import Graph, Value
from nervure.compiler.ops import OPS, infer
from nervure.compiler.ops.axes import Axis
from nervure.compiler.ops.record import Case, Kind
from nervure.compiler.ops.sampling import sample_inputs
from nervure.compiler.prune.dependencies import Dependencies
from nervure.compiler.prune.rules import call_of, rule_of
from nervure.compiler.types import type_of

FIXED = {"iota", "random_bits", "max_pool"}  # what has no axis to take from, at all or (indices) in some cases
RULED = sorted(
    name
    for name, op in OPS.items()
    if op.kind not in (Kind.STORED,) and name != "fused" and rule_of(name) is not None and op.cases is not None
)


class Taken:
    """A call of constants of which a random choice of classes is taken out."""

    def __init__(self, name: str, case: Case, number: int) -> None:
        self.graph = Graph("case")
        self.arrays = sample_inputs(case, number)
        args = [None if a is None else self.graph.const(a, f"x{i}") for i, a in enumerate(self.arrays)]
        self.key = self.graph.add(name, *args, **case.attrs).node
        self.dependencies = Dependencies(self.graph)
        rng = np.random.default_rng(number)
        self.lost: dict[int, list[int]] = {}
        left: dict[int, set[int]] = {}
        for key in self.graph:
            for value in self.graph.values(key):
                for axis, size in enumerate(self.graph.type(value).dims):
                    left[self.dependencies.tensor_axis(value, axis)] = set(range(size))
        for found in self.dependencies.classes():
            places = [(bundle, set(at.tolist())) for bundle, at in found.places]
            if rng.random() < 0.5 and all(left.get(b, {-1}) - at for b, at in places):
                for bundle, at in places:
                    left[bundle] = left.get(bundle, {-1}) - at
                    self.lost.setdefault(bundle, []).extend(at)

    def kept(self, axis: Axis) -> np.ndarray:
        if axis.side == "own":
            bundle, size = self.dependencies.own_axis(self.key, axis.tensor), axis.axis
        else:
            value = self.graph.args(self.key)[axis.tensor] if axis.side == "in" else Value(self.key, axis.tensor)
            assert value is not None
            bundle, size = self.dependencies.tensor_axis(value, axis.axis), self.graph.type(value).dims[axis.axis]
        return np.setdiff1d(np.arange(size), self.lost.get(bundle if bundle is not None else -1, []))

    def cut(self, array: np.ndarray, side: str, tensor: int) -> np.ndarray:
        for axis in range(array.ndim):
            array = np.take(array, self.kept(Axis(side, tensor, axis)), axis)
        return array

    def zeroed(self, array: np.ndarray, tensor: int) -> np.ndarray:
        found = array.copy()
        for axis in range(array.ndim):
            gone = np.setdiff1d(np.arange(array.shape[axis]), self.kept(Axis("in", tensor, axis)))
            found[(slice(None),) * axis + (gone,)] = 0
        return found

    def check(self) -> None:
        """The reference of what is left is what is left of the reference where zeros are."""
        node = self.graph.node(self.key)
        rule = rule_of(node.op)
        assert rule is not None
        call = call_of(self.graph, self.key)
        change = rule.shrink(call, node.types, self.kept) if rule.shrink is not None else None
        less = [None if a is None else self.cut(a, "in", i) for i, a in enumerate(self.arrays)]
        zero = [a if a is None or a.dtype == bool else self.zeroed(a, i) for i, a in enumerate(self.arrays)]
        attrs = dict(node.attrs)
        if change is not None:
            attrs |= change.attrs
            less = [change.values.get(i, a) for i, a in enumerate(less)]
        types, filled = infer(node.op, [None if a is None else type_of(a) for a in less], attrs, less)
        reference = OPS[node.op].reference
        assert reference is not None
        result = reference(*less, **filled)
        results = result if isinstance(result, tuple) else (result,)
        for i, (got, whole) in enumerate(zip(results, evaluate(node, zero), strict=True)):
            wanted = self.cut(whole, "out", i)
            assert types[i].shape == np.shape(got) == wanted.shape
            exact = {"rtol": 2e-2, "atol": 2e-2} if node.types[i].itemsize < 4 else {"rtol": 1e-5, "atol": 1e-5}
            np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(wanted, np.float64), **exact)


def _calls(name: str) -> list[Taken]:
    cases = OPS[name].cases
    assert cases is not None
    return [Taken(name, case, number) for number, case in enumerate(cases())]


@pytest.mark.parametrize("name", RULED)
def test_what_is_taken_out_leaves_the_rest_as_it_was(name: str) -> None:
    calls = _calls(name)
    for call in calls:
        call.check()
    assert any(call.lost for call in calls) or name in FIXED
