"""``nv.sensitivity``: what it costs to prune each layer alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from ..compiler.passes.bind import bind_dimensions
from ..compiler.prune.layers import layers, prepare
from ..compiler.prune.patterns import parse
from ..compiler.prune.rules import divides
from ..compiler.prune.structure import ALL_KINDS, Group, find_structure
from ..compiler.types import TensorType
from ..errors import NervureError
from ..targets import get
from ..targets.files import write_atomic
from .accuracy import Outputs, agreement, noise, of_labels
from .calibration import LABELS, Feed, Labelled, Samples, calibration, labelled
from .calibration_files import read_npz
from .model import Model
from .sensitivity_picture import picture

SPARSITIES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
SAMPLES = 256  # that are looked at, if nobody says how many
ROWS = 32  # of a batch
FEW = 32  # samples that are too few to say how many change their class

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Point:
    """One layer (or group of channels) alone, pruned to ``sparsity``: the part of its weights or channels that is
    really 0, ``asked`` the part that was wanted. ``weights`` is the number of its weights. ``score``: accuracy or r2
    with labels; ``agreement``: rows whose largest class is that of the dense model; ``noise``: power of the outputs'
    error over that of the outputs."""

    layer: str
    weights: int
    asked: float
    sparsity: float
    score: float | None
    agreement: float | None
    noise: float


@dataclass(frozen=True)
class Sensitivity:
    """What ``nv.sensitivity`` found: ``rows``, one for each layer and sparsity. ``metric`` and ``dense`` are the
    score's name and what the dense model reaches, None without labels."""

    structure: str
    metric: str | None
    dense: float | None
    samples: int
    rows: tuple[Point, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, in order."""
        return tuple(dict.fromkeys(p.layer for p in self.rows))

    def damage(self, point: Point) -> float:
        """What pruning costs there, 0 at best: what the score loses; without labels the rows that change their class,
        and where there are no classes the noise."""
        if point.score is not None and self.dense is not None:
            return self.dense - point.score
        return point.noise if point.agreement is None else 1 - point.agreement

    def allowed(self, max_damage: float) -> dict[str, float]:
        """For each layer the largest of the sparsities up to which its damage stays within a bound; 0 if none does."""
        found = {}
        for layer in self.layers:
            points = sorted((p for p in self.rows if p.layer == layer), key=lambda p: (p.sparsity, p.asked))
            over = next((i for i, p in enumerate(points) if self.damage(p) > max_damage), len(points))
            found[layer] = points[over - 1].sparsity if over else 0.0
        return found

    def svg(self, title: str = "") -> str:
        """A picture: a row for each layer, a column for each sparsity, the darker the worse; beside it its weights."""
        return picture(self, title)

    def save(self, path: str | Path) -> Path:
        """Writes the picture (``.svg``)."""
        if Path(path).suffix != ".svg":
            raise NervureError(f"{path} should end in .svg")
        write_atomic(Path(path), self.svg().encode())
        return Path(path)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        shown = self.metric or ("agreement" if self.rows and self.rows[0].agreement is not None else "noise")
        lines = [f"{shown} of the model with one layer pruned ({self.structure})"]
        for layer in self.layers:
            points = [p for p in self.rows if p.layer == layer]
            cells = "  ".join(f"{p.sparsity:.0%}: {self._value(p):.4g}" for p in points)
            lines.append(f"{layer}: {cells}")
        return "\n".join(lines)

    def _value(self, point: Point) -> float:
        if point.score is not None:
            return point.score
        return point.noise if point.agreement is None else point.agreement


def sensitivity(
    model: Any,
    data: Any,
    *,
    structure: str = "unstructured",
    sparsities: Sequence[float] = SPARSITIES,
    samples: int = SAMPLES,
    progress: Tell | None = None,
) -> Sensitivity:
    """Prunes each layer alone to each sparsity, by magnitude, and measures what becomes of the outputs::

        found = nv.sensitivity("model.onnx", "data.npz", structure="channels")
        found.save("sensitivity.svg")

    ``model``: a network, an ONNX file (path, bytes, ``ModelProto``) or a ``Graph``. ``data``: samples as
    ``nv.quantize`` takes them, or labelled ones (an ``.npz`` or a dictionary with ``y``, a pair (x, y)); ``samples`` of
    them are looked at. ``structure``: a sparse pattern (``2:4`` has a sparsity of its own), or one of ``channels``,
    ``heads``, ``units``, ``groups``, ``blocks``: of these a part of the units is taken out, those with the smallest
    mean magnitude.

    The model is compiled once, for this machine, with its weights as parameters that are changed from outside.
    Raises ``NervureError`` where nothing can be pruned and for data that do not fit.
    """
    tell = progress or (lambda stage, done, total: None)
    wrong = [s for s in sparsities if not 0 < s < 1]
    if wrong or not len(sparsities):
        raise NervureError(f"sparsity {wrong[0] if wrong else ''} is no part of 1", hint="sparsities=(0.5, 0.75, 0.9)")
    scan = _Scan(model, data, samples)
    variants = scan.variants(structure, sorted(set(map(float, sparsities))))
    dense, rows = scan.dense(), []
    for done, variant in enumerate(variants):
        tell("layers", done, len(variants))
        rows.append(scan.point(variant, dense))
    tell("layers", len(variants), len(variants))
    held = scan.labelled
    return Sensitivity(
        structure,
        None if held is None else of_labels(held).metric,
        None if held is None else scan.score(dense),
        scan.count,
        tuple(rows),
    )


@dataclass(frozen=True)
class _Variant:
    """Weights to be changed for a point."""

    layer: str
    weights: int
    asked: float
    sparsity: float
    arrays: Mapping[str, np.ndarray]


class _Scan:
    """The model with its weights as params, the data as batches, and the outputs that come of them."""

    def __init__(self, model: Any, data: Any, samples: int) -> None:
        self._at, one = _source(model)
        self.labelled: Labelled | None = None
        given = _read(data, one, samples)
        if isinstance(given, Labelled):
            self.labelled, given = given, given.samples
        self.feeds, self.counts, rows = _batches(given, one, self._at)
        self.count = sum(self.counts)
        self.graph = prepare(self._at(rows))
        if self.labelled is not None:
            labels, ends = np.concatenate(self.labelled.y), np.cumsum(self.counts)
            if len(labels) == self.count:
                self.labelled = replace(self.labelled, y=np.split(labels, ends[:-1]))
        self._plain = {self.graph.node(k).names[0]: self.graph.node(k).array for k in self.graph.find("const")}
        self._model: Model | None = None

    # -- what is pruned ----------------------------------------------------------------------------------------------

    def variants(self, structure: str, sparsities: Sequence[float]) -> list[_Variant]:
        """All points of the scan, and the model compiled so that their weights can be changed."""
        found = self._units(structure, sparsities) if structure in ALL_KINDS else self._weights(structure, sparsities)
        if not found:
            raise NervureError(
                f"nothing can be pruned: {structure}",
                why="; ".join(f"{f.where}: {f.why}" for f in find_structure(self.graph).fixed[:4]) or None
                if structure in ALL_KINDS
                else "the model has no convolution or matrix product with float weights",
            )
        self._compile(sorted({n for v in found for n in v.arrays}))
        return found

    def _weights(self, structure: str, sparsities: Sequence[float]) -> list[_Variant]:
        pattern = parse(structure, get("host"))
        wanted = sparsities if pattern.sparsity is None else [pattern.sparsity]
        found, seen = [], set()
        for layer in layers(self.graph):
            if layer.weight in seen:
                continue
            seen.add(layer.weight)
            array = self._plain[layer.weight]
            matrix = layer.matrix(np.abs(array))
            for sparsity in wanted:
                pruned = array * layer.array(pattern.mask(matrix, layer.channels, sparsity))
                part = 1 - np.count_nonzero(pruned) / pruned.size
                if part > 0:  # 2:4 leaves a layer of one input as it is
                    found.append(_Variant(layer.weight, array.size, sparsity, part, {layer.weight: pruned}))
        return found

    def _units(self, kind: str, sparsities: Sequence[float]) -> list[_Variant]:
        found = []
        for group in find_structure(self.graph, (kind,)).groups:
            order, size = self._order(group)
            for sparsity in sparsities:
                count = min(max(round(sparsity * len(order)), 1), len(order) - 1)
                arrays = self._without(group, order[:count])
                found.append(_Variant(group.name, size, sparsity, count / len(order), arrays))
        return found

    def _order(self, group: Group) -> tuple[np.ndarray, int]:
        """Units, those with the smallest mean magnitude of their matrices and kernels first; and all their weights."""
        means, whole = [], 0
        for unit in group.units:
            arrays = [np.take(self._plain[s.tensor], s.index, s.axis) for s in unit.slices]
            whole += sum(a.size for a in arrays)
            wide = [a for a in arrays if a.ndim > 1] or arrays
            means.append(sum(float(np.abs(a).sum()) for a in wide) / max(sum(a.size for a in wide), 1))
        return np.argsort(means, kind="stable"), whole

    def _without(self, group: Group, units: np.ndarray) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        silent = self._divisors()
        for number in units:
            for piece in group.units[number].slices:
                array = self._plain[piece.tensor]
                if array.dtype.kind == "f" and piece.tensor not in silent:
                    changed = arrays.setdefault(piece.tensor, np.array(array))
                    changed[(slice(None),) * piece.axis + (piece.index,)] = 0
        return arrays

    def _divisors(self) -> set[str]:
        graph = self.graph
        return {graph.node(k).names[0] for k in graph.find("const") if divides(graph, k)}

    # -- what comes of it --------------------------------------------------------------------------------------------

    def _compile(self, names: Sequence[str]) -> None:
        from .build import compile

        work = self.graph.copy()
        for key in work.find("const"):
            if work.node(key).names[0] in names:
                work.set_node(key, op="param")
        self._model = compile(work)

    def dense(self) -> Outputs:
        """The outputs of the model as it is."""
        return self._outputs({})

    def point(self, variant: _Variant, dense: Outputs) -> Point:
        """A variant measured."""
        found = self._outputs(variant.arrays)
        score = None if self.labelled is None else self.score(found)
        worst = max(noise(found, dense))
        same = None if self.count < FEW else agreement(found, dense)
        return Point(variant.layer, variant.weights, variant.asked, variant.sparsity, score, same, worst)

    def score(self, outputs: Outputs) -> float:
        """By the labels."""
        assert self.labelled is not None
        return of_labels(self.labelled).score(_Given(outputs))

    def _outputs(self, arrays: Mapping[str, np.ndarray]) -> Outputs:
        assert self._model is not None
        session = self._model.session
        session.set_params(arrays)
        found = []
        for feed, count in zip(self.feeds, self.counts, strict=True):
            session.reset()
            outputs = session.run(None, feed)
            whole = len(next(iter(feed.values()))) if count else 0
            found.append([o[:count] if o.ndim and count < whole else o for o in outputs])
        session.set_params({n: self._plain[n] for n in arrays})
        return found


@dataclass(frozen=True)
class _Given:
    """What an evaluation asks, answered already."""

    found: Outputs

    def outputs(self, samples: Samples) -> Outputs:
        """The outputs of all batches."""
        return self.found


def _source(model: Any) -> tuple[Callable[[int], Graph], dict[str, TensorType]]:
    """A function from a batch to the graph, and the types of its inputs for a batch of 1 (or of its own)."""
    if isinstance(model, Graph):
        lead = {t.shape[0] for t in map(model.type, _inputs(model)) if t.shape and isinstance(t.shape[0], str)}
        if len(lead) > 1:
            raise NervureError(f"the graph has several open sizes: {', '.join(sorted(map(str, lead)))}")

        def at(batch: int) -> Graph:
            return bind_dimensions(model, {str(d): batch for d in lead}) if lead else model

    else:
        from .dsl.network import Network
        from .dsl.spec import BATCH
        from .onnx import load_network

        net = model if isinstance(model, Network) else load_network(model)

        def at(batch: int) -> Graph:
            open_ = any(spec is not None and BATCH in spec.shape for spec in net.inputs.values())
            return net.to_graph({BATCH: batch} if open_ else {})

    first = at(1)
    return at, {first.node(v.node).names[0]: first.type(v) for v in _inputs(first)}


def _inputs(graph: Graph) -> list[Any]:
    from ..compiler.ir import Value

    return [Value(key) for key in graph.inputs]


def _read(data: Any, types: Mapping[str, TensorType], samples: int) -> Samples | Labelled:
    names: set[str] = set()
    if isinstance(data, str | Path) and Path(data).suffix == ".npz":
        names = set(read_npz(Path(data)))
    elif isinstance(data, Mapping):
        names = set(map(str, data))
    if isinstance(data, tuple | Labelled) or (names & set(LABELS)) - set(types):
        return labelled(data, types, samples=samples)
    return calibration(data, types, samples=samples)


def _batches(
    samples: Samples, one: Mapping[str, TensorType], at: Callable[[int], Graph]
) -> tuple[list[Feed], list[int], int]:
    """Feeds put together to batches, the last one padded; how many rows of each are real; and the rows of a batch."""
    feeds = list(samples)
    rows = min(ROWS, len(feeds))
    if not _grows(at, one, rows):
        each = next((t.shape[0] for t in one.values() if t.shape), 1)
        return feeds, [int(each) for _ in feeds], 1
    found, counts = [], []
    for start in range(0, len(feeds), rows):
        part = feeds[start : start + rows]
        padded = [*part, *[part[0]] * (rows - len(part))]
        found.append({n: np.concatenate([f[n] for f in padded]) for n in one})
        counts.append(len(part))
    return found, counts, rows


def _grows(at: Callable[[int], Graph], one: Mapping[str, TensorType], rows: int) -> bool:
    """Whether all inputs and outputs have the batch as their first axis."""
    graph = at(rows)
    types = [*map(graph.type, _inputs(graph)), *map(graph.type, graph.outputs)]
    return (
        rows > 1 and all(t.shape and t.shape[0] == rows for t in types) and all(t.shape[0] == 1 for t in one.values())
    )


__all__ = ["Point", "Sensitivity", "sensitivity"]
