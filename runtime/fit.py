"""One call of ``fit``: epochs, steps, callbacks, checkpoints, and going on from one of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NervureError
from . import checkpoint as disk
from .callbacks import CallbackList, History, LearningRateScheduler, ReduceLROnPlateau, TerminateOnNaN
from .data import Source
from .gradients import NORM, GradientWatch
from .observer import Callback
from .progress import progress

if TYPE_CHECKING:
    from .trainer import Trainer


class Means:
    """Means over samples: of the loss over their number, of metrics over the sum of their own weights (as Keras)."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.sums = [0.0] * len(self.names)
        self.count = self.factors = 0.0

    def add(self, values: Sequence[float], whole: int, factors: float) -> None:
        """A batch's values, each already divided by ``whole``, the number of its samples."""
        self.count += whole
        self.factors += factors
        sums = self.sums
        for i, value in enumerate(values):
            sums[i] += value * whole

    def logs(self) -> dict[str, float]:
        weights = [self.count, *[self.factors] * (len(self.names) - 1)]
        return {n: s / w if w else 0.0 for n, s, w in zip(self.names, self.sums, weights, strict=True)}

    def state(self) -> list[float]:
        return [*self.sums, self.count, self.factors]

    def restore(self, state: Sequence[float]) -> None:
        *self.sums, self.count, self.factors = map(float, state)


