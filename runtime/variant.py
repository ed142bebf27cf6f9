"""An entry point ready to be called: which of several compiled shapes fits, inputs checked, outputs made."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import NervureError, printable
from .arrays import check_array, host_dtype
from .artifact import Artifact, Entry, Port


class Variant:
    """One entry of an artifact with everything prepared that a call needs."""

    def __init__(self, entry: Entry, number: int) -> None:
        self.entry = entry
        self.number = number
        self._inputs = [(p.name, host_dtype(p.dtype), p.shape, p) for p in entry.inputs]
        self._outputs = [(p.shape, host_dtype(p.dtype)) for p in entry.outputs]
        self._input_table = ctypes.c_void_p * max(len(self._inputs), 1)
        self._output_table = ctypes.c_void_p * max(len(self._outputs), 1)
        self.counted = any(p.count is not None for p in entry.outputs)

    def fits(self, feeds: Mapping[str, Any]) -> bool:
        return all(np.shape(feeds[name]) == shape for name, _, shape, _ in self._inputs)

    def inputs(self, feeds: Mapping[str, Any], *, copy: bool = True) -> list[np.ndarray]:
        """The checked inputs in order. An array that is right as it is costs no call."""
        arrays = []
        for name, dtype, shape, port in self._inputs:
            array = feeds[name]
            right = type(array) is np.ndarray and array.shape == shape and array.dtype == dtype and array.flags.carray
            arrays.append(array if right else check_array(array, port, "input", copy=copy))
        return arrays

    def outputs(self) -> list[np.ndarray]:
        """New arrays for all outputs."""
        return [np.empty(shape, dtype) for shape, dtype in self._outputs]

    def tables(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> tuple[Any, Any]:
        """C tables of the arrays' addresses. They do not keep the arrays alive."""
        return (
            self._input_table(*[a.__array_interface__["data"][0] for a in inputs]),
            self._output_table(*[a.__array_interface__["data"][0] for a in outputs]),
        )

    def trim(self, outputs: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs with a count cut to the rows that are valid."""
        if not self.counted:
            return outputs
        trimmed = []
        for array, port in zip(outputs, self.entry.outputs, strict=True):
            if port.count is not None:
                rows = int(outputs[port.count].reshape(-1)[0])
                array = array[(slice(None),) * port.count_axis + (slice(0, rows),)]
            trimmed.append(array)
        return trimmed

    def wanted(self, names: Sequence[str], artifact: Artifact) -> list[int]:
        """Places of the named outputs."""
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise NervureError(f"output names are a list, got {type(names).__name__}", hint="None gives all outputs")
        places = {p.name: i for i, p in enumerate(self.entry.outputs)}
        check_names(names, self.entry.outputs, "output", artifact)
        return [places[n] for n in names]


def choose(variants: Sequence[Variant], feeds: Mapping[str, Any], artifact: Artifact) -> Variant:
    """The variant whose input shapes fit; ``NervureError`` for wrong names, or where none fits."""
    first = variants[0]
    ports = first.entry.inputs
    if type(feeds) is not dict and not isinstance(feeds, Mapping):
        raise NervureError(
            f"inputs are given by name, got {type(feeds).__name__}",
            why=f"inputs: {port_list(ports)}",
            hint="run(None, {name: array})",
        )
    if len(feeds) != len(ports) or any(p.name not in feeds for p in ports):
        check_names(feeds, ports, "input", artifact)
        missing = next(p.name for p in ports if p.name not in feeds)
        raise NervureError(
            f"input {missing!r} is not given", where=str(artifact.path), why=f"inputs: {port_list(ports)}"
        )
    if len(variants) == 1:
        return first
    for variant in variants:
        if variant.fits(feeds):
            return variant
    got = ", ".join(f"{name} {list(np.shape(array))}" for name, array in feeds.items())
    raise NervureError(
        "no compiled variant has these input shapes",
        where=str(artifact.path),
        why=f"got {got}; compiled for {' or '.join(port_list(v.entry.inputs) for v in variants)}",
        hint="compile the model with this shape too (--shape)",
    )


def check_names(given: Any, ports: Sequence[Port], kind: str, artifact: Artifact) -> None:
    """``NervureError`` for a name that is not among ``ports``."""
    known = {p.name for p in ports}
    for name in given:
        if not isinstance(name, str) or name not in known:
            raise NervureError(
                f"the model has no {kind} {name!r}", where=str(artifact.path), why=f"{kind}s: {port_list(ports)}"
            )


def by_name(arrays: Mapping[str, Any] | Sequence[Any] | None, ports: Sequence[Port]) -> Mapping[str, Any]:
    """Arrays given in order, or by name, by name."""
    if arrays is None:
        return {}
    if isinstance(arrays, Mapping):
        return arrays
    if len(arrays) != len(ports):
        raise NervureError(f"{len(arrays)} arrays given for {len(ports)}: {port_list(ports)}")
    return {port.name: array for port, array in zip(ports, arrays, strict=True)}


def port_list(ports: Sequence[Port]) -> str:
    """Ports in words, for messages."""
    return ", ".join(f"{printable(p.name)} {p.dtype}{list(p.shape)}" for p in ports) or "none"
