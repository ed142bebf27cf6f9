"""Callbacks: what they decide from logged values, what they write, what they hold."""

from __future__ import annotations

import csv
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nervure.errors import MissingTool, NervureError
from nervure.runtime import callbacks as cb
from nervure.runtime.curves import nice_ticks, svg
from nervure.runtime.trainer import Trainer
from small_training import samples


class Told(SimpleNamespace):
    """A trainer as far as callbacks see it, which is told its losses."""

    def __init__(self, rate: float = 1.0) -> None:
        super().__init__(stop_training=False, learning_rate=rate, step=0, world=SimpleNamespace(rank=0), held=0)
        self.model = self

    def rate(self) -> float:
        return self.learning_rate

    def weights(self) -> dict[str, np.ndarray]:
        return {"w": np.array([self.held])}

    def set_weights(self, values: dict[str, np.ndarray]) -> None:
        self.held = int(values["w"][0])


def tell(callback: cb.Callback, values: list[float], name: str = "val_loss", rate: float = 1.0) -> tuple[Told, int]:
    """The trainer after the epochs that it was allowed to do, and how many those were."""
    trainer = Told(rate)
    hooks = cb.CallbackList([callback], trainer, {"epochs": len(values)})  # type: ignore[arg-type]
    hooks.call("on_train_begin", {})
    done = 0
    for epoch, value in enumerate(values):
        trainer.held = epoch
        hooks.call("on_epoch_begin", epoch, {})
        hooks.call("on_epoch_end", epoch, {name: value})
        done += 1
        if trainer.stop_training:
            break
    hooks.call("on_train_end", {})
    return trainer, done


@pytest.mark.parametrize(
    ("options", "values", "epochs"),
    [
        ({}, [3, 2, 2.5, 1], 3),
        ({"patience": 2}, [3, 2, 2.5, 2.5, 1], 4),
        ({"patience": 2}, [3, 2, 2.5, 1.9, 2, 2], 6),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.8, 2.7], 2),
        ({"mode": "max"}, [1, 2, 1.5, 3], 3),
        ({"monitor": "val_accuracy"}, [0.1, 0.2, 0.15, 0.3], 3),
        ({"patience": 1, "baseline": 1.0}, [3, 2, 0.5, 0.6, 0.7], 4),
        ({"patience": 2, "baseline": 1.0}, [3, 3, 0.5, 0.6, 0.7], 2),
        ({"patience": 1, "start_from_epoch": 2}, [1, 2, 3, 4, 5], 4),
    ],
)
def test_early_stopping(options: dict[str, Any], values: list[float], epochs: int) -> None:
    stopping = cb.EarlyStopping(**options)
    done = tell(stopping, values, options.get("monitor", "val_loss"))[1]
    assert done == epochs


def test_early_stopping_restores_the_best(training_library: Callable[..., Path]) -> None:
    assert tell(cb.EarlyStopping(patience=2, restore_best_weights=True), [3, 1, 2, 2, 2])[0].held == 1
    assert tell(cb.EarlyStopping(patience=9, restore_best_weights=True), [3, 1, 2])[0].held == 1
    assert tell(cb.EarlyStopping(patience=2), [3, 1, 2, 2, 2])[0].held == 3
    trainer = Trainer(training_library(), learning_rate=30.0)
    data = {"validation_data": samples(20, seed=9), "verbose": 0}
    weights = []
    keep = cb.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(trainer.weights()))
    stopping = cb.EarlyStopping(patience=3, restore_best_weights=True)
    history = trainer.fit(*samples(40), epochs=12, callbacks=[keep, stopping], **data)
    best = int(np.argmin(history.history["val_loss"]))
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, weights[best][name])
    with pytest.raises(
        NervureError, match=r"monitors 'val_loss', which is not computed\n.*loss, accuracy\n.*validation"
    ):
        trainer.fit(*samples(8), callbacks=[cb.EarlyStopping()], verbose=0)


