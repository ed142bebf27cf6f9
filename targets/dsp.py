"""Instruction rows of the DSP extension (Armv7E-M, Armv8-M): Cortex-M4, M7, M33."""

from __future__ import annotations

from .machine import Instruction

ROWS: tuple[Instruction, ...] = ()
