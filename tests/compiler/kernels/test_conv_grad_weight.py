"""Gradients of convolution weights against the reference: shapes, memory orders, optimizer steps as epilogues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import cases, channels_last, check_region, extra_input, machines, region_of, sample
from nervure import targets
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops.windows import output_extents

SHAPES = [  # x, O, kernel, strides, pads, dilations, group
    ((4, 16, 9, 11), 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((8, 64, 8, 8), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((32, 16, 16, 16), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((3, 16, 12, 13), 24, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((4, 3, 17, 16), 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 3, 31, 30), 10, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((2, 1, 49, 10), 64, (10, 4), (2, 2), (4, 1, 5, 1), (1, 1), 1),
    ((8, 64, 25, 5), 64, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 16, 8, 8), 37, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((2, 6, 14, 14), 16, (5, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 12, 10, 9), 21, (3, 3), (1, 2), (1, 1, 1, 1), (1, 1), 3),
    ((2, 8, 5, 5), 7, (5, 5), (1, 1), (4, 4, 4, 4), (1, 1), 1),
    ((8, 64, 25, 5), 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 64),
    ((2, 20, 12, 12), 20, (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 20),
    ((2, 8, 9, 9), 24, (3, 3), (1, 1), (1, 1, 1, 1), (2, 2), 8),
    ((2, 40, 9), 40, (5,), (1,), (4, 0), (1,), 40),
    ((2, 8, 200), 16, (3,), (1,), (64, 64), (64,), 1),
    ((2, 5, 90), 12, (31,), (2,), (15, 15), (1,), 1),
    ((2, 6, 5, 6, 7), 12, (3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    ((2, 6, 5, 6, 7), 6, (3, 3, 3), (1, 2, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1), 6),
    ((1, 4, 2, 2), 8, (3, 3), (1, 1), (3, 3, 3, 3), (1, 1), 1),
    ((2, 24, 90, 90), 8, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
]


def build(shape, *, machine, order=channels_last, output_order=range, seed=0, **options):
    x, outputs, kernel, strides, pads, dilations, group = shape
    rng = np.random.default_rng(seed)
    extents = output_extents(x[2:], kernel, strides, pads, dilations)
    arrays = [rng.standard_normal(s, np.float32) for s in (x, (x[0], outputs, *extents))]
    arrays[1] /= np.sqrt(x[0] * np.prod(extents))
    attrs = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": group}
    region, given = region_of(
        "conv_grad_weight",
        arrays,
        attrs,
        order=lambda rank: order(rank) if rank == len(x) else range(rank),
        output_order=output_order,
        machine=machine,
        **options,
    )
    # what an epilogue reads lies as the weights do, whatever its rank
    ends = [
        replace(o, strides=region.outputs[0].strides) if o.type == region.outputs[0].type else o
        for o in region.inputs[2:]
    ]
    return replace(region, inputs=(*region.inputs[:2], *ends)), given


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_last(shape, machine):
    check_region(*build(shape, machine=machine), template="conv_grad_weight")


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_planes(shape):
    check_region(*build(shape, machine=machines()[0], order=range), template="conv_grad_weight")


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3], SHAPES[12]], ids=str)
def test_weights_in_another_order(shape):
    region = build(shape, machine=machines()[0], output_order=lambda rank: (*range(2, rank), 1, 0))
    check_region(*region, template="conv_grad_weight")


def adam(shape, rng):
    """An epilogue with the three outputs of an optimizer's step; weights and both moments are inputs."""
    w, m, v = (rng.standard_normal(shape, np.float32) for _ in range(3))

    def step(graph, g):
        old = [extra_input(graph, a) for a in (w, m, np.abs(v))]
        rate = extra_input(graph, np.array(0.01, np.float32))
        near = [extra_input(graph, np.array(a, np.float32)) for a in (0.9, 0.99)]
        moment = graph.add("add", graph.add("mul", old[1], near[0]), g)
        square = graph.add("add", graph.add("mul", old[2], near[1]), graph.add("mul", g, g))
        change = graph.add("div", graph.add("mul", moment, rate), graph.add("sqrt", square))
        return [graph.add("sub", old[0], change), moment, square]

    return step


@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [*SHAPES[:8], SHAPES[10], SHAPES[12], SHAPES[18]], ids=str)
def test_an_optimizer_step_in_the_same_kernel(shape, machine):
    x, outputs, kernel, *_, group = shape
    epilogue = adam((outputs, x[1] // group, *kernel), np.random.default_rng(1))
    region, arrays = build(shape, machine=machine, epilogue=epilogue)
    check_region(region, arrays, template="conv_grad_weight")
    pairs = next(p for p in plans(region) if p.template == "conv_grad_weight").inplace
    assert {(2, 0), (3, 1), (4, 2)} <= set(pairs)


def test_an_epilogue_with_a_factor_for_each_output_channel():
    shape = SHAPES[3]
    factor = np.random.default_rng(1).standard_normal((24, 1, 1, 1), np.float32)
    region = build(shape, machine=machines()[0], epilogue=lambda g, y: g.add("mul", y, extra_input(g, factor)))
    check_region(*region, template="conv_grad_weight")


@pytest.mark.parametrize("op, case", cases("conv_grad_weight"))
def test_sample_cases(op, case):
    region, given = region_of(op, sample(case), case.attrs)
    check_region(region, given, template="conv_grad_weight")


@pytest.mark.parametrize("name", ["aarch64", "armv7"])
def test_kernels_are_made_for_other_machines(name, tmp_path):
    machine = targets.get(name)
    for shape in (SHAPES[1], SHAPES[12]):
        region, _ = build(shape, machine=machine)
        for draft in next(p for p in plans(region) if p.template == "conv_grad_weight").phases:
            function, tasks = worker.build(
                draft.spec.template, dict(draft.spec.config), draft.spec.name, machine.record()
            )
            assert tasks == draft.tasks
            write_object([function], machine.record()["llvm"], tmp_path / "k.o")
