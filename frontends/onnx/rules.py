"""All lowering rules: importing the families fills the table."""

from __future__ import annotations

from . import (
    lower_attention,
    lower_blocks,
    lower_control,
    lower_einsum,
    lower_image,
    lower_indexing,
    lower_math,
    lower_nn,
    lower_norm,
    lower_qlinear,
    lower_quant,
    lower_recurrent,
    lower_reduce,
    lower_shape,
    lower_tensor,
)
from .registry import HINTS, RULES

FAMILIES = (
    lower_attention,
    lower_blocks,
    lower_control,
    lower_einsum,
    lower_image,
    lower_indexing,
    lower_math,
    lower_nn,
    lower_norm,
    lower_qlinear,
    lower_quant,
    lower_recurrent,
    lower_reduce,
    lower_shape,
    lower_tensor,
)

__all__ = ["FAMILIES", "HINTS", "RULES"]
