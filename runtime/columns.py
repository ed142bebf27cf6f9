"""What a user gives as data, as arrays that a compiled step can read: by name, checked, one row per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import NervureError, printable
from .arrays import host_dtype
from .artifact import Port

Columns = dict[str, np.ndarray]


def as_array(value: Any, name: str) -> np.ndarray:
    """``value`` as a numpy array: arrays, lists of numbers, tensors of other libraries."""
    for step in ("detach", "cpu"):  # tensors that know their gradient, or lie on another device
        value = getattr(value, step)() if hasattr(value, step) else value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise NervureError(f"{name} is no array", why=str(error)) from error
    if array.dtype.kind not in "bfiu" and array.dtype.name != "bfloat16":
        raise NervureError(
            f"{name}: values of type {array.dtype} cannot be trained on",
            why="numbers in an array of one shape are needed" if array.dtype == object else None,
            hint="turn categories and texts into numbers first",
        )
    return array


def columns(value: Any, ports: Sequence[Port], kind: str) -> Columns:
    """The arrays for ``ports``, by name: from one array, a list of them or a mapping. ``kind`` is for messages."""
    if not ports:
        return {}
    names = ", ".join(printable(p.name) for p in ports)
    if value is None:
        raise NervureError(f"no {kind} given", why=f"the step takes {names}")
    if isinstance(value, Mapping):
        missing = [p.name for p in ports if p.name not in value]
        if missing:
            raise NervureError(f"{kind} {missing[0]!r} is not given", why=f"the step takes {names}")
        given = [value[p.name] for p in ports]
    elif len(ports) == 1:
        alone = isinstance(value, list | tuple) and len(value) == 1 and np.ndim(value[0]) == len(ports[0].shape)
        given = [value[0] if alone else value]
    elif isinstance(value, list | tuple) and len(value) == len(ports):
        given = list(value)
    else:
        raise NervureError(f"{len(ports)} arrays are needed for {kind}", why=f"the step takes {names}")
    found = {p.name: _column(v, p, kind) for p, v in zip(ports, given, strict=True)}
    _same_length(found)
    return found


def _same_length(found: Columns) -> None:
    counts = {name: len(array) for name, array in found.items()}
    if len(set(counts.values())) > 1:
        raise NervureError(
            "the arrays have different numbers of samples", why=", ".join(f"{k}: {n}" for k, n in counts.items())
        )


def joined(x: Columns, y: Columns, weights: np.ndarray | None) -> tuple[Columns, np.ndarray | None, int]:
    """Inputs and targets in one mapping, with the number of samples."""
    found = {**x, **y}
    _same_length(found if weights is None else {**found, "sample_weight": weights})
    return found, weights, len(next(iter(found.values()), ()))


def _column(value: Any, port: Port, kind: str) -> np.ndarray:
    name = f"{kind} {printable(port.name)!r}"
    array = as_array(value, name)
    sample = port.shape[1:]
    if array.ndim == 0:
        raise NervureError(f"{name}: one number is no data set", hint="give an array with one row per sample")
    if len(array) == 0:
        array = array.reshape(0, *sample)
    if array.shape[1:] != sample and _trim(array.shape[1:]) == _trim(sample):
        array = array.reshape(len(array), *sample)  # labels as a column, pictures without their one channel
    if array.shape[1:] != sample:
        raise NervureError(
            f"{name}: a sample has shape {list(array.shape[1:])}, the step takes {list(sample)}",
            why=f"the array has shape {list(array.shape)}, its first axis counts the samples",
            hint=_hint(array, port, kind),
        )
    return np.ascontiguousarray(_typed(array, port, name))


def _trim(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of length 1 at the end."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _hint(array: np.ndarray, port: Port, kind: str) -> str:
    sample = port.shape[1:]
    if kind == "target" and array.ndim == 1 and len(sample) == 1:
        return "class numbers given where one-hot rows are taken: use a sparse loss, or one-hot rows"
    if kind == "target" and array.ndim == 2 and not sample:
        return "one-hot rows given where class numbers are taken: y.argmax(1), or a loss for one-hot rows"
    if array.shape == sample:
        return "a single sample: add the first axis, array[None]"
    if array[:1].size == int(np.prod(sample, dtype=np.int64)):
        return f"reshape it: array.reshape(-1, {', '.join(map(str, sample))})"
    return "resize or transpose the data, or compile the network for this shape"


def _typed(array: np.ndarray, port: Port, name: str) -> np.ndarray:
    """Of a dtype whose values the port's can take; narrow numbers stay narrow until they are in the batch."""
    want = host_dtype(port.dtype)
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16) if port.dtype == "bfloat16" else array.astype(np.float32)
    if array.dtype == want or (want.kind == "f" and port.dtype != "bfloat16"):
        return array
    if array.dtype.kind == "f":
        if port.dtype == "bfloat16" or (array.size and not np.array_equal(array, np.trunc(array))):
            raise NervureError(
                f"{name}: {array.dtype} given where {port.dtype} is taken", hint=f"array.astype({want.name!r})"
            )
        if not np.isfinite(array).all():
            raise NervureError(f"{name}: NaN or infinite values where {port.dtype} is taken")
    low, high = (0, 1) if want.kind == "b" else (np.iinfo(want).min, np.iinfo(want).max)
    if array.size and array.dtype.kind != "b" and not (array.min() >= low and array.max() <= high):
        raise NervureError(f"{name}: values from {array.min()} to {array.max()} do not fit {port.dtype}")
    return array.astype(want) if array.dtype.kind == "f" else array


def check_labels(array: np.ndarray, classes: int, name: str) -> None:
    """``NervureError`` where a class number is not from 0 to ``classes - 1``."""
    if array.size == 0:
        return
    low, high = array.min(), array.max()
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        place = np.argwhere(array == wrong)[0]
        raise NervureError(
            f"labels out of range: {wrong} in target {printable(name)!r}",
            why=f"the network has {classes} classes, so labels are 0 to {classes - 1}; first seen at sample {place[0]}",
            hint="count labels from 0, or give the last layer more units",
        )


def sample_weights(value: Any, class_weight: Mapping[int, float] | None, targets: Columns) -> np.ndarray | None:
    """One factor per sample as float32 [samples], from both ways of giving them; None without either."""
    weights = None
    if value is not None:
        weights = as_array(value, "sample_weight").astype(np.float32)
        if weights.ndim == 2 and weights.shape[1] == 1:
            weights = weights[:, 0]
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
            raise NervureError(
                f"sample_weight has shape {list(np.shape(value))}",
                why="one number per sample is needed, none negative, infinite or NaN",
            )
    if class_weight is None:
        return weights
    if len(targets) != 1:
        raise NervureError("class_weight needs one target", hint="give sample_weight instead")
    (labels,) = targets.values()
    labels = labels.argmax(-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    kinds, places = np.unique(labels, return_inverse=True)
    factors = np.array([class_weight.get(int(k), 1.0) for k in kinds], np.float32)
    chosen = factors[places.reshape(-1)] if len(kinds) else np.zeros(0, np.float32)
    return chosen if weights is None else weights * chosen
