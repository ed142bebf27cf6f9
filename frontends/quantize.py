"""``nv.quantize``: a float model and samples become a quantized model, with a report of what that cost, and where."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.ir import Graph
from ..compiler.pipeline import EntryGraph, Options, plan_program
from ..compiler.quantize.control import TARGETS, Budget, Outcome, Promotion, Score, control
from ..compiler.quantize.pace import Pace
from ..compiler.types import TensorType
from ..errors import NervureError
from ..runtime.artifact import Port
from ..targets import get
from . import accuracy as a
from .build import compile
from .calibration import Samples, calibration, labelled
from .model import Model
from .quantize_modes import Quantized, quantized, with_facts
from .quantize_pace import WISHES, keep_the_faster
from .quantize_report import Report, make_report
from .quantize_settings import AnySettings, settings_for
from .quantize_settings import promoted as with_promoted
from .verify import random_inputs
from .writing import writable, writable_record

Progress = Callable[[str, int, int], None]
_FILE = "a quantized model is an ONNX file"
COMPARED = 64  # samples on which the artifacts' outputs are compared
ROUGH = 24  # samples that are enough to tell which layer does most damage
RANDOM = 8  # where there are none


@dataclass(frozen=True)
class Quantization:
    """A quantized model: ``graph`` (QDQ), ``report`` (what it cost), ``model`` (compiled, can be called), ``path`` (the
    ONNX file that was written, or None)."""

    graph: Graph
    report: Report
    model: Model
    path: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Writes the graph as ONNX (QDQ; other tools run it too), whole or not at all."""
        from .onnx import save

        target = Path(path)
        writable(target, ".onnx", _FILE)
        save(self.graph, target)
        return target


