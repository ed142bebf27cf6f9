"""Running sums and products on a GPU.

Where memory runs along the axis, a warp goes over a row in steps of its lanes: each step is a scan by shuffles (Hillis
and Steele, "Data Parallel Algorithms", 1986) on top of what came before. Else each thread has a column.
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
        """A warp goes over a row. Lanes behind its end take in nothing and store nothing."""
        from tvm import tirx

        k, extent = self.k, self.c["extent"]
        running = k.register(self.dtype, 1, "running")
        running.set(self.start())
        with k.loop(-(-extent // _WARP)) as i:
            at = k.bind(i * _WARP + self.walk.y, "e")
            value = k.register(self.dtype, 1, "value")
            value.set(self.start())
            there = tirx.all(tirx.LT(at, extent), tirx.const(True, "bool") & self.walk.inside)
            there = k.bind(there, "there")
            with k.when(there):
                value.set(self.read(self.place(unit, at)))
            found, before = self._scanned(value.get(), running.get())
            running.set(from_lane(k, found, _WARP - 1))
            with k.when(there):
                self.store(self.place(unit, at), before if self.c["exclusive"] else found)

    def _scanned(self, value: Any, carry: Any) -> tuple[Any, Any]:
        """The scan up to and with each lane, and without it, on top of ``carry``."""
        from tvm import tirx

        from ..tir import select

        k, lane = self.k, self.walk.y
        value, carry = k.bind(value), k.bind(carry)
        distance = 1
        while distance < _WARP:
            other = k.bind(from_lane(k, value, tirx.Max(lane - distance, 0)))
            value = k.bind(select(tirx.GE(lane, distance), self.joined(other, value), value))
            distance *= 2
        found = self.joined(carry, value)
        previous = k.bind(from_lane(k, found, tirx.Max(lane - 1, 0)))
        return found, k.bind(select(tirx.EQ(lane, 0), carry, previous))


TEMPLATE = Template("cuda_scan", ("cumsum", "cumprod"), plan, {"cuda_scan": emit}, device=True)
