"""The examples run as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nervure as nv
import pytest

EXAMPLES = Path(nv.__file__).parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mlp_xor", "accuracy 100%"),
        ("cnn", "Total params: 3,498"),
        ("transformer_encoder", "Total params: 131,269"),
    ],
)
def test_example(name, says, tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".h", ".so"]
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
