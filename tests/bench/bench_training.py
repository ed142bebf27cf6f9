"""Training steps beside PyTorch and ONNX Runtime training: times, peak memory, time to the first step.

    python tests/bench/bench_training.py [--nets mlp lenet ...] [--batch 128] [--threads 2] [--optimizer adam]
        [--torch PYTHON] [--ort PYTHON] [--peers eager ...] [--profile] [--start] [--json OUT]

Each contestant is a process of its own, on the same cores; rounds are interleaved, a figure is the median of the
rounds' medians, a ratio the median of the rounds' ratios. A step is forward, loss, backward and update, on the same
batch, with denormals flushed. PyTorch runs as a user of it would make it fast: ``set_to_none``, fused optimizer; eager
and ``torch.compile``, each in its default layout and, for pictures, in channels_last. ONNX Runtime training 1.19 (its
own Python, ``--ort``) takes networks that PyTorch exported, and has AdamW and SGD only. ``--torch`` and ``--ort`` name
Pythons with those packages; without one that peer is left out. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
from contestants import Contestant, alone, ratio  # noqa: E402

PEERS = ("eager", "eager_nhwc", "compile", "compile_nhwc", "ort")
SECONDS = 0.3


class Step(Contestant):
    """Steps of one network; CPU time of all threads beside the seconds."""

    def __init__(self, python: str, request: dict[str, Any]) -> None:
        self.kind = request["kind"]
        super().__init__([python, str(HERE), "--serve", json.dumps(request)])
        self.busy: list[float] = []

    def round(self) -> None:
        for found, value in zip((self.rounds, self.busy), self.ask("go"), strict=True):
            found.append(value)


def one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network's row."""
    request = {"net": name, "batch": args.batch, "threads": args.threads, "optimizer": args.optimizer}
    ours = Step(sys.executable, {"kind": "ours", **request})
    if ours.facts is None:
        ours.stop()
        return {"net": name, "failed": "ours could not be compiled (BENCH_ERRORS=1 shows why)"}
    running = [ours]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for kind in args.peers:
            python = args.ort if kind == "ort" else args.torch
            if python is None or not _fits(kind, name):
                continue
            peer = {"kind": kind, "folder": folder, **request}
            if kind == "ort" and Step(args.torch, {**peer, "kind": "export"}).facts is None:
                continue
            running.append(Step(python, peer))
    peers = [c for c in running[1:] if c.facts is not None]
    try:
        with alone(args.lock):
            for _ in range(args.rounds):
                for contestant in [ours, *peers]:
                    contestant.round()
        row = {"net": name, **request, "batch": ours.facts["batch"], "ours_ms": ours.median * 1e3}
        row["peers_ms"] = {c.kind: c.median * 1e3 for c in peers}
        row["ratio"] = {c.kind: ratio(c.rounds, ours.rounds) for c in peers}
        row["cpu_ratio"] = {c.kind: ratio(c.busy, ours.busy) for c in peers}
        row["cpu_ms"] = {c.kind: statistics.median(c.busy) * 1e3 for c in [ours, *peers]}
        row["failed_peers"] = [c.kind for c in running[1:] if c.facts is None]
        row["memory_mb"] = {c.kind: c.ask("memory") for c in [ours, *peers]}
        row |= {key: ours.facts[key] for key in ("compile_s", "arena_kb")}
        with alone(args.lock):
            row["profile"] = ours.ask("profile") if args.profile else []
    finally:
        for contestant in running:
            contestant.stop()
    return row


def _fits(kind: str, name: str) -> bool:
    from training_nets import NETS

    return NETS[name].images or not kind.endswith("nhwc")


# -- the contestants ---------------------------------------------------------------------------------------------------


