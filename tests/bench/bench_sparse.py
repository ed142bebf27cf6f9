"""Layers of pruned weights against the same layers dense, by our own kernels: interleaved, one thread, one core.

    python tests/bench/bench_sparse.py [filter ...] [--target host] [--json OUT] [--rounds 5]

Both run the plan that the compiler would choose, called through ctypes; a layer whose zeros are not worth a plan of
their own therefore shows a ratio of 1 (and in brackets what the best sparse plan would have been). ``asked`` is the
ratio that the case is meant to reach; ``model`` is the ratio that the cost model expects; ``bytes`` are packed weights
and indices against the dense ones. A family's last line weights its layers by how often the network has them. Times are
the best of all rounds: what others do on the machine hits the slower kernel oftener.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler" / "kernels"))
from bench_kernels import caller
from harness import channels_last, extra_input, region_of
from nervure import targets
from nervure.compiler.kernels.spec import Plan, Region
from nervure.compiler.kernels.templates import plans
from nervure.compiler.prune.patterns import Pattern, from_matrix, parse, to_matrix
from nervure.targets.machine import Machine

SPARSE = ("sparse_blocks", "sparse_lanes", "sparse_rows", "dot_sparse")  # templates that leave zeros out
Built = tuple[Region, list[np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A layer (``size`` as its builder reads it), its pattern, how much of it is zero (where the pattern does not
    say), the ratio it is meant to reach, and how many such layers its family has."""

    family: str
    op: str
    size: tuple[int, ...]
    pattern: str
    sparsity: float | None = None
    asked: float | None = None
    times: int = 1
    label: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        zeros = "" if self.sparsity is None else f" {self.sparsity:.0%}"
        return f"{self.family} {self.op} {self.label or 'x'.join(map(str, self.size))} {self.pattern}{zeros}"


def gemms(k: int, n: int) -> list[Case]:
    found = []
    for m in (1, 16, 128):
        for pattern, sparsity, asked in (
            ("block:1x16", 0.75, 2.0),
            ("2:8x16", None, 2.0),
            ("1:4x16", None, 2.0),
            ("block:1x16", 0.9, 3.5),
            ("2:4x16", None, None),
        ):
            found.append(Case("dense", "matmul", (m, k, n), pattern, sparsity, asked))
    return found


# input channels, size, outputs, kernel, stride, how often
MOBILENET = [
    (32, 112, 16, 1, 1, 1),
    (16, 112, 96, 1, 1, 1),
    (96, 56, 24, 1, 1, 1),
    (24, 56, 144, 1, 1, 2),
    (144, 56, 24, 1, 1, 1),
    (144, 28, 32, 1, 1, 1),
    (32, 28, 192, 1, 1, 3),
    (192, 28, 32, 1, 1, 2),
    (192, 14, 64, 1, 1, 1),
    (64, 14, 384, 1, 1, 4),
    (384, 14, 64, 1, 1, 3),
    (384, 14, 96, 1, 1, 1),
    (96, 14, 576, 1, 1, 3),
    (576, 14, 96, 1, 1, 2),
    (576, 7, 160, 1, 1, 1),
    (160, 7, 960, 1, 1, 3),
    (960, 7, 160, 1, 1, 2),
    (960, 7, 320, 1, 1, 1),
    (320, 7, 1280, 1, 1, 1),
]
RESNET18 = [
    (64, 56, 64, 3, 1, 4),
    (64, 56, 128, 3, 2, 1),
    (128, 28, 128, 3, 1, 3),
    (128, 28, 256, 3, 2, 1),
    (256, 14, 256, 3, 1, 3),
    (256, 14, 512, 3, 2, 1),
    (512, 7, 512, 3, 1, 3),
]
TINY = [
    (16, 32, 16, 3, 1, 1),
    (16, 32, 32, 3, 2, 1),
    (64, 8, 64, 3, 1, 1),
    (64, 8, 64, 1, 1, 1),
    (128, 8, 128, 1, 1, 1),
]


def scattered_gemms(k: int, n: int) -> list[Case]:
    """Zeros of single outputs."""
    patterns = (("unstructured", 0.9, 1.0), ("unstructured", 0.75, None), ("1:4", None, None), ("2:4", None, None))
    return [Case("scattered", "matmul", (m, k, n), p, s, asked) for m in (1, 16, 128) for p, s, asked in patterns]


def bytes_gemms(k: int, n: int) -> list[Case]:
    """8-bit products; a block is as deep as a dot product takes at once."""
    patterns = (
        ("block:4x16", 0.75, 2.0),
        ("block:4x16", 0.9, 3.5),
        ("1:4", None, 2.0),
        ("2:4", None, 1.2),
        ("unstructured", 0.9, 2.0),
        ("unstructured", 0.75, None),
        ("unstructured", 0.5, None),
    )
    return [Case("int8", "matmul_integer", (m, k, n), p, s, asked) for m in (1, 16, 128) for p, s, asked in patterns]


