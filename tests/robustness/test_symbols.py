"""A library needs nothing but libc, libm and libpthread, and shows nothing but its public functions."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import nervure as nv
import pytest
from builders import SMALL
from nervure.targets import elf

LIBRARIES = re.compile(r"lib(c|m|pthread)\.so\.\d+|ld-linux[-\w]*\.so\.\d+")
# what the C library's start-up files refer to, weakly
START = {"__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}


def _in_libc(symbol: str) -> bool:
    return any(hasattr(ctypes.CDLL(name), symbol) for name in ("libc.so.6", "libm.so.6", "libpthread.so.0"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["host", "rpi4", "armv7"])
@pytest.mark.parametrize("name", SMALL)
def test_symbols(name: str, target: str, tmp_path: Path) -> None:
    model = nv.compile(SMALL[name](), target, out=tmp_path / "model.so", name="small")
    found = elf.dynamic(model.path.read_bytes())
    assert [n for n in found.needed if not LIBRARIES.fullmatch(n)] == []
    foreign = [s for s in found.undefined if s not in START and not s.startswith("__aeabi_") and not _in_libc(s)]
    assert foreign == []
    declared = set(re.findall(r"\b(small_\w+)\(", (tmp_path / "model.h").read_text()))
    assert set(found.exported) == declared and "small_infer" in declared
