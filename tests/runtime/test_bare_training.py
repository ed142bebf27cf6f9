"""Training steps without an operating system: after some steps, parameters and states are those of this machine."""

from __future__ import annotations

from pathlib import Path

import nervure as nv
import numpy as np
import pytest
from nervure import layers
from nervure.errors import MissingTool
from nervure.targets import boards, emulator, firmware, get

STEPS = 4
MAIN = """\
#include "small.h"
#include "semihosting.h"
static SMALL_ARENA(arena);
SMALL_CHECK(arena);
static const small_memory memory = {arena};
static unsigned char blob[SMALL_EXPORT_BYTES];
int main(void) {
    char name[] = "x0";
    if (small_init(&memory) != SMALL_OK) return 1;
    for (int i = 0; i < STEPS; i++) {
        name[1] = (char)('0' + i);
        name[0] = 'x';
        if (nervure_read_file(name, small_train_step_input(&memory, SMALL_TRAIN_STEP_INPUT_INPUT),
                              SMALL_TRAIN_STEP_INPUT_INPUT_BYTES)) return 2;
        name[0] = 'y';
        if (nervure_read_file(name, small_train_step_input(&memory, SMALL_TRAIN_STEP_INPUT_Y),
                              SMALL_TRAIN_STEP_INPUT_Y_BYTES)) return 3;
        *(float *)small_train_step_input(&memory, SMALL_TRAIN_STEP_INPUT_LEARNING_RATE) = 0.01f;
        if (small_train_step(&memory, NULL, NULL) != SMALL_OK) return 4;
    }
    if (small_export(&memory, blob, sizeof blob) != SMALL_OK) return 5;
    if (nervure_write_file("blob", blob, sizeof blob)) return 6;
    if (nervure_read_file("x0", small_infer_input(&memory, 0), SMALL_INFER_INPUT_INPUT_BYTES)) return 7;
    if (small_infer(&memory, NULL, NULL) != SMALL_OK) return 8; /* with copies made anew */
    return nervure_write_file("answer", small_infer_output(&memory, 0), SMALL_INFER_OUTPUT_OUTPUT_BYTES) ? 9 : 0;
}
"""
NETS = {
    "convolution": lambda: [
        layers.Conv2d(6, 3, padding="same", use_bias=False, input_shape=(2, 8, 8)),
        layers.BatchNorm(),
        layers.ReLU(),
        layers.DepthwiseConv2d(3, strides=2, activation="relu"),
        layers.GlobalAvgPool2d(),
        layers.Dense(4),
    ],
    "dense": lambda: [layers.Dense(16, activation="gelu", input_dim=12), layers.LayerNorm(), layers.Dense(4)],
    "recurrent": lambda: [layers.LSTM(8, input_shape=(5, 6)), layers.Dense(4)],
}
OPTIMIZERS = {"convolution": "sgd", "dense": "adam", "recurrent": "rmsprop"}


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"])
def test_some_steps(tmp_path: Path, kind: str, target: str):
    machine = get(target)
    try:
        emulator.command(machine)
    except MissingTool as error:
        pytest.skip(str(error))
    net = nv.Sequential(NETS[kind](), name="small")
    loss = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
    training = nv.Training(loss, OPTIMIZERS[kind], batch=5)
    model = nv.compile(net, target, training=training, out=tmp_path / "libsmall.a")
    here = nv.compile(net, training=training).session
    ports = {p.name: p for p in here.get_inputs("train_step")}
    rng = np.random.default_rng(0)
    for i in range(STEPS):
        x = rng.standard_normal(ports["input"].shape, np.float32)
        y = rng.integers(0, 4, 5).astype(np.int32)
        (tmp_path / f"x{i}").write_bytes(x.tobytes())
        (tmp_path / f"y{i}").write_bytes(y.tobytes())
        here.run(None, {"input": x, "y": y, "learning_rate": np.float32(0.01)}, entry="train_step")
    (tmp_path / "main.c").write_text(MAIN.replace("STEPS", str(STEPS)))
    board = boards.get(machine.board)
    elf = firmware.link(tmp_path, ["main.c", "libsmall.a"], machine, board, out="main.elf")
    done = firmware.simulate(elf, machine, timeout=60)
    assert done.status == 0, (done.status, done.said)
    blob, wanted = (tmp_path / "blob").read_bytes(), here.params()
    states = here.states()
    changed = nv.compile(net, training=training).session
    before = changed.params()
    changed.import_state(blob)
    for name, value in changed.params().items():
        np.testing.assert_allclose(value, wanted[name], rtol=2e-4, atol=2e-5, err_msg=name)
        assert not np.array_equal(value, before[name]), name
    for name, value in changed.states().items():
        np.testing.assert_allclose(value, states[name], rtol=1e-3, atol=1e-5, err_msg=name)
    first = np.fromfile(tmp_path / "x0", np.float32)[: np.prod(here.get_inputs("infer")[0].shape)]
    answer = here.run(None, {"input": first.reshape(here.get_inputs("infer")[0].shape)}, entry="infer")[0]
    found = np.fromfile(tmp_path / "answer", np.float32).reshape(answer.shape)
    np.testing.assert_allclose(found, answer, rtol=1e-3, atol=1e-4)
    assert model.artifact.bare["kept_bytes"] >= model.artifact.params_bytes
