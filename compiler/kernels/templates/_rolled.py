"""Short loops that stay loops: LLVM writes them out for speed, where code is to be small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._dsp_asm import opaque

_APART = """define internal i32 @nv_apart() alwaysinline nounwind {
  call void asm sideeffect "", ""() noduplicate
  ret i32 0
}
"""


@contextmanager
def rolled(k: Any, extent: int) -> Iterator[Any]:
    """Counts from 0 to an extent that LLVM does not see, around what it must not repeat (an empty instruction)."""
    with k.loop(k.helper(*opaque(), extent)) as i:
        k.helper("nv_apart", _APART)
        yield i
