"""What a kernel's statements read and write: asked before it is printed as C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad


@dataclass
class Survey:
    """How often each buffer is stored, and the buffers that something depends on."""

    stores: dict[Any, int]
    loads: set[Any]


def survey(body: Any) -> Survey:
    """Reads that only feed locals which nothing needs do not count."""
    stores: dict[Any, int] = {}
    rows: list[tuple[Any, set[Any]]] = []
    local: set[Any] = set()

    def store(s: Any) -> None:
        stores[s.buffer] = stores.get(s.buffer, 0) + 1
        rows.append((s.buffer, loaded(s.value) | loaded(s.indices[0])))

    control: list[Any] = []
    kinds = (
        (tirx.BufferStore, store),
        (tirx.AllocBuffer, lambda s: local.add(s.buffer)),
        (tirx.For, lambda s: control.extend((s.min, s.extent))),
        (tirx.While, lambda s: control.append(s.condition)),
        (tirx.IfThenElse, lambda s: control.append(s.condition)),
        (tirx.Bind, lambda s: control.append(s.value)),
    )
    tvm_ffi.structural_walk(body, kinds)
    loads: set[Any] = set().union(*map(loaded, control)) if control else set()
    before = -1
    while before < len(loads):
        before = len(loads)
        for target, sources in rows:
            if target not in local or target in loads:
                loads |= sources
    return Survey(stores, loads)


def flattened(s: Any) -> list[Any]:
    found: list[Any] = []
    for part in s.seq:
        found += flattened(part) if isinstance(part, tirx.SeqStmt) else [part]
    return found


def split_dtype(dtype: str) -> tuple[str, int]:
    element, _, lanes = dtype.partition("x")
    return element, int(lanes or 1)


def mentions(node: Any, buffer: Any, but: Any = None) -> bool:
    """Whether loads or stores of ``buffer`` are in it; loads at the very index ``but`` do not count."""
    found: list[Any] = []

    def load(n: Any) -> None:
        if n.source.same_as(buffer) and not (but is not None and tvm_ffi.structural_equal(n.indices[0], but)):
            found.append(n)

    def store(n: Any) -> None:
        if n.buffer.same_as(buffer):
            found.append(n)

    tvm_ffi.structural_walk(node, ((TensorLoad, load), (tirx.BufferStore, store)))
    return bool(found)


def loaded(node: Any) -> set[Any]:
    """The buffers that an expression reads."""
    found: set[Any] = set()
    tvm_ffi.structural_walk(node, ((TensorLoad, lambda e: found.add(e.source)),))
    return found


def shuffles(node: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(node, ((tirx.Shuffle, found.append),))
    return bool(found)
