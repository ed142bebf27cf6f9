"""Quantized recurrent layers become integer operators, which compute what the compiled program computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.quantize.recurrent import quantize_recurrent, recurrent_at, state_scheme
from nervure.compiler.types import TensorType
from nervure.runtime.session import load

GATES = {"lstm": 4, "gru": 3}


def network(
    op: str,
    steps: int = 6,
    batch: int = 2,
    features: int = 5,
    hidden: int = 8,
    outputs: tuple[int, ...] = (0,),
    states: bool = False,
    lengths: bool = False,
    biased: bool = True,
    seed: int = 0,
    **attrs: Any,
) -> tuple[Graph, list[np.ndarray]]:
    """A float layer with random weights, and a random input."""
    rng = np.random.default_rng(seed)
    d, rows = 2 if attrs.get("direction") == "bidirectional" else 1, GATES[op] * hidden
    graph = Graph("layer")
    x = rng.standard_normal((steps, batch, features)).astype(np.float32)

    def const(name: str, *shape: int, by: float = 1.0) -> Value:
        return graph.const((rng.standard_normal(shape) * by).astype(np.float32), name)

    args: list[Value | None] = [graph.input("x", TensorType("float32", x.shape))]
    args += [const("w", d, rows, features, by=features**-0.5), const("r", d, rows, hidden, by=hidden**-0.5)]
    args.append(const("b", d, 2 * rows, by=0.3) if biased else None)
    given = rng.integers(1, steps + 1, batch).astype(np.int32)
    args.append(graph.const(given, "lengths") if lengths else None)
    args += [const(n, d, batch, hidden, by=0.3) for n in ("h0", "c0")[: 2 if op == "lstm" else 1]] if states else []
    made = graph.add(op, *args, **attrs)
    for i in outputs:
        graph.output(Value(made.node, i))
    return graph, [x]


def steps_apart(graph: Graph, x: list[np.ndarray]) -> float:
    """How far the lowered graph's outputs lie from those of the graph with quantizers, in steps of h."""
    got, wanted = interpret(canonicalize(graph, check=True), x), interpret(graph, x)
    return max(float(np.abs(a - b).max()) * 127 for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("activations", ["int8", "uint8"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op, more", [("lstm", {}), ("gru", {}), ("gru", {"linear_before_reset": True})])
def test_a_quantized_layer_becomes_integers(op: str, more: dict[str, Any], direction: str, activations: str) -> None:
    graph, x = network(op, direction=direction, states=True, lengths=True, outputs=(0, 1), **more)
    made = quantize_recurrent(graph, {"x": (-3.0, 3.0)}, activations=activations)
    lowered = canonicalize(made, check=True)
    assert not lowered.find(op) and len(lowered.find(f"{op}_integer")) == 1
    assert lowered.type(Value(lowered.find(f"{op}_integer")[0])).dtype == activations
    assert steps_apart(made, x) < 2.5


@pytest.mark.parametrize("op", sorted(GATES))
@pytest.mark.parametrize("output", [1, 2])
def test_a_layer_of_which_only_a_last_state_is_used(op: str, output: int) -> None:
    if op == "gru" and output == 2:
        output = 1
    graph, x = network(op, outputs=(1,) if output == 1 else (1, 2))
    made = quantize_recurrent(graph, {"x": (-3.0, 3.0)})
    assert canonicalize(made).find(f"{op}_integer")
    assert steps_apart(made, x) < 4


@pytest.mark.slow
def test_scales_that_are_computed(tmp_path: Path) -> None:
    """The scale of x may be known at run time only."""
    graph, x = network("lstm")
    work = quantize_recurrent(graph, {"x": (-3.0, 3.0)})
    (quantizer,) = [k for k in work.find("quantize") if work.args(k)[0].node in work.inputs]  # type: ignore[union-attr]
    scale = work.input("scale", TensorType("float32", ()))
    (back,) = [user for user, _ in work.users(Value(quantizer))]
    for key in (quantizer, back):
        work.set_arg(key, 1, scale)
    lowered = canonicalize(work, check=True)
    assert lowered.find("lstm_integer")
    given = {"x": x[0], "scale": np.array(0.03, np.float32)}
    compile_entries([EntryGraph(work, "infer")], targets.host(), tmp_path / "m.so", Options())
    got = load(tmp_path / "m.so").run(None, given)
    np.testing.assert_array_equal(got[0], interpret(lowered, given)[0])


@pytest.mark.parametrize(
    "attrs",
    [{"activations": ("HardSigmoid", "Tanh", "Tanh")}, {"clip": 1.0}, {"input_forget": True}],
    ids=["activations", "clip", "coupled gates"],
)
def test_what_has_no_integer_form_stays_in_float(attrs: dict[str, Any]) -> None:
    graph, _ = network("lstm", **attrs)
    why = recurrent_at(graph, graph.find("lstm")[0])
    assert isinstance(why, str) and "no integer form" in why
    assert canonicalize(quantize_recurrent(graph, {"x": (-3.0, 3.0)})).find("lstm")


def test_without_a_quantizer_behind_it_a_layer_stays_in_float() -> None:
    graph, _ = network("gru")
    made = quantize_recurrent(graph, {"x": (-3.0, 3.0)})
    (user,) = [u for u, _ in made.users(Value(made.find("gru")[0]))]
    for back, _ in made.users(Value(user)):
        made.replace(Value(back), Value(made.find("gru")[0]), keep_name=False)
    made.prune()
    assert canonicalize(made).find("gru")


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("op", sorted(GATES))
def test_compiled_as_interpreted(op: str, tmp_path: Path, data: st.DataObject) -> None:
    """Bit for bit, for drawn sizes, directions, lengths, states and ranges."""
    size = {
        n: data.draw(st.integers(1, m), n) for n, m in (("steps", 9), ("batch", 4), ("features", 40), ("hidden", 70))
    }
    more: dict[str, Any] = {n: data.draw(st.booleans(), n) for n in ("states", "lengths", "biased")}
    more["direction"] = data.draw(st.sampled_from(("forward", "reverse", "bidirectional")))
    if op == "gru":
        more["linear_before_reset"] = data.draw(st.booleans())
    graph, x = network(op, **size, **more, outputs=(0, 1), seed=data.draw(st.integers(0, 99), "seed"))
    reach = data.draw(st.floats(0.01, 50.0), "range of x")
    activations = data.draw(st.sampled_from(("int8", "uint8")))
    made = quantize_recurrent(graph, {"x": (-reach, reach / 2)}, activations=activations)
    lowered = canonicalize(made)
    compile_entries([EntryGraph(made, "infer")], targets.host(), tmp_path / "m.so", Options())
    got = load(tmp_path / "m.so", threads=2).run(None, {"x": x[0]})
    for a, b in zip(got, interpret(lowered, x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_scheme_of_a_state_is_symmetric_and_holds_one_at_most() -> None:
    assert float(state_scheme(-0.25, 0.5).scale) == pytest.approx(0.5 / 127)
    assert float(state_scheme(-9.0, 2.0).scale) == pytest.approx(1 / 127)
    assert float(state_scheme(0.0, 0.0).scale) == pytest.approx(1 / 127)
    assert state_scheme(-1, 1, "uint8").zero_point == 128
