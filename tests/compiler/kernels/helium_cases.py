"""Regions of 8-bit layers for the Cortex-M55, and their outputs in QEMU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from bare_harness import Result, Run, run_on
from harness import channels_last, dense, extra_input, region_of
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.kernels.spec import Operand, Plan, Region
from nervure.compiler.kernels.templates import plans
from nervure.errors import MissingTool

M55 = targets.get("cortex-m55")
GAP = 13  # unused bytes between the pixels of a wider buffer


@dataclass(frozen=True)
class Layer:
    """A convolution ``x`` by ``w`` (or a product of matrices, where there is no ``strides``) and what follows it."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    group: int = 1
    dtype: str = "int8"
    to: str = "int8"
    zero: int = -128
    low: int | None = None
    high: int | None = None
    most: float = 2e-3  # multipliers
    tensor: bool = False  # one multiplier for all channels
    bias: bool = True
    residual: bool = False
    extreme: bool = False  # only the ends of the types
    pad: int = 0  # unused elements behind each pixel
    live: int | None = None  # columns with weights


def arrays_of(layer: Layer, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng, info = np.random.default_rng(seed), np.iinfo(layer.dtype)
    x = rng.integers(info.min, info.max, layer.x, endpoint=True).astype(layer.dtype)
    w = rng.integers(-128 if layer.extreme else -127, 127, layer.w, endpoint=True)
    if layer.extreme:
        x = rng.choice([info.min, info.max], layer.x).astype(layer.dtype)
        w = np.where(w > 0, 127, -128)
        x[..., 0] = info.min
        w[..., 0] = -128
    columns = layer.w[0] if len(layer.w) != 2 else layer.w[1]
    if layer.live is not None:
        w = np.moveaxis(w, 0 if len(layer.w) != 2 else 1, 0)
        w[rng.permutation(columns)[layer.live :]] = 0
        w = np.moveaxis(w, 0, 0 if len(layer.w) != 2 else 1)
    return x, w.astype(np.int8), rng.integers(-9999, 9999, columns).astype(np.int32) if layer.bias else None


def layer_region(layer: Layer, seed: int) -> tuple[Region, list[np.ndarray]]:
    x, w, b = arrays_of(layer, seed)
    product = len(layer.w) == 2
    rng = np.random.default_rng(seed + 1)
    rank = len(layer.x)
    shape = () if layer.tensor else (layer.w[1],) if product else (layer.w[0], *[1] * (rank - 2))
    each = rng.uniform(layer.most / 9, layer.most, shape).astype(np.float32)

    def rescaled(graph: Any, sums: Any) -> Any:
        bounds = {"low": layer.low, "high": layer.high}
        m = extra_input(graph, each)
        value = graph.add("requantize", sums, m, zero_point=3, to=layer.to, **bounds)
        if layer.residual:
            other = rng.integers(-128, 128, graph.type(value).dims).astype(np.int8)
            ratios = (graph.const(np.int32(700000)), graph.const(np.int32(900001)))
            attrs = {"a_zero_point": 3, "b_zero_point": -9, "zero_point": 5, "shift": 20, "to": layer.to}
            value = graph.add("add_integer", value, extra_input(graph, other), *ratios, **attrs)
        return value

    attrs: dict[str, Any] = {"zero_point": layer.zero}
    if not product:
        attrs |= {n: getattr(layer, n) for n in ("strides", "pads", "dilations", "group")}

    def order(rank: int) -> Sequence[int]:
        return range(rank) if product or rank < 3 else channels_last(rank)

    made, arrays = region_of(
        "matmul_integer" if product else "conv_integer",
        [x, w, b],
        attrs,
        order=order,
        pad=layer.pad,
        consts=(1, 2),
        epilogue=rescaled,
        machine=M55,
    )
    at = 2 + (b is not None)
    inputs = list(made.inputs)
    inputs[at] = Operand(inputs[at].type, dense(each.shape), each)
    return replace(made, inputs=tuple(inputs)), arrays


def planned(region: Region, template: str) -> Plan:
    found = [p for p in plans(region) if p.template == template]
    assert found, f"{template} has no plan for {region.op} {region.anchor_type}"
    return found[0]


def run(runs: Sequence[Run]) -> Result:
    try:
        return run_on(M55, runs)
    except MissingTool as missing:
        pytest.skip(str(missing))


def check(layers: Sequence[Layer], template: str) -> Result:
    """Every layer by that template, beside its input and (where it may) over it, against the references."""
    runs: list[Run] = []
    for seed, layer in enumerate(layers):
        region, arrays = layer_region(layer, seed)
        plan = planned(region, template)
        runs.append(Run(region, arrays, plan))
        runs += [Run(region, arrays, plan, (i, max(0, lead))) for i, _, lead in plan.overlaps]
    result = run(runs)
    for made, outputs in zip(runs, result.outputs, strict=True):
        wanted = interpret(made.region.body, list(made.arrays))
        for have, want in zip(outputs, wanted, strict=True):
            what = f"{made.plan.detail} {made.region.inputs[0].type} {made.region.anchor_type} {made.over}"
            np.testing.assert_array_equal(have, want, err_msg=what)
    return result
