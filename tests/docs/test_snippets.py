"""Every Python, shell and C block of the README and of docs/ runs, in the page's order, in a folder of its own.

The README's two commands are left out: the second is what continuous integration runs, the first needs the network.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pages
import pytest

RUN = ("python", "console", "sh", "c")


def _snippets(page: Path) -> list[pages.Block]:
    """The blocks that run. A Python block that imports nothing goes on where the one before ended."""
    found: list[pages.Block] = []
    before = ""
    for block in pages.blocks(page):
        if block.kind not in RUN or block.note or "python3 -m venv" in block.text:
            continue
        if block.kind == "python":
            begins = re.search(r"^(import|from) ", block.text, re.M)
            before = block.text if begins else f"{before}\n\n{block.text}"
            block = replace(block, text=before)
        found.append(block)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in pages.PAGES if _snippets(p)], ids=lambda p: p.name)
def test_snippets(page: Path, tmp_path: Path) -> None:
    if page.name == "bare-metal.md" and shutil.which("qemu-system-arm") is None:
        pytest.skip("needs qemu-system-arm")
    (tmp_path / "examples").symlink_to(pages.ROOT / "examples")
    (tmp_path / "build").mkdir()
    for block in _snippets(page):
        pages.run(block, tmp_path, pages.environment())


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.name)
def test_a_page_goes_on_only_where_it_has_begun(page: Path) -> None:
    for block in _snippets(page):
        assert block.kind != "python" or "import nervure" in block.text or "from nervure" in block.text, block.line


@pytest.mark.parametrize("page", [*pages.PAGES, pages.ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_the_readme_has_the_two_commands() -> None:
    """The second is found by continuous integration through the comment above it."""
    sh = [b for b in pages.blocks(pages.ROOT / "README.md") if b.kind == "sh"]
    assert [b.note for b in sh] == ["", "test command"]
    first, second = (b.text for b in sh)
    assert first.count("\n") == second.count("\n") == 1
    assert "examples/quickstart.py" in first and (pages.ROOT / "examples/quickstart.py").exists()
    assert "-m pytest" in second
