"""Compiles for microcontrollers: the free batch, the run in the emulator, the figures beside the board's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MissingTool, NervureError
from ...targets import Machine, boards, get
from .network import Network

if TYPE_CHECKING:
    from ...runtime.artifact import Artifact, Port
    from ...targets.firmware import Measured

WIDTH = 24  # characters of a bar


@dataclass(frozen=True)
class Place:
    """What is compiled for: a target, or a board with its core. ``label`` names the folder of its files."""

    label: str
    machine: Machine
    target: str
    board: str | None = None

    @property
    def bare(self) -> bool:
        return self.machine.system == "bare"


def places(targets: list[str] | None, given: list[str] | None) -> list[Place]:
    """One place for each board, and one for each target that is no board's core."""
    from ..build import get_target

    wanted = list(dict.fromkeys(targets or ([] if given else ["host"])))
    found = []
    for name in dict.fromkeys(given or []):
        fits = [t for t in wanted if get(t).name == boards.get(name).core]
        bare = [t for t in wanted if get(t).system == "bare"]
        machine = get_target(fits[0] if fits else bare[0] if bare else None, name)
        found.append(Place(boards.get(name).name, machine, machine.name, name))
    cores = {p.machine.name for p in found}
    return found + [Place(t, get(t), t) for t in wanted if get(t).name not in cores]


def with_one_sample(given: Network) -> tuple[Network, str]:
    """A microcontroller sees one sample at a time: the first dimension of the inputs is 1 where the model leaves it
    open. With it, what was bound, in words."""
    if not given.onnx:
        return given, ""
    from ..onnx import reader

    names, shapes = {}, {}
    for info in reader.read(given.path)[0].graph.input:
        sizes = info.type.tensor_type.shape.dim
        if not sizes or info.name in given.shapes or sizes[0].dim_value > 0 or sizes[0].dim_param in given.dims:
            continue
        if sizes[0].dim_param:
            names[sizes[0].dim_param] = (1,)
        elif all(d.dim_value > 0 for d in sizes[1:]):
            shapes[info.name] = (1, *(d.dim_value for d in sizes[1:]))
    if not names and not shapes:
        return given, ""
    bound = replace(given, dims={**given.dims, **names}, shapes={**given.shapes, **shapes})
    words = ", ".join([*(f"{n}=1" for n in names), *(f"{n}={list(s)}" for n, s in shapes.items())])
    return bound, f"the batch that the model leaves open is 1 on a microcontroller ({words}; --dim sets another)"


def tell_batch(given: Network) -> Network:
    """The model with its open batch bound, and a note where there was one."""
    from .console import note

    bound, words = with_one_sample(given)
    if words:
        note(words)
    return bound


def run_counted(artifact: Artifact, inputs: Mapping[str, Any] | None = None) -> Measured:
    """One run of the first entry point in the emulator: outputs, stack, and instructions by function."""
    import math

    from ...compiler.library import measure
    from ...runtime.arrays import check_array, host_dtype
    from ..verify import random_inputs

    entry = artifact.entries[0]
    arrays = inputs or random_inputs(entry.inputs, 1)
    given = [check_array(arrays[p.name], p, "input").tobytes() for p in entry.inputs]
    sizes = [math.prod(p.shape) * host_dtype(p.dtype).itemsize for p in entry.outputs]
    return measure(artifact, get(artifact.block["machine"]["name"]), given, sizes, entry.name, count=True)


def facts(artifact: Artifact, board: str | None) -> dict[str, Any]:
    """What the compile of a static library reports: RAM, flash, the largest live layer, counted instructions. Where the
    emulator is missing, ``measured`` says so and the stack is null."""
    from ..footprint import footprint

    found, why = None, None
    if artifact.path.suffix == ".c":
        why = "the C compiler decides"
    else:
        try:
            found = run_counted(artifact)
        except MissingTool as error:
            why = error.what
    made = footprint(artifact, found.stack if found else None).as_dict(boards.get(board) if board else None)
    made["patches"] = _patches(artifact)
    made["instructions"] = sum(found.instructions.values()) if found else None
    return made | {"measured": found is not None, "why_not_measured": why}


