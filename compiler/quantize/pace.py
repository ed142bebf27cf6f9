"""Whether a layer is faster in integers: its kernels are timed in both forms on the machine at hand, or estimated.

The measure is whole layers where they stand, conversions at the border of integers included: both forms of the network
are compiled, run and profiled step by step, and each step counts for the layer whose operation it does. What was
measured goes into a tuning record, plain JSON, which is an input like any other: with it the same choice is made again
without a measurement. Elsewhere, and without a record, the cost model of the kernel templates decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NervureError
from ...targets.files import temporary_folder, write_atomic
from ...targets.machine import Machine
from ..ir import Graph
from ..pipeline import EntryGraph, Options, compile_entries, plan_program
from ..program import Entry
from .forms import Layer

ROUNDS = 7  # profiles of each form, taken in turns; the fastest counts
RUNS = 5  # runs of a profile
WORTH = 0.97  # an integer layer must take less than this part of the float one's time
FORMAT = 1


@dataclass(frozen=True)
class Pace:
    """Microseconds of one layer in float and in integers, on one core."""

    layer: str
    float_us: float
    integer_us: float

    @property
    def slower(self) -> bool:
        """Whether integers do not pay."""
        return self.integer_us > WORTH * self.float_us


def paces(
    plain: Graph, quantized: Graph, layers: Sequence[Layer], machine: Machine, *, measured: bool
) -> tuple[Pace, ...]:
    """Both times of every layer. ``plain`` is the canonical float graph that the layers belong to, ``quantized`` the
    same with quantizers. ``measured`` needs the machine at hand; without it the templates' cost model is asked."""
    owner = _owners(plain, layers)
    forms = (plain, quantized)
    sums = _measured(forms, owner, machine) if measured else [_estimated(g, owner, machine) for g in forms]
    return tuple(Pace(m.name, sums[0][m.name], sums[1][m.name]) for m in layers if all(m.name in s for s in sums))


def _owners(plain: Graph, layers: Iterable[Layer]) -> dict[str, str]:
    """Origin of an operation -> the layer that it belongs to; places that several layers share are left out."""
    found: dict[str, set[str]] = {}
    for layer in layers:
        for place in plain.node(layer.node).origin:
            found.setdefault(place, set()).add(layer.name)
    return {place: next(iter(names)) for place, names in found.items() if len(names) == 1}


def _sums(rows: Iterable[tuple[Sequence[str], float]], owner: Mapping[str, str]) -> dict[str, float]:
    """Microseconds of each layer from ``(origins, microseconds)`` of the steps."""
    total: dict[str, float] = {}
    for origins, us in rows:
        layer = next((owner[o] for o in origins if o in owner), None)
        if layer is not None:
            total[layer] = total.get(layer, 0.0) + us
    return total


def _estimated(graph: Graph, owner: Mapping[str, str], machine: Machine) -> dict[str, float]:
    program, _ = plan_program([EntryGraph(graph)], machine, Options())
    entry: Entry = program.entries[0]
    return _sums(((s.origin, s.estimate / 1000) for s in entry.steps), owner)


def _measured(forms: Sequence[Graph], owner: Mapping[str, str], machine: Machine) -> list[dict[str, float]]:
    """The fastest of several profiles, the forms in turns: both see the same machine."""
    from ...runtime.session import load

    with temporary_folder() as folder:
        sessions = []
        for i, graph in enumerate(forms):
            path = folder / f"form{i}.so"
            compile_entries([EntryGraph(graph)], machine, path)
            sessions.append(load(path))
        best: list[np.ndarray] = [np.array([np.inf])] * len(forms)
        origins: list[list[Any]] = [[]] * len(forms)
        for _ in range(ROUNDS):
            for i, session in enumerate(sessions):
                rows = session.profile(runs=RUNS)
                origins[i] = [r["origin"] for r in rows]
                best[i] = np.minimum(best[i], [r["seconds"] * 1e6 for r in rows])
    return [_sums(zip(o, b.tolist(), strict=True), owner) for o, b in zip(origins, best, strict=True)]


def write_record(path: Path, machine: Machine, found: Iterable[Pace]) -> None:
    """Writes a tuning record; the same times give the same bytes."""
    layers = {p.layer: {"float_us": round(p.float_us, 3), "integer_us": round(p.integer_us, 3)} for p in found}
    record = {"format": FORMAT, "kind": "nervure tuning record", "machine": machine_facts(machine), "layers": layers}
    write_atomic(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def read_record(path: Path, machine: Machine, layers: Iterable[str]) -> tuple[Pace, ...]:
    """The times in a tuning record; ``NervureError`` where it is none, of another machine or of another network."""
    try:
        record = json.loads(path.read_text())
        rows = record["layers"]
        found = tuple(Pace(name, float(r["float_us"]), float(r["integer_us"])) for name, r in sorted(rows.items()))
        if record["format"] != FORMAT or not all(np.isfinite([p.float_us, p.integer_us]).all() for p in found):
            raise ValueError("it is of another format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NervureError(
            "the tuning record cannot be read", where=str(path), why=str(error), hint="measure again: --tune"
        ) from None
    if record["machine"] != machine_facts(machine):
        raise NervureError(
            "the tuning record is of another machine",
            where=str(path),
            why=f"it was measured on {record['machine']}; this is {machine_facts(machine)}",
            hint="measure again on this machine: --tune",
        )
    known = set(layers)
    strange = [p.layer for p in found if p.layer not in known]
    if strange:
        raise NervureError(
            "the tuning record is of another network",
            where=str(path),
            why=f"there is no layer {strange[0]!r}",
            hint="measure again: --tune",
        )
    return found


def machine_facts(machine: Machine) -> dict[str, Any]:
    """What a measurement holds for: the instruction set and the caches, not the name."""
    row = machine.record()
    return {key: row[key] for key in ("family", "lanes", "registers", "fma_ports", "l1", "l2", "l3", "features")}
