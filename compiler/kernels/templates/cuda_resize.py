"""resize on a GPU: a thread weighs the taps of neighbouring elements; indices and weights are tables."""

from __future__ import annotations

from ..spec import Template
from ._cuda_boxes import emitter
from .resize import element, plan

TEMPLATE = Template("cuda_resize", ("resize",), plan, {"cuda_resize": emitter(element)}, device=True)