def check_limits(row: Mapping[str, Any], name: str) -> None:
    """``NervureError`` where what was compiled and measured is more than the board has: code and constants together, or
    the first RAM with the stack in it. (What is known before is refused before.)"""
    board, ram, flash = row.get("board"), row["ram"], row["flash"]
    if board is None:
        return
    if flash["bytes"] > flash["limit_bytes"]:
        raise NervureError(
            f"{name} needs {flash['bytes']} bytes of flash, {board['name']} has {flash['limit_bytes']}",
            why=f"code {flash['code_bytes']}, constants {flash['constant_bytes']}, weights {flash['weight_bytes']}",
            hint="--optimize size, int8 weights (nervure quantize) or fewer channels (nervure prune) take less",
        )
    rams = [m for m in board["memory"] if m["kind"] == "ram"]
    largest = max(rams, key=lambda m: m["bytes"])
    first = "arena" if largest is rams[0] else rams[0]["name"]
    taken, stack = ram["regions"].get(first, 0), ram["stack_bytes"] or 0
    if taken + stack > rams[0]["bytes"]:
        raise NervureError(
            f"{name} needs {taken + stack} bytes of {rams[0]['name']}, {board['name']} has {rams[0]['bytes']}",
            why=f"{taken} for tensors, {stack} of stack, as measured in the emulator",
            hint=f'a larger stack in the board file (stack = "{-(-stack // 1024)}K") keeps that much free',
        )


def _patches(artifact: Artifact) -> dict[str, Any] | None:
    """How first stages were split so that the model fits: what, the operations that are repeated for it, and the bytes
    that whole layers would take. None where nothing was."""
    entry = artifact.entries[0]
    tried = artifact.meta.get("patches", {}).get(entry.function, [])
    chosen = next((r for r in tried[1:] if r["arena_bytes"] == entry.arena_bytes()), None)
    if chosen is None:
        return None
    part = chosen["flops"] / max(1.0, sum(s["flops"] for s in entry.steps) - chosen["flops"])
    more = {"repeated_flops": chosen["flops"], "repeated_part": part, "whole_bytes": tried[0]["arena_bytes"]}
    return {"name": chosen["name"]} | more


def lines(row: Mapping[str, Any]) -> list[str]:
    """The facts in words, a line each."""
    from .console import count, size

    ram, flash, peak = row["ram"], row["flash"], row["peak_layer"]
    stack = ram["stack_bytes"]
    said = [_against("RAM", ram["bytes"], ram.get("limit_bytes"))]
    board = row.get("board")
    for name, nbytes in ram["regions"].items():
        if not nbytes:
            continue
        kept = (
            f", {size(ram['kept_bytes'])} of it stay from call to call" if ram["kept_bytes"] and name == "arena" else ""
        )
        said.append(f"    {name:<9} {size(nbytes):>9}{_memory(board, name)}{kept}")
    said.append(f"    {'stack':<9} {size(stack) if stack is not None else '?':>9}  {_stack(row)}")
    said.append(_against("flash", flash["bytes"], flash.get("limit_bytes")))
    for name in ("code", "constant", "weight"):
        nbytes = flash[f"{name}_bytes"]
        if nbytes is not None:
            said.append(f"    {name if name == 'code' else name + 's':<9} {size(nbytes):>9}")
    if flash["code_bytes"] is None:
        said.append(f"    {'code':<9} {'?':>9}  {row['why_not_measured']}")
    if peak:
        from .page import shorten

        said.append(
            f"  largest live layer {size(peak['bytes'])}: {shorten(peak['name'], 48)} ({shorten(peak['op'], 40)})"
        )
    patches = row.get("patches")
    if patches:
        repeated = f"{count(patches['repeated_flops'])} FLOP more ({patches['repeated_part']:.1%})"
        work = f": {repeated}; whole layers need" if patches["repeated_flops"] else "; the fastest ones need"
        said.append(f"  computed in {patches['name']}{work} {size(patches['whole_bytes'])}")
    if row["instructions"] is not None:
        said.append(f"  {count(row['instructions'])} instructions a run, counted in the emulator (not cycles)")
    return said


