"""``nv.compile``: from a path, a graph or a network to a model that can be called."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.cache import cache_dir, graph_digest, pins, read_entry, source_digest, write_entry
from ..compiler.ir import Graph
from ..compiler.kernels.spec import machine_key
from ..compiler.names import identifier
from ..compiler.passes.half import PRECISIONS
from ..compiler.pipeline import EntryGraph, Options, Progress, compile_entries, emit_entries
from ..compiler.plan.regions import board_memory
from ..errors import NervureError
from ..runtime.artifact import Artifact, read_artifact
from ..targets import Machine, boards, get
from ..targets.files import header_of, writable, write_atomic
from .model import Model
from .source import Source

if TYPE_CHECKING:
    from onnx import ModelProto

    from .training.step import Training

Dims = Mapping[str, int | Sequence[int]]


def compile(
    source: str | Path | ModelProto | Graph | Any,
    target: str | None = None,
    *,
    board: str | None = None,
    threads: int = 1,
    dims: Dims | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str = "default",
    optimize: str = "speed",
    max_ram: int | None = None,
    training: Training | None = None,
    steps: Mapping[str, Any] | Sequence[Any] = (),
    entries: Mapping[str, Any] | Sequence[Any] = (),
    name: str | None = None,
    out: str | Path | None = None,
    emit: str = "library",
    cache: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Compiles a network to one native library and returns it as a callable model.

    ``source``: an ONNX file (path or ``ModelProto``), a ``Graph``, or a network of the DSL; a list of networks makes
    each an entry point, and they share their weights and variables. ``target``: a name that ``nervure targets`` lists
    (without it this machine, or the core of ``board``). ``board``: a microcontroller's
    board, by its name or as the path of a TOML file; what does not fit its memory ends in an error that says what
    would. ``dims`` binds named dimensions (``{"batch": 8}``; several values, ``{"batch": (1, 8)}``,
    make one plan each in the same artifact); ``shapes`` gives whole input shapes. ``precision="exact"`` leaves out
    Winograd, approximations and tensor cores; for GPUs, ``"tf32"`` rounds the factors of products to 10 bits of
    fraction, ``"fp16"`` and ``"bf16"`` hold weights and activations in half types.
    ``max_ram`` (bytes) bounds the arena of ``threads`` workers; a training step computes activations again instead of
    keeping them where that makes it fit. ``training`` adds the entry points ``train_step`` and ``evaluate`` to a
    network of the DSL, ``steps`` one's own (networks in training mode, whose functions call ``nv.minimize`` or
    ``nv.assign``). ``entries`` are further networks for inference: entry
    points, called by their names, that share weights and variables with ``source``. ``out``: where to write the
    library (its C header goes beside it); without it, a temporary place. ``emit="c"`` writes portable C99 for the
    target instead of a library, ``out`` is then a file NAME.c: a ``Source`` comes back, a model that is built with zig
    when it is called.

    Raises ``NervureError`` for a model that cannot be read, bound or compiled, and where ``out`` cannot be written.
    """
    _known("precision", precision, ("default", "exact", "tf32", *PRECISIONS))
    _known("optimize", optimize, ("speed", "size"))
    _known("emit", emit, ("library", "c"))
    machine = get_target(target, board)
    options = Options(precision, optimize, threads, max_ram, name or _name(source), **board_options(board))
    started = time.perf_counter()
    if emit == "c":
        path = _c_file(out, options.name)
        graphs, facts, _ = _entries(source, dims, shapes, training, steps, entries)
        written = emit_entries(graphs, machine, path, options, progress, meta=facts)
        return Source(written, compile_seconds=time.perf_counter() - started)
    path = Path(out) if out is not None else _temporary() / library_name(options.name, machine)
    artifact = _cached(_file_key(source, machine, options, dims, shapes) if cache else None, path)
    stored: list[Any] = []
    if artifact is None:
        graphs, facts, stored = _entries(source, dims, shapes, training, steps, entries)
        keys = [_file_key(source, machine, options, dims, shapes), _graph_key(graphs, machine, options, facts)]
        artifact = _cached(keys[1] if cache else None, path)
        if artifact is None:
            artifact = compile_entries(graphs, machine, path, options, progress, meta=facts)
        if cache:
            for key in keys:
                _remember(key, path)
    return Model(artifact, threads=threads, compile_seconds=time.perf_counter() - started, stored=stored)


def _c_file(out: str | Path | None, name: str) -> Path:
    """Where C goes: the given file, which must be one, else a temporary one."""
    path = Path(out) if out is not None else _temporary() / f"{identifier(name)}.c"
    if path.suffix != ".c":
        raise NervureError(f"C source in {path}", hint=f"write it to {path.with_suffix('.c')}")
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", path.name):
        raise NervureError(f"the C file would be called {path.name!r}", hint="use letters, digits, _ . and -")
    return path


