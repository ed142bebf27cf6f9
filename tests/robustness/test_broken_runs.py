"""Broken input at run time, broken artifacts, other machines: a NervureError each time, never a crash."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import onnx
import pytest
from builders import Net, convolutional, dense, feeds, recurrent, reference, transformer
from nervure.compiler.library import run_elsewhere
from nervure.errors import NervureError
from nervure.runtime import artifact as artifact_module
from nervure.runtime.session import load
from nervure.targets import elf, get


def _two_inputs() -> onnx.ModelProto:
    net = Net()
    x, index = net.input("x", 4, 6), net.input("index", 2, kind=onnx.TensorProto.INT64)
    return net.model(net.op("Gather", net.op("Relu", x), index, axis=0), net.op("Abs", x))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nv.Model:
    return nv.compile(_two_inputs(), out=tmp_path_factory.mktemp("model") / "model.so")


X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
INDEX = np.array([1, 3])
GOOD = {"x": X, "index": INDEX}
WRONG: dict[str, Any] = {
    "nothing": {},
    "one missing": {"x": X},
    "one too many": {**GOOD, "z": X},
    "another name": {"X": X, "index": INDEX},
    "name of bytes": {b"x": X, "index": INDEX},
    "float64": {**GOOD, "x": X.astype(np.float64)},
    "float16": {**GOOD, "x": X.astype(np.float16)},
    "int32 index": {**GOOD, "index": INDEX.astype(np.int32)},
    "big-endian": {**GOOD, "x": X.astype(">f4")},
    "objects": {**GOOD, "x": X.astype(object)},
    "strings": {**GOOD, "x": np.full((4, 6), "a")},
    "None": {**GOOD, "x": None},
    "a ragged list": {**GOOD, "x": [[1.0], [2.0, 3.0]]},
    "a list of floats": {**GOOD, "x": [[1.0] * 6] * 4},
    "a scalar": {**GOOD, "x": np.float32(1)},
    "transposed": {**GOOD, "x": X.T},
    "flat": {**GOOD, "x": X.ravel()},
    "another batch": {**GOOD, "x": X[:3]},
    "empty": {**GOOD, "x": X[:0]},
    "another rank": {**GOOD, "x": X[None]},
    "a list instead of names": [X, INDEX],
    "an array instead of names": X,
    "no feeds": None,
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_feeds_are_named(case: str, model: nv.Model) -> None:
    with pytest.raises(NervureError) as caught:
        model.run(None, WRONG[case])
    assert len(str(caught.value)) < 2000
    y, _ = model.run(None, GOOD)
    np.testing.assert_array_equal(y, np.maximum(X, 0)[INDEX])


@pytest.mark.parametrize("names", [["nothing"], [""], [0], [None], "t0", 7, [["t0"]]])
def test_wrong_output_names(names: Any, model: nv.Model) -> None:
    with pytest.raises(NervureError):
        model.run(names, GOOD)


@pytest.mark.parametrize("call", [lambda m: m(), lambda m: m(X), lambda m: m(X, INDEX, X), lambda m: m(X, x=X)])
def test_wrong_arguments(call: Any, model: nv.Model) -> None:
    with pytest.raises(NervureError):
        call(model)


def test_arrays_that_lie_otherwise(model: nv.Model) -> None:
    wide = np.zeros((8, 12), np.float32)
    wide[::2, ::2] = X
    odd = np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(4, 6)
    assert not odd.flags.aligned
    backwards = np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1]
    fixed = X.copy()
    fixed.flags.writeable = False
    for x in (np.asfortranarray(X), wide[::2, ::2], odd, backwards, fixed, np.broadcast_to(X, (4, 6))):
        index = np.array([1, 0, 3, 0])[::2]
        y, z = model.run(None, {"x": x, "index": index})
        np.testing.assert_array_equal(y, np.maximum(X, 0)[INDEX])
        np.testing.assert_array_equal(z, np.abs(X))


def test_nan_and_infinity_pass_through(model: nv.Model) -> None:
    x = X.copy()
    x[1, :3] = [np.nan, np.inf, -np.inf]
    y, z = model.run(None, {"x": x, "index": INDEX})
    assert np.isnan(y[0, 0]) and y[0, 1] == np.inf and y[0, 2] == 0
    assert np.isnan(z[1, 0]) and (z[1, 1:3] == np.inf).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [convolutional, transformer, recurrent, dense], ids=lambda f: f.__name__)
def test_nan_never_crashes(make: Any) -> None:
    source = make()
    model = nv.compile(source)
    given = feeds(source)
    for array in given.values():
        array.reshape(-1)[::7] = np.nan
        array.reshape(-1)[::5] = np.inf
    for found, wanted in zip(model.run(None, given), reference(source, given), strict=True):
        assert found.shape == wanted.shape


def test_indices_out_of_range_do_not_crash(model: nv.Model) -> None:
    """ONNX leaves the result open; reading beyond the tensor is not allowed to happen."""
    for index in ([10**12, -(10**12)], [2**62, -(2**63)], [4, -5]):
        y, _ = model.run(None, {"x": X, "index": np.array(index)})
        assert y.shape == (2, 6)
        assert np.isin(y, [0.0, *X.ravel()]).all()


# -- artifacts ---------------------------------------------------------------------------------------------------------


def _load_elsewhere(path: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from nervure.runtime import load; from nervure.errors import NervureError\n"
        "for p in sys.argv[1:]:\n"
        "    try: load(p); print('loaded', p)\n"
        "    except NervureError: pass"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, sorted(path.iterdir()))], capture_output=True, text=True
    )


def test_flipped_bytes_and_truncations_are_refused(model: nv.Model, tmp_path: Path) -> None:
    data, rng = model.path.read_bytes(), random.Random(0)
    step = len(data) // 200
    for i in range(200):  # every region of the file
        broken = bytearray(data)
        broken[i * step + rng.randrange(step)] ^= rng.randrange(1, 256)
        (tmp_path / f"flip{i}.so").write_bytes(broken)
    for i in range(100):
        (tmp_path / f"cut{i}.so").write_bytes(data[: len(data) * i // 100 + (i == 99)])
    (tmp_path / "longer.so").write_bytes(data + b"\0")
    done = _load_elsewhere(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, "it loaded what was broken"


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF" + bytes(60), b"{}", b"\x7fELF\x02\x01" + b"\xff" * 200]
)
def test_what_is_no_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(content)
    with pytest.raises(NervureError):
        load(tmp_path / "model.so")


def test_a_system_library_is_no_model() -> None:
    for library in elf.dynamic(Path(sys.executable).resolve().read_bytes()).needed:
        for folder in ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64"):
            if Path(folder, library).exists():
                with pytest.raises(NervureError, match="not a nervure model"):
                    load(Path(folder, library))


def test_the_command_line_says_so_in_one_message(model: nv.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.so"
    path.write_bytes(model.path.read_bytes()[:-9])
    np.save(tmp_path / "x.npy", X)
    for arguments in (
        ["run", path, "-i", "x=x.npy"],
        ["inspect", path],
        ["profile", path],
        ["run", tmp_path / "no.so"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "nervure", *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


# -- other machines ----------------------------------------------------------------------------------------------------


def test_a_cpu_that_lacks_an_instruction(model: nv.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = model.artifact.block["machine"]["features"]
    assert needed
    for lacking in (needed[0], needed[-1]):
        monkeypatch.setattr(artifact_module, "cpu_features", lambda lacking=lacking: frozenset(needed) - {lacking})
        with pytest.raises(NervureError, match=f"this CPU lacks {re.escape(lacking)}") as caught:
            load(model.path)
        assert "compile it" in str(caught.value)


@pytest.mark.slow
def test_another_architecture_is_named(tmp_path: Path) -> None:
    for target in ("rpi4", "armv7"):
        model = nv.compile(_two_inputs(), target, out=tmp_path / f"{target}.so")
        with pytest.raises(NervureError, match="this machine is"):
            model.run(None, GOOD)
        with pytest.raises(NervureError, match="this machine is"):
            load(model.path)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize(
    ("target", "program", "cpu"),
    [
        ("rpi5", "qemu-aarch64", "cortex-a53"),
        ("armv7", "qemu-arm", "cortex-a8"),
        ("x86-64-v3", "qemu-x86_64", "Nehalem"),
    ],
)
def test_an_emulated_cpu_that_lacks_instructions(target: str, program: str, cpu: str, tmp_path: Path) -> None:
    """A message from the entry stubs, not an illegal instruction."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    model = nv.compile(_two_inputs(), target, out=tmp_path / "model.so")
    machine = get(target)
    options = (machine.emulator or (program,))[1:]
    plain = (option for i, option in enumerate(options) if option != "-cpu" and (i == 0 or options[i - 1] != "-cpu"))
    weak = replace(machine, elf=(0, 0), emulator=(program, "-cpu", cpu, *plain))
    with pytest.raises(NervureError, match=r"this CPU lacks \w+"):
        run_elsewhere(model.artifact, weak, GOOD)


def test_unreadable_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.so", tmp_path / ("n" * 300), "/proc/self/mem", f"{tmp_path}/a\0b"):
        with pytest.raises(NervureError):
            load(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NervureError):
        load(tmp_path / "pipe")
