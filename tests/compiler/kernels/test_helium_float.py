"""Float kernels on the Cortex-M55 in QEMU: right, and four lanes at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bare_harness import Run
from harness import assert_close, channels_last, region_of
from helium_cases import M55, run
from nervure.compiler.interpret import interpret
from nervure.compiler.kernels.templates import plans

pytestmark = pytest.mark.emulator

WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
SHAPES: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any], int]] = {
    "matmul": ("matmul", ((17, 33), (33, 30)), {}, 17 * 33 * 30),
    "pointwise": ("conv", ((1, 32, 9, 9), (24, 32, 1, 1)), {**WINDOW, "pads": (0,) * 4}, 81 * 32 * 24),
    "square": ("conv", ((1, 8, 9, 10), (12, 8, 3, 3)), WINDOW, 90 * 8 * 12 * 9),
    "depthwise": ("conv", ((1, 12, 9, 10), (12, 1, 3, 3)), {**WINDOW, "group": 12}, 90 * 12 * 9),
}


@pytest.mark.parametrize("name", SHAPES)
def test_products(name: str) -> None:
    op, shapes, attrs, products = SHAPES[name]
    rng = np.random.default_rng(len(name))
    arrays = [rng.standard_normal(s).astype(np.float32) for s in shapes]

    def order(rank: int) -> Any:
        return channels_last(rank) if rank > 2 else range(rank)

    region, given = region_of(op, arrays, attrs, order=order, consts=(1,), machine=M55)
    plan = plans(region)[0]
    result = run([Run(region, given, plan)])
    (want,) = interpret(region.body, given)
    assert_close(result.outputs[0][0], want, 1e-5, 1e-5, plan.detail)
    kernel = plan.phases[-1].spec.name
    assert result.instructions[kernel] < 1.3 * products  # one by one it would be three or more


def test_functions() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 37)).astype(np.float32)
    for op in ("exp", "tanh", "sigmoid", "sqrt"):
        source = np.abs(x) if op == "sqrt" else x
        region, given = region_of(op, [source], {}, machine=M55)
        result = run([Run(region, given, plans(region)[0])])
        (want,) = interpret(region.body, given)
        assert_close(result.outputs[0][0], want, 1e-5, 1e-6, op)