def quantize(
    model: str | Path | Graph | Any,
    calibration: Any = None,
    out: str | Path | None = None,
    *,
    mode: str = "static",
    settings: AnySettings | None = None,
    samples: int | None = None,
    preprocess: str | None = None,
    dims: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    max_drop: str | float | None = None,
    max_sqnr_loss: str | float | None = None,
    evaluate: Callable[[Any], float] | None = None,
    labelled: Any = None,
    promote: str = "auto",
    optimize: str = "speed",
    tune: str | Path | None = None,
    target: str = "host",
    latency: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Quantization:
    """Quantizes a model after training and says what it cost.

    ``model``: an ONNX file, a network of the DSL or a ``Graph``. ``calibration``: an ``.npz`` file (an array for each
    input, samples along the first axis), a folder of pictures (``preprocess`` says how they become inputs), arrays, or
    a generator of samples. ``mode``: ``static``, or, without samples, ``dynamic`` (activations of matrix products and
    recurrences are quantized as they come) and ``weights`` (int8, int4, float16 or bfloat16 weights, float arithmetic).
    ``settings`` or its fields by name (``activations="uint8"``, ``float_patterns=("head*",)``, ``weights="int4"``) say
    how: they are the options of ``nervure quantize``.

    ``max_drop`` (``"0.5%"``, ``0.005``) bounds what the score of ``evaluate(model)``, or of ``labelled`` data (``.npz``
    with the inputs and ``y``), may lose beside the float artifact's; ``max_sqnr_loss`` (``"1%"``, ``"20dB"``) the noise
    of the outputs in parts of their power. Where a budget does not hold, the layers that do most damage are
    ``promote``d to 16 bits or float (``auto``, ``int16``, ``float``), until it holds for the artifact compiled for
    ``target``.

    A layer that integers do not make faster on ``target`` stays in float, unless ``optimize="size"`` wants few bytes.
    Which layers those are is estimated; with ``tune`` (a JSON file, the tuning record) each one is timed in both forms
    on this machine once, and the record decides from then on.

    ``out``: where to write the QDQ ONNX file. ``latency=False`` times nothing. Raises ``NervureError`` for calibration
    data that do not fit or are not finite, for a pattern that matches nothing, and, before anything is written, where a
    budget cannot be met.
    """
    started = time.perf_counter()
    job = _Job(
        model, mode, settings_for(mode, settings, options), target, progress or (lambda stage, done, total: None)
    )
    budget = _budget(max_drop, max_sqnr_loss, evaluate, labelled)
    if promote not in TARGETS:
        raise NervureError(f"promote {promote!r} is unknown", hint=f"use one of: {', '.join(TARGETS)}")
    if optimize not in WISHES:
        raise NervureError(f"optimize {optimize!r} is unknown", hint=f"use one of: {', '.join(WISHES)}")
    if out is not None:
        writable(Path(out), ".onnx", _FILE)
    if tune is not None:
        writable_record(Path(tune))
    job.read(calibration, dims, shapes, samples, preprocess)
    job.evaluation = _evaluation(evaluate, labelled, job)
    job.start()
    if mode == "static" and optimize == "speed":
        keep_the_faster(job, None if tune is None else Path(tune))
    outcome = job.within(budget, promote)
    found = job.found[_key(outcome.promoted)] if outcome else job.first
    found = replace(found, quantized=with_facts(found.quantized, job.tell))
    report = make_report(job, found, budget, outcome, latency, started)
    made = Quantization(found.quantized.graph, report, found.model)
    return replace(made, path=made.save(out)) if out is not None else made


def _budget(drop: Any, loss: Any, evaluate: Any, labelled: Any) -> Budget | None:
    if evaluate is not None and labelled is not None:
        raise NervureError("an evaluation function and labelled data are both given", hint="leave one of them out")
    allowed, noise = a.parse_drop(drop), a.parse_noise(loss)
    if allowed is not None and evaluate is None and labelled is None:
        raise NervureError(
            "max_drop needs something to measure the drop of",
            hint="labelled data (an .npz with the inputs and y) or an evaluation function; or use max_sqnr_loss",
        )
    return None if allowed is None and noise is None else Budget(allowed, noise)


def _evaluation(evaluate: Any, data: Any, job: _Job) -> a.Evaluation | None:
    if evaluate is not None:
        return a.of_function(evaluate, getattr(evaluate, "__name__", "evaluation"))
    if data is None:
        return None
    found = labelled(data, job.types)
    if found.samples.bindings != {**job.samples.bindings} and job.given:
        raise NervureError("labelled and calibration data have different sizes", where=found.samples.where)
    if not job.given:
        job.samples = found.samples
    return a.of_labels(found)


@dataclass(frozen=True)
class Measured:
    """A quantized model, compiled and measured."""

    quantized: Quantized
    model: Model
    outputs: list[list[np.ndarray]]
    score: Score


class _Job:
    """One quantization: what is given, and what has been measured so far."""

    def __init__(self, source: Any, mode: str, settings: AnySettings, target: str, progress: Progress) -> None:
        self.source, self.mode, self.settings, self.target, self.tell = source, mode, settings, target, progress
        self.machine = get(target)
        self.evaluation: a.Evaluation | None = None
        self.found: dict[tuple[tuple[str, str], ...], Measured] = {}
        self.notes: list[str] = []
        self.paces: dict[str, Pace] = {}

    @property
    def title(self) -> str:
        """What the model is called in reports."""
        if isinstance(self.source, str | Path):
            return Path(self.source).stem
        return str(getattr(self.source, "name", "") or "model")

    def read(self, source: Any, dims: Any, shapes: Any, samples: int | None, preprocess: str | None) -> None:
        """Reads the samples, and the graph with the sizes that they have."""
        self.tell("reading", 0, 1)
        self.types = input_types(self.source, dims or {}, shapes or {})
        self.given = source is not None
        if source is not None:
            self.samples = calibration(source, self.types, samples=samples, preprocess=preprocess)
        elif self.mode == "static":
            raise NervureError(
                "static quantization needs calibration data",
                hint="an .npz file, a folder of pictures, arrays or a generator; or mode='dynamic' or 'weights'",
            )
        else:
            self.samples = _random(self.types)
            self.notes.append("outputs were compared on random inputs: give calibration or labelled data for real ones")
        self.graph = bound_graph(self.source, self.samples, dims or {}, self.types)

    def start(self) -> None:
        """Measures the float artifact and the quantized one."""
        self.compared = self.samples.spread(COMPARED)
        self.tell("compiling float", 0, 1)
        self.plain = compile(self.graph, self.target, name=self.title)
        artifact = a.Artifact(self.plain)
        self.tell("running float", 0, 1)
        self.wanted = artifact.outputs(self.compared)
        _finite(self.wanted, self.plain, self.samples.where)
        self.reference = self.evaluation.score(artifact) if self.evaluation else None
        self.measure({})
        self.first = self.found[()]

    def quantized(self, promoted: Promotion, tell: Progress, before: Quantized | None = None) -> Quantized:
        """The model with these layers promoted; ``before`` is an earlier result to start from."""
        before = self.found[()].quantized if () in self.found else before
        samples = self.samples if self.given else None
        return quantized(self.mode, self.graph, samples, with_promoted(self.settings, promoted), tell, before)

    def measure(self, promoted: Promotion, before: Quantized | None = None) -> Score:
        """Quantizes, compiles and scores the artifact."""
        made = self.quantized(promoted, self.tell, before)
        self.tell("compiling", 0, 1)
        model = compile(made.graph, self.target, name=self.title, cache=not promoted)
        artifact = a.Artifact(model)
        self.tell("evaluating", 0, 1)
        outputs = artifact.outputs(self.compared)
        value = self.evaluation.score(artifact) if self.evaluation else None
        score = Score(max(a.noise(outputs, self.wanted), default=0.0), value)
        self.found[_key(promoted)] = Measured(made, model, outputs, score)
        return score

    def rough(self, promoted: Promotion) -> float:
        """The outputs' noise with these layers promoted, from few samples."""
        made = self.quantized(promoted, _mute)
        model = compile(made.graph, self.target, name=self.title, cache=False)
        artifact, count = a.Artifact(model), min(ROUGH, len(self.compared))
        return max(a.noise(artifact.outputs(self.compared.take(range(count))), self.wanted[:count]), default=0.0)

    def cost(self, promoted: Promotion) -> float:
        """Estimated nanoseconds of a run with these layers promoted."""
        return self.cost_of(self.found[_key(promoted)])

    def cost_of(self, measured: Measured) -> float:
        """Estimated nanoseconds of a run."""
        program, _ = plan_program([EntryGraph(measured.quantized.graph)], self.machine, Options())
        return sum(step.estimate for entry in program.entries for step in entry.steps)

    def within(self, budget: Budget | None, promote: str) -> Outcome | None:
        """Promotes layers until the budget holds; ``NervureError`` where it cannot."""
        if budget is None:
            return None
        known: dict[tuple[tuple[str, str], ...], Score] = {(): self.first.score}
        layers = [row["name"] for row in self.first.quantized.ranked()]
        outcome = control(
            layers,
            lambda promoted: known.get(_key(promoted)) or self.measure(promoted),
            budget,
            self.reference,
            to=promote if self.mode == "static" else "float",
            cost=self.cost,
            rough=self.rough,
            progress=self.tell,
        )
        if not outcome.met:
            raise _out_of_reach(outcome, budget, self.reference, promote)
        return outcome


def _mute(stage: str, done: int, total: int) -> None:
    """Progress inside of a step that has its own."""


def _key(promoted: Promotion) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(promoted.items()))


