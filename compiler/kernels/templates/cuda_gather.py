"""gather, gather_elements, gather_nd, one_hot on a GPU: what lies behind the gathered axis moves in wide accesses."""

from __future__ import annotations

from ..spec import Template
from ._cuda_boxes import emitter
from .gather import READS, SOURCES, plan

TEMPLATE = Template(
    "cuda_gather", tuple(READS), plan, {f"cuda_gather.{op}": emitter(f) for op, f in SOURCES.items()}, device=True
)
