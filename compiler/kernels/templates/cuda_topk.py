"""topk on a GPU: a block for each row.

Entries (an order-preserving image of the key above the element's index) are sorted in shared memory by a bitonic
network (Batcher, "Sorting networks and their applications", 1968). A row longer than that memory comes in turns: the
best so far stay, the rest is filled anew. A few of a long row are rather looked for one after the other.
"""

from __future__ import annotations

import math
from typing import Any

from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import alone
from ._cuda_cost import Load, nanoseconds
from ._cuda_rows import exchanged, floor2
from ._rows import split_index
from ._sort import packed, unpacked

_MOST = 8192  # entries in shared memory
_ENTRY = 8  # bytes
_STAGE, _PAIR, _LOOK, _FOUND = 40, 24, 8, 250  # cycles: of a stage, a pair in it, an element, and a turn of a search


def plan(region: Region) -> list[Plan]:
    """One plan for keys of up to 32 bits and up to 4096 of them, where nothing is fused."""
    gpu, x = region.machine.gpu, region.operand(0)
    assert gpu is not None
    if x is None or len(region.outputs) != 2 or not alone(region):
        return []
    type_, count = region.inputs[x].type, region.attrs["k"]
    axis = region.attrs["axis"] % type_.rank
    size, rows = type_.dims[axis], type_.size // max(1, type_.dims[axis])
    if type_.size == 0 or count == 0 or type_.itemsize > 4 or type_.dtype == "bool":
        return []
    room = 1 << (max(2, min(size, _MOST)) - 1).bit_length()
    if size > room and count > room // 2:
        return []
    threads = max(32, min(gpu.threads, room // 2))
    sorts = 1 + (-(-(size - room) // (room - count)) if size > room else 0)
    stages = room.bit_length() * (room.bit_length() - 1) // 2
    sorting = sorts * stages * (_STAGE + _PAIR * room // 2 // threads)
    wide = max(32, min(gpu.threads, floor2(size)))
    looking = count * (_FOUND + _LOOK * size // wide)
    looks = looking < sorting
    config: dict[str, Any] = {
        "program": serialize(region),
        "axis": axis,
        "count": count,
        "size": size,
        "rows": rows,
        "room": room,
        "largest": bool(region.attrs["largest"]),
        "threads": wide if looks else threads,
    }
    load = Load(
        blocks=rows,
        threads=config["threads"],
        shared=0 if looks else room * _ENTRY,
        far=sum(o.type.nbytes for o in (*region.inputs, *region.outputs)),
        chain=min(looking, sorting),
    )
    spec = KernelSpec("cuda_topk.look" if looks else "cuda_topk.sort", config)
    draft = Draft(spec, (Arg("in", x), Arg("out", 0), Arg("out", 1)), rows)
    how = "one after the other" if looks else f"sorted {room} at once"
    return [Plan("cuda_topk", (draft,), nanoseconds(gpu, load), detail=f"topk, {how}")]


# -- emitting ------------------------------------------------------------------------------------------------------


class _Row:
    """One block's row."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c = k, config
        program = config["program"]
        self.x = k.arg("x", program["inputs"][0]["dtype"], program["inputs"][0]["span"])
        self.out = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.ev = Evaluator(k, program, [self.x])

    def start(self, row: Any, thread: Any) -> None:
        self.thread = thread
        self.coords: list[Any] = [(0, 0)] * len(self.c["program"]["inputs"][0]["shape"])
        for axis, extent in reversed(list(enumerate(self.c["program"]["inputs"][0]["shape"]))):
            if axis != self.c["axis"]:
                row, index = split_index(row, extent)
                self.coords[axis] = (index if isinstance(index, int) else self.k.bind(index, "at"), 0)

    def place(self, at: Any) -> list[Any]:
        return [(at, 0) if a == self.c["axis"] else c for a, c in enumerate(self.coords)]

    def key(self, at: Any) -> Any:
        return self.k.bind(self.ev.read(0, self.place(at)), "key")

    def entry(self, at: Any) -> Any:
        """Ascending entries are the order that is asked for, equal keys in the order of their indices."""
        return self.k.bind(packed(self.k, self.key(at), at, self.c["largest"]), "entry")

    def put(self, number: Any, entry: Any) -> None:
        from ..functions import cast

        at = self.k.bind(unpacked(self.k.bind(entry)), "which")
        for out, operand, value in zip(
            self.out, self.c["program"]["outputs"], (self.key(at), cast(at, "int64")), strict=True
        ):
            base, _ = self.ev.address(operand["strides"], self.place(number))
            self.k.store(out, base, value)


def _last() -> Any:
    """An entry behind all others."""
    from ..tir import constant

    return constant((1 << 63) - 1, "int64")


def emit_look(k: Any, config: dict[str, Any]) -> None:
    """Each turn finds the first entry behind the one before: the smallest of those larger than it."""
    from tvm import tirx

    from ..tir import constant, minimum, select

    row, threads = _Row(k, config), config["threads"]
    warps = threads // 32
    with k.grid(config["rows"], threads) as (block, thread):
        row.start(block, thread)
        warp, lane = (k.bind(v) for v in split_index(thread, 32))
        best = k.shared("int64", 2 * warps, "best")
        before, found = k.register("int64", 1, "before"), k.register("int64", 1, "found")
        before.set(constant(-(1 << 63), "int64"))
        with k.loop(config["count"], name="turn") as turn:
            found.set(_last())
            with k.loop(-(-config["size"] // threads)) as i:
                at = k.bind(i * threads + thread, "at")
                with k.when(tirx.LT(at, config["size"])):
                    entry = row.entry(at)
                    better = tirx.all(entry > before.get(), entry < found.get())
                    found.set(select(better, entry, found.get()))
            value, side = k.bind(found.get()), k.bind(split_index(turn, 2)[1] * warps)
            for distance in (16, 8, 4, 2, 1):
                value = k.bind(minimum(value, k.bind(exchanged(k, value, distance))))
            with k.when(tirx.EQ(lane, 0)):
                k.store(best, side + warp, value)
            k.barrier()  # the other half is written next, so that nobody overtakes those who read
            before.set(k.load(best, side))
            with k.loop(warps - 1) as i:
                before.set(minimum(before.get(), k.load(best, side + 1 + i)))
            with k.when(tirx.EQ(thread, 0)):
                row.put(turn, before.get())


def emit_sort(k: Any, config: dict[str, Any]) -> None:
    """Sorts what fits; of longer rows, what is left with the best so far, until nothing is."""
    from tvm import tirx

    row, room, size, count = _Row(k, config), config["room"], config["size"], config["count"]
    threads = config["threads"]
    with k.grid(config["rows"], threads) as (block, thread):
        row.start(block, thread)
        held = k.shared("int64", room, "entries")

        def fill(first: int, source: Any) -> None:
            with k.loop(-(-(room - first) // threads)) as i:
                at = k.bind(first + i * threads + thread, "at")
                with k.when(tirx.LT(at, room)):
                    k.store(held, at, _last())
                    from_ = k.bind(source + (at - first), "from")
                    with k.when(tirx.LT(from_, size)):
                        k.store(held, at, row.entry(from_))

        fill(0, 0)
        _sorted(k, held, room, threads, thread)
        if size > room:
            with k.loop(-(-(size - room) // (room - count)), name="turn") as turn:
                fill(count, k.bind(room + turn * (room - count), "source"))
                _sorted(k, held, room, threads, thread)
        with k.loop(-(-count // threads)) as i:
            at = k.bind(i * threads + thread, "at")
            with k.when(tirx.LT(at, count)):
                row.put(at, k.load(held, at))


def _sorted(k: Any, held: Any, room: int, threads: int, thread: Any) -> None:
    """Batcher's bitonic network over ``room`` entries, a power of two."""
    from tvm import tirx

    from ..tir import shift_left, shift_right

    one = tirx.IntImm("int32", 1)
    with k.loop(int(math.log2(room)), name="size") as size, k.loop(size + 1, name="step") as step:
        k.barrier()
        shift = k.bind(size - step, "shift")
        distance = k.bind(shift_left(one, shift), "distance")
        with k.loop(-(-room // (2 * threads))) as i:
            pair = k.bind(i * threads + thread, "pair")
            with k.when(tirx.LT(pair, room // 2)):
                low = k.bind(shift_left(shift_right(pair, shift), shift + 1) + tirx.bitwise_and(pair, distance - 1))
                a, b = k.bind(k.load(held, low)), k.bind(k.load(held, low + distance))
                up = tirx.EQ(tirx.bitwise_and(shift_right(low, size + 1), one), 0)
                with k.when(tirx.EQ(up, a > b)):
                    k.store(held, low, b)
                    k.store(held, low + distance, a)
    k.barrier()


EMITTERS = {"cuda_topk.look": emit_look, "cuda_topk.sort": emit_sort}
TEMPLATE = Template("cuda_topk", ("topk",), plan, EMITTERS, device=True)
