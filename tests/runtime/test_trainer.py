"""The loop around a training step, against the same training in numpy and float64."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nervure.errors import NervureError
from nervure.runtime.callbacks import Callback, LambdaCallback, TerminateOnNaN
from nervure.runtime.data import ArraySource, Feed
from nervure.runtime.schedules import ExponentialDecay
from nervure.runtime.trainer import Trainer
from small_training import CLASSES, FEATURES, Oracle, samples

Library = Callable[..., Path]


def close(trainer: Trainer, oracle: Oracle, tolerance: float = 2e-5) -> None:
    params = trainer.session.params()
    np.testing.assert_allclose(params["dense.weight"], oracle.w, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(params["dense.bias"], oracle.b, rtol=tolerance, atol=tolerance)


def bits(trainer: Trainer) -> bytes:
    found = {**trainer.session.params(), **trainer.session.states()}
    return b"".join(found[name].tobytes() for name in sorted(found))


def even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def test_single_batches(training_library: Library) -> None:
    trainer, oracle = Trainer(training_library()), Oracle()
    x, y = samples(20)
    for rows in (slice(0, 8), slice(8, 16), slice(16, 20), slice(3, 4)):
        count = len(y[rows])
        before = trainer.test_on_batch(x[rows], y[rows])
        logs = trainer.train_on_batch(x[rows], y[rows])
        assert before == logs
        loss, accuracy = oracle.step(x[rows].astype(float), y[rows], even(count), 0.1)
        assert logs["loss"] == pytest.approx(loss, rel=1e-5)
        assert logs["accuracy"] == pytest.approx(accuracy, rel=1e-6)
    close(trainer, oracle)
    assert trainer.step == 4
    with pytest.raises(NervureError, match="9 samples in one batch"):
        trainer.train_on_batch(x[:9], y[:9])


@pytest.mark.parametrize("shuffle", [False, True])
def test_epochs_with_a_last_batch_that_is_not_full(training_library: Library, shuffle: bool) -> None:
    trainer, oracle = Trainer(training_library(), learning_rate=0.05, seed=5), Oracle()
    x, y = samples(21)
    history = trainer.fit(x, y, epochs=3, shuffle=shuffle, verbose=0)
    orders, losses, rights = [], [], []
    for epoch in range(3):
        order = np.arange(21)
        if shuffle:
            order = np.random.Generator(np.random.Philox(key=5, counter=epoch << 192)).permutation(21)
        orders.append(tuple(order))
        total = np.zeros(2)
        for at in range(0, 21, 8):
            rows = order[at : at + 8]
            total += np.multiply(oracle.step(x[rows].astype(float), y[rows], even(len(rows)), 0.05), len(rows))
        losses.append(total[0] / 21)
        rights.append(total[1] / 21)
    close(trainer, oracle)
    assert len(set(orders)) == (3 if shuffle else 1)
    assert history.epoch == [0, 1, 2]
    np.testing.assert_allclose(history.history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(history.history["accuracy"], rights, rtol=1e-6)


def test_weights_of_samples_and_of_classes(training_library: Library) -> None:
    trainer, oracle = Trainer(training_library()), Oracle()
    x, y = samples(13)
    factors = np.random.default_rng(1).uniform(0, 3, 13)
    by_class = {0: 2.0, 3: 0.25}
    history = trainer.fit(x, y, sample_weight=factors, class_weight=by_class, shuffle=False, verbose=0)
    weights = factors * np.array([by_class.get(int(c), 1.0) for c in y])
    loss = right = 0.0
    for at in (0, 8):
        rows = slice(at, at + 8)
        count = len(y[rows])
        found = oracle.step(x[rows].astype(float), y[rows], weights[rows] / count, 0.1)
        loss, right = loss + found[0] * count, right + found[1] * count
    close(trainer, oracle)
    assert history.history["loss"] == [pytest.approx(loss / 13, rel=1e-5)]
    assert history.history["accuracy"] == [pytest.approx(right / weights.sum(), rel=1e-5)]


class Tensor:
    """As other libraries have them."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


class Loader:
    """Batches of any size, each epoch anew."""

    def __init__(self, x: np.ndarray, y: np.ndarray, size: int) -> None:
        self.x, self.y, self.size = x, y, size

    def __iter__(self) -> Iterator[list[Tensor]]:
        for at in range(0, len(self.y), self.size):
            yield [Tensor(self.x[at : at + self.size]), Tensor(self.y[at : at + self.size])]


