"""Machine code of convolutions for GPUs: no local memory, no spilled register, within the limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_images import MACHINES, counted, needs_compiler
from harness import _numpy, channels_last, extra_input, region_of
from nervure.compiler.kernels.spec import Region
from nervure.targets import get

LAYERS = {  # x, w, stride, group, template
    "3x3": ((1, 64, 56, 56), (64, 64, 3, 3), 1, 1, "cuda_conv"),
    "1x1": ((64, 256, 14, 14), (1024, 256, 1, 1), 1, 1, "cuda_conv"),
    "parts": ((1, 512, 7, 7), (512, 512, 3, 3), 1, 1, "cuda_conv"),
    "first": ((64, 3, 224, 224), (64, 3, 7, 7), 2, 1, "cuda_conv"),
    "groups": ((8, 256, 28, 28), (256, 8, 3, 3), 1, 32, "cuda_conv"),
    "space": ((1, 16, 8, 28, 28), (32, 16, 3, 3, 3), 1, 1, "cuda_conv"),
    "direct": ((1, 3, 112, 112), (24, 3, 3, 3), 2, 1, "cuda_conv_simt"),
    "direct groups": ((1, 64, 56, 56), (64, 4, 3, 3), 1, 16, "cuda_conv_simt"),
    "depthwise": ((1, 96, 112, 112), (96, 1, 3, 3), 2, 96, "cuda_depthwise"),
    "depthwise, many": ((64, 960, 7, 7), (960, 1, 5, 5), 1, 960, "cuda_depthwise"),
    "depthwise, large": ((1, 96, 56, 56), (96, 1, 7, 7), 1, 96, "cuda_depthwise"),
    "depthwise, huge": ((1, 32, 56, 56), (32, 1, 31, 31), 1, 32, "cuda_depthwise"),
}


def layer(name: str, machine: str, dtype: str, **options: Any) -> tuple[Region, str]:
    """A layer with an epilogue: activation, or of integers requantization."""
    x, w, stride, group, template = LAYERS[name]
    rank, integer = len(x) - 2, dtype == "int8"
    pads = tuple(k // 2 for k in w[2:]) * 2
    attrs: dict[str, Any] = {"strides": (stride,) * rank, "pads": pads, "dilations": (1,) * rank, "group": group}
    rng = np.random.default_rng(0)
    types = ("int8", "int8", "int32") if integer else (dtype,) * 3
    sizes = zip((x, w, (w[0],)), types, strict=True)
    arrays = [(rng.random(s, np.float32) * (20 if integer else 1)).astype(_numpy(t)) for s, t in sizes]
    if integer:
        attrs["zero_point"] = 3

    def epilogue(g: Any, y: Any) -> Any:
        if not integer:
            return g.add("clip", y, low=0.0, high=6.0)
        scales = extra_input(g, np.full((w[0], *[1] * rank), 1e-3, np.float32))
        return g.add("requantize", y, scales, zero_point=3, low=None, high=None, to="int8")

    options = {"consts": (1, 2), "order": lambda r: channels_last(r) if r > 2 + rank - 1 else range(r), **options}
    op = "conv_integer" if integer else "conv"
    return region_of(op, arrays, attrs, machine=get(machine), epilogue=epilogue, **options)[0], template


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_products_run_on_tensor_cores(dtype: str) -> None:
    found = counted(*layer("3x3", "cuda-sm80", dtype))
    assert found["mma.sync"] and found["ldmatrix"] and found["cp.async.c"]


@needs_compiler
def test_exact_products_are_fma() -> None:
    found = counted(*layer("3x3", "cuda-sm80", "float32", exact=True))
    assert found["fma.rn.f32"] and not found["mma.sync"]


@needs_compiler
@pytest.mark.parametrize("name", ["depthwise", "direct"])
def test_others_keep_everything_in_registers(name: str) -> None:
    assert counted(*layer(name, "cuda-sm80", "float32"))["fma.rn.f32"]


@needs_compiler
@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", LAYERS)
def test_all_layers(name: str, machine: str) -> None:
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        counted(*layer(name, machine, dtype))
    counted(*layer(name, machine, "float32", exact=True))
    counted(*layer(name, machine, "float32", consts=()))
    counted(*layer(name, machine, "float16", order=range))
