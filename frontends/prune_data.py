"""Data of a pruning: inputs and labels, and which part of them is held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.types import TensorType
from ..errors import NervureError
from .calibration import Labelled, Samples, calibration, labelled

EVERY = 5  # the fifth of each five samples is held out
LEAST = 10  # samples that can be divided


@dataclass(frozen=True)
class Data:
    """``train`` decides (scores, fine-tuning), ``test`` judges; ``said`` tells which samples those are. ``unlabelled``
    samples can decide, but not judge."""

    train: Labelled | None
    test: Labelled | None
    said: str = ""
    unlabelled: Samples | None = None

    @property
    def samples(self) -> Samples | None:
        return self.train.samples if self.train is not None else self.unlabelled


NONE = Data(None, None)


def read_data(data: Any, test: Any, types: Mapping[str, TensorType], *, labels: bool) -> Data:
    """The data as the model wants it. Without ``test`` every fifth sample of ``data`` is held out, wherever there are
    ten or more: files are often sorted by class. ``labels``: whether ``data`` must have them."""
    if data is None and test is None:
        return NONE
    judged = None if test is None else labelled(test, types)
    if data is None:
        return Data(None, judged, _said(judged))
    if not labels and not _has_labels(data):
        return Data(None, judged, _said(judged), calibration(data, types))
    whole = labelled(data, types)
    if judged is not None:
        return Data(whole, judged, _said(judged))
    count = len(whole.samples)
    if count < LEAST:
        return Data(whole, whole, f"all {_rows(whole)} samples, which decided, too: they are too few to hold some out")
    held = [i for i in range(count) if i % EVERY == EVERY - 1]
    rest = [i for i in range(count) if i % EVERY != EVERY - 1]
    judged = _part(whole, held)
    where = f"every {EVERY}th sample of {whole.samples.where} ({_rows(judged)} of {_rows(whole)}), held out"
    return Data(_part(whole, rest), judged, where)


def _has_labels(data: Any) -> bool:
    """Whether there is a ``y``; what cannot be told is taken for labelled, so that the error names what is missing."""
    from pathlib import Path

    from .calibration_files import read_npz

    if isinstance(data, str | Path) and Path(data).suffix == ".npz":
        return bool({"y", "labels"} & set(read_npz(Path(data))))
    if isinstance(data, Mapping):
        return bool({"y", "labels"} & set(map(str, data)))
    return isinstance(data, tuple | Labelled)


def _said(judged: Labelled | None) -> str:
    return "" if judged is None else f"{judged.samples.where} ({_rows(judged)} samples)"


def _rows(data: Labelled) -> int:
    return sum(len(y) for y in data.y)


def _part(data: Labelled, indices: list[int]) -> Labelled:
    return Labelled(data.samples.take(indices), [data.y[i] for i in indices])


def arrays(data: Labelled) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs by name and labels, samples along the first axis."""
    feeds = list(data.samples)
    names = list(feeds[0])
    return {n: np.concatenate([f[n] for f in feeds]) for n in names}, np.concatenate(data.y)


def check_labels(data: Labelled | None, output: np.ndarray) -> None:
    """``NervureError`` for class numbers that a model with this first ``output`` does not have."""
    if data is None or output.ndim < 2:
        return
    y = np.concatenate([np.asarray(v).reshape(-1) for v in data.y])
    classes = output[0].size
    if y.dtype.kind not in "iub" or classes < 2 or len(y) != _rows(data):
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise NervureError(
            f"label {low if low < 0 else high} is no class of the {classes}",
            where=data.samples.where,
            why=f"the model's first output has {classes} scores, for classes 0 to {classes - 1}",
            hint="number the classes from 0 on, as in the model's training",
        )
