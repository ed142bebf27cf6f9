"""``nervure new``: scripts that run as they are, under a name of one's own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import nervure as nv
import pytest
from nervure.frontends.starting import script, start
from nervure.frontends.zoo import ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_example_becomes_a_script_of_another_name(row: Row) -> None:
    made = script("mine", row.name)
    ast.parse(made)
    assert "python mine.py" in made and "examples/" not in (ast.get_docstring(ast.parse(made)) or "").split("\n\n")[1]
    own = [f"{row.name}{end}" for end in (".so", ".png", ".svg", ".h")]
    assert not [name for name in own if name in made]


def test_a_script_runs_and_writes_files_of_its_name(tmp_path: Path) -> None:
    (path,) = start("words", "keras", tmp_path)
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} >= {"words.py", "words.so", "words.h"}


def test_what_an_example_imports_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = tmp_path / "examples"
    examples.mkdir()
    (examples / "gan.py").write_text('"""One."""\nfrom helper import x\nimport numpy\nname = "gan.png"\n')
    (examples / "helper.py").write_text("import further\n")
    (examples / "further.py").write_text("y = 1\n")
    monkeypatch.setattr("nervure.frontends.zoo.EXAMPLES", examples)
    paths = start("mine", "gan", tmp_path)
    assert [p.name for p in paths] == ["mine.py", "helper.py", "further.py"]
    assert '"mine.png"' in paths[0].read_text() and paths[2].read_text() == "y = 1\n"


def test_a_c_program_comes_along_under_the_new_name(tmp_path: Path) -> None:
    script, program = start("mine", "gpt", tmp_path)
    text = program.read_text()
    assert program == tmp_path / "c" / "generate.c" and '#include "mine.h"' in text and "mine_create(" in text
    assert (
        "language_model_" not in text and "LANGUAGE_MODEL_" not in text and '"language_model"' not in script.read_text()
    )
    assert start("mine", "gpt", tmp_path) == [script, program]  # the same again is no harm


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("precious")
    with pytest.raises(nv.NervureError, match="is there already"):
        start("mine", "gan", tmp_path)
    assert (tmp_path / "mine.py").read_text() == "precious"
    start("mine", "gan", tmp_path, force=True)
    assert "python mine.py" in (tmp_path / "mine.py").read_text()


@pytest.mark.parametrize("name", ["my-net", "1st", "a b", "class", "../x", "", "Words", "net"])
def test_a_name_must_be_a_module(name: str, tmp_path: Path) -> None:
    with pytest.raises(nv.NervureError, match="is no name for a Python file and a C library"):
        start(name, "gan", tmp_path)
    assert not list(tmp_path.iterdir())
