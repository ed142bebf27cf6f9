"""Build attributes: an object says that it hands over no floats only where that is so."""

from __future__ import annotations

from pathlib import Path

import pytest
from nervure.errors import MissingTool
from nervure.targets import get, toolchain
from nervure.targets.attributes import ATTRIBUTES, COMPATIBLE, VFP_ARGS, _sections, _values, any_float_abi

PLAIN = "void *memcpy(void *, const void *, unsigned); void copy(float *a, float *b) { *a += *b; memcpy(a, b, 400); }"
FLOATS = "float expf(float); void f(float *a) { *a = expf(*a); }"


def built(text: str, folder: Path) -> bytes:
    try:
        toolchain.zig()
    except MissingTool as error:
        pytest.skip(error.what)
    (folder / "x.c").write_text(text)
    machine = get("cortex-m4")
    return toolchain.compile_c(folder / "x.c", folder / "x.o", machine, flags=toolchain.BARE_FLAGS).read_bytes()


def floats(data: bytes) -> list[int]:
    """Values of Tag_ABI_VFP_args (1: in registers)."""
    held = [data[o : o + n] for kind, _, o, n in _sections(data, wide=False) if kind == ATTRIBUTES]
    return [section[at] for section in held for tag, at in _values(section) if tag == VFP_ARGS]


def test_an_object_without_floats_at_its_borders(tmp_path: Path) -> None:
    data = built(PLAIN, tmp_path)
    marked = any_float_abi(data)
    assert floats(data) == [1] and floats(marked) == [COMPATIBLE]
    assert sum(a != b for a, b in zip(data, marked, strict=True)) == 1  # nothing else is touched


def test_an_object_that_calls_with_floats_stays_as_it_was(tmp_path: Path) -> None:
    data = built(FLOATS, tmp_path)
    assert floats(data) == [1] and any_float_abi(data) == data
