"""scatter_elements, scatter_nd on a GPU: x is copied, then each thread takes the updates of its places in their order.

What lies beside the scattered axis is shared out among threads. Where that is little, so are places along it: a thread
owns those of one remainder and passes over the other updates. So no two threads write to one place, later updates win,
and sums are taken in the order of the updates, as on CPUs.
"""

from __future__ import annotations

import math
from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import alone, along, anchor_args
from ._cuda_cost import Load, nanoseconds
from ._cuda_walk import MOST, device_nest, over, split, streaming
from ._nest import Data
from .scatter import Access, emit_copied, fold, in_place, place_of_element, place_of_slice

_OWNERS = 8192  # threads that are wished for
_AHEAD = 4  # updates whose indices are read before the first of them is taken
_TURN = 40.0  # cycles of a thread for an update that it passes over


def plan(region: Region) -> list[Plan]:
    gpu = region.machine.gpu
    if gpu is None or not alone(region) or any(o.span > MOST for o in (*region.inputs, *region.outputs)):
        return []
    out, shape = region.outputs[0], region.anchor_type.dims
    types = [region.body.type(a) for a in anchor_args(region) if a is not None]
    source = region.operand(0)
    assert source is not None  # nothing but the operator is in the body
    x = region.inputs[source]
    config = {"program": serialize(region), "attrs": plain(dict(region.attrs)), "consts": []}
    args = (*(Arg("in", i) for i in range(len(region.inputs))), Arg("out"))
    phases: list[Draft] = []
    cost = 0.0
    if 0 not in shape:
        copied = device_nest(gpu, shape, [list(out.strides), list(x.strides)], out.type.itemsize)
        spec = KernelSpec("cuda_scatter.copy", {**config, "nest": copied})
        phases.append(Draft(spec, args, copied["blocks"], copies=(source, 0)))
        cost += streaming(region, gpu, copied["blocks"], copied["threads"])
    if 0 not in types[2].dims and 0 not in shape:
        owned = _owned(region, types[2].dims)
        nest = owned["nest"]
        phases.append(Draft(KernelSpec("cuda_scatter.write", {**config, **owned}), args, nest["blocks"]))
        chain = owned["count"] * (_TURN + 4 * _TURN / owned["owners"])
        far = 2.0 * types[2].nbytes + types[1].nbytes
        cost += nanoseconds(gpu, Load(nest["blocks"], nest["threads"], far=far, chain=chain))
    detail = f"{region.op}, {region.attrs['reduction']}"
    return [Plan("cuda_scatter", tuple(phases), cost, inplace=in_place(region), detail=detail)]


def _owned(region: Region, updates: tuple[int, ...]) -> Data:
    """The walk over (remainder, what lies beside the scattered axes), and how many updates each thread meets."""
    out, gpu, rank = region.outputs[0], region.machine.gpu, len(updates)
    assert gpu is not None
    serial: tuple[int, ...]
    if region.op == "scatter_elements":
        axis = region.attrs["axis"] % rank
        serial, order, most = (axis,), list(out.strides), 1
        places = region.anchor_type.dims[axis]
    else:
        lead = region.inputs[region.operand(1)].type.rank - 1  # type: ignore[index]
        depth = region.anchor_type.rank - (rank - lead)
        slices = tuple((0, ((lead + a, 1),)) for a in range(rank - lead))
        serial, order, most = tuple(range(lead)), along(out.strides[depth:], slices, rank), 16
        places = math.prod(region.anchor_type.dims[:depth])
    beside = [1 if a in serial else n for a, n in enumerate(updates)]
    owners = max(1, min(places, math.ceil(_OWNERS / math.prod(beside))))
    far = max([1, *map(abs, order)]) * max(updates)
    solo = range(rank + 1)
    nest = device_nest(gpu, [owners, *beside], [[far, *order]], out.type.itemsize, solo=solo, scalar=(0,), most=most)
    serial_sizes = [updates[a] for a in serial]
    return {"nest": nest, "owners": owners, "serial": serial_sizes, "count": math.prod(serial_sizes)}


def emit_copy(k: Any, config: Data) -> None:
    nest = config["nest"]
    cursor = Access(k, config)
    with k.grid(nest["blocks"], nest["threads"]) as (block, thread):
        over(k, nest, block, thread, emit_copied(cursor))


def emit_write(k: Any, config: Data) -> None:
    nest = config["nest"]
    kernel = _Writes(k, config)
    with k.grid(nest["blocks"], nest["threads"]) as (block, thread):
        over(k, nest, block, thread, kernel.updates)


class _Writes:
    """All updates that a thread's places may get."""

    def __init__(self, k: Any, config: Data) -> None:
        self.k, self.c, self.cursor = k, config, Access(k, config)
        self.by_element = "axis" in config["attrs"]

    def updates(self, coords: list[Any], lanes: int) -> None:
        k, count = self.k, self.c["count"]
        owner, beside = coords[0][0], coords[1:]
        with k.loop(count // _AHEAD, name="turn") as turn:
            self._few([turn * _AHEAD + i for i in range(_AHEAD)], owner, beside, lanes)
        self._few(list(range(count // _AHEAD * _AHEAD, count)), owner, beside, lanes)

    def _few(self, numbers: list[Any], owner: Any, beside: list[Any], lanes: int) -> None:
        from tvm import tirx

        from ._boxes import put

        found = [self._placed(n, beside, lanes) for n in numbers]
        owners, cursor, reduction = self.c["owners"], self.cursor, self.c["attrs"]["reduction"]
        for index, place, flat in found:
            with self.k.when(True if owners == 1 else tirx.EQ(tirx.truncmod(flat, owners), owner)):
                cursor.ev.begin()
                value = cursor.value(2, index, lanes)
                if reduction != "none":
                    value = fold(reduction, cursor.taken(0, place, lanes), value)
                put(cursor, 0, place, value)

    def _placed(self, number: Any, beside: list[Any], lanes: int) -> tuple[list[Any], list[Any], Any]:
        """The coordinates of an update, those of its place, and the place's number along the scattered axes."""
        cursor = self.cursor
        cursor.ev.begin()
        if self.by_element:
            axis = cursor.attrs["axis"] % len(beside)
            index = [(number, 0) if a == axis else c for a, c in enumerate(beside)]
            place = place_of_element(cursor, index, lanes)
            return index, place, place[axis][0]
        lead, depth = len(self.c["serial"]), cursor.shape(1)[-1]
        if isinstance(number, int):
            from ..tir import constant

            number = constant(number, "int32")
        index = [*((i, 0) for i in split(self.k, number, self.c["serial"])), *beside[lead:]]
        place = place_of_slice(cursor, index)
        flat: Any = 0
        for (at, _), size in zip(place[:depth], cursor.shape(0)[:depth], strict=True):
            flat = flat * size + at
        return index, place, flat if isinstance(flat, int) else self.k.bind(flat, "flat")


TEMPLATE = Template(
    "cuda_scatter",
    ("scatter_elements", "scatter_nd"),
    plan,
    {"cuda_scatter.copy": emit_copy, "cuda_scatter.write": emit_write},
    device=True,
)
