"""Training steps of models for a GPU, which this CPU plays: the losses of the CPU's steps, no kernel task by task,
weights that stay on the device, checkpoints that move both ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from cuda_figures import census
from gpu_programs import Played
from nervure.compiler.passes import canonicalize
from nervure.compiler.passes.fuse import fuse
from nervure.compiler.pipeline import EntryGraph, Options, plan_program
from nervure.compiler.plan.images import image_nodes
from nervure.errors import MissingTool
from nervure.frontends.training.step import training_entries
from nervure.targets import get, nvrtc
from training_nets import NETS

L = nv.layers
TARGET = "cuda-sm80-emulated"
SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH, CLASSES = 8, 4


def columns() -> Any:
    return nv.Sequential(
        [L.Dense(9, use_bias=False, input_dim=6), L.BatchNorm(), L.ReLU(), L.Dense(CLASSES)], name="columns"
    )


def pictures() -> Any:
    layers = [nv.Input((3, 8, 8)), L.Conv2D(6, 3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()]
    layers += [L.MaxPool2D(2), L.DepthwiseConv2D(3, padding="same"), L.Conv2D(10, 3, strides=2, padding=1)]
    layers += [L.ReLU(), L.Flatten(), L.Dropout(0.3), L.Dense(CLASSES)]
    return nv.Sequential(layers, name="pictures")


def words() -> Any:
    layers = [nv.Input((5,), dtype="int32"), L.Embedding(11, 6), L.LayerNorm(), L.GRU(7), L.Dense(CLASSES)]
    return nv.Sequential(layers, name="words")


def data(net: str, count: int = BATCH, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count).astype(np.int32)
    if net == "words":
        return (rng.integers(0, 11, (count, 5)) // 2 + y[:, None]).astype(np.int32), y
    shape = (3, 8, 8) if net == "pictures" else (6,)
    means = np.random.default_rng(99).standard_normal((CLASSES, *shape))
    return (means[y] + 0.5 * rng.standard_normal((count, *shape))).astype(np.float32), y


@dataclass
class Pair:
    """One network with its training step for the played GPU and for this CPU."""

    name: str
    gpu: Any
    cpu: Any

    def sessions(self) -> tuple[Any, Any]:
        found = (self.gpu.session.clone(), self.cpu.session.clone())
        for session in found:
            session.reset()
            session.restore()
        return found


slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("pictures", "words")]


@pytest.fixture(scope="module", params=["columns", *slow])
def pair(request: Any) -> Iterator[Pair]:
    net = {"columns": columns, "pictures": pictures, "words": words}[request.param]()
    net.ready()
    optimizer = nv.optimizers.Adam(0.01, global_clipnorm=1.0)
    training = nv.Training(SCE, optimizer, metrics=["accuracy"], batch=BATCH)
    made = [nv.compile(net, target, training=training, precision="exact") for target in (TARGET, None)]
    yield Pair(request.param, *made)


def step(session: Any, name: str, seed: int, entry: str = "train_step") -> list[np.ndarray]:
    x, y = data(name, seed=seed)
    feeds = {session.artifact.meta["training"]["inputs"][0]: x, "y": y}
    rate = {"learning_rate": np.float32(0.01)} if entry == "train_step" else {}
    return session.run(None, feeds | rate, entry=entry)


def same(have: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Norm-wise: where a gradient is near zero, Adam makes steps of its rounding."""
    assert have.keys() == want.keys()
    for name, value in want.items():
        apart = np.linalg.norm(have[name].astype(np.float64) - value)
        assert apart <= 2e-3 * np.linalg.norm(value) + 1e-4, name


def test_steps_are_those_of_the_cpu(pair: Pair) -> None:
    gpu, cpu = pair.sessions()
    for i in range(6):
        for have, want in zip(step(gpu, pair.name, i), step(cpu, pair.name, i), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-3)
    same(gpu.params(), cpu.params())
    same(gpu.states(), cpu.states())
    loss = [float(step(s, pair.name, 9, "evaluate")[0]) for s in (gpu, cpu)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-3)


def test_the_same_steps_have_the_same_bits(pair: Pair) -> None:
    blobs = []
    for _ in range(2):
        gpu, _ = pair.sessions()
        for i in range(3):
            step(gpu, pair.name, i)
        blobs.append(gpu.export_state())
    assert blobs[0] == blobs[1]


