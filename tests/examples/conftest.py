"""Examples as modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_runs import EXAMPLES, Load


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """``load("gan")``: an example as a module; the data are the stand-ins unless the test says otherwise."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("NERVURE_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    before = set(sys.modules)
    yield importlib.import_module
    for name in {path.stem for path in EXAMPLES.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]
