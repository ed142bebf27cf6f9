"""Arithmetic on quantized tensors on a GPU: bit for bit what the op table's references say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import channels_last, check_region, extra_input, region_of
from nervure.compiler.ir import Graph, Value
from nervure.compiler.kernels import device, worker
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops.integers import add_multiplier, exp_table
from nervure.targets import emulation, get

SM80 = get("cuda-sm80")
STEPS = {"x_zero_point": 0, "zero_point": 0, "low": None, "high": None, "to": "int8"}
WINDOW = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def draw(shape: Any, dtype: str, seed: int = 0) -> np.ndarray:
    """All numbers of 8 bits; of 32 bits of every size."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    found = rng.integers(info.min, info.max, shape, endpoint=True)
    return (found >> rng.integers(0, 31, shape) if dtype == "int32" else found).astype(dtype)


def check(op: str, arrays: list[Any], attrs: dict[str, Any], **kwargs: Any) -> None:
    region, given = region_of(op, arrays, attrs, machine=SM80, **kwargs)
    check_region(region, given)


@pytest.mark.parametrize(("to", "zero"), [("int8", -128), ("int8", 7), ("uint8", 200)])
@pytest.mark.parametrize("multiplier", [3e-8, 0.9, 3e4])
def test_sums_of_any_size(to: str, zero: int, multiplier: float) -> None:
    x = draw((3, 333), "int32")
    check("requantize", [x, np.float32(multiplier)], {**STEPS, "to": to, "zero_point": zero}, consts=(1,))


def test_halves_go_to_even() -> None:
    x = np.arange(-300, 300, dtype=np.int32)
    for zero in (0, 1):
        check("requantize", [x, np.float32(0.5)], {**STEPS, "zero_point": zero}, consts=(1,))


@pytest.mark.parametrize("order", [range, channels_last], ids=["planes", "channels last"])
def test_a_multiplier_for_each_channel(order: Any) -> None:
    x, each = draw((1, 40, 5, 7), "int32"), np.geomspace(1e-9, 1e-6, 40).astype(np.float32).reshape(40, 1, 1)
    attrs = {**STEPS, "zero_point": 11, "low": 11, "high": 100, "to": "uint8"}
    check("requantize", [x, each], attrs, consts=(1,), order=lambda rank: order(rank) if rank == 4 else range(rank))


def test_a_residual() -> None:
    a, b = draw((4, 99), "int8", 1), draw((4, 99), "int8", 2)
    factors = [add_multiplier(r) for r in (0.71, 1.3)]
    attrs = {"a_zero_point": 3, "b_zero_point": -7, "zero_point": 5, "to": "int8"}
    check("add_integer", [a, b, *factors], attrs, consts=(2, 3))


def test_floats_to_steps_and_back() -> None:
    x = np.linspace(-9, 9, 999, dtype=np.float32).reshape(3, 333)
    check("quantize", [x, np.float32(0.05), np.uint8(128)], {"to": "uint8"}, consts=(1, 2))
    check("dequantize", [draw((3, 333), "uint8"), np.float32(0.05), np.uint8(128)], {}, consts=(1, 2))


def _output(relative: float) -> Any:
    def epilogue(g: Graph, y: Value) -> Value:
        channels = g.type(y).shape[1]
        each = np.geomspace(relative, relative / 8, int(channels)).astype(np.float32)
        shape = (int(channels), *(1,) * (g.type(y).rank - 2))
        return g.add("requantize", y, extra_input(g, each.reshape(shape)), **{**STEPS, "zero_point": -5})

    return epilogue


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("group", [1, 16])
def test_convolutions(dtype: str, group: int) -> None:
    x, w = draw((1, 16, 9, 7), dtype), draw((16, 16 // group, 3, 3), "int8", 3)
    bias = draw((16,), "int32", 4) >> 12
    attrs = {**WINDOW, "group": group, "zero_point": 0 if dtype == "int8" else 131}
    order = lambda rank: channels_last(rank) if rank == 4 else range(rank)  # noqa: E731
    check("conv_integer", [x, w, bias], attrs, consts=(1, 2), order=order, epilogue=_output(2e-3))


@pytest.mark.parametrize("rows", [1, 37])
def test_products(rows: int) -> None:
    a, b = draw((rows, 70), "int8"), draw((70, 33), "int8", 1)
    attrs = {"zero_point": -3}
    check("matmul_integer", [a, b, draw((33,), "int32") >> 14], attrs, consts=(1, 2), epilogue=_output(1e-3))


def test_softmax() -> None:
    table, attrs = exp_table(0.06, 45), {"axis": 1, "zero_point": -128, "to": "int8"}
    check("softmax_integer", [draw((3, 45), "int8"), table, np.float32(256.0)], attrs, consts=(1, 2))


def test_products_are_rounded_by_themselves_whatever_is_contracted() -> None:
    """The rounding of a sum is one function of device.h: no compiler may join its product with anything."""
    region, _ = region_of("requantize", [draw((64,), "int32"), np.float32(0.3)], STEPS, consts=(1,), machine=SM80)
    draft = plans(region)[0].phases[0]
    template, config = json.loads(draft.spec.canonical)
    made = device.text(worker.written(template, config, draft.spec.name, SM80.record()), [])
    assert "nv_rescale(" in made["source"] and "* " not in made["source"].split("nv_rescale(")[1].split(";")[0]


def test_four_products_at_once(tmp_path: Path) -> None:
    """nv_dp4a and its kin, which kernels for few rows use."""
    import ctypes

    text = (
        'extern "C" __global__ void dots(int* y, int* a, int* b) {\n'
        "  int i = threadIdx.x;\n"
        "  y[i] = nv_dp4a(a[i], b[i], 7), y[32 + i] = nv_dp4a_u8s8(a[i], b[i], -7);\n}\n"
    )
    path = tmp_path / "dots.so"
    path.write_bytes(emulation.compile_kernels([("dots", text)]))
    library, engine = ctypes.CDLL(str(path)), ctypes.CDLL(str(emulation.driver()))
    engine.emu_start.restype = ctypes.c_void_p
    ctypes.c_void_p.in_dll(library, "emu_machine").value = engine.emu_start()
    a, b, y = draw((32, 4), "int8"), draw((32, 4), "int8", 1), np.zeros((2, 32), np.int32)
    held = [ctypes.c_void_p(v.ctypes.data) for v in (y, a, b)]
    assert library.dots_launch((ctypes.c_void_p * 3)(*(ctypes.addressof(p) for p in held)), 1, 32, 0) == 0
    wide = b.astype(np.int32)
    np.testing.assert_array_equal(y[0], (a * wide).sum(1) + 7)
    np.testing.assert_array_equal(y[1], (a.view(np.uint8) * wide).sum(1) - 7)
