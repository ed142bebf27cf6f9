"""``nervure targets``: what can be compiled for, and what can run it here; a board's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....errors import NervureError
from ..options import Json

if TYPE_CHECKING:
    from ....targets.boards import Board

EXAMPLE = "nervure targets nucleo-l4r5zi"


def targets_command(
    board: Annotated[
        str | None,
        typer.Argument(
            help="A board, or the path of a board's TOML file: its memory is shown. A target: it and its boards.",
            metavar="[BOARD|TARGET]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the machines and boards that models can be compiled for."""
    from ....targets import boards
    from ..console import print_json

    chosen = [board] if board in _names() else _names()
    if board is not None and board not in chosen:
        found = boards.get(board)
        return print_json({"board": _facts(found)}) if as_json else _show_board(found)
    rows = [_target(name) for name in chosen]
    known = [b for b in map(boards.get, boards.names()) if b.core in [r["name"] for r in rows]]
    if as_json:
        return print_json({"targets": rows, "boards": [_facts(b) for b in known]})
    _show(rows, known)


def _show(rows: list[dict[str, Any]], known: list[Board]) -> None:
    from ..console import cell, out, row, size, table

    screen = out()
    for title, system in (("Linux", "linux"), ("Microcontrollers (no operating system)", "bare")):
        made = table(title, "target", "CPU", "vector", "registers", "features", "runs here", right=("vector",))
        own = [t for t in rows if t["system"] == system]
        for t in own:
            runs = (
                cell(t["runs_here"], "green") if t["available"] else cell(f"{t['runs_here']} ({t['hint']})", "yellow")
            )
            features = ", ".join(t["features"][:6]) + (" ..." if len(t["features"]) > 6 else "")
            row(made, t["name"], t["cpu"], f"{t['vector_bits']} bit", t["registers"], features or "baseline", runs)
        if own:
            screen.print(made)
            screen.print()
    _show_gpus(screen, [t for t in rows if t["system"] == "cuda"])
    if not known:
        return
    made = table("Boards (--board; a TOML file of your own works too)", "board", "target", "flash", "RAM", "what it is")
    for b in sorted(known, key=lambda b: ([t["name"] for t in rows].index(b.core), b.name)):
        ram = " + ".join(f"{size(m.size)} {m.name}" for m in b.of("ram"))
        row(made, b.name, b.core, size(b.size("flash")), ram, b.title)
    screen.print(made)


def _show_gpus(screen: Any, rows: list[dict[str, Any]]) -> None:
    from ..console import cell, row, table

    if not rows:
        return
    made = table("GPUs (NAME-emulated: played by this CPU)", "target", "host", "tuned for", "code", "runs here")
    for t in rows:
        runs = cell(t["runs_here"], "green") if t["available"] else cell(f"{t['runs_here']} ({t['hint']})", "yellow")
        row(made, t["name"], t["family"], t["board"], ", ".join(t["features"]), runs)
    screen.print(made)
    screen.print()


def _show_board(board: Board) -> None:
    from ..console import cell, out, row, size, table

    screen = out()
    screen.print(cell(f"{board.name}: {board.title}, {board.core}", "bold"))
    made = table("", "memory", "kind", "from", "to", "size", right=("size",))
    for m in board.memory:
        row(made, m.name, m.kind, f"{m.origin:#010x}", f"{m.end - 1:#010x}", size(m.size))
    screen.print(made)
    screen.print(cell(f"flash {size(board.size('flash'))}, RAM {size(board.size('ram'))}, fastest first"))
    screen.print(cell(f"{size(board.stack)} of {board.first('ram').name} are kept for the stack"))
    if board.source:
        screen.print(cell(f"source: {board.source}"))


def _facts(board: Board) -> dict[str, Any]:
    from ...footprint import board_facts

    return board_facts(board)


def _names() -> list[str]:
    from ....targets import names

    return names()


def _target(name: str) -> dict[str, Any]:
    from ....targets import get

    try:
        machine = get(name)
    except NervureError as error:  # host on a machine that no target covers
        return {"name": name, "cpu": "unknown", "family": "", "vector_bits": 0, "registers": 0, "features": []} | {
            "system": "linux",
            "available": False,
            "runs_here": "no",
            "hint": error.what,
        }
    return {
        "name": name,
        "cpu": machine.mcpu,
        "family": machine.family,
        "system": machine.system,
        "vector_bits": machine.vector_bytes * 8,
        "registers": machine.registers,
        "features": [f.name for f in machine.features] if machine.system == "linux" else _abilities(machine),
        **({"board": machine.gpu.board} if machine.gpu else {}),
    } | how_it_runs(machine)


def _by_gpu(machine: Any) -> dict[str, Any]:
    """As ``how_it_runs``, of a target for GPUs: the devices here that its machine code, or its PTX, is for."""
    from ....runtime.driver import find_driver
    from ....targets.cuda import EMULATED

    try:
        devices = find_driver().devices
    except NervureError as error:
        return {"available": False, "runs_here": "no", "hint": f"{error.what}; {machine.name}{EMULATED} plays it"}
    for device in devices:
        if machine.gpu.runs_on(device.architecture):
            return {"available": True, "runs_here": device.name, "hint": ""}
    return {"available": False, "runs_here": "no", "hint": f"{devices[0].name} is of another architecture"}


def _abilities(machine: Any) -> list[str]:
    """What a core has, where there is no /proc/cpuinfo to name it: its numbers, then its rows of instructions."""
    if machine.gpu is not None:
        ptx = [f"PTX {machine.gpu.ptx}"] if machine.gpu.ptx else []
        return [*(f"sm_{n}" for n in machine.gpu.images), *ptx]
    floats = "float32" if not machine.float64 else "float32 float64"
    return [floats, *dict.fromkeys(i.name for i in machine.instructions)]


def how_it_runs(machine: Any) -> dict[str, Any]:
    """``runs_here``: natively, by an emulator, or not; ``hint`` says what would change that."""
    from ....targets import emulator

    if machine.gpu is not None:
        return _by_gpu(machine)
    try:
        command = emulator.command(machine)
    except NervureError as error:
        return {"available": False, "runs_here": "no", "hint": error.hint or error.what}
    return {"available": True, "runs_here": command[0] if command else "natively", "hint": ""}
