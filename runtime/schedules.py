"""Learning-rate schedules: plain functions of the number of finished training steps, called before each step.

The learning rate is an input of the compiled step, so nothing is recompiled. Names and formulas are those of Keras;
PyTorch's names build the same schedules. Everything is counted in training steps (one batch each), not in epochs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import NervureError

Rate = Callable[[int], float]


@dataclass(frozen=True)
class Schedule:
    """A learning rate for each step: ``schedule(step)``, the first step is 0. ``config()`` is plain data."""

    def __call__(self, step: int) -> float:
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Plain data from which ``from_config`` makes the schedule again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: v.config() if isinstance(v, Schedule) else v for k, v in values.items()}
        return {
            "class_name": type(self).__name__,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()},
        }


def _positive(name: str, value: float) -> None:
    if not value > 0 or not math.isfinite(value):
        raise NervureError(f"{name} is {value}", hint="give a number above zero")


def _finite(schedule: Schedule, *names: str) -> None:
    for name in names:
        value = getattr(schedule, name)
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise NervureError(f"{type(schedule).__name__}: {name} is {value!r}", hint="give a number of at least zero")


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate always."""

    learning_rate: float

    def __post_init__(self) -> None:
        _finite(self, "learning_rate")

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Times ``gamma`` after each ``step_size`` steps."""

    initial_learning_rate: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _finite(self, "initial_learning_rate", "gamma")
        _positive("step_size", self.step_size)

    def __call__(self, step: int) -> float:
        return float(self.initial_learning_rate * self.gamma ** (step // self.step_size))


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``initial * decay_rate ** (step / decay_steps)``; ``staircase`` rounds the exponent down."""

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __post_init__(self) -> None:
        _finite(self, "initial_learning_rate", "decay_rate")
        _positive("decay_steps", self.decay_steps)

    def __call__(self, step: int) -> float:
        power = step / self.decay_steps
        return float(self.initial_learning_rate * self.decay_rate ** (math.floor(power) if self.staircase else power))


@dataclass(frozen=True)
class InverseTimeDecay(Schedule):
    """``initial / (1 + decay_rate * step / decay_steps)``; ``staircase`` rounds the quotient down."""

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False

    def __post_init__(self) -> None:
        _finite(self, "initial_learning_rate", "decay_rate")
        _positive("decay_steps", self.decay_steps)

    def __call__(self, step: int) -> float:
        part = step / self.decay_steps
        return self.initial_learning_rate / (1 + self.decay_rate * (math.floor(part) if self.staircase else part))


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from the initial rate to ``alpha`` times it over ``decay_steps`` (Loshchilov and Hutter, 2017).

    With ``warmup_target`` the rate first rises linearly from the initial one to it over ``warmup_steps``.
    """

    initial_learning_rate: float
    decay_steps: int
    alpha: float = 0.0
    warmup_target: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _finite(self, "initial_learning_rate", "alpha", "warmup_steps")
        _positive("decay_steps", self.decay_steps)

    def __call__(self, step: int) -> float:
        peak = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return peak + (self.warmup_target - peak) * step / self.warmup_steps
            peak, step = self.warmup_target, step - self.warmup_steps
        part = min(step, self.decay_steps) / self.decay_steps
        return peak * ((1 - self.alpha) * 0.5 * (1 + math.cos(math.pi * part)) + self.alpha)


@dataclass(frozen=True)
class CosineDecayRestarts(Schedule):
    """``CosineDecay`` that starts again: each period ``t_mul`` times as long, from ``m_mul`` times as high."""

    initial_learning_rate: float
    first_decay_steps: int
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        _finite(self, "initial_learning_rate", "m_mul", "alpha")
        _positive("first_decay_steps", self.first_decay_steps)
        if not self.t_mul >= 1:
            raise NervureError(f"t_mul is {self.t_mul}", hint="periods must not become shorter: give at least 1")

    def __call__(self, step: int) -> float:
        part = step / self.first_decay_steps
        if self.t_mul == 1:
            period = math.floor(part)
            part -= period
        else:
            period = math.floor(math.log(1 - part * (1 - self.t_mul), self.t_mul))
            part = (part - (1 - self.t_mul**period) / (1 - self.t_mul)) / self.t_mul**period
        height = self.m_mul**period * 0.5 * (1 + math.cos(math.pi * part))
        return float(self.initial_learning_rate * ((1 - self.alpha) * height + self.alpha))


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """From the initial rate to ``end_learning_rate`` over ``decay_steps``: ``(1 - step / decay_steps) ** power``.

    ``cycle`` starts again, each time over a multiple of ``decay_steps``.
    """

    initial_learning_rate: float
    decay_steps: int
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False

    def __post_init__(self) -> None:
        _finite(self, "initial_learning_rate", "end_learning_rate", "power")
        _positive("decay_steps", self.decay_steps)

    def __call__(self, step: int) -> float:
        whole = self.decay_steps * max(math.ceil(step / self.decay_steps), 1) if self.cycle else self.decay_steps
        left = 1 - min(step, whole) / whole
        return float((self.initial_learning_rate - self.end_learning_rate) * left**self.power + self.end_learning_rate)


@dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """``values[i]`` up to and with step ``boundaries[i]``, the last value after that."""

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if len(self.values) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(self.boundaries):
            raise NervureError(
                f"{len(self.boundaries)} boundaries and {len(self.values)} values",
                hint="give rising boundaries, and one value more than boundaries",
            )

    def __call__(self, step: int) -> float:
        return self.values[bisect.bisect_left(self.boundaries, step)]


@dataclass(frozen=True)
class Warmup(Schedule):
    """Linear from ``start`` times the first rate of ``schedule`` over ``steps`` steps, then ``schedule`` itself."""

    schedule: Schedule | float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", get(self.schedule))
        _finite(self, "start")
        _positive("steps", self.steps)

    def __call__(self, step: int) -> float:
        assert isinstance(self.schedule, Schedule)
        if step >= self.steps:
            return self.schedule(step - self.steps)
        return self.schedule(0) * (self.start + (1 - self.start) * step / self.steps)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to ``max_learning_rate`` and down again over ``total_steps`` (Smith and Topin, 2018), by half cosines.

    It starts at ``max_learning_rate / div_factor``, is highest after ``pct_start`` of the steps, and ends at its first
    rate divided by ``final_div_factor``. ``anneal``: ``cos`` or ``linear``.
    """

    max_learning_rate: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: str = "cos"

    def __post_init__(self) -> None:
        _finite(self, "max_learning_rate")
        for name in ("total_steps", "div_factor", "final_div_factor"):
            _positive(name, getattr(self, name))
        if not 0 <= self.pct_start <= 1 or self.anneal not in ("cos", "linear"):
            raise NervureError(
                f"OneCycle: pct_start is {self.pct_start}, anneal is {self.anneal!r}",
                hint="pct_start lies between 0 and 1, anneal is 'cos' or 'linear'",
            )

    def __call__(self, step: int) -> float:
        low = self.max_learning_rate / self.div_factor
        turn, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if step <= turn:
            return self._between(low, self.max_learning_rate, step / turn if turn > 0 else 1.0)
        part = (min(step, last) - turn) / (last - turn) if last > turn else 1.0
        return self._between(self.max_learning_rate, low / self.final_div_factor, part)

    def _between(self, start: float, end: float, part: float) -> float:
        if self.anneal == "linear":
            return start + (end - start) * part
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


