"""Arrays in a GPU's memory, and runs that read and write them without a copy."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NervureError
from . import dlpack
from .arrays import check_array, host_dtype
from .artifact import Port
from .library import Library
from .variant import Variant, by_name, check_names, choose

if TYPE_CHECKING:
    from .session import Session

DEFAULT_STREAM = 1  # CU_STREAM_LEGACY, which CUDA also calls 0


class Buffer:
    """Memory on the device, or page-locked memory of the host. It goes with the last object that knows it."""

    def __init__(self, library: Library, context: ctypes.c_void_p, nbytes: int, *, pinned: bool, check: Any) -> None:
        self.library, self.nbytes = library, nbytes
        handle = ctypes.c_void_p()
        check(library.call("buffer_create", context, nbytes, int(pinned), ctypes.byref(handle)))
        self.handle = handle
        self.address = int(library.call("buffer_address", handle) or 0)
        self._end = weakref.finalize(self, library.call, "buffer_release", handle)

    def copy(self, host: np.ndarray, *, to_host: bool) -> int:
        """A status. Waits for all that the device does."""
        return int(self.library.call("buffer_copy", self.handle, host.ctypes.data, host.nbytes, int(to_host)))


class DeviceArray:
    """A contiguous array in a GPU's memory: ``shape``, ``dtype`` (the model's word for it), ``device`` (its number).

    ``torch.from_dlpack(array)`` and ``cupy.from_dlpack(array)`` take it without a copy, ``numpy()`` copies it to the
    host.
    """

    def __init__(self, buffer: Buffer, dtype: str, shape: Sequence[int], device: int) -> None:
        self._buffer, self.dtype, self.shape, self.device = buffer, dtype, tuple(shape), device
        self._ready: tuple[int, Callable[[], None]] | None = None  # the stream that writes it, and how to wait for that

    @property
    def address(self) -> int:
        """Where it lies in the device's memory."""
        return self._buffer.address

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * host_dtype(self.dtype).itemsize

    def numpy(self) -> np.ndarray:
        """A copy on the host, after all that the device does; bfloat16 as uint16."""
        array = np.empty(self.shape, host_dtype(self.dtype))
        self._check(self._buffer.copy(array, to_host=True))
        return array

    def fill(self, values: Any) -> None:
        """Takes over the values of an array of the host, of the same dtype and shape."""
        array = check_array(values, Port("array", self.dtype, self.shape), "device")
        self._check(self._buffer.copy(array, to_host=False))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.numpy(), dtype)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(self, *, stream: int | None = None, **more: Any) -> Any:
        """A capsule; ``stream`` (-1: none) is where the array will be used, the default stream where None."""
        if more.get("copy"):
            raise BufferError("a device array is not copied: use the array that takes it")
        if self._ready is not None and stream != -1 and self._ready[0] != (stream or DEFAULT_STREAM):
            self._ready[1]()
        code, bits = dlpack.type_of(self.dtype)
        shape, managed = (ctypes.c_int64 * max(len(self.shape), 1))(*self.shape), ctypes.c_void_p()
        self._check(
            self._buffer.library.call(
                "buffer_export", self._buffer.handle, code, bits, len(self.shape), shape, ctypes.byref(managed)
            )
        )
        assert managed.value is not None
        return dlpack.capsule_of(managed.value)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype == "bfloat16":
            raise AttributeError("numpy has no bfloat16: use DLPack")
        kind = host_dtype(self.dtype).str
        stream = self._ready[0] if self._ready is not None else None
        return {"shape": self.shape, "typestr": kind, "data": (self.address, False), "version": 3, "stream": stream}

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)}, device={self.device})"

    def _check(self, status: int) -> None:
        if status:
            raise NervureError(self._buffer.library.call("status_text", status).decode())


def stream_handle(stream: Any) -> int:
    """The handle of a stream: a number, or an object of PyTorch, CuPy or of CUDA's own protocol."""
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        stream = (protocol() if callable(protocol) else protocol)[1]
    for name in ("cuda_stream", "ptr"):
        stream = getattr(stream, name, stream)
    if isinstance(stream, bool) or not isinstance(stream, (int, np.integer)):
        raise NervureError(
            f"no stream: {type(stream).__name__}", hint="give its handle, or a stream of PyTorch or CuPy"
        )
    return int(stream) or DEFAULT_STREAM


class DeviceCall:
    """A run over arrays in the device's memory, checked once; made by ``Session.device_binding``. ``inputs`` and
    ``outputs`` are the arrays; a call runs it."""

    def __init__(self, session: Session, variant: Variant, call: Callable[[], int], stream: int | None) -> None:
        self._session, self._call, self._variant, self._stream = session, call, variant, stream
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._held: list[Any] = []

    def __call__(self) -> None:
        status = self._call()
        if not status and self._stream is None:
            status = self._session._library.call("wait", self._session._context)
        if status:
            self._session._check(status)


