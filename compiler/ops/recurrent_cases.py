"""Sample cases of the scans of recurrent layers and of their backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..types import TensorType
from .cells import DIRECTIONS
from .record import Case
from .sampling import f32

Array = np.ndarray

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
GRAD_INPUTS = {
    "lstm": ("r", "c", "gates", "lengths?", "c0?", "p?", "gh?", "gc?", "ggates?", "ghn?", "gcn?"),
    "gru": ("r", "h", "gates", "extras", "lengths?", "h0?", "gh?", "ggates?", "gextras?", "ghn?"),
    "rnn": ("r", "h", "lengths?", "gh?", "ghn?"),
}
_MORE: dict[str, list[tuple[Mapping[str, Any], str]]] = {
    "lstm": [
        ({}, "sp"),
        ({"direction": "bidirectional"}, "lp"),
        ({"input_forget": True}, "s"),
        ({"activations": ("HardSigmoid", "Softsign", "Softplus")}, "s"),
    ],
    "gru": [
        ({"linear_before_reset": True}, "sb"),
        ({"linear_before_reset": True, "direction": "bidirectional"}, "lb"),
        ({"activations": ("HardSigmoid", "Softsign")}, "s"),
    ],
    "rnn": [
        ({"activations": ("Softplus",)}, ""),
        ({"activations": ("Elu", "Sigmoid"), "direction": "bidirectional"}, "s"),
    ],
}


def _lengths(steps: int, batch: int) -> Array:
    return np.arange(steps, steps - batch, -1).clip(1).astype(np.int32)


def _case(layer: str, attrs: Mapping[str, Any], given: str = "", size: Sequence[int] = (4, 3, 5)) -> Case:
    """``given`` names optional inputs: l(engths), s(tates), p(eepholes), b(ias)."""
    steps, batch, hidden = size
    d = DIRECTIONS[str(attrs.get("direction", "forward"))]
    gates, state = GATES[layer], f32(d, batch, hidden)
    inputs: list[TensorType | Array | None] = [f32(d, steps, batch, gates * hidden), f32(d, gates * hidden, hidden)]
    inputs.append(_lengths(steps, batch) if "l" in given else None)
    inputs += [state if "s" in given else None] * (2 if layer == "lstm" else 1)
    if layer == "lstm":
        inputs.append(f32(d, 3 * hidden) if "p" in given else None)
    if layer == "gru":
        inputs.append(f32(d, hidden) if "b" in given else None)
    while inputs[-1] is None:
        inputs.pop()
    return Case(tuple(inputs), attrs, low=-1.0, high=1.0, note=given)


def _grad_case(layer: str, attrs: Mapping[str, Any], given: str = "hf", size: Sequence[int] = (4, 3, 5)) -> Case:
    """``given`` as above, and the gradients that arrive: h (all states), f(inal ones), k (what is kept)."""
    steps, batch, hidden = size
    d = DIRECTIONS[str(attrs.get("direction", "forward"))]
    state, every = f32(d, batch, hidden), f32(d, steps, batch, hidden)
    kept = f32(d, steps, batch, GATES[layer] * hidden)
    table: dict[str, TensorType | Array | None] = {
        "r": f32(d, GATES[layer] * hidden, hidden),
        "c": every,
        "h": every,
        "gates": kept,
        "extras": every,
        "lengths?": _lengths(steps, batch) if "l" in given else None,
        "c0?": state if "s" in given else None,
        "h0?": state if "s" in given else None,
        "p?": f32(d, 3 * hidden) if "p" in given else None,
        "gh?": every if "h" in given else None,
        "gc?": every if "k" in given else None,
        "ggates?": kept if "k" in given else None,
        "gextras?": every if "k" in given else None,
        "ghn?": state if "f" in given else None,
        "gcn?": state if "f" in given else None,
    }
    return Case(tuple(table[n] for n in GRAD_INPUTS[layer]), attrs, low=0.1, high=0.9, note=given)


def forward_cases(layer: str) -> Callable[[], Iterable[Case]]:
    """The cases of a scan."""
    return lambda: [_case(layer, *row) for row in (*_shared(), *_MORE[layer])] + [_case(layer, {}, "s", (3, 7, 20))]


def backward_cases(layer: str) -> Callable[[], Iterable[Case]]:
    """The cases of its backward pass."""

    def cases() -> list[Case]:
        rows = [(a, g + ("hf" if i % 2 else "hfk")) for i, (a, g) in enumerate((*_shared(), *_MORE[layer]))]
        return [_grad_case(layer, *row) for row in [*rows, ({}, "h"), ({}, "f")]] + [
            _grad_case(layer, {}, "shf", (3, 7, 20))
        ]

    return cases


def _shared() -> Iterator[tuple[Mapping[str, Any], str]]:
    for direction in DIRECTIONS:
        yield {"direction": direction}, ""
        yield {"direction": direction}, "ls"
    yield {"clip": 0.5}, ""
