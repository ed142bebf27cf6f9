"""The DSP extension's instruction rows in the emulator: their bodies as LLVM IR against their numpy bodies."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from nervure.errors import NervureError
from nervure.targets import boards, dsp, emulator, firmware, get, toolchain
from nervure.targets.machine import Instruction, Machine

CASES = 64
MAIN = """\
#include "semihosting.h"
void row(const void *, void *);
static _Alignas(16) unsigned char given[%d][16 * 3], made[%d][16];
int main(void) {
    if (nervure_read_file("in", given, sizeof given) != 0) return 1;
    for (unsigned i = 0; i < %d; i++) row(given[i], made[i]);
    return nervure_write_file("out", made, sizeof made) != 0;
}
"""


def word(dtype: str) -> str:
    return "float" if dtype.startswith("float32") else "i32"


def llvm_ir(row: Instruction, machine: Machine) -> str:
    """The row over operands of a word each, 16 bytes apart."""
    lines, kinds, declared = [], {}, set()
    for i, (name, dtype) in enumerate(row.operands):
        lines.append(f"  %p_{name} = getelementptr i8, ptr %given, i32 {16 * i}")
        lines.append(f"  %{name} = load {word(dtype)}, ptr %p_{name}")
        kinds[name] = word(dtype)
    for call in row.body:
        args = [str(a) if isinstance(a, int) else f"%{a}" for a in call.args]
        types = [word(d) for d in call.arg_dtypes]
        passed = ", ".join(f"{t} {a}" for t, a in zip(types, args, strict=True))
        kinds[call.out] = word(call.dtype)
        if call.function == "bitcast":
            lines.append(f"  %{call.out} = bitcast {passed} to {word(call.dtype)}")
            continue
        lines.append(f"  %{call.out} = call {word(call.dtype)} @{call.function}({passed})")
        declared.add(f"declare {word(call.dtype)} @{call.function}({', '.join(types)})")
    last = row.body[-1].out
    body = ["define void @row(ptr %given, ptr %made) {", *lines, f"  store {kinds[last]} %{last}, ptr %made"]
    triple = f'target triple = "{machine.llvm["mtriple"]}"'
    return "\n".join([triple, *sorted(declared), *body, "  ret void", "}", ""])


def operand(dtype: str, case: int, random: np.random.Generator) -> np.ndarray:
    """A word of that type: its extremes first."""
    element, _, lanes = dtype.partition("x")
    if element == "float32":
        ends = (0.5, 1.5, -2.5, -0.5, 1e12, -1e12, 8388607.5, -0.0)
        value = ends[case] if case < len(ends) else (random.integers(-9999, 9999) + 0.5) * random.choice([1, 0.37])
        return np.array([value], np.float32)
    info = np.iinfo(element)
    if case < 4 and element != "int32":
        return np.array([info.min if (case + i) % (case + 1) else info.max for i in range(int(lanes))], element)
    return random.integers(info.min, info.max, int(lanes), element, endpoint=True)


@pytest.mark.slow
@pytest.mark.parametrize("row", dsp.ROWS, ids=lambda r: r.name)
@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m7", "cortex-m33"])
def test_row_computes_what_its_reference_says(tmp_path: Path, name: str, row: Instruction):
    machine = get(name)
    try:
        emulator.command(machine)
    except NervureError as error:
        pytest.skip(str(error))
    random = np.random.default_rng(0)
    cases = [[operand(dtype, i, random) for _, dtype in row.operands] for i in range(CASES)]
    packed = (b"".join(a.tobytes().ljust(16, b"\0") for a in case).ljust(48, b"\0") for case in cases)
    (tmp_path / "in").write_bytes(b"".join(packed))
    (tmp_path / "row.ll").write_text(llvm_ir(row, machine))
    (tmp_path / "main.c").write_text(MAIN % (CASES, CASES, CASES))
    cpu = f"-mcpu={machine.zig_cpu}+dsp"  # which is optional in a Cortex-M33, and so not in zig's model of it
    target = ("-target", machine.zig_target, cpu, "-O2", "-Wno-override-module")
    toolchain.run_zig(["cc", *target, "-c", "row.ll", "-o", "row.o"], tmp_path)
    assert machine.board is not None
    elf = firmware.link(tmp_path, ["main.c", "row.o"], machine, boards.get(machine.board), out="row.elf")
    done = firmware.simulate(elf, machine)
    assert done.status == 0, done.said
    made = (tmp_path / "out").read_bytes()
    for i, case in enumerate(cases):
        if row.kind == "round" and abs(case[0][0]) > 2**31:
            (have,) = struct.unpack_from("<i", made, 16 * i)
            assert have == (2**31 - 1 if case[0][0] > 0 else -(2**31)), "clips"
            continue
        expected = row.reference(*case)
        have = np.frombuffer(made, expected.dtype, len(expected), 16 * i)
        np.testing.assert_array_equal(have, expected, err_msg=f"{row.name} {case}")


def test_smlad_wraps_around():
    most, least = np.array([2**31 - 1], np.int32), np.full(2, -32768, np.int16)
    assert dsp.paired(most, least, least).tolist() == [-1]
