"""nms on a GPU: a block for each class, which takes the best box that is left, drops those that overlap it, and so on.

What is left after each choice is what no chosen box overlaps, so the choices are those of boxes that are sorted and
looked at one after the other. A second kernel writes the choices of all classes behind one another.
"""

from __future__ import annotations

from typing import Any

from ..expr import plain, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._boxes import Cursor, alone, put
from ._cuda_cost import Load, nanoseconds
from ._cuda_walk import split
from ._nest import Data
from ._sort import packed, unpacked
from .nms import Kernel

_THREADS = 256
_GONE = (1 << 63) - 1  # the entry of a box that is chosen or dropped: behind all others
_CHOICE = 400.0  # cycles of a choice beside those for the boxes
_BOX = 40.0


def plan(region: Region) -> list[Plan]:
    boxes, scores, gpu = region.operand(0), region.operand(1), region.machine.gpu
    if gpu is None or boxes is None or scores is None or len(region.outputs) != 2 or not alone(region):
        return []
    batch, classes, count = region.inputs[scores].type.dims
    most, pairs = min(count, region.attrs["max_output"]), batch * classes
    if not pairs * most:
        return []
    config = {"program": serialize(region), "attrs": plain(dict(region.attrs)), "consts": [], "most": most}
    places = (0, 8 * pairs * count, 8 * pairs * count + 4 * pairs * most)
    args = (*(Arg("in", i) for i in range(len(region.inputs))), Arg("out", 0), Arg("out", 1))
    args = (*args, *(Arg("shared", 0, at) for at in places))
    phases = (
        Draft(KernelSpec("cuda_nms", config), args, pairs),
        Draft(KernelSpec("cuda_nms.write", config), args, 1),
    )
    chain = most * (_CHOICE + _BOX * -(-count // _THREADS))
    cost = nanoseconds(gpu, Load(pairs, _THREADS, chain=chain)) + nanoseconds(gpu, Load(1, _THREADS))
    return [Plan("cuda_nms", phases, cost, shared_bytes=places[2] + 4 * pairs, detail="nms, a block a class")]


class _Classes(Kernel):
    """The kernels' arguments: entries of the boxes, the chosen boxes, and how many those are, for each class."""

    def __init__(self, k: Any, config: Data) -> None:
        self.k, self.config = k, config
        self.cursor = Cursor(k, config, lambda cursor, index, lanes: None)
        self.attrs, self.most = config["attrs"], config["most"]
        self.batch, self.classes, self.count = self.cursor.shape(1)
        self.pairs = self.batch * self.classes
        self.entries = k.arg("entries", "int64", self.pairs * self.count)
        self.chosen = k.arg("chosen", "int32", self.pairs * self.most)
        self.counts = k.arg("counts", "int32", self.pairs)

    def choose(self, pair: Any, thread: Any) -> None:
        from tvm import tirx

        from ..tir import constant

        k = self.k
        b, c = split(k, pair, [self.batch, self.classes])
        self.thread, self.first = thread, k.bind(pair * self.count, "first")
        self.least = k.shared("int64", _THREADS // 32, "least")
        local, kept = k.register("int64", 1, "local"), k.register("int32", 1, "kept")
        kept.set(constant(0, "int32"))
        local.set(constant(_GONE, "int64"))
        self._enter(b, c, local)
        best = k.register("int64", 1, "best")
        best.set(self._least(local))
        with k.loop(self.most, name="choice"), k.when(tirx.NE(best.get(), constant(_GONE, "int64"))):
            box = k.bind(unpacked(best.get()), "box")
            with k.when(thread < 1):
                k.store(self.chosen, pair * self.most + kept.get(), box)
            kept.set(kept.get() + 1)
            self._drop(b, box, local)
            best.set(self._least(local))
        with k.when(thread < 1):
            k.store(self.counts, pair, kept.get())

    def _each(self, body: Any) -> None:
        """``body(box)`` for the boxes of a thread."""
        k = self.k
        with k.loop(-(-self.count // _THREADS), name="turn") as turn:
            at = k.bind(turn * _THREADS + self.thread, "at")
            with k.when(at < self.count):
                body(at)

    def _enter(self, b: Any, c: Any, local: Any) -> None:
        """Entries of all boxes above the threshold; of a thread's the least to ``local``."""
        from ..tir import constant, minimum, select

        k, threshold = self.k, self.attrs["score_threshold"]

        def enter(at: Any) -> None:
            self.cursor.ev.begin()
            score = k.bind(self.cursor.value(1, [(b, 0), (c, 0), (at, 0)], 1), "score")
            entry = k.bind(packed(k, score, at, True), "entry")
            if threshold is not None:
                entry = k.bind(select(score > constant(threshold, "float32"), entry, constant(_GONE, "int64")), "entry")
            k.store(self.entries, self.first + at, entry)
            local.set(minimum(local.get(), entry))

        self._each(enter)

    def _drop(self, b: Any, box: Any, local: Any) -> None:
        """Takes the chosen box away and those that overlap it; the least entry that is left to ``local``."""
        from tvm import tirx

        from ..tir import constant, minimum

        k, gone = self.k, constant(_GONE, "int64")
        chosen = self.facts(b, box)
        local.set(gone)

        def drop(at: Any) -> None:
            entry = k.bind(k.load(self.entries, self.first + at), "entry")
            with k.when(tirx.NE(entry, gone)):
                hit = k.bind(tirx.Or(tirx.EQ(at, box), self.overlaps(self.facts(b, at), chosen)), "hit")
                with k.when(hit):
                    k.store(self.entries, self.first + at, gone)
                with k.when(tirx.Not(hit)):
                    local.set(minimum(local.get(), entry))

        self._each(drop)

    def _least(self, local: Any) -> Any:
        """The least entry of all threads."""
        from ..tir import minimum

        k = self.k
        value = k.register("int64", 1, "value")
        value.set(local.get())
        for step in (16, 8, 4, 2, 1):
            other = k.bind(k.device("nv_shuffle_xor_int64", "int64", value.get(), step), "other")
            value.set(minimum(value.get(), other))
        k.barrier()  # the least of the turn before has been read by all
        with k.when(self.thread % 32 < 1):
            k.store(self.least, self.thread // 32, value.get())
        k.barrier()
        return k.bind(k.fold([k.load(self.least, i) for i in range(_THREADS // 32)], minimum), "least")

    def write(self, thread: Any) -> None:
        from tvm import tirx

        from ..functions import cast
        from ..tir import constant

        k = self.k
        total, start = k.register("int32", 1, "total"), k.register("int32", 1, "start")
        total.set(constant(0, "int32"))
        with k.loop(self.pairs, name="pair") as pair:
            start.set(total.get())
            found = k.bind(k.load(self.counts, pair), "found")
            total.set(total.get() + found)
            b, c = split(k, constant(0, "int32") + pair, [self.batch, self.classes])
            with k.loop(-(-self.most // _THREADS), name="turn") as turn:
                at = k.bind(turn * _THREADS + thread, "at")
                with k.when(at < found):
                    box = k.load(self.chosen, pair * self.most + at)
                    for column, value in enumerate((b, c, box)):
                        put(
                            self.cursor,
                            0,
                            [(start.get() + at, 0), (column, 0)],
                            cast(value + constant(0, "int32"), "int64"),
                        )
        rows = self.pairs * self.most
        with k.loop(-(-rows // _THREADS), name="turn") as turn:
            at = k.bind(turn * _THREADS + thread, "at")
            with k.when(tirx.And(at >= total.get(), at < rows)):
                for column in range(3):
                    put(self.cursor, 0, [(at, 0), (column, 0)], constant(0, "int64"))
        with k.when(thread < 1):
            put(self.cursor, 1, [], cast(total.get(), "int64"))


def emit(k: Any, config: Data) -> None:
    kernel = _Classes(k, config)
    with k.grid(kernel.pairs, _THREADS) as (pair, thread):
        kernel.choose(pair, thread)


def emit_write(k: Any, config: Data) -> None:
    kernel = _Classes(k, config)
    with k.grid(1, _THREADS) as (_, thread):
        kernel.write(thread)


TEMPLATE = Template("cuda_nms", ("nms",), plan, {"cuda_nms": emit, "cuda_nms.write": emit_write}, device=True)
