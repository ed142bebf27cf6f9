"""Compiled models from Python: ``load(path)`` gives a ``Session``, numpy arrays in, numpy arrays out.

Nothing but numpy and the standard library is needed. Loading a model runs its code: load only what you trust.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import NervureError
from .arrays import Pointers, check_array, empty, host_dtype
from .artifact import Artifact, Entry, Port, read_artifact
from .library import Library, open_library

__all__ = ["Session", "load"]

Arrays = Mapping[str, Any] | Sequence[Any]


def load(path: str | Path, threads: int = 1) -> Session:
    """Opens a model library that was compiled for this machine.

    ``threads`` workers run it (0 or 1: the calling thread alone). ``NervureError`` says what is wrong with the file, or
    that this CPU cannot run it; its code is loaded only after that.
    """
    artifact = read_artifact(path)
    artifact.check_host()
    return Session(open_library(artifact), threads)


class Session:
    """A model with its own memory: parameters, states and arena. Made by ``load`` or ``clone``.

    One thread may use it at a time (another one gets an error); ``clone()`` makes one for each thread. The GIL is
    released while the model runs.
    """

    def __init__(self, library: Library, threads: int = 1) -> None:
        if not 0 <= threads <= 256:
            raise NervureError(f"threads is {threads}", hint="give a number from 0 to 256")
        self.artifact: Artifact = library.artifact
        self.threads = threads
        self._library = library
        self._memory = empty(library.call("context_bytes", threads))
        context = ctypes.c_void_p()
        self._check(
            library.call("create", self._memory.ctypes.data, self._memory.nbytes, threads, ctypes.byref(context))
        )
        self._context = context
        self._run: Callable[..., int] = library.function("run")
        self._bound: tuple[Any, ...] = ()
        self._entries: dict[str, list[Entry]] = {}
        for entry in self.artifact.entries:
            self._entries.setdefault(entry.function, []).append(entry)
        self.close = weakref.finalize(self, _close, library, context, self._memory)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> list[str]:
        """Functions of the model, ``infer`` first."""
        return sorted(self._entries, key=lambda n: (n != "infer", n))

    def get_inputs(self, entry: str | None = None) -> list[Port]:
        """Inputs (``name``, ``shape``, ``type``, ``dtype``) of an entry, by default of the first."""
        return list(self.artifact.entry(entry or self.entries[0]).inputs)

    def get_outputs(self, entry: str | None = None) -> list[Port]:
        """Outputs (``name``, ``shape``, ``type``, ``dtype``) of an entry, by default of the first."""
        return list(self.artifact.entry(entry or self.entries[0]).outputs)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self, output_names: Sequence[str] | None, inputs: Mapping[str, Any], *, entry: str | None = None
    ) -> list[np.ndarray]:
        """Runs the model once; a list of outputs, all of them or those named, in that order.

        ``inputs`` are arrays by name, of exactly the model's dtypes and shapes (contiguous ones are not copied). Where
        the model was compiled for several shapes, those of the inputs choose.
        """
        chosen, arrays = self._choose(entry, inputs)
        wanted = self._wanted(chosen, output_names)
        outputs = [empty_like(port) for port in chosen.outputs]
        given, results = Pointers(arrays), Pointers(outputs)
        self._check(self._run(self._context, self._number(chosen), given.table, results.table))
        return [_valid(outputs, chosen.outputs, i) for i in wanted]

    def __call__(self, *arrays: Any, **named: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """``run`` with inputs in order or by name; the output, or a tuple where there are several."""
        ports = self.get_inputs()
        if len(arrays) > len(ports):
            raise NervureError(f"{len(arrays)} inputs given", why=f"the model takes {len(ports)}: {_list(ports)}")
        feeds = {port.name: array for port, array in zip(ports, arrays, strict=False)}
        twice = sorted(feeds.keys() & named.keys())
        if twice:
            raise NervureError(f"input {twice[0]!r} is given twice", hint="give it by place or by name")
        results = self.run(None, feeds | named)
        return results[0] if len(results) == 1 else tuple(results)

    def bind(
        self, inputs: Arrays | None = None, outputs: Arrays | None = None, *, entry: str | None = None
    ) -> list[np.ndarray]:
        """Checks arrays once, for many calls of ``invoke``, which reads and writes them in place.

        Without ``outputs`` (or for those not named) arrays are made. Returns all outputs in order. Outputs with a count
        hold their full bound.
        """
        feeds = self._named(inputs, self.artifact.entry(entry or self.entries[0]).inputs)
        chosen, arrays = self._choose(entry, feeds, copy=False)
        given = self._named(outputs, chosen.outputs)
        self._unknown(given, chosen.outputs, "output")
        held = [
            check_array(given[port.name], port, "output", copy=False, write=True)
            if port.name in given
            else empty_like(port)
            for port in chosen.outputs
        ]
        sources, targets = Pointers(arrays), Pointers(held)
        number = ctypes.c_int(self._number(chosen))
        self._bound = (self._context, number, sources.table, targets.table)
        self._kept = (sources, targets)
        return held

    def invoke(self) -> None:
        """Runs the model on the arrays given to ``bind``, without any further check."""
        status = self._run(*self._bound) if self._bound else -1
        if status:
            self._check(status)

    def reset(self) -> None:
        """States (recurrent state, key-value caches, ...) back to their initial values."""
        self._check(self._library.call("reset", self._context))

    def restore(self) -> None:
        """Parameters back to the values that the model was compiled with."""
        self._check(self._library.call("restore", self._context))

    def clone(self) -> Session:
        """Another session of the same model with memory of its own: parameters as they are now, states as at first."""
        twin = Session(self._library, self.threads)
        if self.artifact.params:
            twin.set_params(self.params())
        return twin

    # -- parameters and states -------------------------------------------------------------------------------------

    def params(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name."""
        return {p.name: self._view("param", i).copy() for i, p in enumerate(self.artifact.params)}

    def set_params(self, values: Mapping[str, Any]) -> None:
        """Sets some or all parameters; copies that were derived from them are rebuilt before the next run."""
        self._store("param", values)
        self._check(self._library.call("params_changed", self._context))

    def states(self) -> dict[str, np.ndarray]:
        """Copies of the states by name."""
        return {s.name: self._view("state", i).copy() for i, s in enumerate(self.artifact.states)}

    def set_states(self, values: Mapping[str, Any]) -> None:
        """Sets some or all states."""
        self._store("state", values)

    def _store(self, kind: str, values: Mapping[str, Any]) -> None:
        rows = self.artifact.params if kind == "param" else self.artifact.states
        ports = [Port(s.name, s.dtype, s.shape) for s in rows]
        self._unknown(values, ports, kind)
        checked = [(i, check_array(values[p.name], p, kind)) for i, p in enumerate(ports) if p.name in values]
        for i, array in checked:
            self._view(kind, i)[...] = array

    def _view(self, kind: str, index: int) -> np.ndarray:
        row = (self.artifact.params if kind == "param" else self.artifact.states)[index]
        address = self._library.call(kind, self._context, index)
        offset = address - self._memory.ctypes.data
        dtype = host_dtype(row.dtype)
        count = int(np.prod(row.shape, dtype=np.int64))
        return self._memory[offset : offset + count * dtype.itemsize].view(dtype).reshape(row.shape)

    # -- profiling -------------------------------------------------------------------------------------------------

    def profile(
        self, inputs: Mapping[str, Any] | None = None, *, runs: int = 10, entry: str | None = None
    ) -> list[dict[str, Any]]:
        """Mean times of the steps: the report's rows (name, op, flops, ...) with ``seconds``.

        Without ``inputs`` the model runs on zeros.
        """
        if inputs is None:
            inputs = {p.name: np.zeros(p.shape, host_dtype(p.dtype)) for p in self.get_inputs(entry)}
        chosen, _ = self._choose(entry, inputs)
        self.run(None, inputs, entry=chosen.name)  # warm, and derived copies fresh
        ticks = np.zeros(max(len(chosen.steps), 1), np.uint64)
        self._check(self._library.call("profile", self._context, None, None, ticks.ctypes.data))
        try:
            for _ in range(max(runs, 1)):
                self.run(None, inputs, entry=chosen.name)
        finally:
            self._check(self._library.call("profile", self._context, None, None, None))
        return [{**s, "seconds": int(t) * 1e-9 / max(runs, 1)} for s, t in zip(chosen.steps, ticks, strict=False)]

    # -- checks ----------------------------------------------------------------------------------------------------

    def _number(self, entry: Entry) -> int:
        return self.artifact.entries.index(entry)

    def _variants(self, entry: str | None) -> list[Entry]:
        name = entry or self.entries[0]
        return self._entries.get(name) or [self.artifact.entry(name)]

    def _choose(
        self, entry: str | None, inputs: Mapping[str, Any], *, copy: bool = True
    ) -> tuple[Entry, list[np.ndarray]]:
        """The variant whose input shapes fit, and the checked inputs in its order."""
        variants = self._variants(entry)
        chosen = variants[0]
        self._unknown(inputs, chosen.inputs, "input")
        missing = [p.name for p in chosen.inputs if p.name not in inputs]
        if missing:
            raise NervureError(
                f"input {missing[0]!r} is not given",
                where=str(self.artifact.path),
                why=f"inputs: {_list(chosen.inputs)}",
            )
        if len(variants) > 1:
            shapes = {name: np.shape(array) for name, array in inputs.items()}
            fitting = [v for v in variants if all(shapes[p.name] == p.shape for p in v.inputs)]
            if not fitting:
                raise NervureError(
                    "no compiled variant has these input shapes",
                    where=str(self.artifact.path),
                    why=f"got {', '.join(f'{n} {list(s)}' for n, s in shapes.items())}; "
                    + f"compiled for {' or '.join(_list(v.inputs) for v in variants)}",
                    hint="compile the model with this shape too (--shape)",
                )
            chosen = fitting[0]
        return chosen, [check_array(inputs[p.name], p, "input", copy=copy) for p in chosen.inputs]

    def _wanted(self, entry: Entry, names: Sequence[str] | None) -> list[int]:
        if names is None:
            return list(range(len(entry.outputs)))
        places = {p.name: i for i, p in enumerate(entry.outputs)}
        self._unknown({n: None for n in names}, entry.outputs, "output")
        return [places[n] for n in names]

    def _named(self, arrays: Arrays | None, ports: Sequence[Port]) -> Mapping[str, Any]:
        if arrays is None:
            return {}
        if isinstance(arrays, Mapping):
            return arrays
        if len(arrays) != len(ports):
            raise NervureError(f"{len(arrays)} arrays given for {len(ports)}: {_list(ports)}")
        return {port.name: array for port, array in zip(ports, arrays, strict=True)}

    def _unknown(self, given: Mapping[str, Any], ports: Sequence[Port], kind: str) -> None:
        known = {p.name for p in ports}
        for name in given:
            if name not in known:
                raise NervureError(
                    f"the model has no {kind} {name!r}", where=str(self.artifact.path), why=f"{kind}s: {_list(ports)}"
                )

    def _check(self, status: int) -> None:
        if status:
            self._fail(status)

    def _fail(self, status: int) -> NoReturn:
        if not self.close.alive:
            raise NervureError("this session is closed", where=str(self.artifact.path), hint="load the model again")
        if status == -1:
            raise NervureError("nothing is bound", hint="call bind(...) before invoke()")
        text = self._library.call("status_text", status).decode()
        hint = "one session for each thread: session.clone()" if text.startswith("the context is in use") else None
        raise NervureError(text, where=str(self.artifact.path), hint=hint)


def _close(library: Library, context: ctypes.c_void_p, memory: np.ndarray) -> None:
    """Ends the workers; ``memory`` is only kept alive until then."""
    library.call("destroy", context)


def empty_like(port: Port) -> np.ndarray:
    return np.empty(port.shape, host_dtype(port.dtype))


def _list(ports: Sequence[Port]) -> str:
    return ", ".join(f"{p.name} {p.dtype}{list(p.shape)}" for p in ports) or "none"


def _valid(outputs: Sequence[np.ndarray], ports: Sequence[Port], index: int) -> np.ndarray:
    """An output cut to the number of rows that its count output gives."""
    array, port = outputs[index], ports[index]
    if port.count is None:
        return array
    rows = int(outputs[port.count].reshape(-1)[0])
    return array[(slice(None),) * port.count_axis + (slice(0, rows),)]
