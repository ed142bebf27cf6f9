"""Integer contractions whose weights have zeros, bit for bit as the op table says, and what their lists are like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness import check_region, extra_input, machines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.kernels.templates import plans
from nervure.compiler.kernels.templates._dot_gathers import PART, Gathers, worth
from nervure.compiler.kernels.templates._dot_picks import NIBBLE, Kind, Picks, Sequences, kinds, rows
from nervure.compiler.kernels.templates._dot_plan import kit
from nervure.compiler.kernels.templates._tile import Columns
from nervure.compiler.library import run_elsewhere
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.prune.patterns import Pattern, from_matrix, parse, to_matrix
from nervure.compiler.types import type_of
from nervure.errors import MissingTool
from nervure.targets import MACHINES, x86
from test_dot import ACTIVATIONS, SHAPES, conv, product, requantized

SYSTEMS = [m for m in MACHINES.values() if m.system == "linux"]  # others have templates of their own

PATTERNS = {
    "blocks": (Pattern(4, 16), 0.75),
    "2:4": (Pattern(1, 1, 2, 4), None),
    "1:4": (Pattern(1, 1, 1, 4), None),
    "2:4x16": (Pattern(1, 16, 2, 4), None),
    "rows": (Pattern(1, 16), 0.6),
    "unstructured": (Pattern(), 0.9),
}
WIDER = [*machines(), *([targets.get("x86-64-v4")] if machines()[0].lanes == 16 else [])]
CONVOLUTIONS = [s for s in SHAPES if s[-1] == 1 and s[1][1] >= 8]
PRODUCTS = [
    ((1, 640), (640, 128)),
    ((1, 67), (67, 10)),
    ((16, 65), (65, 40)),
    ((2, 3, 33), (33, 20)),
    ((70, 64), (64, 64)),
]


SHARES = [  # the machine at hand takes all, the others their part
    pytest.param(number, name, machine, id=f"{number}-{name}-{machine.name}")
    for number in range(len(CONVOLUTIONS))
    for name in PATTERNS
    for i, machine in enumerate(WIDER)
    if i == 0 or number % len(WIDER) == i
]


def masked(region, arrays, pattern, sparsity, seed=0):
    """The region with some of its weights zero."""
    op = "matmul" if region.op == "matmul_integer" else "conv"
    weights = arrays[1] - region.attrs.get("b_zero_point", 0)
    matrix = to_matrix(weights, op)
    channels = matrix.shape[0] if op == "matmul" else weights.shape[1]
    mask = pattern.mask(np.random.default_rng(seed).random(matrix.shape), channels, sparsity)
    kept = np.where(from_matrix(mask, weights.shape, op), arrays[1], region.attrs.get("b_zero_point", 0))
    return with_weights(region, arrays, kept.astype(arrays[1].dtype))


def with_weights(region, arrays, weights):
    inputs = tuple(replace(o, const=weights) if i == 1 else o for i, o in enumerate(region.inputs))
    return replace(region, inputs=inputs), [arrays[0], weights, *arrays[2:]]


def sparse_plans(region):
    return [p for p in plans(region) if p.template == "dot_sparse"]


@pytest.mark.parametrize("number, name, machine", SHARES)
def test_convolution(number, name, machine):
    shape = CONVOLUTIONS[number]
    dtype = sorted(ACTIVATIONS)[(number + len(name)) % 2]
    epilogue = requantized(shape[1][0], len(shape[0]) - 2, dtype)
    made = conv(shape, machine, dtype, zero=-7 if dtype == "int8" else 130, epilogue=epilogue)
    region, arrays = masked(*made, *PATTERNS[name])
    if sparse_plans(region) or name in ("blocks", "1:4"):
        check_region(region, arrays, template="dot_sparse")


@pytest.mark.parametrize("machine", WIDER, ids=lambda m: m.name)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_product(shapes, name, machine):
    for dtype in ACTIVATIONS:
        region, arrays = masked(*product(*shapes, machine, dtype), *PATTERNS[name])
        if sparse_plans(region) or name in ("blocks", "1:4"):
            check_region(region, arrays, template="dot_sparse")


@pytest.mark.parametrize("machine", WIDER, ids=lambda m: m.name)
def test_zeros_that_are_a_zero_point(machine):
    """As in files whose weights are uint8: what is b_zero_point there is a zero."""
    made = product((9, 64), (64, 70), machine, weights=(20, 130), b_zero=120)
    region, arrays = masked(*made, *PATTERNS["1:4"])
    check_region(region, arrays, template="dot_sparse")
    made = product((9, 64), (64, 70), machine, weights=(0, 255), b_zero=120)
    assert not sparse_plans(masked(*made, *PATTERNS["1:4"])[0])  # more than 8 bits: left to others


@pytest.mark.parametrize("machine", WIDER, ids=lambda m: m.name)
def test_a_residual_and_channels_of_a_wider_buffer(machine):
    residual = np.random.default_rng(1).integers(0, 256, (1, 32, 14, 14)).astype(np.uint8)
    weights = [np.asarray(v, np.int32) for v in (70000, 40000)]

    def epilogue(g, y):
        steps = requantized(32, 2, "uint8")(g, y)
        bounds = {"a_zero_point": 1, "b_zero_point": 2, "zero_point": 9, "low": 9, "high": None, "to": "uint8"}
        return g.add("add_integer", steps, extra_input(g, residual), *(extra_input(g, v) for v in weights), **bounds)

    for name in ("blocks", "2:4"):
        region, arrays = masked(*conv(SHAPES[0], machine, epilogue=epilogue, pad=5), *PATTERNS[name])
        check_region(region, arrays, template="dot_sparse")
        assert all((4, 0) in p.inplace for p in sparse_plans(region))


@pytest.mark.parametrize("machine", WIDER, ids=lambda m: m.name)
@pytest.mark.parametrize("kept", ["nothing", "one weight", "one column", "one row"])
def test_hardly_anything_is_left(kept, machine):
    for made in (conv(SHAPES[0], machine), product((5, 64), (64, 40), machine)):
        region, arrays = made
        weights = np.zeros_like(arrays[1])
        where = {"nothing": np.s_[:0], "one weight": np.s_[3, 5], "one column": np.s_[:, 7], "one row": np.s_[9]}[kept]
        weights[where] = arrays[1][where]
        check_region(*with_weights(region, arrays, weights), template="dot_sparse")


def test_dense_weights_are_left_to_others():
    for made in (conv(SHAPES[0], machines()[0]), product((16, 640), (640, 64), machines()[0])):
        assert not sparse_plans(made[0])
        assert not sparse_plans(masked(*made, Pattern(), 0.1)[0])


def test_computed_weights_and_groups_are_left_to_others():
    region, arrays = masked(*conv(SHAPES[0], machines()[0]), *PATTERNS["1:4"])
    assert not sparse_plans(replace(region, inputs=tuple(replace(o, const=None) for o in region.inputs)))
    grouped = next(s for s in SHAPES if s[-1] > 1)
    region, arrays = conv(grouped, machines()[0])
    assert not sparse_plans(with_weights(region, arrays, np.zeros_like(arrays[1]))[0])


def test_extremes_do_not_saturate():
    for machine in WIDER:
        for dtype, value in (("uint8", 255), ("int8", -128)):
            for name in ("blocks", "2:4") if dtype == "uint8" else ("2:4x16",):
                region, arrays = masked(*conv(CONVOLUTIONS[2], machine, dtype, zero=0), *PATTERNS[name])
                arrays[0][...], weights = value, np.where(arrays[1] != 0, -128, 0).astype(np.int8)
                check_region(*with_weights(region, arrays, weights), template="dot_sparse")


@settings(max_examples=14, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_drawn_convolutions(data):
    draw = data.draw
    depth, columns = draw(st.integers(1, 80)), draw(st.integers(1, 70))
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    dilations = [draw(st.integers(1, 2)) for _ in range(2)]
    pads = tuple(draw(st.integers(0, 3)) for _ in range(4))
    size = [
        draw(st.integers(max(1, (k - 1) * d + 1 - pads[i] - pads[i + 2]), 18))
        for i, (k, d) in enumerate(zip(kernel, dilations, strict=True))
    ]
    dtype = draw(st.sampled_from(sorted(ACTIVATIONS)))
    low, high = ACTIVATIONS[dtype]
    x = (draw(st.integers(1, 2)), depth, *size)
    shape = (x, (columns, depth, *kernel), tuple(draw(st.integers(1, 3)) for _ in range(2)), pads, tuple(dilations), 1)
    options = {"zero": draw(st.integers(low, high)), "pad": draw(st.sampled_from([0, 0, 3]))}
    options["order"] = draw(st.sampled_from([lambda rank: (0, *range(2, rank), 1), range]))
    if draw(st.booleans()):
        options["epilogue"] = requantized(columns, 2, draw(st.sampled_from(sorted(ACTIVATIONS))))
    region, arrays = conv(shape, draw(st.sampled_from(WIDER)), dtype, **options)
    pattern = Pattern(draw(st.integers(1, 5)), draw(st.sampled_from([1, 1, 4, 16, 20])))
    region, arrays = masked(region, arrays, pattern, draw(st.sampled_from([0.5, 0.8, 0.97])), draw(st.integers(0, 9)))
    if sparse_plans(region):
        check_region(region, arrays, template="dot_sparse")


# -- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window, fold", [(64, 4), (32, 4), (16, 4), (8, 4), (8, 2)])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_a_schedule_holds_every_weight_once(window, fold, density):
    rng = np.random.default_rng(0)
    matrix = (rng.integers(1, 127, (3, 71, 21)) * (rng.random((3, 71, 21)) < density)).astype(np.int8)
    valid = (8, 8, 5)
    sequences = Sequences(matrix, 8, valid)
    made = sequences.schedule(window, fold)
    found = np.zeros((3, 71, 24), np.int64)
    for group, tap, start, number, weight in zip(
        made.group, made.tap, made.start, made.number, made.weight, strict=True
    ):
        assert 0 <= start <= 71 - window and number.max() < window
        for lane in range(8):
            for n, w in zip(number[lane], weight[lane], strict=True):
                found[tap, start + n, group * 8 + lane] += w
    np.testing.assert_array_equal(found[..., :21], matrix)
    assert (np.diff(made.group) >= 0).all()
    assert sequences.fewest(fold) <= len(made.group) <= 3 * 3 * -(-71 // fold)


@pytest.mark.parametrize("machine", [targets.get(n) for n in ("x86-64-v3", "rpi5", "armv7")], ids=lambda m: m.name)
@pytest.mark.parametrize("run", [9, 70, 700])
def test_gathers_bring_together_what_counts(run, machine):
    """What steps see of a random A are the sums that all weights give."""
    rng = np.random.default_rng(run)
    found = kit(machine, machine.steps_dtype)
    alive = np.repeat(rng.random((2, run, 3)) < 0.4, 8, axis=2)[..., :20]
    matrix = (rng.integers(-127, 128, alive.shape) * alive).astype(np.int8)
    columns = Columns(20, 4, 2, (4,) * 5, (4,) * 5)
    window, size = worth(machine, found, run)
    form = Gathers(matrix, found.fold, window, size, columns)
    a, made = rng.integers(0, 255, 2 * run), form.schedule
    places, ends = form.places(np.array([0, run]), columns), form.ends()
    for parts, (weights, _), (first, _, _, valid) in zip(
        form.parts, form.packed(columns), columns.slices(), strict=True
    ):
        sums, at = np.zeros(weights.shape[1], np.int64), 0
        for p in parts:
            held = np.zeros(PART + 64, np.int64)
            for e in range(p.first, p.first + p.gathers):
                held[ends[e] : ends[e] + size] = a[places[e] + made.number[e, 0]]
            own = held[: p.steps * found.fold].reshape(-1, 1, found.fold)
            sums, at = sums + (weights[at : at + p.steps] * own).sum(axis=(0, 2)), at + p.steps
        wanted = a @ matrix.reshape(-1, 20).astype(np.int64)[:, first : first + sum(valid)]
        np.testing.assert_array_equal(sums[: sum(valid)], wanted)


def test_small_artifacts_take_no_more_bytes():
    made = product((128, 256), (256, 256), machines()[0])
    region, arrays = masked(*made, Pattern(), 0.45)
    for plan in sparse_plans(replace(region, small=True)):
        assert plan.consts[0].nbytes + plan.consts[-1].nbytes <= arrays[1].nbytes


@pytest.mark.parametrize("keep", [1, 2])
def test_a_pattern_for_each_output_takes_no_more_steps_than_it_keeps(keep):
    scores = np.random.default_rng(2).random((64, 16))
    matrix = Pattern(1, 1, keep, 4).mask(scores, 64).astype(np.int8)[None]
    form = Picks(Sequences(matrix, 16, (16,)), Kind(16, 6.0), 4)
    assert len(form.schedule.group) == 64 * keep // 4 // 4


@pytest.mark.parametrize("machine", [*SYSTEMS, x86.BASE], ids=lambda m: m.name)
def test_every_machine_picks(machine):
    found = kit(machine, "uint8")
    tried = kinds(machine, found, 640)
    assert tried and tried[0].window in (8, 16)
    for kind in tried:
        for size, row in rows(machine, found, kind.window).items():
            assert row.lanes >= size and (kind.window <= NIBBLE or row.kind == "pick")


@pytest.mark.parametrize("machine", SYSTEMS, ids=lambda m: m.name)
@pytest.mark.parametrize("text, part", [("block", 0.25), ("1:4", 0.375), ("2:4", 0.75)])
def test_bytes_and_estimates_fall_with_the_weights(text, part, machine):
    """On every machine, blocks of its own width, and N:M for each output."""
    pattern = parse(text, machine, "int8")
    made = conv(((1, 128, 7, 7), (128, 128, 1, 1), (1, 1), (0,) * 4, (1, 1), 1), machine, machine.steps_dtype)
    region, _ = masked(*made, pattern, 0.75)
    dense = next(p for p in plans(region) if p.template == "dot_conv")
    plan = next(p for p in plans(region) if text == "2:4" or p.template == "dot_sparse")
    if plan.template != "dot_sparse":  # two shuffles and two products for four: no gain where they share their ports
        assert plan is plans(region)[0] or plan.template == "dot_conv"
        return
    assert plan.cost < dense.cost
    step = machine.lanes * kit(machine, machine.steps_dtype).fold
    places = 2 / step * (part if text == "block" else part / 1.5)  # two bytes a step
    assert sum(c.nbytes for c in plan.consts) < (part + places + 0.08) * sum(c.nbytes for c in dense.consts)


def test_layers_of_one_shape_share_their_kernel():
    made = product((16, 640), (640, 128), machines()[0])
    two = [masked(*made, Pattern(4, 16), 0.75, seed)[0] for seed in (1, 2)]
    names = {sparse_plans(region)[0].phases[0].spec.name for region in two}
    assert len(names) == 1
    assert two[0].inputs[1].const is not two[1].inputs[1].const


# -- elsewhere -------------------------------------------------------------------------------------------------------


def entry(region, arrays, name):
    """The region's anchor and a requantization as an entry point of its own."""
    graph = Graph(name)
    value = graph.input("x", type_of(arrays[0]))
    sums = graph.add(region.op, value, *(graph.const(a, f"c{i}") for i, a in enumerate(arrays[1:])), **region.attrs)
    graph.output(graph.add("requantize", sums, graph.const(np.array(0.002, np.float32), "m"), zero_point=4, to="int8"))
    return graph, arrays[0]


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ["rpi3", "rpi5", "armv7"])
def test_on_arm(target: str, tmp_path: Path) -> None:
    machine, items = targets.get(target), []
    for name, pattern in PATTERNS.items():
        for dtype in ACTIVATIONS:
            made = [conv(shape, machine, dtype, zero=9) for shape in CONVOLUTIONS[:8]]
            made += [product(*shapes, machine, dtype) for shapes in PRODUCTS]
            for i, one in enumerate(made):
                items.append(entry(*masked(*one, *pattern), f"{name.replace(':', '_')}_{dtype}_{i}"))
    entries = [EntryGraph(graph, graph.name) for graph, _ in items]
    program, _ = plan_program(entries, machine, Options())
    details = [s.detail for e in program.entries for s in e.steps]
    for form in ("steps of", "picks of", "gathered of"):
        assert sum(form in d for d in details) > 20
    artifact = compile_entries(entries, machine, tmp_path / "sparse.so", Options(check=True))
    for graph, x in items:
        try:
            (got,) = run_elsewhere(artifact, machine, {"x": x}, entry=graph.name)
        except MissingTool as missing:
            pytest.skip(str(missing))
        (expected,) = interpret(graph, [x])
        np.testing.assert_array_equal(got.astype(expected.dtype), expected, err_msg=graph.name)
