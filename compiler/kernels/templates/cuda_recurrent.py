"""LSTM, GRU and plain recurrent layers on a GPU: a product for all steps, then one kernel that walks the sequence.

What x gives the gates does not depend on the steps before, so a first kernel does it for all of them. In the second one
a block owns a direction and some rows of the batch: the state stays in shared memory, eight threads share a row of the
recurrent weights, and these stay in registers and shared memory for the whole sequence where they fit ("Persistent
RNNs", Diamos et al., 2016); otherwise they come from the second-level cache at every step.
"""

from __future__ import annotations

from typing import Any

from ....targets.gpu import Gpu
from ..spec import Arg, Draft, KernelSpec, Operand, Plan, Region, Template
from ._cells import GATES, chosen, described
from ._cuda_cost import Load, nanoseconds
from ._cuda_recurrent import LANES, emit
from ._cuda_recurrent_feed import FED, emit_feed

_INPUTS = ("x", "w", "r", "b", "lengths", "h0", "c0", "p")
_HELD = 64  # weights that a thread keeps in registers, at most
_WRITTEN = 96  # sums of four products that a step's text has, at most, where weights stay on the chip
_FED_BYTES = 256 << 20  # what x gives the gates of all steps


def plan(region: Region) -> list[Plan]:
    """One plan for layers of float32, float16 or bfloat16 whose recurrent weights lie row by row."""
    body, attrs, gpu, op = region.body, region.attrs, region.machine.gpu, region.op
    args = body.args(region.anchor)  # type: ignore[arg-type]
    numbers = {n: region.operand(i) for i, n in enumerate(_INPUTS[: len(args)]) if args[i] is not None}
    if gpu is None or any(v.node != region.anchor for v in body.outputs) or None in numbers.values():
        return []
    found = {n: region.inputs[i] for n, i in numbers.items() if i is not None}
    steps, batch, features = found["x"].type.dims
    directions, _, hidden = found["r"].type.dims
    served = found["x"].type.dtype != "float64" and all(found[n].strides[2] in (1, 0) or n == "x" for n in ("w", "r"))
    fed = directions * steps * batch * GATES[op] * hidden * 4
    if not served or fed > _FED_BYTES or not (steps and batch and features and hidden):
        return []
    config: dict[str, Any] = {
        "op": op,
        "steps": steps,
        "batch": batch,
        "features": features,
        "directions": directions,
        "hidden": hidden,
        "direction": attrs["direction"],
        "activations": chosen(attrs, op, directions),
        "clip": attrs["clip"],
        "coupled": bool(attrs.get("input_forget", False)),
        "linear": bool(attrs.get("linear_before_reset", False)),
        "given": {n: described(o) for n, o in found.items()},
        "outputs": [{"which": v.index, **described(o)} for v, o in zip(body.outputs, region.outputs, strict=True)],
    }
    config |= _blocks(gpu, config)
    if config["shared"] > gpu.shared:
        return []
    return [_plan(region, gpu, config, found, numbers)]


def panels(config: dict[str, Any]) -> list[tuple[int, int]]:
    """Gates whose products are taken at once: ``(first, count)``."""
    gates = GATES[config["op"]]
    return [(0, 2), (2, 1)] if config["op"] == "gru" and not config["linear"] else [(0, gates)]


def _blocks(gpu: Gpu, config: dict[str, Any]) -> dict[str, Any]:
    """Threads and rows of a block, where the weights of each round of threads are held, and the shared bytes."""
    hidden, directions, batch = config["hidden"], config["directions"], config["batch"]
    rows = min(batch, 4, max(1, -(-directions * batch // gpu.multiprocessors)))
    widest = max(count for _, count in panels(config)) * hidden * LANES
    threads = min(512, max(64, -(-widest // 32) * 32))
    chunk = -(-hidden // (4 * LANES))  # accesses of a thread to a row of weights
    padded = chunk * 4 * LANES
    gates = GATES[config["op"]] * hidden
    extra = (2 * padded + gates + 2 * hidden) * rows * 4 + 1024
    turns = _turns(config, threads)
    each = threads * chunk * 16  # bytes of the weights of a round
    kept = min(sum(turns), _HELD // (chunk * 4))
    placed = min(sum(turns) - kept, max(0, gpu.shared - extra) // each)
    fits = kept + placed == sum(turns) and sum(turns) * chunk * rows <= _WRITTEN
    held = {"kept": kept, "placed": placed} if fits else {"kept": 0, "placed": 0}
    if not fits:  # more threads ask for more at once
        threads = min(gpu.threads, max(64, -(-widest // 32) * 32))
        turns = _turns(config, threads)
    shared = extra + held["placed"] * each
    return {"rows": rows, "threads": threads, "chunk": chunk, "turns": turns, "fits": fits, **held, "shared": shared}


def _turns(config: dict[str, Any], threads: int) -> list[int]:
    """Rounds in which a block's threads take the rows of each panel."""
    return [-(-count * config["hidden"] // (threads // LANES)) for _, count in panels(config)]


def _plan(
    region: Region, gpu: Gpu, config: dict[str, Any], found: dict[str, Operand], numbers: dict[str, int | None]
) -> Plan:
    steps, batch, hidden, directions = (config[n] for n in ("steps", "batch", "hidden", "directions"))
    gates, features = GATES[config["op"]] * hidden, config["features"]
    lines = steps * batch
    tiles = directions * -(-lines // FED[0]) * -(-gates // FED[1])
    fed = Arg("shared", 0, 0)
    first = [Arg("in", numbers[n] or 0) for n in ("x", "w", "b") if n in found]
    feed = Draft(KernelSpec("cuda_recurrent.feed", {**config, "tiles": tiles}), (*first, fed), tiles)
    direct = [n for n in found if n not in ("x", "w")]
    blocks = directions * -(-batch // config["rows"])
    spec = KernelSpec("cuda_recurrent", {**config, "direct": direct, "blocks": blocks})
    outputs = [Arg("out", i) for i in range(len(region.outputs))]
    main = Draft(spec, (*(Arg("in", numbers[n] or 0) for n in direct), *outputs, fed), blocks)
    product = Load(tiles, 256, macs=2.5 * directions * lines * gates * features, far=found["x"].type.nbytes)
    weights = gates * hidden * 4
    step = gates * hidden * config["rows"] / gpu.fma * 1.5 + 900
    if not config["fits"]:
        step = max(step, weights / 40.0)  # bytes a cycle that one multiprocessor gets of the second-level cache
    walk = Load(blocks, config["threads"], chain=steps * step, far=weights * directions)
    return Plan(
        "cuda_recurrent",
        (feed, main),
        nanoseconds(gpu, product) + nanoseconds(gpu, walk),
        shared_bytes=directions * lines * gates * 4,
        detail=f"{config['op']}, {config['rows']} rows a block, weights {'held' if config['fits'] else 'read anew'}",
    )


TEMPLATE = Template(
    "cuda_recurrent",
    ("lstm", "gru", "rnn"),
    plan,
    {"cuda_recurrent": emit, "cuda_recurrent.feed": emit_feed},
    device=True,
)
