"""The wheel: complete, light, and useful where only numpy is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from builders import dense, feeds

ROOT = Path(__file__).parents[2]
OURS = ("compiler", "frontends", "runtime", "targets", "examples")
HEAVY = ("networkx", "onnx", "tvm", "ziglang", "typer", "rich", "jinja2", "onnxruntime", "PIL")


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"nervure"}
    for room in ("compiler", "frontends", "runtime", "targets"):
        folders = {p.parent.relative_to(ROOT) for p in (ROOT / room).rglob("*.py")}
        found |= {".".join(("nervure", *folder.parts)) for folder in folders}
    assert sorted(listed) == sorted(found)


def _tracked() -> list[str]:
    """The files of the checkout; outside of git, all but what was built."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [name for name in done.stdout.split("\0") if (ROOT / name).is_file()]
    left_out = ("build", "dist", "__pycache__", "nervure.egg-info")
    files = (p.relative_to(ROOT) for p in sorted(ROOT.rglob("*")) if p.is_file())
    return [str(p) for p in files if not any(part in left_out or part.startswith(".") for part in p.parts)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built of what git tracks, in a folder of another name."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "a-clone"
    source.mkdir()
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and any(s in done.stdout + done.stderr for s in ("No matching distribution", "Connection")):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def python(built: Path) -> Path:
    """The Python of a fresh virtual environment with the wheel and numpy."""
    subprocess.run([sys.executable, "-m", "venv", str(built / "env")], check=True)
    python = built / "env" / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", *map(str, built.glob("*.whl"))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return python


def _run(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *map(str, arguments)], cwd=python.parent, env={"PATH": ""}, capture_output=True, text=True
    )


def _files() -> set[str]:
    """What must be in the package: code, the C runtime, the templates of pages, the examples."""
    kinds = (".py", ".c", ".h", ".j2", ".typed")
    rooms = {p for room in OURS for p in (ROOT / room).rglob("*") if p.suffix in kinds or room == "examples"}
    tops = {ROOT / n for n in ("__init__.py", "__main__.py", "errors.py", "py.typed")}
    return {str(p.relative_to(ROOT)) for p in rooms | tops if p.is_file()} & set(_tracked())


@pytest.mark.slow
def test_the_wheel_is_complete(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {n.removeprefix("nervure/") for n in names if n.startswith("nervure/")}
    assert _files() - inside == set()
    assert not [n for n in names if n.startswith(("tests", "docs", "build")) or "/tests/" in n or "__pycache__" in n]
    assert any(n.endswith("licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_the_source_distribution_is_complete(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert _files() - names == set()
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/robustness/test_wheel.py"} <= names


@pytest.mark.slow
def test_importing_is_quick(python: Path) -> None:
    code = "import time; t = time.perf_counter(); import nervure; print(time.perf_counter() - t)"
    times = sorted(float(_run(python, "-c", code).stdout) for _ in range(5))
    print(f"import nervure: {1000 * times[2]:.0f} ms")
    assert times[2] <= 0.3


@pytest.mark.slow
def test_a_model_runs_with_numpy_alone(python: Path, tmp_path: Path) -> None:
    source = dense()
    model = nv.compile(source, out=tmp_path / "model.so")
    given = feeds(source)
    np.savez(tmp_path / "inputs.npz", **given)
    code = f"""
import importlib.util, json, sys
import numpy as np
from nervure.runtime import load
assert not [n for n in {HEAVY} if importlib.util.find_spec(n)], "this environment has more than numpy"
session = load(sys.argv[1], threads=2)
y = session.run(None, dict(np.load(sys.argv[2])))
loaded = [n for n in sys.modules if n.startswith(("nervure.compiler", "nervure.targets", "nervure.frontends.onnx"))]
print(json.dumps([y[0].tolist(), loaded]))
"""
    done = _run(python, "-c", code, model.path, tmp_path / "inputs.npz")
    assert done.returncode == 0, done.stderr
    y, loaded = json.loads(done.stdout)
    assert loaded == []
    np.testing.assert_array_equal(np.array(y, np.float32), model.run(None, given)[0])

    command = python.with_name("nervure")
    done = _run(command, "run", model.path, "-i", tmp_path / "inputs.npz", "--json")
    assert done.returncode == 0 and json.loads(done.stdout), done.stderr
    assert _run(command, "--version").stdout.strip() == f"nervure {nv.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compile", "verify", "bench", "inspect", "profile", "targets", "doctor"])
def test_missing_extras_are_named_with_the_command_that_brings_them(command: str, python: Path) -> None:
    for program in ((python.with_name("nervure"),), (python, "-m", "nervure")):
        done = _run(*program, command, "model.onnx")
        assert done.returncode == 2
        assert "pip install 'nervure[compile]'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compile", "load_onnx", "save_onnx", "Graph", "Sequential", "network", "layers"])
def test_names_that_need_an_extra_say_so(name: str, python: Path) -> None:
    code = f"import nervure as nv\ntry: nv.{name}('model.onnx')\nexcept nv.NervureError as error: print(error)"
    done = _run(python, "-c", code)
    assert "which is not installed" in done.stdout and "pip install 'nervure[compile]'" in done.stdout, done.stderr
