"""Several reductions in one kernel, and whole rows: elementwise work, reductions and elementwise work in turns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from harness import channels_last, check_region, dense, machines
from nervure.compiler.ir import Graph, Value
from nervure.compiler.kernels.spec import Operand, Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops.gradient import Sym
from nervure.compiler.plan.select import usable_plans
from nervure.compiler.types import type_of


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def region(arrays: Sequence[np.ndarray], build, order=None, machine=None) -> Region:
    """The region of what ``build(*tensors)`` returns."""
    body = Graph("body")
    tensors = [Sym(body, body.input(f"x{i}", type_of(a)), ("test",)) for i, a in enumerate(arrays)]
    for result in build(*tensors):
        body.output(result.value)

    def operand(value: Value) -> Operand:
        type_ = body.type(value)
        return Operand(type_, dense(type_.dims, order(type_.rank) if order else None))

    inputs = tuple(operand(t.value) for t in tensors)
    return Region(body, inputs, tuple(operand(v) for v in body.outputs), machine or machines()[0])


def moments(axes, keepdims=False):
    return lambda x, g, m: [(x - m).sum(axes, keepdims), (g * (x - m)).sum(axes, keepdims), g.mean(axes, keepdims)]


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(4, 16, 5, 7), (8, 6, 32, 32), (3, 37, 9, 2), (32, 16, 16, 16), (2, 130, 3, 3)])
@pytest.mark.parametrize("order", [None, channels_last, lambda r: (*range(1, r), 0)], ids=["rows", "last", "batch"])
def test_statistics_of_channels(shape, order, machine):
    arrays = [normal(*shape), normal(*shape, seed=1), normal(1, shape[1], 1, 1, seed=2)]
    chosen = (lambda r: order(r) if r == 4 else range(r)) if order else None
    for keepdims in (False, True):
        made = region(arrays, moments((0, 2, 3), keepdims), chosen, machine)
        check_region(made, arrays, template="reduce", rtol=1e-4, atol=5e-3)


def test_large_folds_are_cut_in_parts():
    arrays = [normal(32, 8, 32, 32), normal(32, 8, 32, 32, seed=1), normal(1, 8, 1, 1, seed=2)]
    made = region(arrays, moments((0, 2, 3)), lambda r: channels_last(r) if r == 4 else range(r))
    (plan,) = plans(made)
    assert len(plan.phases) == 2
    check_region(made, arrays, rtol=1e-4, atol=5e-3)


def test_updates_after_several_folds():
    arrays = [normal(64, 24), normal(64, 24, seed=1), *(normal(24, seed=i) for i in (2, 3)), normal(seed=4)]

    def build(x, g, gamma, beta, rate):
        return [gamma - rate * (g * x).sum((0,)), beta - rate * g.sum((0,))]

    made = region(arrays, build)
    (plan,) = plans(made)
    assert (2, 0) in plan.inplace and (3, 1) in plan.inplace
    assert not any(i in (0, 1) for i, _ in plan.inplace)
    check_region(made, arrays, rtol=1e-4, atol=1e-4)


def softmax_back(y, g):
    return [y * (g - (g * y).sum((y.rank - 1,), True))]


def layer_norm_back(x, g, scale):
    axes = (x.rank - 1,)
    near = x - x.mean(axes, True)
    inverse = ((near * near).mean(axes, True) + 1e-5).op("rsqrt")
    y, g = near * inverse, g * scale
    return [inverse * (g - g.mean(axes, True) - y * (g * y).mean(axes, True)), inverse]


def softmax(x, g, scale):
    axes = (x.rank - 1,)
    e = (x * scale - (x * scale).op("reduce_max", axes=axes, keepdims=True)).op("exp")
    return [e / e.sum(axes, True) + g, e.sum(axes, True)]


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(32, 10), (7, 128), (3, 5, 33), (4, 300), (2, 3, 4, 1000), (9, 1)])
@pytest.mark.parametrize("build", [softmax_back, layer_norm_back, softmax])
def test_rows(build, shape, machine):
    arrays = [normal(*shape), normal(*shape, seed=1)]
    if build is not softmax_back:
        arrays.append(normal(shape[-1], seed=2))
    check_region(region(arrays, build, machine=machine), arrays, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [channels_last, lambda r: (*range(1, r), 0)], ids=["last", "batch"])
def test_rows_in_columns(order):
    """Rows that do not lie side by side in memory: instance norm of channels-last tensors, backward."""
    arrays = [normal(3, 20, 6, 5), normal(3, 20, 6, 5, seed=1)]

    def build(x, g):
        near = x - x.mean((2, 3), True)
        inverse = ((near * near).mean((2, 3), True) + 1e-5).op("rsqrt")
        y = near * inverse
        return [inverse * (g - g.mean((2, 3), True) - y * (g * y).mean((2, 3), True)), (g * y).sum((2, 3), True)]

    check_region(region(arrays, build, order), arrays, rtol=1e-4, atol=1e-4)


def test_rows_in_place():
    arrays = [normal(6, 40), normal(6, 40, seed=1)]
    (plan,) = plans(region(arrays, softmax_back))
    assert {(0, 0), (1, 0)} <= set(plan.inplace)


def test_a_result_goes_over_what_it_is_computed_from():
    """Old w is read by the second result only: written over it, the first one could come before that load."""
    arrays = [normal(6, 40), normal(40, seed=1), normal(40, seed=2)]
    made = region(arrays, lambda x, w, m: [x.sum((0,)) * m, w + x.sum((0,))])
    assert {(i, j) for i in range(3) for j in range(2) if made.follows(j, i)} == {(2, 0), (1, 1)}
    assert all(set(p.inplace) <= {(2, 0), (1, 1)} for p in usable_plans(made))
