"""How near each layer is to its own limit on this machine: the share of the roofline, layer by layer.

    python tests/bench/bench_roofline.py MODEL.onnx [...]

The limits are measured first: vector FMAs from registers, and reading from L2, L3 and memory. A layer's limit is the
larger of its operations at that peak and its bytes at the bandwidth of the memory they come from (tensors from L2 or
L3 by their size, weights from L3 or memory by the model's size). A convolution by Winograd may pass 100 %: its
operations are counted as the direct ones. Listed are the layers with over 5 % of the model's time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nervure as nv
import numpy as np
from nervure import targets
from nervure.frontends.verify import random_inputs
from nervure.runtime.session import load

PROBE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
typedef float vec __attribute__((vector_size(LANES * 4)));
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static double peak(void) {
    vec a[12], x, y; double best = 0;
    for (int i = 0; i < 12; i++) a[i] = (vec){0} + (float)i;
    x = (vec){0} + 1.0000001f; y = (vec){0} + 1e-9f;
    for (int r = 0; r < 20; r++) {
        double t = now();
        for (long n = 0; n < 2000000; n++) {
            for (int i = 0; i < 12; i++) a[i] = a[i] * x + y;
            __asm__ volatile("" : "+m"(*(char *)&x));
        }
        t = now() - t;
        double rate = 2000000.0 * 12 * LANES * 2 / t;
        if (rate > best) best = rate;
    }
    float s = 0; for (int i = 0; i < 12; i++) s += a[i][0];
    return s == 12345.f ? 0 : best;
}
static double reading(size_t bytes) {
    vec *p = aligned_alloc(64, bytes); size_t n = bytes / sizeof(vec); double best = 0;
    for (size_t i = 0; i < n; i++) p[i] = (vec){0} + 1.f;
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (int r = 0; r < 9; r++) {
        int again = (int)(200000000 / bytes) + 1;
        double t = now();
        for (int k = 0; k < again; k++)
            for (size_t i = 0; i + 4 <= n; i += 4) { s0 += p[i]; s1 += p[i + 1]; s2 += p[i + 2]; s3 += p[i + 3]; }
        t = now() - t;
        if ((double)bytes * again / t > best) best = (double)bytes * again / t;
    }
    s0 += s1 + s2 + s3; free(p);
    return s0[0] == 12345.f ? 0 : best;
}
int main(void) { printf("%g %g %g %g\n", peak(), reading(512 << 10), reading(8 << 20), reading(256 << 20)); return 0; }
"""


def limits(lanes: int) -> tuple[float, float, float, float]:
    """Operations a second, and bytes a second from L2, L3 and memory, of one core."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.c", Path(folder) / "probe"
        source.write_text(PROBE)
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            "-O3",
            "-march=native",
            "-ffp-contract=fast",
            f"-DLANES={lanes}",
        ]
        subprocess.run([*command, str(source), "-o", str(program)], check=True)
        found = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()
    return tuple(float(v) for v in found)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--share", type=float, default=0.05, help="of the model's time that a layer must have to count")
    parser.add_argument("--below", type=float, default=0.5, help="list layers below this share of their limit")
    args = parser.parse_args()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    machine = targets.host()
    peak, l2, l3, memory = limits(machine.lanes)
    print(f"peak {peak / 1e9:.0f} GFLOP/s, L2 {l2 / 1e9:.0f}, L3 {l3 / 1e9:.0f}, memory {memory / 1e9:.0f} GB/s")
    below = 0
    for path in args.models:
        model = nv.compile(path)
        session = load(model.path)
        inputs = random_inputs(session.get_inputs(), 1)
        session.run(None, inputs)
        runs = [session.profile(inputs, runs=5) for _ in range(9)]
        steps = model.artifact.entries[0].steps
        times = [statistics.median(r[i]["seconds"] for r in runs) for i in range(len(steps))]
        total = sum(times)
        weights = l3 if model.report.weights_bytes < machine.l3 * 0.75 else memory
        for step, seconds in zip(steps, times, strict=True):
            data = l2 if step["bytes"] < machine.l2 else l3
            limit = max(step["flops"] / peak, step["bytes"] / data + step["weight_bytes"] / weights)
            if seconds >= args.share * total and limit < args.below * seconds:
                below += 1
                rate = step["flops"] / seconds / 1e9
                print(
                    f"{path.stem:24} {seconds / total:5.1%} of the time, {limit / seconds:5.1%} of its limit, "
                    f"{seconds * 1e6:8.1f} us, {rate:6.1f} GFLOP/s  {step['op']}  {step['detail']}"
                )
    print(f"{below} layer(s) with over {args.share:.0%} of a model's time below {args.below:.0%} of their limit")


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
