"""The first kernel of a recurrent layer on a GPU: what x gives the gates of all steps (see ``cuda_recurrent``)."""

from __future__ import annotations

import math
from typing import Any

from ._cells import GATES, offset_of
from ._cuda_walk import split

Data = dict[str, Any]
FED = (16, 64)  # lines (steps times batch) and gate units of a block
_DEEP = 32  # features that it takes at once


def fed_size(config: Data) -> int:
    """Elements of what x gives the gates: direction, step, row of the batch, gate unit."""
    return math.prod((config["directions"], config["steps"], config["batch"], GATES[config["op"]] * config["hidden"]))


def emit_feed(k: Any, config: Data) -> None:
    """``fed[d, step, row, gate unit] = W x + bias``, both biases in one where they are added before anything else."""
    from tvm import tirx

    from ..tir import constant

    given = config["given"]
    source = {n: k.arg(n, given[n]["dtype"], given[n]["span"]) for n in ("x", "w", "b") if n in given}
    fed = k.arg("fed", "float32", fed_size(config))
    lines, width = config["steps"] * config["batch"], GATES[config["op"]] * config["hidden"]
    with k.grid(config["tiles"], 256) as (block, thread):
        d, tall, wide = split(k, block, [config["directions"], -(-lines // FED[0]), -(-width // FED[1])])
        xs, ws = k.shared("float32", FED[0] * _DEEP, "xs"), k.shared("float32", FED[1] * (_DEEP + 1), "ws")
        column, group = (k.bind(f(thread, FED[1]), "at") for f in (tirx.truncmod, tirx.truncdiv))
        deep, row = (k.bind(f(thread, _DEEP), "at") for f in (tirx.truncmod, tirx.truncdiv))
        sums = [k.register("float32", 1, "sum") for _ in range(FED[0] * FED[1] // 256)]
        for register in sums:
            register.set(constant(0, "float32"))
        with k.loop(-(-config["features"] // _DEEP), name="part") as part:
            for first in range(0, FED[0], 256 // _DEEP):
                _staged_x(k, config, source["x"], xs, tall * FED[0], row + first, part * _DEEP, deep)
            for first in range(0, FED[1], 256 // _DEEP):
                _staged_w(k, config, source["w"], ws, d, wide * FED[1], row + first, part * _DEEP, deep)
            k.barrier()
            for e in range(_DEEP):
                w = k.bind(k.load(ws, column * (_DEEP + 1) + e), "w")
                for i, register in enumerate(sums):
                    register.add_product(k.load(xs, (group * len(sums) + i) * _DEEP + e), w)
            k.barrier()
        unit = k.bind(wide * FED[1] + column, "unit")
        with k.when(unit < width):
            bias = _bias(k, config, source, d, unit)
            for i, register in enumerate(sums):
                line = k.bind(tall * FED[0] + group * len(sums) + i, "line")
                with k.when(line < lines):
                    k.store(fed, (d * lines + line) * width + unit, register.get() + bias)


def _staged_x(k: Any, config: Data, x: Any, to: Any, base: Any, row: Any, start: Any, deep: Any) -> None:
    """An element of x, or 0 behind its end, to shared memory."""
    from tvm import tirx

    from ..functions import cast
    from ..tir import constant, minimum

    lines, strides = config["steps"] * config["batch"], config["given"]["x"]["strides"]
    line = k.bind(minimum(base + row, lines - 1), "line")
    step, entry = split(k, line, [config["steps"], config["batch"]])
    at = k.bind(start + deep, "deep")
    value = k.register("float32", 1, "value")
    value.set(constant(0, "float32"))
    with k.when(tirx.all(at < config["features"])):
        value.set(cast(k.load(x, offset_of(strides, (step, entry, at))), "float32"))
    k.store(to, row * _DEEP + deep, value.get())


def _staged_w(k: Any, config: Data, w: Any, to: Any, d: Any, base: Any, row: Any, start: Any, deep: Any) -> None:
    from ..functions import cast
    from ..tir import constant, minimum

    width, strides = GATES[config["op"]] * config["hidden"], config["given"]["w"]["strides"]
    at = k.bind(start + deep, "deep")
    value = k.register("float32", 1, "value")
    value.set(constant(0, "float32"))
    with k.when(at < config["features"]):
        unit = minimum(base + row, width - 1)
        value.set(cast(k.load(w, offset_of(strides, (d, unit, at))), "float32"))
    k.store(to, row * (_DEEP + 1) + deep, value.get())


def _bias(k: Any, config: Data, source: Data, d: Any, unit: Any) -> Any:
    """Of a GRU's candidate only x's where the reset comes after the product."""
    from ..functions import cast
    from ..tir import constant, like, select

    if "b" not in source:
        return constant(0, "float32")
    strides, gates, hidden = config["given"]["b"]["strides"], GATES[config["op"]], config["hidden"]
    own, other = (
        k.bind(cast(k.load(source["b"], offset_of(strides, (d, unit + more))), "float32"), "bias")
        for more in (0, gates * hidden)
    )
    if config["op"] == "gru" and config["linear"]:
        other = select(unit < 2 * hidden, other, like(0, other))
    return k.bind(own + other, "bias")
