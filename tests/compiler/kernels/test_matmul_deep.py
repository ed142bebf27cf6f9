"""Matrix products deeper than the caches, A read across its rows: the gradients of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import assert_close, dense, machines, run_region
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.spec import Operand, Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.types import TensorType


def region_of(batch, rows, columns, depth, machine, epilogue):
    body, operands = Graph("body"), []

    def given(name, shape, order=None):
        operands.append(Operand(TensorType("float32", shape), dense(shape, order)))
        return body.input(name, operands[-1].type)

    lead = (batch,) if batch else ()
    swapped = (*range(len(lead)), len(lead) + 1, len(lead))
    y = body.add("matmul", given("a", (*lead, rows, depth), swapped), given("b", (*lead, depth, columns)))
    if epilogue:
        y = body.add("tanh", body.add("add", y, given("c", (*lead, rows, columns))))
    body.output(y)
    out = Operand(body.type(y), dense(body.type(y).dims))
    return Region(body, tuple(operands), (out,), replace(machine, l2=1 << 16))


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize(
    "batch, rows, columns, depth, epilogue",
    [
        (0, 100, 70, 1000, False),
        (0, 512, 128, 640, True),
        (0, 37, 16, 513, True),
        (3, 40, 33, 777, False),
        (0, 64, 200, 768, False),
    ],
)
def test_deep_products(batch, rows, columns, depth, epilogue, machine):
    region = region_of(batch, rows, columns, depth, machine, epilogue)
    random = np.random.default_rng(rows)
    arrays = [(random.uniform(-1, 1, o.type.dims) / depth**0.25).astype(np.float32) for o in region.inputs]
    found = plans(region)
    assert found[0].detail.endswith("deep")
    for plan in found:
        have, want = run_region(region, arrays, plan=plan), interpret(region.body, arrays)
        assert_close(have[0], want[0], 1e-4, 1e-4, plan.detail)


def test_only_products_that_leave_the_caches_are_taken_in_parts():
    machine = machines()[0]
    region = region_of(0, 100, 70, 1000, machine, False)
    near = replace(region, machine=replace(machine, l2=1 << 24))
    assert "deep" not in plans(near)[0].detail
