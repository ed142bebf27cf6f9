"""Pruning while a model is trained: masks in its parameters, and the callback that makes them sparser step by step.

A masked weight NAME has a second parameter NAME.mask (bool). The compiled step keeps the weight 0 where the mask is
False; the host may change the mask at any time. Nothing here knows the network: numpy alone.
"""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import NervureError
from .observer import Callback, Logs

if TYPE_CHECKING:
    from .session import Session

MASK = ".mask"
AVERAGE = "ema/"
CRITERIA = ("magnitude", "l2", "movement")
TIMES = 20  # prunings between begin and end, if nobody says how many


class Pattern(Protocol):
    """What of ``compiler.prune.patterns.Pattern`` is wanted here."""

    @property
    def keep(self) -> int:
        """Cells of a group that stay."""

    @property
    def group(self) -> int:
        """Cells of a group; 0 without groups."""

    def pool(self, scores: np.ndarray, channels: int) -> np.ndarray:
        """The mean score of each cell."""

    def spread(self, cells: np.ndarray, shape: tuple[int, int], channels: int) -> np.ndarray:
        """What is said of cells, said of weights."""

    def sizes(self, shape: tuple[int, int], channels: int) -> np.ndarray:
        """Weights in each cell."""

    def mask(self, scores: np.ndarray, channels: int, sparsity: float | None = None) -> np.ndarray:
        """The weights that stay."""