def test_reduce_on_plateau() -> None:
    def rates(values: list[float], **options: Any) -> float:
        return tell(cb.ReduceLROnPlateau(factor=0.5, **options), values)[0].learning_rate

    assert rates([3, 2, 1], patience=1) == 1.0
    assert rates([3, 3], patience=1) == 0.5
    assert rates([3, 3, 3], patience=1) == 0.25
    assert rates([3, 3, 3, 3], patience=2) == 0.5
    assert rates([3, 3, 3, 3, 3], patience=1, cooldown=2) == 0.25
    assert rates([3] * 30, patience=1, min_lr=0.1) == 0.1
    assert rates([3, 2.9999], patience=1, min_delta=1e-3) == 0.5


def test_learning_rate_scheduler(training_library: Callable[..., Path]) -> None:
    trainer = Trainer(training_library())
    for schedule in (lambda epoch: 0.1 / (epoch + 1), lambda epoch, rate: 0.1 / (epoch + 1)):
        history = trainer.fit(*samples(16), epochs=3, callbacks=[cb.LearningRateScheduler(schedule)], verbose=0)
        assert history.history["learning_rate"] == [0.1 / (e + 1) for e in range(3)]
    chained = cb.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    trainer.learning_rate = 1.0
    assert trainer.fit(*samples(16), epochs=3, callbacks=[chained], verbose=0).history["learning_rate"] == [
        0.5,
        0.25,
        0.125,
    ]
    with pytest.raises(NervureError, match="must give a number"):
        trainer.fit(*samples(8), callbacks=[cb.LearningRateScheduler(lambda epoch: None)], verbose=0)  # type: ignore


def test_model_checkpoint(training_library: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    trainer = Trainer(training_library())
    x, y = samples(40)
    every = cb.ModelCheckpoint(tmp_path / "all-{epoch:02d}-{loss:.2f}", monitor="loss")
    steps = cb.ModelCheckpoint(tmp_path / "step", save_freq=3, save_weights_only=True)
    best = cb.ModelCheckpoint(tmp_path / "best.safetensors", "loss", save_best_only=True, save_weights_only=True)
    history = trainer.fit(x, y, epochs=2, callbacks=[every, steps, best], verbose=0)
    names = sorted(p.name for p in tmp_path.iterdir())
    losses = history.history["loss"]
    assert names == [f"all-01-{losses[0]:.2f}", f"all-02-{losses[1]:.2f}", "best.safetensors", "step"]
    fresh = Trainer(training_library())
    fresh.load_weights(tmp_path / "best.safetensors")
    for name, array in trainer.weights().items():
        np.testing.assert_array_equal(array, fresh.weights()[name])
    fresh.load(tmp_path / names[1])
    assert fresh.step == 10
    best.monitor = "nothing"
    with pytest.raises(NervureError, match="'nothing', which is not computed"):
        trainer.fit(x, y, callbacks=[best], verbose=0)
    with pytest.raises(NervureError, match=r"cannot be filled in"):
        trainer.fit(x, y, callbacks=[cb.ModelCheckpoint(str(tmp_path / "{val_loss}"))], verbose=0)


def test_csv(training_library: Callable[..., Path], tmp_path: Path) -> None:
    trainer = Trainer(training_library())
    path = tmp_path / "log.csv"
    history = trainer.fit(*samples(16), epochs=3, callbacks=[cb.CSVLogger(path)], verbose=0)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["epoch"]) for r in rows] == [0, 1, 2]
    assert [float(r["loss"]) for r in rows] == history.history["loss"]
    trainer.fit(*samples(16), callbacks=[cb.CSVLogger(path, append=True)], verbose=0)
    assert len(path.read_text().splitlines()) == 5
    trainer.fit(*samples(16), callbacks=[cb.CSVLogger(path, separator=";")], verbose=0)
    assert path.read_text().splitlines()[0] == "epoch;accuracy;loss"
    with pytest.raises(NervureError, match="cannot write the log"):
        trainer.fit(*samples(16), callbacks=[cb.CSVLogger(tmp_path / "no" / "log.csv")], verbose=0)


