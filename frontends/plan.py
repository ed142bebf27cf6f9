"""``nv.plan``: what a network will need, known without compiling it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..compiler.pipeline import Options, plan_program
from ..targets import get
from .build import Dims, _entries

if TYPE_CHECKING:
    from .training.step import Training


def plan(
    source: Any,
    target: str = "host",
    *,
    threads: int = 1,
    dims: Dims | None = None,
    training: Training | None = None,
    max_ram: int | None = None,
) -> dict[str, int]:
    """Bytes of RAM (the arena, weights and states apart) that each entry point needs with ``threads`` workers, by name:
    ``nv.plan(net, training=nv.Training("mse"))["train_step"]``.

    The arguments are those of ``nv.compile``, and so are the sizes; nothing is compiled.
    """
    entries, facts, _ = _entries(source, dims, None, training, (), ())
    program, _ = plan_program(entries, get(target), Options(threads=threads, max_ram=max_ram), facts)
    return {entry.name: program.arena_bytes(entry, threads) for entry in program.entries}
