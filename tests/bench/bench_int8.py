"""8-bit models beside ONNX Runtime, OpenVINO (and NNCF) and LiteRT, and beside our own float artifact of the same net.

    python tests/bench/bench_int8.py [NAME ...] [--float resnet50 mobilenet_v2 ...] [--peers PYTHON ...]
        [--threads 1] [--rounds 9] [--lock FILE] [--json OUT]

NAMEs are the quantized models of ``../shared`` (all where none is given): ONNX Runtime and OpenVINO run the QDQ file,
LiteRT the .tflite that it was converted from. ``--float`` quantizes a float model first, with ONNX Runtime's static
quantizer (uint8 activations, int8 weights for each channel) and, for OpenVINO, NNCF's too. ``--peers`` names Pythons
that have peers installed: each is asked which.

Each contestant is a process of its own, pinned to the same cores; rounds are interleaved, a figure is the median of
the rounds' medians and a ratio the median of the rounds' ratios (above 1 we are faster). ``invoke`` on bound buffers
is compared with io_binding, an inference request with bound tensors, and LiteRT's ``invoke``. Outputs are compared
with ONNX Runtime's, in steps of the output. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
from contestants import Contestant, alone, ratio  # noqa: E402

FLOAT = {  # the float net that a quantized model is one of
    "coral_mobilenet_v1_0.25_128_quant": "mnv1_025_128_imagenet",
    "tvqat_mobilenet_v2_nchw_quant": "mnv2_imagenet_tv",
}


class Call(Contestant):
    """Calls of one model by one peer."""

    def __init__(self, python: str, name: str, request: Mapping[str, Any]) -> None:
        self.name = name
        super().__init__([python, str(HERE.parent / "int8_peers.py"), json.dumps(request)])

    def round(self) -> None:
        self.rounds.append(self.ask("go"))

    def outputs(self, path: Path) -> list[np.ndarray]:
        self.ask(str(path))
        with np.load(path) as held:
            return [held[k] for k in sorted(held.files)]


@dataclass(frozen=True)
class Net:
    """Files of one network: quantized ONNX, its .tflite, the float net. Any but the first may be missing."""

    name: str
    onnx: Path
    tflite: Path | None = None
    real: Path | None = None
    calibrated: bool = False  # quantized here


def pythons(args: argparse.Namespace) -> dict[str, str]:
    """The peers at hand: name -> Python."""
    found: dict[str, str] = {}
    for python in args.peers:
        asked = Call(python, "", {"kind": "available"})
        asked.stop()
        for kind, version in sorted((asked.facts or {}).items()):
            if kind not in found:
                found[kind] = python
                print(f"{kind} {version}")
    return found


def inputs_of(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Input name -> seeded numbers; free dimensions are 1."""
    import onnx

    random = np.random.default_rng(seed)
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {i.name for i in graph.initializer}
    made: dict[str, np.ndarray] = {}
    for port in graph.input:
        if port.name in stored:
            continue
        kind = port.type.tensor_type
        shape = [d.dim_value or 1 for d in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype.kind == "f":
            made[port.name] = random.standard_normal(shape).astype(dtype)
        else:
            made[port.name] = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)
    return made


def _stored(inputs: Mapping[str, np.ndarray], path: Path) -> str:
    np.savez(path, **{f"a{i:03}": v for i, v in enumerate(inputs.values())})
    return str(path)