def test_blobs_move_between_gpu_and_cpu(pair: Pair) -> None:
    gpu, cpu = pair.sessions()
    for i in range(3):
        step(gpu, pair.name, i)
    blob = gpu.export_state()
    cpu.import_state(blob)
    assert cpu.export_state() == blob
    for i in range(3, 5):
        step(cpu, pair.name, i)
    other, _ = pair.sessions()
    other.import_state(cpu.export_state())
    assert other.export_state() == cpu.export_state()
    for i in range(3, 5):
        step(gpu, pair.name, i)
    same(other.params(), gpu.params())
    assert float(step(other, pair.name, 6)[0]) == pytest.approx(float(step(gpu, pair.name, 6)[0]), rel=1e-4)


def test_checkpoints_of_trainers_move(pair: Pair, tmp_path: Path) -> None:
    gpu, cpu = (nv.Trainer(session, seed=1) for session in pair.sessions())
    x, y = data(pair.name, 24)
    for trainer, other, folder in ((gpu, cpu, "of_gpu"), (cpu, gpu, "of_cpu")):
        trainer.fit(x, y, epochs=1, verbose=0)
        trainer.save(tmp_path / folder)
        other.load(tmp_path / folder, strict=False)
        assert other.step == trainer.step
        assert other.session.export_state() == trainer.session.export_state()
        with pytest.raises(nv.NervureError, match="another program"):
            other.load(tmp_path / folder)


