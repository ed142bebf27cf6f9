"""Matrix products on a GPU: agreement with the op table's references on the GPU that the CPU plays, and what their
machine code takes on each architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from cuda_images import MACHINES, counted, needs_compiler, plan_of
from harness import check_region, extra_input, region_of
from nervure.compiler.ir import Graph, Value
from nervure.compiler.kernels.spec import Region
from nervure.compiler.kernels.templates import _cuda_mma, cuda_matmul
from nervure.compiler.kernels.templates._cuda_cost import fraction_of_peak
from nervure.targets import get

GPU = "cuda-sm80"
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 4e-2, "float64": 1e-12}


def numbers(shape: Sequence[int], dtype: str, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    if dtype in ("int8", "uint8"):
        low, high = (-128, 128) if dtype == "int8" else (0, 256)
        return random.integers(low, high, shape).astype(dtype)
    import ml_dtypes  # noqa: F401  (gives numpy bfloat16)

    return random.standard_normal(shape).astype(dtype)


def flipped(rank: int) -> tuple[int, ...]:
    """Columns outside, rows inside: a transposed matrix."""
    return (*range(rank - 2), rank - 1, rank - 2) if rank > 1 else (0,)


def straight(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


def residual(shape: Sequence[int], dtype: str = "float32") -> Callable[[Graph, Value], Value]:
    array = numbers(shape, dtype, 5)
    return lambda g, y: g.add("relu", g.add("add", y, extra_input(g, array)))


def agree(
    a: Sequence[int],
    b: Sequence[int],
    dtype: str = "float32",
    *,
    exact: bool = False,
    fast: bool = False,
    machine: str = GPU,
    **options: Any,
) -> None:
    arrays = [numbers(a, dtype), numbers(b, dtype, 1)]
    region, given = region_of("matmul", arrays, {}, machine=get(machine), exact=exact, fast=fast, **options)
    relative = 1e-3 if fast else TOLERANCE[dtype]
    check_region(region, given, template="cuda_matmul", rtol=relative, atol=2 * relative * a[-1] ** 0.5)


SIZES = [((40, 64), (64, 48)), ((41, 63), (63, 47)), ((3, 130), (130, 5))]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(("a", "b"), SIZES)
@pytest.mark.parametrize("form", ["straight", "transposed", "constant"])
def test_forms(a: Sequence[int], b: Sequence[int], dtype: str, form: str) -> None:
    options: dict[str, Any] = {"constant": {"consts": [1]}, "straight": {}}.get(form, {"order": flipped})
    agree(a, b, dtype, output_order=straight, **options)


@pytest.mark.parametrize("form", ["straight", "transposed", "constant"])
@pytest.mark.parametrize(("a", "b"), SIZES)
def test_exact(a: Sequence[int], b: Sequence[int], form: str) -> None:
    options: dict[str, Any] = {"constant": {"consts": [1]}, "straight": {}}.get(form, {"order": flipped})
    agree(a, b, exact=True, **options)


@pytest.mark.parametrize("form", ["straight", "transposed", "constant"])
@pytest.mark.parametrize(("a", "b"), SIZES)
def test_rounded_factors(a: Sequence[int], b: Sequence[int], form: str) -> None:
    options: dict[str, Any] = {"constant": {"consts": [1]}, "straight": {}}.get(form, {"order": flipped})
    agree(a, b, fast=True, **options)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((64,), (64, 48)),
        ((40, 64), (64,)),
        ((70,), (70,)),
        ((2, 3, 20, 32), (3, 32, 24)),
        ((3, 1, 20, 32), (1, 2, 32, 24)),
        ((4, 20, 33), (33, 24)),
        ((2, 20, 1), (2, 1, 12)),
    ],
)
def test_batches_and_vectors(a: Sequence[int], b: Sequence[int]) -> None:
    agree(a, b)
    agree(a, b, "float16", consts=[1])


def test_slices_of_wider_tensors() -> None:
    agree((3, 20, 32), (32, 24), pad=5)
    agree((3, 20, 32), (3, 32, 23), "float16", pad=3)
    agree((2, 33, 40), (2, 40, 24), pad=4, order=flipped)


@pytest.mark.parametrize("columns", [24, 23, 3])
def test_elementwise_work_behind(columns: int) -> None:
    agree((2, 20, 32), (32, columns), consts=[1], epilogue=residual((2, 20, columns)))
    agree((20, 32), (32, columns), "float16", epilogue=residual((columns,), "float16"))
    agree((20, 32), (32, columns), epilogue=lambda g, y: [g.add("relu", y), g.add("neg", y)])


def test_copies_are_as_wide_as_alignment_allows() -> None:
    arrays = [numbers((64, 64), "float16"), numbers((64, 64), "float16", 1)]
    region, _ = region_of("matmul", arrays, {}, machine=get(GPU))
    for aligned, width in ((16, 16), (8, 4), (4, 4), (2, 0)):
        moved = replace(region, inputs=tuple(replace(o, aligned=aligned) for o in region.inputs))
        config = plan_of(moved, "cuda_matmul").phases[0].spec.config
        assert (config["a"]["copy"], config["b"]["copy"]) == (width, width)


def test_parts_of_the_depth() -> None:
    for dtype, columns in (("float32", 40), ("float16", 41)):
        arrays = [numbers((33, 2000), dtype), numbers((2000, columns), dtype, 1)]
        region, given = region_of("matmul", arrays, {}, machine=get(GPU), epilogue=residual((columns,), dtype))
        assert len(plan_of(region, "cuda_matmul").phases) == 2
        check_region(region, given, template="cuda_matmul", rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 90)


def _every_tile(dtype: str, exact: bool, fast: bool) -> list[_cuda_mma.Tile]:
    """One of each shape of tile, with both layouts."""
    gpu = get(GPU).gpu
    assert gpu is not None
    known = {}
    for layouts in product(("k", "row"), repeat=2) if dtype != "int8" else (("k", "k"),):
        size = _cuda_mma.Product(512, 512, 512, 1, dtype, exact, 1, 1, 1, *layouts)
        for tile in _cuda_mma.tiles(gpu, size if not fast else replace(size, fast=True)):
            known[tile.rows, tile.columns, tile.warp_rows, tile.warp_columns, tile.function, layouts] = tile
    shapes = list(known)
    return [known[s] for i, s in enumerate(shapes) if i % 4 == ("k", "row").index(s[-1][0]) * 2 + (s[-1][1] == "row")]


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("dtype", "exact", "fast"),
    [("float32", False, False), ("float32", False, True), ("float16", False, False), ("float32", True, False)],
)
def test_every_tile(dtype: str, exact: bool, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles of the list, on a product that none of them divides."""
    for tile in _every_tile(dtype, exact, fast):
        order = {"k": {0: straight, 1: flipped}, "row": {0: flipped, 1: straight}}
        arrays = [numbers((264, 72), dtype), numbers((72, 264), dtype, 1)]
        region, given = region_of("matmul", arrays, {}, machine=get(GPU), exact=exact, fast=fast)
        region = _laid(region, [order[tile.a_layout][0], order[tile.b_layout][1]])
        cut = _cuda_mma.Cut(tile, 1, 1.0, _cuda_mma.load_of(get(GPU).gpu, _SIZE, tile, 1))  # type: ignore[arg-type]
        monkeypatch.setattr(cuda_matmul, "choose", lambda gpu, size, cut=cut: cut)
        relative = 1e-3 if fast else TOLERANCE[dtype]
        check_region(region, given, template="cuda_matmul", rtol=relative, atol=relative * 18)


