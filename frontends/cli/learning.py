"""``nervure train``: data from a file, a loss that fits it, the training, the object that ``--json`` prints."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NervureError, printable
from ..dsl.network import Network
from .network import is_library
from .values import parse_named

SPARSE, BINARY, ONE_HOT = "sparse_categorical_crossentropy", "binary_crossentropy", "categorical_crossentropy"
HINT = "np.savez('train.npz', x=x, y=y); x_val and y_val may be beside them"


def trainable_network(text: str, dims: Sequence[str], shapes: Sequence[str]) -> Network:
    """The model that ``text`` names as a network that can be trained."""
    from .network import network

    path, colon, _ = text.rpartition(":")
    if colon and path.endswith(".py"):
        if dims or shapes:
            raise NervureError("a network in Python has its shapes there", where=text, hint="leave out --dim, --shape")
        found: Network = network(text).source
        return found
    if not is_library(text) and Path(text).is_file():
        from ..onnx.network import load_network

        single = {n: v[0] for n, v in parse_named(dims, "--dim").items()}
        return load_network(text, dims=single, shapes=parse_named(shapes, "--shape"))
    network(text)  # says what is wrong with it
    raise AssertionError(text)


# -- data --------------------------------------------------------------------------------------------------------------


class Data:
    """Samples and targets, for training and validation."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray], inputs: Sequence[str]) -> None:
        self.path = path
        self.x, self.y = self._part(arrays, inputs, "")
        held = [n for n in arrays if n.endswith("_val")]
        self.validation = self._part(arrays, inputs, "_val") if held else None

    def _part(self, arrays: Mapping[str, np.ndarray], inputs: Sequence[str], end: str) -> tuple[Any, np.ndarray]:
        names = [f"{n}{end}" for n in inputs]
        if f"x{end}" in arrays and len(inputs) == 1:
            x: Any = arrays[f"x{end}"]
        elif all(n in arrays for n in names):
            x = {n: arrays[m] for n, m in zip(inputs, names, strict=True)}
        else:
            wanted = f"x{end}" if len(inputs) == 1 else ", ".join(n for n in names if n not in arrays)
            raise self._missing(wanted, arrays)
        if f"y{end}" not in arrays:
            raise self._missing(f"y{end}", arrays)
        return x, arrays[f"y{end}"]

    def _missing(self, name: str, arrays: Mapping[str, np.ndarray]) -> NervureError:
        held = ", ".join(printable(n, 60) for n in arrays) or "nothing"
        return NervureError(f"the data has no array {name!r}", where=str(self.path), why=f"it holds: {held}", hint=HINT)

    @property
    def samples(self) -> int:
        return len(self.y)


