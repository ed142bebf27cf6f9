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

import numpy as np

import nervure as nv
from nervure.frontends import bench, verify
from nervure.runtime.artifact import read_artifact


def one(path: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One model's row."""
    with np.load(path.with_suffix(".npz")) as held:
        real = {k: held[k] for k in held.files}
    started = time.perf_counter()
    model = nv.compile(path, args.target, threads=args.threads, precision=args.precision, out=folder / f"{path.stem}.so")
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
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    print(f"{cpu}; {args.threads} thread(s), {args.mode}, precision {args.precision}, target {args.target}")
    header = f"{'model':24} {'ours ms':>9} {'ORT ms':>9} {'ratio':>6} {'error':>8} {'arena x':>7} {'weights x':>9} {'code KB':>8} {'compile s':>9}"
    print(header)
    rows = []
    for path in sorted(args.folder.glob("*.onnx")):
        if args.only and path.stem not in args.only:
            continue
        try:
            row = one(path, args, out)
        except Exception as error:
            print(f"{path.stem:24} FAILED {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}", flush=True)
            rows.append({"model": path.stem, "failed": str(error)})
            continue
        rows.append(row)
        print(
            f"{row['model']:24} {row.get('ours_ms', math.nan):9.3f} {row.get('ort_ms', math.nan):9.3f} {row.get('time', math.nan):6.2f} "
            f"{row['error']:8.1e} {row['arena']:7.2f} {row['weights']:9.2f} {row['code_kb']:8.0f} {row['compile_s']:9.1f}",
            flush=True,
        )
    good = [r for r in rows if "failed" not in r]
    print(f"geometric means: time {mean(good, 'time'):.3f}, arena {mean(good, 'arena'):.3f}; {len(good)} of {len(rows)} models")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
