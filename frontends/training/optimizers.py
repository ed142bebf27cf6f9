"""Optimizers, as graphs inside of the compiled training step.

Names and learning rates are Keras's; the arithmetic and all other defaults are PyTorch's. The two differ so:

* SGD's momentum is ``m = momentum m + g; w -= rate m`` (Keras scales ``g`` by the rate before it enters ``m``, which is
  the same until the rate changes).
* ``weight_decay`` of SGD, Adam, RMSprop, Adagrad and Adadelta is added to the gradient (L2); AdamW and Lion decay the
  weights themselves. In Keras every optimizer does the latter.
* ``epsilon`` stands outside of every root but Adadelta's.

The update of a parameter is one elementwise expression of it, its gradient, its slots and scalars, so that it becomes
the epilogue of the kernel that computes the gradient. The learning rate is an input of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ...errors import NervureError
from ..dsl import elementwise as e
from ..dsl.place import user_place
from ..dsl.tensor import Tensor
from .optimizer import Optimizer, Slots, toward
from .samples import chosen


class SGD(Optimizer):
    """Gradient descent; ``m = momentum m + g`` takes g's place, with ``nesterov`` ``g + momentum m``."""

    name = "sgd"

    def __init__(
        self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **options: Any
    ) -> None:
        super().__init__(learning_rate, **options)
        self.momentum, self.nesterov = self._share("momentum", momentum), bool(nesterov)
        if self.nesterov and not self.momentum:
            raise self._wrong("nesterov needs a momentum above 0")

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        if not self.momentum:
            return w - rate * g
        m = slots["momentum"] * self.momentum + g
        slots["momentum"] = m
        step: Tensor = g + m * self.momentum if self.nesterov else m
        return w - rate * step


class Adam(Optimizer):
    """Steps by the mean gradient over the root of the mean squared one, both corrected for their start at 0 (Kingma and
    Ba 2015); ``amsgrad`` takes the largest mean square so far (Reddi et al. 2018)."""

    name = "adam"
    counts = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        amsgrad: bool = False,
        betas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        first, second = (beta_1, beta_2) if betas is None else betas
        self.beta_1, self.beta_2 = self._share("beta_1", first), self._share("beta_2", second)
        self.epsilon, self.amsgrad = self._number("epsilon", epsilon, low=0.0), bool(amsgrad)

    def scalars(self, rate: Tensor, step: Tensor | None) -> dict[str, Any]:
        assert step is not None
        return {"size": rate / _correction(self.beta_1, step), "scale": e.rsqrt(_correction(self.beta_2, step))}

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        slots["m"] = m = toward(slots["m"], g, self.beta_1)
        slots["v"] = v = toward(slots["v"], e.square(g), self.beta_2)
        if self.amsgrad:
            slots["v_max"] = v = e.maximum(slots["v_max"], v)
        step: Tensor = scalars["size"] * m / (e.sqrt(v) * scalars["scale"] + self.epsilon)
        return w - step


def _correction(beta: float, step: Tensor) -> Any:
    """1 - beta^step, exact for beta near 1."""
    return 1.0 if beta == 0.0 else -e.expm1(step * math.log(beta))


class AdamW(Adam):
    """Adam that decays the weights themselves, by ``rate weight_decay`` a step (Loshchilov and Hutter 2019)."""

    name = "adamw"
    decoupled = True

    def __init__(self, learning_rate: Any = 0.001, weight_decay: float = 0.01, **options: Any) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)


class RMSprop(Optimizer):
    """Steps by the gradient over the root of its mean square (Tieleman and Hinton 2012), about its mean if
    ``centered``."""

    ALIASES: ClassVar = {**Optimizer.ALIASES, "alpha": "rho"}
    name = "rmsprop"

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.99,
        momentum: float = 0.0,
        epsilon: float = 1e-8,
        centered: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.rho, self.momentum = self._share("rho", rho), self._share("momentum", momentum)
        self.epsilon, self.centered = self._number("epsilon", epsilon, low=0.0), bool(centered)

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        slots["v"] = v = toward(slots["v"], e.square(g), self.rho)
        if self.centered:
            slots["mean"] = mean = toward(slots["mean"], g, self.rho)
            v = e.maximum(v - e.square(mean), 0.0)
        root = e.sqrt(v) + self.epsilon
        if not self.momentum:
            return w - rate * g / root
        slots["momentum"] = m = slots["momentum"] * self.momentum + g / root
        return w - rate * m


class Adagrad(Optimizer):
    """Steps by the gradient over the root of the sum of all its squares (Duchi et al. 2011)."""

    name = "adagrad"

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-10,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.initial_accumulator_value = self._number("initial_accumulator_value", initial_accumulator_value, low=0.0)
        self.epsilon = self._number("epsilon", epsilon, low=0.0)

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        slots["sum"] = total = slots["sum"] + e.square(g)
        start = self.initial_accumulator_value
        return w - rate * g / (e.sqrt(total + start if start else total) + self.epsilon)


class Adadelta(Optimizer):
    """Steps by the gradient times the root of the steps' mean square over that of the gradient's (Zeiler 2012)."""

    name = "adadelta"

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.9, epsilon: float = 1e-6, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.rho, self.epsilon = self._share("rho", rho), self._number("epsilon", epsilon, above=0.0)

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        slots["v"] = v = toward(slots["v"], e.square(g), self.rho)
        step = g * e.sqrt(slots["steps"] + self.epsilon) / e.sqrt(v + self.epsilon)
        slots["steps"] = toward(slots["steps"], e.square(step), self.rho)
        return w - rate * step


class Lion(Optimizer):
    """Steps by the sign of a mean gradient (Chen et al. 2023); ``weight_decay`` is AdamW's."""

    name = "lion"
    decoupled = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        betas: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        first, second = (beta_1, beta_2) if betas is None else betas
        self.beta_1, self.beta_2 = self._share("beta_1", first), self._share("beta_2", second)

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        m = slots["m"]
        slots["m"] = toward(m, g, self.beta_2)
        return w - rate * e.sign(toward(m, g, self.beta_1))


NAMES: dict[str, type[Optimizer]] = {cls.name: cls for cls in (SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta, Lion)}


def get(given: Any) -> Optimizer:
    """An optimizer of a name, a class or an optimizer; ``NervureError`` for anything else."""
    if isinstance(given, str):
        return chosen("optimizer", given, NAMES)()  # type: ignore[no-any-return]
    if isinstance(given, type) and issubclass(given, Optimizer):
        return given()
    if isinstance(given, Optimizer):
        return given
    raise NervureError(f"an optimizer must be a name or an optimizer, got {given!r}", where=user_place().full)


__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Lion", "Optimizer", "RMSprop", "Slots", "get"]