def forms(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[Any, ...]]:
    return {
        "column of labels": (x, y[:, None]),
        "float64 and int64": (x.astype(np.float64), y.astype(np.int64)),
        "mappings": ({"x": x}, {"y": y}),
        "one mapping": ({"x": x, "y": y},),
        "lists of one": ([x], [y]),
        "not contiguous": (np.asfortranarray(x), np.repeat(y, 2)[::2]),
        "labels as whole floats": (x, y.astype(np.float32)),
        "nested lists": (x.astype(float).tolist(), y.tolist()),
        "loader": (Loader(x, y, 5),),
        "large batches": (Loader(x, y, 19),),
        "list of batches": ([(x[:3], y[:3]), (x[3:], y[3:])],),
        "mappings in a loader": ([{"x": x[:9], "y": y[:9]}, {"x": x[9:], "y": y[9:]}],),
        "function": (lambda: ((x[i : i + 1], y[i : i + 1]) for i in range(len(y))),),
        "with weights": ([(x, y, np.ones(len(y)))],),
    }


@pytest.mark.parametrize("form", sorted(forms(*samples(1))))
def test_all_forms_of_data_give_the_same_bits(training_library: Library, form: str) -> None:
    x, y = samples(21)
    plain, other = Trainer(training_library()), Trainer(training_library())
    expected = plain.fit(x, y, epochs=2, shuffle=False, verbose=0)
    found = other.fit(*forms(x, y)[form], epochs=2, shuffle=False, verbose=0)
    assert found.history == expected.history
    assert bits(other) == bits(plain)
    data = forms(x, y)[form]
    assert other.evaluate(*data, return_dict=True) == plain.evaluate(x, y, return_dict=True)


def test_narrow_numbers_are_widened_in_the_batch(training_library: Library) -> None:
    x = np.random.default_rng(0).integers(0, 255, (24, FEATURES)).astype(np.uint8)
    y = samples(24)[1]
    for shuffle in (False, True):
        plain, narrow = (Trainer(training_library(), learning_rate=1e-4) for _ in range(2))
        plain.fit(x.astype(np.float32), y, shuffle=shuffle, verbose=0)
        narrow.fit(x, y, shuffle=shuffle, verbose=0)
        assert bits(plain) == bits(narrow)


def test_a_generator_without_end_goes_on_with_the_next_epoch(training_library: Library) -> None:
    x, y = samples(400)
    chunks = ((x[i : i + 7], y[i : i + 7]) for i in range(0, 400, 7))
    trainer, plain = Trainer(training_library()), Trainer(training_library())
    history = trainer.fit(chunks, epochs=4, steps_per_epoch=6, verbose=0)
    plain.fit(x[: 4 * 6 * 8], y[: 4 * 6 * 8], shuffle=False, verbose=0)
    assert bits(trainer) == bits(plain)
    assert len(history.epoch) == 4
    with pytest.raises(NervureError, match="the data end before epoch 2"):
        trainer.fit(((x[i : i + 8], y[i : i + 8]) for i in range(0, 16, 8)), epochs=2, verbose=0)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40, 43])
