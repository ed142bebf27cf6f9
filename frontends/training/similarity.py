"""Losses of directions and distances: of vectors, of pairs, of triplets. See ``losses``."""

from __future__ import annotations

from typing import Any, ClassVar

from ...compiler.types import TensorType
from ..dsl import elementwise as e
from ..dsl import nn, shaping
from ..dsl.promote import as_float
from ..dsl.reduce import sum
from ..dsl.tensor import Tensor
from .samples import Loss, aligned, is_class, masked, misfit, positive, shown


def members(name: str, y_pred: Any, count: int) -> list[Tensor]:
    """The outputs that a loss compares: so many tensors [batch, size], or one [batch, count, size]."""
    if isinstance(y_pred, dict):
        y_pred = list(y_pred.values())
    if isinstance(y_pred, Tensor):
        if y_pred.ndim == 3 and y_pred.shape[1] == count:
            whole = as_float(y_pred)
            return [whole[:, i] for i in range(count)]
        found = shown(y_pred)
    else:
        if len(y_pred) == count and all(t.ndim == 2 and t.shape == y_pred[0].shape for t in y_pred):
            return [as_float(t) for t in y_pred]
        found = ", ".join(map(shown, y_pred))
    raise misfit(name, f"expected {count} outputs [batch, size], got {found}", f"or one output [batch, {count}, size]")


def unit(x: Tensor, axis: int = -1) -> Tensor:
    """x over its length along an axis; 0 stays 0, and has a gradient."""
    return x * e.rsqrt(e.maximum(sum(e.square(x), axis, keepdims=True), 1e-12))


def distance(a: Tensor, b: Tensor, shift: float = 0.0) -> Tensor:
    """|a - b + shift| over the last axis; equal points have a gradient of 0."""
    return e.sqrt(e.maximum(sum(e.square(a - b + shift), -1), 1e-24))


class CosineSimilarity(Loss):
    """-cos of the angle between y_true and y_pred along ``axis``: -1 for equal directions (Keras's sign)."""

    sign: ClassVar[float] = -1.0

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        t, p = aligned(self.name, y_true, y_pred)
        return self.sign * sum(unit(t, self.axis) * unit(p, self.axis), self.axis)


class CosineEmbeddingLoss(Loss):
    """1 - cos for pairs that belong together (y_true 1), max(cos - margin, 0) for others (-1 or 0); y_true [batch].

    y_pred: two outputs [batch, size], or one [batch, 2, size].
    """

    name = "cosine_embedding"
    outputs = 2

    def __init__(self, margin: float = 0.0) -> None:
        self.margin = float(margin)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        a, b = members(self.name, y_pred, 2)
        cosine = sum(unit(a) * unit(b), -1)
        t, cosine = aligned(self.name, y_true, cosine)
        return e.where(t > 0.0, 1.0 - cosine, nn.relu(cosine - self.margin))

    def target(self, prediction: TensorType) -> TensorType | None:
        return prediction.with_shape(prediction.shape[:1])


class ContrastiveLoss(Loss):
    """d² for pairs that belong together (y_true 1), max(margin - d, 0)² for others (0) (Hadsell et al. 2006).

    y_pred: the distances d [batch] or [batch, 1]; or two outputs [batch, size], or one [batch, 2, size].
    """

    name = "contrastive"
    outputs = 2

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = positive(self.name, "margin", margin)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        if isinstance(y_pred, Tensor) and (y_pred.ndim == 1 or y_pred.shape[1:] == (1,)):
            d = shaping.reshape(as_float(y_pred), (-1,))
        else:
            a, b = members(self.name, y_pred, 2)
            d = distance(a, b)
        t, d = aligned(self.name, y_true, d)
        return t * e.square(d) + (1.0 - t) * e.square(nn.relu(self.margin - d))

    target = CosineEmbeddingLoss.target


class TripletMarginLoss(Loss):
    """max(d(anchor, positive) - d(anchor, negative) + margin, 0) with Euclidean d (Schroff et al. 2015, PyTorch).

    y_pred: three outputs [batch, size], or one [batch, 3, size]; there is no y_true (None).
    """

    name = "triplet"
    outputs = 3

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = positive(self.name, "margin", margin)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        anchor, positive, negative = members(self.name, y_pred, 3)
        near, far = distance(anchor, positive, 1e-6), distance(anchor, negative, 1e-6)
        return nn.relu(near - far + self.margin)

    def target(self, prediction: TensorType) -> TensorType | None:
        return None


class InfoNCE(Loss):
    """Cross-entropy of telling each sample's partner from those of the batch's other samples (van den Oord et al.
    2018), by cosine over ``temperature``; with ``symmetric`` in both directions (Radford et al. 2021).

    y_pred: two outputs [batch, size], or one [batch, 2, size]; there is no y_true (None). Every row of the batch is
    compared with, padding too.
    """

    name = "info_nce"
    outputs = 2

    def __init__(self, temperature: float = 0.1, symmetric: bool = False) -> None:
        self.temperature, self.symmetric = positive(self.name, "temperature", temperature), symmetric

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        a, b = members(self.name, y_pred, 2)
        scores = unit(a) @ unit(b).T / self.temperature
        own = is_class(shaping.arange(a.shape[0], dtype="int32"), scores, 1)
        loss = -sum(masked(own, nn.log_softmax(scores, 1)), 1)
        if not self.symmetric:
            return loss
        return 0.5 * (loss - sum(masked(own, nn.log_softmax(scores, 0)), 0))

    target = TripletMarginLoss.target
