"""``nv.run_in_c``, ``nv.build_c``: a C program around a library computes what Python's session does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nervure as nv
import numpy as np
import pytest

X = np.random.default_rng(0).random((5, 3), np.float32)


def saved(folder: Path, target: str = "host") -> Path:
    total = nv.Variable(np.zeros((1, 2)), trainable=False, name="total")
    dense = nv.layers.Dense(2, input_dim=3)

    @nv.network(name="net")  # a name that C's headers own
    def net(x: nv.Input(batch_shape=(1, 3))):
        return dense(x), nv.assign(total, total + dense(x))

    @nv.network
    def peek():
        return nv.sum(total)

    return nv.compile(net, target, entries=[peek]).save(folder / "other name.so")


@pytest.mark.parametrize("target", ["host", pytest.param("aarch64", marks=pytest.mark.emulator)])
def test_a_c_program_computes_the_same_and_keeps_states(target: str, tmp_path: Path) -> None:
    if target != "host" and shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64")
    y, totals = nv.run_in_c(saved(tmp_path, target), X)
    assert y.shape == totals.shape == (5, 2)
    session = nv.load(saved(tmp_path))
    expected = np.concatenate([session(x[None])[0] for x in X])
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_allclose(totals, np.cumsum(expected, axis=0), rtol=1e-5)


def test_an_entry_without_inputs(tmp_path: Path) -> None:
    assert nv.run_in_c(saved(tmp_path), entry="peek", calls=2).tolist() == [0.0, 0.0]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(nv.NervureError, match=r"input 'x' of shape \[5, 2\] is no whole number of \[1, 3\]"):
        nv.run_in_c(path, X[:, :2])
    with pytest.raises(nv.NervureError, match=r"infer takes 1 inputs \(x\), got 2"):
        nv.run_in_c(path, X, X)
    board = nv.compile(nv.Sequential([nv.layers.Dense(2, input_dim=3)]), "cortex-m4").save(tmp_path / "libm.a")
    with pytest.raises(nv.NervureError, match="has no files"):
        nv.run_in_c(board, X)


def test_a_program_of_one_s_own(tmp_path):
    @nv.network
    def twice(x: nv.Input(batch_shape=(2,))):
        return 2 * x

    path = nv.compile(twice).save(tmp_path / "twice.so")
    source = tmp_path / "elsewhere" / "main.c"
    source.parent.mkdir()
    source.write_text(
        '#include "twice.h"\n#include <stdio.h>\n'
        "static _Alignas(64) unsigned char memory[TWICE_CONTEXT_BYTES(1)];\n"
        "int main(int argc, char **argv) {\n"
        "    float x[2] = {(float)argc, 3}, y[2];\n"
        "    const void *in[] = {x}; void *out[] = {y}; twice_context *c; (void)argv;\n"
        "    if (twice_create(memory, sizeof memory, 1, &c) || twice_infer(c, in, out)) return 1;\n"
        '    return printf("%g %g\\n", y[0], y[1]) < 0;\n}\n'
    )
    command = nv.build_c(source, path)
    assert subprocess.run([*command, "one"], capture_output=True, text=True, check=True).stdout == "4 6\n"
    path.rename(tmp_path / "other.so")
    with pytest.raises(nv.NervureError, match="programs would not find other"):
        nv.build_c(source, tmp_path / "other.so")
