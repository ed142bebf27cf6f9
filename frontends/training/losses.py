"""Losses: ``loss(y_true, y_pred) -> [batch]``, one number for each sample, written with nv's functions.

Names, arguments and formulas are Keras's; PyTorch's names stand for the same losses with PyTorch's defaults (targets
come first all the same). The mean over a sample's other axes is taken here, that over the batch by the training step.
Losses of probabilities read the scores behind a network's last softmax or sigmoid, so that they are exact without
``from_logits``; elsewhere probabilities are kept 1e-7 away from 0 and 1.

A loss of your own is a function ``f(y_true, y_pred)``, or a class with ``call``::

    class Quantile(nv.losses.Loss):
        def call(self, y_true, y_pred):
            error = y_true - y_pred
            return nv.maximum(0.9 * error, -0.1 * error)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import NervureError
from ..dsl.place import user_place
from ..dsl.tensor import Tensor
from .capsules import MarginLoss
from .classification import (
    BCEWithLogitsLoss,
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    CrossEntropyLoss,
    Hinge,
    KLDivergence,
    KLDivLoss,
    NLLLoss,
    SparseCategoricalCrossentropy,
    SquaredHinge,
)
from .distillation import Distillation, soft_loss
from .metric_learning import BatchContrastiveLoss, TripletHardLoss, TripletSemiHardLoss
from .regression import (
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    PoissonNLLLoss,
    SmoothL1Loss,
)
from .samples import Loss, PerSample, Wrapped, chosen, misfit
from .similarity import ContrastiveLoss, CosineEmbeddingLoss, CosineSimilarity, InfoNCE, TripletMarginLoss

L1Loss, MSELoss, BCELoss, HuberLoss = MeanAbsoluteError, MeanSquaredError, BinaryCrossentropy, Huber

_NAMED = (
    MeanSquaredError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredLogarithmicError,
    Huber,
    SmoothL1Loss,
    LogCosh,
    Poisson,
    CategoricalCrossentropy,
    SparseCategoricalCrossentropy,
    CrossEntropyLoss,
    BinaryCrossentropy,
    NLLLoss,
    KLDivergence,
    Hinge,
    SquaredHinge,
    CategoricalHinge,
    MarginLoss,
    CosineSimilarity,
    CosineEmbeddingLoss,
    ContrastiveLoss,
    TripletMarginLoss,
    BatchContrastiveLoss,
    TripletHardLoss,
    TripletSemiHardLoss,
    InfoNCE,
)
NAMES: dict[str, type[Loss]] = {
    **{cls.name: cls for cls in _NAMED},
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
    "mape": MeanAbsolutePercentageError,
    "msle": MeanSquaredLogarithmicError,
    "bce": BinaryCrossentropy,
    "bce_with_logits": BCEWithLogitsLoss,
    "kld": KLDivergence,
    "kl_div": KLDivLoss,
    "l1": MeanAbsoluteError,
    "poisson_nll": PoissonNLLLoss,
}
NAMES |= {f"{name}_loss": cls for name, cls in NAMES.items()}  # PyTorch: "MSELoss" is the same name


def get(given: Any) -> PerSample:
    """A loss of a name (Keras's or PyTorch's, however it is written), a class, a ``Loss`` or ``f(y_true, y_pred)``."""
    if isinstance(given, str):
        return chosen("loss", given, NAMES)()  # type: ignore[no-any-return]
    if isinstance(given, type) and issubclass(given, PerSample):
        return given()
    if isinstance(given, PerSample):
        return given
    if callable(given):
        return Wrapped(given)
    raise NervureError(
        f"a loss must be a name, a loss or a function f(y_true, y_pred), got {given!r}", where=user_place().full
    )


def total(loss: Any, y_true: Any, y_pred: Any, loss_weights: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a network with any outputs: the weighted sum [batch], and each output's own loss by name.

    ``y_pred`` is a tensor, a list or a dictionary of tensors. ``loss`` is one loss for each output (None for one that
    has none), one for all of them, or one that takes them together (pairs, triplets). ``y_true`` and ``loss_weights``
    go the same way.
    """
    single = not isinstance(loss, dict | list | tuple)
    if isinstance(y_pred, Tensor) or (single and loss is not None and get(loss).outputs > 1):
        (one,) = [loss] if single else loss.values() if isinstance(loss, Mapping) else loss
        found = get(one)
        value = found(y_true, y_pred)
        return value, {found.name: value}
    outputs = dict(y_pred) if isinstance(y_pred, Mapping) else {f"output_{i}": p for i, p in enumerate(y_pred)}
    losses = _each("loss", loss, outputs)
    targets = _each("y_true", y_true, outputs)
    weights = _each("loss_weights", 1.0 if loss_weights is None else loss_weights, outputs)
    parts = {n: get(losses[n])(targets.get(n), p) for n, p in outputs.items() if losses.get(n) is not None}
    if not parts:
        raise misfit("loss", "no output of the network has a loss", "loss=[...] gives one for each output")
    combined: Any = None
    for name, part in parts.items():
        weight = 1.0 if weights.get(name) is None else weights[name]
        term = part if isinstance(weight, int | float) and weight == 1 else part * weight
        combined = term if combined is None else combined + term
    return combined, parts


def _each(what: str, given: Any, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What belongs to each output: given by name, in order, or once for all."""
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(outputs))
        if unknown:
            raise misfit(what, f"the network has no output {unknown[0]!r}", f"its outputs are: {', '.join(outputs)}")
        return dict(given)
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(outputs):
            raise misfit(what, f"{len(given)} given for {len(outputs)} outputs", f"outputs: {', '.join(outputs)}")
        return dict(zip(outputs, given, strict=True))
    return dict.fromkeys(outputs, given)


mean_squared_error = MeanSquaredError()
mean_absolute_error = MeanAbsoluteError()
mean_absolute_percentage_error = MeanAbsolutePercentageError()
mean_squared_logarithmic_error = MeanSquaredLogarithmicError()
huber = Huber()
log_cosh = LogCosh()
poisson = Poisson()
categorical_crossentropy = CategoricalCrossentropy()
sparse_categorical_crossentropy = SparseCategoricalCrossentropy()
binary_crossentropy = BinaryCrossentropy()
kl_divergence = KLDivergence()
hinge = Hinge()
squared_hinge = SquaredHinge()
categorical_hinge = CategoricalHinge()
cosine_similarity = CosineSimilarity()

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "Distillation",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "Loss",
    "MSELoss",
    "PoissonNLLLoss",
    "binary_crossentropy",
    "categorical_crossentropy",
    "categorical_hinge",
    "cosine_similarity",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "sparse_categorical_crossentropy",
    "soft_loss",
    "squared_hinge",
    "total",
    *(cls.__name__ for cls in _NAMED),
]
