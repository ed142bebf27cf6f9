"""Every instruction row of Helium in QEMU: what LLVM makes of its body against its numpy body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nervure import targets
from nervure.compiler.kernels.lower import write_object
from nervure.compiler.kernels.tir import Builder, as_dtype, reinterpreted
from nervure.errors import MissingTool
from nervure.targets import Instruction, boards, firmware

pytestmark = pytest.mark.emulator

MACHINE = targets.get("cortex-m55")
TRIALS = 40
WORDS = 64  # bytes of an operand, and of a result
MAIN = """\
#include "semihosting.h"
static _Alignas(16) unsigned char in[%(operands)d], out[%(results)d];
%(declared)s
int main(void) {
    if (nervure_read_file("in", in, sizeof in) != 0) return 1;
%(calls)s
    return nervure_write_file("out", out, sizeof out) != 0;
}
"""


def parts(dtype: str) -> tuple[str, int]:
    element, _, lanes = dtype.partition("x")
    return element, int(lanes or 1)


def function(row: Instruction, name: str) -> object:
    """``name(operand, ..., result)`` over memory."""
    k = Builder(name, MACHINE.record())
    given = {}
    for operand, dtype in row.operands:
        element, lanes = parts(dtype)
        given[operand] = k.load(k.arg(operand, element, lanes), 0, lanes)
    element, lanes = parts(row.result)
    out = k.arg("out", element, lanes)
    k.store(out, 0, reinterpreted(k.instruction(row, **given), as_dtype(element, lanes)))
    return k.function()


def operand(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Numbers of every size, ends and halves among them."""
    element, lanes = parts(dtype)
    if element == "float32":
        wide = rng.standard_normal(lanes) * 10.0 ** rng.integers(-2, 8, lanes)
        return np.where(rng.random(lanes) < 0.4, rng.integers(-99, 99, lanes) + 0.5, wide).astype(np.float32)
    info = np.iinfo(element)
    found = rng.integers(info.min, info.max, lanes, endpoint=True)
    near = rng.integers(-300, 300, lanes)
    found = np.where(rng.random(lanes) < 0.3, np.clip(near, info.min, info.max), found)
    return np.where(rng.random(lanes) < 0.1, rng.choice([info.min, info.max], lanes), found).astype(element)


def test_rows(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(5), MACHINE.instructions
    given: list[tuple[Instruction, list[np.ndarray]]] = []
    data, calls, at = b"", [], 0
    for number, row in enumerate(rows):
        write_object([function(row, f"row{number}")], MACHINE.llvm, tmp_path / f"row{number}.o")
        for _ in range(TRIALS):
            values = [operand(rng, dtype) for _, dtype in row.operands]
            given.append((row, values))
            places = [f"in + {len(data) + WORDS * i}" for i in range(len(values))]
            calls.append(f"    row{number}({', '.join(places)}, out + {at});")
            data += b"".join(v.tobytes().ljust(WORDS, b"\0") for v in values)
            at += WORDS
    (tmp_path / "in").write_bytes(data)
    declared = "\n".join(f"void row{n}({', '.join(['void *'] * (len(r.operands) + 1))});" for n, r in enumerate(rows))
    filled = {"operands": len(data), "results": at, "declared": declared, "calls": "\n".join(calls)}
    (tmp_path / "main.c").write_text(MAIN % filled)
    objects = [f"row{n}.o" for n in range(len(rows))]
    assert MACHINE.board is not None
    elf = firmware.link(tmp_path, ["main.c", *objects], MACHINE, boards.get(MACHINE.board), out="rows.elf")
    try:
        done = firmware.simulate(elf, MACHINE)
    except MissingTool as missing:
        pytest.skip(str(missing))
    assert done.status == 0, done.said
    results = (tmp_path / "out").read_bytes()
    for number, (row, values) in enumerate(given):
        element, lanes = parts(row.result)
        have = np.frombuffer(results, element, lanes, WORDS * number)
        np.testing.assert_array_equal(have, row.reference(*values), err_msg=row.name)


def test_each_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in MACHINE.instructions]
    assert len(set(names)) == len(names)
    assert {row.kind for row in MACHINE.instructions} >= {"dot16", "round", "narrow.even.int8", "narrow.odd.int16"}
