"""Convolutions of a training step against PyTorch in channels_last: one thread, one core, interleaved, medians.

    python tests/bench/bench_training_kernels.py [--torch PYTHON] [--batch N] [filter ...]   # e.g. resnet8 dw

Each layer has three rows: forward, dX and dW, with weights known only at run time (their packing counts). Ours is the
kernels called through ctypes, channels last in and out, weights row-major; PyTorch's is ``aten.convolution`` and
``aten.convolution_backward`` with an output mask, without autograd. ``% peak`` is of the FMA rate measured at start-up
and counts the operations of the direct sum without those outside of the input left out, so it may pass 100. ``--torch``
names a Python that has PyTorch, where this one has not; ``--all`` shows every plan.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from bench_kernels import caller
from bench_roofline import limits
from harness import channels_last, dense, region_of
from nervure import targets
from nervure.compiler.kernels.spec import Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.ops.windows import output_extents

PEER = r"""
import json, sys, time, torch
torch.set_num_threads(1)
torch.set_flush_denormal(True)
aten = torch.ops.aten
while line := sys.stdin.readline():
    kind, x, w, y, strides, pads, group, repeat = json.loads(line)
    x, w, g = (torch.randn(s).to(memory_format=torch.channels_last) for s in (x, w, y))
    common = (strides, pads, [1, 1], False, [0, 0], group)
    mask = [kind == "dX", kind == "dW", False]
    def run():
        if kind == "forward":
            return aten.convolution(x, w, None, *common)
        return aten.convolution_backward(g, x, w, None, *common, mask)
    times = []
    with torch.no_grad():
        for _ in range(repeat + 2):
            start = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - start)
    print(json.dumps(sorted(times[2:])[repeat // 2]), flush=True)
"""

Layer = tuple[str, tuple[int, ...], int, tuple[int, int], int, tuple[int, int], int]

LAYERS: list[Layer] = [  # name, x (without the batch), output channels, kernel, stride, pads, group
    ("resnet8 3x3 3->16@32", (3, 32, 32), 16, (3, 3), 1, (1, 1), 1),
    ("resnet8 3x3 16->16@32", (16, 32, 32), 16, (3, 3), 1, (1, 1), 1),
    ("resnet8 3x3 16->32@32 s2", (16, 32, 32), 32, (3, 3), 2, (1, 1), 1),
    ("resnet8 1x1 16->32@32 s2", (16, 32, 32), 32, (1, 1), 2, (0, 0), 1),
    ("resnet8 3x3 32->32@16", (32, 16, 16), 32, (3, 3), 1, (1, 1), 1),
    ("resnet8 3x3 32->64@16 s2", (32, 16, 16), 64, (3, 3), 2, (1, 1), 1),
    ("resnet8 1x1 32->64@16 s2", (32, 16, 16), 64, (1, 1), 2, (0, 0), 1),
    ("resnet8 3x3 64->64@8", (64, 8, 8), 64, (3, 3), 1, (1, 1), 1),
    ("dscnn 10x4 1->64@49,10 s2", (1, 49, 10), 64, (10, 4), 2, (5, 1), 1),
    ("dscnn 3x3 64@25,5 dw", (64, 25, 5), 64, (3, 3), 1, (1, 1), 64),
    ("dscnn 1x1 64->64@25,5", (64, 25, 5), 64, (1, 1), 1, (0, 0), 1),
    ("mobile 3x3 128@12 dw", (128, 12, 12), 128, (3, 3), 1, (1, 1), 128),
    ("mobile 3x3 64@24 s2 dw", (64, 24, 24), 64, (3, 3), 2, (1, 1), 64),
    ("mobile 1x1 64->128@12", (64, 12, 12), 128, (1, 1), 1, (0, 0), 1),
    ("mobile 1x1 128->128@12", (128, 12, 12), 128, (1, 1), 1, (0, 0), 1),
    ("lenet 5x5 1->6@28", (1, 28, 28), 6, (5, 5), 1, (2, 2), 1),
    ("lenet 5x5 6->16@14", (6, 14, 14), 16, (5, 5), 1, (0, 0), 1),
    ("large 3x3 128->128@14", (128, 14, 14), 128, (3, 3), 1, (1, 1), 1),
]


def region(kind: str, layer: Layer, batch: int, exact: bool) -> tuple[Region, list[np.ndarray], tuple[int, ...]]:
    """The region of a layer's forward or backward convolution, its arrays, and the shape of y."""
    _, x, outputs, kernel, stride, pads, group = layer
    attrs: dict[str, Any] = {"strides": (stride,) * 2, "pads": (*pads, *pads), "dilations": (1, 1), "group": group}
    extents = output_extents(x[1:], kernel, attrs["strides"], attrs["pads"], (1, 1))
    y = (batch, outputs, *extents)
    rng = np.random.default_rng(0)
    xs, ws, gs = (rng.standard_normal(s, np.float32) for s in ((batch, *x), (outputs, x[0] // group, *kernel), y))
    op, arrays = {
        "forward": ("conv", [xs, ws]),
        "dX": ("conv_transpose", [gs, ws]),
        "dW": ("conv_grad_weight", [xs, gs]),
    }[kind]
    if kind == "dX":
        attrs["output_padding"] = [
            n + 2 * p - k - (e - 1) * stride for n, p, k, e in zip(x[1:], pads, kernel, extents, strict=True)
        ]
    if kind == "dW":
        attrs["kernel_shape"] = kernel
    last = range if kind == "dW" else channels_last
    made, given = region_of(op, arrays, attrs, order=channels_last, output_order=last, exact=exact)
    if kind != "dW":  # weights lie row-major
        made = replace(made, inputs=(made.inputs[0], replace(made.inputs[1], strides=dense(ws.shape))))
    return made, given, y


class Peer:
    """PyTorch in a process of its own, on the same core."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def measure(self, kind: str, layer: Layer, batch: int, y: tuple[int, ...], repeat: int) -> float:
        """Median nanoseconds."""
        _, x, outputs, kernel, stride, pads, group = layer
        shapes = [(batch, *x), (outputs, x[0] // group, *kernel), y]
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([kind, *shapes, [stride] * 2, pads, group, repeat]) + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))


def measure(layer: Layer, kind: str, batch: int, peer: Peer | None, peak: float, every: bool, exact: bool) -> None:
    made, arrays, y = region(kind, layer, batch, exact)
    flops = 2.0 * np.prod(y) * np.prod(layer[3]) * layer[1][0] / layer[6]
    repeat = int(np.clip(3e7 / (flops / 60), 5, 50))
    found = plans(made) if every else plans(made)[:1]
    runs: list[Callable[[], list[float]]] = [caller(made, p, arrays, repeat) for p in found]
    ours: list[list[float]] = [[] for _ in runs]
    theirs = []
    for n in range(6):
        for mine, run in zip(ours, runs, strict=True):
            mine += [statistics.median(run())] if n else (run(), [])[1]
        if peer:
            theirs.append(peer.measure(kind, layer, batch, y, repeat))
    for plan, mine in zip(found, ours, strict=True):
        time = statistics.median(mine)
        text = f"{layer[0]:27s} {kind:8s}{time / 1e3:8.1f} us {100 * flops / time / peak:4.0f} % peak"
        if peer:
            other = statistics.median(theirs[1:])
            text += f"  torch {other / 1e3:8.1f} us  x{other / time:5.2f}"
        print(f"{text}  model {plan.cost / time:4.2f}  {plan.detail}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("filter", nargs="*", help="parts of the name that a row must have; forward, dX or dW too")
    parser.add_argument("--torch", help="a Python with PyTorch")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--all", action="store_true", help="every plan, not the cheapest alone")
    parser.add_argument("--exact", action="store_true", help="no Winograd")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peak = limits(targets.host().lanes)[0] / 1e9
    print(f"peak {peak:.0f} GFLOP/s, batch {options.batch}")
    peer = Peer(options.torch) if options.torch else None
    for layer in LAYERS:
        for kind in ("forward", "dX", "dW"):
            if all(f in f"{layer[0]} {kind}" for f in options.filter) and (kind != "dX" or layer[1][0] > 3):
                measure(layer, kind, options.batch, peer, peak, options.all, options.exact)


if __name__ == "__main__":
    main()
