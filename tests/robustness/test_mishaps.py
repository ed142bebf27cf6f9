"""What happens to a compile: workers that die or hang, caches that are broken, full or shared, Ctrl-C, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nervure as nv
import numpy as np
import onnx
import psutil
import pytest
from builders import dense, feeds, reference
from nervure.compiler.kernels import pool
from nervure.errors import NervureError

COMPILE = """
import sys, nervure as nv
from nervure.errors import NervureError
try:
    print(nv.compile(sys.argv[1], out=sys.argv[2]).report.sha256)
except NervureError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model, empty caches (but for the linker's stubs) and folders for output and temporary files."""
    stubs = Path(os.environ["NERVURE_CACHE_DIR"]) / "zig"
    stubs.mkdir(parents=True, exist_ok=True)
    for name in ("cache", "out", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / "cache" / "zig").symlink_to(stubs)
    monkeypatch.setenv("NERVURE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    onnx.save(dense(), tmp_path / "model.onnx")
    yield tmp_path
    assert [p.name for p in (tmp_path / "out").iterdir() if p.name not in ("model.so", "model.h")] == []


def _start(folder: Path, code: str = COMPILE, **environment: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", code, str(folder / "model.onnx"), str(folder / "out" / "model.so")]
    return subprocess.Popen(
        arguments, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _check(folder: Path) -> None:
    """What was written is whole and right."""
    source = onnx.load(folder / "model.onnx")
    given = feeds(source)
    results = nv.load(folder / "out" / "model.so").run(None, given)
    np.testing.assert_allclose(results[0], reference(source, given)[0], rtol=1e-4, atol=1e-5)


def _workers(process: subprocess.Popen[str], seconds: float = 30) -> list[psutil.Process]:
    """The compile workers of a process, once there are some."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        found = [c for c in children if any("kernels.worker" in a for a in c.cmdline())]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("no worker was started")


def _gone(processes: list[psutil.Process], seconds: float = 10) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


# -- workers -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mishap", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_that_dies_is_an_error_that_names_the_kernel(mishap: signal.Signals, folder: Path) -> None:
    process = _start(folder)
    for worker in _workers(process):
        worker.send_signal(mishap)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "the compile worker died of kernel k_" in said and f"exit status -{mishap.value}" in said
    assert not list((folder / "out").iterdir()) and not list((folder / "temporary").iterdir())
    assert _start(folder).wait(timeout=120) == 0
    _check(folder)


def _request(template: str = "test.abort") -> dict[str, object]:
    return {
        "template": template,
        "config": {},
        "name": "k_test",
        "machine": {"name": "host"},
        "tasks": None,
        "out": "x",
    }


@pytest.mark.slow
def test_the_pool_goes_on_after_a_death(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERVURE_TEST_ABORT", "1")
    worker = pool._Worker()
    for _ in range(2):
        with pytest.raises(NervureError, match=r"(?s)the compile worker died of kernel k_test.*test.abort.*-6"):
            worker.ask(_request())
    assert not worker.ask(_request("nothing"))["ok"]
    worker.stop()


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = pool._Worker()
    worker.ask(_request("nothing"))
    assert worker.process
    process = psutil.Process(worker.process.pid)
    process.suspend()
    monkeypatch.setattr(pool, "SECONDS", 0.5)
    with pytest.raises(NervureError, match=r"(?s)got stuck in kernel k_test.*no answer in 0\.5 seconds"):
        worker.ask(_request("nothing"))
    assert _gone([process])


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_compile_leaves_nothing_running(sent: signal.Signals, folder: Path) -> None:
    process = _start(folder)
    workers = _workers(process)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert _gone(workers)
    assert not list((folder / "out").iterdir())
    if sent == signal.SIGINT:
        assert not list((folder / "temporary").iterdir())
    assert not [p for p in (folder / "cache").rglob("*.part")]


@pytest.mark.slow
def test_ctrl_c_on_the_command_line(folder: Path) -> None:
    """The terminal sends it to the whole group of processes."""
    command = [sys.executable, "-m", "nervure", "compile", str(folder / "model.onnx"), "-o", str(folder / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = _workers(process)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert _gone(workers)
    assert not list((folder / "out").iterdir()) and not list((folder / "temporary").iterdir())


@pytest.mark.slow
def test_a_forked_child_has_workers_of_its_own(folder: Path) -> None:
    code = """
import os, sys, nervure as nv
nv.compile(sys.argv[1], out=sys.argv[2], cache=False)
child = os.fork()
if not child:
    try:
        nv.compile(sys.argv[1], "x86-64-v3", out=sys.argv[2], cache=False)
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
nv.compile(sys.argv[1], "rpi4", out=sys.argv[2] , cache=False)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process = _start(folder, code)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


# -- caches ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_corrupted_cache_entries_are_made_anew(folder: Path) -> None:
    assert _start(folder).wait(timeout=120) == 0
    first = (folder / "out" / "model.so").read_bytes()
    entries = [p for kind in ("kernels", "artifacts") for p in (folder / "cache" / kind).rglob("*") if p.is_file()]
    assert len(entries) > 4
    for i, entry in enumerate(entries):
        data = bytearray(entry.read_bytes())
        if i % 3 == 0:
            data = data[: len(data) // 2]
        elif i % 3 == 1:
            data[len(data) // 2] ^= 1
        else:
            data = bytearray()
        entry.write_bytes(data)
    (folder / "out" / "model.so").unlink()
    assert _start(folder).wait(timeout=120) == 0
    assert (folder / "out" / "model.so").read_bytes() == first
    _check(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a file", "nowhere", "entries are folders"])
def test_a_cache_that_cannot_be_written_is_no_error(kind: str, folder: Path) -> None:
    place = folder / "other"
    if kind == "a file":
        place.write_text("")
    elif kind == "nowhere":
        place = Path("/proc/nothing")
    else:
        (place / "kernels").mkdir(parents=True)
        (place / "artifacts").write_text("")
        (place / "zig").symlink_to((folder / "cache" / "zig").resolve())
        for i in range(256):
            (place / "kernels" / f"{i:02x}").write_text("")
    process = _start(folder, NERVURE_CACHE_DIR=str(place))
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    _check(folder)


@pytest.mark.slow
def test_four_processes_share_one_cache(folder: Path) -> None:
    processes = []
    for i in range(4):
        processes.append(_start(folder))
        time.sleep(0.3 * (i % 2))
    results = [p.communicate(timeout=240) for p in processes]
    assert [p.returncode for p in processes] == [0] * 4, results
    assert len({out for out, _ in results}) == 1
    _check(folder)


@pytest.mark.slow
def test_threads_of_one_process_compile_at_the_same_time(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(i: int) -> str:
        place = folder / f"out{i % 2}.so"
        return nv.compile(folder / "model.onnx", out=place, cache=i % 2 == 0).report.sha256

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(one, range(6)))) == 1


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "nervure-test", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _large() -> onnx.ModelProto:
    """Weights of 400 KiB."""
    from builders import Net

    net = Net()
    return net.model(net.op("Relu", net.linear(net.input("x", 1, 320), 320, 320)))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["out", "TMPDIR", "NERVURE_CACHE_DIR"])
def test_a_full_disk(what: str, folder: Path, small_disk: Path) -> None:
    onnx.save(_large(), folder / "model.onnx")
    out = (small_disk if what == "out" else folder / "out") / "model.so"
    environment = {} if what == "out" else {what: str(small_disk)}
    arguments = [sys.executable, "-c", COMPILE, str(folder / "model.onnx"), str(out)]
    done = subprocess.run(arguments, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240)
    if what == "NERVURE_CACHE_DIR":
        assert done.returncode == 0, done.stderr  # only slower
        _check(folder)
        return
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr or "disk is full" in done.stderr
    assert not out.exists() and not list(small_disk.iterdir())


@pytest.mark.slow
def test_files_that_may_not_grow(folder: Path) -> None:
    """RLIMIT_FSIZE stands in for a quota."""
    onnx.save(_large(), folder / "model.onnx")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    process = _start(folder, limit + COMPILE)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "cannot write" in said or "disk is full" in said
    assert not list((folder / "out").iterdir())


@pytest.mark.parametrize("out", ["missing/model.so", "file/model.so", "/proc/model.so", "a\0b.so", "n" * 300 + ".so"])
def test_output_that_cannot_be_written(out: str, folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(NervureError, match="cannot write"):
        nv.compile(folder / "model.onnx", out=folder / out)


def test_a_temporary_folder_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/nothing"])
    with pytest.raises(NervureError, match="cannot write"):
        nv.compile(folder / "model.onnx", out=folder / "out" / "model.so", cache=False)
    with pytest.raises(NervureError, match="cannot write"):
        nv.compile(folder / "model.onnx", cache=False)


def test_saving_where_it_cannot_be(folder: Path) -> None:
    model = nv.compile(folder / "model.onnx")
    for name in ("missing/model.so", "model", "model.txt"):
        with pytest.raises(NervureError):
            model.save(folder / name)
    assert model.save(folder / "out" / "model.so").exists()
