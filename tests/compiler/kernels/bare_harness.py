"""Runs regions' kernels on an emulated Cortex-M board, many of them in one boot, and counts their instructions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nervure.compiler.kernels import worker
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.spec import Arg, Plan, Region
from nervure.targets import boards, firmware
from nervure.targets.files import temporary_folder
from nervure.targets.machine import Machine

GUARD, FILL = 16, 0xA5
MAIN = """\
#include "semihosting.h"
void *memset(void *, int, size_t);
%(declared)s
static _Alignas(16) unsigned char memory[%(bytes)d];
void nervure_count_start(void);
void nervure_count_stop(void);
int main(void) {
%(runs)s
    return 0;
}
"""


@dataclass(frozen=True)
class Run:
    """A plan of a region, its inputs, and (input, lead) where its output lies over that input."""

    region: Region
    arrays: Sequence[np.ndarray]
    plan: Plan
    over: tuple[int, int] | None = None


@dataclass(frozen=True)
class Result:
    """The outputs of each run, and instructions by kernel."""

    outputs: list[list[np.ndarray]]
    instructions: dict[str, int]


class _Memory:
    """Where the operands of one run lie: guard bytes before and behind each."""

    def __init__(self, run: Run) -> None:
        self.at: dict[tuple[str, int], int] = {}
        self.size = GUARD
        over = None if run.over is None else run.over[0]
        spans = [("in", i, o.span * o.type.itemsize) for i, o in enumerate(run.region.inputs) if i != over]
        spans += [("const", i, c.nbytes) for i, c in enumerate(run.plan.consts)]
        spans += [("shared", 0, run.plan.shared_bytes), ("worker", 0, run.plan.worker_bytes)]
        if run.over is not None:
            source, out = run.region.inputs[run.over[0]], run.region.outputs[0]
            lead = run.over[1]
            start = self.size
            self.at["out", 0] = start
            self.at["in", run.over[0]] = start + lead
            end = max(lead + source.span * source.type.itemsize, out.span * out.type.itemsize)
            self.size = start + -(-end // 16) * 16 + GUARD
        else:
            spans += [("out", j, o.span * o.type.itemsize) for j, o in enumerate(run.region.outputs)]
        for kind, index, nbytes in spans:
            self.at[kind, index] = self.size
            self.size += -(-nbytes // 16) * 16 + GUARD

    def image(self, run: Run) -> bytes:
        raw = np.full(self.size, FILL, np.uint8)
        for i, (array, operand) in enumerate(zip(run.arrays, run.region.inputs, strict=True)):
            start = self.at["in", i]
            view = np.zeros(operand.span, array.dtype)
            view.view(np.uint8)[:] = FILL
            steps = [s * array.itemsize for s in operand.strides]
            np.lib.stride_tricks.as_strided(view, array.shape, steps)[...] = array
            raw[start : start + view.nbytes] = view.view(np.uint8)
        for i, const in enumerate(run.plan.consts):
            start = self.at["const", i]
            raw[start : start + const.nbytes] = np.ascontiguousarray(const).reshape(-1).view(np.uint8)
        return raw.tobytes()

    def outputs(self, run: Run, data: bytes) -> list[np.ndarray]:
        found = []
        for j, operand in enumerate(run.region.outputs):
            dtype = np.dtype(operand.type.dtype)
            flat = np.frombuffer(data, np.uint8)[self.at["out", j] :][: operand.span * dtype.itemsize]
            steps = [s * dtype.itemsize for s in operand.strides]
            whole = np.ascontiguousarray(flat).view(dtype)
            found.append(np.array(np.lib.stride_tricks.as_strided(whole, operand.type.dims, steps)))
        return found

    def check(self, run: Run, data: bytes) -> None:
        """Guard bytes, and what a kernel must not write, are as they were."""
        before, after = np.frombuffer(self.image(run), np.uint8), np.frombuffer(data, np.uint8)
        same = before == after
        for (kind, index), start in self.at.items():
            if kind in ("out", "worker", "shared"):
                size = {"shared": run.plan.shared_bytes, "worker": run.plan.worker_bytes}.get(kind)
                if size is None:
                    operand = run.region.outputs[index]
                    size = operand.span * operand.type.itemsize
                same[start : start + size] = True
        if run.over is not None:
            assert run.over[0] != ("out", 0)
        assert same.all(), f"{run.plan.detail}: written outside at {np.flatnonzero(~same)[:8]}"


def run_on(machine: Machine, runs: Sequence[Run]) -> Result:
    """All of them, in order; fails on a write where none should be."""
    row = machine.record()
    assert machine.board is not None
    with temporary_folder() as folder:
        memories = [_Memory(r) for r in runs]
        lines: list[str] = []
        kernels: dict[str, list[str]] = {}
        for number, (run, memory) in enumerate(zip(runs, memories, strict=True)):
            (folder / f"i{number}").write_bytes(memory.image(run))
            lines.append(f'    if (nervure_read_file("i{number}", memory, {memory.size}u) != 0) return 1;')
            lines.append("    nervure_count_start();")
            for draft in run.plan.phases:
                name = draft.spec.name
                if name not in kernels:
                    template, config = json.loads(draft.spec.canonical)
                    function, tasks = worker.build(template, config, name, row)
                    assert tasks == draft.tasks
                    write_object([function], row["llvm"], Path(folder) / f"{name}.o")
                    kernels[name] = ["void *"] * len(draft.args) + ["int"] * (2 * (tasks is not None))
                given = [f"memory + {_place(memory, a)}" for a in draft.args]
                given += [] if draft.tasks is None else ["0", str(draft.tasks)]
                lines.append(f"    {name}({', '.join(given)});")
            lines.append("    nervure_count_stop();")
            lines.append(f'    if (nervure_write_file("o{number}", memory, {memory.size}u) != 0) return 2;')
        declared = "\n".join(f"void {name}({', '.join(kinds)});" for name, kinds in kernels.items())
        size = max(m.size for m in memories)
        text = MAIN % {"declared": declared, "bytes": size, "runs": "\n".join(lines)}
        (folder / "main.c").write_text(text)
        board = boards.get(machine.board)
        elf = firmware.link(folder, ["main.c", *(f"{n}.o" for n in kernels)], machine, board, out="test.elf")
        done = firmware.simulate(elf, machine, count=True)
        assert done.status == 0, done.said
        outputs = []
        for number, (run, memory) in enumerate(zip(runs, memories, strict=True)):
            data = (folder / f"o{number}").read_bytes()
            memory.check(run, data)
            outputs.append(memory.outputs(run, data))
        return Result(outputs, dict(done.instructions))


def _place(memory: _Memory, arg: Arg) -> int:
    index = arg.index if arg.kind in ("in", "out", "const") else 0
    return memory.at[arg.kind, index] + arg.offset
