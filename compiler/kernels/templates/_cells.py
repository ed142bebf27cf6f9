"""The cells of recurrent layers: from gate sums in registers to the next states, a vector of hidden units at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DEFAULTS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}

Apply = Callable[[Any], Any]
Peep = Callable[[int], Any]


def activations(k: Any, names: Sequence[str], clip: float | None) -> list[Apply]:
    """The functions of one direction, on held vectors; ``clip`` bounds what they are applied to."""
    from .. import vecmath
    from ..tir import like, maximum, select

    table: dict[str, Apply] = {
        "Sigmoid": lambda x: vecmath.sigmoid(k, x),
        "Tanh": lambda x: vecmath.tanh(k, x),
        "Relu": lambda x: maximum(like(0, x), x),
        "HardSigmoid": lambda x: vecmath.bounded(k.bind(x * like(0.2, x) + like(0.5, x)), 0.0, 1.0),
        "LeakyRelu": lambda x: select(x < like(0, x), x * like(0.01, x), x),
        "Elu": lambda x: vecmath.elu(k, x, 1.0),
        "Softsign": lambda x: x / (like(1, x) + vecmath.absolute(k, x)),
        "Softplus": lambda x: vecmath.softplus(k, x),
    }

    def bounded(function: Apply) -> Apply:
        def apply(x: Any) -> Any:
            x = k.bind(x)
            return k.bind(function(x if clip is None else k.bind(vecmath.bounded(x, -clip, clip))))

        return apply

    return [bounded(table[n]) for n in names]


def lstm(
    k: Any, functions: Sequence[Apply], sums: Sequence[Any], memory: Any, peep: Peep | None, coupled: bool
) -> tuple[Any, Any]:
    """Gates i o f c; gives the next h and c. ``peep(j)`` is the j-th peephole vector; ``coupled``: f = 1 - i."""
    from ..tir import like

    f, g, h = functions
    i, o, forget, candidate = sums
    i = f(i if peep is None else i + peep(0) * memory)
    forget = forget if peep is None else forget + peep(2) * memory
    forget = like(1, i) - i if coupled else f(forget)
    following = k.bind(i * g(candidate) + forget * memory)
    return k.bind(f(o if peep is None else o + peep(1) * following) * h(following)), following


def gru_update(k: Any, update: Any, candidate: Any, before: Any) -> Any:
    """The next h: between the candidate and the state before."""
    return k.bind(candidate + update * (before - candidate))


def chosen(attrs: Mapping[str, Any], op: str, directions: int) -> list[list[str]]:
    """The names of the activations of each direction."""
    size = len(DEFAULTS[op])
    names = list(attrs["activations"]) if attrs["activations"] is not None else list(DEFAULTS[op]) * directions
    return [names[d * size : (d + 1) * size] for d in range(directions)]
