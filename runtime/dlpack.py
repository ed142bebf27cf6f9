"""Arrays of other libraries (PyTorch, CuPy, JAX, ...) by DLPack: taken and given without a copy, with ctypes alone.

Source of structures and rules: DLPack 0.8 and its Python specification (``__dlpack__``, ``__dlpack_device__``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from ..errors import NervureError

CPU, CUDA, PINNED, MANAGED = 1, 2, 3, 13  # DLDeviceType
NAME = b"dltensor"  # of a capsule that nobody has taken
_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("owner", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_api = ctypes.pythonapi
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", _api))


def _abandoned(capsule: int) -> None:
    """A capsule goes: what nobody has taken from it is given up."""
    if _valid(capsule, NAME):
        address = _pointer(capsule, NAME)
        deleter = _Tensor.from_address(address).deleter
        if deleter:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)(address)


_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_abandoned)


def type_of(dtype: str) -> tuple[int, int]:
    """DLPack's type code and bits of a model's element type."""
    name = dtype.rstrip("0123456789")
    return _CODES[name], int(dtype[len(name) :] or 8)


def capsule_of(managed: int) -> Any:
    """A capsule for the managed tensor at that address, which belongs to whoever takes it."""
    return _new(managed, NAME, ctypes.cast(_destructor, ctypes.c_void_p))


def lies_on_gpu(value: Any) -> bool:
    """Whether ``value`` is an array in the memory of an Nvidia GPU."""
    ask: Callable[[], tuple[int, int]] | None = getattr(value, "__dlpack_device__", None)
    return ask is not None and int(ask()[0]) in (CUDA, MANAGED)


class Borrowed:
    """Somebody's array: ``address``, ``dtype`` (a model's word), ``shape``, ``device``. It stays as long as this."""

    __slots__ = ("_capsule", "_value", "address", "device", "dtype", "shape")

    def __init__(self, value: Any, stream: int) -> None:
        """``stream``: what reads the array is enqueued there; its owner lets that wait for what writes it."""
        self._value, self._capsule = value, value.__dlpack__(stream=stream)
        place = _pointer(id(self._capsule), NAME)
        tensor = _Tensor.from_address(place)
        rank = tensor.rank
        self.shape = tuple(tensor.shape[i] for i in range(rank))
        if tensor.strides and not _contiguous(self.shape, tuple(tensor.strides[i] for i in range(rank))):
            raise NervureError("an array on the GPU is not contiguous", hint="array.contiguous() makes a copy that is")
        names = {code: name for name, code in _CODES.items()}
        name = names.get(tensor.code, f"type {tensor.code} of ") if tensor.lanes == 1 else "vector of "
        self.dtype = "bool" if name == "bool" else f"{name}{tensor.bits}"
        self.address = (tensor.data or 0) + tensor.byte_offset
        self.device = int(tensor.device)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    if 0 in shape:
        return True
    wanted = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != wanted:
            return False
        wanted *= size
    return True
