"""Knowledge distillation: a network learns from the scores of a larger one beside the labels (Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...compiler.types import TensorType
from ...errors import NervureError
from ..dsl import elementwise as e
from ..dsl import nn
from ..dsl.network import Network
from ..dsl.promote import as_float, as_tensor
from ..dsl.reduce import sum
from ..dsl.tensor import Tensor
from ..dsl.trace import Frame, Root, Trace, current, leaves, public
from .classification import scores_behind
from .samples import Loss, PerSample, misfit, one_tensor, positive, shown


class Distillation(Loss):
    """``alpha * loss(y_true, y_pred) + (1 - alpha) * T² * KL(teacher || y_pred)``, softened by the temperature T::

        net.compile("adam", nv.losses.Distillation(teacher, "sparse_categorical_crossentropy"))

    ``teacher``: a network, or an ONNX file (path, bytes, ``ModelProto``). It is taken as it is now: its weights are
    constants of the step and run as at inference, so that a network can be pruned and learn from what it was before.
    It is fed what the network is fed, by the names of the inputs or, where these differ, in their order. Both give
    scores, or end in a softmax, whose scores are taken; classes are on ``axis``. With ``loss=None`` there are no
    labels (``fit(x)``), and ``alpha`` is 0. T² keeps the size of the gradient whatever the temperature.
    """

    def __init__(
        self, teacher: Any, loss: Any = None, alpha: float = 0.5, temperature: float = 4.0, axis: int = -1
    ) -> None:
        from . import losses

        self.teacher = teacher if isinstance(teacher, Network) else _loaded(teacher)
        self.hard: PerSample | None = None if loss is None else losses.get(loss)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
            raise misfit(self.name, f"alpha must be a number from 0 to 1, got {alpha!r}", "alpha=0.5")
        self.alpha = 0.0 if loss is None else float(alpha)
        self.temperature, self.axis = positive(self.name, "temperature", temperature), axis
        self._then = [(weight, weight.array) for weight in self.teacher.weights]

    def target(self, prediction: TensorType) -> TensorType | None:
        return None if self.hard is None else self.hard.target(prediction)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        p = as_float(one_tensor(self.name, y_pred))
        taught = as_float(self._taught(current()))
        if taught.shape != p.shape:
            raise misfit(
                self.name,
                f"the teacher gives {shown(taught)}, the network {shown(p)}",
                "both need the same classes",
            )
        soft = soft_loss(taught, p, self.temperature, self.axis)
        if self.hard is None:
            return soft
        hard: Tensor = self.hard(y_true, p)
        return hard * self.alpha + soft * (1.0 - self.alpha)

    def _taught(self, trace: Trace) -> Tensor:
        """What the teacher says of the network's inputs."""
        with _as_it_was(trace, self._then), trace.frame(Frame(Root("teacher"), "teacher", "Network")):
            found = list(leaves(self.teacher(*self._inputs(trace))))
        if len(found) != 1:
            raise misfit(self.name, f"the teacher has {len(found)} outputs", "cut it to one, or wrap it in a network")
        return found[0]  # type: ignore[no-any-return]

    def _inputs(self, trace: Trace) -> list[Tensor]:
        given, wanted = trace.features, list(self.teacher.inputs)
        if all(name in given for name in wanted):
            return [given[name] for name in wanted]
        if len(given) != len(wanted):
            raise misfit(
                self.name,
                f"the teacher takes {', '.join(wanted)}",
                f"the network is fed {', '.join(given) or 'nothing'}",
            )
        return list(given.values())


@public
def soft_loss(teacher: Any, student: Any, temperature: float = 4.0, axis: int = -1) -> Tensor:
    """``T² KL(softmax(teacher / T) || softmax(student / T))`` along ``axis``, for scores of equal shapes; of a softmax
    its scores are taken."""
    both = [_scores(as_float(as_tensor(p)), axis) for p in (teacher, student)]
    logs = [nn.log_softmax(p / temperature, axis) for p in both]
    return sum(e.exp(logs[0]) * (logs[0] - logs[1]), axis) * temperature**2


def _scores(p: Tensor, axis: int) -> Tensor:
    found = scores_behind(p, "softmax", axis)
    return p if found is None else found


@contextmanager
def _as_it_was(trace: Trace, then: Sequence[tuple[Any, np.ndarray]]) -> Iterator[None]:
    """The teacher's weights as they were, constants of the trace, which knows nothing of them afterwards: it may be
    the network itself that learns. It computes as at inference."""
    now = [weight.array for weight, _ in then]
    kept, penalties = (trace._weights, trace.stored, trace.training), len(trace.activities)
    trace._weights, trace.stored, trace.training = {}, {}, False
    try:
        for weight, array in then:
            weight.array = array
        yield
    finally:
        for (weight, _), array in zip(then, now, strict=True):
            weight.array = array
        trace._weights, trace.stored, trace.training = kept
        del trace.activities[penalties:]


def _loaded(source: Any) -> Network:
    from ...compiler.ir import Graph
    from ..onnx import load_network

    if isinstance(source, Graph):
        raise NervureError("a Graph is no teacher", hint="give the network, or the ONNX file")
    return load_network(source)


__all__ = ["Distillation", "soft_loss"]
