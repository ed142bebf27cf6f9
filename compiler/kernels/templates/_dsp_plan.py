"""What the templates of 8-bit contractions on cores with the DSP extension share: packed weights, costs, plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....targets.machine import Machine
from ...ops import OPS, Kind
from ..expr import Program, serialize
from ..spec import Arg, Draft, KernelSpec, Plan, Region
from . import _dsp_asm, _dsp_plain
from ._dsp_steps import Steps, steps_of
from ._numbers import Numbers
from ._tile import GHZ, epilogue_inputs, inplace_pairs

NARROW = ("int8", "uint8")
MOST_OFFSET = 1 << 16  # bytes between a point's results that a halfword says
MOST_SUM = 1 << 23  # 256 times less than that is an int32
PLAIN = "dsp_conv.plain"  # convolutions and products of matrices share these kernels, too
POINTS = 3  # of a tile: their sums of two channels, and what they are made of, are all the registers


def serves(machine: Machine, dtype: str) -> bool:
    """Whether the machine multiplies pairs of int16 and widens bytes of that type."""
    kinds = ("pair", "even.int8", "odd.int8", f"even.{dtype}", f"odd.{dtype}", "round")
    return dtype in NARROW and machine.lanes == 1 and all(machine.instruction(kind) for kind in kinds)


@dataclass(frozen=True)
class Packed:
    """Weights as ``_dsp`` reads them. ``depth`` is a multiple of 4, ``pairs`` those of channels, ``group`` those of a
    group. ``odd``: the last pair has one channel. ``one_scale`` and ``offset`` as for ``_dsp_asm.tile``."""

    words: np.ndarray
    depth: int
    pairs: int
    group: int
    odd: bool
    split: bool
    one_scale: bool = False
    offset: bool = False


@dataclass(frozen=True)
class Columns:
    """Weights [depth, columns] as integers of at most 8 bits above their columns' ``offset``, their biases, and the
    input's zero point and type."""

    matrix: np.ndarray
    bias: np.ndarray | None
    zero: int
    dtype: str

    @property
    def starts(self) -> np.ndarray:
        """What sums begin with: the bias, and what the zero point adds to all products."""
        bias = 0 if self.bias is None else self.bias.astype(np.int64)
        return np.asarray(bias - self.zero * self.matrix.sum(axis=0))

    @property
    def fit(self) -> bool:
        """Whether there are weights, and those of a column take 8 bits."""
        return self.matrix.size > 0 and bool((self.matrix.max(axis=0) - self.matrix.min(axis=0) <= 255).all())

    @property
    def offset(self) -> np.ndarray:
        """What each column's weights are larger than the bytes that hold them."""
        high, low = self.matrix.max(axis=0), self.matrix.min(axis=0)
        return np.where(high > 127, high - 127, np.where(low < -128, low + 128, 0))

    def chosen(self, columns: np.ndarray) -> Columns:
        """Some of the columns."""
        return replace(self, matrix=self.matrix[:, columns], bias=None if self.bias is None else self.bias[columns])


