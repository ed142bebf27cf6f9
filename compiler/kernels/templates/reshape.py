"""reshape as a copy, for the rare one that no strides can express: over the common factors of both shapes where they
have some, else by the flat index."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from ..spec import Plan, Region, Template
from ._boxes import Affine, Box, Cursor, Place, affine, anchor_args, as_coord, emit_boxes, plan_boxes, straight


def plan(region: Region) -> list[Plan]:
    (x,) = anchor_args(region)
    assert x is not None
    shape, out = region.body.type(x).dims, region.anchor_type.dims
    factors = common_factors(shape, out)
    if factors is None:
        box = Box(out, straight([0] * len(out)), (), tuple(range(len(out))))
    else:
        source, target = placed(shape, factors), placed(out, factors)
        box = Box(tuple(factors), target, ((x, source),), data={"source": source})
    return plan_boxes(region, "reshape", [box], work=4.0 if factors is None else 1.0)


def common_factors(a: tuple[int, ...], b: tuple[int, ...]) -> list[int] | None:
    """A shape of which both are groupings, outermost first; None where there is none."""
    if 0 in a:
        return None
    steps = {math.prod(s[i:]) for s in (a, b) for i in range(len(s) + 1)}
    ordered = sorted(steps, reverse=True)
    if any(big % small for big, small in pairwise(ordered)):
        return None
    return [big // small for big, small in pairwise(ordered)]


def placed(shape: tuple[int, ...], factors: list[int]) -> Place:
    """Each coordinate of ``shape`` by the indices of its factors."""
    found: list[Affine] = []
    at = len(factors)
    for size in reversed(shape):
        terms, inner = [], 1
        while inner < size:
            at -= 1
            terms.append((at, inner))
            inner *= factors[at]
        found.insert(0, (0, tuple(terms)))
    return tuple(found)


def element(cursor: Cursor, index: list[Any], lanes: int) -> Any:
    from tvm import tirx

    from ..evaluate import lanewise
    from ..tir import like, splat

    if "source" in cursor.data:
        return cursor.value(0, [affine(place, index) for place in cursor.data["source"]], lanes)
    flat: Any = 0
    out = cursor.config["program"]["outputs"][0]["shape"]
    for axis, coord in enumerate(index):
        at = splat(lanewise(coord, lanes), lanes)
        flat = flat + at * like(math.prod(out[axis + 1 :]), at)
    flat = cursor.k.bind(flat, "flat")
    coords: list[Any] = []
    for size in reversed(cursor.shape(0)):
        coords.insert(0, as_coord(cursor.k.bind(tirx.truncmod(flat, like(size, flat)), "at")))
        flat = tirx.truncdiv(flat, like(size, flat))
    return cursor.value(0, coords, lanes)


def emit(k: Any, config: dict[str, Any]) -> None:
    emit_boxes(k, config, element)


TEMPLATE = Template("reshape", ("reshape",), plan, {"reshape": emit})
