"""Real models for the tests: the one that ships with the examples, and those of ``../shared`` where it is there.

``NERVURE_SHARED`` names another folder. ``materialize.py`` writes models whose weights are filled from a seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("NERVURE_SHARED", ROOT.parent / "shared"))
SHIPPED = ROOT / "examples" / "mobilenet" / "mobilenet_v1_025_128.onnx"


@cache
def folder() -> Path | None:
    """Where the shared models lie as NAME.onnx and NAME.npz; None where there is no ``../shared``."""
    script = SHARED / "models" / "materialize.py"
    if not script.exists():
        return None
    place = Path(tempfile.gettempdir()) / f"nervure-models-{os.getuid()}"
    if not (place / "complete").exists():
        place.mkdir(exist_ok=True)
        subprocess.run([sys.executable, str(script), str(place)], check=True, capture_output=True)
        (place / "complete").touch()
    return place


def names() -> list[str]:
    """All models that can be had, the shipped one first. Cheap: nothing is materialised."""
    shared = SHARED / "models"
    found = (
        {p.stem for where in (shared, shared / "skeletons") for p in where.glob("*.onnx")} if shared.is_dir() else set()
    )
    return ["shipped", *sorted(found)]


def model(name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """A model's file and its real input."""
    if name == "shipped":
        from PIL import Image

        picture = Image.open(SHIPPED.parent / "cat.png").convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
        return SHIPPED, {"input": (np.asarray(picture, np.float32) / 127.5 - 1)[None]}
    place = folder()
    assert place is not None
    with np.load(place / f"{name}.npz") as held:
        return place / f"{name}.onnx", {k: held[k] for k in held.files}
