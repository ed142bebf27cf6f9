"""lookup on a GPU: the table of 256 entries stays in the first-level cache."""

from __future__ import annotations

from ..spec import Template
from ._cuda_boxes import emitter
from .lookup import element, plan

TEMPLATE = Template("cuda_lookup", ("lookup",), plan, {"cuda_lookup": emitter(element)}, device=True)
