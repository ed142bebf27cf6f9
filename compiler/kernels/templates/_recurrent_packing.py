"""Weights, multipliers and biases of integer recurrent layers in the order in which their kernel reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...ops.recurrent_integers import GATES, MOST_GATE
from ..spec import Arg, Draft, KernelSpec, Operand
from ._cells import described


def first_factor(row: Any, zeros: Mapping[str, int], x: str, h: str) -> dict[str, Any]:
    """How products are taken: by which instruction, how many a lane, the type of the first factor, and for x (``w``)
    and the state (``r``) what is taken from steps to get it (``offsets``) and how the zero point lies then."""
    element = "int32" if row is None else dict(row.operands)["a"].split("x")[0]
    offsets = {}
    for name, dtype, zero in (("w", x, zeros["x"]), ("r", h, zeros["r"])):
        offsets[name] = zero if row is None else int(np.iinfo(dtype).min) - int(np.iinfo(element).min)
    return {
        "row": None if row is None else row.name,
        "group": 1 if row is None else int(row.kind[3:]),
        "element": element,
        "offsets": offsets,
        "shifts": {"w": offsets["w"] - zeros["x"], "r": offsets["r"] - zeros["r"]},
    }


def depth_of(config: Mapping[str, Any], name: str) -> int:
    """Inputs of a product, filled up to whole groups."""
    inputs, group = config["features" if name == "w" else "hidden"], config["group"]
    return int(-(-inputs // group) * group)


class Packing:
    """The packed arrays as arguments: constants, or what phases leave in shared scratch.

    ``w`` and ``r`` become two arrays each: the weights, and what their sums start at.
    """

    def __init__(self, config: dict[str, Any], found: Mapping[str, Operand], numbers: Mapping[str, int | None]) -> None:
        self.config, self.shared = config, 0
        self.args: list[Arg] = []
        self.phases: list[Draft] = []
        self.consts: list[np.ndarray] = []
        for name in ("w", "r", "w_multiplier", "r_multiplier", "b"):
            if name not in found:
                continue
            operand = found[name]
            if operand.const is not None:
                make = _weights if name in ("w", "r") else _rows
                self.args += [Arg("const", self.keep(a)) for a in make(operand.const, config, name)]
                continue
            made = [self._scratch(n) for n in _sizes(config, name)]
            self.args += made
            spec = KernelSpec("recurrent_integer.pack", {**config, "pack": name, "source": described(operand)})
            self.phases.append(Draft(spec, (Arg("in", numbers[name] or 0), *made)))

    def keep(self, array: np.ndarray) -> int:
        self.consts.append(np.ascontiguousarray(array).reshape(-1))
        return len(self.consts) - 1

    def _scratch(self, nbytes: int) -> Arg:
        arg = Arg("shared", 0, self.shared)
        self.shared += -(-nbytes // 64) * 64
        return arg


def _sizes(config: Mapping[str, Any], name: str) -> list[int]:
    """Bytes of what an operand is packed into."""
    rows = config["directions"] * GATES[config["layer"]] * config["units"]
    return [rows * depth_of(config, name), rows * 4] if name in ("w", "r") else [rows * (8 if name == "b" else 4)]


def _weights(weights: np.ndarray, config: Mapping[str, Any], name: str) -> list[np.ndarray]:
    """``[D, G H, K]`` as ``[D][block][K / n][gate][unit][n]``, and where sums start: ``[D][gate][unit]``."""
    directions, _, inputs = weights.shape
    gates, hidden, units, group = GATES[config["layer"]], config["hidden"], config["units"], config["group"]
    depth, block = depth_of(config, name), config["wide"] * config["lanes"]
    full = np.zeros((directions, gates, units, depth), np.int8)
    full[:, :, :hidden, :inputs] = weights.reshape(directions, gates, hidden, inputs)
    split = full.reshape(directions, gates, units // block, block, depth // group, group)
    start = full.sum(axis=3, dtype=np.int32) * np.int32(config["shifts"][name])
    return [split.transpose(0, 2, 4, 1, 3, 5), start]


def _rows(rows: np.ndarray, config: Mapping[str, Any], name: str) -> list[np.ndarray]:
    """Multipliers as ``[D][gate][unit]``, biases as ``[D][2][gate][unit]``."""
    directions, gates, hidden = config["directions"], GATES[config["layer"]], config["hidden"]
    parts = 2 * gates if name == "b" else gates
    full = np.zeros((directions, parts, config["units"]), rows.dtype)
    spread = np.broadcast_to(rows, (directions, parts * hidden)).reshape(directions, parts, hidden)
    full[:, :, :hidden] = np.clip(spread, -MOST_GATE, MOST_GATE) if name == "b" else spread
    return [full]


# -- at run time -----------------------------------------------------------------------------------------------------


def emit_pack(k: Any, config: dict[str, Any]) -> None:
    """Packs one operand that is not a constant."""
    source = k.arg("source", config["source"]["dtype"], config["source"]["span"])
    (_emit_weights if config["pack"] in ("w", "r") else _emit_rows)(k, config, source)


def _each_unit(k: Any, config: dict[str, Any], parts: int, body: Callable[[Any, Any, Any, int], None]) -> None:
    """``body(direction, part, unit, whether it is one of the layer's)`` for the units that vectors are filled up to."""
    hidden, rest = config["hidden"], config["units"] - config["hidden"]
    with k.loop(config["directions"]) as d, k.loop(parts) as part:
        with k.loop(hidden) as unit:
            body(d, part, unit, True)
        with k.loop(rest) as more:
            body(d, part, hidden + more, False)


def _emit_weights(k: Any, config: dict[str, Any], source: Any) -> None:
    from ..functions import cast
    from ..tir import constant
    from ._rows import split_index

    name, gates, units, group = config["pack"], GATES[config["layer"]], config["units"], config["group"]
    depth, block = depth_of(config, name), config["wide"] * config["lanes"]
    inputs = config["source"]["shape"][2]
    target = k.arg("packed", "int8", config["directions"] * gates * units * depth)
    start = k.arg("start", "int32", config["directions"] * gates * units)
    of_d, of_row, of_k = config["source"]["strides"]

    def unit_of(d: Any, gate: Any, unit: Any, own: int) -> None:
        number, inside = split_index(unit, block)
        base = d * (gates * units * depth) + number * (gates * block * depth)
        total = k.register("int32", 1, "sum")
        total.set(constant(0, "int32"))

        def put(i: Any, value: Any) -> None:
            turn, rest = split_index(i, group)
            k.store(target, base + ((turn * gates + gate) * block + inside) * group + rest, value)

        with k.loop(inputs if own else 0) as i:
            value = k.bind(k.load(source, d * of_d + (gate * config["hidden"] + unit) * of_row + i * of_k))
            total.set(total.get() + cast(value, "int32"))
            put(i, value)
        with k.loop(depth - inputs if own else depth) as i:
            put(i + (inputs if own else 0), constant(0, "int8"))
        k.store(start, (d * gates + gate) * units + unit, total.get() * constant(config["shifts"][name], "int32"))

    _each_unit(k, config, gates, unit_of)


def _emit_rows(k: Any, config: dict[str, Any], source: Any) -> None:
    from ..tir import constant
    from ..vecmath import bounded

    bias, described_ = config["pack"] == "b", config["source"]
    parts = GATES[config["layer"]] * (2 if bias else 1)
    target = k.arg("packed", described_["dtype"], config["directions"] * parts * config["units"])
    shape = [1] * (2 - len(described_["shape"])) + described_["shape"]
    strides = [0] * (2 - len(described_["shape"])) + described_["strides"]
    of_d, of_row = (s if n > 1 else 0 for n, s in zip(shape, strides, strict=True))

    def unit_of(d: Any, part: Any, unit: Any, own: int) -> None:
        value = constant(0, described_["dtype"])
        if own:
            value = k.load(source, d * of_d + (part * config["hidden"] + unit) * of_row)
            value = bounded(k.bind(value), -MOST_GATE, MOST_GATE) if bias else value
        k.store(target, (d * parts + part) * config["units"] + unit, value)

    _each_unit(k, config, parts, unit_of)
