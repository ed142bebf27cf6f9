"""Boards as memories for the planner."""

from __future__ import annotations

from nervure.compiler.plan.regions import board_memory
from nervure.targets.boards import Board, Memory


def board(*rams: tuple[str, int]) -> Board:
    memory = (Memory("flash", "flash", 0, 1000), *(Memory(n, "ram", i << 20, s) for i, (n, s) in enumerate(rams)))
    return Board("b", "a board", "cortex-m4", memory)


def test_the_largest_ram_holds_the_arena() -> None:
    found = board_memory(board(("dtcm", 64), ("sram", 512), ("backup", 4)), stack_reserve=16)
    assert (found.arena, found.fast, found.spare) == (512, (("dtcm", 48),), (("backup", 4),))
    assert found.names == ("sram", "dtcm", "backup")
    assert (found.flash, found.ram) == (1000, 512 + 48 + 4)


def test_the_stack_lies_in_the_first_ram() -> None:
    found = board_memory(board(("ram", 256)), stack_reserve=100)
    assert (found.arena, found.fast, found.spare) == (156, (), ())


def test_of_equal_rams_the_first_holds_the_arena() -> None:
    found = board_memory(board(("a", 64), ("b", 64)), stack_reserve=0)
    assert found.names == ("a", "b") and found.fast == ()
