"""``net.compile`` and ``net.fit``: Keras's calls, over ``Trainer``s that are compiled when a batch size is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import NervureError
from ...runtime.observer import Callback
from ..dsl.network import Network
from ..dsl.place import user_place
from ..dsl.promote import as_array
from ..dsl.spec import BATCH, Input
from ..dsl.tensor import Weight
from . import metrics, optimizers
from .pruning import masks_of, take_masks
from .step import Training

if TYPE_CHECKING:
    from ...runtime.callbacks import History
    from ...runtime.trainer import Trainer

BATCH_SIZE = 32


class Fitting:
    """What ``net.compile`` was told, and the trainers made so far: one for each batch size and way of weighting. They
    hand the state of the training (weights, moments, statistics) on to each other."""

    def __init__(
        self, net: Network, training: Training, target: str = "host", threads: int = 1, max_ram: int | None = None
    ) -> None:
        self.net, self.training, self.target, self.threads, self.max_ram = net, training, target, threads, max_ram
        self._trainers: dict[tuple[int, bool, Any], Trainer] = {}
        self._last: Trainer | None = None

    def trainer(self, batch: int, weighted: bool) -> Trainer:
        """The trainer for a batch size, with the network's weights as they are now."""
        from ...runtime.trainer import Trainer
        from ..build import compile

        frozen = tuple((w.trained, w.channels, w.mask is not None) for _, w in self.net.named_weights())
        key = (batch, weighted, frozen)
        if key not in self._trainers:
            training = replace(self.training, batch=batch, weighted=weighted)
            dims = {BATCH: batch} if self._batched() else None
            model = compile(
                self.net, self.target, training=training, threads=self.threads, dims=dims, max_ram=self.max_ram
            )
            rate = optimizers.get(self.training.optimizer).learning_rate
            self._trainers[key] = Trainer(model.session, learning_rate=rate, seed=self.training.seed)
        found = self._trainers[key]
        if self._last is not None and self._last is not found:
            found.session.set_states(_common(self._last.session.states(), found.session.states()))
        self._push(found)
        self._last = found
        return found

    def _batched(self) -> bool:
        return any(spec is not None and BATCH in spec.shape for spec in self.net.inputs.values())

    def _push(self, trainer: Trainer) -> None:
        """The network's weights into the session."""
        weights = dict(self.net.named_weights())
        session = trainer.session
        names = [p.name for p in session.artifact.params]
        session.set_params({n: trained_part(weights[n]) for n in names if n in weights} | masks_of(weights, names))
        session.set_states({s.name: weights[s.name].array for s in session.artifact.states if s.name in weights})

    def pull(self) -> None:
        """The session's weights back into the network."""
        if self._last is None:
            return
        weights = dict(self.net.named_weights())
        held = {**self._last.session.params(), **self._last.session.states()}
        take_masks(weights, held)
        for name, array in held.items():
            if name in weights:
                assign_part(weights[name], array)

    def names(self) -> list[str]:
        """The loss and what else is reported."""
        if self._last is not None:
            return list(self._last.names)
        given = self.training.metrics
        listed = [given] if isinstance(given, str) else given
        return ["loss", *(m if isinstance(m, str) else metrics.get(m).name for m in listed)]

    def reset_states(self) -> None:
        """What layers remember (states that are no weights of the network) to zero, in all trainers."""
        own = {n for n, w in self.net._walk("") if not w.persistent}
        for trainer in self._trainers.values():
            states = trainer.session.states()
            trainer.session.set_states({n: np.zeros_like(a) for n, a in states.items() if n in own})

    def averages(self) -> dict[str, np.ndarray]:
        """See ``Network.averaged_weights``."""
        states = self._last.session.states() if self._last is not None else {}
        found = {n.removeprefix("ema/"): a for n, a in states.items() if n.startswith("ema/")}
        if not found:
            raise NervureError(
                f"network {self.net.name!r} has no averaged weights",
                where=user_place().full,
                hint="train it with an optimizer that has ema_momentum=0.999",
            )
        return found

    # -- Keras's calls -----------------------------------------------------------------------------------------------

    def fit(self, x: Any, y: Any, batch_size: int | None, validation: Any, options: dict[str, Any]) -> History:
        x, batch = self._sized(x, batch_size)
        for callback in _callbacks(options):
            callback.prepare(self.net)
        held_out = options.get("validation_split", 0.0)
        even = _even(x, y, batch, held_out) and _even_pair(validation, batch)
        plain = options.get("sample_weight") is None and options.get("class_weight") is None
        trainer = self.trainer(batch, not (even and plain))
        try:
            return trainer.fit(x, y, validation_data=validation, **options)
        finally:
            self.pull()

    def evaluate(self, x: Any, y: Any, batch_size: int | None, options: dict[str, Any]) -> Any:
        x, batch = self._sized(x, batch_size or self._batch())
        trainer = self.trainer(batch, not (_even(x, y, batch) and options.get("sample_weight") is None))
        return trainer.evaluate(x, y, **options)

    def predict(self, x: Any, batch_size: int | None) -> Any:
        _, batch = self._sized(x, batch_size or self._batch())
        known = [key for key in self._trainers if key[0] == batch]
        return self.trainer(batch, known[0][1] if known else False).predict(x)

    def train_on_batch(self, x: Any, y: Any, sample_weight: Any) -> dict[str, float]:
        _, batch = self._sized(x, None, whole=True)
        found = self.trainer(batch, sample_weight is not None).train_on_batch(x, y, sample_weight)
        self.pull()
        return found

    def test_on_batch(self, x: Any, y: Any, sample_weight: Any) -> dict[str, float]:
        _, batch = self._sized(x, None, whole=True)
        return self.trainer(batch, sample_weight is not None).test_on_batch(x, y, sample_weight)

    def _batch(self) -> int | None:
        return next(reversed(self._trainers))[0] if self._trainers else None

    def _sized(self, x: Any, batch_size: int | None, whole: bool = False) -> tuple[Any, int]:
        """The data (a peeked-at iterator is put together again) and the batch size; gives the network its shapes."""
        if batch_size is not None and batch_size < 1:
            raise NervureError(f"batch_size must be 1 or more, got {batch_size}", where=user_place().full)
        first, x = _peek(x)
        arrays = _columns(self.net, first)
        sizes = {len(a) for a in arrays.values() if a.ndim}
        samples = next(iter(sizes), 0)
        if samples == 0:
            raise NervureError(
                "the data set is empty", where=user_place().full, hint="check how it was loaded or split"
            )
        for name, array in arrays.items():
            if self.net.inputs[name] is None:
                kind = "float32" if array.dtype == np.float64 else array.dtype
                self.net.inputs[name] = Input(array.shape[1:], kind)
        self.net.ready()
        fixed = self._fixed()
        if fixed is not None:
            return x, fixed
        return x, samples if whole else min(batch_size or (BATCH_SIZE if first is x else samples), samples)

    def _fixed(self) -> int | None:
        """The batch of a network whose inputs have a whole shape."""
        if self._batched():
            return None
        return next((int(s.shape[0]) for s in self.net.inputs.values() if s is not None and s.shape), 1)


