"""What a core cannot do: found in a graph before anything is planned, all places at once."""

from __future__ import annotations

from ..errors import NervureError
from ..targets import MACHINES
from ..targets.machine import Machine
from .ir import STORED, Graph


def check_machine(graph: Graph, machine: Machine) -> None:
    """``NervureError`` with every operation of a canonical graph that computes in float64, where the core does not:
    a compiler would call slow functions instead, of which the library has none."""
    if machine.float64:
        return
    found = []
    for key in graph.order():
        node = graph.node(key)
        types = [*node.types, *(graph.type(a) for a in graph.args(key) if a is not None)]
        if any(t.dtype == "float64" for t in types) and node.op not in STORED:
            found.append(f"{node.op} {node.names[0]}" + (f" ({node.origin[0]})" if node.origin else ""))
        elif node.op == "input" and node.types[0].dtype == "float64":
            found.append(f"input {node.names[0]}")
    if found:
        one = len(found) == 1
        able = ", ".join(m.name for m in MACHINES.values() if m.system == machine.system and m.float64)
        raise NervureError(
            f"{machine.name} does not compute in float64, {'an operation does' if one else f'{len(found)} places do'}",
            where=found,
            why="its floating-point unit has float32 only",
            hint="convert the model to float32 (export it that way, or cast before these places), "
            f"or take a core with float64: {able}",
        )
