"""Metrics: ``metric(y_true, y_pred) -> float32 [batch]``, one number for each sample, as losses are.

The training step averages them over the batch, so that a padded batch is exact. What is no mean over samples
(precision, recall, AUC) is computed from the predictions of a whole data set, not here. Every loss is a metric too.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ...compiler.types import TensorType
from ...errors import NervureError
from ..dsl import elementwise as e
from ..dsl.place import user_place
from ..dsl.promote import as_float, as_tensor
from ..dsl.reduce import argmax, sum
from ..dsl.tensor import Tensor
from . import losses
from .classification import SparseCategoricalCrossentropy
from .regression import MeanAbsoluteError, MeanSquaredError
from .samples import (
    PerSample,
    aligned,
    chosen,
    classes_of,
    is_class,
    labels,
    masked,
    misfit,
    normal,
    one_tensor,
    shown,
)
from .similarity import CosineSimilarity as _NegativeCosine


class Metric(PerSample):
    """A metric. One of your own has ``call(self, y_true, y_pred)``, or is a plain function of both.

    ``finish`` names what the host does to the mean over all samples (``"sqrt"``); None: nothing.
    """

    finish: ClassVar[str | None] = None


def _hits(x: Tensor) -> Tensor:
    return as_tensor(x, "float32")


class BinaryAccuracy(Metric):
    """The share of predictions on the right side of ``threshold``; for scores that is 0. Equal shapes [batch, ...]."""

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = float(threshold)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return _hits(e.equal(p > self.threshold, t > 0.5))


class CategoricalAccuracy(Metric):
    """Whether the largest prediction along ``axis`` is that of the class that one-hot y_true names. Equal shapes."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        classes_of(self.name, p, self.axis)
        return _hits(e.equal(argmax(t, self.axis), argmax(p, self.axis)))


class SparseCategoricalAccuracy(Metric):
    """Whether the largest prediction along ``axis`` is that of the class number y_true [batch, ...]."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        p = as_float(one_tensor(self.name, y_pred))
        classes_of(self.name, p, self.axis)
        t = labels(self.name, y_true, p, self.axis)
        return _hits(e.equal(argmax(p, self.axis), as_tensor(t, "int64")))

    target = SparseCategoricalCrossentropy.target


class Accuracy(Metric):
    """The accuracy that the shapes ask for, as Keras's ``"accuracy"``: binary for a single output, sparse for class
    numbers (also of predictions with the classes on axis 1), else categorical."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = one_tensor(self.name, y_true), one_tensor(self.name, y_pred)
        chosen = self._chosen(t, p)
        chosen.name = self.name
        return chosen.call(t, p)

    def _chosen(self, t: Tensor, p: Tensor) -> Metric:
        if p.ndim < 2 or p.shape[-1] == 1:
            return BinaryAccuracy()
        if t.shape == p.shape:
            return CategoricalAccuracy()
        behind = t.shape not in (p.shape[:-1], (*p.shape[:-1], 1)) and t.shape == (p.shape[0], *p.shape[2:])
        return SparseCategoricalAccuracy(axis=1 if behind else -1)


class SparseTopKCategoricalAccuracy(Metric):
    """Whether fewer than ``k`` predictions on the last axis are larger than that of the class number y_true."""

    name = "sparse_top_k_categorical_accuracy"

    def __init__(self, k: int = 5) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise NervureError(f"{self.name}: k must be a whole number from 1 on, got {k!r}", where=user_place().full)
        self.k = k

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        p = as_float(one_tensor(self.name, y_pred))
        if classes_of(self.name, p, -1) < self.k:
            raise misfit(self.name, f"k is {self.k}, y_pred {shown(p)} has fewer classes", "choose a smaller k")
        t = labels(self.name, y_true, p, -1)
        own = is_class(t, p, -1)
        known = e.logical_and(t >= 0, t < p.shape[-1])
        score = sum(masked(own, p), -1, keepdims=True)
        larger = sum(as_tensor(p > score, "float32"), -1)
        return _hits(e.logical_and(known, larger < float(self.k)))

    target = SparseCategoricalAccuracy.target
    axis = -1


class TopKCategoricalAccuracy(SparseTopKCategoricalAccuracy):
    """Whether fewer than ``k`` predictions are larger than that of the class that one-hot y_true names."""

    name = "top_k_categorical_accuracy"

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return super().call(argmax(t, -1), p)

    def target(self, prediction: TensorType) -> TensorType | None:
        return prediction


class RootMeanSquaredError(Metric, MeanSquaredError):
    """The root of the mean squared error over all samples: the step gives squares, the host takes the root."""

    finish = "sqrt"


class CosineSimilarity(Metric, _NegativeCosine):
    """cos of the angle between y_true and y_pred along ``axis``: 1 for equal directions."""

    sign = 1.0


NAMES: dict[str, type[PerSample]] = {
    "accuracy": Accuracy,
    "acc": Accuracy,
    "binary_accuracy": BinaryAccuracy,
    "categorical_accuracy": CategoricalAccuracy,
    "sparse_categorical_accuracy": SparseCategoricalAccuracy,
    "top_k_categorical_accuracy": TopKCategoricalAccuracy,
    "sparse_top_k_categorical_accuracy": SparseTopKCategoricalAccuracy,
    "root_mean_squared_error": RootMeanSquaredError,
    "rmse": RootMeanSquaredError,
    "cosine_similarity": CosineSimilarity,
    "cosine": CosineSimilarity,
}
_NO_MEANS = ("auc", "precision", "recall", "f1score", "f1", "rocauc", "confusionmatrix")


def get(given: Any) -> PerSample:
    """A metric of a name (its own or a loss's), a class, a metric or loss, or ``f(y_true, y_pred)``.

    A metric that is given by name is called so in the history, as in Keras.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise NervureError(
                f"a metric must be a name, a metric or f(y_true, y_pred), got {given!r}", where=user_place().full
            )
        return losses.get(given)
    if normal(given) in _NO_MEANS:
        raise NervureError(
            f"metric {given!r} is no mean over samples",
            where=user_place().full,
            hint="compute it from net.predict(x) over the whole data set, for example with sklearn.metrics",
        )
    made: PerSample = chosen("metric", given, {**losses.NAMES, **NAMES})()
    made.name = given
    return made


__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "CosineSimilarity",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "RootMeanSquaredError",
    "SparseCategoricalAccuracy",
    "SparseTopKCategoricalAccuracy",
    "TopKCategoricalAccuracy",
    "get",
]