def read_data(path: Path, inputs: Sequence[str]) -> Data:
    """``x``, ``y`` and what else the file holds."""
    try:
        with np.load(path, allow_pickle=False) as held:
            if not hasattr(held, "files"):
                raise ValueError("one array alone")
            arrays = {key: held[key] for key in held.files}
    except OSError as error:
        raise NervureError("cannot read the data", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        why = "it is damaged, holds one array, or objects instead of arrays"
        raise NervureError("this is no .npz file", where=str(path), why=why, hint=HINT) from error
    return Data(path, arrays, inputs)


# -- what is guessed ---------------------------------------------------------------------------------------------------


def guess_loss(net: Network, y: np.ndarray) -> tuple[Any, str, list[str]]:
    """A loss for the targets and the network's last operation: the loss, why, and the metrics beside it."""
    from ..training.classification import BinaryCrossentropy, CategoricalCrossentropy, SparseCategoricalCrossentropy
    from ..training.regression import MeanSquaredError

    trace = net.inspect()
    shapes, ops = trace.graph.outputs, [_last_op(trace, i) for i in range(len(trace.graph.outputs))]
    if len(shapes) != 1:
        raise NervureError(
            f"the network has {len(shapes)} outputs; a loss for them cannot be guessed",
            hint="train it in Python: net.compile(loss=[...]), or cut it: nv.load_network(..., outputs=...)",
        )
    output, op = trace.graph.type(shapes[0]), ops[0]
    classes = output.shape[1] if output.rank == 2 else 0
    whole = y.dtype.kind in "iub"
    column = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    if whole and column and isinstance(classes, int) and classes > 1:
        kind = "probabilities" if op == "softmax" else "scores"
        return (
            SparseCategoricalCrossentropy(op != "softmax"),
            f"y holds class numbers, the output {classes} {kind}",
            ["accuracy"],
        )
    if column and (output.rank == 1 or classes == 1) and set(np.unique(y[:4096]).tolist()) <= {0, 1} and len(y):
        kind = "a probability" if op == "sigmoid" else "a score"
        return BinaryCrossentropy(op != "sigmoid"), f"y is 0 or 1, the output {kind}", ["binary_accuracy"]
    if op == "softmax" and y.ndim == 2 and y.shape[1:] == output.shape[1:] and np.allclose(y[:256].sum(1), 1):
        return CategoricalCrossentropy(), "each row of y is a distribution, as the output", ["accuracy"]
    return MeanSquaredError(), "y holds numbers, not classes", ["mae"]


def _last_op(trace: Any, index: int) -> str:
    graph, value = trace.graph, trace.graph.outputs[index]
    while graph.node(value).op in ("identity", "reshape"):
        value = graph.args(value.node)[0]
    return str(graph.node(value).op)


def chosen_optimizer(name: str, rate: float | None) -> Any:
    from .. import training as t

    made = t.optimizers.get(name)
    return made if rate is None else type(made)(learning_rate=rate)


# -- the training ------------------------------------------------------------------------------------------------------


class Job:
    """One training. ``notes`` say what was decided for the user."""

    def __init__(self, net: Network, data: Data, output: Path, patterns: Sequence[str]) -> None:
        self.net, self.data, self.output = net, data, output
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        net.ready()
        if patterns:
            net.freeze("*")
            net.unfreeze(*patterns)

    def prepare(
        self, loss: str | None, optimizer: str, rate: float | None, metrics: str | None, **options: Any
    ) -> None:
        """Says how the network is trained: what is not given is guessed."""
        from .. import training as t

        chosen: Any = None if loss is None else t.losses.get(loss)
        beside: list[str] = []
        if chosen is None:
            chosen, why, beside = guess_loss(self.net, self.data.y)
            self.notes.append(f"loss: {chosen.name} ({why}); --loss sets another")
        elif "crossentropy" in chosen.name or "cross_entropy" in chosen.name:
            beside = ["accuracy"]
        names = beside if metrics is None else [m for m in metrics.split(",") if m and m != "none"]
        made = chosen_optimizer(optimizer, rate)
        self.net.compile(made, chosen, names, **options)
        self.facts |= {
            "loss": chosen.name,
            "loss_guessed": loss is None,
            "optimizer": made.name,
            "learning_rate": float(made.learning_rate),
            "metrics": names,
            "seed": options["seed"],
            "threads": options["threads"],
        }

    def run(
        self,
        *,
        epochs: int,
        batch_size: int,
        validation_split: float,
        checkpoint: Path | None,
        resume: bool,
        curves: Path | None,
    ) -> None:
        """Trains, then writes the model."""
        from ...runtime.loggers import CurvePlot
        from ..onnx import save_onnx

        data, started = self.data, time.perf_counter()
        if not self.output.parent.is_dir():
            raise NervureError("there is no such folder", where=str(self.output.parent))
        if data.validation is not None and validation_split:
            raise NervureError("x_val is given, and --validation-split too", hint="leave one of them out")
        history = self.net.fit(
            data.x,
            data.y,
            batch_size,
            epochs,
            callbacks=[CurvePlot(curves, self.net.name)] if curves is not None else [],
            validation_data=data.validation,
            validation_split=validation_split,
            checkpoint=checkpoint,
            resume=resume,
        )
        save_onnx(self.net, self.output)
        self.facts |= {
            "epochs": [e + 1 for e in history.epoch],
            "history": {n: list(map(float, v)) for n, v in history.history.items()},
            "seconds": time.perf_counter() - started,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "curves": None if curves is None else str(curves),
        }

    def record(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        trainer = self.net._trained()._last
        arenas = {e.function: e.arena_bytes(self.facts["threads"]) for e in trainer.artifact.entries}
        weights = self.net.weights
        history = self.facts["history"]
        return {
            "model": self.net.name,
            **self.facts,
            "final": {n: v[-1] for n, v in history.items() if v},
            "samples": self.data.samples,
            "validation_samples": 0 if self.data.validation is None else len(self.data.validation[1]),
            "batch_size": trainer.batch_size,
            "steps": trainer.step,
            "elements": sum(w.size for w in weights),
            "trained_elements": sum(w.size for w in weights if w.trained),
            "train_arena_bytes": arenas["train_step"],
            "infer_arena_bytes": arenas["infer"],
            "file": str(self.output),
        }