def convs(
    family: str, layers: Sequence[tuple[int, ...]], pattern: str, sparsity: float | None = None, op: str = "conv"
) -> list[Case]:
    return [Case(family, op, c[:5], pattern, sparsity, None, c[5], "{}@{}->{} {}x{} s{}".format(*c[:4], *c[3:5]))
            for c in layers]  # fmt: skip


CASES = [
    *gemms(768, 3072),
    *gemms(3072, 768),
    *convs("mobilenetv2-2:4", MOBILENET, "2:4x16"),
    *convs("mobilenetv2-1:4", MOBILENET, "1:4x16"),
    *convs("resnet18-50%", RESNET18, "block:1x16", 0.5),
    *convs("resnet18-75%", RESNET18, "block:1x16", 0.75),
    *convs("resnet18-90%", RESNET18, "block:1x16", 0.9),
    *convs("tiny-75%", TINY, "block:1x16", 0.75),
    *scattered_gemms(768, 3072),
    *convs("mobilenetv2-plain-2:4", MOBILENET, "2:4"),
    *convs("mobilenetv2-plain-1:4", MOBILENET, "1:4"),
    *convs("mobilenetv2-scattered-90%", MOBILENET, "unstructured", 0.9),
    *convs("resnet18-scattered-90%", RESNET18, "unstructured", 0.9),
    *bytes_gemms(768, 3072),
    *convs("int8-mobilenetv2-2:4", MOBILENET, "2:4", op="conv_integer"),
    *convs("int8-mobilenetv2-2:4x16", MOBILENET, "2:4x16", op="conv_integer"),
    *convs("int8-mobilenetv2-1:4", MOBILENET, "1:4", op="conv_integer"),
    *convs("int8-mobilenetv2-75%", MOBILENET, "block:4x16", 0.75, op="conv_integer"),
    *convs("int8-resnet18-2:4", RESNET18, "2:4", op="conv_integer"),
    *convs("int8-resnet18-75%", RESNET18, "block:4x16", 0.75, op="conv_integer"),
    *convs("int8-resnet18-90%", RESNET18, "unstructured", 0.9, op="conv_integer"),
    *[Case("tiny-fc", "matmul", (1, k, n), "block:1x16", 0.75) for k, n in ((640, 128), (128, 128), (784, 256))],
]
ASKED = {"mobilenetv2-2:4": 1.4, "mobilenetv2-plain-2:4": 1.4, "int8-mobilenetv2-2:4": 1.2}  # of a family's sum


# -- regions -----------------------------------------------------------------------------------------------------------


def pruned(matrix: np.ndarray, pattern: Pattern, channels: int, sparsity: float | None) -> np.ndarray:
    return matrix * pattern.mask(np.abs(matrix), channels, None if pattern.group else sparsity)


def matmul(case: Case, machine: Machine) -> tuple[Built, Built]:
    """The dense and the pruned region."""
    m, k, n = case.size
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    thin = pruned(w, parse(case.pattern, machine), k, case.sparsity)
    dense, sparse = (region_of("matmul", [x, v], {}, consts=(1,), machine=machine) for v in (w, thin))
    return dense, sparse


