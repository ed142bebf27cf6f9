"""Single kernels on 8-bit tensors: depthwise convolutions against float32 and ONNX Runtime, and the rate of the rest.

    python tests/bench/bench_int8_kernels.py [filter ...]    # e.g. depthwise, requantize

A depthwise row gives our int8 kernel (requantization included), our float32 kernel (with a clip) and the time that ONNX
Runtime's profile gives to its ``QLinearConv`` (layout changes around it are not counted), interleaved, medians of
rounds. Ratios above 1 mean that ours, in int8, is faster. The other rows are bytes a nanosecond, read and written.
"""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler" / "kernels"))
from bench_kernels import caller, profiled
from harness import channels_last, extra_input, region_of
from nervure.compiler.kernels.spec import Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops.integers import add_multiplier, exp_table

ROUNDS = 7
DEPTHWISE = [  # name, channels, size, stride
    *(("mobilenetv2", c, size, s) for c, size, s in ((32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2))),
    *(("mobilenetv2", c, size, s) for c, size, s in ((192, 28, 1), (384, 14, 1), (576, 14, 1), (576, 14, 2))),
    *(("mobilenetv2", 960, 7, 1), ("vww", 8, 48, 1), ("vww", 16, 48, 2), ("vww", 32, 24, 1), ("kws", 64, 25, 1)),
]
Made = tuple[Region, list[np.ndarray]]


def depthwise(channels: int, size: int, stride: int, *, integer: bool) -> Made:
    """3x3, channels last."""
    rng = np.random.default_rng(0)
    dims, taps = (1, channels, size, size), (channels, 1, 3, 3)
    attrs = {"strides": (stride, stride), "pads": (1,) * 4, "dilations": (1, 1), "group": channels}
    order = {"order": lambda rank: channels_last(rank) if rank == 4 else range(rank), "consts": (1, 2)}
    if not integer:
        arrays = [rng.standard_normal(s, np.float32) for s in (dims, taps, (channels,))]
        return region_of("conv", arrays, attrs, epilogue=lambda g, y: g.add("clip", y, low=0.0, high=6.0), **order)
    each = np.full((channels, 1, 1), 1e-3, np.float32)

    def steps(g: Any, y: Any) -> Any:
        return g.add("requantize", y, extra_input(g, each), zero_point=5, low=None, high=None, to="uint8")

    weights = rng.integers(-127, 128, taps).astype(np.int8)
    arrays = [rng.integers(0, 256, dims).astype(np.uint8), weights, rng.integers(-999, 999, channels).astype(np.int32)]
    region, given = region_of("conv_integer", arrays, {**attrs, "zero_point": 7}, epilogue=steps, **order)
    inputs = [replace(o, const=each) if o.type.dims == each.shape else o for o in region.inputs]
    return replace(region, inputs=tuple(inputs)), given


