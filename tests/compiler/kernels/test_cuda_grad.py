"""Gradients on a GPU: of convolutions' weights, of max_pool, of recurrent scans, against the references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import assert_close, cases, channels_last, check_region, extra_input, region_of, run_region, sample
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.kernels.expr import serialize
from nervure.compiler.kernels.spec import Plan, Region
from nervure.compiler.kernels.templates import cuda_conv_grad_weight, plans
from nervure.compiler.kernels.templates.conv_grad_weight import Geometry
from nervure.compiler.ops import OPS
from nervure.compiler.ops.convolutions import output_extents
from nervure.targets import get
from nervure.targets.machine import Machine

GPU = get("cuda-sm80")
GPUS = tuple(get(f"cuda-sm{n}") for n in (80, 87, 89, 90))
SCANS = ("lstm_scan", "gru_scan", "rnn_scan")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def row_major(rank: int) -> Sequence[int]:
    return tuple(range(rank))


def weights_region(
    x: Sequence[int],
    outputs: int,
    kernel: Sequence[int],
    stride: int = 1,
    pad: int = 1,
    dilation: int = 1,
    group: int = 1,
    order: Any = channels_last,
    **options: Any,
) -> tuple[Region, list[np.ndarray]]:
    rank = len(kernel)
    window: dict[str, Any] = {"strides": (stride,) * rank, "pads": (pad,) * (2 * rank), "dilations": (dilation,) * rank}
    extents = output_extents(x[2:], kernel, window["strides"], window["pads"], window["dilations"])
    given = [normal(*x), normal(x[0], outputs, *extents, seed=1)]
    attrs = {"kernel_shape": tuple(kernel), "group": group, **window}
    return region_of(
        "conv_grad_weight", given, attrs, order=order, output_order=row_major, **{"machine": GPU, **options}
    )


def check_weights(region: Region, arrays: list[np.ndarray]) -> None:
    """TF32 keeps 10 bits of a factor: the error of a sum of n products grows with the root of n."""
    g = region.inputs[1].type
    spread = (g.size / g.dims[1]) ** 0.5
    limits = {"rtol": 1e-4, "atol": 1e-5 * spread} if region.exact else {"rtol": 2e-3, "atol": 3e-3 * spread}
    check_region(region, arrays, template="cuda_conv_grad_weight", **limits)


@pytest.mark.parametrize(("op", "case"), cases("conv_grad_weight"))
def test_weights_cases(op: str, case: Any) -> None:
    region, arrays = region_of(op, sample(case), case.attrs, machine=GPU, exact=True)
    wide = region.anchor_type.dtype == "float64"  # left to the CPU's template
    check_region(region, arrays, template="conv_grad_weight" if wide else "cuda_conv_grad_weight")


SHAPES: tuple[tuple[Any, ...], ...] = (
    ((2, 3, 8, 8), 16, (3, 3)),
    ((2, 8, 7, 9), 12, (3, 3), 2),
    ((2, 16, 6, 6), 16, (1, 1), 1, 0),
    ((1, 6, 7, 7), 10, (3, 3), 1, 0, 2, 2),
    ((3, 4, 11), 8, (3,)),
    ((2, 2, 3, 4, 5), 3, (2, 2, 2)),
    ((4, 64, 4, 4), 64, (3, 3)),
)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "tf32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_of_any_shape(shape: tuple[Any, ...], exact: bool) -> None:
    check_weights(*weights_region(*shape, exact=exact))


@pytest.mark.parametrize(
    "shape", [((2, 5, 9, 9), 5, (3, 3), 1, 1, 1, 5), ((2, 4, 6, 6), 8, (5, 5), 1, 2, 1, 4)], ids=str
)
def test_weights_of_channels_by_themselves(shape: tuple[Any, ...]) -> None:
    region, arrays = weights_region(*shape, exact=True)
    assert "depthwise" in plans(region)[0].detail
    check_weights(region, arrays)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_types(dtype: str) -> None:
    """Sums in float32, one rounding at the end."""
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.float16
    given = [normal(2, 6, 6, 5).astype(kind), normal(2, 8, 6, 5, seed=1).astype(kind)]
    attrs = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "group": 1}
    region, arrays = region_of("conv_grad_weight", given, attrs, order=channels_last, machine=GPU)
    check_region(region, arrays, template="cuda_conv_grad_weight", atol=2e-2)


def test_weights_where_channels_are_planes() -> None:
    check_weights(*weights_region((2, 4, 6, 7), 8, (3, 3), order=None, exact=True))


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "tf32"])
def test_every_tile_of_weights(exact: bool) -> None:
    region, arrays = weights_region((2, 20, 6, 5), 24, (3, 3), exact=exact)
    tiles = list(cuda_conv_grad_weight._tiles(region))
    assert len(tiles) > 6
    for tile in tiles:
        ending = {"program": serialize(region), "reads": []}
        plan = cuda_conv_grad_weight._product(region, Geometry(region), tile, ending)
        _check_plan(region, arrays, plan, 1e-4 if exact else 6e-2)


def _check_plan(region: Region, arrays: list[np.ndarray], plan: Plan, atol: float) -> None:
    (want,) = interpret(region.body, arrays)
    (have,) = run_region(region, arrays, plan=plan)
    assert_close(have, want, 1e-3, atol, plan.detail)


def step_of_adam(graph: Graph, g: Value) -> list[Value]:
    """What an optimizer does with a gradient: three results, each over what it read."""
    shape = graph.type(g).dims
    p, m, v = (extra_input(graph, np.abs(normal(*shape, seed=s))) for s in (5, 6, 7))

    def number(value: float) -> Value:
        return graph.const(np.float32(value), "n")

    def blend(old: Value, new: Value, keep: float) -> Value:
        return graph.add("add", graph.add("mul", old, number(keep)), graph.add("mul", new, number(1 - keep)))

    m, v = blend(m, g, 0.9), blend(v, graph.add("mul", g, g), 0.999)
    root = graph.add("add", graph.add("sqrt", v), number(1e-3))
    step = graph.add("mul", graph.add("div", m, root), number(0.01))
    return [graph.add("sub", p, step), m, v]


@pytest.mark.parametrize("shape", [((16, 3, 16, 16), 8, (3, 3)), ((8, 8, 16, 16), 8, (3, 3), 1, 1, 1, 8)], ids=str)
def test_updates_where_parts_are_joined(shape: tuple[Any, ...]) -> None:
    region, arrays = weights_region(*shape, order=None, epilogue=step_of_adam, exact=True)
    (plan,) = plans(region)
    assert len(plan.phases) == 2 and plan.shared_bytes > 4 * region.anchor_type.size
    updated = {j for _, j in plan.inplace}
    assert updated == {0, 1, 2}
    check_region(region, arrays, rtol=1e-3, atol=1e-4)


def test_updates_by_the_kernel_that_sums() -> None:
    region, arrays = weights_region((2, 64, 3, 3), 64, (3, 3), epilogue=step_of_adam, exact=True)
    (plan,) = plans(region)
    assert len(plan.phases) == 1 and plan.shared_bytes == 0
    check_region(region, arrays, rtol=1e-3, atol=1e-4)


# -- max_pool ---------------------------------------------------------------------------------------------------------


def positive(graph: Graph, y: Value) -> Value:
    """The gradient of the ReLU before a pool."""
    zero = graph.const(np.float32(0), "zero")
    x = extra_input(graph, normal(*graph.type(y).dims, seed=9))
    return graph.add("where", graph.add("greater", x, zero), y, zero)


def pool_region(
    x: Sequence[int], kernel: int, stride: int, pad: int, dilation: int = 1, ceil: int = 0, order: Any = channels_last
) -> tuple[Region, list[np.ndarray]]:
    rank = len(x) - 2
    attrs = {
        "kernel_shape": (kernel,) * rank,
        "strides": (stride,) * rank,
        "pads": (pad,) * (2 * rank),
        "dilations": (dilation,) * rank,
        "ceil_mode": ceil,
    }
    given = np.round(normal(*x), 1)  # with equal elements in many windows
    y = OPS["max_pool"].reference(given, **attrs, indices=0)
    g = normal(*np.shape(y), seed=2)
    return region_of("max_pool_grad", [given, g], attrs, order=order, machine=GPU, epilogue=positive)


@pytest.mark.parametrize(
    "shape",
    [
        ((2, 8, 8, 8), 2, 2, 0),
        ((2, 6, 9, 9), 2, 2, 0),
        ((4, 64, 16, 16), 2, 2, 0),
        ((1, 3, 8, 8), 2, 3, 0, 1, 0, None),
        ((2, 4, 7, 7), 3, 2, 1),
        ((4, 64, 16, 16), 3, 2, 1),
        ((1, 4, 9, 9), 3, 2, 0, 2),
        ((2, 3, 11), 4, 3, 1),
        ((1, 2, 13, 13), 5, 3, 2, 1, 0, None),
        ((1, 4, 7, 7), 3, 3, 1, 1, 1),
    ],
    ids=str,
)
def test_pools(shape: tuple[Any, ...]) -> None:
    region, arrays = pool_region(*shape)
    check_region(region, arrays, template="cuda_max_pool_grad")


@pytest.mark.slow
def test_pool_cases() -> None:
    for case in OPS["max_pool_grad"].cases():  # type: ignore[misc]
        region, arrays = region_of("max_pool_grad", sample(case), case.attrs, machine=GPU)
        check_region(region, arrays, template="cuda_max_pool_grad")


# -- recurrent layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [*SCANS, *(f"{n}_grad" for n in SCANS)])
def test_scan_cases(op: str) -> None:
    for case in OPS[op].cases()[::3]:  # type: ignore[misc]
        region, arrays = region_of(op, sample(case), case.attrs, machine=GPU)
        check_region(region, arrays, template="cuda_recurrent_training")


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("op", [*SCANS, *(f"{n}_grad" for n in SCANS)])
def test_all_scan_cases(op: str) -> None:
    for case in OPS[op].cases():  # type: ignore[misc]
        region, arrays = region_of(op, sample(case), case.attrs, machine=GPU)
        check_region(region, arrays, template="cuda_recurrent_training")


@pytest.mark.parametrize(("batch", "hidden"), [(37, 17), (33, 65)])
def test_scans_with_several_rows_a_block(batch: int, hidden: int) -> None:
    small = GPUS[1]  # with few multiprocessors
    fed, r = normal(1, 2, batch, 4 * hidden), normal(1, 4 * hidden, hidden, seed=1) / np.float32(hidden**0.5)
    region, arrays = region_of("lstm_scan", [fed, r], {}, machine=small)
    assert "2 rows" in plans(region)[0].detail
    check_region(region, arrays)


# -- machine code -----------------------------------------------------------------------------------------------------


def training(machine: Machine, exact: bool) -> list[tuple[str, Region]]:
    """Regions of training steps, with their templates; together they hold all kernels of these."""
    shapes = (((32, 16, 32, 32), 32, (3, 3)), ((32, 64, 25, 5), 64, (1, 1), 1, 0), ((32, 3, 16, 16), 16, (3, 3)))
    options: dict[str, Any] = {"epilogue": step_of_adam, "machine": machine, "exact": exact}
    found = [("cuda_conv_grad_weight", weights_region(*shape, **options)[0]) for shape in shapes]
    if not exact:
        return found
    found.append(("cuda_conv_grad_weight", weights_region((8, 64, 25, 5), 64, (3, 3), 1, 1, 1, 64, **options)[0]))
    for kernel in (2, 3):
        region, _ = pool_region((8, 64, 16, 16), kernel, 2, kernel // 3)
        found.append(("cuda_max_pool_grad", replace(region, machine=machine)))
    fed, r = normal(1, 10, 32, 512), normal(1, 512, 128)
    gates, states = normal(1, 10, 32, 512), normal(1, 10, 32, 128)
    for op, given in (("lstm_scan", [fed, r]), ("lstm_scan_grad", [r, states, gates, None, None, None, states])):
        found.append(("cuda_recurrent_training", region_of(op, given, {}, machine=machine)[0]))
    return found


@needs_compiler
@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "tf32"])
@pytest.mark.parametrize("machine", GPUS, ids=lambda m: m.name)
def test_machine_code_has_no_local_memory(machine: Machine, exact: bool) -> None:
    for template, region in training(machine, exact):
        words = counted(region, template)
        if template == "cuda_conv_grad_weight" and not exact:
            assert words["mma.sync"] > 0


@needs_compiler
def test_machine_code_of_one_product() -> None:
    region, _ = weights_region((2, 16, 6, 6), 16, (3, 3), epilogue=step_of_adam)
    assert counted(region, "cuda_conv_grad_weight")["mma.sync"] > 0
