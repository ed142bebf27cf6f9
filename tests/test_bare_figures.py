"""What the reference int8 models of MLPerf Tiny cost on Cortex-M, held as limits; the bench beside prints the figures.

Instructions are counted in QEMU and are not cycles; the figures to beat are CMSIS-NN's in its best configuration and
TensorFlow Lite Micro's arenas.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import bare_figures
import pytest
from bare_figures import CMSIS_NN, NAMES, TFLM_ARENA, Run, Sizes
from nervure import targets
from nervure.errors import MissingTool
from nervure.targets import emulator
from nervure.targets.files import temporary_folder

pytestmark = [pytest.mark.emulator, pytest.mark.slow]

CODE_LIMIT = 24 << 10
WORST, MEAN = 0.95, 0.80  # of CMSIS-NN's instructions
RAM, TIMES_FEWER = 0.85, 3.0


@cache
def measured(name: str, target: str) -> tuple[Run, Sizes]:
    """A reference model on a core."""
    path = bare_figures.reference_model(name)
    if path is None:
        pytest.skip("no ../shared")
    machine = targets.get(target)
    try:
        emulator.command(machine)
    except MissingTool as missing:
        pytest.skip(str(missing))
    with temporary_folder() as folder:
        artifact = bare_figures.compile_for(path, target, folder / f"{name}.a", name=name)
        run = bare_figures.run(artifact, machine, bare_figures.random_inputs(artifact))
        return run, bare_figures.sizes(artifact, machine, bare_figures.weight_bytes(path))


@pytest.mark.parametrize("name", NAMES)
def test_instructions_on_m4(name: str) -> None:
    assert measured(name, "cortex-m4")[0].instructions <= WORST * CMSIS_NN[name]


def test_instructions_on_m4_in_the_mean() -> None:
    ratios = [measured(name, "cortex-m4")[0].instructions / CMSIS_NN[name] for name in NAMES]
    assert math.exp(sum(map(math.log, ratios)) / len(ratios)) <= MEAN


@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_belongs_to_a_layer_or_to_the_entry(name: str) -> None:
    """So that the tables by layer leave nothing out: what is counted elsewhere is below 1 %."""
    run, _ = measured(name, "cortex-m4")
    assert 0.99 * run.instructions <= sum(layer.instructions for layer in run.layers) <= run.instructions


@pytest.mark.parametrize("name", NAMES)
def test_helium_takes_a_third(name: str) -> None:
    m4, m55 = (measured(name, t)[0].instructions for t in ("cortex-m4", "cortex-m55"))
    assert m4 >= TIMES_FEWER * m55


@pytest.mark.parametrize("name", NAMES)
def test_ram_on_m4(name: str) -> None:
    run, _ = measured(name, "cortex-m4")
    assert run.ram <= RAM * TFLM_ARENA[name]
    assert run.stack <= 512


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("name", NAMES)
def test_code_and_constants_beyond_the_weights(name: str, target: str) -> None:
    """Without the channels of the source model that are left out: with their weights VWW's would be far below zero."""
    _, size = measured(name, target)
    assert 0 < size.beyond <= CODE_LIMIT
    assert size.written == 0


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m55"])
def test_the_same_bytes_from_another_folder(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time, path or order of work gets into a static library."""
    path = bare_figures.reference_model("kws")
    if path is None:
        pytest.skip("no ../shared")
    made = []
    for place in ("a", "somewhere/else"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        artifact = bare_figures.compile_for(path, target, folder / "kws.a", name="kws", cache=False)
        made.append((artifact.path.read_bytes(), artifact.path.with_suffix(".h").read_bytes()))
    assert made[0] == made[1]
