"""Transfer learning, as the example does it: on what the repository holds, and with real ImageNet weights on CIFAR-10
where both lie beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nervure as nv
import onnxruntime as ort
import pytest

ROOT = Path(nv.__file__).parent
EXAMPLE = ROOT / "examples" / "transfer_learning.py"
MODEL = ROOT.parent / "shared" / "models" / "mnv2_imagenet_tv.onnx"
DATA = ROOT.parent / "shared" / "data" / "cifar10_subset.npz"

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: object) -> dict[str, float]:
    """The example's figures: share of the memory, accuracy (both in percent), difference to ONNX Runtime."""
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    patterns = {"memory": r"all weights [\d.]+ MB: ([\d.]+) %", "accuracy": r"test accuracy ([\d.]+) %"}
    patterns["difference"] = r"ONNX Runtime: ([\d.e+-]+)"
    found = {name: re.search(pattern, done.stdout) for name, pattern in patterns.items()}
    assert all(found.values()), done.stdout
    assert (folder / "transfer.svg").read_text().count("<polyline") or "<path" in (folder / "transfer.svg").read_text()
    names = {i.name for i in ort.InferenceSession(folder / "transfer.onnx").get_inputs()}
    assert names == {"picture"}
    return {name: float(match[1]) for name, match in found.items() if match}


def test_drawn_figures(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 100
    found = run(tmp_path)
    assert found["accuracy"] > 90
    assert found["memory"] < 15
    assert found["difference"] < 1e-4


@pytest.mark.skipif(not (MODEL.exists() and DATA.exists()), reason="needs MobileNetV2 and CIFAR-10 beside the project")
def test_mobilenet_v2_learns_cifar(tmp_path: Path) -> None:
    found = run(tmp_path, MODEL, DATA)
    assert found["accuracy"] > 75
    assert found["memory"] <= 15
    assert found["difference"] < 1e-4
