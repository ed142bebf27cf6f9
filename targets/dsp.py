"""Instruction rows of the DSP extension (Armv7E-M, Armv8-M): Cortex-M4, M7, M33.

Words are taken as pairs of int16: pseudocode in the Arm v7-M and v8-M architecture reference manuals under SMLAD,
SXTB16, UXTB16 and VCVTR. All are one instruction; the rotation of ``odd`` is part of its operand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .machine import Call, Instruction, rounded

_WORD = "int32"


def paired(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int32, plus the sum of two products of int16; wraps around."""
    products = a.astype(np.int64) * b.astype(np.int64)
    total = acc.astype(np.int64) + products.reshape(-1, 2).sum(axis=1)
    return np.asarray(total & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def widened(offset: int) -> Callable[..., np.ndarray]:
    """Bytes ``offset`` and ``offset + 2`` of each word as int16."""

    def reference(a: np.ndarray) -> np.ndarray:
        return np.asarray(a[offset::2].astype(np.int16))

    return reference


def _pair_row() -> Instruction:
    body = Call("r", "llvm.arm.smlad", _WORD, ("a", "b", "acc"), (_WORD, _WORD, _WORD))
    operands = (("acc", "int32x1"), ("a", "int16x2"), ("b", "int16x2"))
    return Instruction("smlad", "pair", 1, operands, "int32x1", (body,), (True, True), paired)


def halved(a_half: int, b_half: int) -> Callable[..., np.ndarray]:
    """int32, plus the product of a half (0: bottom, 1: top) of each word; wraps around."""

    def reference(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        total = acc.astype(np.int64) + a[a_half::2].astype(np.int64) * b[b_half::2].astype(np.int64)
        return np.asarray(total & 0xFFFFFFFF).astype(np.uint32).view(np.int32)

    return reference


def _half_row(a: str, b: str) -> Instruction:
    """SMLABB and its like: one product of int16; ``b`` and ``t`` are the bottom and top halves."""
    body = Call("r", f"llvm.arm.smla{a}{b}", _WORD, ("a", "b", "acc"), (_WORD, _WORD, _WORD))
    operands = (("acc", "int32x1"), ("a", "int16x2"), ("b", "int16x2"))
    reference = halved("bt".index(a), "bt".index(b))
    return Instruction(f"smla{a}{b}", f"half.{a}{b}", 1, operands, "int32x1", (body,), (True, True), reference)


def _widening_row(dtype: str, *, odd: bool) -> Instruction:
    name = ("sxtb16" if dtype == "int8" else "uxtb16") + ("_ror8" if odd else "")
    turned = Call("t", "llvm.fshr.i32", _WORD, ("a", "a", 8), (_WORD, _WORD, _WORD))
    call = Call("r", f"llvm.arm.{name[:6]}", _WORD, ("t" if odd else "a",), (_WORD,))
    kind = f"{'odd' if odd else 'even'}.{dtype}"
    body = (turned, call) if odd else (call,)
    signed = (dtype == "int8", True)
    return Instruction(name, kind, 2, (("a", f"{dtype}x4"),), "int16x2", body, signed, widened(int(odd)))


def _rounding_row() -> Instruction:
    """By the mode in FPSCR, which is to nearest, halves to even, unless a program sets another; clips to int32."""
    call = Call("f", "llvm.arm.vcvtr.f32", "float32", ("a",), ("float32",))
    bits = Call("r", "bitcast", _WORD, ("f",), ("float32",))
    return Instruction("vcvtr", "round", 1, (("a", "float32x1"),), "int32x1", (call, bits), (True, True), rounded)


def _clipping_row(dtype: str) -> Instruction:
    """SSAT, USAT: an int32 clipped to what 8 bits hold."""
    name, info = ("ssat8", np.iinfo(np.int8)) if dtype == "int8" else ("usat8", np.iinfo(np.uint8))
    call = Call("r", f"llvm.arm.{name[:4]}", _WORD, ("a", 8), (_WORD, _WORD))

    def reference(a: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(a, info.min, info.max)).astype(np.int32)

    signed = (dtype == "int8", True)
    return Instruction(name, f"clip.{dtype}", 1, (("a", "int32x1"),), "int32x1", (call,), signed, reference)


ROWS: tuple[Instruction, ...] = (
    _pair_row(),
    *(_half_row(a, b) for a in "bt" for b in "bt"),
    *(_widening_row(dtype, odd=odd) for dtype in ("int8", "uint8") for odd in (False, True)),
    _rounding_row(),
    *(_clipping_row(dtype) for dtype in ("int8", "uint8")),
)
