"""Losses of classes and distributions. See ``losses``.

Losses of probabilities read the scores behind a network's last softmax or sigmoid.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from ...compiler.types import TensorType
from ..dsl import elementwise as e
from ..dsl import nn
from ..dsl.promote import as_float, as_tensor
from ..dsl.reduce import max, mean, sum
from ..dsl.tensor import Tensor
from .samples import EPSILON, Loss, aligned, classes_of, is_class, labels, masked, one_tensor, part


def scores_behind(p: Tensor, op: str, axis: int | None = None) -> Tensor | None:
    """The input of the softmax (along ``axis``) or sigmoid that made ``p``; None where something else did."""
    graph, value = p.trace.graph, p.value
    while graph.node(value).op == "identity":
        value = graph.args(value.node)[0] or value
    node = graph.node(value)
    if node.op != op or (axis is not None and node.attrs["axis"] != axis % p.ndim):
        return None
    found = graph.args(value.node)[0]
    return None if found is None else Tensor(p.trace, found)


def _warn_of_scores(name: str, p: Tensor, op: str, axis: int | None = None) -> None:
    if scores_behind(p, op, axis) is not None:
        warnings.warn(
            f"{name}: from_logits=True expects scores, but y_pred comes from {op}: leave one of the two out",
            stacklevel=2,
        )


def _log_probabilities(name: str, p: Tensor, axis: int, from_logits: bool) -> Tensor:
    if from_logits:
        _warn_of_scores(name, p, "softmax", axis)
        return nn.log_softmax(p, axis)
    scores = scores_behind(p, "softmax", axis)
    if scores is not None:
        return nn.log_softmax(scores, axis)
    return e.log(e.clip(p / sum(p, axis, keepdims=True), EPSILON, 1.0 - EPSILON))


class CategoricalCrossentropy(Loss):
    """-sum(y_true log(y_pred)) over the classes on ``axis``; y_true is one-hot, or any distribution. Equal shapes.

    ``label_smoothing`` gives that part of every target to all classes alike (Szegedy et al. 2016).
    """

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0, axis: int = -1) -> None:
        self.from_logits, self.axis = from_logits, axis
        self.label_smoothing = part(self.name, "label_smoothing", label_smoothing)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        p = as_float(one_tensor(self.name, y_pred))
        classes = classes_of(self.name, p, self.axis)
        t, p = aligned(self.name, y_true, p)
        if self.label_smoothing:
            t = t * (1.0 - self.label_smoothing) + self.label_smoothing / classes
        return -sum(t * _log_probabilities(self.name, p, self.axis, self.from_logits), self.axis)


class SparseCategoricalCrossentropy(Loss):
    """-log(y_pred[y_true]): y_true holds class numbers, [batch, ...]; y_pred has the classes on ``axis``.

    Where y_true is ``ignore_class``, or no class at all, the loss is 0 and counts in the mean. ``label_smoothing``
    is that of ``CategoricalCrossentropy``.
    """

    ALIASES: ClassVar = {"ignore_index": "ignore_class"}

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        label_smoothing: float = 0.0,
        axis: int = -1,
    ) -> None:
        self.from_logits, self.ignore_class, self.axis = from_logits, ignore_class, axis
        self.label_smoothing = part(self.name, "label_smoothing", label_smoothing)

    def _logs(self, p: Tensor) -> Tensor:
        return _log_probabilities(self.name, p, self.axis, self.from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        p = as_float(one_tensor(self.name, y_pred))
        classes = classes_of(self.name, p, self.axis)
        t, logs = labels(self.name, y_true, p, self.axis), self._logs(p)
        loss = -sum(masked(is_class(t, p, self.axis), logs), self.axis)
        if self.label_smoothing:
            known = e.logical_and(t >= 0, t < classes)
            everywhere = masked(known, mean(logs, self.axis))
            loss = (1.0 - self.label_smoothing) * loss - self.label_smoothing * everywhere
        if self.ignore_class is None or not 0 <= self.ignore_class < classes:
            return loss
        return masked(e.not_equal(t, int(self.ignore_class)), loss)

    def target(self, prediction: TensorType) -> TensorType | None:
        at = self.axis % prediction.rank
        return TensorType("int32", (*prediction.shape[:at], *prediction.shape[at + 1 :]))


class CrossEntropyLoss(SparseCategoricalCrossentropy):
    """Cross-entropy of scores [batch, classes, ...] as in PyTorch: y_true holds class numbers, or is float and holds a
    distribution for each sample."""

    name = "cross_entropy"

    def __init__(self, label_smoothing: float = 0.0, ignore_class: int | None = -100, axis: int = 1) -> None:
        super().__init__(True, ignore_class, label_smoothing, axis)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = one_tensor(self.name, y_true), one_tensor(self.name, y_pred)
        if t.shape != p.shape:
            return super().call(t, p)
        return CategoricalCrossentropy(True, self.label_smoothing, self.axis).call(t, p)


class NLLLoss(SparseCategoricalCrossentropy):
    """-y_pred[y_true] of log probabilities [batch, classes, ...] and class numbers (PyTorch)."""

    name = "nll"

    def __init__(self, ignore_class: int | None = -100, axis: int = 1) -> None:
        super().__init__(False, ignore_class, axis=axis)

    def _logs(self, p: Tensor) -> Tensor:
        return p


class BinaryCrossentropy(Loss):
    """-y_true log(y_pred) - (1 - y_true) log(1 - y_pred), averaged over a sample; y_true in [0, 1]. Equal shapes.

    ``label_smoothing`` moves that part of every target to 1/2.
    """

    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0) -> None:
        self.from_logits = from_logits
        self.label_smoothing = part(self.name, "label_smoothing", label_smoothing)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        if self.label_smoothing:
            t = t * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        if self.from_logits:
            _warn_of_scores(self.name, p, "sigmoid")
        scores = p if self.from_logits else scores_behind(p, "sigmoid")
        if scores is not None:
            return nn.softplus(scores) - scores * t
        p = e.clip(p, EPSILON, 1.0 - EPSILON)
        return -(t * e.log(p) + (1.0 - t) * e.log(1.0 - p))


class BCEWithLogitsLoss(BinaryCrossentropy):
    """Binary cross-entropy of scores (PyTorch)."""

    name = "binary_crossentropy"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__(True, label_smoothing)


class KLDivergence(Loss):
    """sum(y_true log(y_true / y_pred)) over the last axis, of distributions of equal shape (Kullback, Leibler 1951)."""

    name = "kl_divergence"

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        scores = scores_behind(p, "softmax", -1)
        logs = e.log(e.clip(p, EPSILON, 1.0)) if scores is None else nn.log_softmax(scores, -1)
        t = e.clip(t, EPSILON, 1.0)
        return sum(t * (e.log(t) - logs), -1)


class KLDivLoss(Loss):
    """The divergence of log probabilities y_pred from y_true (its logarithm with ``log_target``), as PyTorch with
    ``reduction="batchmean"``: the sum over a sample. Equal shapes [batch, ...]."""

    name = "kl_divergence"

    def __init__(self, log_target: bool = False) -> None:
        self.log_target = log_target

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        logs = t if self.log_target else e.log(e.maximum(t, 1e-37))
        parts = (e.exp(t) if self.log_target else t) * (logs - p)
        return sum(parts, tuple(range(1, parts.ndim)))


def _signed(t: Tensor) -> Tensor:
    """Targets as -1 and 1; given so, or as 0 and 1."""
    return e.where(t > 0.0, 1.0, as_tensor(-1.0, t.dtype))


class Hinge(Loss):
    """max(1 - y_true y_pred, 0), averaged over a sample; y_true is -1 or 1, or 0 or 1. Equal shapes [batch, ...]."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return nn.relu(1.0 - _signed(t) * p)


class SquaredHinge(Hinge):
    """max(1 - y_true y_pred, 0)², averaged over a sample; see ``Hinge``."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        return e.square(super().call(y_true, y_pred))


class CategoricalHinge(Loss):
    """max(1 + the largest other score - the score of the class, 0) over the last axis; y_true is one-hot."""

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return nn.relu(1.0 + max((1.0 - t) * p, -1) - sum(t * p, -1))
