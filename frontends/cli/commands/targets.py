"""``nervure targets``: what can be compiled for, and what can run it here."""

from __future__ import annotations

from typing import Any

from ....errors import NervureError
from ..options import Json

EXAMPLE = "nervure targets"


def targets_command(as_json: Json = False) -> None:
    """List the machines that models can be compiled for."""
    from ..console import cell, out, print_json, row, table

    rows = [_target(name) for name in _names()]
    if as_json:
        return print_json({"targets": rows})
    made = table("", "target", "CPU", "vector", "registers", "features", "runs here", right=("vector", "registers"))
    for t in rows:
        runs = cell(t["runs_here"], "green") if t["available"] else cell(f"{t['runs_here']} ({t['hint']})", "yellow")
        features = ", ".join(t["features"][:6]) + (" ..." if len(t["features"]) > 6 else "")
        row(made, t["name"], t["cpu"], f"{t['vector_bits']} bit", t["registers"], features or "baseline", runs)
    out().print(made)


def _names() -> list[str]:
    from ....targets import names

    return names()


def _target(name: str) -> dict[str, Any]:
    from ....targets import get

    try:
        machine = get(name)
    except NervureError as error:  # host on a machine that no target covers
        return {"name": name, "cpu": "unknown", "family": "", "vector_bits": 0, "registers": 0, "features": []} | {
            "available": False,
            "runs_here": "no",
            "hint": error.what,
        }
    return {
        "name": name,
        "cpu": machine.mcpu,
        "family": machine.family,
        "vector_bits": machine.vector_bytes * 8,
        "registers": machine.registers,
        "features": [f.name for f in machine.features],
    } | how_it_runs(machine)


def how_it_runs(machine: Any) -> dict[str, Any]:
    """``runs_here``: natively, by an emulator, or not; ``hint`` says what would change that."""
    from ....targets import emulator

    try:
        command = emulator.command(machine)
    except NervureError as error:
        return {"available": False, "runs_here": "no", "hint": error.hint or error.what}
    return {"available": True, "runs_here": command[0] if command else "natively", "hint": ""}
