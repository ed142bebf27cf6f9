"""The MLPerf Tiny models in little RAM: arenas on Cortex-M4, and person detection in less than its layers need."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from bare_figures import free_dims, random_inputs, reference_model
from nervure import targets
from nervure.compiler.library import measure
from nervure.errors import MissingTool, NervureError
from nervure.runtime.session import load
from nervure.targets import emulator

# Bytes of the arena, inputs and outputs included; TensorFlow Lite Micro takes 4.0, 56.0, 24.3 and 103.7 KB.
ARENAS = {"ad": 1 << 10, "ic": 34 << 10, "kws": 9 << 10, "vww": 48 << 10}


def model(name: str) -> Path:
    path = reference_model(name)
    if path is None:
        pytest.skip("needs ../shared")
    return path


@pytest.mark.parametrize("name", ARENAS)
def test_the_arena_on_cortex_m4(name: str) -> None:
    path = model(name)
    assert nv.plan(path, "cortex-m4", dims=free_dims(path))["infer"] <= ARENAS[name]


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize(("limit", "patches"), [(44 << 10, False), (33 << 10, True), (30 << 10, True)])
def test_person_detection_in_less_ram_computes_the_same(limit: int, patches: bool, tmp_path: Path) -> None:
    path, machine = model("vww"), targets.get("cortex-m4")
    try:
        emulator.command(machine)
    except MissingTool as missing:
        pytest.skip(str(missing))
    bare = nv.compile(path, "cortex-m4", dims=free_dims(path), max_ram=limit, out=tmp_path / "bare.a").artifact
    entry, tried = bare.entries[0], bare.meta["patches"]["infer"]
    assert entry.arena_bytes() <= limit < tried[0]["arena_bytes"]
    assert (tried[-1]["flops"] > 0) == patches and tried[-1]["flops"] < 0.125 * sum(s["flops"] for s in entry.steps)
    inputs = random_inputs(bare, seed=5)
    here = nv.compile(path, dims=free_dims(path), out=tmp_path / "here.so")
    (wanted,) = load(here.artifact.path).run(None, dict(zip((p.name for p in entry.inputs), inputs, strict=True)))
    done = measure(bare, machine, [x.tobytes() for x in inputs], [wanted.nbytes], entry.name)
    np.testing.assert_array_equal(np.frombuffer(done.outputs[0], wanted.dtype).reshape(wanted.shape), wanted)
    assert sum(done.touched) <= limit


@pytest.mark.slow
def test_person_detection_in_8_kilobytes_ends_in_advice() -> None:
    path = model("vww")
    with pytest.raises(NervureError, match="--max-ram allows 8192") as error:
        nv.plan(path, "cortex-m4", dims=free_dims(path), max_ram=8192)
    assert "patches of the first" in str(error.value.hint) and "% more operations" in str(error.value.hint)
    assert "an input of 1x32x32x3 needs" in str(error.value.hint) and "(fits)" in str(error.value.hint)


@pytest.mark.slow
def test_patches_on_this_machine_compute_the_same(tmp_path: Path) -> None:
    path = model("vww")
    whole, less = (
        nv.compile(path, dims=free_dims(path), max_ram=limit, out=tmp_path / f"{limit}.so")
        for limit in (None, 40 << 10)
    )
    assert less.artifact.entries[0].arena_bytes() <= 40 << 10 < whole.artifact.entries[0].arena_bytes()
    (x,) = random_inputs(whole.artifact, seed=7)
    np.testing.assert_array_equal(whole(x), less(x))
