"""A board's memories as the planner wants them: which one holds the arena, and which lie beside it."""

from __future__ import annotations

from dataclasses import dataclass

from ...targets.boards import Board

STACK = 4096  # bytes kept for the stack and the program's own variables, unless the caller knows better


@dataclass(frozen=True, slots=True)
class Memories:
    """What a board has for a model, in bytes.

    ``arena`` is the capacity of the memory that holds the arena: the largest RAM (of equally large ones the first).
    ``fast`` are the RAMs that the board lists before it, fastest first: they take what is touched most often. ``spare``
    are those behind it: they are used where the arena does not hold everything. ``flash`` is all of the board's.
    ``names`` are the RAMs' own names in the order arena, fast, spare: how the regions of a program map onto the board.
    """

    arena: int
    fast: tuple[tuple[str, int], ...] = ()
    spare: tuple[tuple[str, int], ...] = ()
    flash: int = 0
    names: tuple[str, ...] = ()

    @property
    def ram(self) -> int:
        """Bytes of all RAM together."""
        return self.arena + sum(n for _, n in (*self.fast, *self.spare))


def board_memory(board: Board, stack_reserve: int = STACK) -> Memories:
    """The memories of ``board``; ``stack_reserve`` bytes of the first RAM, where the stack lies, are left out.

    For a compile: ``m = board_memory(board); Options(fast=m.fast, spare=m.spare, arena=m.arena, flash=m.flash)``.
    """
    rams = [m for m in board.memory if m.kind == "ram"]
    sizes = [max(0, m.size - (stack_reserve if i == 0 else 0)) for i, m in enumerate(rams)]
    at = max(range(len(rams)), key=lambda i: (rams[i].size, -i))
    named = [(m.name, size) for m, size in zip(rams, sizes, strict=True)]
    flash = sum(m.size for m in board.memory if m.kind == "flash")
    fast, spare = tuple(named[:at]), tuple(named[at + 1 :])
    return Memories(sizes[at], fast, spare, flash, (rams[at].name, *(n for n, _ in (*fast, *spare))))
