"""``nervure profile``: where a model's time goes, step by step, by the library's own clock hook; on a microcontroller,
where its instructions go, counted in the emulator."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import options as o

if TYPE_CHECKING:
    from ....runtime.artifact import Artifact

EXAMPLE = "nervure profile build/model.so --threads 2 --top 10"


def profile_command(
    model: o.ModelOrLibrary,
    input: o.Inputs = None,
    preprocess: o.Preprocess = None,
    runs: Annotated[int, typer.Option("--runs", min=1, max=100_000, help="Runs that are averaged.")] = 20,
    top: Annotated[int | None, typer.Option("--top", min=1, help="Show the N slowest steps only.")] = None,
    target: o.TargetOrNone = None,
    board: o.Board = None,
    threads: o.Threads = 1,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Time every step of a model, slowest first, with its share, GFLOP/s and GB/s.

    Times are means over all runs on this machine; without --input the inputs are random. For a microcontroller the
    instructions of one run are counted in the emulator: they are no cycles, but do not depend on where they are
    counted.
    """
    from ....runtime.artifact import read_artifact
    from ...verify import random_inputs
    from ..console import print_json, progress
    from ..inputs import read_inputs
    from ..session import open_model, open_session

    with ExitStack() as stack:
        path, _ = open_model(
            model, stack, threads=threads, dims=dim or (), shapes=shape or (), target=target, board=board
        )
        artifact = read_artifact(path)
        if artifact.bare is not None:
            result = counted(artifact, read_inputs(input, artifact, preprocess) if input else None)
            return print_json(result) if as_json else _show_counted(result, top)
        session = open_session(str(path), stack, threads, (), ())
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


def counted(artifact: Artifact, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The object that ``--json`` prints for a microcontroller: steps sorted by counted instructions."""
    from ..console import progress
    from ..microcontroller import by_layer, run_counted

    with progress(f"{artifact.name}: counting"):
        found = run_counted(artifact, inputs)
    total, rows = sum(found.instructions.values()), by_layer(artifact, found)
    return {
        "model": artifact.name,
        "target": artifact.block["machine"]["name"],
        "unit": "instructions",
        "total_instructions": total,
        "outside_layers": total - sum(r["instructions"] for r in rows),
        "stack_bytes": found.stack,
        "steps": rows,
    }


def _show_counted(result: dict[str, Any], top: int | None) -> None:
    from ..console import cell, count, out, row, size, table

    figures = ("#", "instructions", "share", "sum", "MACs", "a MAC", "weights")
    made = table("", "#", "step", "op", *figures[1:], "kernel", right=figures)
    reached = 0.0
    for r in result["steps"][:top]:
        reached += r["share"]
        row(
            made,
            r["step"],
            cell(_short(r["name"], 32)),
            cell(_short(r["op"], 32)),
            f"{r['instructions']:,}",
            f"{r['share']:.1%}",
            f"{reached:.0%}",
            count(r["macs"]),
            f"{r['per_mac']:.2f}" if r["per_mac"] is not None else "",
            size(r["weight_bytes"]),
            cell(_short(r["detail"], 28)),
        )
    screen = out()
    screen.print(made)
    left = len(result["steps"][top:]) if top else 0
    more = f", {left} more steps not shown" if left else ""
    screen.print(
        cell(
            f"{result['total_instructions']:,} instructions for one run on {result['target']}, in the emulator; "
            f"{result['stack_bytes']} bytes of stack{more}"
        )
    )
    screen.print(cell("instructions are no cycles: memory, pipeline and branches decide how long they take", "dim"))


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
