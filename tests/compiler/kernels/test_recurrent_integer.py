"""LSTM and GRU on 8-bit steps: kernels equal the references bit for bit."""

from __future__ import annotations

import pytest
from harness import cases, check_region, machines, region_of, sample
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.library import run_elsewhere
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.errors import MissingTool


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize("machine", machines(), ids=lambda m: m.name)
@pytest.mark.parametrize("name, case", cases("lstm_integer", "gru_integer"))
def test_cases(name, case, machine, constant):
    consts = range(7) if constant else ()
    region, arrays = region_of(name, sample(case), case.attrs, consts=consts, machine=machine)
    check_region(region, arrays)


@pytest.mark.slow
@pytest.mark.emulator
def test_dot_products_of_signed_bytes(tmp_path):
    """A machine whose products want the first factor signed, in the emulator (the others: see test_ops_compiled)."""
    machine, entries, fed = targets.get("rpi5"), [], {}
    for name, case in (p.values for p in cases("lstm_integer", "gru_integer")[::3]):
        graph = Graph(f"{name}_{len(entries)}")
        arrays = sample(case)
        values = [None if a is None else graph.const(a) for a in arrays]
        values[0] = graph.input("x", graph.type(values[0]))
        made = graph.add(name, *values, **case.attrs)
        for value in graph.values(made.node):
            graph.output(value)
        entries.append(EntryGraph(graph, graph.name))
        fed[graph.name] = {"x": arrays[0]}
    artifact = compile_entries(entries, machine, tmp_path / "m.so", Options())
    for entry in entries:
        try:
            got = run_elsewhere(artifact, machine, fed[entry.function], entry=entry.function)
        except MissingTool as missing:
            pytest.skip(str(missing))
        for a, b in zip(got, interpret(entry.graph, fed[entry.function]), strict=True):
            assert (a == b).all(), entry.function
