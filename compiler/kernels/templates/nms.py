"""nms: per class the candidates above the threshold, sorted by score, each kept unless a kept one overlaps it."""

from __future__ import annotations

from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, expr32, move_cost, put
from ._nest import Data
from ._sort import packed, sort, unpacked

_FACTS = 5  # of a kept box: its corners and its area


def plan(region: Region) -> list[Plan]:
    boxes, scores = region.operand(0), region.operand(1)
    if boxes is None or scores is None or len(region.outputs) != 2 or not alone(region):
        return []
    batch, classes, count = region.inputs[scores].type.dims
    most = min(count, region.attrs["max_output"])
    config = {"program": serialize(region), "attrs": plain(dict(region.attrs)), "consts": [], "most": most}
    args = (*(Arg("in", i) for i in range(len(region.inputs))), Arg("out", 0), Arg("out", 1))
    scratch = (Arg("worker"), Arg("worker", offset=16 * count))
    draft = Draft(KernelSpec("nms", config), (*args, *scratch))
    cost = move_cost(region) + batch * classes * count * (15.0 + 0.1 * most)
    worker = 16 * count + 4 * _FACTS * (most + region.machine.lanes)
    return [Plan("nms", (draft,), cost, worker_bytes=worker, detail="nms")]


def emit(k: Any, config: Data) -> None:
    from ..functions import cast
    from ..tir import constant

    kernel = Kernel(k, config)
    batch, classes, count = kernel.cursor.shape(1)
    if batch * classes * count * config["most"]:
        with k.loop(batch) as b, k.loop(classes) as c:
            kernel.of_class(b, c)
    rows = batch * classes * config["most"]
    with k.loop(rows - kernel.found.get()) as i:
        for column in range(3):
            put(kernel.cursor, 0, [(kernel.found.get() + i, 0), (column, 0)], constant(0, "int64"))
    put(kernel.cursor, 1, [], cast(kernel.found.get(), "int64"))


class Kernel:
    def __init__(self, k: Any, config: Data) -> None:
        from ..tir import constant

        self.k, self.config = k, config
        self.cursor = Cursor(k, config, lambda cursor, index, lanes: None)
        self.attrs, self.most = config["attrs"], config["most"]
        self.count = self.cursor.shape(1)[2]
        self.scratch = k.arg("entries", "int64", 2 * self.count)
        self.room = self.most + k.lanes  # the last vector of kept boxes may reach beyond them
        self.kept = k.arg("kept", "float32", _FACTS * self.room)
        self.found = k.register("int32", 1, "found")
        self.found.set(constant(0, "int32"))

    def of_class(self, b: Any, c: Any) -> None:
        from tvm import tirx

        from ..functions import cast
        from ..tir import constant

        k = self.k
        candidates, kept = k.register("int32", 1, "candidates"), k.register("int32", 1, "kept")
        candidates.set(constant(0, "int32"))
        kept.set(constant(0, "int32"))

        def score(i: Any) -> Any:
            self.cursor.ev.begin()
            return self.cursor.value(1, [(b, 0), (c, 0), (i, 0)], 1)

        threshold = self.attrs["score_threshold"]
        with (
            k.loop(self.count) as i,
            k.when(True if threshold is None else score(i) > constant(threshold, "float32")),
        ):
            k.store(self.scratch, candidates.get(), packed(k, score(i), expr32(i), True))
            candidates.set(candidates.get() + 1)
        total = k.bind(candidates.get(), "total")
        first = sort(k, self.scratch, self.count, total)
        with k.loop(total) as i, k.when(kept.get() < self.most):
            box = k.bind(unpacked(k.load(self.scratch, first + i)), "box")
            facts = self.facts(b, box)
            with k.when(tirx.Not(self._overlapped(facts, kept.get()))):
                for row, fact in enumerate(facts):
                    k.store(self.kept, row * self.room + kept.get(), fact)
                kept.set(kept.get() + 1)
                for column, value in enumerate((b, c, box)):
                    put(self.cursor, 0, [(self.found.get(), 0), (column, 0)], cast(expr32(value), "int64"))
                self.found.set(self.found.get() + 1)

    def _overlapped(self, facts: list[Any], kept: Any) -> Any:
        """Whether one of the kept boxes overlaps this one, a vector of them at a time."""
        from tvm import tirx

        from ..tir import constant, select, splat

        k, lanes = self.k, self.k.lanes
        hits = k.register("int32", lanes, "hits")
        zero, one = constant(0, "int32", lanes), constant(1, "int32", lanes)
        hits.set(zero)
        with k.loop(tirx.floordiv(kept + lanes - 1, lanes)) as i:
            others = [k.bind(k.load(self.kept, row * self.room + i * lanes, lanes), "other") for row in range(_FACTS)]
            numbers = tirx.Ramp(i * lanes, 1, lanes) if lanes > 1 else i
            hit = tirx.And(numbers < splat(kept, lanes), self.overlaps([splat(f, lanes) for f in facts], others))
            hits.set(hits.get() + select(hit, one, zero))
        return k.bind(k.across(hits.get(), lambda x, y: x + y) > 0, "overlapped")

    def facts(self, b: Any, box: Any) -> list[Any]:
        """Low and high along both axes (the corners of a box may come in any order), and the area."""
        from ..tir import like, maximum, minimum

        self.cursor.ev.begin()
        place = [self.cursor.value(0, [(b, 0), (box, 0), (i, 0)], 1) for i in range(4)]
        first, second = place[:2], place[2:]
        if self.attrs["center_point_box"]:
            half = [v / like(2, v) for v in second]
            corners = [m - h for m, h in zip(first, half, strict=True)]
            corners += [m + h for m, h in zip(first, half, strict=True)]
        else:
            corners = [minimum(a, z) for a, z in zip(first, second, strict=True)]
            corners += [maximum(a, z) for a, z in zip(first, second, strict=True)]
        corners = [self.k.bind(v, "corner") for v in corners]
        return [*corners, self.k.bind((corners[2] - corners[0]) * (corners[3] - corners[1]), "area")]

    def overlaps(self, a: list[Any], b: list[Any]) -> Any:
        from tvm import tirx

        from ..tir import like, maximum, minimum

        k = self.k
        sides = [maximum(minimum(a[2 + i], b[2 + i]) - maximum(a[i], b[i]), like(0, a[i])) for i in (0, 1)]
        shared = k.bind(sides[0] * sides[1], "shared")
        one, two = a[4], b[4]
        union = k.bind(one + two - shared, "union")
        zero, limit = like(0, union), like(self.attrs["iou_threshold"], union)
        valid = tirx.And(tirx.And(one > zero, two > zero), union > zero)
        if self.attrs["iou_threshold"] < 0:  # then even boxes that do not touch overlap
            return tirx.Or(tirx.Not(valid), shared / union > limit)
        return tirx.And(valid, shared / union > limit)


TEMPLATE = Template("nms", ("nms",), plan, {"nms": emit})
