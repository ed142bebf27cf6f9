"""Instruction rows of Helium (M-profile vector extension, MVE): Cortex-M55.

Pseudocode in the Arm v8-M architecture reference manual (DDI 0553) under VMLADAV, VQMOVN, VQMOVUN and VCVT (between
floating-point and integer), with N for halves to even. On a Cortex-M55 each works on 64 bits a cycle.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import dsp
from .machine import Call, Instruction, rounded

_BYTES, _WORDS = "int8x16", "int32x4"


def across(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One int32, plus the sum of sixteen products of bytes; wraps around."""
    total = acc.astype(np.int64) + (a.astype(np.int64) * b.astype(np.int64)).sum()
    return np.asarray(total & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def _dot_row() -> Instruction:
    types = ("int32", "int32", "int32", "int32", _BYTES, _BYTES)
    body = Call("r", "llvm.arm.mve.vmldava.v16i8", "int32", (0, 0, 0, "acc", "a", "b"), types)
    operands = (("acc", "int32x1"), ("a", _BYTES), ("b", _BYTES))
    return Instruction("vmlava.s8", "dot16", 1, operands, "int32x1", (body,), (True, True), across, per_cycle=0.5)


def narrowed(first: int) -> Callable[..., np.ndarray]:
    """``a``, clipped to the type of ``into``, in every second lane of that from ``first`` on."""

    def reference(into: np.ndarray, a: np.ndarray) -> np.ndarray:
        info, found = np.iinfo(into.dtype), into.copy()
        found[first::2] = np.clip(a, info.min, info.max)
        return found

    return reference


def _narrow_row(to: str, *, top: bool) -> Instruction:
    bits, signed = int(to.removeprefix("u")[3:]), not to.startswith("u")
    lanes, wide = 128 // bits, f"int{2 * bits}x{64 // bits}"
    held = f"int{bits}x{lanes}"
    name = f"vqmov{'' if signed else 'u'}n{'bt'[top]}.s{2 * bits}"
    args: tuple[str | int, ...] = ("into", "a", int(not signed), 0, int(top))
    call = f"llvm.arm.mve.vqmovn.v{lanes}i{bits}.v{64 // bits}i{2 * bits}"
    body = Call("r", call, held, args, (held, wide, "int32", "int32", "int32"))
    operands = (("into", f"{to}x{lanes}"), ("a", wide))
    kind = f"narrow.{'odd' if top else 'even'}.{to}"
    return Instruction(name, kind, lanes, operands, operands[0][1], (body,), (True, True), narrowed(int(top)))


def _round_row() -> Instruction:
    call = Call("r", "llvm.arm.mve.vcvtn.v4i32.v4f32", _WORDS, (0, "a"), ("int32", "float32x4"))
    operands = (("a", "float32x4"),)
    return Instruction("vcvtn.4", "round", 4, operands, _WORDS, (call,), (True, True), rounded, per_cycle=0.5)


ROWS: tuple[Instruction, ...] = (
    _dot_row(),
    *(_narrow_row(to, top=top) for to in ("int16", "int8", "uint8") for top in (False, True)),
    _round_row(),
    *(row for row in dsp.ROWS if row.kind == "round"),
)