def packed(of: Columns, group: int, scales: np.ndarray | None = None, places: np.ndarray | None = None) -> Packed:
    """Four of the depth are taken in the order 0, 2, 1, 3. ``group`` pairs of channels lie together, behind what their
    sums begin with. Where results are requantized by ``scales`` [columns], these lie behind them (before all, where
    they are one number); then come the byte offsets ``places`` [columns] of their results. Columns' offsets, where
    there are some, lie before both."""
    depth, columns = (-(-n // m) * m for n, m in zip(of.matrix.shape, (4, 2), strict=True))
    extra = columns - of.matrix.shape[1]
    whole, offset = np.zeros((depth, columns), np.int64), np.append(of.offset, np.zeros(extra, np.int64))
    whole[: of.matrix.shape[0], : of.matrix.shape[1]] = of.matrix - of.offset
    whole = whole.reshape(-1, 4, columns)[:, [0, 2, 1, 3]].reshape(depth, columns)
    starts = np.append(of.starts, np.zeros(extra, np.int64))
    a, b = whole[:, 0::2], whole[:, 1::2]
    split = bool((256 * a + b < -32768).any()) or _largest(a + offset[0::2], starts[0::2], of.dtype) >= MOST_SUM
    halfwords = np.stack([b, a if split else a - (b < 0)], axis=-1).astype(np.int8)
    pairs = halfwords.reshape(depth // 2, 2, columns // 2, 2).transpose(0, 2, 1, 3)
    words = np.ascontiguousarray(pairs).reshape(depth // 2, -1).view(np.int32)
    first = starts[0::2] if split else 256 * starts[0::2] + starts[1::2]
    both = (np.stack([first, starts[1::2]], axis=-1) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    head, tails = np.zeros(0, np.int32), []
    if offset.any():
        tails.append((offset.reshape(-1, 2) * np.array([1 if split else 256, 1])).astype(np.int32))
    one = scales is not None and bool((scales == scales[0]).all())
    if scales is not None:
        two = np.append(scales, scales[-1:].repeat(extra)).reshape(-1, 2)
        two = two * np.array([1 if split else 2**-8, 1], np.float32)
        bits = np.ascontiguousarray(two, np.float32).view(np.int32)
        head, tails = (bits[0], tails) if one else (head, [*tails, bits])
    if places is not None:
        two = np.append(places, places[-1:].repeat(extra)).reshape(-1, 2).astype(np.int64)
        tails.append((two[:, :1] | two[:, 1:] << 16).astype(np.uint32).view(np.int32))
    stream = np.concatenate([head, _grouped(words, [both], tails, group)])
    return Packed(stream, depth, columns // 2, group, extra > 0, split, one, bool(offset.any()))


def _grouped(words: np.ndarray, heads: list[np.ndarray], tails: list[np.ndarray], group: int) -> np.ndarray:
    """Words [pair of the depth][pair of channels] group after group, between what belongs to each pair."""
    parts = []
    for first in range(0, words.shape[1], group):
        own = slice(first, first + group)
        parts += [h[own].reshape(-1) for h in heads] + [words[:, own].reshape(-1)] + [t[own].reshape(-1) for t in tails]
    return np.ascontiguousarray(np.concatenate(parts))


def _largest(weights: np.ndarray, starts: np.ndarray, dtype: str) -> int:
    """The largest magnitude that a sum of these columns may have."""
    info = np.iinfo(dtype)
    ends = [weights * info.min, weights * info.max]
    low = starts + np.minimum(*ends).sum(axis=0)
    high = starts + np.maximum(*ends).sum(axis=0)
    return int(max(np.abs(low).max(), np.abs(high).max()))


def group_of(points: int, pairs: int, whole: bool = False) -> int:
    """Pairs of channels that a tile of so many points holds: as many sums as there are registers. ``whole``: a divisor
    of ``pairs``."""
    return 2 if points == 1 and not (whole and pairs % 2) else 1


def instructions(packed: Packed, points: int, tiles: int, widening: float, each: float, fixed: float) -> float:
    """Roughly those of one run: ``tiles`` tiles of ``points``; ``widening`` for the inputs of a point, ``each`` for a
    result, ``fixed`` for a group of channels."""
    pairs = packed.group
    quad = 4.0 * points * pairs + 2 * pairs * (1 + packed.split) + (2 if points == 1 else 3) + 0.5
    group = packed.depth // 4 * quad + fixed + 2 * points * pairs * each
    return tiles * (-(-packed.pairs // pairs) * group + points * widening + 20)


def epilogue(region: Region) -> float:
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


@dataclass(frozen=True)
class Walk:
    """``config`` says for the emitter how the input is walked, in ``tiles`` tiles of ``points``; ``widening``
    instructions take the inputs of a point apart. ``strides`` of batch, line and point in the output, and of its
    channels; ``overlaps`` as a plan's."""

    config: dict[str, Any]
    points: int
    tiles: int
    widening: float
    strides: tuple[int, int, int, int]
    overlaps: tuple[tuple[int, int, int], ...]

    @property
    def staged(self) -> bool:
        return bool(self.config["source"]["kind"] == "bytes")

    @property
    def plain(self) -> bool:
        """Whether points are runs of words, a constant step apart in the input and in the output."""
        source, line, point = (self.config[name] for name in ("source", "line", "point"))
        apart = line["extent"] > 1 and (
            line["a"] != point["a"] * point["extent"] or self.strides[1] != self.strides[2] * point["extent"]
        )
        runs = self.staged or source["border"] or source["lines"] * source["runs"] > 1
        return not (runs or apart or self.config["batch"]["extent"] > 1)


def plans_of(region: Region, template: str, of: Columns, walk: Walk) -> list[Plan]:
    """Plans for constant weights: for any results, or, cheaper, for those that are only requantized."""
    columns = of.matrix.shape[1]
    steps = steps_of(region, columns) if walk.strides[3] * columns <= MOST_OFFSET else None
    if steps is not None:
        return requantized(region, template, of, walk, steps)
    return [] if of.offset.any() else [any_results(region, template, of, walk)]


def any_results(region: Region, template: str, of: Columns, walk: Walk) -> Plan:
    """The plan of a kernel whose sums go through an evaluator."""
    program, numbers = scales_apart(serialize(region))
    points = walk.points
    weights = packed(of, group_of(points, 0))
    words = points * weights.depth // 2 + 2 * points * weights.group
    reads = epilogue_inputs(region)
    config = {
        **walk.config,
        "program": program,
        "reads": reads,
        "weights": weights.words.size,
        "numbers": numbers.size,
        "depth": weights.depth,
        "split": weights.split,
        "columns": {"pairs": weights.pairs, "odd": weights.odd},
        "pairs": weights.group,
        "scratch": words,
        "overlaps": bool(walk.overlaps),
    }
    consts = (weights.words, *([numbers] if numbers.size else []))
    cost = instructions(weights, points, walk.tiles, walk.widening, 4 + epilogue(region), 25)
    return _plan(region, template, template, config, consts, reads, walk, weights, cost)


def worked(of: Columns, channel: int) -> tuple[np.ndarray, bool]:
    """The channels that are worked out (without those that are the same everywhere, where there are some of these),
    and whether their results lie apart."""
    count = of.matrix.shape[1]
    live = np.asarray(of.matrix.any(axis=0)).reshape(-1)
    if channel != 1 or count < 4 or int(live.sum()) >= count - 1:
        return np.arange(count), channel != 1 or count % 2 == 1
    return np.flatnonzero(live) if live.any() else np.arange(1), True


def requantized(region: Region, template: str, of: Columns, walk: Walk, steps: Steps) -> list[Plan]:
    """Plans of kernels that requantize sums in registers. One point may be taken as it lies: slower, but no scratch."""
    channel = walk.strides[3]
    own, spread = worked(of, channel)
    group = group_of(walk.points, -(-len(own) // 2), whole=True)
    weights = packed(of.chosen(own), group, steps.multipliers[own], own * channel if spread else None)
    row = None if len(own) == of.matrix.shape[1] else steps.of(of.starts.astype(np.int32))
    kinds = {
        "steps": steps.data(),
        "split": weights.split,
        "one_scale": weights.one_scale,
        "scattered": spread,
        "offset": weights.offset,
        "pairs": group,
        "overlaps": bool(walk.overlaps),
    }
    rows = () if row is None else (row,)
    point = walk.widening + sum(r.size for r in rows) + weights.offset * weights.depth
    each, fixed = 8.5 + 1.5 * weights.offset, 15 + 3 * spread
    cost = instructions(weights, walk.points, walk.tiles, point, each, fixed)
    if walk.plain:
        return shared(region, template, walk, weights, kinds, rows, cost)
    config = {
        **walk.config,
        **kinds,
        "weights": weights.words.size,
        "depth": weights.depth,
        "row": sum(r.size for r in rows),
        "out": {"span": region.outputs[0].span, "strides": list(walk.strides[:3])},
        "scratch": scratch_of(walk, weights),
    }
    return [_plan(region, template, f"{template}.steps", config, (weights.words, *rows), [], walk, weights, cost)]


def scratch_of(walk: Walk, weights: Packed) -> int:
    """Words: inputs, addresses, and the sums of inputs."""
    return walk.points * (weights.depth // 2 + 1 + weights.offset) + 2


def shared(
    region: Region,
    template: str,
    walk: Walk,
    weights: Packed,
    kinds: dict[str, Any],
    rows: tuple[np.ndarray, ...],
    cost: float,
) -> list[Plan]:
    """Plans with the kernel that all shapes share. One point may be taken as it lies: slower, but without scratch."""
    point = walk.config["point"]
    shape = {
        "tiles": walk.tiles,
        "last": point["extent"] * walk.config["line"]["extent"] - 1,
        "step": point["a"],
        "to": walk.strides[2],
        "depth": weights.depth,
        "row": sum(r.size for r in rows),
    }
    consts = (np.concatenate([_dsp_plain.head(weights.words.size, shape), weights.words]), *rows)
    rest = {"points": walk.points, "dtype": walk.config["a"]["dtype"], "round": _dsp_asm.round_of(weights.depth)}
    config = {**kinds, **rest, "row": bool(rows), "direct": None}
    scratch = scratch_of(walk, weights)
    found = [_plan(region, template, PLAIN, config, consts, [], walk, weights, cost, scratch)]
    if walk.points == 1 and not weights.split and not weights.offset:
        walk = replace(walk, overlaps=())  # what it reads, it reads for all channels
        config = {**config, "direct": rest["dtype"], "overlaps": False}
        found.append(_plan(region, template, PLAIN, config, consts, [], walk, weights, cost * 1.15, 3))
    return found


def _plan(
    region: Region,
    template: str,
    spec: str,
    config: dict[str, Any],
    consts: tuple[np.ndarray, ...],
    reads: list[int],
    walk: Walk,
    weights: Packed,
    cost: float,
    scratch: int | None = None,
) -> Plan:
    x = region.operand(0)
    assert x is not None
    size = 4 * (config["scratch"] if scratch is None else scratch)
    args = [Arg("in", x), *(Arg("const", i) for i in range(len(consts))), *(Arg("in", i) for i in reads)]
    args += [*(Arg("out", j) for j in range(len(region.outputs))), Arg("worker", 0)]
    args += [Arg("worker", 0, size)] if walk.staged else []
    notes = [note for note, said in (("split", weights.split), ("copied", walk.staged)) if said]
    notes += ["direct"] if config.get("direct") else []
    return Plan(
        template,
        (Draft(KernelSpec(spec, config), tuple(args)),),
        cost=cost / GHZ + 50,
        consts=consts,
        worker_bytes=size + (weights.depth if walk.staged else 0),
        inplace=inplace_pairs(region),
        detail=" ".join([f"smlad {walk.points}x{2 * weights.group}", *notes]),
        overlaps=walk.overlaps,
    )