def test_tensorboard(training_library: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX")
    trainer = Trainer(training_library())
    history = trainer.fit(
        *samples(40),
        epochs=2,
        validation_data=samples(9),
        callbacks=[cb.TensorBoard(tmp_path, update_freq=2)],
        verbose=0,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train", "validation"]
    found = _scalars(tmp_path / "validation")
    assert found["epoch_loss"] == pytest.approx(history.history["val_loss"], rel=1e-6)
    assert len(_scalars(tmp_path / "train")["batch_loss"]) == 5
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingTool, match=r"needs tensorboardX\n.*pip install 'nervure\[tensorboard\]'"):
        trainer.fit(*samples(8), callbacks=[cb.TensorBoard(tmp_path)], verbose=0)


def _scalars(folder: Path) -> dict[str, list[float]]:
    """The events of a run, as tensorboardX's own protocol buffers read them."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, at = path.read_bytes(), 0
    found: dict[str, list[float]] = {}
    while at < len(data):  # length (8 bytes), checksum (4), event, checksum (4)
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(value.simple_value)
        at += size + 16
    return found


def test_lambda_callback_and_those_that_are_none() -> None:
    seen: list[Any] = []
    tell(cb.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, logs)), on_train_begin=None), [1, 2])
    assert seen == [(0, {"val_loss": 1}), (1, {"val_loss": 2})]
    with pytest.raises(NervureError, match="no hook 'on_epoch'"):
        cb.LambdaCallback(on_epoch=print)
    with pytest.raises(NervureError, match="mode is 'up'"):
        cb.EarlyStopping(mode="up")


def test_states_go_to_the_callback_of_the_same_class_and_turn() -> None:
    def make() -> list[cb.Callback]:
        return [cb.EarlyStopping(patience=1), cb.ReduceLROnPlateau(), cb.EarlyStopping(restore_best_weights=True)]

    first, second = make(), make()
    trainer: Any = Told()
    listed = cb.CallbackList(first, trainer, {})
    listed.call("on_train_begin", {})
    for epoch, value in enumerate([3.0, 2.0, 4.0]):
        trainer.held = epoch
        listed.call("on_epoch_end", epoch, {"val_loss": value})
    again = cb.CallbackList([second[2], cb.History(), second[1]], trainer, {})
    again.restore(*listed.states())
    assert second[2].state() == first[0].state()  # the first of its class
    assert second[1].state() == first[1].state()
    again = cb.CallbackList(second, trainer, {})
    again.restore(*listed.states())
    assert again.states()[0] == listed.states()[0]
    np.testing.assert_array_equal(second[2].tensors()["w"], [1])


def test_the_picture_of_the_curves(training_library: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    trainer = Trainer(training_library())
    plot = cb.CurvePlot(path, title="A <small> net & more")
    history = trainer.fit(*samples(40), epochs=6, validation_data=samples(9), callbacks=[plot], verbose=0)
    assert path.read_text() == svg(history.history, [e + 1 for e in history.epoch], "A <small> net & more")
    root = ET.parse(path).getroot()
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 4  # loss and accuracy, training and validation
    heights = [float(p.split(",")[1]) for p in str(lines[0].get("points")).split()]
    losses = history.history["loss"]
    assert [a > b for a, b in pairwise(heights)] == [a < b for a, b in pairwise(losses)]
    texts = [t.text for t in root.findall(".//{*}text")]
    assert {"loss", "accuracy", "epoch", "training", "validation", "A <small> net & more"} <= set(texts)


@pytest.mark.parametrize(
    "values", [[], [1.0], [0.5, 0.5], [1e-9, 2e-9], [float("nan"), 1.0], [-3.0, 1e6], [1e30, 1e31]]
)
def test_pictures_of_strange_curves(values: list[float]) -> None:
    root = ET.fromstring(svg({"loss": values}))
    for line in root.findall(".//{*}polyline"):
        for point in str(line.get("points")).split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 400 and 0 <= y <= 260


def test_ticks() -> None:
    assert nice_ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(0.13, 0.87) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(1, 20, 6) == [0, 5, 10, 15, 20]
