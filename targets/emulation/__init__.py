"""An Nvidia GPU played by this CPU, for tests without one: kernels' texts compiled as C++, and a driver that runs them.

``emulated(machine)`` is a GPU target whose artifacts hold such kernels instead of machine code; everything else of them
is as on a GPU. ``driver()`` is the library that stands in for ``libcuda.so.1``; such artifacts ask for it by a name of
its own, so that no model for a real GPU ever meets it. Blocks run one after the other; the
threads of a block are coroutines that give way at barriers and where a warp exchanges values, so that what they compute
does not depend on chance.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from ..cuda import EMULATED, PLAYED
from ..files import cache_dir, temporary_folder, write_atomic
from ..machine import Machine
from ..toolchain import run_zig

HERE = Path(__file__).parent
_CPU = {"x86_64": "x86_64_v3", "aarch64": "generic"}
_FLAGS = (
    *("-g0", "-shared", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-fvisibility=hidden", "-fno-sanitize=undefined", "-Wno-everything"),
)
_IMAGE_FLAGS = ("-O1", "-nostdlib", "-DEMU_IMAGE", "-ftrivial-auto-var-init=pattern")
_ALIGNMENT = ("-fsanitize=alignment", "-fsanitize-minimal-runtime")
_DRIVER_FLAGS = ("-O2", f"-Wl,-soname,{PLAYED}", "-ldl", "-lpthread")
_DRIVER = ("engine.h", "library.h", "engine.cpp", "collective.cpp")
_SIGNATURE = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)')


def emulated(machine: Machine) -> Machine:
    """``machine`` with a GPU that this CPU plays."""
    return replace(machine, name=machine.name + EMULATED, emulator=("emulation",))


def compile_kernels(kernels: Sequence[tuple[str, str]], target: str = "x86_64-linux-gnu") -> bytes:
    """A library of kernels (name, text), each as a function ``NAME_launch(arguments, blocks, threads, shared)``.

    It asks for nothing but what the driver gives it when it is loaded, and libm. ``target`` is the host's, as zig
    names it.
    """
    texts = [HERE.joinpath(name).read_text() for name in ("engine.h", "cuda.h", "device.h")]
    texts += [text for _, text in kernels] + [_launcher(text) for _, text in kernels]
    return _library({"kernels.cpp": "\n".join(texts)}, (*_IMAGE_FLAGS, *_ALIGNMENT), target.split(".")[0])


def _launcher(text: str) -> str:
    found = _SIGNATURE.search(text)
    assert found is not None, text[:200]
    name, parameters = found[1], [p.strip() for p in found[2].split(",") if p.strip()]
    types = [p.rsplit(" ", 1)[0].replace("__restrict__", "") for p in parameters]
    given = ", ".join(f"*({t}*)emu_arguments[{i}]" for i, t in enumerate(types))
    return (
        f"static void {name}_body(void **emu_arguments) {{ {name}({given}); }}\n"
        f'extern "C" EMU_EXPORT const int {name}_arguments = {len(types)};\n'
        f'extern "C" EMU_EXPORT int {name}_launch(void **arguments, unsigned blocks, unsigned threads, '
        "unsigned shared) "
        f'{{ return emu_machine->run("{name}", {name}_body, arguments, blocks, threads, shared); }}\n'
    )


@cache
def driver(target: str = "x86_64-linux-gnu") -> Path:
    """The library that stands in for ``libcuda.so.1`` on such a host, by its own name and by that one in a folder."""
    texts = {name: HERE.joinpath(name).read_text() for name in _DRIVER}
    texts["driver.cpp"] = "".join(HERE.joinpath(name).read_text() for name in ("driver.cpp", "streams.cpp"))
    data = _library(texts, _DRIVER_FLAGS, target)
    path = cache_dir() / "emulation" / hashlib.sha256(data).hexdigest()[:16] / PLAYED
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, mode=0o755)
        with suppress(FileExistsError):
            path.with_name("libcuda.so.1").symlink_to(PLAYED)
    return path


def install() -> None:
    """Loads the driver into this process: an artifact whose GPU is played finds it."""
    ctypes.CDLL(str(driver()), mode=ctypes.RTLD_GLOBAL)


def _library(texts: Mapping[str, str], flags: Sequence[str], target: str) -> bytes:
    """The texts as a shared library, from the cache where it is there."""
    options = ("-target", target, f"-mcpu={_CPU[target.split('-')[0]]}", *_FLAGS)
    key = hashlib.sha256("\0".join((*texts, *texts.values(), *options, *flags)).encode()).hexdigest()
    path = cache_dir() / "emulation" / key[:2] / key
    if path.exists():
        return path.read_bytes()
    with temporary_folder() as folder:
        for name, text in texts.items():
            (folder / name).write_text(text)
        sources = [name for name in texts if name.endswith(".cpp")]
        run_zig(["cc", *options, *sources, *flags, "-o", "library.so"], folder)
        data = (folder / "library.so").read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return data