def peer(channels: int, size: int, stride: int, repeat: int) -> Any:
    """ONNX Runtime's QLinearConv of the same shape."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    given = {
        **{"xs": np.float32(0.05), "xz": np.uint8(7), "ws": np.full(channels, 0.01, np.float32)},
        **{"wz": np.zeros(channels, np.int8), "ys": np.float32(0.5), "yz": np.uint8(5)},
        "w": rng.integers(-127, 128, (channels, 1, 3, 3)).astype(np.int8),
        "b": rng.integers(-999, 999, channels).astype(np.int32),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], strides=[stride] * 2, pads=[1] * 4, group=channels)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, channels, size, size))],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in given.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    x = rng.integers(0, 256, (1, channels, size, size)).astype(np.uint8)
    return profiled(model, {"x": x}, ("QLinearConv",), repeat, ROUNDS)


def measure_depthwise(name: str, channels: int, size: int, stride: int) -> tuple[float, float]:
    """Prints one row; int8's speed over float's, and over ONNX Runtime's."""
    work = channels * (size // stride) ** 2
    batch, repeat = max(1, 400_000 // work), 20
    forms = [depthwise(channels, size, stride, integer=i) for i in (True, False)]
    found = [plans(region)[0] for region, _ in forms]
    runs = [caller(r, p, a, repeat, batch) for (r, a), p in zip(forms, found, strict=True)]
    theirs, finish = peer(channels, size, stride, repeat)
    times: list[list[float]] = [[], []]
    for run in runs:
        run()
    theirs()
    for _ in range(ROUNDS):
        for own, run in zip(times, runs, strict=True):
            own.append(statistics.median(run()))
        theirs()
    ort = finish()
    ratios = [statistics.median(t / m for t, m in zip(other, times[0], strict=True)) for other in (times[1], ort)]
    mine = statistics.median(times[0]) / 1e3
    label = f"depthwise {name} 3x3 {channels}@{size} s{stride}"
    print(f"{label:36s} {mine:8.2f} us  float x{ratios[0]:5.2f}  ort x{ratios[1]:6.2f}  {found[0].detail}", flush=True)
    return ratios[0], ratios[1]


def others() -> list[tuple[str, Made]]:
    """Elementwise work and movement."""
    rng = np.random.default_rng(0)

    def steps(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape).astype(np.uint8)

    zeros = {"zero_point": 3, "low": None, "high": None, "to": "uint8"}
    sums, one = rng.integers(-9999, 9999, (1, 64, 56, 56)).astype(np.int32), np.float32(0.01)
    pair, ratios = [steps(1, 64, 56, 56), steps(1, 64, 56, 56)], [add_multiplier(0.7), add_multiplier(1.2)]
    window = {"strides": (2, 2), "pads": (1,) * 4, "dilations": (1, 1), "kernel_shape": (3, 3)}
    mean = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "kernel_shape": (7, 7), "zero_point": 3}
    rows = [
        ("requantize", "requantize", [sums, one], {"x_zero_point": 0, **zeros}, {"consts": (1,)}),
        ("quantize", "quantize", [sums.astype(np.float32), one, np.uint8(3)], {"to": "uint8"}, {"consts": (1, 2)}),
        ("dequantize", "dequantize", [pair[0], one, np.uint8(3)], {"to": "float32"}, {"consts": (1, 2)}),
        ("add_integer", "add_integer", [*pair, *ratios], {"a_zero_point": 1, "b_zero_point": 2, **zeros}, {}),
        ("lookup", "lookup", [pair[0], steps(256)], {}, {"consts": (1,)}),
        ("maximum", "maximum", pair, {}, {}),
        ("max_pool", "max_pool", [pair[0]], {**window, "ceil_mode": False, "indices": False}, {"order": channels_last}),
        ("sum_pool_integer", "sum_pool_integer", [steps(1, 1280, 7, 7)], mean, {"order": channels_last}),
        ("softmax_integer", "softmax_integer", [steps(64, 197), exp_table(0.06, 197), np.float32(256)],
         {"axis": -1, **zeros}, {"consts": (1, 2)}),
    ]  # fmt: skip
    return [(name, region_of(op, arrays, attrs, **how)) for name, op, arrays, attrs, how in rows]


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    wanted = sys.argv[1:]
    ratios = []
    for row in DEPTHWISE:
        if all(w in f"depthwise {row[0]} {row[1]}@{row[2]}" for w in wanted):
            ratios.append(measure_depthwise(*row))
    if ratios:
        means = [statistics.geometric_mean(r) for r in zip(*ratios, strict=True)]
        print(f"geometric means: float x{means[0]:.2f}, ONNX Runtime x{means[1]:.2f}")
    for name, (region, arrays) in others():
        if all(w in name for w in wanted):
            best = plans(region)[0]
            nbytes = sum(o.type.nbytes for o in (*region.inputs, *region.outputs))
            time = statistics.median(caller(region, best, arrays, 60, 5)())
            print(f"{name:36s} {time / 1e3:8.2f} us  {nbytes / time:6.1f} B/ns  {best.detail}", flush=True)


if __name__ == "__main__":
    main()