# -- PyTorch's names -----------------------------------------------------------------------------------------------

PiecewiseConstantDecay = PiecewiseConstant
StepLR = StepDecay
OneCycleLR = OneCycle


def ExponentialLR(initial_learning_rate: float, gamma: float) -> ExponentialDecay:
    """Times ``gamma`` each step."""
    return ExponentialDecay(initial_learning_rate, 1, gamma)


def CosineAnnealingLR(initial_learning_rate: float, T_max: int, eta_min: float = 0.0) -> CosineDecay:
    """Half a cosine to ``eta_min`` over ``T_max`` steps; it stays there."""
    _positive("initial_learning_rate", initial_learning_rate)
    return CosineDecay(initial_learning_rate, T_max, eta_min / initial_learning_rate)


def MultiStepLR(initial_learning_rate: float, milestones: Sequence[int], gamma: float = 0.1) -> PiecewiseConstant:
    """Times ``gamma`` at each milestone."""
    values = [initial_learning_rate * gamma**i for i in range(len(milestones) + 1)]
    return PiecewiseConstant([m - 1 for m in milestones], values)


def PolynomialLR(initial_learning_rate: float, total_iters: int = 5, power: float = 1.0) -> PolynomialDecay:
    """Down to zero over ``total_iters`` steps."""
    return PolynomialDecay(initial_learning_rate, total_iters, 0.0, power)


# -- from whatever the user gives ----------------------------------------------------------------------------------

_CLASSES: dict[str, type[Schedule]] = {
    c.__name__: c
    for c in (
        Constant,
        StepDecay,
        ExponentialDecay,
        InverseTimeDecay,
        CosineDecay,
        CosineDecayRestarts,
        PolynomialDecay,
        PiecewiseConstant,
        Warmup,
        OneCycle,
    )
}


def get(value: Schedule | float | Mapping[str, Any]) -> Schedule:
    """A schedule from a number, a schedule or a ``config()``."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Mapping):
        return from_config(value)
    return Constant(float(value))


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that ``config()`` describes."""
    values = {k: from_config(v) if isinstance(v, Mapping) else v for k, v in config.items() if k != "class_name"}
    kind = _CLASSES.get(str(config.get("class_name")))
    if kind is None:
        raise NervureError(f"no schedule {config.get('schedule')!r}", hint=f"there are: {', '.join(sorted(_CLASSES))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise NervureError(f"the description of a {kind.__name__} is broken", why=str(error)) from error


__all__ = [
    *sorted(_CLASSES),
    "CosineAnnealingLR",
    "ExponentialLR",
    "MultiStepLR",
    "OneCycleLR",
    "PiecewiseConstantDecay",
    "PolynomialLR",
    "Schedule",
    "StepLR",
    "from_config",
    "get",
]
