"""The caches: entries that are damaged, that many write, and that are too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nervure.compiler.cache import LIMIT, read_entry, write_entry

KEY = "ab" + "0" * 62


def test_an_entry_comes_back_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "ab" / KEY
    assert read_entry(path) is None
    write_entry(path, b"payload")
    assert read_entry(path) == b"payload"
    path.write_bytes(path.read_bytes()[:-1])
    assert read_entry(path) is None


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERVURE_CACHE_LIMIT", "256")  # MiB: 1 MiB a folder
    folder = tmp_path / "ab"
    for i in range(4):
        write_entry(folder / f"ab{i}.so", bytes(400_000))
        os.utime(folder / f"ab{i}.so", ns=(i, i))
        if i == 1:
            assert read_entry(folder / "ab0.so")  # which makes it the newest of the two
    assert {p.name for p in folder.iterdir()} == {"ab0.so", "ab3.so"}


def test_an_entry_larger_than_the_share_of_its_folder_stays_with_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NERVURE_CACHE_LIMIT", "1")
    write_entry(tmp_path / "ab" / "abc.so", bytes(100_000))
    write_entry(tmp_path / "ab" / "abc.h", b"header")
    assert read_entry(tmp_path / "ab" / "abc.so") == bytes(100_000)
    assert read_entry(tmp_path / "ab" / "abc.h") == b"header"
    assert LIMIT > 1 << 30
