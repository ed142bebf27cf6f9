"""int8 convolutions and products for cores with the DSP extension, in the emulator, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bare_harness import Result, Run, run_on
from harness import channels_last, dense, extra_input, region_of
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.kernels.spec import Operand, Plan, Region
from nervure.compiler.kernels.templates import _dsp_lead, dsp_conv, dsp_matmul, plans
from nervure.compiler.kernels.templates._tile import epilogue_inputs
from nervure.compiler.kernels.templates.conv import Geometry
from nervure.errors import NervureError
from nervure.targets import emulator
from nervure.targets.machine import Machine

M4 = targets.get("cortex-m4")
Made = tuple[Region, Sequence[np.ndarray]]


def emulated(name: str) -> Machine:
    machine = targets.get(name)
    try:
        emulator.command(machine)
    except NervureError as error:
        pytest.skip(str(error))
    return machine


class Maker:
    """Regions with random numbers in them."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine, self.rng = machine, np.random.default_rng(seed)

    def array(self, dtype: str, shape: Sequence[int], low: int | None = None) -> np.ndarray:
        info = np.iinfo(dtype)
        return self.rng.integers(info.min if low is None else low, info.max, tuple(shape), dtype, endpoint=True)

    def conv(
        self,
        x: Sequence[int],
        w: Sequence[int],
        *,
        dtype: str = "int8",
        after: Any = None,
        low: int = -127,
        **attrs: Any,
    ) -> Made:
        rank = len(x) - 2
        plain = {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1}
        given = [self.array(dtype, x), self.array("int8", w, low), self.bias(w[0])]
        given[1] = attrs.pop("weights", given[1])
        given[2] = attrs.pop("bias", given[2])
        zero = {"zero_point": -128 if dtype == "int8" else 7}
        after = after or self.requantize(w[0], rank + 2)
        order = attrs.pop("order", channels_last)
        made = region_of(
            *("conv_integer", given, {**plain, **zero, **attrs}),
            order=order,
            consts=(1, 2),
            epilogue=after,
            machine=self.machine,
        )
        return known(made)

    def matmul(self, x: Sequence[int], w: Sequence[int], *, after: Any = None, **attrs: Any) -> Made:
        given = [self.array("int8", x), self.array("int8", w, -127), self.bias(w[1])]
        after = after or self.requantize(w[1], 0)
        made = region_of(
            *("matmul_integer", given, {"zero_point": 3, **attrs}), consts=(1, 2), epilogue=after, machine=self.machine
        )
        return known(made)

    def bias(self, count: int) -> np.ndarray:
        return self.array("int32", (count,), 0) % 20000 - 10000

    def requantize(
        self,
        channels: int,
        rank: int,
        *,
        one: bool = False,
        residual: Sequence[int] = (),
        to: str = "int8",
        **bounds: Any,
    ) -> Any:
        """An epilogue; of one multiplier, or one for each channel; a residual of that shape is added."""
        shape = () if one else (channels, *[1] * (rank - 2)) if rank else (channels,)
        factor = (self.rng.random(shape) * 0.002 + 0.0003).astype(np.float32)
        zero = int(self.rng.integers(-128, 128)) + (128 if to == "uint8" else 0)

        def add(graph: Any, y: Any) -> Any:
            held = graph.const(np.asarray(factor)) if one else extra_input(graph, factor)
            steps = graph.add("requantize", y, held, **{"to": to, "zero_point": zero, **bounds})
            if not residual:
                return steps
            weights = [graph.const(np.array(v, np.int32)) for v in (405404, 1072283)]
            other = extra_input(graph, self.array(to, residual))
            zeros = {"a_zero_point": -9, "b_zero_point": 4, "zero_point": -128, "shift": 20}
            return graph.add("add_integer", other, steps, *weights, to=to, low=-128, **zeros)

        return add


def known(made: Made) -> Made:
    """Multipliers are constants, as everywhere but in training."""
    region, arrays = made
    pairs = zip(region.inputs, arrays, strict=True)
    return replace(region, inputs=tuple(replace(o, const=a) if a.dtype == np.float32 else o for o, a in pairs)), arrays


