"""Callbacks of ``fit``, with the names and hooks that Keras's users know.

A callback's state (what it has counted, its best weights) is part of a checkpoint, so that a resumed run goes on as if
it had not been interrupted.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NervureError
from .loggers import CSVLogger, CurvePlot, TensorBoard, save_curves
from .observer import Callback, Logs

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = [
    "CSVLogger",
    "Callback",
    "CallbackList",
    "CurvePlot",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
    "save_curves",
]

_RISING = ("acc", "auc", "precision", "recall", "f1", "r2", "iou", "top_", "similarity")


class History(Callback):
    """What ``fit`` returns: ``history`` (name -> one value per epoch) and ``epoch`` (their numbers)."""

    kept = ("epoch", "history")

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class _Monitor(Callback):
    """Knows whether a logged value is better than the best so far."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise NervureError(f"mode is {mode!r}", hint="it is 'auto', 'min' or 'max'")
        rising = mode == "max" or (mode == "auto" and any(word in monitor.lower() for word in _RISING))
        self.monitor, self.sign, self.min_delta = monitor, 1.0 if rising else -1.0, abs(min_delta)
        self.best: float | None = None

    def value(self, logs: Logs) -> float:
        """The monitored value of this epoch."""
        if logs is None or self.monitor not in logs:
            raise NervureError(
                f"{type(self).__name__} monitors {self.monitor!r}, which is not computed",
                why=f"there are: {', '.join(logs or {})}",
                hint="give validation_data" if self.monitor.startswith("val_") else "choose one of these",
            )
        return logs[self.monitor]

    def better(self, value: float, best: float | None) -> bool:
        if best is None:
            return not math.isnan(value)
        return self.sign * (value - best) > self.min_delta


