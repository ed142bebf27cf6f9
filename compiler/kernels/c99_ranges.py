"""What integers an expression can be: whether C's own operators will do, which do not wrap."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

_SMALL = 1 << 17  # a sum of such terms does not leave int32: templates sum at most 2^13 of the largest
Range = tuple[int, int]


def scalar_dtype(dtype: str) -> str:
    return dtype.split("x")[0]


def type_range(dtype: str) -> Range:
    if dtype == "bool":
        return 0, 1
    bits = int(dtype.lstrip("uint"))
    return (0, (1 << bits) - 1) if dtype.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


class Ranges:
    """Bounds of variables and of locals that are set once."""

    def __init__(self) -> None:
        self.bounds: dict[Any, Range | None] = {}
        self.indexing = 0  # depth of indices: these stay within memory

    def loop_bounds(self, start: Any, extent: Any) -> Range | None:
        first, count = self.range(start), self.range(extent)
        if first is None or count is None:
            return None
        return first[0], max(first[0], first[1] + count[1] - 1)

    def plain_sum(self, e: Any) -> bool:
        """Whether C's own operator will do: an index, what provably fits, or another term of an exact sum."""
        if self.indexing:
            return True
        dtype = scalar_dtype(str(e.ty.dtype))
        if not dtype.startswith("int"):
            return True
        if self._fits(self.range(e), dtype):
            return True
        if type(e).__name__ == "Mul":
            return False
        sides = [self.range(s) for s in (e.a, e.b)]
        exact = [_accumulates(s) for s in (e.a, e.b)]
        return any(
            r is not None and max(map(abs, r)) <= _SMALL and x for r, x in zip(sides, reversed(exact), strict=True)
        )

    def _fits(self, found: Range | None, dtype: str) -> bool:
        least, most = type_range(dtype)
        return found is not None and least <= found[0] and found[1] <= most

    def range(self, e: Any) -> Range | None:
        """Bounds of an integer expression, or None."""
        kind, dtype = type(e).__name__, scalar_dtype(str(e.ty.dtype))
        if not dtype.startswith(("int", "uint", "bool")):
            return None
        if kind == "IntImm":
            return int(e.value), int(e.value)
        if kind == "Var":
            return self.bounds.get(e)
        if kind == "Broadcast":
            return self.range(e.value)
        if kind == "Cast" and not scalar_dtype(str(e.value.ty.dtype)).startswith("float"):
            inner = self.range(e.value)
            if self._fits(inner, dtype):
                return inner
        if kind in ("Add", "Sub", "Mul", "Min", "Max"):
            return _combined(kind, self.range(e.a), self.range(e.b))
        if kind == "RShift":
            value, by = self.range(e.a), self.range(e.b)
            return None if value is None or by is None or by[0] != by[1] else (value[0] >> by[0], value[1] >> by[0])
        if kind == "BitwiseAnd" and isinstance(e.b, tirx.IntImm) and int(e.b.value) >= 0:
            return 0, int(e.b.value)
        if kind == "Select":
            return _joined(self.range(e.true_value), self.range(e.false_value))
        if kind == "TensorLoad" and self.bounds.get(e.source) is not None:
            return self.bounds[e.source]
        if kind in ("TensorLoad", "Cast", "Call") and dtype in ("int8", "uint8", "int16", "uint16", "bool"):
            return type_range(dtype)
        return None


def _accumulates(e: Any) -> bool:
    """Whether it is a local that sums up, or what a kernel read from a bias."""
    return isinstance(e, TensorLoad) or (isinstance(e, tirx.Add) and (_accumulates(e.a) or _accumulates(e.b)))


def _combined(kind: str, a: Range | None, b: Range | None) -> Range | None:
    if a is None or b is None:
        return None
    if kind == "Add":
        return a[0] + b[0], a[1] + b[1]
    if kind == "Sub":
        return a[0] - b[1], a[1] - b[0]
    if kind == "Mul":
        every = [x * y for x in a for y in b]
        return min(every), max(every)
    choose = min if kind == "Min" else max
    return choose(a[0], b[0]), choose(a[1], b[1])


def _joined(a: Range | None, b: Range | None) -> Range | None:
    return None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))
