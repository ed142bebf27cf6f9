"""The cells of recurrent layers: from gate sums in registers to the next states, a vector of hidden units at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...ops.cells import DEFAULTS, bounds
from ..spec import Operand
from ._rows import split_index

GATES = {"lstm": 4, "gru": 3, "rnn": 1}

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


def derivatives(k: Any, names: Sequence[str], clip: float | None) -> list[Apply]:
    """The derivatives of the functions of one direction, on held values of these; 0 where ``clip`` bounds them."""
    from .. import vecmath
    from ..tir import like, select

    table: dict[str, Apply] = {
        "Sigmoid": lambda y: y * (like(1, y) - y),
        "Tanh": lambda y: like(1, y) - y * y,
        "Relu": lambda y: select(y > like(0, y), like(1, y), like(0, y)),
        "HardSigmoid": lambda y: select(both(y > like(0, y), y < like(1, y)), like(0.2, y), like(0, y)),
        "LeakyRelu": lambda y: select(y < like(0, y), like(0.01, y), like(1, y)),
        "Elu": lambda y: select(y < like(0, y), y + like(1, y), like(1, y)),
        "Softsign": lambda y: _squared(k, like(1, y) - vecmath.absolute(k, y)),
        "Softplus": lambda y: like(0, y) - vecmath.expm1(k, k.bind(like(0, y) - y)),
    }

    def bounded(name: str) -> Apply:
        def apply(y: Any) -> Any:
            found = k.bind(table[name](y))
            if clip is None:
                return found
            low, high = bounds(name, clip)
            return k.bind(select(both(y > like(low, y), y < like(high, y)), found, like(0, y)))

        return apply

    return [bounded(n) for n in names]


def both(a: Any, b: Any) -> Any:
    from tvm import tirx

    return tirx.And(a, b)


def _squared(k: Any, x: Any) -> Any:
    x = k.bind(x)
    return x * x


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


# -- what their templates share --------------------------------------------------------------------------------------


def described(operand: Operand) -> dict[str, Any]:
    return {
        "dtype": operand.type.dtype,
        "shape": list(operand.type.dims),
        "strides": list(operand.strides),
        "span": operand.span,
    }


def offset_of(strides: Sequence[int], indices: Sequence[Any]) -> Any:
    total: Any = 0
    for stride, index in zip(strides, indices, strict=True):
        if stride and not (isinstance(index, int) and index == 0):
            total = total + index * stride
    return total


def accumulate(registers: Sequence[Any], factor: Any, vectors: Sequence[Any]) -> None:
    from ..tir import splat

    for register, vector in zip(registers, vectors, strict=True):
        register.add_product(splat(factor, register.lanes), vector)


def by_fours(k: Any, depth: int, step: Any) -> None:
    with k.loop(depth // 4, name="e") as e:
        for u in range(4):
            step(e * 4 + u)
    for u in range(depth % 4):
        step(depth // 4 * 4 + u)


def parity(step: Any) -> Any:
    if isinstance(step, int):
        return step % 2
    return split_index(step, 2)[1]


def equals(a: Any, b: int) -> Any:
    if isinstance(a, int):
        return a == b
    from tvm import tirx

    return tirx.EQ(a, b)


def zero(dtype: str) -> Any:
    from ..tir import constant

    return constant(0, dtype)


def position(config: dict[str, Any], direction: Any, step: Any) -> Any:
    """The position in the sequence of the ``step``-th step that is taken; of a bidirectional layer, by ``direction``
    (0 forward, 1 reverse)."""
    last = config["steps"] - 1
    if config["direction"] == "forward":
        return step
    if config["direction"] == "reverse":
        return last - step
    return step + direction * (last - 2 * step)