_SIZE = _cuda_mma.Product(264, 264, 72, 1, "float32", False, 1, 1, 1)


def _laid(region: Region, orders: Sequence[Callable[[int], tuple[int, ...]]]) -> Region:
    """The region with its inputs in these memory orders."""
    from harness import dense

    inputs = (replace(o, strides=dense(o.type.dims, order(2))) for o, order in zip(region.inputs, orders, strict=True))
    return replace(region, inputs=tuple(inputs))


# -- integers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8"), ("int8", "uint8")])
@pytest.mark.parametrize("zeros", [(0, 0), (7, 0), (0, 3), (113, 5)])
def test_integers(kinds: tuple[str, str], zeros: tuple[int, int]) -> None:
    """Bit for bit, whatever the zero points."""
    attrs = {"zero_point": zeros[0], "b_zero_point": zeros[1]}
    for a, b, consts in (((40, 64), (64, 48), (1,)), ((33, 61), (61, 23), ())):
        arrays = [numbers(a, kinds[0]), numbers(b, kinds[1], 1)]
        region, given = region_of("matmul_integer", arrays, attrs, machine=get(GPU), consts=consts)
        check_region(region, given, template="cuda_matmul")


def test_integers_with_a_bias_and_rescaling() -> None:
    scale = np.float32(0.0021)
    attrs = {"zero_point": 3, "b_zero_point": 0}
    step = {"x_zero_point": 0, "zero_point": -4, "to": "int8"}

    def steps(g: Graph, y: Value) -> Value:
        return g.add("requantize", y, extra_input(g, np.asarray(scale)), **step)

    for a, b in (((40, 64), (64, 48)), ((2, 3, 70), (2, 70, 30))):
        bias = np.random.default_rng(3).integers(-1000, 1000, b[-1]).astype(np.int32)
        arrays = [numbers(a, "uint8"), numbers(b, "int8", 1), bias]
        region, given = region_of("matmul_integer", arrays, attrs, machine=get(GPU), consts=[1], epilogue=steps)
        check_region(region, given, template="cuda_matmul")


