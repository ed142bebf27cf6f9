"""Compiled models from Python: ``load(path)`` gives a ``Session``, numpy arrays in, numpy arrays out.

Nothing but numpy and the standard library is needed. Loading a model runs its code: load only what you trust.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import NervureError
from .arrays import check_array, empty, host_dtype
from .artifact import Artifact, Entry, Port, read_artifact
from .device import DeviceArray, DeviceCall, device_call, pinned_array, require_gpu, run_device, upload_array
from .library import Library, open_library
from .variant import Variant, by_name, check_names, choose, port_list

__all__ = ["Session", "load"]

Arrays = Mapping[str, Any] | Sequence[Any]
Call = Callable[[], int]


def load(path: str | Path, threads: int = 1, device: int = 0) -> Session:
    """Opens a model library that was compiled for this machine.

    ``threads`` workers run it (0 or 1: the calling thread alone); a model for a GPU runs on that ``device``, by the
    driver's numbers. ``NervureError`` says what is wrong with the file, or that this machine cannot run it; its code is
    loaded only after that.
    """
    artifact = read_artifact(path)
    artifact.check_host()
    return Session(open_library(artifact), threads, device)


class Binding:
    """An entry point bound to arrays that it reads and writes in place; made by ``Session.binding``, called without
    arguments."""

    __slots__ = ("_call", "_session", "inputs", "outputs")

    def __init__(self, session: Session, call: Call, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]):
        self._session, self._call = session, call
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def __call__(self) -> None:
        status = self._call()
        if status:
            self._session._check(status)


class Session:
    """A model with its own memory: parameters, states and arena. Made by ``load`` or ``clone``.

    One thread may use it at a time (another one gets an error); ``clone()`` makes one for each thread. The GIL is
    released while the model runs.
    """

    def __init__(self, library: Library, threads: int = 1, device: int = 0) -> None:
        if not 0 <= threads <= 256:
            raise NervureError(f"threads is {threads}", hint="give a number from 0 to 256")
        self.artifact: Artifact = library.artifact
        self.threads, self.device = threads, device
        self._library = library
        self._memory = empty(library.call("context_bytes", threads))
        context = ctypes.c_void_p()
        create, which = ("create_on", device) if self.artifact.gpu else ("create", threads)
        self._check(library.call(create, self._memory.ctypes.data, self._memory.nbytes, which, ctypes.byref(context)))
        self._context = context
        self._run: Callable[..., int] = library.function("run")
        self._bound: Call | None = None
        self._kept: Any = None
        self._variants: dict[str, list[Variant]] = {}
        for number, entry in enumerate(self.artifact.entries):
            variant = Variant(entry, number)
            self._variants.setdefault(entry.function, []).append(variant)
            if entry.name != entry.function:
                self._variants.setdefault(entry.name, []).append(variant)
        self._default = "infer" if "infer" in self._variants else next(iter(self._variants), "infer")
        self.close = weakref.finalize(self, _close, library, context, self._memory)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> list[str]:
        """Functions of the model (``infer``, ``train_step``, ...)."""
        return list(dict.fromkeys(e.function for e in self.artifact.entries))

    def get_inputs(self, entry: str | None = None) -> list[Port]:
        """Inputs (``name``, ``shape``, ``type``, ``dtype``) of an entry, by default of ``infer``."""
        return list(self._entry(entry).inputs)

    def get_outputs(self, entry: str | None = None) -> list[Port]:
        """Outputs (``name``, ``shape``, ``type``, ``dtype``) of an entry, by default of ``infer``."""
        return list(self._entry(entry).outputs)

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self, output_names: Sequence[str] | None, inputs: Mapping[str, Any], *, entry: str | None = None
    ) -> list[np.ndarray]:
        """Runs the model once; a list of outputs, all of them or those named, in that order.

        ``inputs`` are arrays by name, of exactly the model's dtypes and shapes (contiguous ones are not copied). Where
        the model was compiled for several shapes, those of the inputs choose.
        """
        variant = choose(self._family(entry), inputs, self.artifact)
        arrays, outputs = variant.inputs(inputs), variant.outputs()
        places = None if output_names is None else variant.wanted(output_names, self.artifact)
        status = self._run(self._context, variant.number, *variant.tables(arrays, outputs))
        if status:
            self._fail(status)
        results = variant.trim(outputs)
        return results if places is None else [results[i] for i in places]

    def __call__(self, *arrays: Any, **named: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        """``run`` with inputs in order or by name; the output, or a tuple where there are several."""
        ports = self.get_inputs()
        if len(arrays) > len(ports):
            raise NervureError(f"{len(arrays)} inputs given", why=f"the model takes {len(ports)}: {port_list(ports)}")
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
        self._bound, *self._kept = self._bind(inputs, outputs, entry)
        return list(self._kept[1])

    def host_arrays(self, entry: str | None = None) -> dict[str, np.ndarray]:
        """New arrays for the inputs of an entry, by name, to be filled and bound: for a GPU in page-locked memory,
        which it reads without a detour."""
        make = partial(pinned_array, self) if self.artifact.gpu else lambda p: np.empty(p.shape, host_dtype(p.dtype))
        return {p.name: make(p) for p in self.get_inputs(entry)}

    def invoke(self) -> None:
        """Runs the model on the arrays given to ``bind``, without any further check."""
        status = self._bound() if self._bound else -1
        if status:
            self._check(status)

    def binding(
        self, inputs: Arrays | None = None, outputs: Arrays | None = None, *, entry: str | None = None
    ) -> Binding:
        """As ``bind``, but gives the bound call itself: several can be held at a time."""
        return Binding(self, *self._bind(inputs, outputs, entry))

    def reset(self) -> None:
        """States (recurrent state, key-value caches, ...) back to their initial values."""
        self._check(self._library.call("reset", self._context))

    def restore(self) -> None:
        """Parameters back to the values that the model was compiled with."""
        self._check(self._library.call("restore", self._context))

    def clone(self) -> Session:
        """Another session of the same model with memory of its own: parameters as they are now, states as at first."""
        twin = Session(self._library, self.threads, self.device)
        if self.artifact.params:
            twin.set_params(self.params())
        return twin

    # -- arrays on a GPU -------------------------------------------------------------------------------------------

    def run_device(
        self,
        output_names: Sequence[str] | None,
        inputs: Mapping[str, Any],
        *,
        entry: str | None = None,
        outputs: Arrays | None = None,
        stream: Any = None,
    ) -> list[Any]:
        """As ``run``, with arrays in the GPU's memory: those of PyTorch, CuPy and others that speak DLPack are read
        where they are (arrays of the host are copied there).

        Outputs are ``DeviceArray``s, which those libraries take without a copy, or the arrays given as ``outputs``;
        those with a count hold their full bound. With a ``stream`` (its handle, or a stream of PyTorch or CuPy) the run
        is enqueued there, and this returns at once: inputs must stay as they are until it is done.
        """
        return run_device(self, output_names, inputs, entry=entry, outputs=outputs, stream=stream)

    def device_binding(
        self, inputs: Arrays, outputs: Arrays | None = None, *, entry: str | None = None, stream: Any = None
    ) -> DeviceCall:
        """As ``binding``, with arrays in the GPU's memory: what is to be run often is checked once. ``outputs`` of the
        call has the arrays. Without a ``stream`` a call waits until it is done."""
        return device_call(self, inputs, outputs, entry, stream, upload=False)

    def device_array(self, values: Any) -> DeviceArray:
        """A copy of an array of the host in the GPU's memory."""
        require_gpu(self)
        return upload_array(self, np.asarray(values))

    def wait(self) -> None:
        """Until all that was enqueued on streams is done; ``NervureError`` for what failed on the way."""
        require_gpu(self)
        self._check(self._library.call("wait", self._context))

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
        """Sets some or all states; copies that were derived from them are rebuilt before the next run."""
        self._store("state", values)
        self._check(self._library.call("params_changed", self._context))

    def stored(self, kind: str, name: str) -> np.ndarray:
        """A ``"param"`` or ``"state"`` where it lies: what is read is its value after the last run (of a GPU, at the
        time of this call). Writing is for ``set_params`` and ``set_states``."""
        rows = self.artifact.params if kind == "param" else self.artifact.states
        found = self._view(kind, next(i for i, row in enumerate(rows) if row.name == name))
        found.flags.writeable = False
        return found

    def export_state(self) -> bytes:
        """All parameters and states as one blob with a checksum: that of ``<model>_export`` in C, the same bytes on
        every machine."""
        blob = np.empty(self.artifact.export_bytes, np.uint8)
        self._check(self._library.call("export", self._context, blob.ctypes.data, blob.nbytes))
        return blob.tobytes()

    def import_state(self, blob: bytes) -> None:
        """Sets all parameters and states from a blob; ``NervureError`` for a damaged one or one of another model, and
        nothing has changed then."""
        self._check(self._library.call("import", self._context, bytes(blob), len(blob)))

    def _store(self, kind: str, values: Mapping[str, Any]) -> None:
        rows = self.artifact.params if kind == "param" else self.artifact.states
        ports = [Port(s.name, s.dtype, s.shape) for s in rows]
        check_names(values, ports, kind, self.artifact)
        checked = [(i, check_array(values[p.name], p, kind)) for i, p in enumerate(ports) if p.name in values]
        for i, array in checked:
            self._view(kind, i)[...] = array

    def _view(self, kind: str, index: int) -> np.ndarray:
        row = (self.artifact.params if kind == "param" else self.artifact.states)[index]
        if self.artifact.gpu:
            self._check(self._library.call("fetch", self._context))
        address = self._library.call(kind, self._context, index)
        if address is None:
            raise NervureError("the session is in use by another thread", where=str(self.artifact.path))
        offset = address - self._memory.ctypes.data
        dtype = host_dtype(row.dtype)
        count = int(np.prod(row.shape, dtype=np.int64))
        return self._memory[offset : offset + count * dtype.itemsize].view(dtype).reshape(row.shape)

    # -- profiling -------------------------------------------------------------------------------------------------

    def profile(
        self, inputs: Mapping[str, Any] | None = None, *, runs: int = 10, entry: str | None = None
    ) -> list[dict[str, Any]]:
        """Mean times of the steps: the report's rows (name, op, flops, ...) with ``seconds``.

        Without ``inputs`` the model runs on zeros. States move on by ``runs + 1`` calls.
        """
        if inputs is None:
            inputs = {p.name: np.zeros(p.shape, host_dtype(p.dtype)) for p in self.get_inputs(entry)}
        chosen = choose(self._family(entry), inputs, self.artifact).entry
        self.run(None, inputs, entry=chosen.name)  # warm, and derived copies fresh
        ticks = np.zeros(max(len(chosen.steps), 1), np.uint64)
        self._check(self._library.call("profile", self._context, None, None, ticks.ctypes.data))
        try:
            for _ in range(max(runs, 1)):
                self.run(None, inputs, entry=chosen.name)
        finally:
            self._check(self._library.call("profile", self._context, None, None, None))
        return [{**s, "seconds": int(t) * 1e-9 / max(runs, 1)} for s, t in zip(chosen.steps, ticks, strict=False)]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _bind(
        self, inputs: Arrays | None, outputs: Arrays | None, entry: str | None
    ) -> tuple[Call, list[np.ndarray], list[np.ndarray]]:
        feeds = by_name(inputs, self._entry(entry).inputs)
        variant = choose(self._family(entry), feeds, self.artifact)
        arrays, held = variant.inputs(feeds, copy=False), variant.outputs()
        ports = variant.entry.outputs
        given = by_name(outputs, ports)
        check_names(given, ports, "output", self.artifact)
        for i, port in enumerate(ports):
            if port.name in given:
                held[i] = check_array(given[port.name], port, "output", copy=False, write=True)
            elif self.artifact.gpu:
                held[i] = pinned_array(self, port)
        call = partial(self._run, self._context, ctypes.c_int(variant.number), *variant.tables(arrays, held))
        return call, arrays, held

    def _family(self, entry: str | None) -> list[Variant]:
        """All variants of an entry point."""
        family = self._variants.get(entry or self._default)
        return family if family is not None else [Variant(self.artifact.entry(entry or self._default), 0)]

    def _entry(self, entry: str | None) -> Entry:
        return self._family(entry)[0].entry

    def _check(self, status: int) -> None:
        if status:
            self._fail(status)

    def _fail(self, status: int) -> NoReturn:
        end = getattr(self, "close", None)  # none yet while a session is made
        if end is not None and not end.alive:
            raise NervureError("this session is closed", where=str(self.artifact.path), hint="load the model again")
        if status == -1:
            raise NervureError("nothing is bound", hint="call bind(...) before invoke()")
        text = self._library.call("status_text", status).decode()
        hint = "one session for each thread: session.clone()" if text.startswith("the context is in use") else None
        raise NervureError(text, where=str(self.artifact.path), hint=hint)


def _close(library: Library, context: ctypes.c_void_p, memory: np.ndarray) -> None:
    """Ends the workers; ``memory`` is only kept alive until then."""
    library.call("destroy", context)
