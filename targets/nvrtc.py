"""CUDA C++ to machine code and PTX, without a GPU: by the ``nvidia-cuda-nvrtc`` wheel, else by ``nvcc``.

NVRTC is Nvidia's compiler as a library (NVRTC user guide); its headers come with the ``nvidia-cuda-runtime`` wheel.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..errors import MissingTool
from .files import temporary_folder
from .toolchain import RUNTIME, ToolError

PREAMBLE = RUNTIME / "cuda" / "device.h"
FLAGS = ("--std=c++17",)
HINT = "pip install 'nervure[cuda]'"


def architecture(number: int, *, ptx: bool = False) -> str:
    """``sm_80``, or ``compute_80`` for PTX."""
    return f"{'compute' if ptx else 'sm'}_{number}"


def compile_cuda(source: str, arch: str, *, contract: bool = True) -> bytes:
    """The machine code (a cubin) of a kernel's text for ``sm_NN``, its PTX for ``compute_NN``.

    ``contract``: products and sums may become one rounding. ``MissingTool`` where there is no compiler,
    ``ToolError`` with what it said where it refuses the text (a bug of ours).
    """
    text = f"{PREAMBLE.read_text()}\n{source}"
    flags = (f"--fmad={'true' if contract else 'false'}",)
    return _compiler()[1](text, arch, flags)


def compiler_version() -> str:
    """What compiles, with its version: part of every cache key. ``MissingTool`` where nothing does."""
    return _compiler()[0]


@cache
def _compiler() -> tuple[str, Callable[[str, str, Sequence[str]], bytes]]:
    library, include = _wheel()
    if library is not None and include is not None:
        return _Nvrtc(library, include).named()
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"V(\d+\.\d+\.\d+)", said)
        return f"nvcc {found[1] if found else 'unknown'}", lambda *args: _by_nvcc(nvcc, *args)
    raise MissingTool(
        "there is no compiler for CUDA kernels",
        why="neither the wheels nvidia-cuda-nvrtc and nvidia-cuda-runtime nor nvcc are installed",
        hint=HINT,
    )


def _wheel() -> tuple[Path | None, Path | None]:
    """NVRTC's library and the folder of the headers, in the wheels."""
    spec = find_spec("nvidia")
    for base in map(Path, spec.submodule_search_locations or () if spec else ()):
        libraries = sorted(base.glob("*/lib/libnvrtc.so.*"))
        headers = sorted(base.glob("*/include/cuda_fp16.h"))
        if libraries and headers:
            return libraries[-1], headers[-1].parent
    return None, None


class _Nvrtc:
    def __init__(self, library: Path, include: Path) -> None:
        self.code, self.include = ctypes.CDLL(str(library)), include
        self.code.nvrtcGetErrorString.restype = ctypes.c_char_p

    def named(self) -> tuple[str, Callable[[str, str, Sequence[str]], bytes]]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.code.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"nvrtc {major.value}.{minor.value}", self.compile

    def compile(self, text: str, arch: str, flags: Sequence[str]) -> bytes:
        program, code = ctypes.c_void_p(), self.code
        self._check(code.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None))
        try:
            options = [f"--gpu-architecture={arch}", f"-I{self.include}", *FLAGS, *flags]
            held = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            if code.nvrtcCompileProgram(program, len(options), held):
                raise ToolError(
                    f"nvrtc for {arch}:\n{self._get(program, 'ProgramLog').decode(errors='replace')[:4000]}"
                )
            kind = "CUBIN" if arch.startswith("sm_") else "PTX"
            return self._get(program, kind)
        finally:
            code.nvrtcDestroyProgram(ctypes.byref(program))

    def _get(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.code, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.code, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw if what == "CUBIN" else buffer.raw.rstrip(b"\0")

    def _check(self, status: int) -> None:
        if status:
            raise ToolError(f"nvrtc: {self.code.nvrtcGetErrorString(status).decode()}")


def _by_nvcc(nvcc: str, text: str, arch: str, flags: Sequence[str]) -> bytes:
    with temporary_folder() as folder:
        (folder / "kernel.cu").write_text(text)
        kind = "cubin" if arch.startswith("sm_") else "ptx"
        args = [f"-{kind}", f"-arch={arch}", "-std=c++17", *flags, "kernel.cu", "-o", "out"]
        done = subprocess.run([nvcc, *args], cwd=folder, capture_output=True, text=True, env=dict(os.environ))
        if done.returncode:
            raise ToolError(f"nvcc for {arch}:\n{(done.stderr or done.stdout)[:4000]}")
        return (folder / "out").read_bytes()