class Fit:
    """Where the training is: ``epoch``, ``position`` (steps done in it), ``taken`` (steps done by this data)."""

    def __init__(
        self,
        trainer: Trainer,
        train: Source,
        validation: Source | None,
        callbacks: Sequence[Callback],
        *,
        epochs: int,
        initial_epoch: int = 0,
        limits: tuple[int | None, int | None] = (None, None),
        verbose: int | str = 0,
        checkpoint: str | Path | None = None,
        every: int | None = None,
    ) -> None:
        counts = {"steps_per_epoch": limits[0], "validation_steps": limits[1], "checkpoint_every": every}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise NervureError(f"{name} is {value}", hint="give a number from 1")
        if every is not None and checkpoint is None:
            raise NervureError("checkpoint_every is given without checkpoint", hint="checkpoint='folder'")
        self.trainer, self.train, self.validation = trainer, train, validation
        self.epochs, self.epoch, self.position, self.taken = epochs, initial_epoch, 0, 0
        self.limit, self.validation_limit = limits
        self.folder, self.every = None if checkpoint is None else Path(checkpoint), every
        steps = train.steps if self.limit is None else min(self.limit, train.steps or self.limit)
        self.steps = steps
        self.history = History()
        self.history.model = trainer.model
        callbacks = [callbacks] if isinstance(callbacks, Callback) else [*(callbacks or ())]
        given = {"epochs": epochs, "steps": steps, "verbose": verbose}
        self.watch = GradientWatch(trainer.session)
        self.callbacks = CallbackList([self.watch, *callbacks, self.history], trainer, given)
        self.tolerant = any(isinstance(c, TerminateOnNaN) for c in callbacks)
        self.rated = any(isinstance(c, LearningRateScheduler | ReduceLROnPlateau) for c in callbacks)
        self.bar = progress(verbose, epochs)
        self.means = Means(trainer.names)
        self.finite = True

    def run(self, resume: bool) -> None:
        """All epochs that are left."""
        trainer, hooks = self.trainer, self.callbacks
        for holder in {id(h): h for h in (trainer, trainer.model) if hasattr(h, "stop_training")}.values():
            holder.stop_training = False
        if resume and self.folder is None:
            raise NervureError("resume is given without checkpoint", hint="checkpoint='folder'")
        try:
            saved = self._resume() if resume and self.folder is not None and disk.exists(self.folder) else None
            hooks.call("on_train_begin", {})
            if saved is not None and not self.position:
                self._restore(*saved)
            while self.epoch < self.epochs and not self._stopped():
                hooks.call("on_epoch_begin", self.epoch, {})
                if saved is not None and self.position:
                    self._restore(*saved)  # after the hook: it has seen this epoch's beginning before
                saved = None
                self.bar.begin(self.epoch, self.steps)
                self._steps()
                self._end_epoch()
            hooks.call("on_train_end", self.means.logs() if self.means.count else {})
        finally:
            self.bar.close()
            hooks.close()

    def _steps(self) -> None:
        """The steps of an epoch that are left. What it does beside the step itself is what the user waits for."""
        trainer, means, step, bar = self.trainer, self.means, self.trainer.bound(), self.bar
        begin, end = self.callbacks.begin, self.callbacks.end
        feed, run, rate, watch = step.feed, step.run, step.rate, self.watch
        start = self.position if self.train.again else self.taken
        batches = self.train.epoch(self.epoch, start)
        if self.limit is not None:
            batches = islice(batches, max(self.limit - self.position, 0))
        values: list[float] = []
        for whole in batches:
            for hook in begin:
                hook(self.position, {})
            learning_rate = trainer.learning_rate
            rate[...] = learning_rate(trainer.step) if callable(learning_rate) else learning_rate
            values = run()
            if not math.isfinite(values[0]):
                self._not_finite(values[0], float(rate))
            means.add(values, whole, feed.factor_sum)
            trainer.step += 1
            self.position += 1
            self.taken += 1
            if self.position == watch.due:
                watch.look(self.position, values[0])
            for hook in end:
                hook(self.position - 1, means.logs())
            if time.perf_counter() >= bar.due:
                bar.step(self.position, means.logs())
            if self._stopped():
                break
            if self.every is not None and trainer.step % self.every == 0:
                self._save()
        if not means.count:
            raise self._empty()
        if values:
            watch.look(self.position, values[0])

    def _end_epoch(self) -> None:
        trainer, hooks = self.trainer, self.callbacks
        self._join_states()
        logs = self.means.logs()
        if self.rated or callable(trainer.learning_rate):
            step = max(trainer.step - 1, 0)
            rate = trainer.learning_rate
            logs["learning_rate"] = float(rate(step)) if callable(rate) else rate
        if self.validation is not None:
            hooks.call("on_test_begin", {})
            found = trainer.measure(self.validation, self.validation_limit)
            hooks.call("on_test_end", found)
            logs |= {f"val_{name}": value for name, value in found.items()}
        hooks.call("on_epoch_end", self.epoch, logs)
        self.bar.end(self.epoch, {n: v for n, v in logs.items() if not n.startswith(NORM)})
        self.epoch, self.position = self.epoch + 1, 0
        self.means = Means(trainer.names)
        self._save()

    def _stopped(self) -> bool:
        return self.trainer.stop_training or bool(getattr(self.trainer.model, "stop_training", False))

    def _not_finite(self, loss: float, rate: float) -> None:
        self.finite = False
        if self.tolerant:
            return
        bad = self.train.feed.not_finite()
        safe = ""
        if self.folder is not None and disk.exists(self.folder):
            safe = f"; the last checkpoint before it is {self.folder}"
        raise NervureError(
            f"the loss is {loss} in step {self.position + 1} of epoch {self.epoch + 1}",
            why=f"{bad[0]!r} of this batch holds NaN or infinity" if bad else self._diverged(loss),
            hint=(f"clean the data{safe}" if bad else f"a learning rate below {rate:g}, or clip gradients{safe}"),
        )

    def _diverged(self, loss: float) -> str:
        self.watch.look(self.position + 1, loss)
        return "; ".join(filter(None, ["the training has diverged: its parameters are of no use", self.watch.seen]))

    def _empty(self) -> NervureError:
        if self.epoch and not self.train.again:
            return NervureError(
                f"the data end before epoch {self.epoch + 1}",
                why="a generator can be read once only",
                hint="give a function that makes a new one, or an object that can be iterated again",
            )
        return NervureError("the data set is empty", hint="check how it was loaded")

    def _join_states(self) -> None:
        """Running statistics become their means over the ranks."""
        world = self.trainer.world
        if world.size > 1:
            for name, array in sorted(self.trainer.weights().items()):
                if array.dtype.kind == "f" and name not in {p.name for p in self.trainer.artifact.params}:
                    world.mean(array)
                    self.trainer.session.set_states({name: array})

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.folder is None or not self.finite or self.trainer.world.rank:
            return
        states, arrays = self.callbacks.states()
        facts = {
            "epoch": self.epoch,
            "position": self.position,
            "taken": self.taken,
            "means": self.means.state(),
            "stopped": self._stopped(),
            "data": self.train.identity(),
            "callbacks": states,
        }
        self.trainer.save(self.folder, fit=facts, tensors={f"callback/{n}": a for n, a in arrays.items()})

    def _resume(self) -> tuple[dict[str, Any], dict[str, Any], float | None]:
        """Parameters and states as they were; what the callbacks get back, and when, is the caller's."""
        assert self.folder is not None
        manifest, tensors = self.trainer.take(self.folder)
        fit = manifest["fit"]
        if not fit:
            raise NervureError(
                "the checkpoint was not made by fit", where=str(self.folder), hint="trainer.load(path), then fit"
            )
        for name, value in self.train.identity().items():
            if fit["data"].get(name, value) != value:
                raise NervureError(
                    f"the training cannot be resumed: {name} was {fit['data'][name]}, it is {value}",
                    where=str(self.folder),
                    hint="give the same data and options, or leave resume out to begin anew",
                )
        self.epoch, self.position, self.taken = int(fit["epoch"]), int(fit["position"]), int(fit["taken"])
        return fit, tensors, manifest.get("learning_rate")

    def _restore(self, fit: dict[str, Any], tensors: dict[str, Any], rate: Any) -> None:
        own = {n.removeprefix("callback/"): a for n, a in tensors.items() if n.startswith("callback/")}
        self.callbacks.restore(fit["callbacks"], own)
        self.means.restore(fit["means"])
        self.trainer.stop_training = bool(fit["stopped"])
        if isinstance(rate, float) and not callable(self.trainer.learning_rate):
            self.trainer.learning_rate = rate
