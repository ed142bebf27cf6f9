"""Networks on the GPU of this machine beside PyTorch (eager; CUDA graphs), ONNX Runtime CUDA and TensorRT.

    python tests/bench/bench_cuda.py [--nets mobilenet_v2 ...] [--batches 1 64] [--precision fp16] [--torch PYTHON]
        [--peers eager graph ort tensorrt] [--rounds 9] [--checks] [--json OUT]

Prints the table of the figures that wait for a GPU: latency and throughput as ratios (the peer's time over ours in the
same rounds, interleaved, medians: above 1 nervure is faster), the cost of launching a whole network, and with
``--checks`` agreement with ONNX Runtime, 8 contexts on 8 streams, 10,000 runs without growth, compute-sanitizer on a
small network. Inputs and outputs lie in the GPU's memory; a call is done when its result is there.

``--torch``: a Python with PyTorch for CUDA (default: this one); it also exports the networks, and runs ONNX Runtime GPU
(``onnxruntime-gpu``, with its TensorRT provider) where that is installed. ``--nets FILE.onnx`` takes a model of your
own, at its own batch, beside those two. A peer that cannot be had is left out, and named. Without a GPU it says so and
ends with 2; ``--emulated`` walks through it with a GPU that this CPU plays, which times nothing of worth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent)]
from contestants import Contestant, ratio  # noqa: E402

NETS = ("mobilenet_v2", "resnet50", "vit_tiny", "bert_base")
PEERS = ("eager", "graph", "ort", "tensorrt")
SECONDS = 0.3
RUNS, STREAMS, GROWTH = 10_000, 8, 1 << 20  # bytes that the driver may keep


# -- contestants -----------------------------------------------------------------------------------------------------


def ours(request: dict[str, Any]) -> Callable[[], Any]:
    """A call of the compiled network on arrays in the GPU's memory."""
    session, inputs = _session(request)
    return session.device_binding({n: session.device_array(a) for n, a in inputs.items()})


