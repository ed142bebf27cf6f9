"""TensorProto -> numpy, and nothing that a hostile file says about itself is believed before it is checked."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import NervureError

MAX_BYTES = 1 << 33  # of one tensor: beyond this a file is taken for broken or hostile

MAX_DENSE = 1 << 28  # of a sparse tensor that is written out

# ONNX element type -> ours. Narrow integers and float8 have no type of their own here: constants are widened.
DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BFLOAT16: "bfloat16",
}
WIDENED: dict[str, str] = {
    "INT4": "int8",
    "UINT4": "uint8",
    "INT2": "int8",
    "UINT2": "uint8",
    "FLOAT8E4M3FN": "float32",
    "FLOAT8E4M3FNUZ": "float32",
    "FLOAT8E5M2": "float32",
    "FLOAT8E5M2FNUZ": "float32",
    "FLOAT8E8M0": "float32",
    "FLOAT4E2M1": "float32",
}
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def type_name(data_type: int) -> str:
    """ONNX's name of an element type, for messages and for the widened ones."""
    names = TensorProto.DataType
    return str(names.Name(data_type)) if data_type in names.values() else f"element type {data_type}"


def declared(tensor: TensorProto) -> str:
    """ONNX's name of the type in which the file stores the tensor (``INT4``, ``FLOAT``, ...)."""
    return type_name(tensor.data_type)


class ExternalData:
    """Weights beside the model file: only regular files inside the model's own folder are ever opened."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder.resolve() if folder is not None else None

    def read(self, tensor: TensorProto, where: str, expected: int) -> bytes:
        """The tensor's bytes; ``NervureError`` for a place outside the folder or a wrong size."""
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        path = self._inside(location, where)
        try:
            offset, length = int(entries.get("offset", 0) or 0), int(entries.get("length", expected) or expected)
            size = path.stat().st_size
        except (ValueError, OSError) as error:
            raise NervureError(f"external data {location!r} cannot be read", where=where, why=str(error)) from None
        if offset < 0 or length != expected or offset + length > size:
            raise NervureError(
                "external data has the wrong size",
                where=where,
                why=f"the tensor takes {expected} bytes; {length} at offset {offset} are named, the file has {size}",
                hint="copy the model together with its data files again",
            )
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise NervureError(f"external data {location!r} cannot be read", where=where, why=str(error)) from None

    def _inside(self, location: str, where: str) -> Path:
        hint = "external data must lie in the model's own folder or below it, named relative to it"
        if self.folder is None:
            raise NervureError("the model has external data, but was not read from a file", where=where, hint=hint)
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or os.path.isabs(location) or ".." in parts or ":" in parts[0]:
            raise NervureError(
                "external data outside of the model's folder is refused", where=where, why=location, hint=hint
            )
        try:
            path = (self.folder / location).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise NervureError("external data is missing", where=where, why=str(error), hint=hint) from None
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise NervureError(
                "external data outside of the model's folder is refused", where=where, why=location, hint=hint
            )
        return path


def dims_of(tensor: TensorProto, where: str) -> tuple[int, ...]:
    dims = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in dims) or math.prod(dims) > MAX_BYTES or len(dims) > 64:
        raise NervureError("a stored tensor has an impossible shape", where=where, why=str(list(dims)[:64]))
    return dims


def to_array(tensor: TensorProto, where: str, external: ExternalData) -> np.ndarray:
    """The tensor as a read-only array of one of our element types (int4 and float8 widened).

    Raises ``NervureError`` where the declared shape and the stored bytes disagree.
    """
    name = declared(tensor)
    dtype = DTYPES.get(tensor.data_type) or WIDENED.get(name)
    if dtype is None:
        raise NervureError(f"tensors of {name} are not supported", where=where, hint="numbers and booleans are")
    dims = dims_of(tensor, where)
    count = math.prod(dims)
    bits = _BITS.get(name) or _itemsize(tensor.data_type) * 8
    expected = (count * bits + 7) // 8
    if tensor.data_location == TensorProto.EXTERNAL:
        raw: bytes | None = external.read(tensor, where, expected)
    else:
        raw = tensor.raw_data if tensor.HasField("raw_data") else None
    if raw is not None:
        if len(raw) != expected:
            raise _truncated(where, dims, name, f"{expected} bytes", f"{len(raw)}")
        if name in WIDENED:
            return _widened(_inline(tensor, raw), dtype, dims)
        return np.frombuffer(raw, dtype=_numpy(dtype)).reshape(dims)
    stored = sum(len(getattr(tensor, f)) for f in _FIELDS)
    wanted = (count * bits + 7) // 8 if name in _BITS else count
    if stored != wanted:
        raise _truncated(where, dims, name, f"{wanted} stored elements", f"{stored}")
    return _widened(tensor, dtype, dims)


def _widened(tensor: TensorProto, dtype: str, dims: tuple[int, ...]) -> np.ndarray:
    with np.errstate(all="ignore"):
        array = np.asarray(onnx.numpy_helper.to_array(tensor)).astype(_numpy(dtype), copy=True).reshape(dims)
    array.flags.writeable = False
    return array


def _inline(tensor: TensorProto, raw: bytes) -> TensorProto:
    return TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=raw)


def _truncated(where: str, dims: Any, name: str, wanted: str, found: str) -> NervureError:
    return NervureError(
        "a stored tensor is truncated or too long",
        where=where,
        why=f"{name}{list(dims)} takes {wanted}, the file holds {found}",
        hint="the file is damaged: export or copy it again",
    )


def _itemsize(data_type: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize)


def _numpy(dtype: str) -> np.dtype[Any]:
    from ...compiler.ops.numeric import numpy_dtype

    return numpy_dtype(dtype)


def sparse_to_array(sparse: onnx.SparseTensorProto, where: str, external: ExternalData) -> np.ndarray:
    """A sparse initializer as a dense array."""
    dims = tuple(int(d) for d in sparse.dims)
    values = to_array(sparse.values, where, external)
    indices = to_array(sparse.indices, where, external)
    size = math.prod(dims)
    if any(d < 0 for d in dims) or size * values.itemsize > MAX_DENSE:
        raise NervureError("a stored tensor has an impossible shape", where=where, why=str(list(dims)[:64]))
    flat = np.zeros(size, dtype=values.dtype)
    try:
        at = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
        flat[at] = values
    except (ValueError, IndexError) as error:
        raise NervureError("a sparse tensor's indices do not fit its shape", where=where, why=str(error)) from None
    dense = flat.reshape(dims)
    dense.flags.writeable = False
    return dense
