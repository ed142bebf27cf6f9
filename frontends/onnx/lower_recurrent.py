"""RNN, LSTM and GRU."""

from __future__ import annotations

from typing import Any

from ...compiler.ir import Value
from .context import Context, OnnxNode, Unsupported
from .registry import Lowered, lowers

# The parameters that the op table's activations are computed with.
PARAMETERS: dict[str, tuple[float, ...]] = {"LeakyRelu": (0.01,), "Elu": (1.0,), "HardSigmoid": (0.2, 0.5)}
TAKES = {"LeakyRelu": 1, "Elu": 1, "ThresholdedRelu": 1, "HardSigmoid": 2, "ScaledTanh": 2, "Affine": 2}


def _activations(n: OnnxNode) -> tuple[str, ...] | None:
    given = n.attr("activations")
    if given is None:
        return None
    names = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "hardsigmoid": "HardSigmoid"}
    found = tuple(names.get(g.lower(), g) for g in given)
    alpha, beta = list(n.attr("activation_alpha", ())), list(n.attr("activation_beta", ()))
    for name in found:
        asked = [alpha.pop(0)] if alpha and TAKES.get(name, 0) >= 1 else []
        asked += [beta.pop(0)] if beta and TAKES.get(name, 0) >= 2 else []
        if any(abs(a - p) > 1e-6 for a, p in zip(asked, PARAMETERS.get(name, asked), strict=False)):
            raise Unsupported(f"activation {name} with parameters {asked}", f"{name} with its default parameters")
    return found


def _common(n: OnnxNode) -> dict[str, Any]:
    return {"direction": n.attr("direction", "forward"), "activations": _activations(n), "clip": n.attr("clip")}


def _run(c: Context, n: OnnxNode, op: str, states: tuple[int, ...], rest: tuple[int, ...], **attrs: Any) -> list[Value]:
    """The layer, time first (with ``layout`` 1 the file has the batch first); ``states``, ``rest``: input indices."""
    batch_first = bool(n.attr("layout", 0))
    inputs: list[Value | None] = [n.input(0), n.input(1), n.input(2), n.optional(3), n.optional(4)]
    inputs += [n.optional(i) for i in (*states, *rest)]
    if batch_first:
        for i in (0, *range(5, 5 + len(states))):
            given = inputs[i]
            inputs[i] = None if given is None else c.transpose(given, (1, 0, 2))
    while inputs[-1] is None:
        inputs.pop()
    y, *finals = c.many(op, *inputs, **_common(n), **attrs)
    if batch_first:
        y, finals = c.transpose(y, (2, 0, 1, 3)), [c.transpose(f, (1, 0, 2)) for f in finals]
    return [y, *finals]


@lowers("LSTM")
def lstm(c: Context, n: OnnxNode) -> Lowered:
    return _run(c, n, "lstm", (5, 6), (7,), input_forget=bool(n.attr("input_forget", 0)))


@lowers("GRU")
def gru(c: Context, n: OnnxNode) -> Lowered:
    return _run(c, n, "gru", (5,), (), linear_before_reset=bool(n.attr("linear_before_reset", 0)))


@lowers("RNN")
def rnn(c: Context, n: OnnxNode) -> Lowered:
    return _run(c, n, "rnn", (5,), ())
