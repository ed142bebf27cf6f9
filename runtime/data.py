"""Batches of exactly the compiled size, from arrays or from anything that gives batches, in the step's own buffers.

An epoch is an iterator: each ``next`` fills the buffers of a ``Feed`` and says how many samples of all ranks are real.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import NervureError
from .arrays import empty, host_dtype
from .artifact import Port
from .columns import Columns, as_array, check_labels, columns, joined, sample_weights
from .parallel import ALONE, World


@dataclass(frozen=True)
class Signature:
    """What a training step takes: batches of ``batch`` samples. ``classes``: number of classes of a target."""

    inputs: tuple[Port, ...]
    targets: tuple[Port, ...]
    batch: int
    weighted: bool
    classes: Mapping[str, int] = field(default_factory=dict)

    def take(self, x: Any, y: Any, weights: Any, class_weight: Any = None) -> tuple[Columns, np.ndarray | None, int]:
        """Checked columns, factors and the number of samples."""
        targets = columns(y, self.targets, "target")
        for name, classes in self.classes.items():
            check_labels(targets[name], classes, name)
        factors = sample_weights(weights, class_weight, targets)
        if factors is not None and not self.weighted:
            raise NervureError(
                "weights per sample are given, but the step was compiled without them",
                hint="compile it with sample weights",
            )
        return joined(columns(x, self.inputs, "input"), targets, factors)


class Feed:
    """The buffers that an entry point reads. ``factor_sum`` is the sum of the samples' own weights, of all ranks."""

    def __init__(self, signature: Signature, world: World = ALONE) -> None:
        self.signature, self.world = signature, world
        self.arrays = {p.name: _buffer(p) for p in (*signature.inputs, *signature.targets)}
        self.weights = _buffer(Port("", "float32", (signature.batch,))) if signature.weighted else None
        self.factor_sum = 0.0
        self._last = (-1, -1)

    def weigh(self, real: int, whole: int, factors: np.ndarray | None) -> None:
        """Weights of the batch: the first ``real`` rows are samples, ``whole`` is their number over all ranks.

        Ranks are averaged, and each has its part of the joined batch's mean: hence their number.
        """
        if self.weights is None:
            return
        share = self.world.size / whole
        if factors is not None:
            np.multiply(factors, np.float32(share), out=self.weights[:real])
        elif (real, whole) != self._last:
            self.weights[:real] = share
        self.weights[real:] = 0
        self._last = (real, whole) if factors is None else (-1, -1)

    def not_finite(self) -> list[str]:
        """Names of inputs and targets in the batch that hold NaN or infinity."""
        return [n for n, a in self.arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]


def _buffer(port: Port) -> np.ndarray:
    dtype = host_dtype(port.dtype)
    count = int(np.prod(port.shape, dtype=np.int64))
    array = empty(count * dtype.itemsize)
    array[...] = 0
    return array.view(dtype).reshape(port.shape)


def too_few(samples: int, batch: int) -> NervureError:
    return NervureError(
        f"{samples} samples do not fill batches of {batch}",
        why="the step was compiled without sample weights, so that it cannot leave out the rest of a batch",
        hint=f"give {samples - samples % batch or batch} samples, or compile it with sample weights",
    )


EMPTY = "the data set is empty"


