"""Integer contractions by tile registers, with the registers emulated in C: no machine with AMX is needed.

The emulator refuses what the hardware would (shapes that do not fit, registers that are not configured). The same
kernels are also compiled to the real instructions, which are looked for; they run where the CPU has them, as everywhere
in the tests, through the machine at hand.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure.compiler.ir import Graph, Value
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.templates import plans
from nervure.targets import x86
from nervure.targets.machine import Machine, Tiles

HERE = Path(__file__).parent
EMULATED = Tiles(tuple((use, f"emulated_{use}") for use, _ in x86.AMX.functions), cycles=0.1)


@cache
def machine() -> Machine:
    """The machine at hand with emulated tile registers; the emulator is loaded so that kernels find it."""
    stem = Path(harness._folder.name) / "tiles.so"
    compile = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O2", "-o", str(stem), str(HERE / "tiles.c")]
    subprocess.run(compile, check=True)
    ctypes.CDLL(str(stem), mode=ctypes.RTLD_GLOBAL)
    return replace(harness.machines()[0], name="emulated tiles", tiles=EMULATED)


def _requantized(to: str, zero: int) -> Any:
    def epilogue(graph: Graph, y: Value) -> Value:
        multiplier = graph.const(np.float32(0.0007), "m")
        return graph.add("requantize", y, multiplier, zero_point=zero, to=to)

    return epilogue


def _conv(
    x: tuple[int, ...], w: tuple[int, ...], dtype: str = "uint8", zero: int = 7, seed: int = 0, **window: Any
) -> tuple[Any, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    rank = len(x) - 2
    attrs = {"strides": (1,) * rank, "pads": (0,) * (2 * rank), "dilations": (1,) * rank, "group": 1, **window}
    info = np.iinfo(dtype)
    arrays = [
        rng.integers(info.min, info.max, x, dtype=dtype, endpoint=True),
        rng.integers(-128, 128, w).astype(np.int8),
        rng.integers(-9999, 9999, w[0]).astype(np.int32),
    ]
    return harness.region_of(
        "conv_integer",
        arrays,
        {**attrs, "zero_point": zero},
        order=harness.channels_last,
        consts=(1, 2),
        epilogue=_requantized(dtype, 3),
        machine=machine(),
    )


CONVOLUTIONS = {
    "points and columns that fill registers": ((1, 64, 8, 8), (32, 64, 1, 1), {}),
    "few of both": ((1, 12, 3, 3), (5, 12, 1, 1), {}),
    "odd channels": ((1, 27, 6, 7), (33, 27, 1, 1), {}),
    "pieces that overlap": ((1, 150, 5, 9), (40, 150, 1, 1), {}),
    "taps and borders": ((1, 16, 9, 11), (24, 16, 3, 3), {"pads": (1, 1, 1, 1)}),
    "a stem": ((1, 3, 20, 18), (16, 3, 3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    "seven taps": ((1, 3, 21, 23), (20, 3, 7, 7), {"pads": (3, 3, 3, 3), "strides": (2, 2)}),
    "stride without taps": ((2, 32, 9, 9), (16, 32, 1, 1), {"strides": (2, 2)}),
    "dilation": ((1, 8, 14, 15), (6, 8, 3, 3), {"pads": (2, 3, 2, 3), "dilations": (2, 3)}),
    "groups": ((1, 24, 7, 7), (18, 8, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),
    "one axis": ((1, 20, 50), (17, 20, 5), {"pads": (2, 2)}),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, dtype: str) -> None:
    x, w, window = CONVOLUTIONS[name]
    region, arrays = _conv(x, w, dtype, **window)
    harness.check_region(region, arrays, template="dot_tiles")


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 64, 10), (7, 96, 33), (40, 200, 64), (33, 130, 17)])
def test_product(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    arrays = [
        rng.integers(-128, 128, (rows, depth)).astype(np.int8),
        rng.integers(-128, 128, (depth, columns)).astype(np.int8),
        rng.integers(-999, 999, columns).astype(np.int32),
    ]
    attrs = {"zero_point": -5, "b_zero_point": 0}
    region, given = harness.region_of("matmul_integer", arrays, attrs, consts=(1, 2), machine=machine())
    harness.check_region(region, given, template="dot_tiles")


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    channels, columns, taps = draw(1, 140), draw(1, 50), draw(1, 4)
    size, pad = draw(taps, 12), draw(0, taps - 1)
    strides = (draw(1, 2), draw(1, 3))
    region, arrays = _conv(
        (draw(1, 2), channels, size, size + draw(0, 30)),
        (columns, channels, taps, taps),
        data.draw(st.sampled_from(["int8", "uint8"])),
        zero=draw(0, 100),
        seed=draw(0, 99),
        pads=(pad,) * 4,
        strides=strides,
    )
    found = [p for p in plans(region) if p.template == "dot_tiles"]
    if found:
        harness.check_region(region, arrays, template="dot_tiles")


def test_the_real_instructions_are_made(tmp_path: Path) -> None:
    """For a CPU with AMX the same plan becomes tile instructions, released behind each task."""
    amx = next(m for _, m in x86.MICROARCHITECTURES if m.tiles is not None)
    x, w, window = CONVOLUTIONS["taps and borders"]
    region, _ = _conv(x, w, **window)
    found = [p for p in plans(replace(region, machine=amx)) if p.template == "dot_tiles"]
    (draft,) = found[0].phases
    template, config = json.loads(draft.spec.canonical)
    function, _ = worker.build(template, config, draft.spec.name, amx.record())
    write_object([function], amx.record()["llvm"], tmp_path / "k.s")
    text = (tmp_path / "k.s").read_text()
    for instruction in ("ldtilecfg", "tilezero", "tileloadd", "tdpbusd", "tilestored", "tilerelease"):
        assert re.search(rf"\b{instruction}\b", text), instruction


def test_machines_without_tiles_have_no_such_plan() -> None:
    region, _ = _conv((1, 64, 8, 8), (32, 64, 1, 1))
    plain = replace(region, machine=replace(machine(), tiles=None))
    assert not [p for p in plans(plain) if p.template == "dot_tiles"]
