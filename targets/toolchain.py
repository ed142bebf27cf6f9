"""From C and objects to bytes, by the clang and lld of the ``ziglang`` wheel: any target from any host.

The same inputs give the same bytes: everything runs in a folder of its own with relative names, without debug
information, time or path.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..errors import MissingTool, NervureError
from . import elf
from .attributes import any_float_abi
from .files import cache_dir
from .machine import Machine

RUNTIME = Path(__file__).parent.parent / "runtime" / "c"
RUNTIME_FILES = ("nervure.c", "transfer.c", "pool.c", "cpu.c")
GPU_FILES = (*(f"cuda/{name}.c" for name in ("gpu", "run", "graph", "buffer", "device", "driver")), "transfer.c")
BARE_FLAGS = (
    *(
        "-std=c99",
        "-O2",
        "-g0",
        "-fno-pic",
        "-ffreestanding",
        "-ffunction-sections",
        "-fdata-sections",
        "-fno-sanitize=undefined",
    ),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-stack-protector"),
)
C_FLAGS = (
    *("-std=c11", "-O2", "-g0", "-fPIC", "-ffunction-sections", "-Wno-unused"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-stack-protector"),
)
WEIGHTS = ".rodata.nervure."  # what the sections of a static library's weights start with
# TVM's objects carry debug information and half-precision helpers that nothing calls.
DISCARD = (
    "SECTIONS { /DISCARD/ : { *(.debug_*) *(.text.tvm.fp16.conv) *(.comment) *(.eh_frame) "
    "*(.ARM.exidx*) *(.rel*.exidx*) } }\n"
)
_UNWRITABLE = re.compile(
    r"NoSpaceLeft|No space left|AccessDenied|PermissionDenied|Permission denied|ReadOnlyFileSystem|Read-only|"
    r"FileTooBig|File too large|DiskQuota"
)
SYSTEM_LIBRARIES = ("libc.so.", "libm.so.", "libpthread.so.", "libdl.so.", "ld-linux")


class ToolError(RuntimeError):
    """The compiler or linker refused its input: a bug of ours. The message holds what it said."""


@cache
def zig() -> Path:
    """The zig program of the ``ziglang`` wheel."""
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise MissingTool("ziglang is not installed", hint="pip install 'nervure[compile]'")
    return Path(spec.origin).parent / "zig"


def run_zig(args: Sequence[str], folder: Path) -> None:
    """Runs zig in ``folder``, a temporary one.

    What it builds once for a target (C library stubs) stays in nervure's cache, or in ``folder`` where that cannot be
    written; what it would keep of this very call, as large as the weights, goes into ``folder``.
    """
    code, said = _call_zig(args, folder, cache_dir() / "zig")
    if code and _UNWRITABLE.search(said):
        code, said = _call_zig(args, folder, folder / ".zig-all")
    if code == -signal.SIGXFSZ or (code and _UNWRITABLE.search(said)):
        raise NervureError("the disk is full", where=str(folder), why=said[-200:], hint="make room, or set TMPDIR")
    if code:
        raise ToolError(f"zig {' '.join(args)} failed in {folder}:\n{said[:4000]}")


def _call_zig(args: Sequence[str], folder: Path, shared: Path) -> tuple[int, str]:
    """Exit code and output; ``shared`` is where zig keeps what it builds for a target."""
    try:
        shared.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return 1, f"AccessDenied: {error}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZIG_", "C_INCLUDE", "CPATH", "CPLUS_"))}
    environment |= {"ZIG_GLOBAL_CACHE_DIR": str(shared), "ZIG_LOCAL_CACHE_DIR": str(folder / ".zig")}
    done = subprocess.run(
        [str(zig()), *args], cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    return done.returncode, (done.stderr or done.stdout).strip()


def compile_c(source: Path, out: Path, machine: Machine, *, baseline: bool = False, flags: Sequence[str] = ()) -> Path:
    """Compiles one C or assembler file to ``out``, for the machine itself or for the baseline of its family."""
    cpu = machine.zig_baseline if baseline else machine.zig_cpu
    include = ("-I", ".", "-I", str(RUNTIME), "-I", str(RUNTIME / "cuda"))
    place = ("-o", os.path.relpath(out, source.parent))
    run_zig(
        ["cc", "-target", machine.zig_target, f"-mcpu={cpu}", *C_FLAGS, *include, *flags, "-c", source.name, *place],
        source.parent,
    )
    return out


def merge_objects(objects: Sequence[Path], out: Path) -> Path:
    """All kernel objects as one, without what TVM adds to each (one call for all: it is the calls that cost)."""
    script = out.with_suffix(".ld")
    script.write_text(DISCARD)
    copies = []
    for i, path in enumerate(objects):  # relative names in a fixed order: no path gets into the bytes
        copy = out.parent / f"kernel_{i}.o"
        copy.write_bytes(path.read_bytes())
        copies.append(copy.name)
    arguments = out.with_suffix(".args")
    arguments.write_text("\n".join(copies))
    run_zig(["ld.lld", "-r", f"@{arguments.name}", "-T", script.name, "-o", out.name], out.parent)
    return out


def link_library(folder: Path, objects: Sequence[str], machine: Machine, *, name: str, api: str, out: str) -> Path:
    """Links ``objects`` of ``folder`` to a shared library that exports only what the version script ``api`` names."""
    run_zig(
        [
            *("cc", "-target", machine.zig_target, f"-mcpu={machine.zig_baseline}", "-shared", "-O2", "-g0", "-s"),
            *objects,
            *(f"-Wl,--version-script={api}", "-Wl,--gc-sections", "-Wl,-z,defs", "-Wl,--build-id=none"),
            *(f"-Wl,-soname,{name}.so", "-lm", "-lpthread", *(["-ldl"] if machine.gpu else []), "-o", out),
        ],
        folder,
    )
    needed = elf.dynamic((folder / out).read_bytes()).needed
    foreign = [n for n in needed if not n.startswith(SYSTEM_LIBRARIES)]
    if foreign:
        raise ToolError(f"the library needs {', '.join(foreign)}: only libc, libm and libpthread may be needed")
    return folder / out


def link_program(
    folder: Path, sources: Sequence[str], machine: Machine, *, out: str, flags: Sequence[str] = ()
) -> Path:
    """Compiles and links a program from sources, objects and libraries of ``folder``, for the machine's baseline."""
    place = ("-target", machine.zig_target, f"-mcpu={machine.zig_baseline}", "-std=c11", "-O2", "-g0", "-s")
    run_zig(["cc", *place, *sources, *flags, "-o", out], folder)
    return folder / out