def proposals(region: Region) -> list[Plan]:
    found = [p for p in plans(region) if p.template in ("dsp_conv", "dsp_matmul")]
    assert found, "no plan"
    small = region.inputs[1].type.size < 16
    assert small or plans(region)[0].template.startswith("dsp_"), "another template is thought to be faster"
    return found


def check(machine: Machine, cases: Sequence[Made]) -> Result:
    """All plans of all regions, each also with the output where a plan lets it lie over an input."""
    runs, wanted = [], []
    for region, arrays in cases:
        want = interpret(region.body, list(arrays))
        for plan in proposals(region):
            runs.append(Run(region, arrays, plan))
            runs += [Run(region, arrays, plan, (i, lead)) for i, _, lead in plan.overlaps]
            runs += [Run(region, arrays, plan, (i, 0)) for i, _ in plan.inplace]
            wanted += [want] * (len(runs) - len(wanted))
    found = run_on(machine, runs)
    for run, have, want in zip(runs, found.outputs, wanted, strict=True):
        what = f"{run.plan.template} {run.plan.detail} {[o.type.dims for o in run.region.inputs]} over {run.over}"
        for one, other in zip(have, want, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=what)
    return found


def few(machine: Machine) -> list[Made]:
    make = Maker(machine, 1)
    return [
        make.conv((1, 16, 5, 5), (10, 16, 1, 1)),
        make.conv((1, 8, 6, 5), (6, 8, 3, 3), pads=(1, 1, 1, 1), after=make.requantize(6, 4, residual=(1, 6, 6, 5))),
        make.conv((1, 3, 9, 9), (5, 3, 3, 3), pads=(0, 0, 1, 1), strides=(2, 2), dtype="uint8"),
        make.matmul((1, 20), (20, 12), after=make.requantize(12, 0, one=True)),
    ]


@pytest.mark.slow
def test_a_few_layers_of_each_kind():
    check(emulated("cortex-m4"), few(emulated("cortex-m4")))


