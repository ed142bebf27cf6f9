"""Penalties on weights and outputs of layers, added to the loss while a network is trained.

Layers take ``kernel_regularizer``, ``bias_regularizer`` and ``activity_regularizer`` (recurrent ones also
``recurrent_regularizer``), as in Keras: a name, one of these classes, or a function that gives a number for a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import NervureError
from ..dsl import elementwise as e
from ..dsl.block import Block
from ..dsl.place import user_place
from ..dsl.promote import as_tensor
from ..dsl.reduce import sum
from ..dsl.tensor import Tensor
from ..dsl.trace import Trace
from .samples import Aliased, chosen


class Regularizer(metaclass=Aliased):
    """A penalty: ``regularizer(x) -> float32 []`` for a tensor of any shape."""

    name = "regularizer"

    def __call__(self, x: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no __call__(self, x)")


class L1L2(Regularizer):
    """l1 sum|x| + l2 sum x²."""

    name = "l1_l2"

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1, self.l2 = _factor("l1", l1), _factor("l2", l2)

    def __call__(self, x: Any) -> Tensor:
        first = sum(e.abs(x)) * self.l1 if self.l1 else None
        second = sum(e.square(x)) * self.l2 if self.l2 else None
        if first is not None and second is not None:
            return first + second
        return next((part for part in (first, second) if part is not None), as_tensor(0.0))

    def __repr__(self) -> str:
        return f"<nervure {type(self).__name__} l1={self.l1:g} l2={self.l2:g}>"


class L1(L1L2):
    """l1 sum|x|: drives weights to 0."""

    name = "l1"

    def __init__(self, l1: float = 0.01) -> None:
        super().__init__(l1=l1)


class L2(L1L2):
    """l2 sum x²: keeps weights small."""

    name = "l2"

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=l2)


l1, l2, l1_l2 = L1, L2, L1L2
NAMES: dict[str, type[L1L2]] = {"l1": L1, "l2": L2, "l1_l2": L1L2}


def get(given: Any) -> Callable[[Any], Any]:
    """A penalty of a name (with Keras's factor 0.01), a class, or a function that gives a number for a tensor."""
    if isinstance(given, str):
        if given == "l1_l2":
            return L1L2(0.01, 0.01)
        return chosen("regularizer", given, NAMES)()  # type: ignore[no-any-return]
    if isinstance(given, type) and issubclass(given, Regularizer):
        return given()
    if callable(given):
        return given  # type: ignore[no-any-return]
    raise NervureError(
        f"a regularizer must be a name, a regularizer or a function, got {given!r}",
        where=user_place().full,
        hint="nv.regularizers.L2(0.01)",
    )


def penalties(net: Block, trace: Trace) -> Tensor | None:
    """The sum of all penalties of a network that was traced into ``trace``, which is active: float32 [].

    Only weights that are trained count, each once; a layer's penalties hold for the layers inside of it that have none
    of their own. Those on outputs are divided by the batch, as in Keras. None where there are no penalties.
    """
    used = {id(weight): value for weight, value in trace.weights()}
    terms: list[Any] = []

    def visit(block: Any, kernel: Any, bias: Any) -> None:
        kernel = getattr(block, "kernel_regularizer", None) or kernel
        bias = getattr(block, "bias_regularizer", None) or bias
        for name, weight in block._own.items():
            rule = bias if name.startswith("bias") else kernel
            if name.startswith("recurrent"):
                rule = getattr(block, "recurrent_regularizer", None)
            value = used.get(id(weight))
            if rule is not None and weight.trained and value is not None:
                del used[id(weight)]
                terms.append(get(rule)(Tensor(trace, value)))
        for child in block._children.values():
            visit(child, kernel, bias)

    visit(net, None, None)
    for rule, output in trace.activities:
        if trace.resolve(output.value).node in trace.graph.nx:
            terms.append(get(rule)(output) * (1.0 / output.shape[0]))
    total: Any = None
    for term in terms:
        total = term if total is None else total + term
    return None if total is None else as_tensor(total, "float32")


def _factor(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise NervureError(f"{name} must be a number from 0 on, got {value!r}", where=user_place().full)
    return float(value)


__all__ = ["L1", "L1L2", "L2", "Regularizer", "get", "l1", "l1_l2", "l2", "penalties"]
