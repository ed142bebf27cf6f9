"""From nothing to the first result: a C program, a Python session and ONNX Runtime; and how long compiling takes.

    python tests/bench/bench_start.py MODEL.onnx [--rounds 15]

Whole processes, interleaved, files in the page cache; medians. The C program is the generic runner, which loads the
library, runs it once and writes the outputs. Compiling is timed with an empty cache and again with it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nervure as nv
import numpy as np
from nervure import targets
from nervure.frontends.verify import random_inputs
from nervure.targets import toolchain

OURS = (
    "import sys, numpy as np; from nervure.runtime import load;"
    "s = load(sys.argv[1]); s.run(None, dict(np.load(sys.argv[2])))"
)
COMPILE = (
    "import sys, time; import nervure as nv; t = time.perf_counter();"
    "nv.compile(sys.argv[1], out=sys.argv[2]); print(time.perf_counter() - t)"
)
PEER = (
    "import sys, numpy as np, onnxruntime as ort; o = ort.SessionOptions(); o.intra_op_num_threads = 1;"
    "s = ort.InferenceSession(sys.argv[1], o); s.run(None, dict(np.load(sys.argv[2])))"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["NERVURE_CACHE_DIR"] = str(folder / "cache")
        warm = targets.get("host")
        (folder / "empty.c").write_text("int main(void) { return 0; }\n")
        toolchain.link_program(folder, ["empty.c"], warm, out="empty")  # zig's own first link is not ours to time
        for label in ("cold cache", "again"):
            command = [sys.executable, "-c", COMPILE, str(args.model), str(folder / "model.so")]
            begun = time.perf_counter()
            inside = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            whole = time.perf_counter() - begun
            print(f"compile, {label}: {whole:.2f} s for the process, {inside:.2f} s for the call")
        model = nv.compile(args.model, out=folder / "model.so")
        inputs = random_inputs(model.get_inputs(), 0)
        np.savez(folder / "in.npz", **inputs)
        entry = model.artifact.entries[0]
        for i, port in enumerate(entry.inputs):
            inputs[port.name].tofile(folder / f"in{i}")
        (folder / "runner.c").write_bytes((toolchain.RUNTIME / "runner.c").read_bytes())
        toolchain.link_program(folder, ["runner.c"], warm, out="runner", flags=("-ldl",))
        outs = [
            f"{folder}/out{i}:{int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize}" for i, p in enumerate(entry.outputs)
        ]
        ins = [str(folder / f"in{i}") for i in range(len(entry.inputs))]
        commands = {
            "C program": [str(folder / "runner"), str(model.path), model.artifact.prefix, "0", "1", *ins, "--", *outs],
            "nervure.runtime in Python": [sys.executable, "-c", OURS, str(model.path), str(folder / "in.npz")],
            "ONNX Runtime in Python": [sys.executable, "-c", PEER, str(args.model), str(folder / "in.npz")],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                begun = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append(time.perf_counter() - begun)
        for name, found in times.items():
            print(f"{name:28} {statistics.median(found) * 1e3:8.1f} ms from process start to the first result")


if __name__ == "__main__":
    main()
