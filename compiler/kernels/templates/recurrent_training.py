"""Recurrent layers in training: the scan over the steps that keeps its gates, and its backward pass.

A task takes all steps of some rows of the batch in one direction. In each step a matrix product fills the gates of
blocks of hidden units (forward), or takes the gradients of all gates back to the state before (backward); between
stands the cell, a row at a time. Recurrent weights are known at run time only: phases of packing put them into panels
``[block][depth][gate][unit]`` once a call.
"""

from __future__ import annotations

import math
from typing import Any

from ...ops import OPS
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cells import GATES, chosen, described, equals
from ._recurrent import scratch
from ._recurrent_passes import Backward, Forward
from ._rows import pieces, split_index

ROWS = 16  # rows of the batch in a task, about
_OPS = ("lstm_scan", "gru_scan", "rnn_scan", "lstm_scan_grad", "gru_scan_grad", "rnn_scan_grad")


# -- planning ------------------------------------------------------------------------------------------------------


def plan(region: Region) -> list[Plan]:
    body, attrs, machine = region.body, region.attrs, region.machine
    args = body.args(region.anchor)  # type: ignore[arg-type]
    names = [n.rstrip("?") for n in OPS[region.op].inputs][: len(args)]
    numbers = {n: region.operand(i) for i, n in enumerate(names) if args[i] is not None}
    if any(v.node != region.anchor for v in body.outputs) or None in numbers.values():
        return []
    found = {n: region.inputs[i] for n, i in numbers.items() if i is not None}
    layer, backward = region.op.split("_")[0], region.op.endswith("_grad")
    states = found[("c" if layer == "lstm" else "h") if backward else "fed"]
    directions, steps, batch, _ = states.type.dims
    hidden = found["r"].type.dims[2]
    dtype = "float64" if states.type.dtype == "float64" else "float32"
    linear = bool(attrs.get("linear_before_reset", False))
    blocks = -(-batch // ROWS)
    rows = -(-batch // blocks) if batch else 1
    config: dict[str, Any] = {
        "layer": layer,
        "backward": backward,
        "steps": steps,
        "batch": batch,
        "directions": directions,
        "hidden": hidden,
        "rows": rows,
        "blocks": -(-batch // rows),
        "dtype": dtype,
        "direction": attrs["direction"],
        "activations": chosen(attrs, layer, directions),
        "clip": attrs["clip"],
        "coupled": bool(attrs.get("input_forget", False)),
        "linear": linear,
        "panels": _panels(layer, backward, linear, hidden, machine.lanes, machine.registers),
        "given": {n: described(o) for n, o in found.items()},
        "outputs": [{"which": v.index, **described(o)} for v, o in zip(body.outputs, region.outputs, strict=True)],
    }
    size = 8 if dtype == "float64" else 4
    direct = [n for n in found if n != "r"]
    config["direct"] = direct
    parts = scratch(config)
    tasks = directions * config["blocks"]
    weights = Arg("in", numbers["r"] or 0)
    phases = [
        Draft(
            KernelSpec("recurrent_training.pack", {**config, "panel": i}),
            (weights, Arg("shared", 0)),
            _packers(config, i),
        )
        for i in range(len(config["panels"]))
    ]
    arguments = [Arg("in", numbers[n] or 0) for n in direct]
    arguments += [Arg("out", i) for i in range(len(region.outputs))]
    arguments += [Arg("shared", 0), Arg("worker", 0)]
    phases.append(Draft(KernelSpec("recurrent_training", config), tuple(arguments), tasks if tasks > 1 else None))
    flops = 2.0 * steps * batch * directions * GATES[layer] * hidden * hidden
    return [
        Plan(
            "recurrent_training",
            tuple(phases),
            500 + flops / machine.flops_per_cycle / 2.0,
            shared_bytes=found["r"].type.size * size,
            worker_bytes=sum(parts.values()) * size,
            inplace=_inplace(region, numbers),
            detail=f"{region.op} {rows} rows a task",
        )
    ]


def _panels(layer: str, backward: bool, linear: bool, hidden: int, lanes: int, registers: int) -> list[dict[str, Any]]:
    """The matrix products of a step: rows of r that take part (as gates), and the vectors of units in a block."""
    groups = {"lstm": [[0, 1, 2, 3]], "rnn": [[0]], "gru": [[0, 1, 2]] if linear else [[0, 1], [2]]}[layer]
    start, panels = 0, []
    for gates in groups:
        across = 1 if backward else len(gates)  # columns of each unit
        wide = max(1, min(4 // across, -(-hidden // lanes)))
        columns = wide * across
        most = max(1, ((24 if registers >= 32 else 12) if columns > 1 else 8) // columns)
        if registers < 32 and columns == 4:
            most = 2
        panels.append({"gates": gates, "wide": wide * lanes, "tile": most, "start": start})
        start += len(gates) * hidden * hidden
    return panels


def _inplace(region: Region, numbers: dict[str, int | None]) -> tuple[tuple[int, int], ...]:
    """Gates take the place of ``fed``, and their gradients that of the gates: what is written depends on what was
    read there (not so where gates are coupled: the forget gate's gradient is 0)."""
    if region.attrs.get("input_forget"):
        return ()
    number = numbers.get("gates", numbers.get("fed"))
    which = 0 if "gates" in numbers else {"lstm_scan": 2, "gru_scan": 1}.get(region.op, 0)
    pairs = [(number, j) for j, v in enumerate(region.body.outputs) if v.index == which and number is not None]
    return tuple(
        (i, j)
        for i, j in pairs
        if (region.inputs[i].type, region.inputs[i].strides) == (region.outputs[j].type, region.outputs[j].strides)
    )


def _packers(config: dict[str, Any], index: int) -> int | None:
    tasks = config["directions"] * -(-config["hidden"] // config["panels"][index]["wide"])
    return tasks if tasks > 1 else None


# -- packing -------------------------------------------------------------------------------------------------------


def emit_pack(k: Any, config: dict[str, Any]) -> None:
    """One panel group of r to shared scratch."""
    from ..functions import cast
    from .transpose import transposed

    operand, panel, hidden = config["given"]["r"], config["panels"][config["panel"]], config["hidden"]
    source = k.arg("r", operand["dtype"], operand["span"])
    target = k.arg("packed", config["dtype"], math.prod(operand["shape"]))
    of_d, of_row, of_k = operand["strides"]
    gates, units = panel["gates"], panel["wide"]
    whole, rest = divmod(hidden, units)
    area = len(gates) * hidden  # elements of a unit

    def rows_side_by_side(d: Any, start: Any, width: int) -> None:
        """Backward: units are columns of r."""
        base = d * (GATES[config["layer"]] * hidden * hidden) + panel["start"] + start * area
        with k.loop(area) as row:
            for o, w in pieces(width, k.lanes):
                at = d * of_d + (gates[0] * hidden + row) * of_row + (start + o) * of_k
                k.store(target, base + row * width + o, cast(k.load(source, at, w, of_k), config["dtype"]))

    def columns_of_gates(d: Any, start: Any, width: int) -> None:
        """Forward: units are rows of r, by squares that are transposed in registers where they are whole."""
        base = d * (GATES[config["layer"]] * hidden * hidden) + panel["start"] + start * area
        count = len(gates)
        for g, gate in enumerate(gates):
            for o, w in pieces(width, k.lanes):
                at = d * of_d + (gate * hidden + start + o) * of_row
                squares = hidden // w if of_k == 1 and w in (4, 8, 16) and operand["dtype"] == config["dtype"] else 0
                with k.loop(squares) as square:
                    rows = [k.bind(k.load(source, at + u * of_row + square * w, w)) for u in range(w)]
                    for j, row in enumerate(transposed(k, rows)):
                        k.store(target, base + ((square * w + j) * count + g) * width + o, row)
                with k.loop(hidden - squares * w) as j:
                    i = squares * w + j
                    value = cast(k.load(source, at + i * of_k, w, of_row), config["dtype"])
                    k.store(target, base + (i * count + g) * width + o, value)

    block = rows_side_by_side if config["backward"] else columns_of_gates
    blocks = whole + (rest > 0)

    def task(index: Any) -> None:
        d, j = split_index(index, blocks)
        if whole:
            with k.when(j < whole if rest else True):
                block(d, j * units, units)
        if rest:
            with k.when(equals(j, whole)):
                block(d, whole * units, rest)

    if config["directions"] * blocks > 1:
        with k.parallel(config["directions"] * blocks) as index:
            task(index)
    else:
        task(0)


# -- scans ---------------------------------------------------------------------------------------------------------


def emit(k: Any, config: dict[str, Any]) -> None:
    scan = (Backward if config["backward"] else Forward)(k, config)
    tasks = config["directions"] * config["blocks"]
    if tasks > 1:
        with k.parallel(tasks) as task:
            scan.task(task)
    else:
        scan.task(0)


TEMPLATE = Template(
    "recurrent_training", _OPS, plan, {"recurrent_training": emit, "recurrent_training.pack": emit_pack}
)
