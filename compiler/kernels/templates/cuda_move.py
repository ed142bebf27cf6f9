"""concat, pad, tile and reshape as copies on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from ..spec import Plan, Region, Template
from . import concat, pad, reshape, tile
from ._cuda_boxes import emitter

_OF = {"concat": concat, "pad": pad, "reshape": reshape, "tile": tile}


def plan(region: Region) -> Sequence[Plan]:
    return _OF[region.op].TEMPLATE.plan(region)


TEMPLATE = Template(
    "cuda_move", tuple(_OF), plan, {f"cuda_move.{op}": emitter(m.element) for op, m in _OF.items()}, device=True
)
