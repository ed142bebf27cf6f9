"""Matrix products that are deeper than the caches: the depth is taken in parts, and a block's sums wait in scratch.

So it is with the gradients of weights, ``G^T X`` over all rows of a batch: a walk through the whole depth for each
register tile would leave the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._contract import Contraction, Reduction
from ._tile import vector_spans


class Deep(Contraction):
    """``config["deep"]``: ``parts`` of ``size`` steps, then one of ``rest``; a block has ``rows``."""

    def __init__(self, k: Any, config: dict[str, Any]) -> None:
        super().__init__(k, config, Reduction)
        columns, deep = config["columns"], config["deep"]
        widest = max([columns["nv"] * columns["lanes"]] * (columns["full"] > 0) + [sum(r[2]) for r in columns["rests"]])
        self.sums = k.arg("sums", self.dtype, deep["rows"] * widest)
        self.first: Any = 0  # row of the block
        self.begin: Any = 0  # of the part
        self.last = False

    def _lines(self, chosen: Sequence[Any], group: tuple[Any, Any, list[int], list[int]]) -> None:
        from ..tir import constant

        *outer, _, block = chosen
        k, deep, widths = self.k, self.config["deep"], group[2]
        self.first = block * (self.point["block"] * self.point["segments"][0]["count"])
        with k.loop(deep["rows"]) as row:
            for at, w in vector_spans(widths):
                k.store(self.sums, row * sum(widths) + at, constant(0, self.dtype, w))
        whole = self.inner
        with k.loop(deep["parts"], name="part") as i:
            self._part(outer, block, group, i * deep["size"], deep["size"], False)
        self._part(outer, block, group, deep["parts"] * deep["size"], deep["rest"], True)
        self.inner = whole

    def _part(self, outer: Sequence[Any], block: Any, group: Any, begin: Any, count: int, last: bool) -> None:
        self.begin, self.last, self.inner = begin, last, {**self.inner, "taps": count}
        self._points(outer, 0, block, group)

    def _tile(self, outer: Sequence[Any], y: Any, x: Any, segment: dict[str, Any], group: Any) -> None:
        k, config = self.k, self.config
        column, _, widths, valid = group
        a = sum((i * o["a"] for i, o in zip(outer, self.outer, strict=True)), start=x * self.point["a"])
        b = sum((i * o["b"] for i, o in zip(outer, self.outer, strict=True)), start=column)
        a, b = a + self.begin * self.inner["tap_a"], b + self.begin * config["b"]["step"]
        acc = [[k.register(self.dtype, w, "acc") for w in widths] for _ in range(segment["count"])]
        places = []
        for p, row in enumerate(acc):
            base = k.bind((x - self.first + p) * sum(widths))
            places += [(register, base + at) for register, (at, _) in zip(row, vector_spans(widths), strict=True)]
        for register, place in places:
            register.set(k.load(self.sums, place, register.lanes))
        self.reduction(self, acc, widths, config["b"]["step"], segment, {"z": 0, "y": y, "x": x}).emit(a, b)
        if self.last:
            self._finish(outer, y, x, column, valid, acc)
        else:
            for register, place in places:
                k.store(self.sums, place, register.get())


def emit(k: Any, config: dict[str, Any]) -> None:
    """Arguments: A, B, the epilogue's inputs, the outputs, scratch."""
    Deep(k, config).run()