def build(folder: Path, kernels: Sequence[Path], machine: Machine, *, name: str, block: bytes) -> Path:
    """Compiles the rendered sources of ``folder`` with the runtime and links ``library.so`` there.

    ``block`` is the artifact's own description, embedded as a note.
    """
    (folder / "block.bin").write_bytes(block)
    # plain clang: the cache of "zig cc" does not see what .incbin reads, and would link another model's weights
    assemble = ("-c", "images.S", '-DNERVURE_BLOCK="block.bin"', "-o", "images.o")
    run_zig(["clang", "-target", str(machine.llvm["mtriple"]), f"-mcpu={machine.mcpu}", *assemble], folder)
    compile_c(folder / "model.c", folder / "model.o", machine, baseline=True)
    objects = ["model.o", "images.o"]
    for source in GPU_FILES if machine.gpu else RUNTIME_FILES:
        copy = folder / Path(source).name
        copy.write_bytes((RUNTIME / source).read_bytes())
        objects.append(compile_c(copy, copy.with_suffix(".o"), machine, baseline=True).name)
    if kernels:
        objects.append(merge_objects(kernels, folder / "kernels.o").name)
    return link_library(folder, objects, machine, name=name, api="api.map", out="library.so")


def build_objects(folder: Path, kernels: Sequence[Path], machine: Machine) -> list[str]:
    """Compiles the rendered sources of ``folder`` for a static library: the images, and all code as one object in which
    the kernels are its own, so that several models may be linked into one program."""
    run_zig([*_assembler(machine), "images.S", "-o", "images.o"], folder)
    compile_c(folder / "model.c", folder / "code.o", machine, flags=(*BARE_FLAGS, "-Oz"))  # no work is done in it
    merged = merge_objects([folder / "code.o", *kernels], folder / "model.o")
    own = {name for path in kernels for name, _, _ in elf.functions(path.read_bytes())}
    merged.write_bytes(any_float_abi(elf.made_local(merged.read_bytes(), own)))
    return ["model.o", "images.o"]


def build_archive(folder: Path, objects: Sequence[str], machine: Machine, *, block: bytes) -> Path:
    """Puts objects of ``folder`` into ``library.a`` there.

    ``block`` is the artifact's own description: a note in an object that no program needs, so that it
    stays on the host.
    """
    (folder / "block.bin").write_bytes(block)
    (folder / "note.S").write_text(NOTE)
    run_zig([*_assembler(machine), "note.S", "-o", "note.o"], folder)
    (folder / "library.a").unlink(missing_ok=True)
    run_zig(["ar", "rcsD", "library.a", *objects, "note.o"], folder)
    return folder / "library.a"


def _assembler(machine: Machine) -> tuple[str, ...]:
    return ("clang", "-target", str(machine.llvm["mtriple"]), f"-mcpu={machine.mcpu}", "-c")


NOTE = """\
.section .note.nervure, "", %note
.balign 4
.long 2f - 1f, 4f - 3f, 1
1: .asciz "nervure"
2: .balign 4
3: .incbin "block.bin"
4: .balign 4
"""
