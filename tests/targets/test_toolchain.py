"""The toolchain's edges: files that appear whole or not at all, what the merge takes out, errors in plain words."""

from __future__ import annotations

import os

import pytest
from nervure.errors import MissingTool, NervureError
from nervure.targets import get, toolchain
from nervure.targets.files import cache_dir, write_atomic


def test_write_atomic_leaves_nothing_beside(tmp_path):
    path = tmp_path / "x.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two", mode=0o755)
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == ["x.bin"]
    assert path.stat().st_mode & 0o100
    with pytest.raises(NervureError, match="cannot write"):
        write_atomic(tmp_path / "no" / "x.bin", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(handle: int, mode: str):
        os.close(handle)
        return open("/dev/full", mode, buffering=0)

    monkeypatch.setattr("os.fdopen", full)
    with pytest.raises(NervureError, match="No space left"):
        write_atomic(tmp_path / "x.bin", b"data")
    assert os.listdir(tmp_path) == []


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NERVURE_CACHE_DIR", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("NERVURE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "nervure"


def test_an_unwritable_cache_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NERVURE_CACHE_DIR", str(tmp_path / "file"))
    toolchain.run_zig(["version"], tmp_path)
    assert (tmp_path / ".zig-all").is_dir()


def test_without_ziglang_the_command_that_brings_it_is_named(monkeypatch):
    toolchain.zig.cache_clear()
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(MissingTool, match=r"pip install 'nervure\[compile\]'"):
        toolchain.zig()
    toolchain.zig.cache_clear()


@pytest.mark.parametrize("target", ["host", "rpi4", "armv7"])
def test_merging_takes_out_what_objects_carry_in_vain(tmp_path, target):
    machine = get(target)
    helper = '__attribute__((section(".text.tvm.fp16.conv"))) void vain(void) {}\n'
    objects = []
    for i in range(3):
        source = tmp_path / f"k{i}.c"
        source.write_text(f"void kernel{i}(float *x) {{ x[0] = {i}; }}\n" + (helper if i == 0 else ""))
        objects.append(toolchain.compile_c(source, tmp_path / f"k{i}.o", machine, flags=("-g",)))
    data = toolchain.merge_objects(objects, tmp_path / "all.o").read_bytes()
    assert all(f"kernel{i}".encode() in data for i in range(3))
    assert b".debug_info" not in data and b"fp16.conv" not in data and b".comment" not in data
    assert str(tmp_path).encode() not in data