class ArraySource:
    """Arrays in memory. The order of an epoch depends on seed and epoch alone, so that a resumed run sees it again."""

    def __init__(
        self,
        feed: Feed,
        found: Columns,
        factors: np.ndarray | None,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.feed, self.factors, self.shuffle, self.seed = feed, factors, shuffle, seed
        signature, world = feed.signature, feed.world
        self.samples = len(next(iter(found.values())))
        self.batch = signature.batch * world.size
        if self.samples == 0:
            raise NervureError(EMPTY, hint="check how it was loaded or split")
        if self.samples % self.batch and not signature.weighted:
            raise too_few(self.samples, self.batch)
        self.steps: int | None = -(-self.samples // self.batch)
        self.again = True
        self._moves: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
        for name, array in found.items():
            out = feed.arrays[name]
            self._moves.append((array, out, None if array.dtype == out.dtype else np.empty(out.shape, array.dtype)))

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        return {"samples": self.samples, "shuffle": self.shuffle, "seed": self.seed, "batch": self.batch}

    def order(self, epoch: int) -> np.ndarray | None:
        if not self.shuffle:
            return None
        # the epoch goes into the counter's highest word: streams of different epochs never meet
        return np.random.Generator(np.random.Philox(key=self.seed, counter=epoch << 192)).permutation(self.samples)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[int]:
        """The batches of an epoch from step ``start`` on."""
        order = self.order(epoch)
        size, rank = self.feed.signature.batch, self.feed.world.rank
        for begin in range(start * self.batch, self.samples, self.batch):
            whole = min(self.batch, self.samples - begin)
            mine = begin + rank * size
            real = min(max(self.samples - mine, 0), size)
            if order is None and real == size:
                rows: Any = slice(mine, mine + size)
                for array, out, _ in self._moves:
                    out[...] = array[rows]
            else:
                rows = order[mine : mine + size] if order is not None else np.arange(mine, mine + real)
                self._gather(rows if real == size else np.resize(rows if real else np.zeros(1, np.intp), size))
            self._weigh(rows, real, whole, begin, order)
            yield whole

    def _gather(self, rows: np.ndarray) -> None:
        for array, out, between in self._moves:
            if between is None:
                array.take(rows, 0, out, "clip")
            else:
                array.take(rows, 0, between, "clip")
                out[...] = between

    def _weigh(self, rows: Any, real: int, whole: int, begin: int, order: np.ndarray | None) -> None:
        if self.factors is None:
            self.feed.factor_sum = whole
            self.feed.weigh(real, whole, None)
            return
        every = slice(begin, begin + whole) if order is None else order[begin : begin + whole]
        self.feed.factor_sum = float(self.factors[every].sum(dtype=np.float64))
        self.feed.weigh(real, whole, self.factors[rows][:real])


class StreamSource:
    """Anything that gives batches of any size: generators, loaders of other libraries, functions that make them.

    Items are ``(x, y)``, ``(x, y, weights)`` or mappings by name. What can be iterated again starts anew with each
    epoch (``set_epoch(epoch)`` is called first where there is one); a generator goes on.
    """

    def __init__(self, feed: Feed, data: Any, class_weight: Any = None) -> None:
        self.feed, self.data, self.class_weight = feed, data, class_weight
        self.samples, self.steps = None, None
        self.again = callable(data) or not isinstance(data, Iterator)
        self._running: Iterator[int] | None = None

    def identity(self) -> dict[str, Any]:
        return {"batch": self.feed.signature.batch * self.feed.world.size}

    def epoch(self, epoch: int, start: int = 0) -> Iterator[int]:
        """The batches of an epoch from step ``start`` on; for a generator from wherever it is."""
        if self.again or self._running is None:
            if hasattr(self.data, "set_epoch"):
                self.data.set_epoch(epoch)
            self._running = self._batches()
            for _ in range(start):
                next(self._running, None)
        return self._running

    def _batches(self) -> Iterator[int]:
        signature = self.feed.signature
        size, fill, empties = signature.batch, 0, 0
        held = np.ones(size, np.float32)
        weighs = False
        for x, y, w in items(self.data):
            found, factors, count = signature.take(x, y, w, self.class_weight)
            empties = 0 if count else empties + 1
            if empties > 1000:
                raise NervureError(EMPTY, why="the last 1000 batches had no sample")
            at = 0
            while at < count:
                part = min(size - fill, count - at)
                for name, array in found.items():
                    self.feed.arrays[name][fill : fill + part] = array[at : at + part]
                held[fill : fill + part] = 1 if factors is None else factors[at : at + part]
                weighs = weighs or factors is not None
                fill, at = fill + part, at + part
                if fill == size:
                    yield self._ready(fill, held if weighs else None)
                    fill = 0
        while whole := self._ready(fill, held if weighs else None):
            yield whole
            fill = 0

    def _ready(self, real: int, factors: np.ndarray | None) -> int:
        """Pads and weighs the batch; the number of samples of all ranks, 0 where none has any more."""
        feed, size = self.feed, self.feed.signature.batch
        own = real if factors is None else factors[:real].sum(dtype=np.float64)
        real_all, feed.factor_sum = map(float, feed.world.total(np.array([real, own], np.float64)))
        whole = int(real_all)
        if whole and real < size:
            if feed.weights is None:
                raise too_few(real, size)
            for array in feed.arrays.values():
                array[...] = np.resize(array[: real or 1], array.shape)
        if whole:
            feed.weigh(real, whole, None if factors is None else factors[:real])
        return whole


Source = ArraySource | StreamSource


def items(data: Any) -> Iterator[tuple[Any, Any, Any]]:
    """``(x, y, weights)`` of each batch."""
    walk: Any = data() if callable(data) and not hasattr(data, "__iter__") else data
    if not hasattr(walk, "__iter__") and hasattr(walk, "__getitem__") and hasattr(walk, "__len__"):
        walk = (walk[i] for i in range(len(walk)))
    try:
        iterator = iter(walk)
    except TypeError as error:
        raise NervureError(
            f"data of type {type(data).__name__} cannot be used", hint="give arrays, or something that yields batches"
        ) from error
    for item in iterator:
        if isinstance(item, Mapping):
            yield item, item, item.get("sample_weight")
        elif isinstance(item, tuple | list) and 1 <= len(item) <= 3:
            x, y, w = (*item, None, None)[:3]
            yield x, y, w
        elif isinstance(item, tuple | list):
            raise NervureError(f"a batch of {len(item)} parts", hint="yield (x, y) or (x, y, sample_weight)")
        else:
            yield item, None, None


def is_arrays(x: Any, y: Any, targets: int) -> bool:
    """Whether ``x`` (and ``y``) are arrays in memory, not something that gives batches."""
    if y is not None or hasattr(x, "__array__") or isinstance(x, Mapping):
        return True
    return not targets and isinstance(x, list | tuple)


def source(
    feed: Feed,
    x: Any,
    y: Any = None,
    weights: Any = None,
    class_weight: Mapping[int, float] | None = None,
    *,
    shuffle: bool = False,
    seed: int = 0,
) -> Source:
    """Where the batches come from."""
    if not is_arrays(x, y, len(feed.signature.targets)):
        if weights is not None:
            raise NervureError("sample_weight is for arrays", hint="yield (x, y, sample_weight)")
        return StreamSource(feed, x, class_weight)
    if y is None and isinstance(x, Mapping):
        y = x
    found, factors, _ = feed.signature.take(x, y, weights, class_weight)
    return ArraySource(feed, found, factors, shuffle=shuffle, seed=seed)


def split(value: Any, at: int, *, tail: bool) -> Any:
    """The rows before ``at``, or those from there on, of one array, a list of them or a mapping; None stays None."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {k: split(v, at, tail=tail) for k, v in value.items()}
    if isinstance(value, list | tuple) and value and hasattr(value[0], "shape") and np.ndim(value[0]) > 0:
        return [split(v, at, tail=tail) for v in value]
    array = as_array(value, "the data")
    return array[at:] if tail else array[:at]
