"""TIR expressions as C expressions, one lane at a time; what the printer of statements (``c99``) builds on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from .c99_ranges import Ranges, scalar_dtype

C_TYPES = {
    **{f"{u}int{b}": f"{u}int{b}_t" for u in ("", "u") for b in (8, 16, 32, 64)},
    **{"float32": "float", "float64": "double", "bool": "int", "float16": "uint16_t", "bfloat16": "uint16_t"},
}
_SHORT = {
    **{f"{u}int{b}": f"{u or 'i'}{b}" for u in ("", "u") for b in (8, 16, 32, 64)},
    **{"float32": "f32", "float64": "f64", "float16": "f32"},
}
_BINARY = {  # class name: (operator, precedence)
    **{"Add": ("+", 12), "Sub": ("-", 12), "Mul": ("*", 13), "Div": ("/", 13), "Mod": ("%", 13)},
    **{"LT": ("<", 10), "LE": ("<=", 10), "GT": (">", 10), "GE": (">=", 10), "EQ": ("==", 9), "NE": ("!=", 9)},
    **{"And": ("&&", 5), "Or": ("||", 4), "BitwiseAnd": ("&", 8), "BitwiseXor": ("^", 7), "BitwiseOr": ("|", 6)},
}
_MATH_CALLS = "sqrt floor ceil trunc nearbyint fabs exp log sin cos tan tanh pow fmod round"
_MATH = frozenset(_MATH_CALLS.split())
_ATOM, _UNARY, _CAST, _TERNARY = 16, 15, 14, 3
Lane = Any  # an int, or the name of a loop variable


class UnsupportedC(Exception):
    """What has no C99 form."""


def unsupported(what: str) -> UnsupportedC:
    return UnsupportedC(f"{what} has no form in C99")


def lanes_of(e: Any) -> int:
    return int(str(e.ty.dtype).partition("x")[2] or 1)


def float_literal(value: float, dtype: str) -> str:
    """The shortest decimal that reads back as the same number."""
    number: Any = np.float64(value) if dtype == "float64" else np.float32(value)
    suffix = "" if dtype == "float64" else "f"
    if np.isnan(number):
        return "NAN"
    if np.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    text = repr(float(number)) if dtype == "float64" else np.format_float_scientific(number, unique=True, trim="0")
    if dtype != "float64" and (number == 0 or 1e-4 <= abs(number) < 1e9):
        text = np.format_float_positional(number, unique=True, trim="0")
    return text + suffix


def int_literal(value: int, dtype: str) -> str:
    if dtype.startswith("u") and value >= 1 << 15:
        return f"{value}{'ull' if value >= 1 << 32 else 'u'}"
    if value == -(1 << 63):
        return "INT64_MIN"
    if value == -(1 << 31):
        return "INT32_MIN"
    return f"INT64_C({value})" if abs(value) >= 1 << 31 else str(value)


class Expressions(Ranges):
    """Names and ranges of what is in scope, and how expressions over it are written."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Any, str] = {}
        self.helpers: set[str] = set()
        self.locals: set[str] = set()
        self.written: set[str] = set()
        self.pending: set[Any] = set()
        self.by_value: set[str] = set()
        self.result = ""

    # -- types ---------------------------------------------------------------------------------------------------

    def held(self, dtype: str) -> str:
        """The type of a local: half floats are computed as floats."""
        dtype = scalar_dtype(dtype)
        return "float32" if dtype == "float16" else dtype

    def call(self, name: str, *args: str) -> str:
        self.helpers.add(name)
        return f"{name}({', '.join(args)})"

    # -- memory --------------------------------------------------------------------------------------------------

    def _is_scalar(self, buffer: Any) -> bool:
        return all(int(e) == 1 for e in buffer.shape) and "x" not in str(buffer.dtype)

    def element(self, buffer: Any, index: Any, lane: Lane = 0, *, write: bool = False) -> str:
        """An element as an lvalue."""
        name = self.names[buffer]
        if write:
            self.written.add(name)
        if (name in self.locals and self._is_scalar(buffer)) or name in self.by_value:
            return name
        self.indexing += 1
        text = self.show(index, lane)
        self.indexing -= 1
        return f"{name}[{text}]"

    def _load(self, e: Any, lane: Lane) -> str:
        text = self.element(e.source, e.indices[0], lane)
        if scalar_dtype(str(e.source.dtype)) == "float16" and self.names[e.source] not in self.locals:
            return self.call("half_to_float", text)
        return text

    def _stored(self, value: Any, buffer: Any, lane: Lane) -> str:
        return self.to_memory(self.show(value, lane), buffer)

    def to_memory(self, text: str, buffer: Any) -> str:
        """A value as it is stored: half floats that leave the kernel as their bits."""
        half = scalar_dtype(str(buffer.dtype)) == "float16" and buffer not in self.pending
        return self.call("float_to_half", text) if half and self.names.get(buffer) not in self.locals else text

    # -- expressions ---------------------------------------------------------------------------------------------

    def show(self, e: Any, lane: Lane = 0, least: int = 0) -> str:
        """The expression; in parentheses where its operator binds weaker than ``least``."""
        text, strength = self._show(e, lane)
        return f"({text})" if strength < least else text

    def _show(self, e: Any, lane: Lane) -> tuple[str, int]:
        kind = type(e).__name__
        if kind in _BINARY:
            return self._binary(e, kind, lane)
        method: Callable[[Any, Lane], tuple[str, int]] | None = getattr(self, f"_{kind}", None)
        if method is None:
            raise unsupported(kind)
        return method(e, lane)

    def _IntImm(self, e: Any, lane: Lane) -> tuple[str, int]:
        text = int_literal(int(e.value), str(e.ty.dtype))
        return text, _UNARY if text.startswith("-") else _ATOM

    def _FloatImm(self, e: Any, lane: Lane) -> tuple[str, int]:
        dtype = str(e.ty.dtype)
        text = float_literal(float(np.float16(e.value)) if dtype == "float16" else e.value, dtype)
        return text, _UNARY if text.startswith("-") else _ATOM

    def _Var(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self.names[e], _ATOM

    def _TensorLoad(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._load(e, lane), _ATOM

    def _Ramp(self, e: Any, lane: Lane) -> tuple[str, int]:
        stride = int(e.stride)
        if isinstance(lane, int):
            moved = lane * stride
            base = e.base
            if moved == 0:
                return self._show(base, 0)
            if isinstance(base, tirx.IntImm):
                return str(int(base.value) + moved), _ATOM
            return f"{self.show(base, 0, 12)} {'-' if moved < 0 else '+'} {abs(moved)}", 12
        step = lane if stride == 1 else f"{stride} * {lane}"
        if isinstance(e.base, tirx.IntImm) and int(e.base.value) == 0:
            return step, _ATOM if stride == 1 else 13
        return f"{self.show(e.base, 0, 12)} + {step}", 12

    def _Broadcast(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._show(e.value, 0)

    def _Shuffle(self, e: Any, lane: Lane) -> tuple[str, int]:
        at = int(e.indices[lane])
        for vector in e.vectors:
            lanes = lanes_of(vector)
            if at < lanes:
                return self._show(vector, at)
            at -= lanes
        raise unsupported("a shuffle past its vectors")

    def _Cast(self, e: Any, lane: Lane) -> tuple[str, int]:
        to, have = scalar_dtype(str(e.ty.dtype)), scalar_dtype(str(e.value.ty.dtype))
        if to == have or self._widens(e, have, to):
            return self._show(e.value, lane)
        if to == "float16":
            inner = self.show(e.value, lane, _CAST)
            return self.call("round_to_half", inner if have == "float32" else f"(float){inner}"), _ATOM
        if have == "float16" and to == "float32":
            return self._show(e.value, lane)
        if to == "bool":
            return f"{self.show(e.value, lane, 10)} != 0", 9
        return f"({C_TYPES[to]}){self.show(e.value, lane, _CAST)}", _CAST

    def _widens(self, e: Any, have: str, to: str) -> bool:
        """Whether C does that conversion by itself: integers narrower than int are promoted to it."""
        return to == "int32" and have in ("int8", "uint8", "int16", "uint16", "bool")

    def _Select(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._ternary(e.condition, e.true_value, e.false_value, lane)

    def _ternary(self, condition: Any, yes: Any, no: Any, lane: Lane) -> tuple[str, int]:
        left, right = self.show(yes, lane, _TERNARY + 1), self.show(no, lane, _TERNARY)
        return f"{self.show(condition, lane, _TERNARY + 1)} ? {left} : {right}", _TERNARY

    def _Not(self, e: Any, lane: Lane) -> tuple[str, int]:
        return f"!{self.show(e.a, lane, _UNARY)}", _UNARY

    def _BitwiseNot(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._narrowed(f"~{self.show(e.a, lane, _UNARY)}", _UNARY, e)

    def _Min(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._extremum("min", e, lane)

    def _Max(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._extremum("max", e, lane)

    def _extremum(self, name: str, e: Any, lane: Lane) -> tuple[str, int]:
        dtype = scalar_dtype(str(e.ty.dtype))
        short = {"int8": "i32", "int16": "i32", "uint8": "i32", "uint16": "i32"}.get(dtype, _SHORT.get(dtype, ""))
        return self.call(f"{name}_{short}", self.show(e.a, lane), self.show(e.b, lane)), _ATOM

    def _binary(self, e: Any, kind: str, lane: Lane) -> tuple[str, int]:
        sign, strength = _BINARY[kind]
        dtype = scalar_dtype(str(e.ty.dtype))
        if kind in ("Add", "Sub", "Mul") and dtype in ("int32", "int64") and not self.plain_sum(e):
            name = {"Add": "add", "Sub": "sub", "Mul": "mul"}[kind]
            return self.call(f"{name}_{_SHORT[dtype]}", self.show(e.a, lane), self.show(e.b, lane)), _ATOM
        if kind == "Mod" and dtype.startswith("float"):
            raise unsupported("% of floats")
        inner = 13 if kind.startswith("Bitwise") else strength  # what gcc calls suspicious without parentheses
        if kind == "Or":
            inner = 6
        left, right = self.show(e.a, lane, inner), self.show(e.b, lane, inner + (kind != "And" and kind != "Or"))
        if kind == "Add" and not isinstance(e.b, tirx.FloatImm) and right.startswith("-"):
            right = f"({right})"
        if kind in ("Sub",) and right.startswith("-"):
            right = f"({right})"
        if kind == "Add" and isinstance(e.b, tirx.IntImm) and int(e.b.value) < 0:
            return f"{left} - {abs(int(e.b.value))}", strength
        return self._narrowed(f"{left} {sign} {right}", strength, e)

    def _narrowed(self, text: str, strength: int, e: Any) -> tuple[str, int]:
        """Results of C's int arithmetic brought back to a narrow type, and half floats rounded."""
        dtype = scalar_dtype(str(e.ty.dtype))
        if dtype in ("int8", "uint8", "int16", "uint16"):
            return f"({C_TYPES[dtype]})({text})", _CAST
        if dtype == "float16":
            return self.call("round_to_half", text), _ATOM
        return text, strength

    # -- calls ---------------------------------------------------------------------------------------------------

    def _Call(self, e: Any, lane: Lane) -> tuple[str, int]:
        name = e.op.name.split(".")[-1]
        dtype = scalar_dtype(str(e.ty.dtype))
        if name == "if_then_else":
            condition, yes, no = e.args
            return self._ternary(condition, yes, no, lane)
        if name == "likely":
            return self._show(e.args[0], lane)
        if name == "reinterpret":
            return self._reinterpret(e, lane, dtype)
        if name == "isnan":
            return self.call("isnan", self.show(e.args[0], lane)), _ATOM
        if name in ("call_pure_extern", "call_extern"):
            function = str(e.args[0].value)
            function = {"nearbyintf": "rintf", "nearbyint": "rint"}.get(function, function)
            return self.call(function, *(self.show(a, lane) for a in e.args[1:])), _ATOM
        if name in _MATH:
            return self._math(name, e, lane, dtype)
        if name == "call_llvm_pure_intrin":
            return self._intrinsic(e, lane, dtype)
        raise unsupported(name)

    def _intrinsic(self, e: Any, lane: Lane, dtype: str) -> tuple[str, int]:
        raise unsupported(str(e.args[0]))

    def _math(self, name: str, e: Any, lane: Lane, dtype: str) -> tuple[str, int]:
        name = {"nearbyint": "rint"}.get(name, name) + ("" if dtype == "float64" else "f")
        text = self.call(name, *(self.show(a, lane) for a in e.args))
        return (self.call("round_to_half", text), _ATOM) if dtype == "float16" else (text, _ATOM)

    def _RShift(self, e: Any, lane: Lane) -> tuple[str, int]:
        return self._narrowed(f"{self.show(e.a, lane, 13)} >> {self.show(e.b, lane, 13)}", 11, e)

    def _LShift(self, e: Any, lane: Lane) -> tuple[str, int]:
        dtype = scalar_dtype(str(e.ty.dtype))
        unsigned = "uint64_t" if dtype.endswith("64") else "uint32_t"
        text = self.show(e.a, lane, _CAST)
        if not (dtype == "uint32" and text.startswith("(uint32_t)")):
            text = f"({unsigned}){text}"
        inner = f"{text} << {self.show(e.b, lane, 13)}"
        return (inner, 11) if dtype in ("uint32", "uint64") else (f"({C_TYPES[dtype]})({inner})", _CAST)

    def _reinterpret(self, e: Any, lane: Lane, dtype: str) -> tuple[str, int]:
        (value,) = e.args
        have = scalar_dtype(str(value.ty.dtype))
        if lanes_of(value) != lanes_of(e):
            raise unsupported("a reinterpretation between widths")
        if have == dtype:
            return self._show(value, lane)
        kinds = {have.startswith("float"), dtype.startswith("float")}
        if "float16" in (have, dtype):
            if have == "float16":
                return f"({C_TYPES[dtype]}){self.call('float_to_half', self.show(value, lane))}", _CAST
            return self.call("half_to_float", f"(uint16_t){self.show(value, lane, _CAST)}"), _ATOM
        if kinds == {False}:
            return f"({C_TYPES[dtype]}){self.show(value, lane, _CAST)}", _CAST
        if have.startswith("float"):
            text = self.call(f"{_SHORT[have]}_bits", self.show(value, lane))
            return (text, _ATOM) if dtype.startswith("int") else (f"({C_TYPES[dtype]}){text}", _CAST)
        return self.call(f"{_SHORT[dtype]}_from_bits", self.show(value, lane)), _ATOM
