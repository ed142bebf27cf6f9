"""Element types and tensor types: what the compiler says about a tensor without holding it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Dim = int | str

# name -> (bytes an element, C type, text form). bfloat16 is stored as uint16 bits outside numpy's own types.
DTYPES: dict[str, tuple[int, str, str]] = {
    "bool": (1, "uint8_t", "b1"),
    "int8": (1, "int8_t", "i8"),
    "int16": (2, "int16_t", "i16"),
    "int32": (4, "int32_t", "i32"),
    "int64": (8, "int64_t", "i64"),
    "uint8": (1, "uint8_t", "u8"),
    "uint16": (2, "uint16_t", "u16"),
    "uint32": (4, "uint32_t", "u32"),
    "uint64": (8, "uint64_t", "u64"),
    "float16": (2, "uint16_t", "f16"),
    "bfloat16": (2, "uint16_t", "bf16"),
    "float32": (4, "float", "f32"),
    "float64": (8, "double", "f64"),
}


def is_float(dtype: str) -> bool:
    """Whether it is one of the four floating-point types."""
    return dtype in ("float16", "bfloat16", "float32", "float64")


def is_integer(dtype: str) -> bool:
    """Whether it is a signed or unsigned integer type; bool is none."""
    return dtype.startswith(("int", "uint"))


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and logical shape. A dimension is an integer or the name of one to be bound."""

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def static(self) -> bool:
        """Whether every dimension is a number."""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of a static type; ``ValueError`` where a dimension is not bound."""
        if not self.static:
            raise ValueError(f"unbound dimension in {self}")
        return self.shape  # type: ignore[return-value]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return DTYPES[self.dtype][0]

    @property
    def nbytes(self) -> int:
        """Logical bytes: no padding."""
        return self.size * self.itemsize

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{DTYPES[self.dtype][2]}[{','.join(map(str, self.shape))}]"


def type_of(array: np.ndarray) -> TensorType:
    """The type of an array; ``TypeError`` for an element type that the compiler has no name for."""
    name = array.dtype.name
    if name not in DTYPES:
        raise TypeError(f"no tensor type for arrays of {array.dtype}")
    return TensorType(name, tuple(int(d) for d in array.shape))
