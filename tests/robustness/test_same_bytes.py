"""The same compile in two folders, with two hash seeds and without cache, gives the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from builders import SMALL

MOBILENET = Path(__file__).parents[2] / "examples" / "mobilenet" / "mobilenet_v1_025_128.onnx"
SCRIPT = """
import sys
from pathlib import Path
import nervure as nv
for path in sys.argv[1:]:
    for target in ("host", "rpi4"):
        nv.compile(path, target, out=Path(f"{Path(path).stem}-{target}.so").absolute(), cache=False)
"""


def _digests(folder: Path, models: list[Path], seed: int) -> dict[str, str]:
    """Compiles in a process and a folder of its own; its cache is empty but for the linker's stubs."""
    stubs = Path(os.environ["NERVURE_CACHE_DIR"]) / "zig"
    stubs.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "zig").symlink_to(stubs)
    (folder / "temporary").mkdir()
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(seed),
        "NERVURE_CACHE_DIR": str(folder / "cache"),
        "TMPDIR": str(folder / "temporary"),
    }
    subprocess.run([sys.executable, "-c", SCRIPT, *map(str, models)], cwd=folder, env=environment, check=True)
    assert not list((folder / "temporary").iterdir()), "something was left behind"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.[sh]*"))}


@pytest.mark.slow
def test_two_folders_and_two_hash_seeds_give_the_same_bytes(tmp_path: Path) -> None:
    models = []
    for name, make in SMALL.items():
        models.append(tmp_path / f"{name}.onnx")
        onnx.save(make(), models[-1])
    models.append(MOBILENET)
    first = _digests(tmp_path / "one", models, 1)
    second = _digests(tmp_path / "two" / "deeper", models, 4242)
    assert len(first) == 4 * len(models)
    assert first == second
