"""Artifacts as files: the block, broken and foreign ones, the same bytes twice, hostile names, output folders."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nervure.compiler import render
from nervure.compiler.header import header
from nervure.compiler.library import build_library, describe, seal
from nervure.compiler.program import Program
from nervure.errors import NervureError
from nervure.runtime import artifact as artifact_module
from nervure.runtime import load, read_artifact
from nervure.runtime.artifact import FORMAT, find_note
from nervure.targets import get, toolchain
from nervure.targets.elf import dynamic

HOSTILE = 'a"b*/ int x; /*\n<script>\x1b[31m??/\\ $sizes @@ %s {} ' + "n" * 10_000


def test_the_block_says_everything(artifacts):
    artifact = artifacts("trainable")
    assert [(p.name, p.dtype, p.shape) for p in artifact.params] == [("w", "float32", (64,))]
    assert [s.name for s in artifact.states] == ["seen"]
    infer = artifact.entry("infer")
    assert [(p.name, p.type) for p in infer.outputs] == [("y", "tensor(float)"), ("seen", "tensor(int32)")]
    assert infer.steps[0]["origin"] == ["line of multiply"]
    assert infer.arena_bytes() == 576 and infer.lower_bound == 0
    assert artifacts("batches").entries[1].lower_bound == 4096
    assert artifact.weights_bytes == 256 and 0 < artifact.code_bytes < 40_000
    text = json.dumps(artifact.block)
    assert "/tmp" not in text and str(Path.home()) not in text


def test_only_the_api_is_exported_and_only_libc_is_needed(artifacts):
    found = dynamic(artifacts("trainable").path.read_bytes())
    assert all(s.startswith("trainable_") for s in found.exported)
    assert {"trainable_infer", "trainable_train_step", "trainable_refresh"} <= set(found.exported)
    assert all(n.startswith(("libc.", "libm.", "libpthread.", "ld-linux")) for n in found.needed)


def test_kernels_that_need_more_than_libc_do_not_link(tmp_path, programs):
    source = tmp_path / "k.c"
    source.write_text("void TVMBackendAlloc(void); void positives(void *a, void *b, void *c) { TVMBackendAlloc(); }")
    made = toolchain.compile_c(source, tmp_path / "k.o", get("host"))
    with pytest.raises(toolchain.ToolError, match="TVMBackendAlloc"):
        build_library(programs["counted"], [made], get("host"), tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


@pytest.mark.slow
def test_the_same_bytes_from_two_folders(tmp_path, programs, kernel_object, monkeypatch):
    kernels = kernel_object(get("host"))
    made = []
    for name in ("one", "two/deeper"):
        folder = tmp_path / name
        (folder / "temporary").mkdir(parents=True)
        monkeypatch.setenv("TMPDIR", str(folder / "temporary"))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setenv("NERVURE_CACHE_DIR", str(folder / "cache")) if name == "one" else None
        copy = Path(shutil.copy(kernels, folder / f"{len(made)}.o"))
        made.append(build_library(programs["trainable"], [copy], get("host"), folder / "m.so"))
        monkeypatch.delenv("NERVURE_CACHE_DIR", raising=False)
        assert sorted(os.listdir(folder / "temporary")) == []
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert made[0].path.with_suffix(".h").read_bytes() == made[1].path.with_suffix(".h").read_bytes()


def test_changed_weights_under_the_same_names_are_seen(tmp_path, programs, kernel_object):
    kernels = [kernel_object(get("host"))]
    x = np.ones((1, 64), np.float32)
    results = set()
    for scale in (1, 2, 3):
        weights = np.full(64, scale, np.float32)
        program = replace(programs["batches"], const=weights.tobytes())
        artifact = build_library(program, kernels, get("host"), tmp_path / f"{scale}.so")
        results.add(round(float(load(artifact.path)(x)[0]), 3))
    assert results == {6.4, 12.8, 19.2}


@pytest.mark.parametrize("seed", range(3))
def test_corrupted_and_truncated_files_are_refused(tmp_path, artifacts, seed):
    data = artifacts("trainable").path.read_bytes()
    chance = random.Random(seed)
    path = tmp_path / "broken.so"
    for _ in range(150):
        broken = bytearray(data)
        if chance.random() < 0.5:
            broken[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            del broken[chance.randrange(len(data)) :]
        path.write_bytes(broken)
        with pytest.raises(NervureError):
            read_artifact(path)


def test_messages_for_broken_files(tmp_path, artifacts):
    data = artifacts("trainable").path.read_bytes()
    at, size = find_note(Path("x"), data)[2]

    def message(changed: bytes) -> str:
        path = tmp_path / "x.so"
        path.write_bytes(changed)
        with pytest.raises(NervureError) as caught:
            read_artifact(path)
        return str(caught.value)

    assert "empty" in message(b"")
    assert "not an ELF file" in message(b"hello")
    assert "truncated" in message(data[:70]) and "truncated" in message(data[:-1])
    assert "corrupted" in message(data[:-1] + bytes([data[-1] ^ 1]))
    assert "not a nervure model" in message(data.replace(b"nervure\0", b"nothing\0"))
    block = data[at + 32 : at + size].replace(b'"format":%d' % FORMAT, b'"format":9')
    newer = data[: at + 32] + block + data[at + size :]
    assert "format is 9" in message(seal(newer))
    garbage = data[: at + 32] + b"[" * (size - 32) + data[at + size :]
    assert "description is broken" in message(seal(garbage))
    for path in (tmp_path, tmp_path / "none.so"):
        with pytest.raises(NervureError, match="cannot read"):
            read_artifact(path)


def test_other_machines_are_named(artifacts, monkeypatch):
    artifact = artifacts("trainable")
    monkeypatch.setattr(artifact_module, "cpu_features", lambda: frozenset({"sse4_2"}))
    with pytest.raises(NervureError, match=r"this CPU lacks .*\n.*\n.*compiled for host"):
        load(artifact.path)
    monkeypatch.setattr(artifact_module, "host_machine", lambda: (64, 183))
    with pytest.raises(NervureError, match=r"compiled for x86-64 \(host\), this machine is aarch64"):
        load(artifact.path)


def test_hostile_names_are_inert(tmp_path, programs, kernel_object):
    program = programs["trainable"]
    rename = replace(program.params[0], name=HOSTILE)
    entries = tuple(
        replace(
            e,
            inputs=tuple(replace(p, name=HOSTILE) for p in e.inputs),
            outputs=tuple(replace(p, name=HOSTILE + str(i)) for i, p in enumerate(e.outputs)),
            steps=tuple(replace(s, name=HOSTILE, op=HOSTILE, origin=(HOSTILE,)) for s in e.steps),
            bindings={HOSTILE: 4} if e.function == "infer" else {},
        )
        for e in program.entries
    )
    program = replace(program, name=HOSTILE, params=(rename,), entries=entries, meta={"source": HOSTILE})
    artifact = build_library(program, [kernel_object(get("host"))], get("host"), tmp_path / "m.so")
    assert artifact.name == HOSTILE and artifact.entries[0].inputs[0].name == HOSTILE
    x = np.ones(64, np.float32)
    assert len(load(artifact.path).run(None, {HOSTILE: x})) == 2
    text = (tmp_path / "m.h").read_text()
    assert text.isascii() and "script>" not in text and text.count("*/") == text.count("/*")
    for language, compiler in (("c", "gcc"), ("c++", "g++")):
        if shutil.which(compiler):
            flags = ("-Wall", "-Wextra", "-Werror", "-Wpedantic", "-fsyntax-only")
            subprocess.run([compiler, "-x", language, *flags, str(tmp_path / "m.h")], check=True)


def test_names_that_fall_together_stay_apart(programs, tmp_path):
    entry = programs["counted"].entries[0]
    names = ("x", "X", "x bytes", "x_bytes", "x 2", "steps", "s")
    inputs = tuple(replace(entry.inputs[0], name=n) for n in names)
    (tmp_path / "m.h").write_text(header(replace(programs["counted"], entries=(replace(entry, inputs=inputs),))))
    macros = [line.split()[1] for line in (tmp_path / "m.h").read_text().splitlines() if line.startswith("#define")]
    assert len(macros) == len(set(macros))


@pytest.mark.parametrize("name", ["pthread", "9lives", "", "__", "int", "ABC-def 1", "nervure", "模型"])
def test_any_model_name_becomes_a_prefix(tmp_path, programs, kernel_object, name):
    program = replace(programs["counted"], name=name)
    artifact = build_library(program, [kernel_object(get("host"))], get("host"), tmp_path / "m.so")
    assert artifact.prefix.isidentifier() and artifact.prefix.isascii()
    assert load(artifact.path)(np.ones(64, np.float32))[1] == 64


def test_programs_without_anything(tmp_path):
    artifact = build_library(Program("empty", ()), [], get("host"), tmp_path / "m.so")
    assert artifact.entries == () and artifact.weights_bytes == 0


def test_a_program_that_does_not_hold_together_is_refused(programs):
    program = programs["counted"]
    small = replace(program, regions=(replace(program.regions[0], nbytes=100),))
    with pytest.raises(ValueError, match="does not fit"):
        render.sources(small, get("host"))
    step = replace(program.entries[0].steps[0], phases=(replace(program.entries[0].steps[0].phases[0], kernel="a;b"),))
    with pytest.raises(ValueError, match="identifier"):
        render.sources(replace(program, entries=(replace(program.entries[0], steps=(step,)),)), get("host"))


def test_unwritable_folders_and_full_disks(tmp_path, programs, kernel_object):
    kernels, machine = [kernel_object(get("host"))], get("host")
    with pytest.raises(NervureError, match="cannot write"):
        build_library(programs["counted"], kernels, machine, tmp_path / "no" / "such" / "m.so")
    (tmp_path / "m.so").mkdir()
    with pytest.raises(NervureError, match="cannot write"):
        build_library(programs["counted"], kernels, machine, tmp_path / "m.so")
    assert sorted(os.listdir(tmp_path)) == ["m.so"]
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(NervureError, match="cannot write"):
            build_library(programs["counted"], kernels, machine, tmp_path / "closed" / "m.so")


def test_the_block_has_no_time_and_a_stable_order(programs):
    machine = get("rpi4")
    text = json.dumps(describe(programs["trainable"], machine), sort_keys=True)
    assert text == json.dumps(describe(programs["trainable"], machine), sort_keys=True)
    assert '"mcpu": "cortex-a72"' in text