class EarlyStopping(_Monitor):
    """Ends the training when ``monitor`` has not improved by ``min_delta`` for ``patience`` epochs.

    ``restore_best_weights`` puts back the parameters (and running statistics) of the best epoch.
    """

    kept = ("best", "best_epoch", "stopped_epoch", "wait")

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience, self.verbose, self.baseline = patience, verbose, baseline
        self.restore_best_weights, self.start_from_epoch = restore_best_weights, start_from_epoch
        self.best_weights: dict[str, np.ndarray] | None = None
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0

    def on_train_begin(self, logs: Logs = None) -> None:
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0
        self.best, self.best_weights = None, None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        value = self.value(logs)
        if epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.trainer.weights()
            if self.baseline is None or self.better(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True

    def on_train_end(self, logs: Logs = None) -> None:
        if self.stopped_epoch and self.verbose:
            print(f"epoch {self.stopped_epoch + 1}: stopped early, the best was epoch {self.best_epoch + 1}")
        if self.best_weights is not None:
            self.trainer.set_weights(self.best_weights)

    def tensors(self) -> dict[str, np.ndarray]:
        return self.best_weights or {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        super().restore(state, tensors)
        self.best_weights = dict(tensors) or None


class ModelCheckpoint(_Monitor):
    """Saves the training after each epoch, or every ``save_freq`` steps.

    ``filepath`` may hold ``{epoch:02d}`` and logged names such as ``{val_loss:.3f}``. It becomes a checkpoint (a folder
    for ``Trainer.load``), or with ``save_weights_only`` one safetensors file. ``save_best_only`` keeps the best one by
    ``monitor``.
    """

    kept = ("best",)

    def __init__(
        self,
        filepath: str | Path,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
            raise NervureError(f"save_freq is {save_freq!r}", hint="'epoch' or a number of steps")
        self.filepath, self.verbose, self.save_freq = str(filepath), verbose, save_freq
        self.save_best_only, self.save_weights_only = save_best_only, save_weights_only
        self.best = initial_value_threshold
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if isinstance(self.save_freq, int) and self.trainer.step % self.save_freq == 0:
            self._save(logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self.save_freq == "epoch":
            self._save(logs)

    def _save(self, logs: Logs) -> None:
        if self.save_best_only:
            value = self.value(logs)
            if not self.better(value, self.best):
                return
            self.best = value
        try:
            path = self.filepath.format(epoch=self._epoch + 1, **(logs or {}))
        except (KeyError, ValueError, IndexError) as error:
            raise NervureError(
                f"ModelCheckpoint: the path {self.filepath!r} cannot be filled in",
                why=repr(error),
                hint=f"names: epoch, {', '.join(logs or {})}",
            ) from error
        if self.trainer.world.rank == 0:
            self.trainer.save_weights(path) if self.save_weights_only else self.trainer.save(path)
        if self.verbose:
            print(f"epoch {self._epoch + 1}: saved {path}")


class LearningRateScheduler(Callback):
    """Sets the learning rate before each epoch: ``schedule(epoch, learning_rate)`` or ``schedule(epoch)``.

    For a rate that changes with each step give the trainer a schedule of ``nervure.schedules``.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        self.schedule, self.verbose = schedule, verbose
        try:
            inspect.signature(schedule).bind(0, 0.0)
            self._both = True
        except (TypeError, ValueError):
            self._both = False

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        rate = self.schedule(epoch, self.trainer.rate()) if self._both else self.schedule(epoch)
        if not isinstance(rate, int | float | np.floating):
            raise NervureError(f"the learning-rate schedule gave {rate!r}", hint="it must give a number")
        self.trainer.learning_rate = float(rate)
        if self.verbose:
            print(f"epoch {epoch + 1}: learning rate {float(rate):.6g}")


class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by ``factor`` when ``monitor`` has not improved for ``patience`` epochs."""

    kept = ("best", "cooldown_counter", "wait")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise NervureError(f"factor is {factor}", hint="it lies between 0 and 1")
        self.factor, self.patience, self.verbose = factor, patience, verbose
        self.cooldown, self.min_lr = cooldown, min_lr
        self.wait, self.cooldown_counter = 0, 0

    def on_train_begin(self, logs: Logs = None) -> None:
        self.best, self.wait, self.cooldown_counter = None, 0, 0
        if callable(self.trainer.learning_rate):
            raise NervureError(
                "ReduceLROnPlateau needs a fixed learning rate", hint="a schedule decides each step's rate: leave one"
            )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        value = self.value(logs)
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.better(value, self.best):
            self.best, self.wait = value, 0
        elif not self.cooldown_counter:
            self.wait += 1
            rate = self.trainer.rate()
            if self.wait >= self.patience and rate > self.min_lr:
                self.trainer.learning_rate = max(rate * self.factor, self.min_lr)
                self.cooldown_counter, self.wait = self.cooldown, 0
                if self.verbose:
                    print(f"epoch {epoch + 1}: learning rate {self.trainer.rate():.6g}")


class TerminateOnNaN(Callback):
    """Ends the training quietly where the loss is NaN or infinite; without it that is an error."""

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            print(f"batch {batch}: the loss is not finite, training ends")
            self.trainer.stop_training = True


class LambdaCallback(Callback):
    """Functions as hooks: ``LambdaCallback(on_epoch_end=lambda epoch, logs: ...)``."""

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if not (name.startswith("on_") and hasattr(Callback, name)):
                known = ", ".join(n for n in sorted(vars(Callback)) if n.startswith("on_"))
                raise NervureError(f"there is no hook {name!r}", hint=known)
            if function is not None:
                setattr(self, name, function)


class CallbackList:
    """Calls several callbacks, in order. Hooks around batches are called only where somebody has them."""

    def __init__(self, callbacks: Sequence[Callback], trainer: Trainer, params: Mapping[str, Any]) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise NervureError(
                    f"{type(callback).__name__} is no callback", hint="derive it from nervure.callbacks.Callback"
                )
            callback.set_trainer(trainer)
            callback.set_params(dict(params))
        self.callbacks = list(callbacks)
        self.begin = self._with("on_train_batch_begin", "on_batch_begin")
        self.end = self._with("on_train_batch_end", "on_batch_end")

    def call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    def close(self) -> None:
        for callback in self.callbacks:
            callback.close()

    def _with(self, *hooks: str) -> list[Callable[..., None]]:
        """``hooks[0]`` of those who have one of their own."""

        def own(callback: Callback, hook: str) -> bool:
            return hook in vars(callback) or getattr(type(callback), hook) is not getattr(Callback, hook)

        return [getattr(c, hooks[0]) for c in self.callbacks if any(own(c, h) for h in hooks)]

    def states(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """All states as plain data, and all tensors by ``<number>/<name>``."""
        plain = [{"callback": type(c).__name__, "state": copy.deepcopy(c.state())} for c in self.callbacks]
        arrays = {f"{i}/{n}": a for i, c in enumerate(self.callbacks) for n, a in c.tensors().items()}
        return plain, arrays

    def restore(self, plain: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> None:
        """Gives each callback the state of its class and turn; those that are new start afresh."""
        left = list(enumerate(plain))
        for callback in self.callbacks:
            found = next((row for row in left if row[1]["callback"] == type(callback).__name__), None)
            if found is not None:
                left.remove(found)
                prefix = f"{found[0]}/"
                own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
                callback.restore(found[1]["state"], own)