def device_call(
    session: Session, inputs: Any, outputs: Any, entry: str | None, stream: Any, *, upload: bool
) -> DeviceCall:
    """An entry point bound to arrays of the device: those given, and new ones for outputs that are not.

    ``upload``: an input may be an array of the host, which is copied.
    """
    require_gpu(session)
    family = session._family(entry)
    feeds = by_name(inputs, family[0].entry.inputs)
    variant = choose(family, feeds, session.artifact)
    handle = None if stream is None else stream_handle(stream)
    where = handle if handle is not None else int(session._library.call("stream", session._context))
    ports = variant.entry.outputs
    given = by_name(outputs, ports)
    check_names(given, ports, "output", session.artifact)
    taken = [_taken(session, feeds[p.name], p, "input", where, upload) for p in variant.entry.inputs]
    results = [given[p.name] if p.name in given else empty(session, p.dtype, p.shape) for p in ports]
    places = [_taken(session, r, p, "output", where, False) for r, p in zip(results, ports, strict=True)]
    tables = [(ctypes.c_void_p * max(len(held), 1))(*[a.address for a in held]) for held in (taken, places)]
    function = session._library.function("run_on")
    run = partial(function, session._context, ctypes.c_int(variant.number), *tables, ctypes.c_void_p(where))
    call = DeviceCall(session, variant, run, handle)
    call.inputs, call.outputs = [feeds[p.name] for p in variant.entry.inputs], results
    call._held = [*taken, *places]
    for result in results:
        if isinstance(result, DeviceArray):
            result._ready = None if handle is None else (handle, partial(_settle, session))
    return call


def _settle(session: Session) -> None:
    """Waits for the session's runs; one that is closed has done so."""
    if session.close.alive:
        session.wait()


def _taken(
    session: Session, value: Any, port: Port, kind: str, stream: int, upload: bool
) -> DeviceArray | dlpack.Borrowed:
    """The array of one port, checked."""
    if isinstance(value, DeviceArray):
        found: DeviceArray | dlpack.Borrowed = value
        if value._ready is not None and value._ready[0] != stream:
            value._ready[1]()
    elif dlpack.lies_on_gpu(value):
        found = dlpack.Borrowed(value, stream)
    elif upload:
        return upload_array(session, check_array(value, port, kind), port.dtype)
    else:
        raise NervureError(
            f"{kind} {port.name!r} does not lie on the GPU: {type(value).__name__}",
            hint="give an array with __dlpack__ in the GPU's memory, or one made by session.device_array(...)",
        )
    if found.dtype != port.dtype or found.shape != port.shape:
        raise NervureError(
            f"{kind} {port.name!r}: expected {port.dtype}{list(port.shape)}, got {found.dtype}{list(found.shape)}"
        )
    if found.device != session.device:
        raise NervureError(
            f"{kind} {port.name!r} lies on device {found.device}, the model on device {session.device}",
            hint=f"copy it there, or load the model with device={found.device}",
        )
    return found


def require_gpu(session: Session) -> None:
    """``NervureError`` for a model that runs on the CPU."""
    if session.artifact.gpu is None:
        raise NervureError(
            "this model runs on the CPU", where=str(session.artifact.path), hint="compile it with --target cuda"
        )


def empty(session: Session, dtype: str, shape: Sequence[int]) -> DeviceArray:
    """A new array on the session's device."""
    nbytes = math.prod(shape) * host_dtype(dtype).itemsize
    buffer = Buffer(session._library, session._context, nbytes, pinned=False, check=session._check)
    return DeviceArray(buffer, dtype, shape, session.device)


def upload_array(session: Session, array: np.ndarray, dtype: str | None = None) -> DeviceArray:
    """A copy of ``array`` on the session's device."""
    array = np.ascontiguousarray(array)
    made = empty(session, dtype or array.dtype.name, array.shape)
    made.fill(array)
    return made


def pinned_array(session: Session, port: Port) -> np.ndarray:
    """An array of the host for a port, in memory that the device reads and writes without a detour."""
    nbytes = math.prod(port.shape) * host_dtype(port.dtype).itemsize
    buffer = Buffer(session._library, session._context, nbytes, pinned=True, check=session._check)
    block = (ctypes.c_uint8 * max(nbytes, 1)).from_address(buffer.address)
    block._nervure_buffer = buffer  # type: ignore[attr-defined]  # numpy keeps the block, the block keeps the buffer
    flat: np.ndarray = np.frombuffer(memoryview(block).cast("B"), np.uint8, nbytes)
    return flat.view(host_dtype(port.dtype)).reshape(port.shape)


def run_device(
    session: Session,
    names: Sequence[str] | None,
    inputs: Mapping[str, Any],
    *,
    entry: str | None,
    outputs: Any,
    stream: Any,
) -> list[Any]:
    """``Session.run_device``."""
    call = device_call(session, inputs, outputs, entry, stream, upload=True)
    places = None if names is None else call._variant.wanted(names, session.artifact)
    call()
    session._kept = call._held if stream is not None else None  # arrays stay while the device may still use them
    return call.outputs if places is None else [call.outputs[i] for i in places]
