"""Running sums and products on a GPU.

Where memory runs along the axis, a warp goes over a row in steps of its lanes: each step is a scan by shuffles (Hillis
and Steele, "Data Parallel Algorithms", 1986) on top of what came before. A long row has a block, whose warps leave what
they come to in shared memory. Else each thread has a column.
"""

from __future__ import annotations

from typing import Any

from ...ops.shapes import normalise_axis
from ..expr import serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cuda_rows import DeviceWalk, device_walk, from_lane, walk_cost
from ._rows import Coords, Unit, axis_strides, source
from .reduce import accumulator

_WARP, _ROWS = 32, 4  # lanes of a row, rows of a block
_LONG, _BLOCK = 512, 512  # elements of a row that a block is worth, its threads
_COLUMNS = 64  # threads of a block, where each has a column


def plan(region: Region) -> list[Plan]:
    """One plan; none for empty tensors."""
    x = region.body.type(source(region))
    if x.size == 0:
        return []
    axis = normalise_axis(region.attrs["axis"], x.rank)
    space = device_walk(region, [axis], axis_strides(region, range(x.rank)))
    units = space["units"]
    x_size, y_size = (_ROWS, _WARP) if space["across"] else (min(_COLUMNS, units), 1)
    if space["across"] and x.dims[axis] > _LONG:
        x_size, y_size = 1, _BLOCK
    space |= {"x": x_size, "y": y_size, "parts": 1, "chunk": x.dims[axis], "tasks": -(-units // x_size)}
    space["unrolled"] = False
    config = {
        "program": serialize(region),
        "op": region.op,
        "axis": axis,
        "extent": x.dims[axis],
        "dtype": accumulator(region.op, x.dtype),
        "exclusive": bool(region.attrs["exclusive"]),
        "reverse": bool(region.attrs["reverse"]),
        "walk": space,
    }
    args = (*(Arg("in", i) for i in range(len(region.inputs))), *(Arg("out", i) for i in range(len(region.outputs))))
    draft = Draft(KernelSpec("cuda_scan", config), args, space["tasks"])
    detail = f"{region.op}, {'warps' if space['across'] else 'columns'}"
    return [Plan("cuda_scan", (draft,), walk_cost(region, space, passes=2), detail=detail)]


# -- emitting ------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    kernel = _Scan(k, config)
    kernel.walk.run(kernel.rows if kernel.walk.across else kernel.column)


class _Scan:
    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        from ..evaluate import Evaluator

        self.k, self.c, self.dtype = k, config, config["dtype"]
        program = config["program"]
        inputs = [k.arg(f"x{i}", o["dtype"], o["span"]) for i, o in enumerate(program["inputs"])]
        self.outputs = [k.arg(f"y{i}", o["dtype"], o["span"]) for i, o in enumerate(program["outputs"])]
        self.result: Any = None
        self.ev = Evaluator(k, program, inputs, anchor=lambda number, coords: self.result)
        self.walk = DeviceWalk(k, config["walk"])
        self.number = program["anchor"][0]
        self.given = program["nodes"][self.number - len(inputs)]["args"][0]

    def joined(self, a: Any, b: Any) -> Any:
        return self.k.bind(a + b if self.c["op"] == "cumsum" else a * b)

    def start(self) -> Any:
        from ..tir import constant

        return constant(0 if self.c["op"] == "cumsum" else 1, self.dtype)

    def place(self, unit: Unit, at: Any) -> Coords:
        """Logical coordinates of the element that comes as number ``at``."""
        coords = self.walk.logical([(b, 0) for b in unit.base])
        coords[self.c["axis"]] = (self.k.bind(self.c["extent"] - 1 - at if self.c["reverse"] else at, "at"), 0)
        return coords

    def read(self, coords: Coords) -> Any:
        from ..functions import cast

        self.ev.begin()
        return self.k.bind(cast(self.ev.value(self.given, coords), self.dtype))

    def store(self, coords: Coords, value: Any) -> None:
        from ..functions import cast

        self.result = self.k.bind(cast(value, self.ev.dtype(self.number)))
        self.ev.begin()
        self.ev.store_all(self.outputs, coords)

    def column(self, unit: Unit) -> None:
        """One thread goes over a column."""
        k = self.k
        running = k.register(self.dtype, 1, "running")
        running.set(self.start())
        with k.when(self.walk.inside), k.loop(self.c["extent"]) as i:
            coords = self.place(unit, i)
            x, before = self.read(coords), k.bind(running.get())
            running.set(self.joined(before, x))
            self.store(coords, before if self.c["exclusive"] else running.get())

    def rows(self, unit: Unit) -> None:
        """The threads of a row go over it. Those behind its end take in nothing and store nothing."""
        from tvm import tirx

        k, extent, threads = self.k, self.c["extent"], self.walk.y_size
        warps = threads // _WARP
        totals = k.shared(self.dtype, 2 * warps, "totals") if warps > 1 else None
        running = k.register(self.dtype, 1, "running")
        running.set(self.start())
        with k.loop(-(-extent // threads)) as i:
            at = k.bind(i * threads + self.walk.y, "e")
            value = k.register(self.dtype, 1, "value")
            value.set(self.start())
            there = k.bind(tirx.all(tirx.LT(at, extent), tirx.const(True, "bool") & self.walk.inside), "there")
            with k.when(there):
                value.set(self.read(self.place(unit, at)))
            own, before = self._scanned(k.bind(value.get()))
            carry = k.bind(running.get())
            if totals is None:
                running.set(self.joined(carry, from_lane(k, own, _WARP - 1)))
            else:
                carry = self._warps(totals, k.bind(i % 2 * warps, "side"), own, running)
            with k.when(there):
                self.store(self.place(unit, at), self.joined(carry, before if self.c["exclusive"] else own))

    def _scanned(self, value: Any) -> tuple[Any, Any]:
        """The scan of a warp's values up to and with each lane, and without it."""
        from tvm import tirx

        from ..tir import select

        k, lane = self.k, self._lane()
        distance = 1
        while distance < _WARP:
            other = k.bind(from_lane(k, value, tirx.Max(lane - distance, 0)))
            value = k.bind(select(tirx.GE(lane, distance), self.joined(other, value), value))
            distance *= 2
        previous = k.bind(from_lane(k, value, tirx.Max(lane - 1, 0)))
        return value, k.bind(select(tirx.EQ(lane, 0), self.start(), previous))

    def _lane(self) -> Any:
        from tvm import tirx

        return self.walk.y if self.walk.y_size == _WARP else tirx.truncmod(self.walk.y, _WARP)

    def _warps(self, totals: Any, side: Any, own: Any, running: Any) -> Any:
        """What comes before this warp; ``running`` takes in all warps. The halves of ``totals`` take turns, so that
        one barrier is enough."""
        from tvm import tirx

        k, warps = self.k, self.walk.y_size // _WARP
        warp = k.bind(tirx.truncdiv(self.walk.y, _WARP), "warp")
        with k.when(tirx.EQ(self._lane(), _WARP - 1)):
            k.store(totals, side + warp, own)
        k.barrier()
        carry = k.register(self.dtype, 1, "carry")
        carry.set(running.get())
        with k.loop(warps) as w:
            with k.when(tirx.EQ(w, warp)):
                carry.set(running.get())
            running.set(self.joined(k.bind(running.get()), k.bind(k.load(totals, side + w))))
        return k.bind(carry.get())


TEMPLATE = Template("cuda_scan", ("cumsum", "cumprod"), plan, {"cuda_scan": emit}, device=True)
