"""What tensors hold while a graph runs over the samples: extents in one pass, histograms in a second.

The graph is compiled with the wanted tensors as further outputs. At any time there is one sample's worth of them, and
of a graph whose tensors are larger than ``MOST_BYTES`` a part after the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from ...errors import NervureError
from ...runtime.session import load
from ...targets import get
from ...targets.files import temporary_folder
from ..ir import STORED, Graph, Value
from ..pipeline import EntryGraph, Options, compile_entries

MOST_BYTES = 1 << 29  # of watched tensors in one compiled graph
Feeds = Sequence[Mapping[str, np.ndarray]]
Progress = Callable[[str, int, int], None]
Visit = Callable[[int, str, np.ndarray], None]
Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def silent(stage: str, done: int, total: int) -> None:
    """A progress report to nobody."""


@contextmanager
def compiled(graph: Graph) -> Iterator[Run]:
    """``graph`` as a function from inputs by name to its outputs in order, compiled for this machine."""
    threads = min(4, os.cpu_count() or 1)
    with temporary_folder() as folder:
        compile_entries([EntryGraph(graph)], get("host"), folder / "watched.so", Options(threads=threads))
        session = load(folder / "watched.so", threads)
        yield lambda feed: session.run(None, feed)


def with_outputs(graph: Graph, values: Sequence[Value]) -> Graph:
    """A copy whose outputs are these tensors and nothing else."""
    work = graph.copy()
    work.outputs, work.output_names, work.bindings = [], [], {}
    for i, value in enumerate(values):
        work.output(value, f"watched_{i}")
    return work


class Watcher:
    """A graph compiled with some of its tensors as outputs. ``close`` it, or use it in a ``with``."""

    def __init__(self, graph: Graph, names: Sequence[str]):
        places = _places(graph)
        self.graph, self._stack = graph, ExitStack()
        self._groups = _groups(graph, [places[name] for name in names])
        self._runs: list[Run] = [self._stack.enter_context(compiled(with_outputs(graph, g))) for g in self._groups]

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the compiled libraries."""
        self._stack.close()

    def run(self, feeds: Feeds, visit: Visit, progress: Progress = silent, stage: str = "observing") -> None:
        """Runs the graph over the samples; ``visit(sample, name, array)`` sees each tensor of each.

        ``NervureError`` for NaN or infinity in any of them: it names the tensor and the sample.
        """
        for g, (group, run) in enumerate(zip(self._groups, self._runs, strict=True)):
            for i, feed in enumerate(feeds):
                for value, array in zip(group, run(feed), strict=True):
                    _finite(self.graph, value, array, i)
                    visit(i, self.graph.tensor_name(value), array)
                progress(stage, g * len(feeds) + i + 1, len(self._groups) * len(feeds))


def _places(graph: Graph) -> dict[str, Value]:
    return {graph.tensor_name(v): v for key in graph.order() for v in graph.values(key)}


def _groups(graph: Graph, values: Sequence[Value]) -> list[list[Value]]:
    """The tensors in parts of at most ``MOST_BYTES``."""
    groups: list[list[Value]] = []
    room = 0
    for value in values:
        nbytes = graph.type(value).size * 4
        if not groups or nbytes > room:
            groups.append([])
            room = MOST_BYTES
        groups[-1].append(value)
        room -= nbytes
    return groups


def _finite(graph: Graph, value: Value, array: np.ndarray, sample: int) -> None:
    if array.dtype.kind != "f" or not array.size or np.isfinite(np.add(array.min(), array.max())):
        return
    if np.isfinite(array).all():  # the sum of the two overflowed
        return
    kind = "NaN" if np.isnan(array).any() else "infinity"
    raise NervureError(
        f"{kind} in tensor {graph.tensor_name(value)!r} for calibration sample {sample}",
        where=graph.node(value).origin if graph.node(value).op not in STORED else None,
        why="a range cannot be chosen for such values",
        hint="look at this sample and at the model's float results for it",
    )


@dataclass
class Extent:
    """The smallest and largest value of a tensor over all samples, and the moving averages of each sample's."""

    low: float = np.inf
    high: float = -np.inf
    mean_low: float = 0.0
    mean_high: float = 0.0
    samples: int = 0

    def add(self, array: np.ndarray, momentum: float) -> None:
        """One more sample. ``momentum``: its weight in the averages; 0 gives each sample the same."""
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        self.samples += 1
        weight = 1 / self.samples if not momentum or self.samples == 1 else momentum
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.mean_low += weight * (low - self.mean_low)
        self.mean_high += weight * (high - self.mean_high)


@dataclass
class Histogram:
    """Counts of values in equal bins over [low, high].

    ``shares`` are the counts with each sample's divided by its sum of squares: errors weighted by them are relative to
    the sample, so that a few samples with large values do not decide alone.
    """

    low: float
    high: float
    counts: np.ndarray
    shares: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return np.asarray(self.low + width * (np.arange(len(self.counts)) + 0.5))

    def add(self, array: np.ndarray) -> None:
        """One more sample."""
        bins, width = len(self.counts), self.high - self.low
        if width <= 0:
            self.counts[0] += array.size
            return
        flat = array.ravel().astype(np.float32, copy=False)
        place = ((flat - np.float32(self.low)) * np.float32(bins / width)).astype(np.int32)
        counts = np.bincount(np.clip(place, 0, bins - 1, out=place), minlength=bins)
        self.counts += counts
        power = float(counts @ self.centers**2)
        if power > 0:
            self.shares += counts / power


def extents(
    watcher: Watcher, names: Sequence[str], feeds: Feeds, momentum: float, progress: Progress = silent
) -> dict[str, Extent]:
    """The extent of each watched tensor."""
    found = {name: Extent() for name in names}
    watcher.run(feeds, lambda _, name, array: found[name].add(array, momentum), progress, "ranges")
    return found


def histograms(
    watcher: Watcher, seen: Mapping[str, Extent], feeds: Feeds, bins: int, progress: Progress = silent
) -> dict[str, Histogram]:
    """The histogram of each tensor over the extent that was seen before (0 included)."""
    found = {
        n: Histogram(min(e.low, 0.0), max(e.high, 0.0), np.zeros(bins, np.int64), np.zeros(bins))
        for n, e in seen.items()
    }
    watcher.run(feeds, lambda _, name, array: found[name].add(array), progress, "histograms")
    return found


__all__ = ["Extent", "Histogram", "Watcher", "compiled", "extents", "histograms", "silent", "with_outputs"]
