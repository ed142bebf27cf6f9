"""Calibration samples as the calls of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import NervureError
from ..ir import Graph, Value

Feed = Mapping[str, np.ndarray]
Samples = Mapping[str, Any] | Sequence[Feed]


def feeds(graph: Graph, samples: Samples) -> list[dict[str, np.ndarray]]:
    """The inputs of one call after another.

    ``samples``: one array for each input with the samples along the first axis ([n, 3, 224, 224] or
    [n, 1, 3, 224, 224] for an input [1, 3, 224, 224]; what does not fill a batch is left out), or a sequence of calls
    (arrays by input name). ``NervureError`` where inputs are missing, unknown, of a wrong shape or kind, not finite,
    differ in number, or where there are none.
    """
    ports = {graph.tensor_name(Value(k)): graph.node(k).types[0] for k in graph.inputs}
    if isinstance(samples, Mapping):
        _names(samples, ports, "the calibration data")
        split = {name: _split(name, np.asarray(samples[name]), ports[name].dims) for name in sorted(ports)}
        counts = {name: len(part) for name, part in split.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{n}: {c}" for n, c in counts.items())
            raise NervureError("the inputs have different numbers of calibration samples", why=told)
        calls = [dict(zip(split, parts, strict=True)) for parts in zip(*split.values(), strict=True)]
    else:
        calls = [dict(call) for call in samples]
    if not calls:
        raise NervureError("no calibration samples", hint="give at least one; a hundred is usual")
    return [_call(i, call, ports) for i, call in enumerate(calls)]


def _names(given: Mapping[str, Any], ports: Mapping[str, Any], what: str) -> None:
    missing, unknown = sorted(set(ports) - set(given)), sorted(set(given) - set(ports))
    if missing or unknown:
        told = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
        raise NervureError(
            f"{what} does not fit the model's inputs",
            why=told,
            hint=f"one array for each of: {', '.join(sorted(ports))}",
        )


def _split(name: str, array: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return list(array)
    if shape and array.ndim == len(shape) and array.shape[1:] == shape[1:]:
        return [array[i : i + shape[0]] for i in range(0, len(array) - shape[0] + 1, shape[0])]
    if shape and shape[0] == 1 and array.ndim == len(shape) and array.shape[1:] == shape[1:]:
        return [part[None] for part in array]
    raise NervureError(
        f"calibration samples of {name!r} have the shape {list(array.shape)}",
        why=f"the input is {list(shape)}, and samples lie along the first axis",
    )


def _call(index: int, call: Feed, ports: Mapping[str, Any]) -> dict[str, np.ndarray]:
    _names(call, ports, f"calibration sample {index}")
    result = {}
    for name, wanted in sorted(ports.items()):
        array = np.asarray(call[name])
        if array.shape != wanted.dims:
            raise NervureError(
                f"calibration sample {index}, input {name!r}: shape {list(array.shape)}",
                why=f"the model takes {list(wanted.dims)}",
            )
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and wanted.dtype[0] in "iu"):
            raise NervureError(
                f"calibration sample {index}, input {name!r}: elements of {array.dtype}",
                why=f"the model takes {wanted.dtype}",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NervureError(
                f"calibration sample {index}, input {name!r}: NaN or infinite values",
                hint="mend or leave out the sample",
            )
        result[name] = np.ascontiguousarray(array, wanted.dtype)
    return result
