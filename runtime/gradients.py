"""Watches the gradients of a training: their norms by layer, and a warning where one vanishes or explodes.

A step that was compiled with ``gradient_norms`` leaves its gradients in states (see ``frontends/training/step.py``).
They are looked at after some steps of an epoch only, so that watching costs the training nearly nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .observer import Callback, Logs
from .session import Session

if TYPE_CHECKING:
    from .trainer import Trainer

PREFIX, NORM = "gradient/", "gradient_norm/"

VANISHED = 1e-5  # of the largest gradient of any layer
LOOKS = 4  # so many looks in turn, and no fewer than those of an epoch
EXPLODED = 1e4  # gradient times weights, of the largest loss so far: about 1 where a net is healthy
HUGE = 1e12  # whatever the loss: float32 ends at 3e38, squares soon after 1e19
GROWN, WORSE = 100.0, 2.0  # a layer's gradient, of all layers' at first, and the loss, of what it was at first

_HINTS = {
    "vanishes": "normalisation (BatchNorm, LayerNorm), residual connections, relu or gelu instead of sigmoid or tanh, "
    "an initializer for them (he_normal), a lower learning rate",
    "explodes": "a lower learning rate, clipnorm=1.0 in the optimizer, normalisation, a smaller initializer "
    "(recurrent weights: orthogonal), inputs and targets of about unit size",
}


class GradientWatch(Callback):
    """Gives each epoch's logs ``gradient_norm/<layer>``, the mean over the steps that it looked at: of every epoch the
    1st, 2nd, 4th, 8th, ..., and the last. ``warnings`` tells once of a layer whose gradient vanishes (it was below
    ``VANISHED`` of another layer's, a whole epoch long) and once of one whose gradient explodes."""

    kept = ("looks", "due", "first", "streak", "worst", "told", "seen")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._held: dict[tuple[str, str], np.ndarray] = {}
        kept = {s.name.removeprefix(PREFIX) for s in session.artifact.states if s.name.startswith(PREFIX)}
        self.layers: dict[str, list[str]] = {}
        for name in (p.name for p in session.artifact.params if p.name in kept):
            self.layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
        self.on_train_begin()

    def set_trainer(self, trainer: Trainer) -> None:
        super().set_trainer(trainer)
        if trainer.world.size > 1:  # several ranks run other entries than the step
            self.layers = {}

    def on_train_begin(self, logs: Logs = None) -> None:
        self.first: dict[str, float] = {}  # norms at the first look, and the loss
        self.streak: dict[str, int] = {}  # looks in turn at which a layer's gradient had vanished
        self.worst: list[float] = []  # [largest loss so far, loss of the first look]
        self.told: list[str] = []
        self.seen = ""  # the largest growth of the last look, in words
        self.on_epoch_begin(0)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.looks: list[list[float]] = []  # [position, norm of each layer]
        self.due = 1  # the position of the next look

    def look(self, position: int, loss: float) -> None:
        """Takes the norms after a step; ``position``: the number of the epoch's steps so far."""
        if not self.layers or (self.looks and self.looks[-1][0] == position):
            return
        norms = {layer: self._norm("state", [PREFIX + n for n in names]) for layer, names in self.layers.items()}
        self.looks.append([float(position), *norms.values()])
        last = self.params["steps"] or 2 * position
        self.due = 2 * position if position >= last else min(2 * position, last)
        if not self.first:
            self.first, self.worst = norms, [abs(loss), abs(loss)]
        self.worst[0] = max(self.worst[0], abs(loss))
        self._exploded(norms, loss)
        largest = max(norms.values())
        for layer, norm in norms.items():
            gone = math.isfinite(largest) and norm < VANISHED * largest and not self._scales(layer)
            self.streak[layer] = self.streak.get(layer, 0) + 1 if gone else 0

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        columns = zip(*(look[1:] for look in self.looks), strict=True)
        means = {layer: math.fsum(c) / len(c) for layer, c in zip(self.layers, columns, strict=False)}
        if logs is not None:
            logs.update({f"{NORM}{layer}": mean for layer, mean in means.items()})
        gone = [layer for layer, count in self.streak.items() if count >= max(LOOKS, len(self.looks))]
        if gone and means:
            largest = max(means, key=means.__getitem__)
            self._tell("vanishes", gone, f"its norm is {means[gone[0]]:.2g}, that of {largest!r} {means[largest]:.2g}")

    def _exploded(self, norms: dict[str, float], loss: float) -> None:
        """Warns of gradients that are not finite, that are far too large for such weights and such a loss, or that grew
        while the loss did."""
        largest, at_first = self.worst
        whole = math.hypot(*self.first.values())
        weights = {layer: self._norm("param", names) for layer, names in self.layers.items()}
        excess: dict[str, float] = {}  # above 1: too large
        for layer, norm in norms.items():
            if not math.isfinite(norm):
                excess[layer] = math.inf
                continue
            excess[layer] = max(norm / HUGE, norm * weights[layer] / (EXPLODED * largest or math.inf))
            if abs(loss) > WORSE * at_first:
                excess[layer] = max(excess[layer], norm / (GROWN * whole or math.inf))
        layer = max(excess, key=excess.__getitem__)
        if math.isfinite(norms[layer]):
            self.seen = f"the gradient of layer {layer!r} had a norm of {norms[layer]:.2g} before"
        elif not self.seen:
            self.seen = f"the gradient of layer {layer!r} is not finite"
        if excess[layer] > 1:
            why = f"its norm is {norms[layer]:.2g} (at first {self.first[layer]:.2g})"
            self._tell("explodes", [layer], f"{why}, that of its weights {weights[layer]:.2g}, the loss {loss:.3g}")

    def _scales(self, layer: str) -> bool:
        """Whether it is a scale of quantization-aware training alone: those may well be where they should be."""
        return all(name.endswith(".scale") for name in self.layers[layer])

    def _norm(self, kind: str, names: Sequence[str]) -> float:
        return math.sqrt(math.fsum(_squares(self._stored(kind, name)) for name in names))

    def _stored(self, kind: str, name: str) -> np.ndarray:
        """A param or state where it lies: on a CPU that stays the same."""
        if self.session.artifact.gpu:
            return self.session.stored(kind, name)
        if (kind, name) not in self._held:
            self._held[kind, name] = self.session.stored(kind, name)
        return self._held[kind, name]

    def _tell(self, what: str, layers: list[str], why: str) -> None:
        if what in self.told:
            return
        self.told.append(what)
        more = f" (and of {len(layers) - 1} more: {', '.join(layers[1:4])}{', ...' * (len(layers) > 4)})"
        which = f"{layers[0]!r}{more if len(layers) > 1 else ''}"
        message = f"the gradient of layer {which} {what}: {why}; what helps: {_HINTS[what]}"
        warnings.warn(message, stacklevel=2)


def _squares(array: np.ndarray) -> float:
    """The sum of an array's squares, whatever their size."""
    flat = array.ravel()
    if flat.dtype == np.float32:
        with np.errstate(over="ignore"):
            found = float(np.dot(flat, flat))
        if 1e-25 < found < math.inf:
            return found
    wide = flat.astype(np.float64)
    return float(np.dot(wide, wide))
