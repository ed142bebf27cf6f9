"""``nervure profile``: where a model's time goes, step by step, by the library's own clock hook."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from .. import options as o

EXAMPLE = "nervure profile build/model.so --threads 2 --top 10"


def profile_command(
    model: o.ModelOrLibrary,
    input: o.Inputs = None,
    preprocess: o.Preprocess = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=100_000, help="Runs that are averaged.")] = 20,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Show the N slowest steps only.")] = None,
    threads: o.Threads = 1,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Time every step of a model, slowest first, with its share, GFLOP/s and GB/s.

    Times are means over all runs on this machine; without --input the inputs are random.
    """
    from ...verify import random_inputs
    from ..console import print_json, progress
    from ..inputs import read_inputs
    from ..session import open_session

    with ExitStack() as stack:
        session = open_session(model, stack, threads, dim or (), shape or ())
        arrays = read_inputs(input, session.artifact, preprocess) if input else random_inputs(session.get_inputs(), 1)
        with progress(f"{session.artifact.name}: {runs} runs"):
            steps = session.profile(arrays, runs=runs)
    result = summary(session.artifact.name, steps, runs, threads)
    if as_json:
        return print_json(result)
    _show(result, top)


def summary(name: str, steps: list[dict[str, Any]], runs: int, threads: int) -> dict[str, Any]:
    """The object that ``--json`` prints: steps sorted by time."""
    from .doctor import cpu

    total = sum(s["seconds"] for s in steps) or 1e-12
    rows = []
    for i, s in enumerate(steps):
        seconds = max(s["seconds"], 1e-12)
        rows.append(
            {
                "step": i,
                "name": s["name"],
                "op": s["op"],
                "ms": s["seconds"] * 1e3,
                "share": s["seconds"] / total,
                "gflops": s["flops"] / seconds / 1e9,
                "gbytes_per_s": (s["bytes"] + s["weight_bytes"]) / seconds / 1e9,
                "flops": s["flops"],
                "bytes": s["bytes"],
                "weight_bytes": s["weight_bytes"],
                "detail": s["detail"],
                "origin": s["origin"],
            }
        )
    rows.sort(key=lambda r: (-r["ms"], r["step"]))
    machine = {k: cpu()[k] for k in ("name", "cores", "host")}
    return {"model": name, "machine": machine, "threads": threads, "runs": runs, "total_ms": total * 1e3, "steps": rows}


def _show(result: dict[str, Any], top: int | None) -> None:
    from ..console import cell, count, out, row, size, table

    shown = result["steps"][:top]
    figures = ("#", "ms", "share", "sum", "FLOP", "GFLOP/s", "bytes", "weights", "GB/s")
    made = table("", "#", "step", "op", *figures[1:], "kernel", right=figures)
    reached = 0.0
    for r in shown:
        reached += r["share"]
        row(
            made,
            r["step"],
            cell(_short(r["name"], 32)),
            cell(_short(r["op"], 32)),
            f"{r['ms']:.4f}",
            f"{r['share']:.1%}",
            f"{reached:.0%}",
            count(r["flops"]),
            f"{r['gflops']:.1f}",
            size(r["bytes"]),
            size(r["weight_bytes"]),
            f"{r['gbytes_per_s']:.1f}",
            cell(_short(r["detail"], 28)),
        )
    screen = out()
    screen.print(made)
    left = len(result["steps"]) - len(shown)
    flops = sum(r["flops"] for r in result["steps"])
    more = f", {left} more steps not shown" if left else ""
    screen.print(
        cell(
            f"{result['total_ms']:.3f} ms a run, {flops / result['total_ms'] / 1e6:.1f} GFLOP/s, "
            f"{result['threads']} thread(s) on {result['machine']['name']}, mean of {result['runs']} runs{more}"
        )
    )


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 10]}..{text[-8:]}"
