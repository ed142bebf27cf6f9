"""Everything that ``inspect`` tells about a model, as plain data: its text, its JSON and its page show the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...compiler.ir import STORED, Graph
from ...compiler.passes import canonicalize
from ...compiler.passes.fuse import fuse
from ...compiler.pipeline import EntryGraph, Options, plan_program
from ...compiler.plan.liveness import Live, liveness
from ...compiler.program import Buffer, Entry, Program
from ...errors import NervureError
from ...runtime.artifact import Artifact
from ...targets import Machine, get
from ..footprint import footprint, live_layers
from .network import Network


@dataclass(frozen=True)
class Overview:
    """``facts`` is the JSON object. ``fused`` is the graph that the page draws; None for a compiled library."""

    facts: dict[str, Any]
    fused: Graph | None = None


def of_network(given: Network, machine: Machine, target: str, options: Options) -> Overview:
    """Plans the network for ``machine`` without compiling it; where it cannot be planned, ``problem`` says why."""
    bindings = given.bindings()
    graphs = [given.graph(b) for b in bindings]
    facts: dict[str, Any] = {"model": given.title, "kind": "network", "target": target, "machine": machine.mcpu}
    facts |= {"threads": options.threads, "problem": None, "bindings": [dict(b) for b in bindings]}
    entries = [EntryGraph(g, "infer", b if len(bindings) > 1 else {}) for g, b in zip(graphs, bindings, strict=True)]
    chosen, entry = 0, None
    try:
        program, _ = plan_program(entries, machine, options)
    except NervureError as error:
        facts["problem"] = str(error)
        facts |= _unplanned(graphs[0])
    else:
        needs = [program.arena_bytes(e, options.threads) for e in program.entries]
        chosen = needs.index(max(needs))
        entry = program.entries[chosen]
        facts |= _planned(program, entry, machine, options.threads)
    fused = fuse(canonicalize(graphs[chosen]))
    facts["operators"] = operators(fused)
    return Overview(facts, fused)


def of_artifact(artifact: Artifact, threads: int) -> Overview:
    """What a compiled library says about itself; it is not loaded."""
    made = artifact.block["machine"]
    entry = max(artifact.entries, key=lambda e: e.arena_bytes(threads))
    try:
        machine = get(made["name"])
    except NervureError:
        machine = None
    facts: dict[str, Any] = {
        "model": artifact.name,
        "kind": "library",
        "target": made["name"],
        "machine": made["mcpu"],
        "threads": threads,
        "problem": None,
        "bindings": [e.bindings for e in artifact.entries],
        "file": str(artifact.path),
        "sha256": artifact.sha256,
        "features": made["features"],
        "meta": artifact.block["meta"],
        "inputs": [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in entry.inputs],
        "outputs": [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in entry.outputs],
        "arena_bytes": entry.arena_bytes(threads),
        "arena_lower_bound_bytes": entry.lower_bound,
        "ram": artifact.ram(threads),
        "weights_bytes": artifact.weights_bytes,
        "code_bytes": artifact.code_bytes,
        "artifact_bytes": artifact.size,
    }
    facts["steps"] = [_step(i, s, machine) for i, s in enumerate(entry.steps)]
    facts["flops"] = sum(s["flops"] for s in facts["steps"])
    layers = live_layers(artifact) if artifact.bare is not None else []
    whole = {id(b): b for row in layers for b in row.buffers}.values()
    facts |= {"buffers": [_buffer(b) for b in whole], "live": _live(layers)}
    facts["regions"] = [r["name"] for r in artifact.block["regions"]]
    if artifact.bare is not None:
        facts["footprint"] = footprint(artifact).as_dict()
    facts["operators"] = dict(Counter(op for s in facts["steps"] for op in s["op"].split("+")).most_common())
    return Overview(facts)


def operators(graph: Graph) -> dict[str, int]:
    """How often each operator occurs, fused ones counted one by one; most frequent first."""
    found: Counter[str] = Counter()
    for key in graph.order():
        node = graph.node(key)
        body = node.attrs.get("body")
        if isinstance(body, Graph):
            found += Counter(operators(body))
        elif node.op not in STORED:
            found[node.op] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _planned(program: Program, entry: Entry, machine: Machine, threads: int) -> dict[str, Any]:
    raw = [
        {
            "name": s.name,
            "op": s.op,
            "flops": s.flops,
            "bytes": s.bytes_moved,
            "weight_bytes": s.weight_bytes,
            "detail": s.detail,
            "origin": list(s.origin),
        }
        for s in entry.steps
    ]
    return {
        "inputs": [_port(p.name, p.type) for p in entry.inputs],
        "outputs": [_port(p.name, p.type) for p in entry.outputs],
        "arena_bytes": program.arena_bytes(entry, threads),
        "arena_lower_bound_bytes": entry.lower_bound,
        "weights_bytes": len(program.const) + sum(p.type.nbytes for p in program.params),
        "flops": sum(s["flops"] for s in raw),
        "steps": [_step(i, s, machine) for i, s in enumerate(raw)],
        "buffers": [_buffer(b) for b in entry.buffers],
        "live": _live(liveness(entry)),
        "regions": [r.name for r in program.regions],
    }


def _buffer(b: Buffer) -> dict[str, Any]:
    return {
        "name": b.name,
        "region": b.region,
        "offset": b.offset,
        "nbytes": b.nbytes,
        "first": b.first,
        "last": b.last,
        "scratch": b.scratch,
    }


def _live(rows: Sequence[Live]) -> list[dict[str, Any]]:
    """What is alive at each step: bytes that the live buffers cover, and those that they share."""
    return [
        {
            "step": r.step,
            "bytes": r.bytes,
            "saved_bytes": r.saved,
            "buffers": [{"name": b.name, "bytes": b.nbytes, "scratch": b.scratch} for b in r.buffers],
        }
        for r in rows
    ]


def _unplanned(graph: Graph) -> dict[str, Any]:
    return {
        "inputs": [_port(graph.node(n).names[0], graph.node(n).types[0]) for n in graph.inputs],
        "outputs": [_port(n, graph.type(v)) for v, n in zip(graph.outputs, graph.output_names, strict=True)],
        "arena_bytes": None,
        "arena_lower_bound_bytes": None,
        "weights_bytes": sum(graph.node(k).types[0].nbytes for k in graph.find("const")),
        "flops": None,
        "steps": [],
        "buffers": [],
        "live": [],
        "regions": [],
    }


def _port(name: str, type: Any) -> dict[str, Any]:
    return {"name": name, "dtype": type.dtype, "shape": list(type.dims)}


def _step(index: int, step: Mapping[str, Any], machine: Machine | None) -> dict[str, Any]:
    """A step's row. ``cycles`` is the machine's roofline."""
    cycles = 0.0
    if machine is not None:
        cycles = machine.roofline(step["flops"], step["bytes"] + step["weight_bytes"])
    return {
        "step": index,
        **{k: v for k, v in step.items() if k != "origin"},
        "cycles": cycles,
        "origin": step["origin"],
    }


def graph_text(given: Network, stage: str) -> str:
    """The IR's text after ``stage``: ``imported``, ``canonical`` or ``fused``; one graph for each binding."""
    texts: list[str] = []
    stages: dict[str, Sequence[Any]] = {"imported": (), "canonical": (canonicalize,), "fused": (canonicalize, fuse)}
    for bindings in given.bindings():
        graph = given.graph(bindings)
        for apply in stages[stage]:
            graph = apply(graph)
        texts.append(graph.text())
    return "\n".join(texts)