class View(Protocol):
    """A weight as a matrix ``[K, N]`` with ``channels`` rows a tap, and back."""

    @property
    def channels(self) -> int:
        """Rows of a tap."""

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """The weight as a matrix."""

    def array(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix as the weight is kept."""


def masked_names(session: Session) -> list[str]:
    """The parameters of a session that have a mask."""
    names = {p.name for p in session.artifact.params}
    return sorted(n.removesuffix(MASK) for n in names if n.endswith(MASK) and n.removesuffix(MASK) in names)


def keep_zeros(session: Session) -> None:
    """Makes weights (and their averages) 0 where their masks say so, now and not only at the next step."""
    names = masked_names(session)
    if not names:
        return
    params, states = session.params(), session.states()
    masks = {n: params[n + MASK] for n in names}
    session.set_params({n: _masked(params[n], m) for n, m in masks.items()})
    averages = {AVERAGE + n: m for n, m in masks.items() if AVERAGE + n in states}
    if averages:
        session.set_states({n: _masked(states[n], m) for n, m in averages.items()})


def _masked(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, array, array.dtype.type(0))


# -- choosing ----------------------------------------------------------------------------------------------------------


def choose(
    scores: Mapping[str, np.ndarray],
    views: Mapping[str, View],
    pattern: Pattern,
    sparsity: float,
    scope: str = "layer",
) -> dict[str, np.ndarray]:
    """Which weights stay: bool masks of the weights' shapes, for scores of these shapes (more is better).

    ``scope``: ``sparsity`` of each layer, or ``global``, of all of them together; each then keeps one cell at least.
    Of equal scores the first stays. A pattern N:M says its own sparsity.
    """
    names = sorted(scores)
    matrices = {n: views[n].matrix(scores[n]) for n in names}
    if pattern.group or scope == "layer":
        kept = {n: pattern.mask(m, views[n].channels, sparsity) for n, m in matrices.items()}
    else:
        kept = _globally(matrices, {n: views[n].channels for n in names}, pattern, sparsity)
    return {n: np.ascontiguousarray(views[n].array(kept[n])) for n in names}


def _globally(
    matrices: Mapping[str, np.ndarray], channels: Mapping[str, int], pattern: Pattern, sparsity: float
) -> dict[str, np.ndarray]:
    cells = {n: pattern.pool(m, channels[n]) for n, m in matrices.items()}
    sizes = [pattern.sizes(m.shape, channels[n]).ravel() for n, m in matrices.items()]
    order = np.argsort(-np.concatenate([c.ravel() for c in cells.values()]), kind="stable")
    counted = np.cumsum(np.concatenate(sizes)[order])
    most = (1 - sparsity) * sum(m.size for m in matrices.values())
    kept = np.zeros(len(order), bool)
    kept[order[: int(np.searchsorted(counted, most - 1e-9)) + 1]] = True
    found, at = {}, 0
    for name, cell in cells.items():
        own = kept[at : at + cell.size]
        own[int(np.argmax(cell))] = True
        found[name] = pattern.spread(own.reshape(cell.shape), matrices[name].shape, channels[name])
        at += cell.size
    return found


def cubic(step: float, begin: float, end: float, final: float, initial: float = 0.0) -> float:
    """The sparsity at a step: fast at first, when much is redundant, slow at the end (Zhu and Gupta 2017, eq. 1)."""
    part = 1.0 if end <= begin else min(max((step - begin) / (end - begin), 0.0), 1.0)
    return final + (initial - final) * (1 - part) ** 3


# -- the callback ------------------------------------------------------------------------------------------------------


class Gradual(Callback):
    """Prunes the masked weights of a running training along the cubic schedule: see ``nv.callbacks.GradualPruning``,
    which knows patterns by name and networks. Here a ``pattern`` is an object, and ``view`` gives the matrices."""

    kept = ("first", "sparsity", "begin_step", "end_step", "every")

    def __init__(
        self,
        pattern: Pattern,
        final_sparsity: float | None,
        begin: float = 0,
        end: float | None = None,
        frequency: float | None = None,
        *,
        unit: str = "steps",
        initial_sparsity: float = 0.0,
        criterion: str = "magnitude",
        scope: str = "layer",
        skip: str | Sequence[str] = (),
    ) -> None:
        self.pattern = pattern
        self.final, self.initial = _sparsity(pattern, final_sparsity), initial_sparsity
        self.times = (begin, end, frequency)
        self.unit, self.criterion, self.scope = unit, criterion, scope
        self.skip = (skip,) if isinstance(skip, str) else tuple(skip)
        self._check()
        self.first = self.begin_step = self.end_step = 0
        self.every, self.sparsity = 1, 0.0
        self.start: dict[str, np.ndarray] = {}  # the weights at the beginning, for movement

    def view(self, name: str, shape: tuple[int, ...]) -> View:
        """How a weight of that shape is a matrix."""
        raise NotImplementedError

    def prunes(self, name: str, rank: int) -> bool:
        """Whether a masked weight with so many axes is pruned."""
        return rank > 1

    def _check(self) -> None:
        for what, given, allowed in (
            ("unit", self.unit, ("steps", "epochs")),
            ("criterion", self.criterion, CRITERIA),
            ("scope", self.scope, ("layer", "global")),
        ):
            if given not in allowed:
                raise NervureError(f"{what} is {given!r}", hint=f"use one of: {', '.join(allowed)}")
        if not 0 <= self.initial <= self.final:
            raise NervureError(f"the sparsity cannot go from {self.initial} to {self.final}", hint="it grows: 0 to 0.9")
        if self.pattern.group and self.scope == "global":
            raise NervureError(f"{self.pattern} keeps as much of every layer", hint="leave scope out")

    # -- when ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs = None) -> None:
        names = self._names()
        if not names:
            raise NervureError(
                "there is no masked weight to prune",
                where=str(self.trainer.artifact.path),
                why=f"masked are: {', '.join(masked_names(self.trainer.session)) or 'none'}",
                hint="nv.masked(net, ...) before it is compiled; net.fit does it by itself",
            )
        self.first, self.sparsity = self.trainer.step, 0.0
        self.begin_step, self.end_step, self.every = self._steps()
        if self.criterion == "movement":
            params = self.trainer.session.params()
            self.start = {n: params[n] for n in names}
        self._reached(0)

    def _steps(self) -> tuple[int, int, int]:
        """Begin, end and distance of the prunings, in steps."""
        begin, end, frequency = self.times
        whole = self.params.get("steps")
        if whole is None and (self.unit == "epochs" or end is None):
            raise NervureError(
                "it is not known how many steps an epoch has", hint="give begin and end in steps, or steps_per_epoch="
            )
        factor = float(whole or 1) if self.unit == "epochs" else 1.0
        last = 0.5 * self.params["epochs"] * whole if end is None else end * factor
        first, last = round(begin * factor), round(last)
        if not 0 <= first <= last or (frequency is not None and frequency <= 0):
            raise NervureError(f"begin, end and frequency are {begin}, {end} and {frequency}", hint="0 <= begin <= end")
        every = max((last - first) // TIMES, 1) if frequency is None else max(round(frequency * factor), 1)
        return first, last, every

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._reached(self.trainer.step - self.first)

    def _reached(self, step: int) -> None:
        due = self.begin_step <= step <= self.end_step
        if due and ((step - self.begin_step) % self.every == 0 or step == self.end_step):
            self.prune(cubic(step, self.begin_step, self.end_step, self.final, self.initial))

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if logs is not None:
            logs["sparsity"] = self.sparsity

    def on_train_end(self, logs: Logs = None) -> None:
        if self.sparsity < self.final * (1 - 1e-6):
            warnings.warn(
                f"the training ended at sparsity {self.sparsity:.3g}, before it reached {self.final:.3g}", stacklevel=2
            )

    # -- what ------------------------------------------------------------------------------------------------------

    def prune(self, sparsity: float) -> None:
        """Masks the session's weights to a sparsity. What is masked stays so."""
        self.sparsity = sparsity
        pattern = self._pattern(sparsity)
        if pattern is None:
            return
        session = self.trainer.session
        params = session.params()
        scores = {n: self._scores(n, params[n], params[n + MASK]) for n in self._names()}
        found = self.chosen(scores, pattern, sparsity)
        session.set_params({n + MASK: mask & params[n + MASK] for n, mask in found.items()})
        keep_zeros(session)

    def chosen(self, scores: Mapping[str, np.ndarray], pattern: Pattern, sparsity: float) -> dict[str, np.ndarray]:
        """The masks for scores of the weights' shapes."""
        views = {n: self.view(n, s.shape) for n, s in scores.items()}
        return choose(scores, views, pattern, sparsity, self.scope)

    def _pattern(self, sparsity: float) -> Pattern | None:
        """The pattern on the way to the last one: N:M comes from M:M (Kao et al. 2022). None keeps everything."""
        if not self.pattern.group:
            return self.pattern if sparsity > 0 else None
        from dataclasses import replace

        group = self.pattern.group
        keep = max(self.pattern.keep, math.ceil(group * (1 - sparsity) - 1e-9))
        return None if keep == group else replace(self.pattern, keep=keep)  # type: ignore[type-var]

    def _scores(self, name: str, weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
        wide = weights.astype(np.float64)
        if self.criterion == "magnitude":
            return np.abs(wide)
        if self.criterion == "l2":
            return wide**2
        # The sum over the steps of weight times its change, which for small steps is half the growth of its square.
        moved = (wide**2 - self.start[name].astype(np.float64) ** 2) / 2
        return np.where(mask, moved, moved.min() - 1)

    def _names(self) -> list[str]:
        ranks = {p.name: len(p.shape) for p in self.trainer.artifact.params}
        names = [n for n in masked_names(self.trainer.session) if self.prunes(n, ranks[n])]
        return [n for n in names if not any(fnmatch.fnmatchcase(n, p) for p in self.skip)]

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, np.ndarray]:
        return {f"start/{n}": a for n, a in self.start.items()}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        super().restore(state, tensors)
        self.start = {n.removeprefix("start/"): a for n, a in tensors.items() if n.startswith("start/")}


def _sparsity(pattern: Pattern, given: float | None) -> float:
    """The final sparsity; that of N:M is in its name."""
    own = 1 - pattern.keep / pattern.group if pattern.group else None
    found = own if given is None else given
    if found is None or not 0 < found < 1 or (own is not None and abs(found - own) > 1e-6):
        said = f"{pattern} has sparsity {own:g}" if own is not None else "a part of the weights between 0 and 1"
        raise NervureError(f"final_sparsity is {given}", hint=said)
    return float(found)
