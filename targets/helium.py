"""Instruction rows of Helium (M-profile vector extension, MVE): Cortex-M55."""

from __future__ import annotations

from .machine import Instruction

ROWS: tuple[Instruction, ...] = ()
