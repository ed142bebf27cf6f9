"""The bench of GPUs walks through on one that the CPU plays, and says what it lacks where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parent / "bench" / "bench_cuda.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCH), *arguments], capture_output=True, text=True)


def test_without_a_gpu_it_says_so() -> None:
    from nervure.errors import NervureError
    from nervure.runtime.driver import find_driver

    try:
        find_driver()
        pytest.skip("there is a GPU")
    except NervureError:
        pass
    done = run("--nets", "tiny")
    assert done.returncode == 2
    assert "there is no Nvidia driver here" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_walks_through_on_a_played_gpu(tmp_path: Path) -> None:
    import nervure as nv

    pytest.importorskip("tvm")

    @nv.network
    def tiny(x: nv.Input((3, 8, 8))):  # type: ignore[no-untyped-def]
        return nv.layers.Dense(5)(nv.flatten(nv.relu(nv.layers.Conv2D(4, 3)(x))))

    model = tmp_path / "tiny.onnx"
    nv.save_onnx(tiny.to_graph(), model)
    arguments = ["--emulated", "--nets", str(model), "--batches", "1", "--rounds", "1", "--seconds", "0.01"]
    done = run(*arguments, "--runs", "50", "--checks", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["checks"]["contexts_right"] and found["checks"]["growth_bytes"] == 0
    assert found["checks"]["agreement"]["exact"] < 1e-5 and found["checks"]["agreement"]["fp16"] < 1e-2
    assert np.isfinite(found["rows"][0]["launch_us"]) and set(found["rows"][0]["left_out"]) >= {"eager", "graph"}
