"""What an architecture would cost on a machine, by its plan: nothing is trained, nothing compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..compiler.ir import Graph
from ..compiler.kernels.templates._tile import GHZ
from ..compiler.pipeline import EntryGraph, Options, plan_program
from ..compiler.quantize.observe import Extent
from ..compiler.quantize.place import insert, sites
from ..compiler.quantize.quantizer import activation_schemes, prepare, weight_schemes
from ..compiler.quantize.settings import Settings
from ..targets import Machine

COSTS = ("ram", "flash", "latency")


@dataclass(frozen=True)
class Costs:
    """``ram``: bytes of the arena, and of what stays from run to run. ``flash``: bytes of weights, packed as the
    kernels read them (code, some KB of it, is known when a network is compiled). ``latency``: of a run, by the kernel
    templates' cost model; cycles on a microcontroller, else microseconds of one core. It was not measured: it orders
    networks."""

    ram: int
    flash: int
    latency: float

    def excess(self, limits: Mapping[str, float]) -> dict[str, float]:
        """By how much each limit is exceeded, in parts of it; not above 0 where it holds."""
        return {name: getattr(self, name) / limit - 1 for name, limit in limits.items()}


def planned(graph: Graph, machine: Machine, int8: bool) -> Costs:
    """The costs of a static float graph on ``machine``; with ``int8`` of its quantized form."""
    program, _ = plan_program([EntryGraph(int8_form(graph) if int8 else graph)], machine, Options())
    entry = program.entries[0]
    stored = sum(s.value.nbytes for s in (*program.params, *program.states))
    nanoseconds = sum(step.estimate for step in entry.steps)
    latency = nanoseconds * GHZ if machine.system == "bare" else nanoseconds / 1000
    return Costs(program.arena_bytes(entry, 1) + stored + program.derived_bytes, len(program.const) + stored, latency)


def int8_form(graph: Graph) -> Graph:
    """The graph as ``nv.quantize`` stores it, with made-up ranges of activations: types, sizes and kernels are those of
    the real one, results are not."""
    settings = Settings(method="minmax", weight_method="minmax", equalize=False, bias_correction=False)
    plain = prepare(graph)
    placed = sites(plain, settings)
    seen = {site.name: Extent(-1.0, 1.0, -1.0, 1.0, 1) for site in placed.activations}
    schemes = activation_schemes(placed, seen, {}, settings)
    return insert(plain, schemes | weight_schemes(plain, placed, schemes, settings), placed.floats)