def _session(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    from nervure.frontends.twin import open_session
    from nervure.frontends.verify import random_inputs
    from nervure.runtime.artifact import read_artifact

    session = open_session(read_artifact(request["library"]))
    return session, random_inputs(session.get_inputs(), 1)


def pytorch(request: dict[str, Any]) -> Callable[[], Any]:
    """PyTorch's forward pass as a user of it would make it fast; ``graph``: captured once and replayed."""
    import torch

    sys.path.insert(0, str(HERE.parent))
    import cuda_nets

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(request["precision"], torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request["precision"] != "exact"
    torch.backends.cudnn.benchmark = True
    net, x = cuda_nets.make(request["net"], request["batch"])
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    net, x = net.to("cuda", dtype, memory_format=layout), x.to("cuda", dtype, memory_format=layout)

    @torch.inference_mode()
    def call() -> None:
        net(x)
        torch.cuda.synchronize()

    if request["kind"] == "eager":
        return call
    with torch.inference_mode():
        for _ in range(3):
            net(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            net(x)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def onnxruntime(request: dict[str, Any]) -> Callable[[], Any]:
    """ONNX Runtime's CUDA or TensorRT provider, inputs and outputs bound on the device."""
    import numpy as np
    import onnxruntime as ort

    half = request["precision"] == "fp16"
    options = {
        "ort": ("CUDAExecutionProvider", {}),
        "tensorrt": ("TensorrtExecutionProvider", {"trt_fp16_enable": half}),
    }
    name, settings = options[request["kind"]]
    if name not in ort.get_available_providers():
        raise RuntimeError(f"{name} is not there")
    if half and request["kind"] == "ort":
        settings = {"use_tf32": 1}
    model = request["half"] if half and request["kind"] == "ort" else request["model"]
    session = ort.InferenceSession(model, providers=[(name, settings), "CUDAExecutionProvider"])
    dtype = np.float16 if "float16" in session.get_inputs()[0].type else np.float32
    x = np.random.default_rng(1).standard_normal(session.get_inputs()[0].shape).astype(dtype)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
    binding.bind_output("y", "cuda")

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


KINDS: dict[str, Callable[[dict[str, Any]], Callable[[], Any]]] = {
    **{"ours": ours, "eager": pytorch, "graph": pytorch},
    **{"ort": onnxruntime, "tensorrt": onnxruntime},
}


def serve(request: dict[str, Any]) -> None:
    """Answers "go" with the median seconds of a call."""
    call = KINDS[request["kind"]](request)
    for _ in range(3):
        call()
    print("@{}", flush=True)
    for _ in sys.stdin:
        found: list[float] = []
        until = time.perf_counter() + request["seconds"]
        while time.perf_counter() < until or len(found) < 3:
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
        print("@" + json.dumps(sorted(found)[len(found) // 2]), flush=True)


# -- the table -------------------------------------------------------------------------------------------------------


def export(args: argparse.Namespace, net: str, batch: int, folder: Path) -> dict[str, str]:
    """The network as ONNX, in float32 and float16, written by PyTorch; an ONNX file as it is."""
    if net.endswith(".onnx"):
        return {"model": net, "half": net}
    made = {kind: str(folder / f"{net}_{batch}_{kind}.onnx") for kind in ("model", "half")}
    for kind, path in made.items():
        code = f"import cuda_nets; cuda_nets.export({net!r}, {batch}, {path!r}, half={kind == 'half'})"
        subprocess.run([args.torch, "-c", code], cwd=HERE.parent, check=True, capture_output=True)
    return made


def compiled(args: argparse.Namespace, model: str, folder: Path, precision: str) -> str:
    import nervure as nv

    target = "cuda-sm80-emulated" if args.emulated else _target()
    out = folder / f"{Path(model).stem}_{precision}.so"
    return str(nv.compile(model, target, precision=precision, out=out).path)


def _target() -> str:
    """The target that fits the first device best."""
    from nervure.runtime.driver import find_driver
    from nervure.targets import MACHINES

    number = find_driver().devices[0].architecture
    fits = [(max(m.gpu.images), n) for n, m in MACHINES.items() if m.gpu and n != "cuda" and m.gpu.runs_on(number)]
    return max(fits)[1] if fits else "cuda"


def one(args: argparse.Namespace, net: str, batch: int, folder: Path) -> dict[str, Any]:
    """A row: our time, the peers', the cost of a launch."""
    files = export(args, net, batch, folder)
    library = compiled(args, files["model"], folder, args.precision)
    request = {"net": net, "batch": batch, "precision": args.precision, "library": library, "seconds": args.seconds}
    request |= files
    running = [(k, Contestant(_command(args, {"kind": k, **request}))) for k in ("ours", *args.peers)]
    there = [(k, c) for k, c in running if c.facts is not None]
    try:
        for _ in range(args.rounds):
            for _, contestant in there:
                contestant.rounds.append(contestant.ask("go"))
    finally:
        for _, contestant in running:
            contestant.stop()
    mine = dict(there)["ours"]
    return {
        "net": net,
        "batch": batch,
        "ms": {k: c.median * 1e3 for k, c in there},
        "ratio": {k: ratio(c.rounds, mine.rounds) for k, c in there if k != "ours"},
        "left_out": [k for k, c in running if c.facts is None],
        "launch_us": launch_cost(request) * 1e6,
    }


def _command(args: argparse.Namespace, request: dict[str, Any]) -> list[str]:
    python = sys.executable if request["kind"] == "ours" else args.torch
    return [python, str(HERE), "--serve", json.dumps(request)]


def launch_cost(request: dict[str, Any], times: int = 200) -> float:
    """Seconds that the host takes to enqueue a whole network, the median of many."""
    session, inputs = _session(request)
    call = session.device_binding({n: session.device_array(a) for n, a in inputs.items()}, stream=1)
    call()
    session.wait()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
        session.wait()
    return sorted(found)[times // 2]


# -- checks ----------------------------------------------------------------------------------------------------------


def agreement(args: argparse.Namespace, model: str, folder: Path) -> dict[str, float]:
    """The largest error against ONNX Runtime on the CPU, for each precision."""
    from nervure.frontends.verify import verify
    from nervure.runtime.artifact import read_artifact

    found = {}
    for precision in ("default", "exact", "fp16"):
        library = compiled(args, model, folder, precision)
        _, inputs = _session({"library": library})
        session = _session({"library": library})[0]
        found[precision] = verify(read_artifact(library), Path(model), {"seed 1": inputs}, session)[0].worst
    return found


def contexts(library: str) -> bool:
    """Whether as many contexts at once, each with its thread and stream, give what one alone gives."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    session, inputs = _session({"library": library})
    alone = session.run(None, inputs)
    twins = [session.clone() for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS) as threads:
        runs = threads.map(lambda twin: [twin.run(None, inputs) for _ in range(20)], twins)
        return all(np.array_equal(a, b) for found in runs for got in found for a, b in zip(got, alone, strict=True))


def growth(library: str, runs: int) -> int:
    """Bytes of the device's memory that many runs take and do not give back."""
    import ctypes

    session, inputs = _session({"library": library})
    code = ctypes.CDLL(session.artifact.gpu["driver"])

    def free() -> int:
        here, whole = ctypes.c_size_t(), ctypes.c_size_t()
        context = ctypes.c_void_p()
        code.cuDevicePrimaryCtxRetain(ctypes.byref(context), session.device)
        code.cuCtxPushCurrent_v2(context)
        code.cuMemGetInfo_v2(ctypes.byref(here), ctypes.byref(whole))
        code.cuCtxPopCurrent_v2(ctypes.byref(context))
        code.cuDevicePrimaryCtxRelease_v2(session.device)
        return here.value

    session.run(None, inputs)
    before = free()
    for _ in range(runs):
        session.run(None, inputs)
    return before - free()


def sanitized(library: str) -> str:
    """What compute-sanitizer says of a run."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer is not installed"
    code = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); import bench_cuda as b; "
    code += f"s, x = b._session({{'library': {library!r}}}); s.run(None, x)"
    said = []
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True)
        said.append(f"{check} {'clean' if done.returncode == 0 else done.stdout.strip().splitlines()[-1]}")
    return ", ".join(said)


def checks(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that is no time, on the first network at batch 1 and on a small one."""
    files = export(args, args.nets[0], 1, folder)
    library = compiled(args, files["model"], folder, "default")
    return {
        "agreement": agreement(args, files["model"], folder),
        "contexts_right": contexts(library),
        "growth_bytes": growth(library, args.runs),
        "sanitizer": sanitized(library),
    }


def show(found: dict[str, Any]) -> None:
    print(f"{found['device']}; {found['precision']}; a ratio is the peer's time over ours (asked: 1.0 or more)")
    for row in found["rows"]:
        times = ", ".join(f"{k} {v:.3f} ms" for k, v in row["ms"].items())
        ratios = ", ".join(f"{k} {v:.2f}x" for k, v in row["ratio"].items()) or "no peer"
        print(f"{row['net']} batch {row['batch']}: {times}; {ratios}; launch {row['launch_us']:.1f} us (asked: 20)")
        if row["left_out"]:
            print(f"  left out: {', '.join(row['left_out'])} (BENCH_ERRORS=1 shows why)")
    for name, value in (found.get("checks") or {}).items():
        print(f"{name}: {value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--precision", default="fp16", choices=["default", "exact", "fp16", "bf16"])
    parser.add_argument("--torch", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve")
    args = parser.parse_args()
    if args.serve:
        serve(json.loads(args.serve))
        return 0
    from nervure.errors import NervureError
    from nervure.runtime.driver import find_driver

    try:
        device = "played by this CPU" if args.emulated else find_driver().devices[0].name
    except NervureError as error:
        print(f"{error}\nthe figures of this bench wait for a machine with a GPU", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder = Path(place)
        rows = [one(args, net, batch, folder) for net in args.nets for batch in args.batches]
        found = {"device": device, "precision": args.precision, "rows": rows}
        found |= {"checks": checks(args, folder)} if args.checks else {}
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
