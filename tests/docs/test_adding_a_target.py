"""docs/adding-a-target.md, done to a copy of the package exactly as the page says."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest


@pytest.mark.slow
@pytest.mark.emulator
def test_the_page_works_as_it_says(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    root = pages.copy_package(tmp_path)
    pages.follow(pages.ROOT / "docs" / "adding-a-target.md", root)
