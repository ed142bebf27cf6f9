"""The gradient rules of the op table: against finite differences in float64, and compiled against interpreted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.ops import OPS, Case, Op, integers, recurrent_integers, weights
from nervure.compiler.ops.sampling import sample_inputs
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries
from nervure.compiler.types import is_float, type_of
from nervure.errors import NervureError
from nervure.runtime.session import load

_STORED = "has no inputs"
_BOOL = "its result is bool"
_WHOLE = "works on whole numbers"
_CHOICE = "its results are positions"
NOT_DIFFERENTIABLE = {
    **dict.fromkeys(("input", "const", "param", "state", "iota"), _STORED),
    **dict.fromkeys(("logical_not", "logical_and", "logical_or", "logical_xor"), _BOOL),
    **dict.fromkeys(("isnan", "isinf", "equal", "less", "less_equal", "greater", "greater_equal"), _BOOL),
    **dict.fromkeys(("bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift"), _WHOLE),
    **dict.fromkeys(("argmax", "argmin", "nonzero", "nms"), _CHOICE),
    **dict.fromkeys(
        ("lstm_scan_grad", "gru_scan_grad", "rnn_scan_grad"), "backward passes that nothing differentiates again"
    ),
    **dict.fromkeys(
        (op.name for op in (*integers.OPS, *recurrent_integers.OPS, *weights.OPS)),
        "made by a pass that runs after differentiation",
    ),
    "random_bits": "its key is whole numbers",
    "fused": "is made by a pass that runs after differentiation",
}
ON_PURPOSE = ("quantize", "stop_gradient", "straight_through")  # not the derivative: tested by themselves below
REFUSED = {  # some cases have no form that is differentiated, and say so
    "roi_align": "without a sampling ratio the number of samples is data",
}
STEP = 1e-5
TOLERANCE = 1e-6
COMPILED_CASES = 3
CHUNK = 20  # operators an artifact
FLOAT32 = 5e-5  # what compiled gradients may differ by, relative to the largest value

RULES = [op for op in OPS.values() if op.gradient is not None or op.training is not None]
DERIVATIVES = [op for op in RULES if op.name not in ON_PURPOSE]


@dataclass
class Problem:
    """One case of an operator with a scalar loss: the sum of its floating-point outputs, each times a cotangent."""

    name: str
    graph: Graph
    loss: Value
    terms: list[Value]  # the loss is their sum
    wrt: list[Value]
    feeds: list[np.ndarray]
    grads: list[Value] = field(default_factory=list)

    def run(self, outputs: Sequence[Value], feeds: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        graph = self.graph.copy()
        graph.outputs, graph.output_names = list(outputs), [f"y{i}" for i in range(len(outputs))]
        graph.prune()
        return interpret(graph, self.feeds if feeds is None else feeds)

    def differentiate(self) -> Problem:
        self.grads = gradients(self.graph, self.loss, self.wrt)
        return self


def _problem(op: Op, number: int, case: Case, dtype: str) -> Problem | None:
    """None where no gradient flows: nothing floating goes in, or comes out."""
    rng = np.random.default_rng(number)
    graph = Graph(f"{op.name}_{number}")
    values: list[Value | None] = []
    wrt, feeds = [], []
    for i, (given, array) in enumerate(zip(case.inputs, sample_inputs(case, number), strict=True)):
        if array is None:
            values.append(None)
        elif is_float(type_of(array).dtype):
            x = array.astype(np.float64)
            if isinstance(given, np.ndarray):  # away from the round numbers, where the kinks are
                x = x + 0.02 * rng.uniform(0.5, 1, x.shape) * np.maximum(np.abs(x), 0.05)
            feeds.append(x.astype(dtype))
            values.append(graph.input(f"x{i}", type_of(feeds[-1])))
            wrt.append(values[-1])
        else:
            values.append(graph.const(array, f"c{i}"))
    attrs = dict(case.attrs)
    if is_float(str(attrs.get("to", op.attrs.get("to")))):
        attrs["to"] = dtype
    first = graph.add(op.name, *values, origin=("case",), **attrs)
    outputs = [v for v in graph.values(first.node) if is_float(graph.type(v).dtype) and graph.type(v).size]
    wrt = [v for v in wrt if v is not None and graph.type(v).size]
    if not wrt or not outputs:
        return None
    terms = []
    for i, y in enumerate(outputs):
        cotangent = graph.input(f"g{i}", graph.type(y))
        feeds.append(rng.uniform(0.5, 1.5, graph.type(y).dims).astype(dtype) * rng.choice([-1, 1], graph.type(y).dims))
        product = graph.add("mul", y, cotangent)
        terms.append(graph.add("reduce_sum", product, axes=tuple(range(graph.type(y).rank))))
    loss = terms[0]
    for term in terms[1:]:
        loss = graph.add("add", loss, term)
    feeds = [f.astype(dtype) for f in feeds]
    return Problem(graph.name, graph, loss, terms, wrt, feeds)


def _problems(op: Op, dtype: str) -> list[Problem]:
    cases = [c for c in (op.cases() if op.cases else ()) if c.note != "special" and not c.attrs.get("block")]
    found = (_problem(op, number, case, dtype) for number, case in enumerate(cases))
    return [p for p in found if p is not None]


def _ready(op: Op, dtype: str) -> list[Problem]:
    """The cases of an operator in the form that is differentiated."""
    problems, refused = [], 0
    for problem in _problems(op, dtype):
        try:
            training_form(problem.graph, problem.loss, problem.wrt)
        except NervureError:
            refused += 1
        else:
            problems.append(problem)
    assert problems, "no case has floating-point inputs and outputs"
    assert bool(refused) == (op.name in REFUSED)
    return problems


def _complaints(problem: Problem) -> list[str]:
    """Each input's gradient along a random direction against the difference of the loss."""
    rng = np.random.default_rng(1)
    found = []
    slots = [problem.graph.inputs.index(v.node) for v in problem.wrt]
    for slot, grad in zip(slots, problem.run(problem.grads), strict=True):
        x = problem.feeds[slot]
        direction = rng.choice([-1.0, 1.0], x.shape) * rng.uniform(0.5, 1.0, x.shape)
        sides = []
        for sign in (1, -1):
            feeds = list(problem.feeds)
            feeds[slot] = x + sign * STEP * direction
            sides.append(float(problem.run([problem.loss], feeds)[0]))
        expected = (sides[0] - sides[1]) / (2 * STEP)
        if np.isnan(expected):  # outside of the operator's domain
            continue
        got = float((grad * direction).sum())
        scale = float(np.abs(grad * direction).sum()) + 1e-3 * abs(expected) + 1e-4
        if not abs(got - expected) <= TOLERANCE * scale:
            found.append(f"{problem.name}, input {slot}: {got:.9g}, by differences {expected:.9g} ({scale:.3g})")
    return found