def _against(what: str, nbytes: int, limit: int | None) -> str:
    from .console import size

    if not limit:
        return f"  {what:<11} {size(nbytes):>9}"
    full = round(WIDTH * min(1.0, nbytes / limit))
    bar = "#" * max(full, 1 if nbytes else 0)
    return f"  {what:<11} {size(nbytes):>9} of {size(limit):<9} [{bar:.<{WIDTH}}] {nbytes / limit:.1%}"


def _memory(board: Mapping[str, Any] | None, region: str) -> str:
    """Where a region lies on the board, and how much of that it takes."""
    from .console import size

    if board is None:
        return ""
    rams = [m for m in board["memory"] if m["kind"] == "ram"]
    own = next((m for m in rams if m["name"] == region), None) or max(rams, key=lambda m: m["bytes"])
    return f"  in {own['name']} ({size(own['bytes'])})" if len(rams) > 1 else ""


def _stack(row: Mapping[str, Any]) -> str:
    from .console import size

    if row["ram"]["stack_bytes"] is None:
        return str(row["why_not_measured"])
    board = row.get("board")
    room = f"; {size(board['stack_bytes'])} are kept for it" if board else ""
    return f"measured in the emulator{room}"


class Elsewhere:
    """A compiled model of another machine as ``run`` wants a session: each call is a run in the emulator. ``measured``
    is what was seen of the last one, where ``count`` asked for it."""

    def __init__(self, artifact: Artifact, count: bool = False) -> None:
        self.artifact, self.count = artifact, count
        self.measured: Measured | None = None

    def get_inputs(self) -> list[Port]:
        """Inputs of the first plan."""
        return list(self.artifact.entries[0].inputs)

    def get_outputs(self) -> list[Port]:
        """Outputs of the first plan."""
        return list(self.artifact.entries[0].outputs)

    def run(self, names: None, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """The outputs in order."""
        from ...runtime.arrays import host_dtype
        from ..verify import emulate

        missing = [p.name for p in self.get_inputs() if p.name not in inputs]
        if missing:
            raise NervureError(f"there is no input {missing[0]!r}", hint=f"--input {missing[0]}=FILE.npy")
        if not self.count:
            return emulate(self.artifact, {k: np.asarray(v) for k, v in inputs.items()})
        self.measured = run_counted(self.artifact, inputs)
        pairs = zip(self.measured.outputs, self.get_outputs(), strict=True)
        return [np.frombuffer(data, host_dtype(p.dtype)).reshape(p.shape) for data, p in pairs]


def by_layer(artifact: Artifact, found: Measured) -> list[dict[str, Any]]:
    """One row a step of the first entry point, most instructions first."""
    steps = artifact.entries[0].steps
    rows = []
    for i, (s, spent) in enumerate(zip(steps, found.by_step([s["kernels"] for s in steps]), strict=True)):
        macs = s["flops"] / 2
        rows.append(
            {
                "step": i,
                "name": s["name"],
                "op": s["op"],
                "instructions": round(spent),
                "macs": macs,
                "per_mac": spent / macs if macs else None,
                "bytes": s["bytes"],
                "weight_bytes": s["weight_bytes"],
                "detail": s["detail"],
                "origin": s["origin"],
            }
        )
    total = sum(found.instructions.values()) or 1
    for r in rows:
        r["share"] = r["instructions"] / total
    return sorted(rows, key=lambda r: (-r["instructions"], r["step"]))
