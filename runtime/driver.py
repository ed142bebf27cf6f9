"""What the Nvidia driver of this machine says: its version and its devices. ctypes and the standard library only.

Source of names and numbers: "CUDA Driver API" reference.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ..errors import NervureError

LIBRARY = "libcuda.so.1"
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CU_DEVICE_ATTRIBUTE_*


@dataclass(frozen=True)
class Device:
    """One GPU: ``architecture`` is its compute capability as a number (80 for 8.0), ``memory`` its bytes."""

    number: int
    name: str
    architecture: int
    multiprocessors: int
    memory: int


@dataclass(frozen=True)
class Driver:
    """The driver: ``cuda`` is the newest CUDA that it knows, ``(12, 4)``."""

    cuda: tuple[int, int]
    devices: tuple[Device, ...]


def find_driver(first: str = LIBRARY) -> Driver:
    """The driver and its devices; ``NervureError`` where there is none, or where it finds no device. ``first``: the
    library that is asked for before that of a real GPU."""
    try:
        code = _open(first)
    except OSError as error:
        raise NervureError(
            "there is no Nvidia driver here",
            why=f"{LIBRARY} cannot be loaded: {error}",
            hint="install Nvidia's driver for this GPU, or compile for a CPU (--target host)",
        ) from None
    try:
        _check(code, code.cuInit(0), "the driver does not start")
        number, count = ctypes.c_int(), ctypes.c_int()
        _check(code, code.cuDriverGetVersion(ctypes.byref(number)), "the driver does not say its version")
        _check(code, code.cuDeviceGetCount(ctypes.byref(count)), "the driver finds no devices")
        devices = tuple(_device(code, i) for i in range(count.value))
    except AttributeError as error:
        raise NervureError(
            "the Nvidia driver is too old", why=str(error), hint="install a driver for CUDA 12 or later"
        ) from None
    if not devices:
        raise NervureError("the Nvidia driver finds no GPU", hint="look at nvidia-smi, and at CUDA_VISIBLE_DEVICES")
    return Driver((number.value // 1000, number.value % 1000 // 10), devices)


def _open(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        if name == LIBRARY:
            raise
        return ctypes.CDLL(LIBRARY)


def _device(code: ctypes.CDLL, number: int) -> Device:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    _check(code, code.cuDeviceGet(ctypes.byref(handle), number), f"device {number} cannot be opened")
    _check(code, code.cuDeviceGetName(name, len(name), handle), f"device {number} has no name")
    _check(code, code.cuDeviceTotalMem_v2(ctypes.byref(memory), handle), f"device {number} does not say its memory")
    major, minor, count = (_attribute(code, handle, a) for a in (_MAJOR, _MINOR, _MULTIPROCESSORS))
    return Device(number, name.value.decode(errors="replace"), 10 * major + minor, count, memory.value)


def _attribute(code: ctypes.CDLL, handle: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    _check(code, code.cuDeviceGetAttribute(ctypes.byref(value), which, handle), "a device does not say what it is")
    return value.value


def _check(code: ctypes.CDLL, status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        said = code.cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value
        raise NervureError(
            what,
            why=f"CUDA error {status}" + (f": {said.decode(errors='replace')}" if said else ""),
            hint="nvidia-smi shows the state of driver and devices",
        )
