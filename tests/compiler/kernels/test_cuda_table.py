"""Every sample case of the op table on a GPU, the real one or the played one, against the references.

float32 exactly; half types, and float32 on tensor cores (TF32), for one case of each operator that has them. Some
cases of each operator are fast tests, the rest slow ones. Kernels of neighbours are compiled together.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import gpu_harness
import numpy as np
import pytest
from harness import check_region, machines, region_of, run_region, sample
from nervure.compiler.interpret import interpret
from nervure.compiler.kernels.spec import Draft, Region
from nervure.compiler.kernels.templates import plans, templates
from nervure.compiler.ops import OPS
from nervure.compiler.ops.record import OpError
from nervure.errors import MissingTool
from nervure.targets import cubin, get, nvrtc

GPU = get("cuda-sm80")
TOGETHER = 24  # cases whose kernels are compiled at once
EVERY, EVERY_HALF = 8, 5  # of an operator's cases, of the operators in half types, is a fast test
PRODUCTS = ("attention", "conv", "conv_grad_weight", "conv_transpose", "gru", "lstm", "matmul", "rnn")
LOOSE = {"exact": (1e-4, 1e-5), "float16": (2e-3, 2e-3), "bfloat16": (2e-2, 2e-2)}
DEVICE = {t.name for t in templates() if t.device}
Row = tuple[str, int, str]


def _inputs(name: str, number: int) -> tuple[Any, list[np.ndarray | None]]:
    case = list(OPS[name].cases())[number]  # type: ignore[misc]
    return case, sample(case)


def _rows() -> dict[bool, list[Row]]:
    """Operator, number of the case and precision; the fast ones under True."""
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for at, name in enumerate(n for n in sorted(OPS) if OPS[n].cases):
        count = len(list(OPS[name].cases()))  # type: ignore[misc]
        for number in range(count):
            rows[number % EVERY == 0].append((name, number, "exact"))
        if any(a is not None and a.dtype == np.float32 for a in _inputs(name, 0)[1]):
            rows[at % EVERY_HALF == 0].append((name, 0, "float16"))
            rows[at % EVERY_HALF == 1].append((name, 0, "bfloat16"))
    rows[True] += [(name, 0, "tf32") for name in PRODUCTS]
    return rows


ROWS = _rows()
MARKED = [pytest.param(*row, id="-".join(map(str, row))) for row in ROWS[True]]
MARKED += [pytest.param(*row, id="-".join(map(str, row)), marks=pytest.mark.slow) for row in ROWS[False]]


def _region(name: str, number: int, precision: str, **options: Any) -> tuple[Region, list[np.ndarray]]:
    case, arrays = _inputs(name, number)
    if precision in ("float16", "bfloat16"):
        dtype = np.dtype(precision)
        arrays = [a.astype(dtype) if a is not None and a.dtype == np.float32 else a for a in arrays]
    how = {"exact": precision != "tf32", "fast": precision == "tf32"}
    return region_of(name, arrays, case.attrs, **how, **options)


@cache
def _prepare(fast: bool, first: int) -> None:
    """Compiles what the rows from ``first`` on need."""
    drafts = []
    for row in ROWS[fast][first : first + TOGETHER]:
        try:
            region, _ = _region(*row, machine=GPU)
        except OpError:  # an operator that has no such type
            continue
        drafts += [draft for plan in plans(region) for draft in plan.phases]
    gpu_harness.prepare(drafts, GPU)


def _check_products(region: Region, arrays: list[np.ndarray]) -> None:
    """Within what rounding the factors to TF32 (11 bits) allows, of the largest result."""
    for have, want in zip(run_region(region, arrays), interpret(region.body, arrays), strict=True):
        assert np.abs(have - want).max() <= 4e-3 * np.abs(want).max()


@pytest.mark.parametrize(("name", "number", "precision"), MARKED)
def test_case(name: str, number: int, precision: str) -> None:
    try:
        region, arrays = _region(name, number, precision, machine=GPU)
    except OpError:
        assert precision in ("float16", "bfloat16")
        pytest.skip("not for that type")
    if not plans(region):
        here, _ = _region(name, number, precision, machine=machines()[0])
        assert not plans(here), "the CPU has a kernel for it, the GPU has none"
        pytest.skip("never a kernel of its own")
    fast = (name, number, precision) in ROWS[True]
    at = ROWS[fast].index((name, number, precision))
    _prepare(fast, at - at % TOGETHER)
    if precision == "tf32":
        _check_products(region, arrays)
    else:
        rtol, atol = LOOSE[precision]
        check_region(region, arrays, rtol=rtol, atol=atol)


def _drafts(name: str) -> dict[str, Draft]:
    """Kernels of device templates for the operator's first case in every precision."""
    found = {}
    for precision in ("exact", "tf32", "float16", "bfloat16"):
        try:
            region, _ = _region(name, 0, precision, machine=GPU)
        except OpError:
            continue
        found |= {d.spec.name: d for p in plans(region) if p.template in DEVICE for d in p.phases}
    return found


@pytest.mark.slow
@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [n for n in sorted(OPS) if OPS[n].cases])
def test_machine_code(name: str) -> None:
    """No kernel of a device template spills registers or indexes them, and each keeps within its block's limits."""
    try:
        nvrtc.compiler_version()
    except MissingTool as error:
        pytest.skip(str(error))
    gpu = GPU.gpu
    assert gpu is not None
    for draft in _drafts(name).values():
        text = gpu_harness.written(draft, GPU)
        code = nvrtc.compile_cuda(text.source, nvrtc.architecture(gpu.images[0]), contract=text.contract)
        (info,) = cubin.kernels(code).values()
        assert (info.local, info.stack) == (0, 0), f"local memory: {info} of {draft.spec.canonical[:400]}"
        assert not cubin.within(gpu, info, text.threads, text.shared)
