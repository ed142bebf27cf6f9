"""Index spaces on a GPU: a thread for each run of neighbours, loaded and stored as one access of 16 bytes at most.

A walk is planned as plain data, like ``_nest``: axes that every tensor walks as one are merged, the innermost axis of
the output's memory is cut into runs of ``lanes`` elements, and neighbouring threads take neighbouring runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ....targets.gpu import Gpu
from ..spec import Region
from ._cuda_cost import Load, nanoseconds, spread
from ._nest import Data, merged, pieces

_ACCESS = 16  # bytes of the widest load of a thread
_WAVES = 8  # times the threads that run at once: beyond, a thread takes several runs
_FEW = 64  # threads of a multiprocessor under which runs are made shorter, so that more threads take part
MOST = 2**31 - 1  # of an index


def device_nest(
    gpu: Gpu,
    extents: Sequence[int],
    strides: Sequence[Sequence[int]],
    itemsize: int,
    *,
    solo: Collection[int] = (),
    scalar: Collection[int] = (),
    most: int = 16,
) -> Data:
    """The walk over ``extents``. ``strides`` holds the element strides of every tensor along these axes, the output's
    first; ``itemsize`` are the bytes of the widest element. An innermost axis in ``scalar`` is walked element by
    element; ``most`` bounds the lanes."""
    groups = merged(extents, strides, {*solo, *scalar})
    sizes = [math.prod(extents[a] for a in g) for g in groups]
    lanes = min(most, max(1, _ACCESS // itemsize))
    if not groups or groups[-1][-1] in scalar or abs(strides[0][groups[-1][-1]]) != 1:
        lanes = 1
    while lanes > 1 and (_ragged(sizes, lanes) or math.prod(sizes) // lanes < gpu.multiprocessors * _FEW):
        lanes //= 2
    runs = math.prod(sizes[:-1]) * -(-sizes[-1] // lanes) if sizes else 1
    plan = {"rank": len(extents), "groups": groups, "sizes": sizes, "lanes": lanes, "runs": runs}
    return by_threads(gpu, plan, spread(gpu, runs))


def by_threads(gpu: Gpu, plan: Data, threads: int) -> Data:
    """The walk by blocks of that many threads."""
    blocks = min(-(-plan["runs"] // threads), gpu.multiprocessors * (gpu.resident // threads) * _WAVES)
    return {**plan, "threads": threads, "blocks": max(1, blocks)}


def _ragged(sizes: Sequence[int], lanes: int) -> bool:
    """Whether rows would end in the middle of a run; the end of a single row is taken by one thread."""
    return sizes[-1] % lanes != 0 if len(sizes) > 1 else sizes[-1] < lanes


def over(k: Any, plan: Data, block: Any, thread: Any, body: Callable[[list[Any], int], None]) -> None:
    """Calls ``body(coordinates, lanes)`` for the runs of a thread. ``block`` counts from the walk's first one."""
    step = plan["blocks"] * plan["threads"]
    first = k.bind(block * plan["threads"] + thread, "run")
    turns = -(-plan["runs"] // step)
    with k.loop(turns) as turn:
        run = first if turns == 1 else k.bind(first + turn * step, "run")
        with k.when(True if plan["runs"] % step == 0 else run < plan["runs"]):
            _run(k, plan, run, body)


def _run(k: Any, plan: Data, run: Any, body: Callable[[list[Any], int], None]) -> None:
    sizes, lanes = plan["sizes"], plan["lanes"]
    if not sizes:
        body([(0, 0)] * plan["rank"], 1)
        return
    whole = sizes[-1] // lanes
    *outer, last = split(k, run, [*sizes[:-1], -(-sizes[-1] // lanes)])

    def at(start: Any, width: int) -> None:
        coords: list[Any] = [(0, 0)] * plan["rank"]
        for group, index in zip(plan["groups"], [*outer, None], strict=True):
            # a merged group's last axis carries the flat index: addresses are affine, so that is enough
            coords[group[-1]] = (start, 1 if width > 1 else 0) if index is None else (index, 0)
        body(coords, width)

    rest = pieces(sizes[-1] - whole * lanes, lanes)
    with k.when(last < whole if rest else True):
        at(last * lanes if lanes > 1 else last, lanes)
    if rest:
        with k.when(last >= whole):
            for start, width in rest:
                at(whole * lanes + start, width)


def split(k: Any, index: Any, sizes: Sequence[int]) -> list[Any]:
    """The coordinates, in a space of ``sizes``, of a flat index that is not negative."""
    from tvm import tirx

    found: list[Any] = []
    for size in reversed(sizes[1:]):
        found.insert(0, k.bind(tirx.truncmod(index, size), "at") if size > 1 else 0)
        index = k.bind(tirx.truncdiv(index, size), "rest") if size > 1 else index
    return [index if sizes[0] > 1 else 0, *found] if sizes else []


def rounds_each(program: Data) -> bool:
    """Whether products must be rounded by themselves: integers are rescaled by floats (``DeviceBuilder.contract``)."""
    kinds = [o["dtype"] for o in (*program["inputs"], *program["outputs"], *program["nodes"])]
    return any(kind in ("int8", "uint8", "int16", "uint16") for kind in kinds)


def streaming(region: Region, gpu: Gpu, blocks: int, threads: int, *, work: float = 1.0, again: float = 1.0) -> float:
    """Nanoseconds of a pass over a region's tensors: ``work`` instructions for an element of the results, the inputs
    asked for ``again`` times."""
    inputs = sum(o.type.nbytes for o in region.inputs)
    outputs = sum(o.type.nbytes for o in region.outputs)
    size = max((o.type.size for o in region.outputs), default=1)
    near = inputs * max(0.0, again - 1)
    return nanoseconds(gpu, Load(blocks, threads, plain=size * work, far=inputs + outputs, near=near))
