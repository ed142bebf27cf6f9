"""Does the artifact compute what it should? The measure, the inputs, and the two ways to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.library import run_elsewhere
from ..errors import MissingTool, NervureError, printable
from ..runtime.artifact import Artifact, Port
from ..targets import get
from .twin import open_session, runs_here

# what would not be rounding: 11 or 8 bits of fraction, through many layers and a softmax on random numbers, cost 1e-2
# and 6e-2 with networks that are right
TOLERANCE = {"default": 1e-3, "exact": 2e-5, "tf32": 3e-2, "fp16": 3e-2, "bf16": 0.2}
# where floats are quantized between, a rounding that flips moves a whole step: the root mean square counts
MIXED = 2e-2


def slice_error(y: np.ndarray, ref: np.ndarray) -> float:
    """The error of an output, over its one-dimensional slices along axis 1 and along the last axis (as numpy's
    ``apply_along_axis`` takes them): in each, max|y - ref| over (max|ref| of the slice + 1e-4 max|ref| of the output).
    The largest counts, so that a box of 640 does not hide a score of 0.5. An axis of one element is left out where
    there is another: a single number has no scale but its own, and a logit near zero would count rounding as error.
    Integer and bool outputs are equal (0) or not (inf); NaN and infinity must stand at the same places."""
    if y.shape != ref.shape or y.dtype != ref.dtype:
        return float("inf")
    if ref.size == 0:
        return 0.0
    if ref.dtype.kind in "iub":
        return 0.0 if np.array_equal(y, ref) else float("inf")
    a, b = y.astype(np.float64), ref.astype(np.float64)
    wild = ~np.isfinite(b)
    if not np.array_equal(a[wild], b[wild], equal_nan=True) or not np.isfinite(a[~wild]).all():
        return float("inf")
    a, b = np.where(wild, 0, a), np.where(wild, 0, b)
    difference, size, floor = np.abs(a - b), np.abs(b), 1e-4 * np.abs(b).max()
    worst = 0.0
    axes = {min(1, b.ndim - 1), b.ndim - 1} if b.ndim else {None}
    for axis in {a for a in axes if a is not None and b.shape[a] > 1} or axes:
        top, scale = difference.max(axis=axis), size.max(axis=axis) + floor
        ratio = np.divide(top, scale, out=np.where(np.asarray(top) > 0, np.inf, 0.0), where=np.asarray(scale) > 0)
        worst = max(worst, float(np.max(ratio)))
    return worst


def random_inputs(ports: Sequence[Port], seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs: normal floats, booleans, all of 8 bits (a picture, a quantized signal), else small non-negative
    integers (indices)."""
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for port in ports:
        dtype = np.dtype(port.dtype)
        if dtype.kind == "f":
            made[port.name] = random.standard_normal(port.shape).astype(dtype)
        elif dtype.kind == "b":
            made[port.name] = random.random(port.shape) < 0.5
        elif dtype.itemsize == 1:
            made[port.name] = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, port.shape).astype(dtype)
        else:
            made[port.name] = random.integers(0, 8, port.shape).astype(dtype)
    return made


def reference(model: Path, inputs: Mapping[str, np.ndarray], threads: int = 1) -> list[np.ndarray]:
    """ONNX Runtime's outputs on the CPU."""
    return reference_session(model, threads).run(None, dict(inputs))  # type: ignore[no-any-return]


