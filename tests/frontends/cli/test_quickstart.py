"""The example of the README's first command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_quickstart(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, ROOT / "examples/quickstart.py"], capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert (
        "Egyptian cat" in found.stdout and "agrees with ONNX Runtime" in found.stdout and "DIFFERS" not in found.stdout
    )
    assert {p.name for p in (tmp_path / "build/quickstart/aarch64").iterdir()} == {"mobilenet.so", "mobilenet.h"}


@pytest.mark.slow
def test_quickstart_says_how_to_get_the_emulator(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples/quickstart.py"]
    without = {**os.environ, "PATH": ""}
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=without)
    assert found.returncode == 0, found.stderr
    assert "qemu-aarch64 is not installed" in " ".join(found.stdout.split()) and "apt-get" in found.stdout