def test_evaluate_and_predict_take_any_number(training_library: Library, count: int) -> None:
    trainer, oracle = Trainer(training_library()), Oracle()
    x, y = samples(count, seed=3)
    loss, accuracy = oracle.measure(x.astype(float), y, even(count))
    assert trainer.evaluate(x, y) == pytest.approx([loss, accuracy], rel=1e-5)
    found = trainer.predict(x)
    np.testing.assert_allclose(found, oracle.forward(x.astype(float)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(trainer.predict(iter([x[:1], x[1:]])), found)
    np.testing.assert_array_equal(trainer.predict(Loader(x, y, 5)), found)


def test_validation(training_library: Library) -> None:
    x, y = samples(50)
    kept, after = samples(11, seed=2)
    by_split, by_data, by_loader = (Trainer(training_library()) for _ in range(3))
    first = by_split.fit(np.concatenate([x, kept]), np.concatenate([y, after]), validation_split=11 / 61, verbose=0)
    second = by_data.fit(x, y, validation_data=(kept, after), verbose=0)
    third = by_loader.fit(x, y, validation_data=Loader(kept, after, 4), verbose=0)
    assert list(first.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert first.history == second.history == third.history
    assert by_data.evaluate(kept, after, return_dict=True)["loss"] == second.history["val_loss"][-1]
    with pytest.raises(NervureError, match="validation_split"):
        by_data.fit(x, y, validation_split=0.2, validation_data=(kept, after))


def test_the_learning_rate_follows_a_schedule(training_library: Library) -> None:
    rate = ExponentialDecay(0.2, 3, 0.5)
    trainer, oracle = Trainer(training_library(), learning_rate=rate), Oracle()
    x, y = samples(32)
    history = trainer.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for step in range(8):
        rows = slice(step % 4 * 8, step % 4 * 8 + 8)
        oracle.step(x[rows].astype(float), y[rows], even(8), rate(step))
    close(trainer, oracle)
    assert history.history["learning_rate"] == [rate(3), rate(7)]
    trainer.learning_rate = 0.5
    assert trainer.rate() == 0.5
    with pytest.raises(NervureError, match="learning rate is nan"):
        trainer.learning_rate = float("nan")


def test_an_epoch_of_some_steps_and_an_initial_epoch(training_library: Library) -> None:
    trainer = Trainer(training_library())
    x, y = samples(80)
    history = trainer.fit(x, y, epochs=5, initial_epoch=3, steps_per_epoch=2, verbose=0)
    assert history.epoch == [3, 4]
    assert trainer.step == 4


def test_a_callback_ends_the_training_within_an_epoch(training_library: Library) -> None:
    trainer = Trainer(training_library())
    seen: list[tuple[str, int]] = []

    class Stop(Callback):
        def on_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            seen.append(("batch", batch))
            assert logs is not None and set(logs) == {"loss", "accuracy"}
            self.model.stop_training = batch == 2

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            seen.append(("epoch", epoch))

    trainer.fit(*samples(80), epochs=9, callbacks=[Stop()], verbose=0)
    assert seen == [("batch", 0), ("batch", 1), ("batch", 2), ("epoch", 0)]
    assert trainer.fit(*samples(8), verbose=0).epoch == [0]


def test_what_is_shown(training_library: Library, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    trainer = Trainer(training_library())
    trainer.fit(*samples(20), epochs=2, verbose=0)
    assert capsys.readouterr().out == ""
    trainer.fit(*samples(20), epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" - ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "loss: " in lines[0] and "accuracy: " in lines[0]
    slow = LambdaCallback(on_train_batch_end=lambda batch, logs: __import__("time").sleep(0.06))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    trainer.fit(*samples(40), verbose=1, callbacks=[slow])
    shown = capsys.readouterr().out
    assert "epoch 1/1 - " in shown
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    trainer.fit(*samples(40), verbose=1, callbacks=[slow])
    shown = capsys.readouterr().out
    assert "\r" in shown and "/5 - loss: " in shown
    with pytest.raises(NervureError, match="verbose is 3"):
        trainer.fit(*samples(8), verbose=3)


X, Y = samples(16)
NAN = X.copy()
NAN[3, 4] = np.nan

MISTAKES: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no samples": ((X[:0], Y[:0]), {}, "the data set is empty"),
    "no samples in lists": (([], []), {}, "the data set is empty"),
    "an empty loader": (([],), {}, "the data set is empty"),
    "labels from one": ((X, Y + 1), {}, rf"labels out of range: {CLASSES} in target 'y'\n.*classes"),
    "a negative label": ((X, np.where(Y == 2, -1, Y)), {}, "labels out of range: -1"),
    "labels in a loader": (([(X, Y + 1)],), {}, "labels out of range"),
    "one-hot labels": ((X, np.eye(CLASSES)[Y]), {}, r"target 'y'.*\n.*\n.*one-hot rows given where class numbers"),
    "broken labels": ((X, Y + 0.5), {}, "float64 given where int32 is taken"),
    "too few features": ((X[:, 1:], Y), {}, r"input 'x': a sample has shape \[11\], the step takes \[12\]"),
    "pictures": ((X.reshape(16, 3, 4), Y), {}, r"reshape it: array.reshape\(-1, 12\)"),
    "one sample": ((X[0], Y[:1]), {}, r"add the first axis"),
    "different lengths": ((X, Y[:7]), {}, "different numbers of samples\n.*x: 16, y: 7"),
    "texts": ((X, ["cat"] * 16), {}, "values of type <U3 cannot be trained on"),
    "ragged rows": (([[1, 2], [3]], Y[:2]), {}, "input 'x' is no array"),
    "no target": ((X,), {}, "no target given"),
    "another batch size": ((X, Y), {"batch_size": 32}, "batch_size is 32"),
    "weights of another length": ((X, Y), {"sample_weight": np.ones(3)}, "different numbers of samples"),
    "negative weights": ((X, Y), {"sample_weight": -np.ones(16)}, "sample_weight"),
    "a NaN in the data": ((NAN, Y), {}, r"the loss is nan in step [12] of epoch 1\n.*'x' of this batch holds NaN"),
    "no steps": ((X, Y), {"steps_per_epoch": 0}, "steps_per_epoch is 0"),
    "no callback": ((X, Y), {"callbacks": [print]}, "is no callback"),
    "an item of four": (([(X, Y, Y, Y)],), {}, "a batch of 4 parts"),
    "a number": ((5,), {}, "data of type int"),
    "resume from nowhere": ((X, Y), {"resume": True}, "resume is given without checkpoint"),
    "half of nothing": ((X, Y), {"validation_split": 1.5}, "validation_split is 1.5"),
    "an empty validation": ((X, Y), {"validation_data": (X[:0], Y[:0])}, "the data set is empty"),
}


@pytest.mark.parametrize("case", sorted(MISTAKES))
def test_mistakes_have_one_clear_error(training_library: Library, case: str) -> None:
    data, options, pattern = MISTAKES[case]
    with pytest.raises(NervureError, match=pattern):
        Trainer(training_library()).fit(*data, verbose=0, **options)


def test_a_loss_that_is_not_finite(training_library: Library) -> None:
    x, y = samples(64)
    wild = {"learning_rate": 1e38}
    with pytest.raises(
        NervureError, match=r"the loss is (nan|inf) in step \d of epoch 1\n.*diverged.*\n.*below 1e\+38"
    ):
        Trainer(training_library(), **wild).fit(x, y, epochs=3, verbose=0)
    history = Trainer(training_library(), **wild).fit(x, y, epochs=3, verbose=0, callbacks=[TerminateOnNaN()])
    assert history.epoch == [0]


def test_without_weights_per_sample(training_library: Library) -> None:
    trainer, oracle = Trainer(training_library(weighted=False)), Oracle()
    x, y = samples(24)
    trainer.fit(x, y, shuffle=False, verbose=0)
    for at in (0, 8, 16):
        oracle.step(x[at : at + 8].astype(float), y[at : at + 8], even(8), 0.1)
    close(trainer, oracle)
    with pytest.raises(NervureError, match=r"21 samples do not fill batches of 8\n.*\n.*give 16 samples"):
        trainer.fit(x[:21], y[:21])
    with pytest.raises(NervureError, match="5 samples do not fill"):
        trainer.fit(Loader(x[:21], y[:21], 7), verbose=0)
    with pytest.raises(NervureError, match="compiled without them"):
        trainer.fit(x, y, sample_weight=np.ones(24))


def test_a_model_without_training(artifacts: Any) -> None:
    with pytest.raises(NervureError, match="compiled for inference only"):
        Trainer(artifacts("batches").path)


def test_padding_repeats_the_samples_that_are_there(training_library: Library) -> None:
    """A batch norm then sees much the same statistics; zeros would move them."""
    trainer = Trainer(training_library())
    x, y = samples(11)
    feed = Feed(trainer.signature)
    source = ArraySource(feed, {"x": x, "y": y}, None)
    assert list(source.epoch(0)) == [8, 3]
    np.testing.assert_array_equal(feed.arrays["x"], x[[8, 9, 10, 8, 9, 10, 8, 9]])
    assert feed.weights is not None
    np.testing.assert_allclose(feed.weights, [1 / 3] * 3 + [0] * 5)


RANKS = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from mpi4py import MPI
from nervure.runtime.trainer import Trainer
from small_training import samples
x, y = samples(53)
comm = MPI.COMM_WORLD
trainer = Trainer({path!r}, seed=4, communicator=comm)
factors = np.random.default_rng(1).uniform(0, 3, 53)
first = trainer.fit(x, y, epochs=2, validation_data=samples(21, seed=8), verbose=0).history
second = trainer.fit(x, y, epochs=2, sample_weight=factors, verbose=0).history
mine = [(x[i : i + 5], y[i : i + 5]) for i in range(comm.rank * 5, 53, 10)]
third = trainer.fit(mine, verbose=0).history
params = trainer.session.params()
for name, array in params.items():
    assert (comm.bcast(array) == array).all()
if comm.rank == 0:
    np.savez({out!r}, **params)
    print([first, second, third])
"""


@pytest.mark.slow
def test_two_ranks_are_one_rank_with_the_joined_batch(training_library: Library, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    launcher = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("no mpiexec")
    tests, out = Path(__file__).parent.parent, tmp_path / "params.npz"
    code = RANKS.format(tests=str(tests), path=str(training_library(batch=4)), out=str(out))
    command = [launcher, "-n", "2", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = eval(done.stdout)
    x, y = samples(53)
    factors = np.random.default_rng(1).uniform(0, 3, 53)
    alone = Trainer(training_library(batch=8), seed=4)
    first = alone.fit(x, y, epochs=2, validation_data=samples(21, seed=8), verbose=0).history
    second = alone.fit(x, y, epochs=2, sample_weight=factors, verbose=0).history
    # rank 0 reads samples 0-4, 10-14, ... and rank 1 samples 5-9, ...: in fours
    halves = [np.array([j for i in range(r * 5, 53, 10) for j in range(i, min(i + 5, 53))]) for r in (0, 1)]
    third = alone.fit(
        [(x[rows], y[rows]) for at in range(0, 28, 4) for rows in [np.concatenate([h[at : at + 4] for h in halves])]],
        verbose=0,
    )
    for found, expected in zip(shown, (first, second, third.history), strict=True):
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=2e-5)
    params = alone.session.params()
    with np.load(out) as saved:
        for name in params:
            np.testing.assert_allclose(saved[name], params[name], rtol=1e-4, atol=1e-6)
