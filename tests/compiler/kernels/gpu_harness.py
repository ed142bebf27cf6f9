"""Kernels of a GPU for ``harness``: on the GPU that is there, else on one that this CPU plays.

Both go through the driver's functions of ``libcuda.so.1``. The played GPU runs each plan twice, with its threads and
blocks in opposite orders and other values where nobody wrote: results that differ are a missing barrier, or a read of
what was not written. ``NERVURE_TEST_GPU=emulated`` never looks for a real one.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from nervure.compiler.kernels import device, worker
from nervure.compiler.kernels.spec import Draft
from nervure.targets import emulation, nvrtc
from nervure.targets.machine import Machine

_MAJOR, _MINOR, _SHARED_MOST = 75, 76, 97  # of CUdevice_attribute
_DYNAMIC_SHARED = 8  # of CUfunction_attribute
_ALIGN = 256  # of a buffer's first byte
Places = Sequence[Sequence[tuple[int, int]]]
_loaded: dict[tuple[str, str], Kernel] = {}


class Kernel(NamedTuple):
    """A function of the driver's, and how it is launched."""

    function: ctypes.c_void_p
    blocks: int
    threads: int
    shared: int


class Text(NamedTuple):
    """A kernel as its worker wrote it."""

    name: str
    source: str
    blocks: int
    threads: int
    shared: int
    contract: bool


class Driver:
    """``libcuda.so.1`` with a context of its first device."""

    def __init__(self, library: ctypes.CDLL, real: bool) -> None:
        self.library, self.real = library, real
        self.context, self.number = ctypes.c_void_p(), ctypes.c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(self.number), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.number)

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        why = "" if self.real else self.message()
        assert status == 0, f"{name}: {status} {why}"

    def message(self) -> str:
        self.library.emu_message.restype = ctypes.c_char_p
        return str(self.library.emu_message().decode())

    def attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, self.number)
        return value.value

    @contextmanager
    def current(self) -> Iterator[None]:
        self.call("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def load(self, image: bytes, names: Sequence[str]) -> list[ctypes.c_void_p]:
        module, found = ctypes.c_void_p(), []
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        for name in names:
            function = ctypes.c_void_p()
            self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            found.append(function)
        return found


@cache
def driver() -> Driver:
    """The GPU's driver where there is one with a device, else the one that stands in for it."""
    if os.environ.get("NERVURE_TEST_GPU") != "emulated":
        try:
            library = ctypes.CDLL("libcuda.so.1")
            count = ctypes.c_int()
            if library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0:
                return Driver(library, not hasattr(library, "emu_message"))
        except OSError:
            pass
    return Driver(ctypes.CDLL(str(emulation.driver())), False)


def written(draft: Draft, machine: Machine) -> Text:
    """The draft's kernel, as it reaches a worker and comes back from it."""
    template, config = json.loads(draft.spec.canonical)
    builder = worker.written(template, config, draft.spec.name, machine.record())
    assert builder.tasks == draft.tasks, f"the kernel has {builder.tasks} tasks, its plan says {draft.tasks}"
    made = device.text(builder, [i for i, a in enumerate(draft.args) if a.kind == "worker"])
    return Text(draft.spec.name, **made)


def prepare(drafts: Sequence[Draft], machine: Machine) -> None:
    """Compiles and loads many kernels at once: much faster than one by one."""
    todo = {d.spec.name: d for d in drafts if (d.spec.name, machine.name) not in _loaded}
    if not todo:
        return
    texts, gpu = [written(d, machine) for d in todo.values()], driver()
    with gpu.current():
        if gpu.real:
            functions = [gpu.load(_cubin(gpu, text), [text.name])[0] for text in texts]
        else:
            image = emulation.compile_kernels([(t.name, t.source) for t in texts])
            functions = gpu.load(image, [t.name for t in texts])
        for text, function in zip(texts, functions, strict=True):
            if text.shared > 48 << 10:
                gpu.call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, text.shared)
            _loaded[text.name, machine.name] = Kernel(function, text.blocks, text.threads, text.shared)


def _cubin(gpu: Driver, text: Text) -> bytes:
    if text.shared > gpu.attribute(_SHARED_MOST):
        pytest.skip("this GPU has less shared memory than the target")
    architecture = nvrtc.architecture(10 * gpu.attribute(_MAJOR) + gpu.attribute(_MINOR))
    return nvrtc.compile_cuda(text.source, architecture, contract=text.contract)


def run(phases: Sequence[Draft], machine: Machine, buffers: Sequence[Any], places: Places, outputs: range) -> None:
    """Launches the phases. ``buffers`` have ``raw`` bytes, and ``start``, where theirs begin; ``places`` are, for each
    argument of each phase, the number of a buffer and an offset. What was written is in ``raw`` after; ``outputs`` are
    the buffers that hold results."""
    prepare(phases, machine)
    kernels, gpu = [_loaded[d.spec.name, machine.name] for d in phases], driver()
    if gpu.real:
        _on_device(gpu, kernels, buffers, places)
        return
    before, runs = [b.raw.copy() for b in buffers], []
    for order in (1, 0):
        for buffer, raw in zip(buffers, before, strict=True):
            buffer.raw[...] = raw
        gpu.library.emu_order(order)
        _launch(gpu, kernels, [b.raw.ctypes.data + b.start for b in buffers], places)
        runs.append([buffers[i].raw.copy() for i in outputs])
    same = all(map(np.array_equal, *runs))
    assert same, "what the kernels write depends on the order of threads, or on what nobody wrote"


def _on_device(gpu: Driver, kernels: Sequence[Kernel], buffers: Sequence[Any], places: Places) -> None:
    held, bases = [], []
    with gpu.current():
        for buffer in buffers:
            at, size = ctypes.c_uint64(), buffer.raw.size
            gpu.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(size + _ALIGN))
            begin = at.value + -buffer.start % _ALIGN
            pointer = ctypes.c_void_p(buffer.raw.ctypes.data)
            gpu.call("cuMemcpyHtoD_v2", ctypes.c_uint64(begin), pointer, ctypes.c_size_t(size))
            held.append((at, begin, pointer, size))
            bases.append(begin + buffer.start)
        _launch(gpu, kernels, bases, places)
        for at, begin, pointer, size in held:
            gpu.call("cuMemcpyDtoH_v2", pointer, ctypes.c_uint64(begin), ctypes.c_size_t(size))
            gpu.call("cuMemFree_v2", at)


def _launch(gpu: Driver, kernels: Sequence[Kernel], bases: Sequence[int], places: Places) -> None:
    with gpu.current():
        for kernel, arguments in zip(kernels, places, strict=True):
            values = [ctypes.c_uint64(bases[buffer] + offset) for buffer, offset in arguments]
            given = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
            size = (kernel.blocks, 1, 1, kernel.threads, 1, 1, kernel.shared)
            gpu.call("cuLaunchKernel", kernel.function, *size, None, given, None)
        gpu.call("cuCtxSynchronize")
