"""Kernels of one lane as C99: no warning, of libm only the square root and the absolute value, and the same numbers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from harness import check_region, machines, region_of
from nervure.compiler.interpret import interpret
from nervure.compiler.kernels import c99, worker
from nervure.compiler.kernels.templates import plans

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc (apt-get install gcc)")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


CASES = [
    *(
        (name, [normal(50)], {})
        for name in ("exp", "log1p", "tanh", "erf", "sigmoid", "gelu", "sin", "floor", "round", "abs")
    ),
    ("pow", [np.abs(normal(40)), normal(40)], {}),
    ("softmax", [normal(5, 40)], {"axis": 1}),
    ("layer_norm", [normal(5, 40), normal(40)], {"axis": 1, "epsilon": 1e-5}),
    ("attention", [normal(2, 9, 7)] * 3, {"scale": 0.3}),
    ("lstm", [normal(3, 2, 4), normal(1, 20, 4), normal(1, 20, 5)], {}),
    ("argmax", [normal(3, 40)], {"axis": 1}),
]


@pytest.mark.parametrize("name, arrays, attrs", CASES, ids=[c[0] for c in CASES])
def test_portable_c(name, arrays, attrs, tmp_path):
    machine = replace(machines()[0], name="one lane", lanes=1, registers=16, features=())
    consts = (1, 2) if name == "lstm" else ()
    region, given = region_of(name, arrays, attrs, machine=machine, consts=consts)
    check_region(region, given)
    plan = plans(region)[0]
    for draft in plan.phases:
        row = machine.record()
        function, _ = worker.build(draft.spec.template, dict(draft.spec.config), draft.spec.name, row)
        (tmp_path / "k.c").write_text(c99.unit([function]))
        flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, "k.c", "-o", "k.so"], cwd=tmp_path, check=True)
        names = subprocess.run(["nm", "-uD", "k.so"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert {n for n in names.split() if len(n) > 1 and not n.startswith(("_", "w"))} <= {"sqrtf", "fabsf"}
    if len(plan.phases) == 1 and plan.phases[0].tasks is None and not plan.worker_bytes and not plan.consts:
        (want,) = interpret(region.body, given)
        have = np.zeros_like(want)
        kernel = getattr(ctypes.CDLL(str(tmp_path / "k.so")), plan.phases[0].spec.name)
        kernel(*(a.ctypes.data_as(ctypes.c_void_p) for a in (*given, have)))
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