def _out_of_reach(outcome: Outcome, budget: Budget, reference: float | None, promote: str) -> NervureError:
    said = [f"output SQNR {outcome.score.sqnr:.1f} dB"]
    if reference is not None and outcome.score.value is not None:
        said.insert(0, f"a score of {outcome.score.value:.4g} beside {reference:.4g} in float")
    words = f"with {len(outcome.promoted)} layers in {'16 bits' if promote == 'int16' else 'float'}: {', '.join(said)}"
    if outcome.needed:
        names = " ".join(f"--float {name}" for name in outcome.needed)
        hint = f"it would take {len(outcome.needed)} layers in float: {names} (or --promote auto)"
    else:
        hint = "a larger budget; more or other calibration data; another method or per-channel weights"
    return NervureError("the budget cannot be met; nothing was written", why=words, hint=hint)


def _finite(outputs: Sequence[Sequence[np.ndarray]], model: Model, where: str) -> None:
    for number, row in enumerate(outputs):
        for port, array in zip(model.get_outputs(), row, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise NervureError(
                    "the float model's own output is NaN or infinite",
                    where=f"{where}, sample {number}, output {port.name}",
                    why="no scale follows from that, and nothing can be compared with it",
                    hint="leave such samples out, or mend the model",
                )


# -- the model and its inputs ------------------------------------------------------------------------------------------


def input_types(source: Any, dims: Mapping[str, int], shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorType]:
    """The inputs of a model by name; sizes that nothing gives are names."""
    if isinstance(source, Graph):
        graph = source
        return {graph.node(k).names[0]: _sized(graph.node(k).types[0], dims) for k in graph.inputs}
    if hasattr(source, "types") and hasattr(source, "to_graph"):
        return dict(source.types(dict(dims), symbolic=True))
    from .onnx import reader
    from .onnx.importer import _input_type

    model, _ = reader.read(source)
    stored = {t.name for t in model.graph.initializer}
    infos = [i for i in model.graph.input if i.name not in stored]
    return {i.name: _input_type(i, dims, shapes.get(i.name)) for i in infos}


def _sized(type_: TensorType, dims: Mapping[str, int]) -> TensorType:
    return TensorType(type_.dtype, tuple(dims.get(d, d) if isinstance(d, str) else d for d in type_.shape))


def bound_graph(source: Any, samples: Samples, dims: Mapping[str, int], types: Mapping[str, TensorType]) -> Graph:
    """The model's graph with every size known."""
    if isinstance(source, Graph):
        from ..compiler.passes.bind import bind_dimensions, named_dimensions

        sizes = {**samples.bindings, **dims}
        return bind_dimensions(source, {n: sizes[n] for n in named_dimensions(source) if n in sizes})
    if hasattr(source, "to_graph"):
        return source.to_graph({**samples.bindings, **dims})  # type: ignore[no-any-return]
    from .onnx import load

    first = samples[0]
    return load(source, {}, {n: tuple(first[n].shape) for n in types})


def _random(types: Mapping[str, TensorType]) -> Samples:
    """Seeded inputs for comparing outputs where there are no samples; open sizes are 1."""
    bindings = {d: 1 for t in types.values() for d in t.shape if isinstance(d, str)}
    ports = [Port(n, t.dtype, tuple(1 if isinstance(d, str) else d for d in t.shape)) for n, t in types.items()]
    feeds = [random_inputs(ports, seed) for seed in range(RANDOM)]
    return Samples("random inputs", len(feeds), feeds.__getitem__, bindings)