def _entries(
    source: Any,
    dims: Dims | None,
    shapes: Mapping[str, Sequence[int]] | None,
    training: Training | None,
    steps: Mapping[str, Any] | Sequence[Any],
    more: Mapping[str, Any] | Sequence[Any],
) -> tuple[list[EntryGraph], dict[str, Any], list[Any]]:
    """The entry points, facts for the artifact's ``meta``, and the weights that it can change, with their names."""
    bindings = _bindings(dims)
    if training is not None or steps or more or isinstance(source, list | tuple):
        from .training.step import step_entries, training_entries

        nets = list(source) if isinstance(source, list | tuple) else [source]
        if not all(hasattr(net, "to_graph") for net in nets):
            raise NervureError(
                "only a network of the DSL can have steps or further entry points",
                hint="net = nv.load_network('model.onnx') makes one of a file",
            )
        if training is None:
            graphs, stored = step_entries(steps, nets, bindings[0], more)
            return graphs, {}, stored
        return *training_entries(nets[0], training, bindings, more), []
    entries = [EntryGraph(_graph(source, b, shapes), "infer", b) for b in bindings]
    single = len(entries) == 1
    return [EntryGraph(e.graph, e.function, {} if single else e.bindings) for e in entries], {}, []


def get_target(target: str | None, board: str | None) -> Machine:
    """The machine to compile for; ``NervureError`` where the board has another core than ``target``."""
    if board is None:
        return get(target or "host")
    core = boards.get(board).core
    if target is not None and get(target).name != core:
        raise NervureError(
            f"{board} has a {core}, not a {target}", hint=f"leave out the target, or give {core} (--target {core})"
        )
    return get(core)


def board_options(board: str | None) -> dict[str, Any]:
    """What ``Options`` says of a board."""
    if board is None:
        return {}
    place = boards.get(board)
    found = board_memory(place, place.stack)
    return {"fast": found.fast, "spare": found.spare, "arena": found.arena, "flash": found.flash}


def library_name(name: str, machine: Machine) -> str:
    """The file name of a compiled model: shared libraries end in ``.so``, static ones are ``libNAME.a``."""
    return f"lib{name}.a" if machine.system == "bare" else f"{name}.so"


def _known(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise NervureError(f"{what} {value!r} is unknown", hint=f"use one of: {', '.join(allowed)}")


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return Path(source).stem
    return str(getattr(source, "name", "") or "model")


def _bindings(dims: Dims | None) -> list[dict[str, int]]:
    """Every combination of the values given for named dimensions."""
    names = sorted(dims or {})
    choices = [[v] if isinstance(v, int) else list(v) for v in (dims[n] for n in names)] if dims else []
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*choices)]


def _graph(source: Any, bindings: Mapping[str, int], shapes: Mapping[str, Sequence[int]] | None) -> Graph:
    if isinstance(source, Graph):
        from ..compiler.passes.bind import bind_dimensions

        return bind_dimensions(source, dict(bindings))
    if hasattr(source, "to_graph"):
        return source.to_graph(dict(bindings))  # type: ignore[no-any-return]
    from .onnx import load

    wanted = {k: tuple(int(d) for d in v) for k, v in (shapes or {}).items()}
    return load(source, dict(bindings), wanted)


_folders: list[Path] = []


def _temporary() -> Path:
    with writable(Path(os.environ.get("TMPDIR") or "/tmp")):
        _folders.append(Path(tempfile.mkdtemp(prefix="nervure-")))
    return _folders[-1]


@atexit.register
def _clean() -> None:
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


# -- the artifact cache ----------------------------------------------------------------------------------------------


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _pinned(machine: Machine, options: Options) -> list[Any]:
    return [machine_key(machine), asdict(options), list(pins()), source_digest()]


def _file_key(
    source: Any,
    machine: Machine,
    options: Options,
    dims: Dims | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> str | None:
    """A key from the file's bytes, so that a second compile need not even read the model. None where there is no file,
    or where its weights may lie in other files."""
    if not isinstance(source, str | Path):
        return None
    try:
        data = Path(source).read_bytes()
    except OSError:
        return None
    if b"location" in data:
        return None
    bound = [sorted((k, v if isinstance(v, int) else list(v)) for k, v in (dims or {}).items())]
    given = sorted((k, list(v)) for k, v in (shapes or {}).items())
    return _key("file", hashlib.sha256(data).hexdigest(), bound, given, *_pinned(machine, options))


def _graph_key(entries: Sequence[EntryGraph], machine: Machine, options: Options, facts: Mapping[str, Any]) -> str:
    graphs = [[e.function, sorted(e.bindings.items()), graph_digest(e.graph)] for e in entries]
    return _key("graph", graphs, facts, *_pinned(machine, options))


def _entry(key: str, suffix: str) -> Path:
    return cache_dir() / "artifacts" / key[:2] / f"{key}{suffix}"


def _cached(key: str | None, path: Path) -> Artifact | None:
    if key is None:
        return None
    library, header = (read_entry(_entry(key, s)) for s in (".so", ".h"))
    if library is None or header is None:
        return None
    write_atomic(path, library, mode=0o755)
    write_atomic(header_of(path), header)
    return read_artifact(path)


def _remember(key: str | None, path: Path) -> None:
    if key is not None:
        write_entry(_entry(key, ".so"), path.read_bytes())
        write_entry(_entry(key, ".h"), header_of(path).read_bytes())
