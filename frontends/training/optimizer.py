"""The base of all optimizers: clipping, decay, accumulation, averages, and the states that a parameter needs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ...compiler.ops.numeric import numpy_dtype
from ...errors import NervureError
from ..dsl import elementwise as e
from ..dsl.place import user_place
from ..dsl.promote import as_tensor
from ..dsl.reduce import sum
from ..dsl.tensor import Tensor
from ..dsl.trace import Trace
from .samples import Aliased

STEP = "optimizer/step"
MASK = ".mask"  # the parameter NAME.mask says which elements of NAME stay 0
HALF = ("float16", "bfloat16")  # their slots and their arithmetic are float32


class Slots:
    """What an optimizer keeps of one parameter from step to step: ``slots["m"]`` is the value that it has,
    ``slots["m"] = value`` the next one."""

    def __init__(self, trace: Trace, name: str, like: Tensor, due: Tensor | None) -> None:
        self.trace, self.name, self.like, self.due = trace, name, like, due
        self._held: dict[str, Tensor] = {}

    def __getitem__(self, slot: str) -> Tensor:
        if slot not in self._held:
            zeros = np.zeros(self.like.type.dims, numpy_dtype(self.like.dtype))
            self._held[slot] = self.trace.state(f"optimizer/{self.name}/{slot}", zeros)
        return self._held[slot]

    def __setitem__(self, slot: str, value: Tensor) -> None:
        self.trace.bind(self[slot], settled(self.due, value, self[slot]))


def settled(due: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """The new value in a step that updates, else the old one."""
    return new if due is None else e.where(due, new, old)


def _kept(mask: Tensor | None, new: Tensor) -> Tensor:
    """What a mask leaves of a new value. A choice, not a product: where nothing is masked the bits are the same."""
    return new if mask is None else e.where(mask, new, as_tensor(0.0, new.dtype))


class Optimizer(metaclass=Aliased):
    """The base of all optimizers.

    ``learning_rate`` is a number or a schedule. ``weight_decay`` leaves out the parameters in whose names one of
    ``exclude_from_weight_decay`` (regular expressions) is found. Of ``clipvalue`` (each element), ``clipnorm`` (each
    parameter's gradient) and ``global_clipnorm`` (all of them together) one may be given. With ``accumulate=k`` the
    mean gradient of k steps makes one update at the last of them. ``ema_momentum`` averages the parameters into the
    states ``ema/<parameter>``.

    One of your own has ``update(slots, w, g, rate)``, which gives the new ``w`` by elementwise functions.
    """

    ALIASES: ClassVar = {"lr": "learning_rate", "eps": "epsilon", "gradient_accumulation_steps": "accumulate"}
    name: str = "optimizer"
    decoupled: ClassVar[bool] = False  # weight decay works on the weights, not on the gradient
    counts: ClassVar[bool] = False  # keeps the number of updates

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        weight_decay: float | None = None,
        clipvalue: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        accumulate: int | None = None,
        ema_momentum: float | None = None,
        exclude_from_weight_decay: str | Sequence[str] = (),
    ) -> None:
        self.learning_rate = self._rate(learning_rate)
        self.weight_decay = self._number("weight_decay", weight_decay or 0.0, low=0.0)
        clips = {"clipvalue": clipvalue, "clipnorm": clipnorm, "global_clipnorm": global_clipnorm}
        given = {key: self._number(key, value, above=0.0) for key, value in clips.items() if value is not None}
        if len(given) > 1:
            raise self._wrong(f"{' and '.join(given)} are given", "choose one way of clipping")
        self.clipvalue, self.clipnorm, self.global_clipnorm = (given.get(key) for key in clips)
        self.accumulate = 1 if accumulate is None else accumulate
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise self._wrong(f"accumulate must be a whole number from 1 on, got {accumulate!r}")
        self.ema_momentum = None if ema_momentum is None else self._number("ema_momentum", ema_momentum, 0.0, 1.0)
        named = exclude_from_weight_decay
        self.exclude_from_weight_decay = (named,) if isinstance(named, str) else tuple(named)

    # -- what an optimizer of one's own defines -----------------------------------------------------------------------

    def scalars(self, rate: Tensor, step: Tensor | None) -> dict[str, Any]:
        """Numbers that all parameters share, computed once a step from the learning rate and the number of updates
        (this one counted, float32 []). They are passed on to ``update`` by name."""
        return {}

    def update(self, slots: Slots, w: Tensor, g: Tensor, rate: Tensor, **scalars: Any) -> Tensor:
        """The new value of a parameter ``w`` for its gradient ``g``, of the same type: elementwise functions only."""
        raise NotImplementedError(f"{type(self).__name__} has no update(self, slots, w, g, rate)")

    # -- the step -----------------------------------------------------------------------------------------------------

    def apply(
        self,
        trace: Trace,
        params: Sequence[tuple[str, Tensor]],
        grads: Sequence[Tensor],
        rate: Tensor,
        masks: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Adds the update of ``params`` (name and stored tensor) by ``grads`` to a trace that is active.

        ``rate`` is the learning rate, float32 []. ``masks`` (by the parameter's name) say what stays 0 of some: each
        becomes the parameter ``NAME.mask``. States are made and next values bound. Nothing is returned.
        """
        held = {name: Tensor(trace, trace.graph.param(m, f"{name}{MASK}")) for name, m in (masks or {}).items()}
        wide = [as_tensor(g, "float32") if g.dtype in HALF else g for g in grads]
        due, wide = self._accumulated(trace, params, wide)
        wide = self._clipped(wide)
        scalars = self.scalars(rate, self._count(trace, due))
        decayed = 1.0 - rate * self.weight_decay if self.decoupled and self.weight_decay else None
        for (name, stored), g in zip(params, wide, strict=True):
            w = as_tensor(stored, g.dtype)
            slots = Slots(trace, name, g, due)
            if self._decays(name):
                g = g if self.decoupled else g + w * self.weight_decay
                w = w if decayed is None else w * decayed
            new = as_tensor(self.update(slots, w, g, rate, **scalars), stored.dtype)
            new = _kept(held.get(name), settled(due, new, stored))
            trace.bind(stored, new)
            if self.ema_momentum is not None:
                self._average(trace, name, stored, new, due, held.get(name))

    def _decays(self, name: str) -> bool:
        return bool(self.weight_decay) and not any(re.search(part, name) for part in self.exclude_from_weight_decay)

    def _count(self, trace: Trace, due: Tensor | None) -> Tensor | None:
        """The number of this update, from 1 on."""
        if not self.counts:
            return None
        held = trace.state(STEP, np.zeros((), np.float32))
        step = held + 1.0
        trace.bind(held, settled(due, step, held))
        return step

    def _accumulated(
        self, trace: Trace, params: Sequence[tuple[str, Tensor]], grads: list[Tensor]
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Whether this step updates, and the mean of the gradients since the last one that did."""
        if self.accumulate == 1:
            return None, grads
        held = trace.state("optimizer/accumulated", np.zeros((), np.float32))
        due = held >= float(self.accumulate - 1)
        trace.bind(held, e.where(due, 0.0, held + 1.0))
        found = []
        for (name, _), g in zip(params, grads, strict=True):
            total = Slots(trace, name, g, None)
            summed = total["gradient"] + g * (1.0 / self.accumulate)
            total["gradient"] = e.where(due, 0.0, summed)
            found.append(summed)
        return due, found

    def _clipped(self, grads: list[Tensor]) -> list[Tensor]:
        if self.clipvalue is not None:
            return [e.clip(g, -self.clipvalue, self.clipvalue) for g in grads]
        if self.clipnorm is not None:
            return [g * _shrinking(self.clipnorm, _squares(g)) for g in grads]
        if self.global_clipnorm is not None and grads:
            whole: Any = _squares(grads[0])
            for g in grads[1:]:
                whole = whole + _squares(g)
            factor = _shrinking(self.global_clipnorm, whole)
            return [g * as_tensor(factor, g.dtype) for g in grads]
        return grads

    def _average(
        self, trace: Trace, name: str, stored: Tensor, new: Tensor, due: Tensor | None, mask: Tensor | None
    ) -> None:
        kept = float(self.ema_momentum or 0.0)
        average = trace.state(f"ema/{name}", trace.graph.node(stored.value).array)
        moved = settled(due, average + (new - average) * (1.0 - kept), average)
        trace.bind(average, _kept(mask, moved))

    # -- arguments ----------------------------------------------------------------------------------------------------

    def _wrong(self, what: str, hint: str | None = None) -> NervureError:
        return NervureError(f"{type(self).__name__}: {what}", where=user_place().full, hint=hint)

    def _rate(self, given: Any) -> Any:
        if callable(given):
            return given
        if isinstance(given, bool) or not isinstance(given, int | float | np.number):
            hint = "an optimizer is given no parameters here: Adam(0.001)"
            raise self._wrong(f"learning_rate must be a number or a schedule, got {type(given).__name__}", hint)
        return self._number("learning_rate", given, low=0.0)

    def _number(
        self, what: str, value: Any, low: float = -math.inf, below: float = math.inf, above: float = -math.inf
    ) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise self._wrong(f"{what} must be a number, got {value!r}")
        if not (low <= value < below and value > above):
            bounds = f"[{low:g}, {below:g})" if above == -math.inf else f"above {above:g}"
            raise self._wrong(f"{what} must be {bounds.replace('inf)', '...)')}, got {value!r}")
        return float(value)

    def _share(self, what: str, value: Any) -> float:
        """A number in [0, 1): a momentum, the part of an average that is kept."""
        return self._number(what, value, 0.0, 1.0)

    def __repr__(self) -> str:
        return f"<nervure {type(self).__name__} {self.learning_rate!r}>"


def _squares(g: Tensor) -> Tensor:
    return sum(e.square(g))


def _shrinking(limit: float, squares: Tensor) -> Tensor:
    """What a gradient is multiplied with so that its length is at most ``limit`` (PyTorch's formula)."""
    return e.minimum(limit / (e.sqrt(squares) + 1e-6), 1.0)


def toward(old: Tensor, new: Tensor, kept: float) -> Tensor:
    """kept old + (1 - kept) new."""
    return old * kept + new * (1.0 - kept)
