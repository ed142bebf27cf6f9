"""Gradients of recurrent layers: against finite differences in float64, and against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.ops import OPS
from nervure.compiler.ops.sampling import sample_inputs
from nervure.compiler.types import is_float, type_of

DIRECTIONS = ("forward", "reverse", "bidirectional")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    *((op, {"direction": d}, given) for op in GATES for d in DIRECTIONS for given in ("b", "bls")),
    *((op, {}, "") for op in GATES),
    *(("gru", {"direction": d, "linear_before_reset": True}, g) for d in DIRECTIONS for g in ("b", "bls")),
    ("gru", {"linear_before_reset": True}, "s"),
    *(("lstm", {"direction": d}, "blsp") for d in DIRECTIONS),
    ("lstm", {}, "p"),
    ("lstm", {"input_forget": True}, "bs"),
    ("lstm", {"input_forget": True, "direction": "bidirectional"}, "blsp"),
    ("lstm", {"activations": ("HardSigmoid", "Softsign", "Softplus")}, "bs"),
    ("lstm", {"activations": ("Sigmoid", "Relu", "LeakyRelu") * 2, "direction": "bidirectional"}, "b"),
    ("gru", {"activations": ("Sigmoid", "Elu")}, "bs"),
    ("rnn", {"activations": ("Relu",)}, "bs"),
    *((op, {"clip": 0.7}, "bs") for op in GATES),
]


def layer(op: str, attrs: dict[str, Any], given: str, size: tuple[int, ...] = (4, 3, 2, 3)) -> list[np.ndarray | None]:
    """Inputs of a layer in float64; ``given``: b(ias), l(engths), s(tates), p(eepholes)."""
    steps, batch, features, hidden = size
    random, d, gates = np.random.default_rng(len(given)), len(attrs.get("direction", "")) // 13 + 1, GATES[op]
    shapes: list[tuple[int, ...] | None] = [(steps, batch, features), (d, gates * hidden, features)]
    shapes += [(d, gates * hidden, hidden), (d, 2 * gates * hidden) if "b" in given else None, None]
    shapes += [(d, batch, hidden) if "s" in given else None] * (2 if op == "lstm" else 1)
    if "p" in given:
        shapes.append((d, 3 * hidden))
    arrays = [None if s is None else random.uniform(-1, 1, s) for s in shapes]
    arrays[4] = np.arange(steps, steps - batch, -1).clip(1) if "l" in given else None  # type: ignore[assignment]
    return arrays


def loss_of(op: str, attrs: dict[str, Any], arrays: list[np.ndarray | None], read: set[int]) -> tuple[Graph, Value]:
    """A graph of the layer and the sum of its outputs numbered in ``read``, each weighted at random."""
    graph = Graph("loss")
    values = [None if a is None else graph.input(f"x{i}", type_of(a)) for i, a in enumerate(arrays)]
    outputs = graph.values(graph.add(op, *values, origin=("test",), **attrs).node)
    random, total = np.random.default_rng(1), None
    for i, y in enumerate(outputs):
        if i not in read or not is_float(graph.type(y).dtype):
            continue
        weights = random.standard_normal(graph.type(y).dims).astype(graph.type(y).dtype)
        part = graph.add("mul", y, graph.const(weights, origin=("test",)), origin=("test",))
        part = graph.add("reduce_sum", part, axes=tuple(range(graph.type(y).rank)), origin=("test",))
        total = part if total is None else graph.add("add", total, part, origin=("test",))
    assert total is not None
    return graph, total


def check(op: str, attrs: dict[str, Any], arrays: list[np.ndarray | None], read: set[int]) -> None:
    """Every gradient against central differences of the operator's own reference."""
    graph, loss = loss_of(op, attrs, arrays, read)
    held = [a for a in arrays if a is not None]
    floats = [i for i, a in enumerate(held) if a.dtype.kind == "f"]
    plain = graph.copy()
    plain.output(loss, "loss")
    training_form(graph, loss, [Value(graph.inputs[i]) for i in floats])
    for value in gradients(graph, loss, [Value(graph.inputs[i]) for i in floats]):
        graph.output(value)
    graph.check()
    found = interpret(graph, held)
    step = 1e-6
    for i, gradient in zip(floats, found, strict=True):
        assert gradient.shape == held[i].shape
        wanted = np.zeros(held[i].shape)
        for at in np.ndindex(held[i].shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in held]
                moved[i][at] += sign * step
                ends.append(float(interpret(plain, moved)[0]))
            wanted[at] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-6, atol=1e-7, err_msg=f"input {i}")


