"""What losses and metrics have in common: one number for each sample, shapes that fit, arguments and names."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ...compiler.types import TensorType, is_float
from ...errors import NervureError
from ..dsl import shaping
from ..dsl.block import snake
from ..dsl.elementwise import equal, where
from ..dsl.place import user_place
from ..dsl.promote import as_float, as_tensor
from ..dsl.reduce import mean
from ..dsl.tensor import Tensor
from ..dsl.trace import current, eager, leaves, rebuild, tracing

EPSILON = 1e-7  # Keras's: how far probabilities are kept from 0 and 1


def arguments(cls: type) -> tuple[list[inspect.Parameter], bool]:
    """What a class's constructor takes, through ``**options`` into its bases; and whether that is all."""
    found: dict[str, inspect.Parameter] = {}
    complete = False
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        given = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for parameter in given:
            found.setdefault(parameter.name, parameter)
        complete = not any(p.kind is p.VAR_KEYWORD for p in given)
        if complete:
            break
    named = [p for p in found.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return named, complete or not found


class Aliased(type):
    """Takes arguments under other frameworks' names (``ALIASES``), and ``name``; wrong ones are the user's mistake."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        aliases: Mapping[str, str] = getattr(cls, "ALIASES", {})
        given = {aliases.get(key, key): value for key, value in kwargs.items()}
        name = given.pop("name", None)
        takes, complete = arguments(cls)
        unknown = sorted(set(given) - {p.name for p in takes}) if complete else []
        try:
            if unknown:
                raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
            inspect.signature(cls.__init__).bind(None, *args, **given)  # type: ignore[misc]
        except TypeError as error:
            shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in takes)
            raise NervureError(
                f"{cls.__name__}: {error}", where=user_place().full, hint=f"{cls.__name__}({shown})"
            ) from None
        made = super().__call__(*args, **given)
        if name is not None:
            made.name = str(name)
        return made


class PerSample(metaclass=Aliased):
    """A function ``f(y_true, y_pred) -> float [batch]``: one number for each sample.

    One of your own has ``call(self, y_true, y_pred)``, written with nv's functions. What it returns is averaged over
    all axes but the first; a single number stands for every sample. Called on arrays, it computes at once.
    """

    name: str = ""
    outputs: ClassVar[int] = 1  # outputs of the network that it takes together (pairs, triplets)

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = snake(cls.__name__)

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        """The values, the batch on the first axis."""
        raise NotImplementedError(f"{type(self).__name__} has no call(self, y_true, y_pred)")

    def target(self, prediction: TensorType) -> TensorType | None:
        """The type of ``y_true`` for a network's output; None where there is no target."""
        return prediction

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        if tracing() is None:
            if any(isinstance(leaf, Tensor) for leaf in leaves([y_true, y_pred])):
                current()
            return eager(self.name, lambda: self(y_true, y_pred))
        y_pred = rebuild(y_pred, as_tensor)
        first = next(leaves(y_pred))
        return per_sample(self.name, self.call(rebuild(y_true, lambda t: _target(t, first)), y_pred), first)

    def __repr__(self) -> str:
        return f"<nervure {type(self).__name__} {self.name!r}>"


class Loss(PerSample):
    """A loss: ``loss(y_true, y_pred) -> [batch]``. One of your own defines ``call``, see ``losses``."""


class Wrapped(Loss):
    """A plain function ``f(y_true, y_pred)``."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", "loss").strip("<>")

    def call(self, y_true: Any, y_pred: Any) -> Tensor:
        return self.function(y_true, y_pred)  # type: ignore[no-any-return]


def _target(given: Any, like: Tensor) -> Tensor | None:
    """A target as a tensor; one of floats in the float type of the predictions."""
    if given is None:
        return None
    tensor = as_tensor(given)
    return as_tensor(tensor, like.dtype) if is_float(tensor.dtype) and is_float(like.dtype) else tensor


def misfit(name: str, what: str, hint: str, why: str | None = None) -> NervureError:
    """The error of targets and predictions that do not go together."""
    return NervureError(f"{name}: {what}", where=user_place().full, why=why, hint=hint)


def per_sample(name: str, x: Any, like: Tensor) -> Tensor:
    """The mean over all axes but the first; a scalar as one number for each sample of ``like``."""
    values = as_float(x)
    if values.ndim == 0 and like.ndim:
        return shaping.broadcast_to(values, (like.shape[0],))
    if values.ndim == 0 or not like.ndim or values.shape[0] != like.shape[0]:
        raise misfit(
            name,
            f"expected one value for each of the samples of {shown(like)}, got {shown(values)}",
            "the first axis is the batch: keep it",
        )
    return mean(values, tuple(range(1, values.ndim))) if values.ndim > 1 else values


def shown(x: Tensor) -> str:
    """A tensor's shape for messages."""
    return f"[{', '.join(map(str, x.shape))}]"


def one_tensor(name: str, x: Any) -> Tensor:
    """``x``, which must be one tensor."""
    if not isinstance(x, Tensor):
        found = "nothing" if x is None else f"{len(list(leaves(x)))} tensors"
        raise misfit(name, f"expected one tensor, got {found}", "give each output its own loss: loss=[..., ...]")
    return x


def aligned(name: str, y_true: Any, y_pred: Any) -> tuple[Tensor, Tensor]:
    """Both as tensors of y_pred's float type and shape. [batch] and [batch, 1] are made one; nothing is broadcast."""
    p = as_float(one_tensor(name, y_pred))
    t = as_tensor(one_tensor(name, y_true), p.dtype)
    if t.shape == p.shape:
        return t, p
    if (*t.shape, 1) == p.shape or t.shape == (*p.shape, 1):
        return shaping.reshape(t, p.shape), p
    raise misfit(name, f"y_true {shown(t)} does not fit y_pred {shown(p)}", _advice(t, p))


def _advice(t: Tensor, p: Tensor) -> str:
    if p.ndim and t.shape in (p.shape[:-1], (*p.shape[:-1], 1)):
        return "y_true looks like class numbers: use a sparse_... loss or metric, or nv.one_hot(y_true, classes)"
    if t.ndim == p.ndim and t.shape[:-1] == p.shape[:-1]:
        return f"the network has {p.shape[-1]} outputs a sample and y_true {t.shape[-1]}: make the last layer as wide"
    return "give both the same shape (a network's output has the batch on its first axis)"


def classes_of(name: str, p: Tensor, axis: int) -> int:
    """Number of classes of predictions; at least two."""
    if not p.ndim or not -p.ndim <= axis < p.ndim:
        raise misfit(name, f"y_pred {shown(p)} has no axis {axis} of classes", "predict [batch, classes]")
    if p.shape[axis] == 1:
        raise misfit(
            name,
            f"y_pred {shown(p)} has one class only",
            "for yes or no with a single output use binary_crossentropy and binary_accuracy",
            "a softmax over one class is always 1",
        )
    return int(p.shape[axis])


def labels(name: str, y_true: Any, p: Tensor, axis: int) -> Tensor:
    """Class numbers as int32 of y_pred's shape without its class axis."""
    t = as_tensor(one_tensor(name, y_true), "int32")
    at = axis % p.ndim
    wanted = (*p.shape[:at], *p.shape[at + 1 :])
    if t.shape == wanted:
        return t
    if t.shape in ((*wanted, 1), (*p.shape[:at], 1, *p.shape[at + 1 :])):
        return shaping.reshape(t, wanted)
    hint = f"class numbers have the shape [{', '.join(map(str, wanted))}]"
    if t.shape == p.shape:
        hint = "y_true looks one-hot: use the categorical_... loss or metric without sparse_, or nv.argmax(y_true, -1)"
    elif p.ndim > 2 and t.shape == (p.shape[0], *p.shape[2:]):
        hint = "the classes of y_pred are on axis 1: give axis=1"
    raise misfit(name, f"class numbers {shown(t)} do not fit y_pred {shown(p)}", hint)


def is_class(t: Tensor, p: Tensor, axis: int) -> Tensor:
    """bool of p's shape: whether an element belongs to the class that ``t`` names (never, for a number outside)."""
    at = axis % p.ndim
    numbers = shaping.reshape(shaping.arange(p.shape[at], dtype="int32"), (-1, *[1] * (p.ndim - 1 - at)))
    return equal(shaping.expand_dims(t, at), numbers)


def masked(mask: Tensor, x: Tensor) -> Tensor:
    """x where the mask holds, else 0."""
    return where(mask, x, 0.0)


# -- names -------------------------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    """One form for ``mean_squared_error``, ``MeanSquaredError`` and ``mean squared error``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def chosen(kind: str, given: str, table: Mapping[str, Any]) -> Any:
    """The entry of a name, however it is written; ``NervureError`` names the nearest ones."""
    found = {normal(name): entry for name, entry in table.items()}
    if normal(given) in found:
        return found[normal(given)]
    names = sorted(table)
    near = difflib.get_close_matches(given, names, 4, 0.5) or names
    raise NervureError(f"{kind} {given!r} is unknown", where=user_place().full, hint=f"use one of: {', '.join(near)}")


# -- arguments ---------------------------------------------------------------------------------------------------------


def positive(name: str, what: str, value: Any) -> float:
    """``value`` as a float above 0."""
    if not isinstance(value, int | float) or not value > 0:
        raise NervureError(f"{name}: {what} must be a number above 0, got {value!r}", where=user_place().full)
    return float(value)


def part(name: str, what: str, value: Any) -> float:
    """``value`` as a float in [0, 1)."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise NervureError(f"{name}: {what} must be a number in [0, 1), got {value!r}", where=user_place().full)
    return float(value)
