"""Boards: those that come along hold together, and a file of one's own is told everything that is wrong with it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from nervure import targets
from nervure.errors import NervureError
from nervure.targets import boards
from nervure.targets.firmware import linker_script

GOOD = """\
title = "mine"
core = "cortex-m7"
source = "measured"
stack = "2K"
[[memory]]
name = "flash"
kind = "flash"
origin = 0x08000000
size = "1M"
[[memory]]
name = "dtcm"
kind = "ram"
origin = 0x20000000
size = 65536
"""


@pytest.mark.parametrize("name", boards.names())
def test_a_board_that_comes_along(name: str) -> None:
    board = boards.get(name)
    assert targets.get(board.core).system == "bare" and board.title and board.source
    assert board.size("flash") >= 512 << 10 and board.size("ram") >= 128 << 10
    assert 0 < board.stack < board.first("ram").size
    for a, b in combinations(board.memory, 2):
        assert a.end <= b.origin or b.end <= a.origin
    script = linker_script(board)
    assert all(f"ORIGIN = {m.origin:#010x}, LENGTH = {m.size:#x}" in script for m in board.memory)


def test_every_core_has_a_board_and_an_emulated_one() -> None:
    cores = {m.name: m for m in targets.MACHINES.values() if m.system == "bare"}
    assert {boards.get(n).core for n in boards.names()} == set(cores)
    for machine in cores.values():
        assert machine.board is not None and boards.get(machine.board).core == machine.name


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD)
    board = boards.get(str(tmp_path / "mine.toml"))
    assert (board.name, board.core, board.stack) == ("mine", "cortex-m7", 2048)
    assert [(m.name, m.kind, m.origin, m.size) for m in board.memory] == [
        ("flash", "flash", 0x08000000, 1 << 20),
        ("dtcm", "ram", 0x20000000, 64 << 10),
    ]


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(NervureError) as error:
        boards.read(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "instead, by, said",
    [
        ("0x20000000", "0x08080000", "flash (0x08000000 to 0x080fffff) and dtcm (0x08080000 to 0x0808ffff) overlap"),
        ("cortex-m7", "cortex-m8", "core 'cortex-m8' is none of cortex-m4"),
        ('"cortex-m7"', "7", "core is 7"),
        ("title", "titel", "unknown key 'titel' (did you mean 'title'?)"),
        ("65536", '"64 KB"', "size '64 KB' is no size; write a number of bytes, or \"64K\""),
        ("65536", "0", "size 0 is no size"),
        ("65536", "-4", "size -4 is no size"),
        ("65536", "true", "size True is no size"),
        ("0x20000000", "-1", "origin -1 is no address of 32 bits"),
        ("0x20000000", "0x100000000", "is no address of 32 bits"),
        ("0x20000000", "0xFFFF8000", "it ends at 0x100008000, behind the last address of 32 bits"),
        ('"ram"', '"rom"', "kind 'rom' is neither flash nor ram"),
        ('kind = "ram"', 'kind = "flash"', "there is no memory of kind ram"),
        ('"dtcm"', '"Flash"', "two memories are called 'flash'"),
        ('"dtcm"', '"dtcm } /* "', "the name becomes one in C and in linker scripts"),
        ('"dtcm"', '"ORIGIN"', "this name means something in C or in linker scripts"),
        ('"dtcm"', '"int"', "this name means something"),
        ('stack = "2K"', 'stack = "64K"', "stack: 65536 bytes do not fit into the first RAM of 65536"),
        ('stack = "2K"', "speed = 3", "unknown key 'speed'"),
        ("size = 65536", "", "memory 'dtcm': there is no size"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, instead: str, by: str, said: str) -> None:
    assert instead in GOOD
    assert said in refused(tmp_path, GOOD.replace(instead, by))


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("cortex-m7", "m7").replace("0x20000000", "0x08000010").replace('"1M"', '"1G"')
    said = refused(tmp_path, text)
    assert "2 mistakes" in said and "core 'm7'" in said and "size '1G'" in said
    assert refused(tmp_path, "").count("there is no") == 3
    assert "is no TOML" in refused(tmp_path, "title = ")
    assert "over 65536 bytes" in refused(tmp_path, "#" * 70000)
    assert "memory 1 is no table" in refused(tmp_path, 'title = "x"\ncore = "cortex-m4"\nmemory = [1]')


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NervureError, match="did you mean 'nucleo-l4r5zi'"):
        boards.get("nucleo-l4r5")
    with pytest.raises(NervureError, match="No such file"):
        boards.get(str(tmp_path / "none.toml"))


def test_the_board_in_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "bare-metal.md").read_text()
    (tmp_path / "glove.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    board = boards.get(str(tmp_path / "glove.toml"))
    assert (board.core, board.stack, [m.name for m in board.memory]) == ("cortex-m7", 4096, ["flash", "dtcm", "sram"])