@pytest.mark.parametrize("op, attrs, given", OPTIONS, ids=str)
def test_layers_against_finite_differences(op, attrs, given):
    check(op, attrs, layer(op, attrs, given), {0, 1, 2})


@pytest.mark.parametrize("read", [{0}, {1}], ids=["outputs", "last state"])
@pytest.mark.parametrize("op", sorted(GATES))
def test_only_some_outputs_are_read(op, read):
    check(op, {}, layer(op, {}, "bs"), read)


@pytest.mark.parametrize("op", sorted(GATES))
def test_one_step(op):
    for given in ("b", "bs"):
        check(op, {}, layer(op, {}, given, (1, 2, 3, 2)), {0, 1})


@pytest.mark.parametrize("op", ["lstm_scan", "gru_scan", "rnn_scan"])
def test_scans_where_all_that_they_keep_is_read(op):
    for number, case in enumerate(OPS[op].cases()):  # type: ignore[misc]
        arrays = [a if a is None or a.dtype.kind != "f" else a.astype(np.float64) for a in sample_inputs(case, number)]
        if max(a.size for a in arrays if a is not None) < 1000:
            check(op, dict(case.attrs), arrays, {0, 1, 2, 3, 4})


# -- PyTorch -------------------------------------------------------------------------------------------------------

ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}  # PyTorch's gates in ONNX's order


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("op", sorted(GATES))
def test_gradients_agree_with_pytorch(op, bidirectional):
    torch = pytest.importorskip("torch")
    steps, batch, features, hidden = 7, 5, 6, 8
    torch.manual_seed(0)
    net = getattr(torch.nn, op.upper())(features, hidden, bidirectional=bidirectional).double()
    suffixes = ("", "_reverse")[: 1 + bidirectional]

    def stacked(name: str, read: Any) -> np.ndarray:
        parts = [np.asarray(read(getattr(net, f"{name}_l0{s}"))).reshape(GATES[op], hidden, -1) for s in suffixes]
        return np.stack([p[list(ORDER[op])].reshape(GATES[op] * hidden, -1) for p in parts])

    def weights(read: Any) -> list[np.ndarray]:
        w, r, *b = (stacked(n, read) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return [w, r, np.concatenate([p[..., 0] for p in b], axis=1)]

    x = torch.randn(steps, batch, features, dtype=torch.float64, requires_grad=True)
    y, _ = net(x)
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    attrs = {"direction": "bidirectional"} if bidirectional else {}
    attrs |= {"linear_before_reset": True} if op == "gru" else {}
    arrays = [x.detach().numpy(), *weights(lambda p: p.detach())]
    graph = Graph("loss")
    values = [graph.input(f"x{i}", type_of(a)) for i, a in enumerate(arrays)]
    mine = graph.add(op, *values, origin=("test",), **attrs)
    g = cotangent.numpy().reshape(steps, batch, len(suffixes), hidden).transpose(0, 2, 1, 3)
    loss = graph.add("mul", mine, graph.const(np.ascontiguousarray(g), origin=("test",)), origin=("test",))
    loss = graph.add("reduce_sum", loss, axes=(0, 1, 2, 3), origin=("test",))
    training_form(graph, loss, values)
    for value in gradients(graph, loss, values):
        graph.output(value)
    wanted = [x.grad.numpy(), *weights(lambda p: p.grad)]
    for found, expected in zip(interpret(graph, arrays), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
