"""Recurrent layers in training on a GPU: the scan over the steps that keeps its gates, and its backward pass.

A block takes all steps of some rows of the batch in one direction; states, gates' gradients and sums lie in its shared
memory. In each step threads have a hidden unit and a slice of the depth of the product with the recurrent weights,
which they read from the second-level cache; then a thread has a unit of a row, adds the slices up and does the cell,
which is that of the CPU's template. Forward, a first kernel puts the weights into lines of neighbouring units.
"""

from __future__ import annotations

from typing import Any

from ...ops import OPS
from ..spec import Arg, Draft, KernelSpec, Plan, Region, Template
from . import _cuda_recurrent_training
from ._cells import GATES, chosen, described
from ._cuda_cost import Load, nanoseconds, spread
from .recurrent_training import _OPS as NAMES
from .recurrent_training import _inplace as inplace

DTYPES = ("float32", "float16", "bfloat16")
THREADS = 512  # of a block, about
DEEP = 16  # steps of the depth that a slice has at least
ROWS = 4  # of the batch in a block, at most
_CYCLE_BYTES = 64  # that a multiprocessor gets from the second-level cache in a cycle


def plan(region: Region) -> list[Plan]:
    """One plan, where the state of a row fits the shared memory of a block."""
    gpu = region.machine.gpu
    body, attrs = region.body, region.attrs
    args = body.args(region.anchor)  # type: ignore[arg-type]
    names = [n.rstrip("?") for n in OPS[region.op].inputs][: len(args)]
    numbers = {n: region.operand(i) for i, n in enumerate(names) if args[i] is not None}
    if gpu is None or any(v.node != region.anchor for v in body.outputs) or None in numbers.values():
        return []
    found = {n: region.inputs[i] for n, i in numbers.items() if i is not None}
    layer, backward = region.op.split("_")[0], region.op.endswith("_grad")
    states = found[("c" if layer == "lstm" else "h") if backward else "fed"]
    directions, steps, batch, _ = states.type.dims
    hidden = found["r"].type.dims[2]
    if states.type.dtype not in DTYPES or not all((directions, steps, batch, hidden)):
        return []
    linear = bool(attrs.get("linear_before_reset", False))
    config: dict[str, Any] = {
        **{"layer": layer, "backward": backward, "steps": steps, "batch": batch, "directions": directions},
        **{"hidden": hidden, "dtype": "float32", "direction": attrs["direction"], "clip": attrs["clip"]},
        **{"activations": chosen(attrs, layer, directions), "coupled": bool(attrs.get("input_forget", False))},
        "linear": linear,
        "panels": [{"gates": g, "wide": 0} for g in _products(layer, linear)],
        "given": {n: described(o) for n, o in found.items()},
        "direct": [n for n in found if n != "r"],
        "outputs": [{"which": v.index, **described(o)} for v, o in zip(body.outputs, region.outputs, strict=True)],
    }
    for rows in range(min(ROWS, max(1, batch * directions // gpu.multiprocessors)), 0, -1):
        config |= _cut(config, rows)
        if 4 * _cuda_recurrent_training.words(config) <= gpu.shared:
            return [_assemble(region, config, numbers)]
    return []


def _products(layer: str, linear: bool) -> list[list[int]]:
    """The gates that each product of a step makes or takes."""
    return {"lstm": [[0, 1, 2, 3]], "rnn": [[0]], "gru": [[0, 1, 2]] if linear else [[0, 1], [2]]}[layer]


def _cut(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """Rows of a block, its threads, and the slices of a product's depth."""
    hidden, gates = config["hidden"], max(len(p["gates"]) for p in config["panels"])
    across = min(THREADS, -(-hidden // 32) * 32)
    depth = gates * hidden if config["backward"] else hidden
    slices = max(1, min(THREADS // across, depth // DEEP))
    blocks = -(-config["batch"] // rows)
    return {"rows": rows, "blocks": blocks, "across": across, "slices": slices, "threads": across * slices}


def _assemble(region: Region, config: dict[str, Any], numbers: dict[str, int | None]) -> Plan:
    gpu = region.machine.gpu
    assert gpu is not None
    gates, hidden, directions = GATES[config["layer"]], config["hidden"], config["directions"]
    size = directions * gates * hidden * hidden
    arguments = [Arg("in", numbers[n] or 0) for n in config["direct"]]
    arguments += [Arg("out", i) for i in range(len(region.outputs))]
    weights, phases, nanos = Arg("in", numbers["r"] or 0), [], 0.0
    if not config["backward"]:
        threads = spread(gpu, size)
        pack = {"r": config["given"]["r"], "threads": threads}
        phases.append(
            Draft(KernelSpec("cuda_recurrent_training.pack", pack), (weights, Arg("shared")), -(-size // threads))
        )
        nanos += nanoseconds(gpu, Load(-(-size // threads), threads, far=4.0 * size, near=32.0 * size))
        weights = Arg("shared")
    blocks = directions * config["blocks"]
    phases.append(Draft(KernelSpec("cuda_recurrent_training", config), (*arguments, weights), blocks))
    shared = 4 * _cuda_recurrent_training.words(config)
    read = 4.0 * size / directions
    chain = config["steps"] * (read / _CYCLE_BYTES + 800.0 * len(config["panels"]))
    moved = sum(o.type.nbytes for o in (*region.inputs, *region.outputs))
    macs = 1.0 * config["steps"] * config["batch"] * size
    load = Load(blocks, config["threads"], registers=64, shared=shared, macs=macs, far=moved, chain=chain)
    return Plan(
        "cuda_recurrent_training",
        tuple(phases),
        nanos + nanoseconds(gpu, load),
        shared_bytes=0 if config["backward"] else 4 * size,
        inplace=inplace(region, numbers),
        detail=f"{region.op} {config['rows']} rows a block, {config['slices']} slices",
    )


TEMPLATE = Template(
    "cuda_recurrent_training",
    NAMES,
    plan,
    {
        "cuda_recurrent_training": _cuda_recurrent_training.emit,
        "cuda_recurrent_training.pack": _cuda_recurrent_training.emit_pack,
    },
    device=True,
)
