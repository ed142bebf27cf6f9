"""``nervure compile``: a model becomes a verified library with its C header."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....errors import MissingTool, NervureError
from .. import options as o

if TYPE_CHECKING:
    from ...model import Model
    from ..checking import Verdict
    from ..microcontroller import Place
    from ..network import Network


EXAMPLE = "nervure compile model.onnx -o build -t host -t rpi4 --shape x=1,3,224,224"


def compile_command(
    model: o.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A folder, or a file: .so, .a (microcontrollers), .c (--emit c).")
    ] = Path("build"),
    target: o.Targets = None,
    board: o.Boards = None,
    emit: o.EmitOption = o.Emit.library,
    package: o.Packages = None,
    threads: o.Threads = 1,
    dim: o.Dims = None,
    shape: o.Shapes = None,
    precision: o.PrecisionOption = o.Precision.default,
    optimize: o.OptimizeOption = o.Optimize.speed,
    max_ram: Annotated[
        str | None, typer.Option("--max-ram", metavar="SIZE", help="Bound of the arena, e.g. 256K.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the files and of the C functions.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with ONNX Runtime before anything is written.")
    ] = True,
    tolerance: o.Tolerance = None,
    no_cache: o.NoCache = False,
    as_json: o.Json = False,
) -> None:
    """Compile a model to a self-contained library NAME.so with its C header NAME.h; for a microcontroller to libNAME.a.

    The library is verified against ONNX Runtime before it is written (one for another machine in its emulator). With
    several targets or boards each gets a folder of its own.
    """
    from ...verify import TOLERANCE
    from ..console import print_json
    from ..microcontroller import places, tell_batch
    from ..network import network
    from ..values import parse_size

    given = network(model, dim or (), shape or ())
    wanted = places(target, board)
    if output.suffix == ".c" and name is None:
        name = output.stem
    settings = _Settings(
        name=_file_name(name or given.title, name is not None),
        emit=emit.value,
        packages=tuple(dict.fromkeys(p.value for p in package or ())),
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
        _check_output(output, wanted, settings)
        if any(p.bare or settings.emit == "c" for p in wanted):
            tell_batch(given)
        built = [_build(given, p, settings, Path(folder) / str(i)) for i, p in enumerate(wanted)]
        files = [_destination(output, b, len(built) > 1) for b in built]
        _hand_over(built, files)
        rows = [_record(b, f, settings) for b, f in zip(built, files, strict=True)]
    if as_json:
        return print_json(rows[0] | {"artifacts": rows})
    _show(rows, built)


@dataclass(frozen=True)
class _Settings:
    name: str
    emit: str
    packages: tuple[str, ...]
    tolerance: float
    verify: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Built:
    """One compiled and verified model, still in a temporary place."""

    place: Place
    model: Model
    verdict: Verdict
    footprint: dict[str, Any] | None = None
    packages: dict[str, dict[str, bytes]] = field(default_factory=dict)


def _build(given: Network, place: Place, settings: _Settings, folder: Path) -> Built:
    from ...build import compile, library_name
    from ...package import files
    from ..console import progress
    from ..microcontroller import check_limits, facts, with_one_sample

    folder.mkdir()
    alone = place.bare or settings.emit == "c"
    if alone:
        given, _ = with_one_sample(given)
    file = f"{settings.name}.c" if settings.emit == "c" else library_name(settings.name, place.machine)
    with progress(f"{given.title} for {place.label}") as tell:
        model = compile(
            given.source,
            place.target,
            board=place.board,
            dims=given.dims,
            shapes=given.shapes,
            name=settings.name,
            out=folder / file,
            emit=settings.emit,
            progress=tell,
            **settings.options,
        )
        tell("verifying", 0, 1)
        verdict = _verdict(given, model, settings)
        packages = {kind: files(model, kind) for kind in settings.packages}
        if not alone:
            return Built(place, model, verdict)
        tell("measuring", 0, 1)
        found = facts(model.artifact, place.board)
        check_limits(found, settings.name)
        return Built(place, model, verdict, found, packages)


def _verdict(given: Network, model: Model, settings: _Settings) -> Verdict:
    from ..checking import Verdict, check, input_sets

    if not settings.verify:
        return Verdict(None, settings.tolerance, why="--no-verify")
    try:
        session = model.session if settings.emit == "c" else None
        verdict = check(given, model.artifact, input_sets(model.artifact, 2), settings.tolerance, session)
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


def _check_output(output: Path, wanted: Sequence[Place], settings: _Settings) -> None:
    """Says early what would only come out at the end."""
    if output.suffix not in (".so", ".a", ".c"):
        return
    if len(wanted) > 1:
        raise NervureError("one file for several targets", where=str(output), hint="give a folder with -o")
    suffix = ".c" if settings.emit == "c" else ".a" if wanted[0].bare else ".so"
    if output.suffix != suffix:
        kind = {".c": "C", ".a": "a static library", ".so": "a shared library"}[suffix]
        raise NervureError(
            f"what is compiled for {wanted[0].label} is {kind}",
            where=str(output),
            hint=f"-o {output.with_suffix(suffix)}, or a folder",
        )


def _destination(output: Path, b: Built, several: bool) -> Path:
    if output.suffix in (".so", ".a", ".c"):
        return output
    return (output / b.place.label if several else output) / b.model.path.name


def package_folder(file: Path, kind: str, b: Built) -> Path:
    """Where the package of a library goes: ``arduino/kws`` beside ``libkws.a``."""
    return file.parent / kind / b.model.artifact.prefix


def _hand_over(built: Sequence[Built], files: Sequence[Path]) -> None:
    """Moves everything to its place; where that fails, what is new there is taken away again."""
    from ....targets.files import header_of, writable, write_atomic

    pairs = list(zip(built, files, strict=True))
    extra = {
        package_folder(f, kind, b) / path: data
        for b, f in pairs
        for kind, held in b.packages.items()
        for path, data in held.items()
    }
    fresh = [p for f in files for p in (f, header_of(f)) if not p.exists()]
    fresh += [p for p in extra if not p.exists()]
    try:
        for b, file in pairs:
            with writable(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
            b.model.save(file)
        for path, data in extra.items():
            with writable(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
    except BaseException:
        for path in fresh:
            with suppress(OSError):
                path.unlink()
        raise


def _record(b: Built, file: Path, settings: _Settings) -> dict[str, Any]:
    from ....targets.files import header_of

    facts = {k: v for k, v in b.model.report.as_dict().items() if k != "layers"}
    machine = b.model.artifact.block["machine"]["mcpu"]
    names = {"name": settings.name, "target": b.place.target, "board": b.place.board, "machine": machine}
    files: dict[str, Any] = {"library": str(file), "header": str(header_of(file))}
    if b.packages:
        files["packages"] = {kind: str(package_folder(file, kind, b)) for kind in b.packages}
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
        | ({"footprint": b.footprint} if b.footprint else {})
    )


def _port(port: Any) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}


def _show(rows: Sequence[dict[str, Any]], built: Sequence[Built]) -> None:
    from ..console import note, out

    own = [(r, b) for r, b in zip(rows, built, strict=True) if b.footprint is None]
    if own:
        out().print(_table(own))
    for r, b in zip(rows, built, strict=True):
        if b.footprint is not None:
            _show_footprint(r, b)
    for b in built:
        if b.verdict.hint:
            note(f"{b.place.label} was not verified ({b.verdict.why}); {b.verdict.hint}")


def _table(rows: Sequence[tuple[dict[str, Any], Built]]) -> Any:
    from ..console import cell, row, size, table

    figures = ("arena", "bound", "weights", "code", "seconds")
    made = table("", "library", "target", *figures, "verified", right=figures)
    for r, b in rows:
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
    return made


def _show_footprint(r: dict[str, Any], b: Built) -> None:
    from ..console import cell, out
    from ..microcontroller import lines

    screen = out()
    where = f"{r['target']} ({b.footprint['board']['title']})" if b.place.board and b.footprint else r["target"]
    files = f"{r['files']['library']}, {Path(r['files']['header']).name}"
    screen.print(cell(f"{files} for {where}, {r['compile_seconds']:.1f} s", "bold"))
    for line in lines(b.footprint or {}):
        screen.print(cell(line))
    for kind, folder in r["files"].get("packages", {}).items():
        screen.print(cell(f"  {kind:<11} {folder}"))
    screen.print(cell(f"  {b.verdict.words()}", "green" if b.verdict.ok else "yellow"))
