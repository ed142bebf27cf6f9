"""docs/operators.md is what the op table and the importer's rules say."""

from __future__ import annotations

import runpy

import pages
import pytest


def test_the_page_is_current() -> None:
    pytest.importorskip("onnx")
    made = runpy.run_path(str(pages.ROOT / "docs" / "operators.py"))["text"]()
    held = (pages.ROOT / "docs" / "operators.md").read_text()
    assert held == made, "run `python docs/operators.py`"
