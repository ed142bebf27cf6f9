"""``nervure bench``: latency, alone or beside ONNX Runtime in the same run."""

from __future__ import annotations

import enum
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ....errors import MissingTool, NervureError
from .. import options as o


class Against(enum.StrEnum):
    onnxruntime = "onnxruntime"


EXAMPLE = "nervure bench model.onnx --against onnxruntime --threads 1,2"


def bench_command(
    model: o.ModelOrLibrary,
    against: Annotated[
        Against | None, typer.Option("--against", help="The peer that is timed in the same run.")
    ] = None,
    threads: Annotated[str, typer.Option("--threads", metavar="N[,N...]", help="Thread counts.")] = "1",
    mode: Annotated[
        o.Mode, typer.Option("--mode", help="run, or invoke (bound buffers; the peer's io_binding).")
    ] = o.Mode.run,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="The ONNX file for the peer, where MODEL is a library.")
    ] = None,
    input: o.Inputs = None,
    preprocess: o.Preprocess = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds; medians are given.")] = 9,
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, max=60, help="Time of a peer in a round.")] = 0.25,
    precision: o.PrecisionOption = o.Precision.default,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    as_json: o.Json = False,
) -> None:
    """Time a model: one process a peer, rounds interleaved, threads pinned, medians.

    A ratio is the peer's time over ours in the same run: above 1 nervure is faster.
    """
    from ..console import print_json
    from ..values import parse_threads

    with ExitStack() as stack:
        result = measure(
            model,
            stack,
            against=against.value if against else None,
            threads=parse_threads(threads),
            mode=mode.value,
            reference=reference,
            inputs=input or (),
            preprocess=preprocess,
            rounds=rounds,
            seconds=seconds,
            precision=precision.value,
            dims=dim or (),
            shapes=shape or (),
        )
    if as_json:
        return print_json(result)
    _show(result)


def measure(
    model: str,
    stack: ExitStack,
    *,
    against: str | None,
    threads: list[int],
    mode: str,
    reference: Path | None,
    inputs: Any,
    preprocess: str | None,
    rounds: int,
    seconds: float,
    precision: str,
    dims: Any,
    shapes: Any,
) -> dict[str, Any]:
    """The object that ``--json`` prints."""
    from ....runtime.artifact import read_artifact
    from ...bench import Peer, bench, ratio
    from ...verify import random_inputs
    from ..console import progress
    from ..inputs import read_inputs
    from ..network import reference_file
    from ..session import open_model, refuse_bare

    path, network = open_model(model, stack, threads=max(threads), dims=dims, shapes=shapes, precision=precision)
    artifact = read_artifact(path)
    refuse_bare(artifact)
    artifact.check_host()
    arrays = read_inputs(inputs, artifact, preprocess) if inputs else random_inputs(artifact.entries[0].inputs, 1)
    if against:
        _importable(against)
        if reference is None and network is None:
            raise NervureError("ONNX Runtime needs the ONNX file", where=model, hint="give it with --reference")
        reference = reference or reference_file(network, stack, artifact.entries[0].bindings)  # type: ignore[arg-type]
    results: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for number in threads:
        peers = [Peer("nervure", path, number, mode)]
        peers += [Peer(against, reference, number, mode)] if against and reference else []
        with progress(f"{artifact.name}, {number} thread(s)") as tell:
            rows = bench(peers, arrays, rounds=rounds, seconds=seconds, progress=lambda d, t: tell("rounds", d, t))
        results += rows
        ratios += [{"name": r["name"], "threads": number, "ratio": ratio(r, rows[0])} for r in rows[1:]]
    return {
        "model": artifact.name,
        "machine": _machine(),
        "mode": mode,
        "peers": _versions(against),
        "results": results,
        "ratios": ratios,
    }


def _importable(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingTool(f"{package} is not installed", hint="pip install 'nervure[verify]'")


def _machine() -> dict[str, Any]:
    import platform

    from .doctor import cpu

    facts = cpu()
    return {"name": facts["name"], "cores": facts["cores"], "host": facts["host"], "system": platform.platform()}


def _versions(against: str | None) -> dict[str, str]:
    from importlib import metadata

    from .... import __version__

    found = {"nervure": __version__}
    if against:
        found[against] = metadata.version(against)
    return found


def _show(result: dict[str, Any]) -> None:
    from ..console import cell, note, out, row, table

    ratios = {(r["name"], r["threads"]): r["ratio"] for r in result["ratios"]}
    made = table(
        "",
        "peer",
        "threads",
        "median ms",
        "best ms",
        "its time over ours",
        right=("threads", "median ms", "best ms", "its time over ours"),
    )
    for r in result["results"]:
        found = ratios.get((r["name"], r["threads"]))
        shown = cell("") if found is None else cell(f"{found:.2f}x", "green" if found >= 1 else "yellow")
        row(made, r["name"], r["threads"], f"{r['median_ms']:.3f}", f"{r['best_ms']:.3f}", shown)
    screen = out()
    screen.print(made)
    peers = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    machine = result["machine"]
    screen.print(
        cell(f"{result['model']}, {result['mode']}, {peers}; {machine['name']}, {machine['cores']} cores usable")
    )
    if max(r["threads"] for r in result["results"]) > machine["cores"]:
        note("more threads than cores were timed")
