"""Every example of the zoo: a shortened run without any data, its length, and the page that shows them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from example_runs import EXAMPLES, run
from nervure.frontends.starting import start
from nervure.frontends.zoo import ROWS, Row

DOCS = EXAMPLES.parent / "docs"
MODULES = {"federated": "flwr", "search": "optuna"}  # what an extra brings
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
def test_an_example_is_short(row: Row) -> None:
    assert len(row.path.read_text().splitlines()) <= 125


@pytest.mark.slow
@rows
def test_a_short_run_without_data(row: Row, tmp_path: Path) -> None:
    """``nervure new`` makes a script of it that runs where nothing was downloaded, and leaves a picture and a library
    that C has run too."""
    image = pytest.importorskip("PIL.Image")
    for extra in row.needs:
        pytest.importorskip(MODULES[extra])
    start("mine", row.name, tmp_path)
    said = run(str(tmp_path / "mine"), tmp_path, *row.quick.split())
    made = {path.suffix: path for path in sorted(tmp_path.iterdir())}
    assert {".so", ".h", ".png"} <= set(made)
    assert re.search(r"\bC\b", said)  # what a C program made of the library
    pixels = np.asarray(image.open(tmp_path / row.picture.replace(row.name, "mine")).convert("L"), np.float32)
    assert min(pixels.shape) >= 100 and pixels.std() > 5
    for path in tmp_path.glob("*.so"):
        assert path.with_suffix(".h").exists() and nv.load(path) is not None


def test_the_page_is_current() -> None:
    made = runpy.run_path(str(DOCS / "gallery.py"))["text"]()
    assert (DOCS / "gallery.md").read_text() == made, "run `python docs/gallery.py`"


@rows
def test_the_page_has_a_picture(row: Row) -> None:
    image = pytest.importorskip("PIL.Image")
    path = DOCS / "gallery" / f"{row.name}.png"
    assert path.stat().st_size <= 100_000
    assert 400 <= image.open(path).width <= 1000
