"""Machine code of row-wise kernels: no spills, no local memory, within every architecture's limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_images import MACHINES, counted, needs_compiler
from harness import channels_last, region_of
from nervure.compiler.kernels.spec import Region
from nervure.targets import get
from nervure.targets.machine import Machine
from test_reduce_many import layer_norm_back, moments, region, softmax_back

EPSILON = {"epsilon": 1e-5}


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def last(rank: int) -> tuple[int, ...]:
    return channels_last(rank) if rank == 4 else tuple(range(rank))


def one(op: str, arrays: list[Any], order: Any = None, exact: bool = False, **attrs: Any) -> Callable[..., Region]:
    return lambda machine: region_of(op, arrays, attrs, machine=machine, order=order, exact=exact)[0]


def attends(
    length: int, size: int, dtype: str = "float32", queries: int = 0, heads: int = 3, **options: Any
) -> Callable[..., Region]:
    arrays = [zeros(heads, n, size, dtype=dtype) for n in (queries or length, length, length)]
    return one("attention", arrays, scale=0.1, **options)


ROWS: dict[str, tuple[str, Callable[[Machine], Region]]] = {
    "softmax in warps": ("cuda_softmax", one("softmax", [zeros(2048, 1000)], axis=-1)),
    "softmax of a long row": ("cuda_softmax", one("softmax", [zeros(4, 60000)], axis=-1)),
    "softmax of doubles": ("cuda_softmax", one("softmax", [zeros(4, 30000, dtype="float64")], axis=-1, exact=True)),
    "softmax of halves": ("cuda_softmax", one("softmax", [zeros(64, 3000, dtype="float16")], axis=-1)),
    "layer norm": ("cuda_norm", one("layer_norm", [zeros(128, 768), zeros(768), zeros(768)], axis=1, **EPSILON)),
    "group norm": (
        "cuda_norm",
        one("group_norm", [zeros(8, 64, 56, 56), zeros(64), zeros(64)], last, num_groups=8, **EPSILON),
    ),
    "global pool": ("cuda_reduce", one("reduce_mean", [zeros(8, 512, 7, 7)], last, axes=(2, 3), keepdims=True)),
    "sum in parts": ("cuda_reduce", one("reduce_sum", [zeros(1 << 20)], axes=(0,))),
    "argmax": ("cuda_reduce", one("argmax", [zeros(64, 1000)], axis=1)),
    "running sums": ("cuda_scan", one("cumsum", [zeros(64, 1000)], axis=1)),
    "few of many": ("cuda_topk", one("topk", [zeros(64, 1000)], k=5, axis=1)),
    "many of many": ("cuda_topk", one("topk", [zeros(4, 8400)], k=300, axis=1)),
    "softmax, backward": ("cuda_rows", lambda m: region([zeros(256, 768)] * 2, softmax_back, machine=m)),
    "layer norm, backward": (
        "cuda_rows",
        lambda m: region([zeros(256, 768), zeros(256, 768), zeros(768)], layer_norm_back, machine=m),
    ),
    "statistics of channels": (
        "cuda_reduce",
        lambda m: region([zeros(32, 64, 28, 28)] * 2 + [zeros(1, 64, 1, 1)], moments((0, 2, 3)), last, m),
    ),
}
ATTENTION = {
    "TF32, 64": ("mma.sync", attends(197, 64)),
    "TF32, 128": ("mma.sync", attends(512, 128, heads=12)),
    "float16, 64": ("mma.sync", attends(197, 64, "float16")),
    "float16, 128, causal": ("mma.sync", attends(256, 128, "float16", causal=True)),
    "float16, odd": ("mma.sync", attends(50, 33, "float16")),
    "exact": ("fma.rn.f32", attends(197, 64, exact=True)),
    "one query": ("shfl.sync", attends(1024, 64, queries=1)),
    "doubles": ("fma.rn.f64", attends(100, 32, "float64")),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.sampled(8)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, machine: str) -> None:
    template, made = ROWS[name]
    counted(made(get(machine)), template)


@needs_compiler
@pytest.mark.slow
@pytest.mark.sampled(8)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, machine: str) -> None:
    instruction, made = ATTENTION[name]
    assert counted(made(get(machine)), "cuda_attention")[instruction] > 0


@needs_compiler
@pytest.mark.parametrize("name", ["softmax in warps", "layer norm", "few of many"])
def test_rows_for_one(name: str) -> None:
    template, made = ROWS[name]
    counted(made(get("cuda-sm90")), template)