def many(machine: Machine) -> list[Made]:
    """What is at the edges: odd numbers of everything, types, bounds, extreme weights and biases, orders of axes."""
    make = Maker(machine, 2)
    plain = lambda graph, y: y  # noqa: E731
    dead = make.array("int8", (16, 8, 1, 1), -127)
    dead[[1, 2, 3, 7, 8, 15]] = 0
    dead_odd = make.array("int8", (9, 4, 3, 3), -127)
    dead_odd[[0, 5, 6]] = 0
    big = np.where(np.arange(16) % 3 == 0, 1 << 30, -5000).astype(np.int32)
    planes = lambda rank: tuple(range(rank))  # noqa: E731
    ends = np.where(make.array("int8", (6, 12, 1, 1)) > 0, 127, -128).astype(np.int8)
    edge = {"pads": (1, 1, 1, 1)}
    wide = make.array("uint8", (6, 9, 1, 1)).astype(np.int16) - np.arange(6, dtype=np.int16).reshape(6, 1, 1, 1) * 40
    wide3 = make.array("uint8", (5, 3, 3, 3)).astype(np.int16) - np.int16(120)
    return [
        make.conv((1, 9, 4, 5), (6, 9, 1, 1), weights=wide, dtype="uint8", after=make.requantize(6, 4, to="uint8")),
        make.conv((1, 3, 5, 5), (5, 3, 3, 3), weights=wide3, dtype="uint8", **edge),
        make.conv((1, 3, 5, 5), (5, 3, 3, 3), weights=wide3, after=make.requantize(5, 4, one=True), **edge),
        make.conv((1, 8, 5, 4), (6, 8, 1, 1), weights=np.concatenate([wide[:, :7], wide[:, :1]], 1)),
        make.matmul((1, 12), (12, 8), b_zero_point=100, after=make.requantize(8, 0, one=True)),
        make.matmul((4, 12), (12, 8), b_zero_point=-100),
        *few(machine),
        make.conv((1, 7, 5, 3), (3, 7, 1, 1)),
        make.conv((1, 1, 11, 7), (8, 1, 10, 4), pads=(4, 1, 5, 1), strides=(2, 2)),
        make.conv((2, 4, 5, 5), (4, 4, 3, 3), **edge),
        make.conv((2, 4, 4, 5), (6, 4, 1, 1), dtype="uint8", after=make.requantize(6, 4, to="uint8")),
        make.conv((1, 4, 9, 8), (4, 4, 3, 3), dilations=(2, 3), pads=(2, 3, 2, 3)),
        make.conv((1, 5, 9, 8), (4, 5, 3, 2), dilations=(2, 1), pads=(1, 0, 3, 2)),
        make.conv((1, 16, 8, 8), (8, 16, 1, 1), strides=(2, 2)),
        make.conv((1, 8, 7, 7), (4, 8, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
        make.conv((1, 6, 8, 8), (4, 6, 1, 1), strides=(3, 2), pads=(1, 2, 0, 1)),
        make.conv((1, 4, 20), (5, 4, 4), strides=(3,), pads=(1, 2)),
        make.conv((1, 4, 4, 4), (4, 4, 3, 3), order=planes, **edge),
        make.conv((1, 8, 4, 4), (4, 8, 1, 1), order=planes),
        make.conv((1, 8, 5, 4), (4, 8, 1, 1), after=plain),
        make.conv((1, 4, 5, 4), (7, 4, 2, 2), after=plain),
        make.conv((1, 8, 5, 4), (5, 8, 1, 1), after=make.requantize(5, 4, low=-100, high=90)),
        make.conv((1, 8, 5, 4), (4, 8, 3, 3), after=make.requantize(4, 4, one=True, low=-128), **edge),
        make.conv((1, 8, 5, 4), (4, 8, 1, 1), after=make.requantize(4, 4, residual=(1, 4, 5, 4))),
        make.conv((1, 4, 6, 6), (4, 4, 3, 3), after=make.requantize(4, 4, residual=(1, 4, 6, 6)), **edge),
        make.conv((1, 12, 3, 3), (6, 12, 1, 1), weights=ends),
        make.conv((1, 12, 3, 3), (6, 12, 1, 1), weights=ends, dtype="uint8", after=make.requantize(6, 4, one=True)),
        make.conv((1, 8, 5, 4), (16, 8, 1, 1), weights=dead),
        make.conv((1, 8, 5, 4), (16, 8, 1, 1), weights=dead, bias=big),
        make.conv((1, 8, 5, 4), (16, 8, 1, 1), bias=big),
        make.conv((1, 4, 5, 4), (9, 4, 3, 3), weights=dead_odd, **edge),
        make.conv((1, 8, 3, 2), (4, 8, 1, 1), weights=np.zeros((4, 8, 1, 1), np.int8)),
        make.conv((1, 20, 2, 1), (4, 20, 1, 1)),
        make.conv((1, 28, 1, 1), (6, 28, 1, 1)),
        make.matmul((1, 64), (64, 10)),
        make.matmul((1, 13), (13, 7)),
        make.matmul((1, 24), (24, 8), after=plain),
        make.matmul((5, 16), (16, 6)),
        make.matmul((2, 3, 12), (12, 5), zero_point=-128),
        make.matmul((2, 8), (8, 4), b_zero_point=1, after=make.requantize(4, 0, one=True)),
        make.matmul((1, 640), (640, 4), after=make.requantize(4, 0, one=True)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m7", "cortex-m33"])
def test_many_layers(name: str):
    machine = emulated(name)
    check(machine, many(machine))


@pytest.mark.slow
def test_random_layers():
    machine = emulated("cortex-m4")
    make = Maker(machine, 3)
    cases = []
    for _ in range(40):
        c, n = (int(v) for v in make.rng.integers(1, 20, 2))
        h, w = (int(v) for v in make.rng.integers(1, 9, 2))
        kernel = tuple(int(v) for v in make.rng.integers(1, 4, 2))
        pads = tuple(int(v) for v in make.rng.integers(0, 3, 4))
        if any(e + a + b < k for e, a, b, k in zip((h, w), pads[:2], pads[2:], kernel, strict=True)):
            continue
        strides = tuple(int(v) for v in make.rng.integers(1, 3, 2))
        dtype = ("int8", "uint8")[int(make.rng.integers(2))]
        low = int(make.rng.choice([-128, -127]))
        cases.append(make.conv((1, c, h, w), (n, c, *kernel), pads=pads, strides=strides, dtype=dtype, low=low))
    check(machine, cases)


@pytest.mark.slow
def test_a_multiplication_takes_less_than_an_instruction():
    """A 1x1 convolution of 64 channels to 64: CMSIS-NN takes 2.09 a product (../shared/CMSIS-NN.md)."""
    machine = emulated("cortex-m4")
    region, arrays = Maker(machine, 4).conv((1, 64, 25, 5), (64, 64, 1, 1))
    plan = proposals(region)[0]
    found = run_on(machine, [Run(region, arrays, plan)])
    assert found.instructions[plan.phases[0].spec.name] < 0.95 * 64 * 64 * 125


@pytest.mark.slow
def test_channels_that_are_the_same_everywhere_are_not_worked_out():
    machine = emulated("cortex-m4")
    make = Maker(machine, 5)
    weights = make.array("int8", (32, 32, 1, 1), -127)
    weights[::2] = 0
    counts = []
    for given in (make.array("int8", (32, 32, 1, 1), -127), weights):
        region, arrays = make.conv((1, 32, 4, 6), (32, 32, 1, 1), weights=given)
        plan = proposals(region)[0]
        counts.append(run_on(machine, [Run(region, arrays, plan)]).instructions[plan.phases[0].spec.name])
        assert (
            sum(c.nbytes for c in plan.consts) < 1.1 * weights.any(axis=(1, 2, 3)).sum() / 16 * 1024 or not counts[1:]
        )
    assert counts[1] < 0.62 * counts[0]


def test_layers_of_other_shapes_share_a_kernel():
    make = Maker(M4, 6)
    after = make.requantize(16, 4, one=True)
    shapes = [((1, 16, 4, 4), (16, 16, 1, 1)), ((1, 32, 5, 3), (16, 32, 1, 1)), ((1, 16, 7, 9), (16, 16, 1, 1))]
    names = {proposals(make.conv(*s, after=after)[0])[0].phases[0].spec.name for s in shapes}
    assert len(names) == 1


def test_weights_take_a_byte_each():
    make = Maker(M4, 7)
    for region, arrays in (make.conv((1, 16, 4, 4), (16, 16, 3, 3)), make.matmul((1, 128), (128, 64))):
        for plan in proposals(region):
            words = plan.consts[0].nbytes
            assert words <= arrays[1].size + arrays[2].nbytes + 4 * arrays[2].size + 64, plan.detail


def test_scratch_is_what_three_points_read():
    region, _ = Maker(M4, 8).conv((1, 64, 8, 8), (64, 64, 3, 3), pads=(1, 1, 1, 1))
    assert proposals(region)[0].worker_bytes <= 3 * 2 * 64 * 9 + 24


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_others_are_left_to_others(dtype: str):
    make = Maker(M4, 9)
    region, _ = make.conv((1, 8, 4, 4), (4, 8, 1, 1))
    x = replace(region.inputs[0], type=region.inputs[0].type.with_dtype(dtype))
    assert dsp_conv.plan(replace(region, inputs=(x, *region.inputs[1:]))) == []
    weights = Operand(region.inputs[1].type, region.inputs[1].strides)
    assert dsp_conv.plan(replace(region, inputs=(region.inputs[0], weights, *region.inputs[2:]))) == []
    assert dsp_conv.plan(replace(region, machine=targets.get("cortex-m55"))) == []
    assert dsp_conv.plan(replace(region, machine=targets.get("armv7"))) == []
    grouped, _ = make.conv((1, 8, 4, 4), (4, 4, 1, 1), group=2)
    assert dsp_conv.plan(grouped) == []
    wide = np.full((4, 8, 1, 1), 200, np.int16)
    assert dsp_conv.plan(make.conv((1, 8, 4, 4), (4, 8, 1, 1), weights=wide, after=lambda graph, y: y)[0]) == []
    wide[0] = -200
    wide[0, 0] = 200
    assert dsp_conv.plan(make.conv((1, 8, 4, 4), (4, 8, 1, 1), weights=wide)[0]) == []
    product, _ = make.matmul((2, 8), (8, 4))
    columns = replace(product.inputs[0], strides=(1, 2))
    assert dsp_matmul.plan(replace(product, inputs=(columns, *product.inputs[1:]))) == []


LEADS = [
    ((1, 4, 5, 6), (4, 4, 1, 1), {}),
    ((1, 2, 5, 6), (7, 2, 1, 1), {}),
    ((1, 7, 5, 6), (2, 7, 1, 1), {}),
    ((2, 3, 4, 4), (4, 3, 1, 1), {}),
    ((1, 3, 6, 7), (3, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 3, 6, 7), (5, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 3, 9, 8), (8, 3, 3, 3), {"pads": (0, 0, 1, 1), "strides": (2, 2)}),
    ((1, 3, 8, 8), (4, 3, 1, 1), {"strides": (2, 2)}),
    ((1, 2, 9, 9), (4, 2, 3, 2), {"dilations": (2, 3), "pads": (2, 0, 2, 3)}),
    ((1, 2, 12), (3, 2, 4), {"strides": (2,), "pads": (1, 2)}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), LEADS, ids=str)
def test_the_output_may_lie_as_far_over_the_input_as_no_read_byte_is_lost(x: Any, w: Any, attrs: Any):
    """The lead beside the least one that a walk over all bytes finds."""
    region, _ = Maker(M4, 10).conv(x, w, **attrs)
    plan = proposals(region)[0]
    ((_, _, lead),) = plan.overlaps
    assert lead == brute_lead(region, plan.phases[0].spec.config["points"])


def brute_lead(region: Region, points: int) -> int:
    """By sets of bytes: tile by tile, what is read, then what is written."""
    g = Geometry(region)
    source, out = region.inputs[0], region.outputs[0]
    rank = source.type.rank - 2
    tiles: list[tuple[set[int], set[int]]] = []
    for n in range(g.batch):
        places = list(np.ndindex(*region.anchor_type.dims[2:]))
        for first in range(0, len(places), points):
            read: set[int] = set()
            written: set[int] = set()
            for place in places[first : first + points]:
                written |= {
                    n * out.strides[0]
                    + c * out.strides[1]
                    + sum(p * s for p, s in zip(place, out.strides[2:], strict=True))
                    for c in range(g.columns)
                }
                for tap in np.ndindex(*region.inputs[1].type.dims[2:]):
                    attrs = region.attrs
                    at = [
                        p * attrs["strides"][i] - attrs["pads"][i] + t * attrs["dilations"][i]
                        for i, (p, t) in enumerate(zip(place, tap, strict=True))
                    ]
                    if all(0 <= a < e for a, e in zip(at, source.type.dims[2:], strict=True)):
                        base = n * source.strides[0] + sum(a * s for a, s in zip(at, source.strides[2:], strict=True))
                        read |= {base + c * source.strides[1] for c in range(g.depth)}
            tiles.append((read, written))
    assert rank in (1, 2)

    def safe(lead: int) -> bool:
        gone: set[int] = set()
        for read, written in tiles:
            if gone & {r + lead for r in read}:
                return False
            gone |= written
        return True

    return next(lead for lead in range(1 << 16) if all(safe(lead + more) for more in range(3)))


def test_leads_count_gaps_between_pixels():
    """A slice of the channels of a wider tensor."""
    make = Maker(M4, 11)
    region, _ = make.conv((1, 4, 3, 5), (4, 4, 1, 1))
    wide = replace(region.outputs[0], strides=dense((1, 4, 3, 5), channels_last(4), pad=4))
    apart = replace(region, outputs=(wide,))
    g = Geometry(apart)
    if g.flat(apart, epilogue_inputs(apart)):
        g.flatten()
    assert _dsp_lead.lead_of(g, apart, 3) > 0
