"""What the templates of 8-bit contractions on cores with the DSP extension share: packed weights, costs, plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ...ops import OPS, Kind
from ..expr import Program, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region
from ._numbers import Numbers
from ._tile import GHZ, epilogue_inputs, inplace_pairs

NARROW = ("int8", "uint8")
MOST_SUM = 1 << 23  # 256 times less than that is an int32
POINTS = 3  # of a tile: their sums of two channels, and what they are made of, are all the registers


def serves(machine: Machine, dtype: str) -> bool:
    """Whether the machine multiplies pairs of int16 and widens bytes of that type."""
    kinds = ("pair", "even.int8", "odd.int8", f"even.{dtype}", f"odd.{dtype}")
    return dtype in NARROW and machine.lanes == 1 and all(machine.instruction(kind) for kind in kinds)


@dataclass(frozen=True)
class Packed:
    """Weights as ``_dsp`` reads them. ``depth`` is a multiple of 4, ``pairs`` those of channels."""

    words: np.ndarray
    depth: int
    pairs: int
    odd: bool
    split: bool


def packed(matrix: np.ndarray, bias: np.ndarray | None, zero: int, dtype: str, group: int) -> Packed | None:
    """``matrix`` are integers [depth, columns], ``bias`` [columns], ``zero`` the input's zero point. Four of the depth
    are taken in the order 0, 2, 1, 3. ``group`` pairs of channels lie together, behind what their sums begin with. None
    if a weight takes more than 8 bits."""
    wide = matrix.astype(np.int64)
    if wide.size == 0 or wide.min() < -128 or wide.max() > 127:
        return None
    starts = (0 if bias is None else bias.astype(np.int64)) - zero * wide.sum(axis=0)
    depth, columns = (-(-n // m) * m for n, m in zip(wide.shape, (4, 2), strict=True))
    whole = np.zeros((depth, columns), np.int64)
    whole[: wide.shape[0], : wide.shape[1]] = wide
    whole = whole.reshape(-1, 4, columns)[:, [0, 2, 1, 3]].reshape(depth, columns)
    starts = np.append(starts, np.zeros(columns - wide.shape[1], np.int64))
    a, b = whole[:, 0::2], whole[:, 1::2]
    split = bool((256 * a + b < -32768).any()) or _largest(a, starts[0::2], dtype) >= MOST_SUM
    halfwords = np.stack([b, a if split else a - (b < 0)], axis=-1).astype(np.int8)
    pairs = halfwords.reshape(depth // 2, 2, columns // 2, 2).transpose(0, 2, 1, 3)
    words = np.ascontiguousarray(pairs).reshape(depth // 2, -1).view(np.int32)
    first = starts[0::2] if split else 256 * starts[0::2] + starts[1::2]
    both = (np.stack([first, starts[1::2]], axis=-1) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    return Packed(_grouped(words, both, group), depth, columns // 2, wide.shape[1] % 2 == 1, split)


def _grouped(words: np.ndarray, starts: np.ndarray, group: int) -> np.ndarray:
    """Words [pair of the depth][pair of channels] and their starts, group after group."""
    parts = []
    for first in range(0, len(starts), group):
        parts += [starts[first : first + group].reshape(-1), words[:, first : first + group].reshape(-1)]
    return np.ascontiguousarray(np.concatenate(parts))


def _largest(weights: np.ndarray, starts: np.ndarray, dtype: str) -> int:
    """The largest magnitude that a sum of these columns may have."""
    info = np.iinfo(dtype)
    ends = [weights * info.min, weights * info.max]
    low = starts + np.minimum(*ends).sum(axis=0)
    high = starts + np.maximum(*ends).sum(axis=0)
    return int(max(np.abs(low).max(), np.abs(high).max()))


def group_of(points: int) -> int:
    """Pairs of channels that a tile of so many points holds: as many sums as there are registers."""
    return 2 if points == 1 else 1


def instructions(region: Region, packed: Packed, points: int, tiles: int, widening: float) -> float:
    """Roughly those of one run: ``tiles`` tiles of ``points``; ``widening`` for the inputs of a point."""
    pairs = group_of(points)
    quad = 4.0 * points * pairs + 2 * pairs * (1 + packed.split) + (2 if points == 1 else 3) + 0.5
    each = 25 + 2 * points * pairs * (4 + _epilogue(region))
    return tiles * (-(-packed.pairs // pairs) * (packed.depth // 4 * quad + each) + points * widening + 20)


def _epilogue(region: Region) -> float:
    """Instructions for one result."""
    dear = {"requantize": 8.0, "add_integer": 9.0, "lookup": 4.0}
    ops = [region.body.node(n).op for n in region.body if n != region.anchor]
    return sum(dear.get(op, 2.0) for op in ops if OPS[op].kind is Kind.ELEMENTWISE)


def scales_apart(program: Program) -> tuple[Program, np.ndarray]:
    """The program with its scalar multipliers in an array, so that layers of one shape share a kernel; zero points
    and bounds stay in the code, where they cost nothing."""
    numbers = Numbers()
    moved = numbers.program(program)["nodes"]
    values: list[int] = []
    nodes = []
    for old, new in zip(program["nodes"], moved, strict=True):
        if new["op"] == "number":
            values.append(numbers.values[new["attrs"]["at"]])
            nodes.append({**new, "attrs": {"at": len(values) - 1}})
        else:
            nodes.append(old)
    return {**program, "nodes": nodes}, np.array(values, np.int32)


def finished(
    region: Region,
    template: str,
    weights: Packed,
    config: dict[str, Any],
    cost: float,
    overlaps: Sequence[tuple[int, int, int]],
) -> Plan:
    """The plan of a kernel whose walk ``config`` describes; ``cost`` in instructions."""
    program, numbers = scales_apart(serialize(region))
    points = config["points"]
    pairs = group_of(points)
    scratch = points * weights.depth // 2 + 2 * points * pairs
    reads = epilogue_inputs(region)
    config = {
        **config,
        "program": program,
        "reads": reads,
        "weights": weights.words.size,
        "numbers": numbers.size,
        "depth": weights.depth,
        "split": weights.split,
        "columns": {"pairs": weights.pairs, "odd": weights.odd},
        "pairs": pairs,
        "scratch": scratch,
        "overlaps": bool(overlaps),
    }
    consts = (weights.words, *([numbers] if numbers.size else []))
    x = region.operand(0)
    assert x is not None
    args = [Arg("in", x), *(Arg("const", i) for i in range(len(consts)))]
    args += [*(Arg("in", i) for i in reads), *(Arg("out", j) for j in range(len(region.outputs))), Arg("worker", 0)]
    staged = config["source"]["kind"] == "bytes"
    args += [Arg("worker", 0, 4 * scratch)] if staged else []
    return Plan(
        template,
        (Draft(KernelSpec(template, config), tuple(args)),),
        cost=cost / GHZ + 50,
        consts=consts,
        worker_bytes=4 * scratch + (weights.depth if staged else 0),
        inplace=inplace_pairs(region),
        detail=f"smlad {points}x{2 * pairs}{' split' if weights.split else ''}{' copied' if staged else ''}",
        overlaps=tuple(overlaps),
    )
