"""The loss of capsules. See ``losses``."""

from __future__ import annotations

from typing import Any

from ..dsl import elementwise as e
from ..dsl import nn
from ..dsl.promote import as_float
from ..dsl.reduce import sum
from ..dsl.tensor import Tensor
from .classification import SparseCategoricalCrossentropy
from .samples import Loss, classes_of, is_class, labels, one_tensor, part, positive


class MarginLoss(Loss):
    """max(m+ - l, 0)² for the length l of the class that y_true names, and ``absent`` max(l - m-, 0)² for each of the
    others, summed (Sabour, Frosst and Hinton 2017). y_true [batch] holds class numbers, y_pred [batch, classes]
    lengths, as ``layers.Length`` gives them for capsules.

    ``present`` m+ and ``tolerated`` m- are the lengths from which, and up to which, there is nothing to improve.
    """

    name = "margin"

    def __init__(self, present: float = 0.9, tolerated: float = 0.1, absent: float = 0.5) -> None:
        self.present = positive(self.name, "present", present)
        self.tolerated = part(self.name, "tolerated", tolerated)
        self.absent = positive(self.name, "absent", absent)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        p = as_float(one_tensor(self.name, y_pred))
        classes_of(self.name, p, -1)
        there = is_class(labels(self.name, y_true, p, -1), p, -1)
        missing = e.square(nn.relu(self.present - p))
        wrong = self.absent * e.square(nn.relu(p - self.tolerated))
        return sum(e.where(there, missing, wrong), -1)

    def target(self, prediction: Any) -> Any:
        return SparseCategoricalCrossentropy().target(prediction)