def serve(request: dict[str, Any]) -> None:
    cores = sorted(os.sched_getaffinity(0))
    threads = request["threads"]
    started = time.perf_counter()
    step, facts, profile = _contestant(request)  # compiled on all cores
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), set(cores[:threads]))
    deadline = time.perf_counter() + 0.3
    while time.perf_counter() < deadline:
        step()
    print("@" + json.dumps({**facts, "ready_s": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        answer = {"go": lambda: _median(step), "memory": _peak, "profile": profile}[line.strip()]()
        print("@" + json.dumps(answer), flush=True)


def _contestant(request: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    """The step as a function, facts of its set-up, and what gives its profile."""
    if request["kind"] == "ours":
        return _ours(request)
    import training_peers as peers

    make = {"ort": peers.onnxruntime_step, "export": peers.export}.get(request["kind"], peers.pytorch_step)
    return make(request), {}, list


def _median(step: Any) -> list[float]:
    """Medians of a step's wall and CPU time. The latter stays the same when others use the machine."""
    step()
    found: list[tuple[float, float]] = []
    deadline = time.perf_counter() + SECONDS
    while time.perf_counter() < deadline or len(found) < 3:
        start, busy = time.perf_counter(), time.process_time()
        step()
        found.append((time.perf_counter() - start, time.process_time() - busy))
    return [statistics.median(part) for part in zip(*found, strict=True)]


def _peak() -> float:
    """The process's largest resident memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) / 1024 for text in lines if text.startswith("VmHWM"))


def _ours(request: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
    import nervure as nv
    import numpy as np
    from training_nets import NETS

    net, threads = NETS[request["net"]], request["threads"]
    batch = request["batch"] or net.batch
    training = net.training(request["optimizer"], batch)
    start = time.perf_counter()
    model = nv.compile(net.ours(), training=training, threads=threads)
    facts = {"batch": batch, "compile_s": time.perf_counter() - start}
    session = model.session
    x, y = net.data(batch)
    feeds = {model.artifact.meta["training"]["inputs"][0]: x, "y": y, "learning_rate": np.float32(training_rate(model))}
    entry = next(e for e in model.artifact.entries if e.function == "train_step")
    facts["arena_kb"] = entry.arena_bytes() / 1024
    step = session.binding(feeds, entry="train_step")
    return step, facts, lambda: _profile(session, feeds)


def _profile(session: Any, feeds: Any) -> list[dict[str, Any]]:
    """The step's kernels with the best of their times."""
    runs = [session.profile(feeds, entry="train_step", runs=1) for _ in range(41)]
    return [{**rows[0], "seconds": min(r["seconds"] for r in rows)} for rows in zip(*runs, strict=True)]


def training_rate(model: Any) -> float:
    return float(model.artifact.meta["training"]["learning_rate"])


# -- from process start to the first step ------------------------------------------------------------------------------

FIRST = """
import nervure as nv, numpy as np
L = nv.layers
net = nv.Sequential([nv.Input((784,)), L.Dense(256, "relu"), L.Dense(128, "relu"), L.Dense(10)])
net.compile(loss=nv.losses.SparseCategoricalCrossentropy(from_logits=True), optimizer="adam")
x, y = np.zeros((32, 784), np.float32), np.zeros(32, np.int32)
net.fit(x, y, batch_size=32, epochs=1, verbose=0)
"""
FIRST_TORCH = """
import torch
n = torch.nn
net = n.Sequential(n.Linear(784, 256), n.ReLU(), n.Linear(256, 128), n.ReLU(), n.Linear(128, 10))
optimizer = torch.optim.Adam(net.parameters(), fused=True)
n.functional.cross_entropy(net(torch.zeros(32, 784)), torch.zeros(32, dtype=torch.long)).backward()
optimizer.step()
"""


def starts(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of a process that makes the MLP and trains it for one step: nothing cached, the C compiler's cache warm
    and the kernels' cold, all warm; and PyTorch's, eager."""

    def seconds(python: str, code: str, cache: Path) -> float:
        start = time.perf_counter()
        env = {**os.environ, "NERVURE_CACHE_DIR": str(cache)}
        subprocess.run([python, "-c", code], check=True, env=env, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(prefix="bench-") as folder, alone(args.lock):
        cache = Path(folder)
        found = {"nothing_cached_s": seconds(sys.executable, FIRST, cache)}
        for part in cache.iterdir():
            if part.name != "zig":
                shutil.rmtree(part)
        found["cold_s"] = seconds(sys.executable, FIRST, cache)
        found["warm_s"] = statistics.median(seconds(sys.executable, FIRST, cache) for _ in range(7))
        if args.torch:
            found["torch_s"] = statistics.median(seconds(args.torch, FIRST_TORCH, cache) for _ in range(5))
    return found


# -- the table ---------------------------------------------------------------------------------------------------------


def show(row: dict[str, Any]) -> None:
    if "failed" in row:
        print(f"{row['net']:15} FAILED: {row['failed']}", flush=True)
        return
    peers = " ".join(f"{k} {v:.3f} ({row['ratio'][k]:.2f}x)" for k, v in row["peers_ms"].items())
    best, busy = (min(row[key].values(), default=float("nan")) for key in ("ratio", "cpu_ratio"))
    memory = row["memory_mb"]
    others = [v for k, v in memory.items() if k.startswith("eager")]
    share = f"{memory['ours']:.0f} of {min(others):.0f} MB" if others else f"{memory['ours']:.0f} MB"
    print(
        f"{row['net']:15} b{row['batch']:<4} {row['ours_ms']:9.3f} ms  {best:5.2f}x (CPU {busy:5.2f}x)  {share:14} "
        f"arena {row['arena_kb']:7.0f} KB, compiled in {row['compile_s']:.1f} s | {peers}"
        + (f" | failed: {', '.join(row['failed_peers'])}" if row["failed_peers"] else ""),
        flush=True,
    )
    rows = sorted(row["profile"], key=lambda r: -r["seconds"])
    total = sum(r["seconds"] for r in rows)
    for r in rows[:8]:
        rate = r["flops"] / max(r["seconds"], 1e-9) * 1e-9
        print(
            f"      {r['seconds'] * 1e6:8.1f} us {100 * r['seconds'] / total:5.1f} % {rate:6.1f} GF/s  "
            f"{r['op'][:60]} | {r['detail']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="*")
    parser.add_argument("--batch", type=int, help="instead of each network's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", help="a Python that has PyTorch")
    parser.add_argument("--ort", help="a Python that has onnxruntime-training (needs --torch)")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--profile", action="store_true", help="the eight longest kernels of each step")
    parser.add_argument("--start", action="store_true", help="time from process start to the first step only")
    parser.add_argument("--lock", type=Path, help="a file whose lock is held while times are taken")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(json.loads(args.serve))
        return
    if args.start:
        print({k: round(v, 3) for k, v in starts(args).items()})
        return
    from bench_models import cpu_name
    from training_nets import NETS, geometric_mean

    print(f"{cpu_name()}; {args.threads} thread(s), {args.optimizer}")
    rows = []
    for name in args.nets or NETS:
        rows.append(one(name, args))
        show(rows[-1])
    wall, busy = ([min(r[key].values()) for r in rows if r.get(key)] for key in ("ratio", "cpu_ratio"))
    print(f"geometric mean over the best peer: {geometric_mean(wall):.3f}x, by CPU time {geometric_mean(busy):.3f}x")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, **vars(args)}, indent=1, default=str))


if __name__ == "__main__":
    main()