def _callbacks(options: Mapping[str, Any]) -> list[Callback]:
    given = options.get("callbacks") or ()
    return [c for c in ([given] if isinstance(given, Callback) else given) if isinstance(c, Callback)]


def _common(held: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of some states those that another session has too, of the same shape."""
    return {n: a for n, a in held.items() if n in wanted and wanted[n].shape == a.shape}


def trained_part(weight: Weight) -> np.ndarray:
    """What a session holds of a weight."""
    return weight.array[weight.part]


def assign_part(weight: Weight, values: np.ndarray) -> None:
    """The inverse of ``trained_part``."""
    whole = weight.array.copy()
    whole[weight.part] = values
    weight.assign(whole)


def _peek(x: Any) -> tuple[Any, Any]:
    """The features that tell shapes, and the data. Of what is iterated over, those of the first batch."""
    if isinstance(x, list) and x and isinstance(x[0], tuple | Mapping):
        return _features(x[0]), x  # a list of batches
    if isinstance(x, Mapping | np.ndarray | list | tuple) or hasattr(x, "__array__"):
        return x, x
    if callable(x):
        return _features(next(iter(x()))), x
    if isinstance(x, Iterable):
        source = iter(x)
        first = next(source, None)
        if first is None:
            return np.zeros(0), x
        return _features(first), itertools.chain([first], source) if source is x else x
    return x, x


def _features(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) else item


def _columns(net: Network, x: Any) -> dict[str, np.ndarray]:
    """Arrays by input name."""
    names = list(net.inputs)
    if isinstance(x, Mapping):
        return {n: as_array(a) for n, a in x.items() if n in net.inputs}
    parts = list(x) if isinstance(x, list | tuple) and len(names) > 1 else [x]
    return {n: as_array(a) for n, a in zip(names, parts, strict=False)}


def _count(x: Any) -> int | None:
    """Samples of arrays; None for what is iterated over."""
    if isinstance(x, Mapping):
        x = next(iter(x.values()), None)
    elif isinstance(x, list | tuple) and x and hasattr(x[0], "shape"):
        x = x[0]
    try:
        return len(x) if hasattr(x, "shape") or isinstance(x, list | tuple) else None
    except TypeError:
        return None


def _even(x: Any, y: Any, batch: int, held_out: float = 0.0) -> bool:
    """Whether the samples fill whole batches, so that none needs a weight."""
    samples = _count(x)
    return y is not None and samples is not None and not held_out and samples % batch == 0


def _even_pair(data: Any, batch: int) -> bool:
    if data is None:
        return True
    return isinstance(data, Sequence) and len(data) == 2 and _even(data[0], data[1], batch)
