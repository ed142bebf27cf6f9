"""The whole table: every model of a folder against ONNX Runtime, with agreement, arena, weights and code.

    python tests/bench/bench_models.py FOLDER [--threads 1] [--mode run] [--only NAME ...] [--json OUT] [--no-time]

FOLDER holds ``NAME.onnx`` with ``NAME.npz`` (the inputs). Timings are interleaved in one run, threads pinned; nothing
else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
from nervure.frontends import bench, verify
from nervure.runtime.artifact import read_artifact


def one(path: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model's row."""
    with np.load(path.with_suffix(".npz")) as held:
        real = {k: held[k] for k in held.files}
    started = time.perf_counter()
    model = nv.compile(
        path, args.target, threads=args.threads, precision=args.precision, out=folder / f"{path.stem}.so"
    )
    row: dict[str, Any] = {"model": path.stem, "compile_s": time.perf_counter() - started}
    report = model.report
    row["arena"] = report.arena_bytes / max(1, report.arena_lower_bound_bytes)
    row["arena_kb"] = report.arena_bytes / 1024
    row["weights"] = report.weights_bytes / max(1, report.source_weight_bytes)
    row["code_kb"] = report.code_bytes / 1024
    sets = {"real": real}
    for seed in (1, 2, 3) if not args.fast else ():
        sets[f"seed {seed}"] = verify.random_inputs(model.get_inputs(), seed)
    checks = verify.verify(read_artifact(model.path), path, sets)
    row["error"] = max(c.worst for c in checks)
    if not args.no_time:
        peers = [
            bench.Peer("nervure", model.path, args.threads, args.mode),
            bench.Peer("onnxruntime", path, args.threads, args.mode),
        ]
        ours, ort = bench.bench(peers, real, rounds=args.rounds)
        row |= {"ours_ms": ours["median_ms"], "ort_ms": ort["median_ms"], "time": 1 / bench.ratio(ort, ours)}
    return row


HEADER = (
    f"{'model':24} {'ours ms':>9} {'ORT ms':>9} {'ratio':>6} {'error':>8} {'arena x':>7} {'weights x':>9} "
    f"{'code KB':>8} {'compile s':>9}"
)


def line(row: dict[str, Any]) -> str:
    ours, ort, ratio = (row.get(k, math.nan) for k in ("ours_ms", "ort_ms", "time"))
    return (
        f"{row['model']:24} {ours:9.3f} {ort:9.3f} {ratio:6.2f} {row['error']:8.1e} {row['arena']:7.2f} "
        f"{row['weights']:9.2f} {row['code_kb']:8.0f} {row['compile_s']:9.1f}"
    )


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((text.split(":")[1].strip() for text in lines if text.startswith("model name")), platform.machine())


def mean(rows: list[dict[str, Any]], key: str) -> float:
    values = [r[key] for r in rows if key in r]
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mode", default="run", choices=["run", "invoke"])
    parser.add_argument("--target", default="host")
    parser.add_argument("--precision", default="default")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--fast", action="store_true", help="the real input only")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    out = Path("build/bench")
    out.mkdir(parents=True, exist_ok=True)
    print(f"{cpu_name()}; {args.threads} thread(s), {args.mode}, precision {args.precision}, target {args.target}")
    print(HEADER)
    rows = []
    for path in sorted(args.folder.glob("*.onnx")):
        if args.only and path.stem not in args.only:
            continue
        try:
            rows.append(one(path, args, out))
            print(line(rows[-1]), flush=True)
        except Exception as error:
            rows.append({"model": path.stem, "failed": str(error)})
            print(f"{path.stem:24} FAILED {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
    good = [r for r in rows if "failed" not in r]
    means = f"time {mean(good, 'time'):.3f}, arena {mean(good, 'arena'):.3f}"
    print(f"geometric means: {means}; {len(good)} of {len(rows)} models")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
