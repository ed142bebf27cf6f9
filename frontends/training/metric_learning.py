"""Losses of metric learning that look at a whole batch: every pair, or the triplets that are hard. See ``losses``.

y_true are class numbers [batch], y_pred the vectors [batch, size]; which samples belong together, the class numbers
say. Padding in the batch would be compared with too: give whole batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...compiler.types import TensorType
from ..dsl import elementwise as e
from ..dsl import nn, reduce, shaping
from ..dsl.linalg import cdist
from ..dsl.promote import as_float, as_tensor
from ..dsl.tensor import Tensor
from .samples import Loss, masked, misfit, one_tensor, positive, shown

FAR = 1e9  # further than any two vectors


class BatchLoss(Loss):
    """The base: distances [batch, batch] and which pairs are of one class."""

    def __init__(self, margin: float = 1.0) -> None:
        self.margin = positive(self.name, "margin", margin)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        vectors, classes = as_float(one_tensor(self.name, y_pred)), one_tensor(self.name, y_true)
        if vectors.ndim != 2:
            raise misfit(self.name, f"expected vectors [batch, size], got {shown(vectors)}", "one output for a sample")
        count = vectors.shape[0]
        if classes.shape not in ((count,), (count, 1)):
            raise misfit(self.name, f"class numbers {shown(classes)} do not fit {shown(vectors)}", "give [batch]")
        column = shaping.reshape(as_tensor(classes, "int32"), (-1, 1))
        alike = e.equal(column, shaping.reshape(column, (1, -1)))
        other = as_tensor(~np.eye(count, dtype=bool))  # a sample is no partner of its own
        return self.pairs(cdist(vectors, vectors), e.logical_and(alike, other), e.logical_not(alike))

    def pairs(self, distance: Tensor, alike: Tensor, different: Tensor) -> Tensor:
        """The loss of each sample, from the distances and from who is its like and who is not; all [batch, batch]."""
        raise NotImplementedError

    def target(self, prediction: TensorType) -> TensorType | None:
        return prediction.with_shape(prediction.shape[:1]).with_dtype("int32")


class BatchContrastiveLoss(BatchLoss):
    """``ContrastiveLoss`` (Hadsell et al. 2006) of all pairs in the batch: d² for those of one class, max(margin - d,
    0)² for others; the mean over a sample's partners plus that over the others."""

    name = "batch_contrastive"

    def pairs(self, distance: Tensor, alike: Tensor, different: Tensor) -> Tensor:
        near, far = e.square(distance), e.square(nn.relu(self.margin - distance))
        return _mean(alike, near) + _mean(different, far)


class TripletHardLoss(BatchLoss):
    """The hardest triplet of each sample in its batch (Hermans et al. 2017): its furthest like, its nearest other.

    max(d(furthest like) - d(nearest other) + margin, 0), and 0 for a sample without a like; with ``soft`` log(1 +
    exp(...)) without a margin.
    """

    name = "triplet_hard"

    def __init__(self, margin: float = 1.0, soft: bool = False) -> None:
        super().__init__(margin)
        self.soft = soft

    def pairs(self, distance: Tensor, alike: Tensor, different: Tensor) -> Tensor:
        near = reduce.max(masked(alike, distance), 1)
        far = reduce.min(e.where(different, distance, FAR), 1)
        loss = nn.softplus(near - far) if self.soft else nn.relu(near - far + self.margin)
        return masked(reduce.any(alike, 1), loss)


class TripletSemiHardLoss(BatchLoss):
    """All pairs of one class, each with its semi-hard other (Schroff et al. 2015): the nearest one that is further away
    than the like; where there is none, the furthest one. The mean over a sample's likes.

    It builds [batch, batch, batch]: batches of a hundred or two.
    """

    name = "triplet_semihard"

    def pairs(self, distance: Tensor, alike: Tensor, different: Tensor) -> Tensor:
        to_like, to_other = shaping.expand_dims(distance, 2), shaping.expand_dims(distance, 1)  # [anchor, like, other]
        beyond = e.logical_and(shaping.expand_dims(different, 1), e.greater(to_other, to_like))
        nearest = reduce.min(e.where(beyond, to_other, FAR), 2)
        furthest = reduce.max(masked(different, distance), 1, keepdims=True)
        far = e.where(e.less(nearest, FAR), nearest, furthest)
        return _mean(alike, nn.relu(distance - far + self.margin))


def _mean(mask: Tensor, x: Tensor) -> Tensor:
    """The mean of a row's elements where the mask holds; 0 where it holds nowhere."""
    return reduce.sum(masked(mask, x), 1) / e.maximum(reduce.sum(as_tensor(mask, x.dtype), 1), 1.0)
