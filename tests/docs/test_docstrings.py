"""Everything public says what it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import nervure as nv
import pytest
from nervure import runtime

CLASSES = ("Graph", "Model", "Network", "Sequential", "Session", "Tensor")


def _public() -> Iterator[tuple[str, Any]]:
    for name in nv.__all__:
        if not name.startswith("_"):
            yield f"nv.{name}", getattr(nv, name)
    for name in nv.layers.__all__:
        yield f"nv.layers.{name}", getattr(nv.layers, name)
    for name in runtime.__all__:
        yield f"nv.runtime.{name}", getattr(runtime, name)
    for owner in CLASSES:
        for name, held in vars(getattr(nv, owner)).items():
            if not name.startswith("_") and (inspect.isfunction(held) or isinstance(held, property)):
                yield f"nv.{owner}.{name}", getattr(getattr(nv, owner), name)


def test_everything_public_has_a_docstring() -> None:
    pytest.importorskip("networkx")
    bare = [name for name, held in _public() if not inspect.getdoc(held)]
    assert not bare, ", ".join(bare)