def test_every_operator_has_a_rule_or_a_reason() -> None:
    with_rule = {op.name for op in RULES}
    assert with_rule.isdisjoint(NOT_DIFFERENTIABLE)
    assert sorted(set(OPS) - with_rule - set(NOT_DIFFERENTIABLE)) == []


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in DERIVATIVES])
def test_rule_against_finite_differences(op: Op) -> None:
    complaints = [c for problem in _ready(op, "float64") for c in _complaints(problem.differentiate())]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("op", [pytest.param(op, id=op.name) for op in RULES if op.training is not None])
def test_training_form_computes_the_same(op: Op) -> None:
    plain = {p.name: p for p in _problems(op, "float64")}
    for problem in _ready(op, "float64"):
        for trained, known in zip(problem.terms, plain[problem.name].terms, strict=True):
            expected = plain[problem.name].run([known])[0]
            np.testing.assert_allclose(problem.run([trained])[0], expected, rtol=1e-9, atol=1e-9)


# -- compiled ----------------------------------------------------------------------------------------------------


def _compiled(op: Op) -> list[Problem]:
    """A few cases of an operator, spread over all that it has, as graphs whose outputs are the gradients."""
    problems = _ready(op, "float32")
    chosen = sorted({round(part * (len(problems) - 1)) for part in np.linspace(0, 1, COMPILED_CASES)})
    for problem in (problems[i] for i in chosen):
        for i, value in enumerate(problem.differentiate().grads):
            problem.graph.output(value, f"d{i}")
        problem.graph.prune()
    return [problems[i] for i in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, len(DERIVATIVES), CHUNK), ids=lambda i: f"{DERIVATIVES[i].name}...")
def test_compiled_gradients(start: int, tmp_path: Path) -> None:
    problems = [p for op in DERIVATIVES[start : start + CHUNK] for p in _compiled(op)]
    entries = [EntryGraph(p.graph, p.name) for p in problems]
    compile_entries(entries, targets.get("host"), tmp_path / "gradients.so", Options(check=True))
    session = load(tmp_path / "gradients.so", threads=2)
    complaints = []
    for problem in problems:
        names = [problem.graph.node(n).names[0] for n in problem.graph.inputs]
        got = session.run(None, dict(zip(names, problem.feeds, strict=True)), entry=problem.name)
        for i, (y, ref) in enumerate(zip(got, interpret(problem.graph, problem.feeds), strict=True)):
            wild = ~np.isfinite(ref)
            worst, scale = np.abs(y - ref)[~wild].max(initial=0), max(1e-3, np.abs(ref)[~wild].max(initial=0))
            if not (worst <= FLOAT32 * scale and np.array_equal(np.isfinite(y), ~wild)):
                complaints.append(f"{problem.name}, gradient {i}: off by {worst:.3g} of {scale:.3g}")
    assert not complaints, "\n".join(complaints)