def reference_session(model: Path, threads: int = 1) -> Any:
    """An ``onnxruntime.InferenceSession`` with that many threads."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingTool(
            "verifying and comparing need ONNX Runtime, which is not installed", hint="pip install 'nervure[verify]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # products with 4-bit weights: no rounding of activations to 8 bits
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    # it breaks some quantized models by its own rewriting: those it takes as they are
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        options.graph_optimization_level = level
        try:
            return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            why = str(error).splitlines()[0]
    raise NervureError(f"ONNX Runtime cannot read {model}", why=why)


@dataclass(frozen=True)
class Check:
    """One run on one set of inputs: the error of each output, and what it was compared with.

    ``limit`` is what errors may be where that is not the caller's to say. ``apart``, of a quantized model: the largest
    root mean square difference from ONNX Runtime's outputs, in parts of theirs.
    """

    label: str
    errors: dict[str, float]
    against: str = "ONNX Runtime"
    limit: float | None = None
    apart: float | None = None

    def holds(self, tolerance: float) -> bool:
        """Whether the artifact computes what it should."""
        return self.worst <= (tolerance if self.limit is None else self.limit)

    @property
    def worst(self) -> float:
        """The largest error of any output."""
        return max(self.errors.values(), default=0.0)


def verify(
    artifact: Artifact, model: Path, sets: Mapping[str, Mapping[str, np.ndarray]], built: Any = None
) -> list[Check]:
    """Compares an artifact with ONNX Runtime on each set of inputs, here or in its emulator, or by the session
    ``built``; a quantized model with the integer arithmetic of the op table, since ONNX Runtime computes part of such
    a model in float."""
    session = reference_session(model)
    names = [o.name for o in session.get_outputs()]
    run = built if built is not None else open_session(artifact) if runs_here(artifact) else None
    checks = []
    for label, inputs in sets.items():
        theirs = session.run(None, dict(inputs))
        got = run.run(names, inputs) if run is not None else emulate(artifact, inputs)
        exact = integer_reference(model, inputs)
        if exact is None:
            checks.append(Check(label, {n: slice_error(g, e) for n, g, e in zip(names, got, theirs, strict=True)}))
            continue
        expected, whole = exact
        measure = slice_error if whole else root_mean_square
        errors = {n: measure(g, e) for n, g, e in zip(names, got, expected, strict=True)}
        apart = max((root_mean_square(g, e) for g, e in zip(got, theirs, strict=True)), default=0.0)
        checks.append(Check(label, errors, "the integer reference", None if whole else MIXED, apart))
    return checks


def integer_reference(model: Path, inputs: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], bool] | None:
    """The outputs of a quantized model by the numpy references of the op table, and whether all of its work is integer
    arithmetic (then they are to be met exactly). None for a model that quantizes nothing while it runs."""
    from ..compiler.interpret import interpret
    from ..compiler.ops.integers import STEPS
    from ..compiler.passes import canonicalize
    from .onnx import load as read

    graph = read(model, shapes={n: a.shape for n, a in inputs.items()})
    if not graph.find("quantize"):
        return None
    lowered = canonicalize(graph)
    nodes = [lowered.node(k) for k in lowered]
    integer = (*STEPS, "int32", "int64")
    border = ("input", "const", "quantize", "dequantize", "requantize")
    whole = all(n.op in border or all(t.dtype in integer for t in n.types) for n in nodes)
    feeds = [np.asarray(inputs[lowered.node(k).names[0]]) for k in lowered.inputs]
    return interpret(lowered, feeds), whole


def root_mean_square(y: np.ndarray, ref: np.ndarray) -> float:
    """The root mean square of y - ref in parts of ref's; infinite where shapes differ or y is not finite."""
    if y.shape != ref.shape:
        return float("inf")
    a, b = y.astype(np.float64), ref.astype(np.float64)
    noise, power = float(np.square(a - b).sum()), float(np.square(b).sum())
    if not np.isfinite(noise):
        return 0.0 if np.array_equal(a, b, equal_nan=True) else float("inf")
    return float(np.sqrt(noise / power)) if power else (0.0 if not noise else float("inf"))


def emulate(artifact: Artifact, inputs: Mapping[str, np.ndarray], threads: int = 1) -> list[np.ndarray]:
    """Runs a library in its machine's emulator, the plan that fits the inputs' shapes; outputs in order, those with a
    count cut to their valid rows."""
    shapes = {n: a.shape for n, a in inputs.items()}
    fits = [e for e in artifact.entries if all(shapes.get(p.name) == p.shape for p in e.inputs)]
    if not fits:
        raise NervureError(
            "no plan of the library takes inputs of these shapes",
            where=str(artifact.path),
            why=", ".join(f"{printable(n)}: {list(s)}" for n, s in shapes.items()),
            hint="compile it with --shape for them",
        )
    machine = get(artifact.block["machine"]["name"])
    outputs = run_elsewhere(artifact, machine, inputs, entry=fits[0].name, threads=threads)
    for i, port in enumerate(fits[0].outputs):
        if port.count is not None:
            outputs[i] = np.take(outputs[i], range(int(outputs[port.count])), axis=port.count_axis)
    return outputs