def _artifact(path: Path, out: Path, args: argparse.Namespace, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import nervure as nv

    model = nv.compile(path, threads=args.threads, shapes={k: v.shape for k, v in inputs.items()}, out=out)
    report = model.report
    return {"arena": report.arena_bytes, "weights": report.weights_bytes, "file": out.stat().st_size}


def one(net: Net, at: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """One network's row."""
    with tempfile.TemporaryDirectory(prefix="bench-") as held:
        folder = Path(held)
        running, row = _contestants(net, at, args, folder)
        failed = [c for c in running if c.facts is None]
        good = [c for c in running if c.facts is not None]
        try:
            with alone(args.lock):
                for _ in range(args.rounds):
                    for contestant in good:
                        contestant.round()
            found = {c.name: c.outputs(folder / "outputs.npz") for c in good}
        finally:
            for contestant in running:
                contestant.stop()
    row |= {"ms": {c.name: statistics.median(c.rounds) * 1e3 for c in good}, "failed": [c.name for c in failed]}
    row["versions"] = {c.name: c.facts["version"] for c in good}
    ours = next((c for c in good if c.name == "ours"), None)
    if ours:
        row["ratio"] = {c.name: ratio(c.rounds, ours.rounds) for c in good if c is not ours}
    if "onnxruntime" in found:
        row["apart"] = {
            k: apart(v, found["onnxruntime"]) for k, v in found.items() if k not in ("onnxruntime", "float")
        }
    return row


def _contestants(
    net: Net, at: Mapping[str, str], args: argparse.Namespace, folder: Path
) -> tuple[list[Call], dict[str, Any]]:
    inputs = inputs_of(net.onnx)
    data = _stored(inputs, folder / "inputs.npz")
    common = {"data": data, "threads": args.threads}
    row: dict[str, Any] = {"net": net.name, "onnx_kb": net.onnx.stat().st_size / 1024}
    running = []
    row["int8"] = _artifact(net.onnx, folder / "int8.so", args, inputs)
    running.append(Call(sys.executable, "ours", {**common, "kind": "ours", "path": str(folder / "int8.so")}))
    if net.real is not None:
        real = inputs_of(net.real)
        row["float"] = _artifact(net.real, folder / "float.so", args, real)
        request = {**common, "kind": "ours", "path": str(folder / "float.so")}
        request["data"] = _stored(real, folder / "real.npz")
        running.append(Call(sys.executable, "float", request))
    for kind in ("onnxruntime", "openvino"):
        if kind in at:
            running.append(Call(at[kind], kind, {**common, "kind": kind, "path": str(net.onnx)}))
    if net.calibrated and "nncf" in at:
        running.append(Call(at["nncf"], "nncf", {**common, "kind": "nncf", "path": str(net.real)}))
    if net.tflite is not None and "litert" in at:
        row["tflite_kb"] = net.tflite.stat().st_size / 1024
        running.append(Call(at["litert"], "litert", {**common, "kind": "litert", "path": str(net.tflite)}))
    return running, row


def apart(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> dict[str, float]:
    """The share of unequal outputs, and the largest difference in steps: of integers, or, of floating-point numbers,
    the smallest distance of two that were expected."""
    share, most = 0.0, 0.0
    for a, b in zip(found, expected, strict=True):
        y, ref = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
        step = 1.0 if b.dtype.kind in "iu" else float(np.diff(np.unique(ref)).min(initial=1.0))
        if y.size != ref.size or (a.dtype.kind in "iu") != (b.dtype.kind in "iu"):
            return {"share": math.nan, "steps": math.nan}
        steps = np.abs(y - ref) / step
        share, most = max(share, float((steps > 0.5).mean())), max(most, float(steps.max(initial=0)))
    return {"share": share, "steps": most}


# -- the networks ------------------------------------------------------------------------------------------------------


def nets(args: argparse.Namespace, at: Mapping[str, str], folder: Path) -> Iterator[Net]:
    import models

    place = models.folder()
    quantized = models.SHARED / "models" / "quantized"
    if place is None:
        raise SystemExit(f"{models.SHARED} has no models")
    names = args.names or ([] if args.float is not None else [p.stem for p in sorted(quantized.glob("*.onnx"))])
    for name in names:
        path = quantized / f"{name}.onnx"
        path = path if path.exists() else quantized / f"{name}_int8.onnx"
        real = place / f"{FLOAT.get(path.stem, path.stem.removesuffix('_int8'))}.onnx"
        tflite = path.with_suffix(".tflite")
        yield Net(path.stem, path, tflite if tflite.exists() else None, real if real.exists() else None)
    for name in args.float or ():
        real, out = place / f"{name}.onnx", folder / f"{name}_int8.onnx"
        data = _stored(inputs_of(real), folder / "calibration.npz")
        request = {"kind": "quantize", "path": str(real), "out": str(out), "data": data}
        made = Call(at["onnxruntime"], "", request)
        made.stop()
        if made.facts is None:
            print(f"{name:34} FAILED: ONNX Runtime's quantizer (BENCH_ERRORS=1 shows why)", flush=True)
            continue
        yield Net(name, out, None, real, calibrated=True)


# -- the table ---------------------------------------------------------------------------------------------------------


def show(row: Mapping[str, Any]) -> None:
    if "ms" not in row:
        print(f"{row['net']:34} FAILED: {row['why']}", flush=True)
        return
    ours = row["ms"].get("ours", math.nan)
    ratio = row.get("ratio", {})
    best = min((v for k, v in ratio.items() if k != "float"), default=math.nan)
    parts = [f"{k} {row['ms'][k] * 1e3:.1f} ({ratio[k]:.2f}x)" for k in ratio]
    print(f"{row['net']:34} {ours * 1e3:9.1f} us {best:5.2f}x | " + ", ".join(parts), flush=True)
    sizes = [f"ONNX {row['onnx_kb']:.0f} KB"] + ([f".tflite {row['tflite_kb']:.0f}"] if "tflite_kb" in row else [])
    for key in ("int8", "float"):
        if key in row:
            sizes.append(f"{key}: file {row[key]['file'] / 1024:.0f} KB, arena {row[key]['arena'] / 1024:.1f} KB")
    if "float" in row:
        shares = (row["int8"][k] / row["float"][k] for k in ("file", "arena"))
        sizes.append("{:.2f}x and {:.2f}x".format(*shares))
    print("      " + "; ".join(sizes))
    told = [f"{k} {100 * v['share']:.2f} % by up to {v['steps']:.0f}" for k, v in row.get("apart", {}).items()]
    if told:
        print("      outputs unlike ONNX Runtime's, in steps: " + ", ".join(told))
    plain = [k for k, v in row["versions"].items() if "(" in v]
    if plain:
        print("      " + ", ".join(f"{k} {row['versions'][k]}" for k in plain))
    if row["failed"]:
        print("      failed (BENCH_ERRORS=1 shows why): " + ", ".join(row["failed"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--float", nargs="*", help="float models that are quantized first")
    parser.add_argument("--peers", nargs="*", default=[sys.executable], help="Pythons that have peers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lock", type=Path, help="a file whose lock is held while times are taken")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from bench_models import cpu_name
    from nervure.errors import NervureError
    from training_nets import geometric_mean

    print(f"{cpu_name()}; {args.threads} thread(s), batch 1")
    at = pythons(args)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for net in nets(args, at, Path(folder)):
            try:
                rows.append(one(net, at, args))
            except NervureError as error:
                rows.append({"net": net.name, "why": str(error).splitlines()[0]})
            show(rows[-1])
    for kind in ("the best peer", "float", *sorted(at)):
        ratios = [_against(row.get("ratio", {}), kind) for row in rows]
        known = [r for r in ratios if r is not None]
        if known:
            print(f"geometric mean over {kind}: {geometric_mean(known):.3f}x ({len(known)} nets)")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, **vars(args)}, indent=1, default=str))


def _against(ratio: Mapping[str, float], kind: str) -> float | None:
    if kind != "the best peer":
        return ratio.get(kind)
    return min((v for k, v in ratio.items() if k != "float"), default=None)


if __name__ == "__main__":
    main()