def test_a_loop_with_early_stopping(pair: Pair) -> None:
    x, y = data(pair.name, 32)
    histories = []
    for session in pair.sessions():
        stop = nv.callbacks.EarlyStopping(monitor="val_loss", patience=1, restore_best_weights=True)
        trainer = nv.Trainer(session, seed=5, learning_rate=0.02)
        history = trainer.fit(x[:24], y[:24], epochs=4, validation_data=(x[24:], y[24:]), callbacks=[stop], verbose=0)
        histories.append((history.history, trainer.evaluate(x, y)))
    (have, at_end), (want, want_end) = histories
    assert have.keys() == want.keys() and len(have["loss"]) == len(want["loss"])
    for name, values in want.items():
        np.testing.assert_allclose(have[name], values, rtol=2e-3, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(at_end, want_end, rtol=2e-3)


def test_weights_stay_on_the_device(pair: Pair) -> None:
    """Each step copies the batch and the rate to the device, its loss and metrics back, and nothing else."""
    gpu, _ = pair.sessions()
    played = Played()
    step(gpu, pair.name, 0)
    entry = gpu.artifact.entry("train_step")
    ports = [*entry.inputs, *entry.outputs]
    nbytes = sum(int(np.prod(p.shape, dtype=np.int64)) * np.dtype(p.dtype).itemsize for p in ports)
    before = played.get("copied bytes"), played.get("copies")
    for i in range(4):
        step(gpu, pair.name, i)
    assert played.get("copied bytes") - before[0] == 4 * nbytes
    assert played.get("copies") - before[1] == 4 * len(ports)


@pytest.mark.slow
def test_keras_calls_take_the_target() -> None:
    net = nv.Sequential([L.Dense(16, "tanh", input_dim=6), L.Dense(2)])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    net.compile("adam", SCE, metrics=["accuracy"], target=TARGET)
    history = net.fit(x, y, batch_size=16, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert net.evaluate(x, y)[0] < history["loss"][0] and net.predict(x[:3]).shape == (3, 2)


# -- what the steps are made of ---------------------------------------------------------------------------------------


def step_graph(name: str, batch: int | None = None) -> EntryGraph:
    net = NETS[name]
    entries, _ = training_entries(net.ours(), net.training("adam", batch), [{}])
    return next(e for e in entries if e.function == "train_step")


def check_kernels(name: str, precision: str) -> None:
    program, _ = plan_program([step_graph(name)], get("cuda-sm80"), Options(precision=precision))
    phases = [(s.op, p.kernel) for e in program.entries for s in e.steps for p in s.phases]
    assert phases
    assert not [(op, kernel) for op, kernel in phases if not kernel.startswith("k_cuda_")]


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_every_kernel_is_written_for_gpus(name: str) -> None:
    check_kernels(name, "default")


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("precision", ["default", "exact"])
@pytest.mark.parametrize("name", ["resnet8", "dscnn", "transformer", "lstm", "gru", "autoencoder", "mobilenet_head"])
def test_every_kernel_of_larger_networks_is_written_for_gpus(name: str, precision: str) -> None:
    check_kernels(name, precision)


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8", "dscnn", "transformer", "lstm", "gru"])
def test_steps_are_machine_code_without_local_memory(name: str) -> None:
    """For every architecture."""
    try:
        nvrtc.compiler_version()
    except MissingTool as missing:
        pytest.skip(str(missing))
    found = census(step_graph(name).graph, "cuda")
    assert not found.fallback and not found.local and not found.broken
    assert found.kernels > 10 and found.image_bytes > 0


def test_images_of_the_batch_are_no_lanes_of_a_gpu() -> None:
    """A thread has no vectors to fill: channels stay innermost, and neighbouring threads take them."""
    graph = fuse(canonicalize(step_graph("lenet", 16).graph))
    assert image_nodes(graph, 8, ())
    for number in (80, 87, 89, 90):
        assert not image_nodes(graph, get(f"cuda-sm{number}").lanes, ())


# -- curves of the networks of the bench ------------------------------------------------------------------------------

EXACT = {"mlp": 8, "lenet": 8, "resnet8": 4, "dscnn": 4, "transformer": 2, "autoencoder": 8, "lstm": 4, "gru": 4}
STEPS = 20


def curves(name: str, precision: str) -> np.ndarray:
    """Losses of 20 steps, [GPU or CPU, step]; the CPU is exact."""
    net = NETS[name]
    training = net.training("adam", EXACT[name])
    ours = net.ours()
    sessions = [
        nv.compile(ours, target, training=training, precision=p, dims={}).session
        for target, p in ((TARGET, precision), (None, "exact"))
    ]
    found = np.empty((2, STEPS))
    for i in range(STEPS):
        x, y = net.data(EXACT[name], i % 5)
        for row, session in zip(found, sessions, strict=True):
            facts = session.artifact.meta["training"]
            feeds = {facts["inputs"][0]: x, "y": y, "learning_rate": np.float32(facts["learning_rate"])}
            row[i] = session.run(None, feeds, entry="train_step")[0]
    return found


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", EXACT)
def test_curves_of_exact_steps(name: str) -> None:
    gpu, cpu = curves(name, "exact")
    apart = np.abs(gpu - cpu) / cpu
    print(f"{name}: {apart.max():.2e} at step {apart.argmax()}")
    assert apart[0] < 1e-5 and apart.max() < 2e-3


@pytest.mark.slow
@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", EXACT)
def test_curves_of_tf32_steps(name: str) -> None:
    """TF32 keeps 10 bits of a factor: after some steps the curves are two trainings of the same network."""
    gpu, cpu = curves(name, "default")
    apart = np.abs(gpu - cpu) / np.maximum(cpu, cpu[0] / 10)
    print(f"{name}: {apart.max():.2e} at step {apart.argmax()}")
    assert apart[0] < 1e-3 and apart.max() < 0.03


# -- gradients against finite differences -----------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_are_finite_differences() -> None:
    """A step of plain descent by a rate of 1 on the played GPU shows the gradient; losses of nearby weights are the
    CPU's."""
    layers = [nv.Input((3, 8, 8)), L.Conv2D(5, 3, padding=1, activation="tanh")]
    layers += [L.DepthwiseConv2D(3, padding="same"), L.Conv2D(6, 3, strides=2, padding=1, activation="tanh")]
    net = nv.Sequential([*layers, L.Flatten(), L.Dense(CLASSES)], name="smooth")
    net.ready()
    training = nv.Training(SCE, nv.optimizers.SGD(1.0), batch=BATCH)
    gpu, cpu = (nv.compile(net, t, training=training, precision="exact").session for t in (TARGET, None))
    x, y = data("pictures")
    feeds = {gpu.artifact.meta["training"]["inputs"][0]: x, "y": y}
    before = gpu.params()
    gpu.run(None, {**feeds, "learning_rate": np.float32(1)}, entry="train_step")
    after, rng, checked = gpu.params(), np.random.default_rng(0), 0
    for name, weight in before.items():
        gradient = (before[name] - after[name]).ravel()
        for at in rng.integers(0, weight.size, 6):
            losses = []
            for step_size in (-1e-2, 1e-2):
                moved = weight.ravel().copy()
                moved[at] += np.float32(step_size)
                cpu.set_params({name: moved.reshape(weight.shape)})
                losses.append(float(cpu.run(None, feeds, entry="evaluate")[0]))
            cpu.set_params({name: weight})
            slope = (losses[1] - losses[0]) / 2e-2
            assert slope == pytest.approx(gradient[at], rel=2e-2, abs=5e-4), (name, at)
            checked += abs(slope) > 5e-3
    assert checked > 20
