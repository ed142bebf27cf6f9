"""``nervure compile``: a model becomes a verified library with its C header."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....errors import MissingTool, NervureError
from .. import options as o

if TYPE_CHECKING:
    from ...model import Model
    from ..checking import Verdict
    from ..network import Network


EXAMPLE = "nervure compile model.onnx -o build -t host -t rpi4 --shape x=1,3,224,224"


def compile_command(
    model: o.Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a file that ends in .so.")] = Path(
        "build"
    ),
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="What to compile for (host); may be given several times.")
    ] = None,
    threads: o.Threads = 1,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    precision: o.PrecisionOption = o.Precision.default,
    optimize: o.OptimizeOption = o.Optimize.speed,
    max_ram: Annotated[
        str | None, typer.Option("--max-ram", metavar="SIZE", help="Refuse a larger arena, e.g. 256K.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the files and of the C functions.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with ONNX Runtime before anything is written.")
    ] = True,
    tolerance: o.Tolerance = None,
    no_cache: o.NoCache = False,
    as_json: o.Json = False,
) -> None:
    """Compile a model to a self-contained library NAME.so with its C header NAME.h.

    The library is verified against ONNX Runtime before it is written (one for another machine in its emulator). With
    several targets each gets a folder of its own.
    """
    from ...verify import TOLERANCE
    from ..console import print_json
    from ..network import network
    from ..values import parse_size

    given = network(model, dim or (), shape or ())
    wanted = list(dict.fromkeys(target or ["host"]))
    settings = _Settings(
        name=_file_name(name or given.title, name is not None),
        tolerance=TOLERANCE[precision.value] if tolerance is None else tolerance,
        verify=verify,
        options={
            "threads": threads,
            "precision": precision.value,
            "optimize": optimize.value,
            "max_ram": parse_size(max_ram),
            "cache": not no_cache,
        },
    )
    with tempfile.TemporaryDirectory(prefix="nervure-") as folder:
        built = [_build(given, t, settings, Path(folder) / str(i)) for i, t in enumerate(wanted)]
        files = [_destination(output, b.target, settings.name, len(built) > 1) for b in built]
        _hand_over(built, files)
        rows = [_record(b, f, settings) for b, f in zip(built, files, strict=True)]
    if as_json:
        return print_json(rows[0] | {"artifacts": rows})
    _show(rows, built)


@dataclass(frozen=True)
class _Settings:
    name: str
    tolerance: float
    verify: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Built:
    """One compiled and verified model, still in a temporary place."""

    target: str
    model: Model
    verdict: Verdict


def _build(given: Network, target: str, settings: _Settings, folder: Path) -> Built:
    from ...build import compile
    from ..console import progress

    folder.mkdir()
    with progress(f"{given.title} for {target}") as tell:
        model = compile(
            given.source,
            target,
            dims=given.dims,
            shapes=given.shapes,
            name=settings.name,
            out=folder / f"{settings.name}.so",
            progress=tell,
            **settings.options,
        )
        tell("verifying", 0, 1)
        return Built(target, model, _verdict(given, model, settings))


def _verdict(given: Network, model: Model, settings: _Settings) -> Verdict:
    from ..checking import Verdict, check, input_sets

    if not settings.verify:
        return Verdict(None, settings.tolerance, why="--no-verify")
    try:
        verdict = check(given, model.artifact, input_sets(model.artifact, 2), settings.tolerance)
    except MissingTool as error:
        return Verdict(None, settings.tolerance, why=error.what, hint=error.hint or "")
    except NervureError as error:
        if "cannot run here" not in error.what:
            raise
        return Verdict(None, settings.tolerance, why=error.why or error.what, hint=error.hint or "")
    if not verdict.ok:
        worst = max(verdict.checks, key=lambda c: c.worst)
        output = max(worst.errors, key=lambda k: worst.errors[k])
        raise NervureError(
            f"the compiled model does not agree with {verdict.against}: {verdict.words()}",
            where=f"output {output}, {worst.label}",
            hint="nothing was written; try --precision exact; if that disagrees too, report it",
        )
    return verdict


def _file_name(name: str, given: bool) -> str:
    """A name for files: what the user gave must be one, a model's own name is made one."""
    clean = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-")[:80] or "model"
    if given and clean != name:
        raise NervureError(f"--name {name!r} cannot name files", hint=f"use letters, digits, _ . and -, e.g. {clean}")
    return clean


def _destination(output: Path, target: str, name: str, several: bool) -> Path:
    if output.suffix == ".so":
        if several:
            raise NervureError("one file for several targets", where=str(output), hint="give a folder with -o")
        return output
    return (output / target if several else output) / f"{name}.so"


def _hand_over(built: Sequence[Built], files: Sequence[Path]) -> None:
    """Moves everything to its place; where that fails, what is new there is taken away again."""
    from ....targets.files import writable

    fresh = [p for f in files for p in (f, f.with_suffix(".h")) if not p.exists()]
    try:
        for b, file in zip(built, files, strict=True):
            with writable(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
            b.model.save(file)
    except BaseException:
        for path in fresh:
            with suppress(OSError):
                path.unlink()
        raise


def _record(b: Built, file: Path, settings: _Settings) -> dict[str, Any]:
    facts = {k: v for k, v in b.model.report.as_dict().items() if k != "layers"}
    names = {"name": settings.name, "target": b.target, "machine": b.model.artifact.block["machine"]["mcpu"]}
    files = {"library": str(file), "header": str(file.with_suffix(".h"))}
    entries = [
        {
            "name": e.name,
            "inputs": [_port(p) for p in e.inputs],
            "outputs": [_port(p) for p in e.outputs],
            "arena_bytes": e.arena_bytes(b.model.threads),
        }
        for e in b.model.artifact.entries
    ]
    return (
        names
        | facts
        | {"threads": b.model.threads, "files": files, "entries": entries, "verification": b.verdict.as_dict()}
    )


def _port(port: Any) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}


def _show(rows: Sequence[dict[str, Any]], built: Sequence[Built]) -> None:
    from ..console import cell, note, out, row, size, table

    figures = ("arena", "bound", "weights", "code", "seconds")
    made = table("", "library", "target", *figures, "verified", right=figures)
    for r, b in zip(rows, built, strict=True):
        row(
            made,
            r["files"]["library"],
            r["target"],
            size(r["arena_bytes"]),
            size(r["arena_lower_bound_bytes"]),
            size(r["weights_bytes"]),
            size(r["code_bytes"]),
            f"{r['compile_seconds']:.1f}",
            cell(b.verdict.words(), "green" if b.verdict.ok else "yellow"),
        )
    out().print(made)
    for b in built:
        if b.verdict.hint:
            note(f"{b.target} was not verified ({b.verdict.why}); {b.verdict.hint}")
