"""Single kernels against ONNX Runtime one-node models: one thread, one core, interleaved, medians of rounds.

    python tests/bench/bench_kernels.py [filter ...]    # e.g. resnet50 3x3, mobilenetv2, gemm

Ours is the kernel called through ctypes, channels last in and out; ONNX Runtime's is the node's time in its profile
(layout reorders around it are not counted). A ratio above 1 means that ours is faster. ``% peak`` is of the FMA rate
measured at start-up by the largest kernel's own arithmetic, so compare ratios, not runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler" / "kernels"))
from harness import channels_last, load, region_of
from nervure.compiler.kernels.spec import Plan, Region
from nervure.compiler.kernels.templates import plans


def conv(name: str, ic: int, size: int, oc: int, kernel: int, stride: int = 1, group: int = 1) -> tuple[Any, ...]:
    pad = kernel // 2
    attrs = {"strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (1, 1), "group": group}
    return (f"{name} {kernel}x{kernel} {ic}@{size}->{oc} s{stride}" + (" dw" if group > 1 else ""), "conv",
            [(1, ic, size, size), (oc, ic // group, kernel, kernel), (oc,)], attrs)  # fmt: skip


def line(name: str, ic: int, height: int, width: int, oc: int, kernel: tuple[int, int]) -> tuple[Any, ...]:
    """A 1x3 or 3x1 convolution, padded along its width only."""
    pad = kernel[1] // 2
    attrs = {"strides": (1, 1), "pads": (0, pad, 0, pad), "dilations": (1, 1), "group": 1}
    label = f"{name} {kernel[0]}x{kernel[1]} {ic}@{height},{width}->{oc}"
    return label, "conv", [(1, ic, height, width), (oc, ic, *kernel), (oc,)], attrs


def gemm(name: str, m: int, k: int, n: int) -> tuple[Any, ...]:
    return (f"{name} gemm {m}x{k}x{n}", "matmul", [(m, k), (k, n)], {})


LAYERS = [
    conv("resnet50", 3, 224, 64, 7, 2),
    conv("resnet50", 64, 56, 64, 1),
    conv("resnet50", 64, 56, 64, 3),
    conv("resnet50", 256, 56, 64, 1),
    conv("resnet50", 256, 56, 512, 1, 2),
    conv("resnet50", 128, 28, 128, 3),
    conv("resnet50", 256, 28, 256, 3, 2),
    conv("resnet50", 256, 14, 1024, 1),
    conv("resnet50", 1024, 14, 256, 1),
    conv("resnet50", 256, 14, 256, 3),
    conv("resnet50", 512, 7, 2048, 1),
    conv("resnet50", 512, 7, 512, 3),
    conv("mobilenetv2", 3, 224, 32, 3, 2),
    conv("mobilenetv2", 32, 112, 16, 1),
    conv("mobilenetv2", 16, 112, 96, 1),
    conv("mobilenetv2", 96, 56, 24, 1),
    conv("mobilenetv2", 144, 28, 32, 1),
    conv("mobilenetv2", 64, 14, 384, 1),
    conv("mobilenetv2", 960, 7, 160, 1),
    conv("mobilenetv2", 32, 112, 32, 3, 1, 32),
    conv("mobilenetv2", 96, 112, 96, 3, 2, 96),
    conv("mobilenetv2", 144, 56, 144, 3, 1, 144),
    conv("mobilenetv2", 192, 28, 192, 3, 1, 192),
    conv("mobilenetv2", 576, 14, 576, 3, 2, 576),
    conv("mobilenetv2", 960, 7, 960, 3, 1, 960),
    conv("mobilenetv3", 96, 14, 96, 5, 1, 96),
    conv("mobilenetv3", 72, 28, 72, 5, 2, 72),
    conv("unet", 3, 256, 16, 3),
    conv("unet", 16, 256, 16, 3),
    conv("unet", 32, 128, 32, 3),
    conv("unet", 64, 64, 64, 3),
    conv("unet", 128, 64, 64, 3),
    conv("unet", 16, 256, 2, 1),
    conv("tiny", 3, 128, 8, 3, 2),
    conv("tiny", 8, 64, 8, 3, 1, 8),
    conv("tiny", 8, 64, 16, 1),
    conv("tiny", 16, 32, 16, 3),
    conv("tiny", 16, 32, 32, 3, 2),
    conv("tiny", 32, 16, 32, 3),
    conv("tiny", 64, 8, 64, 3),
    conv("tiny", 64, 8, 64, 1),
    conv("tiny", 128, 8, 128, 1),
    conv("tiny", 128, 8, 128, 3, 1, 128),
    conv("tiny", 24, 30, 24, 3),
    conv("tiny", 256, 4, 12, 3),
    line("speech", 24, 74, 32, 24, (1, 3)),
    line("speech", 24, 74, 32, 24, (3, 1)),
    line("speech", 48, 34, 16, 48, (1, 3)),
    line("speech", 72, 32, 8, 72, (3, 1)),
    line("speech", 96, 12, 4, 96, (1, 3)),
    gemm("bert", 128, 256, 256),
    gemm("bert", 128, 256, 1024),
    gemm("bert", 128, 1024, 256),
    gemm("vit", 197, 192, 576),
    gemm("vit", 197, 768, 192),
    gemm("big", 512, 512, 512),
    gemm("fc", 1, 1280, 1000),
    gemm("fc", 1, 2048, 1000),
    gemm("tiny", 1, 640, 128),
    gemm("tiny", 1, 128, 128),
    gemm("tiny", 1, 64, 10),
]


def caller(
    region: Region, plan: Plan, arrays: list[np.ndarray], repeat: int, batch: int = 1
) -> Callable[[], list[float]]:
    """Nanoseconds of one execution of all phases: ``repeat`` figures, each the mean of ``batch`` executions."""

    def buffer(nbytes: int) -> np.ndarray:
        raw = np.zeros(nbytes + 128, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + max(1, nbytes)]

    inputs = []
    for array, operand in zip(arrays, region.inputs, strict=True):
        held = buffer(operand.span * operand.type.itemsize)
        steps = tuple(s * array.itemsize for s in operand.strides)
        np.ndarray(array.shape, array.dtype, buffer=held, strides=steps)[...] = array
        inputs.append(held)
    outputs = [buffer(o.span * o.type.itemsize) for o in region.outputs]
    consts = []
    for c in plan.consts:
        consts.append(buffer(c.nbytes))
        consts[-1][: c.nbytes] = np.frombuffer(c.tobytes(), np.uint8)
    scratch = {"shared": buffer(plan.shared_bytes), "worker": buffer(plan.worker_bytes)}
    pools = {"in": inputs, "out": outputs, "const": consts}
    calls = []
    for draft in plan.phases:
        args: list[Any] = []
        for a in draft.args:
            base = pools[a.kind][a.index] if a.kind in pools else scratch[a.kind]
            args.append(ctypes.c_void_p(base.ctypes.data + a.offset))
        args += [ctypes.c_int(0), ctypes.c_int(draft.tasks)] if draft.tasks is not None else []
        calls.append((load(draft, region.machine), tuple(args)))

    def run() -> list[float]:
        times = []
        for _ in range(repeat):
            start = time.perf_counter_ns()
            for _ in range(batch):
                for function, args in calls:
                    function(*args)
            times.append((time.perf_counter_ns() - start) / batch)
        return times

    run.held = (inputs, outputs, consts, scratch)  # type: ignore[attr-defined]
    return run


def onnx_runtime(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], repeat: int, rounds: int) -> Any:
    """A function that runs one round, and one that gives the node's nanoseconds of each round from the profile."""
    from onnx import TensorProto, helper, numpy_helper

    names = ["x", "w", "b"][: len(arrays)]
    given = {"strides": attrs["strides"], "pads": attrs["pads"], "group": attrs["group"]} if op == "conv" else {}
    node = helper.make_node({"conv": "Conv", "matmul": "MatMul"}[op], names, ["y"], **given)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, arrays[0].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in zip(names[1:], arrays[1:], strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    kinds = ("Conv", "FusedConv", "MatMul", "NhwcFusedConv")
    return profiled(model, {"x": arrays[0]}, kinds, repeat, rounds)


def profiled(model: Any, feeds: dict[str, np.ndarray], kinds: tuple[str, ...], repeat: int, rounds: int) -> Any:
    """As ``onnx_runtime`` returns, for any one-node model: the time of its nodes of the given ``kinds``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(tempfile.gettempdir()) / f"ort_{os.getpid()}")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> None:
        for _ in range(repeat):
            session.run(None, feeds)

    def finish() -> list[float]:
        path = Path(session.end_profiling())
        events = json.loads(path.read_text())
        path.unlink()
        times = [
            e["dur"] * 1e3
            for e in events
            if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["args"].get("op_name") in kinds
        ]
        times = times[-rounds * repeat :]
        return [statistics.median(times[i * repeat : (i + 1) * repeat]) for i in range(rounds)]

    return run, finish


def measure(layer: tuple[Any, ...], rounds: int = 7) -> None:
    name, op, shapes, attrs = layer
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s, np.float32) for s in shapes]
    arrays[1] /= np.sqrt(np.prod(shapes[1][1:]) if op == "conv" else shapes[1][0])
    first = range if op == "matmul" or shapes[0][1] <= 3 else channels_last
    region, given = region_of(
        op,
        arrays,
        attrs,
        order=lambda rank: first(rank) if rank == len(shapes[0]) else range(rank),
        output_order=range if op == "matmul" else channels_last,
        consts=range(1, len(arrays)),
    )
    depth = int(np.prod(shapes[1][1:])) if op == "conv" else shapes[1][0]
    flops = 2.0 * region.anchor_type.size * depth
    estimate = flops / 60 + 500
    batch = max(1, int(2e4 / estimate))
    repeat = max(3, min(1000, int(4e6 / (estimate * batch))))
    found = plans(region)
    runs = [caller(region, p, given, repeat, batch) for p in found]
    peer, finish = onnx_runtime(op, arrays, attrs, repeat, rounds)
    peer()
    for run in runs:
        run()
    ours: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for i, run in enumerate(runs):
            ours[i].append(statistics.median(run()))
        peer()
    theirs = finish()
    for i, plan in enumerate(found):
        mine = statistics.median(ours[i])
        best = min(theirs) / min(ours[i])
        ratio = statistics.median(t / m for t, m in zip(theirs, ours[i], strict=True))
        print(
            f"{name:36s} {mine / 1e3:9.2f} us {flops / mine:6.1f} GF  ort {statistics.median(theirs) / 1e3:9.2f} us"
            f"  x{ratio:5.2f} (best {best:5.2f})  model {plan.cost / mine:5.2f}  {plan.detail}",
            flush=True,
        )


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    wanted = sys.argv[1:]
    for layer in LAYERS:
        if all(w in layer[0] for w in wanted):
            measure(layer)


if __name__ == "__main__":
    main()
