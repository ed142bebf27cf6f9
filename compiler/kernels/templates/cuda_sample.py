"""grid_sample and roi_align on a GPU: a thread weighs the neighbours of the points that its elements are made of."""

from __future__ import annotations

from ..spec import Template
from ._cuda_boxes import emitter
from .sample import grid_sample, plan, roi_align

ELEMENTS = {"grid_sample": grid_sample, "roi_align": roi_align}
EMITTERS = {f"cuda_sample.{op}": emitter(element) for op, element in ELEMENTS.items()}
TEMPLATE = Template("cuda_sample", tuple(ELEMENTS), plan, EMITTERS, device=True)
