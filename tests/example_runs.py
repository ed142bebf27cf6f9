"""Running the examples as a reader would: in a folder of their own, on real data or on the stand-ins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nervure as nv
import pytest

Load = Callable[[str], ModuleType]
EXAMPLES = Path(nv.__file__).parent / "examples"
QUIET = {"PYTHONWARNINGS": "error:the gradient of layer:UserWarning"}  # all of their nets are healthy
DATA = Path(os.environ.get("NERVURE_DATA") or EXAMPLES.resolve().parents[1] / "shared" / "data")


def needs_data(*names: str) -> pytest.MarkDecorator:
    """Skips a test where one of these files of data is missing."""
    missing = [name for name in names if not (DATA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def run(name: str, folder: Path, *arguments: object, data: Path | None = None, timeout: float = 540) -> str:
    """What an example says; without ``data`` the files of data are not found."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **QUIET, "NERVURE_DATA": str(data or folder / "none"), "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


def numbers(said: str, pattern: str) -> list[float]:
    """The numbers that a pattern's one group finds in what an example said."""
    return [float(found) for found in re.findall(pattern, said)]
