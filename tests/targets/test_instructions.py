"""Every instruction row, run natively or emulated: its body as LLVM IR against its numpy body."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from nervure.errors import NervureError
from nervure.targets import MACHINES, Instruction, Machine, emulator, toolchain, x86

ROWS = [
    pytest.param(machine, row, id=f"{machine.name}-{row.name}")
    for machine in (
        *(m for m in MACHINES.values() if m.system == "linux"),
        *(m for _, m in x86.MICROARCHITECTURES if m.mcpu in ("znver4", "skylake-avx512", "alderlake")),
    )
    for row in machine.instructions
]
MAIN = """
#include <stdio.h>
void row(const void *inputs, void *out);
static _Alignas(64) char inputs[8 * 64], out[64];
int main(void) {
    if (fread(inputs, 64, 1, stdin) != 1) return 1;
    for (int i = 1; i < 8 && fread(inputs + 64 * i, 64, 1, stdin) == 1; i++);
    row(inputs, out);
    return fwrite(out, 64, 1, stdout) != 1;
}
"""


def llvm_type(dtype: str) -> str:
    """``int8x64`` as LLVM writes it; signedness is the instruction's business."""
    element, _, lanes = dtype.partition("x")
    kind = "float" if element == "float32" else "i" + element.removeprefix("u").removeprefix("int")
    return f"<{lanes} x {kind}>" if lanes else kind


def as_type(name: str, have: str, dtype: str, lines: list[str]) -> str:
    """The value of that name as a ``dtype``, its bits taken anew where it is another."""
    if have == llvm_type(dtype):
        return f"%{name}"
    lines.append(f"  %{name}.{len(lines)} = bitcast {have} %{name} to {llvm_type(dtype)}")
    return lines[-1].split()[0]


def llvm_ir(row: Instruction, machine: Machine) -> str:
    """The row as a function over its operands, 64 bytes each, and the place of its result."""
    lines: list[str] = []
    declared, kinds = set(), {name: llvm_type(dtype) for name, dtype in row.operands}
    for i, (name, dtype) in enumerate(row.operands):
        lines.append(f"  %p_{name} = getelementptr i8, ptr %inputs, i64 {64 * i}")
        lines.append(f"  %{name} = load {llvm_type(dtype)}, ptr %p_{name}, align 64")
    for call in row.body:
        kind = llvm_type(call.dtype)
        args = []
        for arg, dtype in zip(call.args, call.arg_dtypes, strict=True):
            if isinstance(arg, int) and "x" not in dtype:
                args.append(str(arg))
            elif isinstance(arg, int):
                lanes, element = llvm_type(dtype)[1:-1].split(" x ")
                args.append(f"<{', '.join([f'{element} {arg}'] * int(lanes))}>")
            else:
                args.append(as_type(arg, kinds[arg], dtype, lines))
        kinds[call.out] = kind
        if call.function == "add":
            lines.append(f"  %{call.out} = add {kind} {', '.join(args)}")
        elif call.function == "concat":
            half, count = llvm_type(call.arg_dtypes[0]), int(call.dtype.split("x")[1])
            both, order = ", ".join(f"{half} {a}" for a in args), ", ".join(f"i32 {i}" for i in range(count))
            lines.append(f"  %{call.out} = shufflevector {both}, <{count} x i32> <{order}>")
        else:
            types = [llvm_type(d) for d in call.arg_dtypes]
            passed = ", ".join(f"{t} {a}" for t, a in zip(types, args, strict=True))
            lines.append(f"  %{call.out} = call {kind} @{call.function}({passed})")
            declared.add(f"declare {kind} @{call.function}({', '.join(types)})")
    store = f"  store {llvm_type(row.result)} %{row.body[-1].out}, ptr %p_out, align 64"
    triple = f'target triple = "{machine.llvm["mtriple"]}"'
    body = "\n".join(["define void @row(ptr %inputs, ptr %p_out) {", *lines, store, "  ret void", "}"])
    return "\n".join([triple, *sorted(declared), body, ""])


def operands(row: Instruction, seed: int) -> list[np.ndarray]:
    """Random operands, the factors at their extremes for the first seed; within the row's limit where it has one."""
    random = np.random.default_rng(seed)
    made = []
    for name, dtype in row.operands:
        element, lanes = dtype.split("x")
        if element == "float32":
            halves = random.integers(-99999, 99999, int(lanes)) + 0.5
            made.append((halves if seed == 0 else halves * random.random(int(lanes))).astype(np.float32))
            continue
        if name == "i" and row.kind.startswith("pick"):
            numbers = 16 if row.kind == "pick16" else int(row.operands[0][1].split("x")[1])
            made.append(random.integers(0, numbers, int(lanes)).astype(element))
            continue
        if row.kind.startswith("pack."):
            reach = (300, 1 << 31, 40000)[seed % 3]
            same = np.full(int(lanes), random.integers(-128, 256), element)  # one zero point for all lanes
            made.append(same if name == "zero" else random.integers(-reach, reach, int(lanes)).astype(element))
            continue
        info = np.iinfo(element)
        low, high = (-(1 << 20), 1 << 20) if name == "acc" else (info.min, info.max)
        if name == "a" and row.limit is not None:
            high = row.limit
        if seed == 0 and name != "acc":
            made.append(np.full(int(lanes), low if info.min else high, element))
        else:
            made.append(random.integers(low, high, int(lanes), dtype=element, endpoint=True))
    return made


@pytest.mark.parametrize(("machine", "row"), ROWS)
def test_row_computes_what_its_reference_says(tmp_path: Path, machine: Machine, row: Instruction):
    try:
        before = emulator.command(machine)
    except NervureError as error:
        pytest.skip(str(error))
    (tmp_path / "row.ll").write_text(llvm_ir(row, machine))
    (tmp_path / "main.c").write_text(MAIN)
    target = ("-target", machine.zig_target, f"-mcpu={machine.zig_cpu}", "-O2", "-Wno-override-module")
    toolchain.run_zig(["cc", *target, "-c", "row.ll", "-o", "row.o"], tmp_path)
    toolchain.link_program(tmp_path, ["main.c", "row.o"], machine, out="row")
    for seed in range(5):
        given = operands(row, seed)
        expected = row.reference(*given)
        data = b"".join(a.tobytes().ljust(64, b"\0") for a in given)
        done = subprocess.run([*before, str(tmp_path / "row")], input=data, capture_output=True)
        assert done.returncode == 0, done.stderr
        got = np.frombuffer(done.stdout, row.result.split("x")[0])[: row.lanes]
        np.testing.assert_array_equal(got, expected)
        if row.kind.startswith("dot") and not row.saturates:
            products = given[1].astype(np.int64) * given[2].astype(np.int64)
            np.testing.assert_array_equal(expected, given[0] + products.reshape(row.lanes, -1).sum(axis=1))
