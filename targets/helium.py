"""Instruction rows of Helium (M-profile vector extension, MVE): Cortex-M55.

Pseudocode in the Arm v8-M architecture reference manual (DDI 0553) under VMLADAV, VMULL (integer) and VCVT (between
floating-point and integer), with N for halves to even. Arm's Cortex-M55 optimization guide gives every row 2 cycles,
whatever the width of its elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import dsp
from .machine import Call, Instruction, rounded

_BYTES, _HALVES, _WORDS = "int8x16", "int16x8", "int32x4"


def across(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One int32, plus the sum of sixteen products of bytes; wraps around."""
    total = acc.astype(np.int64) + (a.astype(np.int64) * b.astype(np.int64)).sum()
    return np.asarray(total & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def products(first: int) -> Callable[..., np.ndarray]:
    """Every second product of bytes, from ``first`` on, as int16."""

    def reference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(a[first::2].astype(np.int16) * b[first::2].astype(np.int16))

    return reference


def _dot_row() -> Instruction:
    types = ("int32", "int32", "int32", "int32", _BYTES, _BYTES)
    body = Call("r", "llvm.arm.mve.vmldava.v16i8", "int32", (0, 0, 0, "acc", "a", "b"), types)
    operands = (("acc", "int32x1"), ("a", _BYTES), ("b", _BYTES))
    return Instruction("vmlava.s8", "dot16", 1, operands, "int32x1", (body,), (True, True), across, per_cycle=0.5)


def _product_row(top: bool) -> Instruction:
    types = (_BYTES, _BYTES, "int32", "int32")
    body = Call("r", "llvm.arm.mve.vmull.v8i16.v16i8", _HALVES, ("a", "b", 0, int(top)), types)
    name, kind = ("vmullt.s8", "products.odd") if top else ("vmullb.s8", "products.even")
    operands = (("a", _BYTES), ("b", _BYTES))
    return Instruction(name, kind, 8, operands, _HALVES, (body,), (True, True), products(int(top)), per_cycle=0.5)


def _round_row() -> Instruction:
    call = Call("r", "llvm.arm.mve.vcvtn.v4i32.v4f32", _WORDS, (0, "a"), ("int32", "float32x4"))
    operands = (("a", "float32x4"),)
    return Instruction("vcvtn.4", "round", 4, operands, _WORDS, (call,), (True, True), rounded, per_cycle=0.5)


ROWS: tuple[Instruction, ...] = (
    _dot_row(),
    _product_row(top=False),
    _product_row(top=True),
    _round_row(),
    *(row for row in dsp.ROWS if row.kind == "round"),
)
