"""The base of all callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .trainer import Trainer

Logs = dict[str, float] | None


class Callback:
    """Is told what happens in ``fit``. ``self.trainer`` runs it, ``self.model`` is what ``fit`` was called on.

    ``self.trainer.stop_training = True`` ends the training. ``kept`` names the attributes (plain data) that a
    checkpoint holds; ``tensors`` gives its arrays.
    """

    kept: tuple[str, ...] = ()
    trainer: Trainer
    model: Any
    params: dict[str, Any]

    def prepare(self, network: Any) -> None:
        """Before ``fit`` of a network compiles its step: what has to be in it. A ``Trainer`` alone does not call it."""

    def set_trainer(self, trainer: Trainer) -> None:
        """Called before the training begins."""
        self.trainer, self.model = trainer, trainer.model

    def set_params(self, params: dict[str, Any]) -> None:
        """``epochs``, ``steps`` (of an epoch, None where unknown), ``verbose``."""
        self.params = params

    def on_train_begin(self, logs: Logs = None) -> None:
        """Before the first epoch."""

    def on_train_end(self, logs: Logs = None) -> None:
        """After the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Before an epoch; also when a run is resumed within one."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """After an epoch and its validation: ``logs`` has ``loss``, the metrics, and the same with ``val_``."""

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Before a step."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """After a step: ``logs`` has the means of the epoch so far."""
        self.on_batch_end(batch, logs)

    def on_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """The older name of ``on_train_batch_begin``."""

    def on_batch_end(self, batch: int, logs: Logs = None) -> None:
        """The older name of ``on_train_batch_end``."""

    def on_test_begin(self, logs: Logs = None) -> None:
        """Before a validation."""

    def on_test_end(self, logs: Logs = None) -> None:
        """After a validation."""

    def close(self) -> None:
        """Gives back files; called however the training ends."""

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {name: getattr(self, name) for name in self.kept}

    def tensors(self) -> dict[str, np.ndarray]:
        """Arrays for a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        """Takes back what ``state`` and ``tensors`` gave."""
        for name in self.kept:
            if name in state:
                setattr(self, name, state[name])