def conv(case: Case, machine: Machine) -> tuple[Built, Built]:
    channels, size, outputs, kernel, stride = case.size
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, size, size), np.float32)
    w = rng.standard_normal((outputs, channels, kernel, kernel), np.float32)
    bias = rng.standard_normal(outputs, np.float32)
    matrix = pruned(to_matrix(w, "conv"), parse(case.pattern, machine), channels, case.sparsity)
    pad = kernel // 2
    attrs = {"strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (1, 1), "group": 1}
    options: dict[str, Any] = {
        "consts": (1, 2),
        "machine": machine,
        "order": lambda rank: channels_last(4) if rank == 4 else range(rank),
    }
    weights = (w, from_matrix(matrix, w.shape, "conv"))
    dense, sparse = (region_of("conv", [x, v, bias], attrs, **options) for v in weights)
    return dense, sparse


def integers(case: Case, machine: Machine) -> tuple[Built, Built]:
    """The 8-bit layer behind which sums are taken to 8 bits again, as in a quantized network."""
    rng, float_op = np.random.default_rng(0), case.op.removesuffix("_integer")
    attrs: dict[str, Any] = {"zero_point": 3}
    if float_op == "matmul":
        m, k, n = case.size
        x, w = (m, k), (k, n)
        attrs["b_zero_point"], channels = 0, k
    else:
        channels, size, n, kernel, stride = case.size
        x, w = (1, channels, size, size), (n, channels, kernel, kernel)
        attrs |= {"strides": (stride,) * 2, "pads": (kernel // 2,) * 4, "dilations": (1, 1), "group": 1}
    low = 0 if machine.steps_dtype == "uint8" else -128
    values = rng.integers(low, low + 256, x).astype(machine.steps_dtype)
    weights = (rng.integers(1, 128, w) * rng.choice([-1, 1], w)).astype(np.int8)
    bias = rng.integers(-999, 999, n).astype(np.int32)
    scale = rng.uniform(1e-4, 4e-3, (n, 1, 1) if float_op == "conv" else n).astype(np.float32)

    def rescaled(g: Any, y: Any) -> Any:
        return g.add("requantize", y, extra_input(g, scale), zero_point=7, to=str(values.dtype))

    matrix = to_matrix(weights, float_op)
    thin = pruned(matrix, parse(case.pattern, machine, "int8"), channels, case.sparsity)
    options: dict[str, Any] = {
        "consts": (1, 2),
        "machine": machine,
        "order": lambda rank: channels_last(4) if rank == 4 else range(rank),
        "epilogue": rescaled,
    }
    both = (weights, np.ascontiguousarray(from_matrix(thin, w, float_op)).astype(np.int8))
    dense, sparse = (region_of(case.op, [values, v, bias], attrs, **options) for v in both)
    return dense, sparse


BUILDERS: dict[str, Callable[[Case, Machine], tuple[Built, Built]]] = {
    "matmul": matmul,
    "conv": conv,
    "matmul_integer": integers,
    "conv_integer": integers,
}


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    name: str
    family: str
    times: int
    dense_us: float
    sparse_us: float
    ratio: float
    model: float
    bytes: float
    chosen: bool
    asked: float | None
    dense: str
    sparse: str

    def line(self) -> str:
        met = "" if self.asked is None else f" asked x{self.asked:.1f}{'' if self.told >= self.asked else ' MISSED'}"
        ratio = f"x{self.ratio:5.2f}" if self.chosen else f"x 1.00 (x{self.ratio:.2f})"
        return (
            f"{self.name:52s} {self.dense_us:9.2f} us {self.sparse_us:9.2f} us {ratio} model x{self.model:5.2f} "
            f"bytes {self.bytes:5.3f}{met}  [{self.dense} | {self.sparse}]"
        )

    @property
    def told(self) -> float:
        return self.ratio if self.chosen else 1.0


def measure(case: Case, machine: Machine, rounds: int) -> Row | None:
    """None where no template has a sparse plan."""
    (dense, given), (sparse, thin) = BUILDERS[case.op](case, machine)
    best, found = plans(dense)[0], plans(sparse)
    mine = next((p for p in found if p.template in SPARSE), None)
    if mine is None:
        return None
    estimate = min(best.cost, mine.cost) / 2
    batch = max(1, int(2e4 / estimate))
    repeat = max(5, min(300, int(1.5e6 / (estimate * batch))))
    runs = [caller(r, p, a, repeat, batch) for r, p, a in ((dense, best, given), (sparse, mine, thin))]
    for run in runs:
        run()
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for held, run in zip(times, runs, strict=True):
            held.append(min(run()))
    return Row(
        case.name,
        case.family,
        case.times,
        min(times[0]) / 1e3,
        min(times[1]) / 1e3,
        min(times[0]) / min(times[1]),
        best.cost / mine.cost,
        nbytes(mine) / max(1, sum(a.nbytes for a in given[1:])),
        found[0] is mine,
        case.asked,
        best.detail,
        mine.detail,
    )


def nbytes(plan: Plan) -> int:
    return sum(c.nbytes for c in plan.consts)


def totals(rows: Sequence[Row]) -> list[str]:
    """One line for each family of several layers."""
    found = []
    for family in dict.fromkeys(r.family for r in rows):
        own = [r for r in rows if r.family == family]
        before = sum(r.times * r.dense_us for r in own)
        after = sum(r.times * (r.sparse_us if r.chosen else r.dense_us) for r in own)
        asked = ASKED.get(family)
        met = "" if asked is None else f" asked x{asked:.1f}{'' if before / after >= asked else ' MISSED'}"
        if any(r.times > 1 for r in own):
            found.append(f"{family}: {before:.0f} us -> {after:.0f} us, x{before / after:.2f}{met}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("filter", nargs="*", help="words that a case's name must have")
    parser.add_argument("--target", default="host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    machine = targets.get(args.target)
    rows = []
    for case in CASES:
        if all(word in case.name for word in args.filter):
            row = measure(case, machine, args.rounds)
            print(f"{case.name:52s} no sparse plan" if row is None else row.line(), flush=True)
            rows += [] if row is None else [row]
    print("\n".join(totals(rows)))
    if args.json:
        facts = {"target": args.target, "cpu": machine.mcpu, "rows": [asdict(r) for r in rows]}
        args.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
