"""The contestants of ``bench_int8``: any Python with numpy and the peer runs this file, which imports nothing of ours
unless it is asked for our artifact.

    python int8_peers.py '{"kind": ..., "path": ..., "data": ..., "threads": 1}'

It answers ``@`` and JSON on standard output: first its facts, then one answer for each line of standard input.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 0.25
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "nncf": "nncf", "litert": "ai-edge-litert"}
Made = tuple[Callable[[], Any], Callable[[], list[np.ndarray]], str]  # the call, its outputs, the version


def available() -> dict[str, str]:
    """The peers that this Python has, with their versions."""
    found = {}
    for kind, package in PACKAGES.items():
        try:
            found[kind] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _inputs(request: Mapping[str, Any]) -> list[np.ndarray]:
    with np.load(request["data"]) as held:
        return [np.ascontiguousarray(held[k]) for k in sorted(held.files)]


def ours(request: Mapping[str, Any]) -> Made:
    import nervure

    session = nervure.load(request["path"], request["threads"])
    names = [port.name for port in session.get_inputs()]
    bound = dict(zip(names, _inputs(request), strict=True))
    session.bind(bound)
    return session.invoke, lambda: session.run(None, bound), nervure.__version__


def onnxruntime(request: Mapping[str, Any]) -> Made:
    """io_binding: inputs and outputs stay where they are."""
    import onnxruntime as peer

    options = peer.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request["threads"], 1
    options.log_severity_level = 3
    session = peer.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
    bound = dict(zip([i.name for i in session.get_inputs()], _inputs(request), strict=True))
    binding = session.io_binding()
    for name, array in bound.items():
        binding.bind_cpu_input(name, array)
    for name, array in zip([o.name for o in session.get_outputs()], session.run(None, bound), strict=True):
        value = peer.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_output(name, value)
    return lambda: session.run_with_iobinding(binding), lambda: session.run(None, bound), peer.__version__


def openvino(request: Mapping[str, Any]) -> Made:
    """OpenVINO on an ONNX file; ``nncf``: on what NNCF's post-training quantization makes of a float one."""
    import openvino as peer

    core = peer.Core()
    model = core.read_model(request["path"])
    inputs = _inputs(request)
    model.reshape({port: list(array.shape) for port, array in zip(model.inputs, inputs, strict=True)})
    version = str(peer.__version__).split("-")[0]
    if request["kind"] == "nncf":
        import nncf

        samples = [[*sample] for sample in _samples(inputs)]
        model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
        version = f"{version} + nncf {nncf.__version__}"
    settings = {"INFERENCE_NUM_THREADS": request["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError:  # 2026.4 lacks bf16 kernels for what stays in float of some models
        compiled = core.compile_model(model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": "f32"})
        version += " (f32 for the rest)"
    call = compiled.create_infer_request()
    for port, array in zip(compiled.inputs, inputs, strict=True):
        call.set_tensor(port, peer.Tensor(array, shared_memory=True))

    def step() -> None:
        call.start_async()
        call.wait()

    def outputs() -> list[np.ndarray]:
        step()
        return [np.array(call.get_tensor(port).data) for port in compiled.outputs]

    return step, outputs, version


def litert(request: Mapping[str, Any]) -> Made:
    """With its default delegate (XNNPACK)."""
    from ai_edge_litert.interpreter import Interpreter

    session = Interpreter(model_path=request["path"], num_threads=request["threads"])
    session.allocate_tensors()
    for detail, array in zip(session.get_input_details(), _inputs(request), strict=True):
        session.set_tensor(detail["index"], array)
    outputs = [d["index"] for d in session.get_output_details()]

    def run() -> list[np.ndarray]:
        session.invoke()
        return [session.get_tensor(i) for i in outputs]

    return session.invoke, run, importlib.metadata.version("ai-edge-litert")


def _samples(inputs: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Calibration data where only speed is asked for: the input, and noise like it."""
    random = np.random.default_rng(0)
    noise = [[random.normal(a.mean(), a.std(), a.shape).astype(a.dtype) for a in inputs] for _ in range(7)]
    return [inputs, *noise]


def quantize(request: Mapping[str, Any]) -> None:
    """Writes ``out``: what ONNX Runtime's static quantizer makes of a float model (QDQ, uint8 activations, int8
    weights for each channel: what its x86 kernels are made for)."""
    import onnx
    from onnxruntime import quantization as peer

    class Reader(peer.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            graph = onnx.load(request["path"]).graph
            stored = {i.name for i in graph.initializer}
            names = [i.name for i in graph.input if i.name not in stored]
            self.rows = iter([dict(zip(names, s, strict=True)) for s in _samples(_inputs(request))])

        def get_next(self) -> Any:
            return next(self.rows, None)

    peer.quantize_static(
        request["path"],
        request["out"],
        Reader(),
        quant_format=peer.QuantFormat.QDQ,
        per_channel=True,
        activation_type=peer.QuantType.QUInt8,
        weight_type=peer.QuantType.QInt8,
    )


MAKERS: dict[str, Callable[[Mapping[str, Any]], Made]] = {
    "ours": ours,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "nncf": openvino,
    "litert": litert,
}


def serve(request: Mapping[str, Any]) -> None:
    if request["kind"] == "available":
        print("@" + json.dumps(available()), flush=True)
        return
    if request["kind"] == "quantize":
        quantize(request)
        print("@{}", flush=True)
        return
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: request["threads"]]))
    step, outputs, version = MAKERS[request["kind"]](request)
    deadline = time.perf_counter() + 0.2
    while time.perf_counter() < deadline:
        step()
    print("@" + json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        if line.strip() == "go":
            print("@" + json.dumps(_median(step)), flush=True)
        else:
            np.savez(line.strip(), **{f"a{i}": v for i, v in enumerate(outputs())})
            print("@{}", flush=True)


def _median(step: Callable[[], Any]) -> float:
    """The median time of a call, seconds."""
    step()
    found: list[float] = []
    deadline = time.perf_counter() + SECONDS
    while time.perf_counter() < deadline or len(found) < 3:
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


if __name__ == "__main__":
    sys.path = [p for p in sys.path if p != str(Path(__file__).resolve().parent)]
    serve(json.loads(sys.argv[1]))
