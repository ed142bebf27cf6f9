"""LSTM and GRU on 8-bit steps, bit for bit as ``ops.recurrent_integers`` defines them: one kernel, whose tasks are the
directions and the rows of the batch.

A task takes a few time steps at once: what x gives the gates is one product for all of them, then the steps follow one
another, the gates of a block of hidden units in registers, tables and the cell's update fused. Weights are packed
``[block][inputs / n][gate][unit][n]`` for an instruction that takes ``n`` products a lane (its row says how its first
factor is stored; what that shifts the sums by starts them), units and inputs filled up with zeros to whole vectors.
Weights, multipliers and biases that are not constants are packed by phases of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ops.recurrent_integers import GATES, tanh_table
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from ._cells import described
from ._recurrent_integer import Layer
from ._recurrent_packing import Packing, emit_pack, first_factor

_INPUTS = ("x", "w", "r", "w_multiplier", "r_multiplier", "h_multiplier", "b", "lengths", "h0", "c0")
_PACKED = ("w", "r", "w_multiplier", "r_multiplier", "b")
_ROWS = 6  # rows of x taken at once


def plan(region: Region) -> list[Plan]:
    found = layer(region)
    if found is None:
        return []
    config, arguments, packing = found
    scratch, total = _scratch(config)
    arguments += [Arg("worker", 0, at) for at in scratch]
    tasks = config["directions"] * config["batch"]
    main = Draft(KernelSpec("recurrent_integer", config), tuple(arguments), tasks if tasks > 1 else None)
    gates, hidden, lanes = GATES[config["layer"]], config["hidden"], config["lanes"]
    products = config["steps"] * tasks * gates * hidden * (config["features"] + hidden)
    cost = 300 + products / (lanes * config["group"]) / 1.5 + config["steps"] * tasks * hidden * gates * 3
    detail = f"{region.op} {gates}x{config['wide']}x{lanes}, {config['row'] or 'no dot product'}"
    consts = tuple(packing.consts)
    shared = packing.shared
    return [Plan("recurrent_integer", (*packing.phases, main), cost, consts, shared, worker_bytes=total, detail=detail)]


def layer(region: Region, *, apart: bool = False) -> tuple[dict[str, Any], list[Arg], Packing] | None:
    """What a layer's kernel is told, its arguments but for scratch, and its packed arrays. ``apart``: all units are one
    block, each is computed by itself."""
    body, attrs, machine = region.body, region.attrs, region.machine
    kind = region.op.split("_")[0]
    args = body.args(region.anchor)  # type: ignore[arg-type]
    numbers = {n: region.operand(i) for i, n in enumerate(_INPUTS[: len(args)]) if args[i] is not None}
    if any(v.node != region.anchor for v in body.outputs) or None in numbers.values():
        return None
    found = {n: region.inputs[i] for n, i in numbers.items() if i is not None}
    steps, batch, features = found["x"].type.dims
    directions, _, hidden = found["r"].type.dims
    gates, lanes = GATES[kind], machine.lanes
    vectors = -(-hidden // lanes)
    limit = 12 if machine.registers >= 32 else 8
    wide = max(w for w in (1, 2, 3) if vectors % w == 0 and (w == 1 or w * gates <= limit))
    wide = max(1, vectors) if apart else wide
    row = next((i for i in machine.instructions if _fits(i, lanes)), None)
    config: dict[str, Any] = {
        "layer": kind,
        "steps": steps,
        "batch": batch,
        "features": features,
        "directions": directions,
        "hidden": hidden,
        "units": vectors * lanes,
        "wide": wide,
        "lanes": lanes,
        "chunk": max(1, min(steps, _ROWS)),
        "direction": attrs["direction"],
        "linear": bool(attrs.get("linear_before_reset", False)),
        "zero_point": attrs["zero_point"],
        "to": attrs["to"],
        **first_factor(row, {"x": attrs["x_zero_point"], "r": attrs["zero_point"]}, found["x"].type.dtype, attrs["to"]),
        "direct": [n for n in found if n not in _PACKED],
        "given": {n: described(o) for n, o in found.items() if n not in _PACKED},
        "outputs": [{"which": v.index, **described(o)} for v, o in zip(body.outputs, region.outputs, strict=True)],
    }
    packing = Packing(config, found, numbers)
    arguments = [Arg("in", numbers[n] or 0) for n in config["direct"]]
    arguments += [Arg("out", i) for i in range(len(region.outputs))]
    arguments += [*packing.args, Arg("const", packing.keep(tanh_table()))]
    config["packed"] = [n for n in _PACKED if n in found]
    return config, arguments, packing


def _fits(row: Any, lanes: int) -> bool:
    """Whether an instruction takes exact products of any 8-bit steps with signed weights, a vector at a time."""
    return row.kind in ("dot4", "dot2") and row.lanes == lanes and row.signed[1] and not row.saturates


def _scratch(config: dict[str, Any]) -> tuple[list[int], int]:
    """Where the parts of a worker's scratch start (see ``Layer``), and how many bytes they are."""
    offsets, at = [], 0
    for _, dtype, size in Layer.parts(config):
        offsets.append(at)
        at += -(-size * np.dtype(dtype).itemsize // 64) * 64
    return offsets, at


def emit(k: Any, config: dict[str, Any]) -> None:
    layer = Layer(k, config)
    tasks = config["directions"] * config["batch"]
    if tasks > 1:
        with k.parallel(tasks) as task:
            layer.task(task)
    elif tasks:
        layer.task(0)


TEMPLATE = Template(
    "recurrent_integer",
    ("lstm_integer", "gru_integer"),
    plan,
    {"recurrent_integer": emit, "recurrent_integer.pack": emit_pack},
)
