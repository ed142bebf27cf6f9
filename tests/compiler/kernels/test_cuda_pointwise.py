"""Elementwise and transposed regions on a GPU: runs of several elements, odd sizes, views, several results."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from cuda_images import counted, needs_compiler
from harness import channels_last, check_region, extra_input, region_of
from nervure.compiler.kernels import device, worker
from nervure.compiler.kernels.templates import _cuda_walk, plans
from nervure.targets import get

MACHINE = get("cuda-sm80")


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """Small tensors, too, are taken several elements at a time."""
    monkeypatch.setattr(_cuda_walk, "_FEW", 0)


def numbers(shape, dtype="float32", seed=0):
    found = np.random.default_rng(seed).standard_normal(shape) * 3
    return (found * (1 if dtype.startswith("float") else 30)).astype(dtype)


def text(region, template="cuda_pointwise"):
    """The kernel in CUDA C++."""
    draft = next(p for p in plans(region) if p.template == template).phases[0]
    name, config = json.loads(draft.spec.canonical)
    return device.text(worker.written(name, config, draft.spec.name, MACHINE.record()), [])


def chain(*arrays):
    """A residual, a vector of one axis and a number, an activation."""

    def epilogue(graph, y):
        for array in arrays:
            y = graph.add("add", y, extra_input(graph, array))
        return graph.add("silu", y)

    return epilogue


@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (3, 5, 7, 3), (1, 1, 1, 1), (1001,), (33, 4)], ids=str)
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_chains(shape, pad):
    extras = (numbers(shape, seed=1), numbers(shape[-1:], seed=2), numbers((), seed=3))
    region, arrays = region_of("mul", [numbers(shape)] * 2, {}, pad=pad, epilogue=chain(*extras), machine=MACHINE)
    check_region(region, arrays)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int64", "bool"])
def test_types(dtype):
    op = "logical_and" if dtype == "bool" else "maximum"
    arrays = [numbers((4, 36), seed=i).astype(dtype) for i in range(2)]
    check_region(*region_of(op, arrays, {}, machine=MACHINE))


def test_channels_against_rows():
    """A channel's bias in channels-last memory, read along the results' rows."""
    bias = numbers((12, 1, 1), seed=1)
    region, arrays = region_of(
        "relu",
        [numbers((2, 12, 5, 5))],
        {},
        order=lambda rank: channels_last(rank) if rank == 4 else range(rank),
        epilogue=lambda g, y: g.add("add", y, extra_input(g, bias)),
        machine=MACHINE,
    )
    assert text(region)["source"].count("nv_load(") == 2
    check_region(region, arrays)


def test_runs_of_sixteen_bytes():
    for dtype, lanes in (("float32", 4), ("float16", 8), ("int8", 16)):
        region, _ = region_of("add", [numbers((8, 64), dtype)] * 2, {}, machine=MACHINE)
        assert set(re.findall(r"nv_(?:load|store)\(.*, (\d+)\);", text(region)["source"])) == {str(lanes)}


def test_several_results_and_the_same_place():
    def both(graph, y):
        return [graph.add("exp", y), graph.add("neg", y)]

    region, arrays = region_of("tanh", [numbers((6, 10))], {}, epilogue=both, machine=MACHINE)
    assert plans(region)[0].inplace == ((0, 0), (0, 1))
    check_region(region, arrays)
    turned, _ = region_of("transpose", [numbers((6, 6))], {"perm": (1, 0)}, machine=MACHINE)
    assert all(p.inplace == () for p in plans(turned))


def test_integers_round_each_product():
    x, scale = numbers((4, 40)), np.float32(0.07)
    region, arrays = region_of("quantize", [x, scale, np.int8(3)], {"to": "int8"}, machine=MACHINE)
    assert not text(region)["contract"]
    check_region(region, arrays)


def test_not_a_number_wins():
    x = numbers((40,))
    x[::7] = np.nan
    region, arrays = region_of(
        "relu", [x], {}, epilogue=lambda g, y: g.add("clip", y, low=-1.0, high=1.0), machine=MACHINE
    )
    check_region(region, arrays)


@pytest.mark.parametrize(
    ("shape", "perm", "dtype"),
    [
        ((2, 40, 50), (0, 2, 1), "float32"),
        ((3, 70, 5, 65), (0, 3, 2, 1), "int8"),
        ((33, 47), (1, 0), "float64"),
        ((2, 3, 35, 33), (0, 2, 3, 1), "float16"),
    ],
    ids=str,
)
def test_transposes(shape, perm, dtype):
    x = numbers(shape, dtype)
    extra = numbers(np.transpose(x, perm).shape, dtype, 1)
    region, arrays = region_of(
        "transpose",
        [x],
        {"perm": perm},
        epilogue=lambda g, y: g.add("add", y, extra_input(g, extra)),
        machine=MACHINE,
    )
    check_region(region, arrays)


def test_large_transposes_turn_tiles():
    x = np.zeros((512, 1024), np.float32)
    region, _ = region_of("transpose", [x], {"perm": (1, 0)}, machine=MACHINE)
    assert plans(region)[0].template == "cuda_transpose"


@needs_compiler
@pytest.mark.parametrize("op", ["exp", "tanh", "erf", "pow", "sigmoid", "gelu", "log1p", "sin"])
def test_functions_have_no_local_memory(op):
    arrays = [numbers((8, 64))] * (2 if op == "pow" else 1)
    region, _ = region_of(op, arrays, {"approximate": "none"} if op == "gelu" else {}, machine=MACHINE)
    counted(region, "cuda_pointwise")


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_transposes_have_no_local_memory(dtype):
    region, _ = region_of("transpose", [numbers((128, 128), dtype)], {"perm": (1, 0)}, machine=MACHINE)
    counted(region, "cuda_transpose")
