"""concat, pad, tile and reshape as copies on a GPU."""

from __future__ import annotations

from ..spec import Plan, Region, Template
from . import concat, pad, reshape, tile
from ._cuda_boxes import emitter

_PLANS = {"concat": concat.plan, "pad": pad.plan, "reshape": reshape.plan, "tile": tile.plan}
_ELEMENTS = {"concat": concat.element, "pad": pad.element, "reshape": reshape.element, "tile": tile.element}


def plan(region: Region) -> list[Plan]:
    return _PLANS[region.op](region)


TEMPLATE = Template(
    "cuda_move", tuple(_PLANS), plan, {f"cuda_move.{op}": emitter(f) for op, f in _ELEMENTS.items()}, device=True
)
