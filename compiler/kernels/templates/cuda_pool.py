"""max_pool, avg_pool and sum_pool_integer on a GPU: a thread folds the windows of neighbouring channels."""

from __future__ import annotations

from ..spec import Template
from ._cuda_boxes import emitter
from .pool import element, plan

TEMPLATE = Template(
    "cuda_pool",
    (
        "max_pool",
        "avg_pool",
        "sum_pool_integer",
    ),
    plan,
    {"cuda_pool": emitter(element)},
    device=True,
)
