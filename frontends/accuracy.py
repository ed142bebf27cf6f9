"""How well a compiled artifact does: its outputs beside the float artifact's, and the score of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NervureError
from .calibration import Feed, Labelled, Samples
from .model import Model
from .verify import emulate

Evaluate = Callable[[Any], float]
Outputs = list[list[np.ndarray]]  # of each feed


class Artifact:
    """A compiled model that runs here or, for another machine, in its emulator. ``model(x)`` and
    ``model.run(None, {...})`` work as with ``nv.Model``: this is what an evaluation function is given."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = [p.name for p in model.get_inputs()]
        try:
            model.artifact.check_host()
            self.here = True
        except NervureError:
            self.here = False

    def run(self, names: Sequence[str] | None, inputs: Feed) -> list[np.ndarray]:
        """Outputs in order, as ``nv.Model.run``."""
        if self.here:
            return self.model.run(list(names) if names is not None else None, inputs)
        found = emulate(self.model.artifact, inputs)
        held = [p.name for p in self.model.get_outputs()]
        return found if names is None else [found[held.index(n)] for n in names]

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """The output, or a tuple where there are several."""
        found = self.run(None, {**dict(zip(self.names, map(np.asarray, arrays), strict=False)), **named})
        return found[0] if len(found) == 1 else tuple(found)

    def outputs(self, samples: Samples) -> Outputs:
        """The outputs of every feed. States start anew with each."""
        found = []
        for feed in samples:
            if self.here:
                self.model.reset()
            found.append([np.array(o) for o in self.run(None, feed)])
        return found


# -- beside float -----------------------------------------------------------------------------------------------------


def noise(got: Outputs, wanted: Outputs) -> list[float]:
    """Of each output: the power of the error over the power of the output, over all feeds. Outputs that are no floating
    point count the part of their elements that differ. NaN, and shapes that differ, are infinite noise."""
    found = []
    for i in range(len(wanted[0])):
        pairs = [(g[i], w[i]) for g, w in zip(got, wanted, strict=True)]
        if any(g.shape != w.shape for g, w in pairs):
            found.append(float("inf"))
        elif wanted[0][i].dtype.kind == "f":
            error = sum(float(np.square(g.astype(np.float64) - w).sum()) for g, w in pairs)
            power = sum(float(np.square(w.astype(np.float64)).sum()) for _, w in pairs)
            ratio = 0.0 if error == 0 else error / power if power > 0 else float("inf")
            found.append(ratio if np.isfinite(ratio) else float("inf"))
        else:
            found.append(float(np.mean([np.mean(g != w) for g, w in pairs])))
    return found


def agreement(got: Outputs, wanted: Outputs) -> float | None:
    """The part of the rows in which the first output's largest class is the same; None where it has no classes."""
    if not _has_classes(wanted):
        return None
    same = [_best(g[0]) == _best(w[0]) for g, w in zip(got, wanted, strict=True)]
    return float(np.mean(np.concatenate(same)))


def _has_classes(outputs: Outputs) -> bool:
    first = outputs[0][0]
    return first.ndim >= 2 and first.dtype.kind == "f" and first[0].size > 1 and max(first.shape[1:]) == first[0].size


def _best(array: np.ndarray) -> np.ndarray:
    return np.asarray(array.reshape(len(array), -1).argmax(1))


# -- evaluations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """``score(artifact)``: higher is better. ``metric`` is its name, ``samples`` how many it looks at, if known."""

    metric: str
    score: Evaluate
    samples: int | None = None


def of_labels(data: Labelled) -> Evaluation:
    """The score that fits the labels and a model's first output.

    ``accuracy`` where ``y`` holds class numbers: the largest score decides or, for an output of one number, whether
    it is above 0.5 (a probability) or above 0 (else). ``r2`` where ``y`` holds numbers of the output's own shape.
    """
    kind = "accuracy" if all(y.dtype.kind in "iub" for y in data.y) else "r2"
    rows = sum(len(y) for y in data.y)
    return Evaluation(kind, lambda model: _score(model.outputs(data.samples), data, kind), rows)


def _score(outputs: Outputs, data: Labelled, kind: str) -> float:
    first = [o[0] for o in outputs]
    if kind == "r2":
        y = np.concatenate([v.reshape(-1) for v in data.y]).astype(np.float64)
        got = np.concatenate([v.reshape(-1) for v in first]).astype(np.float64)
        if y.shape != got.shape:
            raise NervureError(f"y has {y.size} numbers, the model's first output {got.size}", where=data.samples.where)
        spread = float(np.square(y - y.mean()).sum())
        return 1 - float(np.square(y - got).sum()) / spread if spread else -float(np.square(y - got).mean())
    right: list[np.ndarray] = []
    for scores, y in zip(first, data.y, strict=True):
        flat = y.reshape(-1).astype(np.int64)
        if scores.ndim == 0 or len(scores) != len(flat):
            raise NervureError(
                f"y has {len(flat)} labels for a first output of shape {list(scores.shape)}",
                where=data.samples.where,
                hint="class numbers, one for each row of the output; or use an evaluation function",
            )
        wide = scores.reshape(len(scores), -1)
        if wide.shape[1] == 1:
            right.append((wide[:, 0] > _threshold(first)) == (flat > 0))
        else:
            if flat.min() < 0 or flat.max() >= wide.shape[1]:
                raise NervureError(
                    f"label {flat.max() if flat.min() >= 0 else flat.min()} is no class of the {wide.shape[1]}",
                    where=data.samples.where,
                )
            right.append(_best(wide) == flat)
    return float(np.mean(np.concatenate(right)))


def _threshold(scores: Sequence[np.ndarray]) -> float:
    low, high = min(float(s.min()) for s in scores), max(float(s.max()) for s in scores)
    return 0.5 if low >= 0 and high <= 1 else 0.0


def of_function(function: Any, text: str = "evaluation") -> Evaluation:
    """An evaluation by a function of one's own: it gets the compiled model and returns a number, higher is better."""

    def score(model: Any) -> float:
        found = function(model)
        try:
            return float(found)
        except (TypeError, ValueError) as error:
            why = f"it gave {type(found).__name__}"
            raise NervureError("the evaluation function must return one number", where=text, why=why) from error

    return Evaluation(text, score)


# -- budgets ----------------------------------------------------------------------------------------------------------


def parse_drop(value: str | float | None) -> float | None:
    """``0.5%`` and ``0.005`` are the same: half a point of an accuracy that is 1 at best."""
    return _parsed(value, "max_drop", "0.5% or 0.005")


def parse_noise(value: str | float | None) -> float | None:
    """The largest power of the outputs' error in parts of theirs: ``1%`` and ``0.01`` are that, ``20dB`` is the same
    as the least signal-to-noise ratio."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*dB\s*", value, re.IGNORECASE) if isinstance(value, str) else None
    if found:
        return float(10 ** (-float(found[1]) / 10))
    return _parsed(value, "max_sqnr_loss", "1%, 0.01 or 20dB")


def _parsed(value: str | float | None, name: str, example: str) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]-?\d+)?)\s*(%?)\s*", str(value))
    number = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= number <= 1:
        raise NervureError(f"{name} {value!r} is no part of a whole", hint=f"write it as {example}")
    return number
