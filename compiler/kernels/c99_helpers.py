"""Small functions that portable C calls where an operator of C does not mean what TIR means. Written as C text."""

from __future__ import annotations

import re

_TYPES = {"i32": "int32_t", "i64": "int64_t", "u32": "uint32_t", "u64": "uint64_t", "f32": "float", "f64": "double"}
_SIGNS = {"add": "+", "sub": "-", "mul": "*"}


def _function(result: str, name: str, params: str, *lines: str) -> str:
    return "\n".join([f"static {result} {name}({params})", "{", *(f"    {line}" for line in lines), "}"]) + "\n"


def _extremum(name: str, sign: str, short: str) -> str:
    kind = _TYPES[short]
    return _function(kind, f"{name}_{short}", f"{kind} a, {kind} b", f"return a {sign} b ? a : b;")


def _wrapping(name: str, short: str) -> str:
    kind, bits = _TYPES[short], _TYPES[f"u{short[1:]}"]
    comment = f"/* a {_SIGNS[name]} b modulo 2^{short[1:]} */\n"
    body = f"return ({kind})(({bits})a {_SIGNS[name]} ({bits})b);"
    return comment + _function(kind, f"{name}_{short}", f"{kind} a, {kind} b", body)


def _both(kind: str, whole: str) -> str:
    """C99 (TC3, 6.5.2.3) reads the bytes of one member as the other."""
    return f"union {{ {kind} number; {whole} bits; }} both;"


def _bits(short: str) -> str:
    kind, whole = _TYPES[short], _TYPES[f"i{short[1:]}"]
    return _function(whole, f"{short}_bits", f"{kind} x", _both(kind, whole), "both.number = x;", "return both.bits;")


def _from_bits(short: str) -> str:
    kind, whole = _TYPES[short], _TYPES[f"i{short[1:]}"]
    return _function(
        kind, f"{short}_from_bits", f"{whole} bits", _both(kind, whole), "both.bits = bits;", "return both.number;"
    )


_RESCALE = """\
/* zero + sum * multiplier, rounded to the nearest integer (halves to even), within low to high. The product is rounded
 * once, to a float; adding 1.5 * 2^23 to a small one leaves its nearest integer in the lowest bits, on every core,
 * without a call to the library. */
static int32_t rescale(int32_t sum, float multiplier, int32_t zero, int32_t low, int32_t high)
{
    const float least = (float)(low - zero), most = (float)(high - zero);
    float real = (float)sum * multiplier;
    real = real < least ? least : real;
    real = real > most ? most : real;
    return f32_bits(real + 12582912.0f) - 0x4B400000 + zero;
}
"""
_HALF_TO_FLOAT = """\
/* IEEE 754 binary16 to float */
static float half_to_float(uint16_t half)
{
    const int32_t sign = (int32_t)((uint32_t)(half & 0x8000) << 16), size = half & 0x7FFF;
    if (size >= 0x7C00) {
        return f32_from_bits(sign | 0x7F800000 | (size & 0x3FF) << 13);
    }
    return f32_from_bits(sign | f32_bits(f32_from_bits(size << 13) * 5.192296858534828e+33f));
}
"""
_FLOAT_TO_HALF = """\
/* float to the nearest IEEE 754 binary16, halves to even */
static uint16_t float_to_half(float x)
{
    const int32_t bits = f32_bits(x), size = bits & 0x7FFFFFFF, sign = (bits >> 16) & 0x8000;
    if (size > 0x7F800000) {
        return (uint16_t)(sign | 0x7E00);
    }
    if (size >= 0x477FF000) {
        return (uint16_t)(sign | 0x7C00);
    }
    if (size < 0x38800000) {
        return (uint16_t)(sign | (f32_bits(f32_from_bits(size) + 0.5f) - 0x3F000000));
    }
    return (uint16_t)(sign | ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13));
}
"""
_ROUND_TO_HALF = """\
/* The nearest number that a binary16 holds */
static float round_to_half(float x)
{
    return half_to_float(float_to_half(x));
}
"""
TEXTS = {
    **{f"{n}_{t}": _extremum(n, s, t) for n, s in (("min", "<"), ("max", ">")) for t in _TYPES},
    **{f"{n}_{t}": _wrapping(n, t) for n in _SIGNS for t in ("i32", "i64")},
    **{f"{t}_bits": _bits(t) for t in ("f32", "f64")},
    **{f"{t}_from_bits": _from_bits(t) for t in ("f32", "f64")},
    "rescale": _RESCALE,
    "half_to_float": _HALF_TO_FLOAT,
    "float_to_half": _FLOAT_TO_HALF,
    "round_to_half": _ROUND_TO_HALF,
}
NAMES = frozenset(TEXTS)
_MATH = """
sqrt floor ceil trunc rint fabs exp expm1 log log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf pow
fmod round
"""
LIBRARY = frozenset(f"{name}{suffix}" for name in _MATH.split() for suffix in ("", "f")) | {"isnan"}  # in math.h


def called(text: str, own: str) -> list[str]:
    """The helpers that a helper's text calls."""
    return sorted(n for n in set(re.findall(r"\b(\w+)\(", text)) & NAMES if n != own)
