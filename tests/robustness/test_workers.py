"""No result depends on the number of workers, nor on what other contexts of the same artifact do meanwhile."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import nervure as nv
import numpy as np
import onnx
import pytest
from builders import SMALL, convolutional, feeds, recurrent, reference, transformer
from nervure.runtime.session import load
from nervure.targets import get, toolchain

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "models"
REAL = [ROOT / "examples" / "mobilenet" / "mobilenet_v1_025_128.onnx", *sorted(SHARED.glob("*.onnx"))]
CONTEXTS = 8


def _real_feeds(session: nv.Session, path: Path) -> dict[str, np.ndarray]:
    recorded = path.parent / "inputs" / f"{path.stem}.npz"
    held = dict(np.load(recorded)) if recorded.exists() else {}
    rng = np.random.default_rng(0)
    made = {}
    for port in session.get_inputs():
        array = held.get(port.name)
        fits = array is not None and array.shape == port.shape and array.dtype == port.dtype
        made[port.name] = array if fits else (rng.standard_normal(port.shape) * 0.5).astype(port.dtype)
    return made


def _bits(path: Path, given: dict[str, np.ndarray], threads: int, runs: int = 3) -> set[bytes]:
    """Every run's outputs, from fresh states each time."""
    session = load(path, threads)
    found = set()
    for _ in range(runs):
        session.reset()
        found.add(b"".join(np.ascontiguousarray(y).tobytes() for y in session.run(None, given)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_any_number_of_workers_gives_the_same_bits(path: Path, tmp_path: Path) -> None:
    model = nv.compile(path, out=tmp_path / "model.so")
    given = _real_feeds(model.session, path)
    assert len(set.union(*(_bits(model.path, given, threads) for threads in (0, 1, 2, 5)))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_generated_models_too(name: str, tmp_path: Path) -> None:
    source = SMALL[name]()
    model = nv.compile(source, out=tmp_path / "model.so")
    given = feeds(source)
    assert len(set.union(*(_bits(model.path, given, threads) for threads in (0, 1, 2, 5)))) == 1
    for found, wanted in zip(model.run(None, given), reference(source, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


def _first_output(source: onnx.ModelProto) -> onnx.ModelProto:
    del source.graph.output[1:]
    return source


@pytest.mark.slow
@pytest.mark.parametrize("make", [convolutional, transformer, recurrent], ids=lambda f: f.__name__)
def test_eight_contexts_at_once(make, tmp_path: Path) -> None:
    source = _first_output(make())
    model = nv.compile(source, out=tmp_path / "model.so")
    given = [feeds(source, seed) for seed in range(CONTEXTS)]
    expected = [model.run(None, g)[0].copy() for g in given]
    np.testing.assert_allclose(expected[3], reference(source, given[3])[0], rtol=2e-4, atol=2e-4)
    _from_python(model, given, expected)
    _from_c(model, given, expected, tmp_path)


def _from_python(model: nv.Model, given: list[dict[str, np.ndarray]], expected: list[np.ndarray]) -> None:
    wrong: list[object] = []
    together = threading.Barrier(CONTEXTS)

    def work(number: int) -> None:
        try:
            session = model.session.clone() if number % 2 else load(model.path, threads=2)
            together.wait(60)
            for _ in range(40):
                if session.run(None, given[number])[0].tobytes() != expected[number].tobytes():
                    wrong.append(number)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(CONTEXTS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not wrong


def _from_c(model: nv.Model, given: list[dict[str, np.ndarray]], expected: list[np.ndarray], folder: Path) -> None:
    source = Path(__file__).with_name("contexts.c")
    (folder / source.name).write_bytes(source.read_bytes())
    program = toolchain.link_program(folder, [source.name], get("host"), out="contexts", flags=("-ldl", "-lpthread"))
    (folder / "inputs").write_bytes(b"".join(next(iter(g.values())).tobytes() for g in given))
    (folder / "expected").write_bytes(b"".join(e.tobytes() for e in expected))
    arguments = [str(program), str(model.path), model.artifact.prefix, "inputs", "expected", "50"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