def test_products_behind_integers_are_rounded_apart() -> None:
    """A product and a sum may become one rounding only where floats were multiplied."""
    from nervure.compiler.kernels import device, worker

    def scaled(g: Graph, y: Value) -> Value:
        real = g.add("cast", y, to="float32") if y_is_integer else y
        return g.add(
            "add",
            g.add("mul", real, extra_input(g, numbers((48,), "float32"))),
            extra_input(g, numbers((48,), "float32", 2)),
        )

    for y_is_integer in (True, False):
        kind, op = ("int8", "matmul_integer") if y_is_integer else ("float32", "matmul")
        attrs = {"zero_point": 3, "b_zero_point": 0} if y_is_integer else {}
        arrays = [numbers((40, 64), kind), numbers((64, 48), kind, 1)]
        region, given = region_of(op, arrays, attrs, machine=get(GPU), consts=[1], epilogue=scaled)
        (draft,) = plan_of(region, "cuda_matmul").phases
        builder = worker.written(draft.spec.template, json.loads(draft.spec.canonical)[1], "k", region.machine.record())
        assert device.text(builder, [])["contract"] is not y_is_integer
        check_region(region, given, template="cuda_matmul", rtol=1e-3, atol=2e-2)


def test_integers_in_parts() -> None:
    attrs = {"zero_point": 7, "b_zero_point": 9}
    arrays = [numbers((3, 20, 3000), "int8"), numbers((3, 3000, 20), "int8", 1)]
    region, given = region_of("matmul_integer", arrays, attrs, machine=get(GPU))
    assert len(plan_of(region, "cuda_matmul").phases) == 2
    check_region(region, given, template="cuda_matmul")


# -- machine code --------------------------------------------------------------------------------------------------


def _region(size: tuple[int, int, int], dtype: str, machine: str, **options: Any) -> Region:
    rows, columns, depth = size
    integer = dtype in ("int8", "uint8")
    arrays = [np.zeros((rows, depth), dtype), np.ones((depth, columns), "int8" if integer else dtype)]
    attrs = {"zero_point": 3, "b_zero_point": 0} if integer else {}
    return region_of("matmul_integer" if integer else "matmul", arrays, attrs, machine=get(machine), **options)[0]


@needs_compiler
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_machine_code_of_large_products(machine: str, dtype: str) -> None:
    """No local memory, and an inner loop of tensor-core products, fragments by ldmatrix and asynchronous copies."""
    region = _region((2048, 2048, 2048), dtype, machine, consts=[1], fast=dtype == "float32")
    found = counted(region, "cuda_matmul")
    tile = _cuda_mma.Tile(**plan_of(region, "cuda_matmul").phases[0].spec.config["tile"])
    steps = tile.depth * tile.item // 32
    assert found["mma.sync"] >= steps * tile.held // 4
    assert found["ldmatrix"] >= steps * (tile.warp_rows + tile.warp_columns) // 16
    assert (
        found["cp.async.c"] >= tile.stages * tile.depth * tile.item * (tile.rows + tile.columns) // 16 // tile.threads
    )


@needs_compiler
def test_float32_is_split_where_tensor_cores_are_that_much_faster() -> None:
    """A100 does three products of TF32 parts faster than FMA, an RTX 4090 does not."""
    found = counted(_region((2048, 2048, 2048), "float32", "cuda-sm80", consts=[1]), "cuda_matmul")
    rounded = counted(_region((2048, 2048, 2048), "float32", "cuda-sm80", consts=[1], fast=True), "cuda_matmul")
    assert found["mma.sync"] >= 2 * rounded["mma.sync"] > 0
    assert not counted(_region((2048, 2048, 2048), "float32", "cuda-sm89", consts=[1]), "cuda_matmul")["mma.sync"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("size", [(128, 768, 768), (64, 1000, 2048), (197, 192, 576), (2047, 2045, 2043)])
def test_machine_code_of_all_forms(machine: str, size: tuple[int, int, int]) -> None:
    for dtype, how in (
        ("float32", {}),
        ("float32", {"fast": True}),
        ("float32", {"exact": True}),
        ("float16", {}),
        ("int8", {}),
        ("float64", {}),
    ):
        for options in ({}, {"consts": [1]}, {"order": flipped}):
            found = counted(_region(size, dtype, machine, **how, **options), "cuda_matmul")
            assert found["mma.sync"] or dtype == "float64" or (dtype == "float32" and "fast" not in how)


def test_estimates_of_large_products() -> None:
    """By the model, not measured: tensor cores are busy most of the time where everything is large."""
    gpu = get(GPU).gpu
    assert gpu is not None
    for dtype, item in (("float16", 2), ("float32", 4), ("int8", 1)):
        size = _cuda_mma.Product(8192, 8192, 8192, 1, dtype, False, *[8192 * 8192 * item] * 3)
        cut = _cuda_mma.choose(gpu, size)
        assert cut is not None
        assert 0.5 < fraction_of_peak(gpu, cut.load) <= 1.0, (dtype, cut.tile.describe())


def test_more_work_takes_longer() -> None:
    gpu = get(GPU).gpu
    assert gpu is not None
    costs = []
    for rows in (64, 512, 4096, 16384):
        cut = _cuda_mma.choose(
            gpu, _cuda_mma.Product(rows, 1024, 1024, 1, "float16", False, rows * 2048, 2 << 20, rows * 2048)
        )
        assert cut is not None
        costs.append(cut.cost)
    assert costs == sorted(costs)
