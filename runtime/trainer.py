"""``Trainer``: the loop around a compiled training step. numpy and ctypes do the work, no framework is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NervureError
from . import checkpoint as disk
from .artifact import Artifact
from .callbacks import History
from .columns import columns
from .data import ArraySource, Feed, Source, is_arrays, items, source, split
from .fit import Fit, Means
from .gradients import PREFIX
from .observer import Callback
from .parallel import World
from .pruning import keep_zeros
from .session import Session, load
from .steps import Predictor, Step, signature, training_facts

__all__ = ["History", "Trainer"]

NOT_WEIGHTS = ("optimizer/", "ema/", "generator", PREFIX)  # states that inference does not need


class Trainer:
    """Trains a model that was compiled with its training step: ``Trainer("model.so").fit(x, y, epochs=5)``.

    ``learning_rate`` is a number or a schedule (``nervure.schedules``, or any function of the step), by default what
    the model was compiled with; it can be set at any time. ``seed`` decides the order of the samples. With an mpi4py
    ``communicator`` each rank computes its part of a joined batch of ``size`` times the compiled one: arrays are given
    whole to every rank, loaders give each rank its own part.
    """

    def __init__(
        self,
        session: Session | str | Path,
        *,
        learning_rate: float | Callable[[int], float] | None = None,
        seed: int = 0,
        communicator: Any = None,
    ) -> None:
        self.session = session if isinstance(session, Session) else load(session)
        self.artifact: Artifact = self.session.artifact
        self.facts = training_facts(self.artifact)
        self.signature = signature(self.artifact, self.facts)
        self.names: list[str] = ["loss", *map(str, self.facts["metrics"])]
        self.world = World(communicator)
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise NervureError(f"seed is {seed!r}", hint="give a whole number from 0")
        self.seed = seed
        self.step = 0  # training steps done
        self.stop_training = False
        self.model: Any = self  # what callbacks see as ``model``
        self.history: History | None = None
        self._rate: float | Callable[[int], float] = 0.0
        self.learning_rate = float(self.facts["learning_rate"]) if learning_rate is None else learning_rate
        self._steps: dict[str, Step] = {}
        self._predictor: Predictor | None = None
        if self.world.size > 1:
            self._agree()

    @property
    def batch_size(self) -> int:
        """Samples of a step, as compiled."""
        return self.signature.batch

    @property
    def learning_rate(self) -> float | Callable[[int], float]:
        """A number, or a function of the step."""
        return self._rate

    @learning_rate.setter
    def learning_rate(self, value: float | Callable[[int], float]) -> None:
        if not callable(value):
            value = float(value)
            if not math.isfinite(value) or value < 0:
                raise NervureError(f"the learning rate is {value}", hint="give a number of at least zero")
        self._rate = value

    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._rate(self.step)) if callable(self._rate) else self._rate

    # -- single batches --------------------------------------------------------------------------------------------

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> dict[str, float]:
        """One step on at most ``batch_size`` samples: its loss and metrics (from before the update)."""
        step = self._step("train_step")
        step.rate[...] = self.rate()
        logs = self._one(step, x, y, sample_weight)
        self.step += 1
        return logs

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> dict[str, float]:
        """Loss and metrics of at most ``batch_size`` samples, without learning from them."""
        return self._one(self._step("evaluate"), x, y, sample_weight)

    def _one(self, step: Step, x: Any, y: Any, weights: Any) -> dict[str, float]:
        found, factors, count = self.signature.take(x, y, weights)
        batch = self.batch_size * self.world.size
        if count > batch:
            raise NervureError(
                f"{count} samples in one batch", why=f"the step was compiled for {batch}", hint="use fit"
            )
        means = Means(self.names)
        for whole in ArraySource(step.feed, found, factors).epoch(0):
            means.add(step.run(), whole, step.feed.factor_sum)
        return means.logs()

    # -- whole data sets -------------------------------------------------------------------------------------------

    def fit(
        self,
        x: Any,
        y: Any = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        validation_data: Any = None,
        validation_split: float = 0.0,
        validation_steps: int | None = None,
        callbacks: Sequence[Callback] = (),
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        verbose: int | str = "auto",
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
    ) -> History:
        """Trains until ``epochs`` are done, as in Keras; ``history`` of the result has loss and metrics of each epoch.

        Data: arrays (one, a list, or a mapping by name), or anything that gives batches ``(x, y[, sample_weight])`` of
        any size. ``validation_split`` takes the last samples. ``checkpoint`` is a folder that is written after each
        epoch, and after each ``checkpoint_every`` steps; with ``resume`` the training goes on from it, where there is
        one, and ends with the same bits as one that was never interrupted.
        """
        if batch_size is not None and batch_size != self.batch_size:
            raise NervureError(
                f"batch_size is {batch_size}", why=f"the step was compiled for batches of {self.batch_size}"
            )
        if validation_split:
            x, y, sample_weight, validation_data = self._split(x, y, sample_weight, validation_split, validation_data)
        feed = self._step("train_step").feed
        train = source(feed, x, y, sample_weight, class_weight, shuffle=shuffle, seed=self.seed)
        validation = None if validation_data is None else self._validation(validation_data)
        run = Fit(
            self,
            train,
            validation,
            callbacks,
            epochs=epochs,
            initial_epoch=initial_epoch,
            limits=(steps_per_epoch, validation_steps),
            verbose=verbose if self.world.rank == 0 else 0,
            checkpoint=checkpoint,
            every=checkpoint_every,
        )
        self.history = run.history
        run.run(resume)
        return run.history

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        steps: int | None = None,
        return_dict: bool = False,
    ) -> float | list[float] | dict[str, float]:
        """Loss and metrics over a data set: a dict, or as in Keras the loss alone, or a list that it begins."""
        logs = self.measure(source(self._step("evaluate").feed, x, y, sample_weight), steps)
        if return_dict:
            return logs
        values = list(logs.values())
        return values[0] if len(values) == 1 else values

    def predict(self, x: Any) -> Any:
        """The outputs for any number of samples: an array, or a list where the model has several outputs."""
        if self._predictor is None:
            self._predictor = Predictor(self.session)
        predictor = self._predictor
        if is_arrays(x, None, 0):
            results = predictor.run(columns(x, predictor.inputs, "input"))
        else:
            found = [predictor.run(columns(part, predictor.inputs, "input")) for part, _, _ in items(x)]
            if not found:
                raise NervureError("there is nothing to predict")
            results = [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
        return results[0] if len(results) == 1 else results

    def measure(self, data: Source, steps: int | None = None) -> dict[str, float]:
        """Loss and metrics over the batches of a source for ``evaluate``."""
        step, means = self._step("evaluate"), Means(self.names)
        for done, whole in enumerate(data.epoch(0), 1):
            means.add(step.run(), whole, data.feed.factor_sum)
            if done == steps:
                break
        if not means.count:
            raise NervureError("the data set for evaluation is empty")
        return means.logs()

    # -- parameters and checkpoints --------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of what inference needs: parameters, running statistics."""
        states = {n: a for n, a in self.session.states().items() if not n.startswith(NOT_WEIGHTS)}
        return {**states, **self.session.params()}

    def set_weights(self, values: Mapping[str, Any]) -> None:
        """Sets some or all of what ``weights`` gives. Where a mask holds, a weight stays 0."""
        params = {p.name for p in self.artifact.params}
        self.session.set_params({n: a for n, a in values.items() if n in params})
        self.session.set_states({n: a for n, a in values.items() if n not in params})
        keep_zeros(self.session)

    def save_weights(self, path: str | Path) -> None:
        """Parameters and running statistics as one safetensors file."""
        disk.save_weights(path, self.weights())

    def load_weights(self, path: str | Path) -> None:
        """Reads a file of ``save_weights``; parameters that it does not hold stay as they are."""
        values = disk.load_weights(path)
        rows = (*self.artifact.params, *(s for s in self.artifact.states if not s.name.startswith(NOT_WEIGHTS)))
        disk.check_weights(values, rows, "tensor", path, whole=False)
        self.set_weights(values)

    def save(
        self, path: str | Path, *, fit: Mapping[str, Any] | None = None, tensors: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Writes a checkpoint (a folder): parameters, optimizer and generator states, number of steps.

        ``fit`` and ``tensors`` are what a running ``fit`` adds.
        """
        held = {f"param/{n}": a for n, a in self.session.params().items()}
        held |= {f"state/{n}": a for n, a in self.session.states().items() if not n.startswith(PREFIX)}
        rate = self._rate
        facts = {
            "program": disk.program_hash(self.artifact),
            "artifact": self.artifact.digest,
            "optimizer": self.facts.get("optimizer"),
            "step": self.step,
            "seed": self.seed,
            "learning_rate": rate.config() if hasattr(rate, "config") else None if callable(rate) else rate,
            "fit": dict(fit or {}),
        }
        disk.save(path, {**held, **(tensors or {})}, facts)

    def load(self, path: str | Path, *, strict: bool = True) -> dict[str, Any]:
        """Goes back to a checkpoint; its manifest is returned.

        ``strict``: only one of this very program is taken, so that what follows has the same bits. Otherwise names,
        shapes and dtypes must fit.
        """
        manifest, _ = self.take(path, strict=strict)
        return manifest

    def take(self, path: str | Path, *, strict: bool = True) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """``load``, with the tensors that are neither parameters nor states."""
        tensors, manifest = disk.load(path)
        params = disk.check_stored(tensors, self.artifact.params, "param", path)
        lasting = tuple(s for s in self.artifact.states if not s.name.startswith(PREFIX))
        states = disk.check_stored(tensors, lasting, "state", path)
        if strict and manifest.get("program") != disk.program_hash(self.artifact):
            raise NervureError(
                "the checkpoint was made by another program",
                where=str(path),
                why="the network, its options, the machine or nervure has changed: results would not be the same bits",
                hint="trainer.load(path, strict=False) takes its parameters and states nevertheless",
            )
        self.session.set_params(params)
        self.session.set_states(states)
        self._own_generator()
        self.step = int(manifest["step"])
        if isinstance(manifest.get("learning_rate"), float) and not callable(self._rate):
            self.learning_rate = manifest["learning_rate"]
        return manifest, {n: a for n, a in tensors.items() if not n.startswith(("param/", "state/"))}

    # -- inside ----------------------------------------------------------------------------------------------------

    def _step(self, entry: str) -> Step:
        if entry not in self._steps:
            self._steps[entry] = Step(self.session, entry, self.facts, self.signature, self.world)
        return self._steps[entry]

    def bound(self) -> Step:
        """The training step with its buffers, for loops of one's own."""
        return self._step("train_step")

    def _validation(self, data: Any) -> Source:
        feed: Feed = self._step("evaluate").feed
        if isinstance(data, tuple | list) and len(data) in (2, 3) and not isinstance(data[0], tuple):
            return source(feed, *data)
        return source(feed, data)

    def _split(self, x: Any, y: Any, weights: Any, part: float, given: Any) -> tuple[Any, Any, Any, Any]:
        if given is not None or not is_arrays(x, y, len(self.signature.targets)):
            raise NervureError(
                "validation_split is for arrays without validation_data", hint="give validation_data alone"
            )
        if not 0 < part < 1:
            raise NervureError(f"validation_split is {part}", hint="a part of the samples, between 0 and 1")
        y = x if y is None and isinstance(x, Mapping) else y
        _, _, count = self.signature.take(x, y, weights)
        at = int(count * (1 - part))
        if not 0 < at < count:
            raise NervureError(f"validation_split {part} of {count} samples leaves one side empty")
        head, tail = ([split(v, at, tail=t) for v in (x, y, weights)] for t in (False, True))
        return head[0], head[1], head[2], tuple(tail)

    def _agree(self) -> None:
        """All ranks start from what the first one has."""
        session, world = self.session, self.world
        own = disk.program_hash(self.artifact)
        if world.first(own) != own:
            raise NervureError("the ranks run different models", where=str(self.artifact.path))
        params, states = world.first((session.params(), session.states()))
        session.set_params(params)
        session.set_states(states)
        self._own_generator()

    def _own_generator(self) -> None:
        """Another stream of random numbers on each rank: masks of different samples must not be the same."""
        states = self.session.states() if self.world.rank else {}
        if "generator" in states:
            states["generator"][0] += np.uint32(self.world.rank)
            self.session.set_states({"generator": states["generator"]})
