"""Checkpoints: whole or not there, verified when read, and a training that is killed ends with the same bits."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nervure.errors import MissingTool, NervureError
from nervure.runtime import checkpoint
from nervure.runtime.callbacks import CSVLogger, EarlyStopping, LambdaCallback, ReduceLROnPlateau
from nervure.runtime.trainer import Trainer
from small_training import samples

Library = Callable[..., Path]
pytest.importorskip("safetensors")


def bits(trainer: Trainer) -> str:
    found = {**trainer.session.params(), **trainer.session.states()}
    return hashlib.sha256(b"".join(found[name].tobytes() for name in sorted(found))).hexdigest()


def trained(library: Path, epochs: int = 2, **options: Any) -> Trainer:
    trainer = Trainer(library, seed=3)
    trainer.fit(*samples(29), epochs=epochs, verbose=0, **options)
    return trainer


def test_there_and_back(training_library: Library, tmp_path: Path) -> None:
    trainer = trained(training_library())
    trainer.learning_rate = 0.03
    trainer.save(tmp_path / "a" / "b")
    again = Trainer(training_library())
    manifest = again.load(tmp_path / "a" / "b")
    assert bits(again) == bits(trainer)
    assert (again.step, again.learning_rate) == (8, 0.03)
    assert manifest["optimizer"] == "SGD"
    assert manifest["shapes"]["param/dense.weight"] == ["float32", [12, 4]]
    again.seed = trainer.seed
    for one in (trainer, again):
        one.fit(*samples(29), epochs=2, verbose=0)
    assert bits(again) == bits(trainer)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir())[-1] == "manifest.json"
    assert len(list((tmp_path / "a" / "b").iterdir())) == 2


def test_the_same_training_gives_the_same_files(training_library: Library, tmp_path: Path) -> None:
    for name in "ab":
        trained(training_library(), checkpoint=tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1]


def test_weights_alone(training_library: Library, tmp_path: Path) -> None:
    trainer = trained(training_library())
    trainer.save_weights(tmp_path / "w.safetensors")
    assert set(checkpoint.load_weights(tmp_path / "w.safetensors")) == {
        "dense.weight",
        "dense.bias",
        "norm.running_mean",
    }
    again = Trainer(training_library(weighted=False))  # another program with the same parameters
    again.load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(again.predict(samples(5)[0]), trainer.predict(samples(5)[0]))
    (tmp_path / "w.safetensors").write_bytes(b"not this")
    with pytest.raises(NervureError, match="no safetensors file"):
        again.load_weights(tmp_path / "w.safetensors")
    checkpoint.save_weights(tmp_path / "w.safetensors", {"dense.weight": np.zeros((3, 4), np.float32)})
    with pytest.raises(NervureError, match=r"'dense.weight' is float32\[3, 4\], the model's is float32\[12, 4\]"):
        again.load_weights(tmp_path / "w.safetensors")


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], None]) -> None:
    """A checkpoint with sound digests and other contents."""
    tensors, manifest = checkpoint.load(folder)
    manifest = {k: v for k, v in manifest.items() if k not in ("format", "tensors", "shapes")}
    change(tensors, manifest)
    checkpoint.save(folder, tensors, manifest)


def damage(folder: Path, what: str) -> None:
    manifest = folder / "manifest.json"
    (tensors,) = folder.glob("*.safetensors")
    if what == "nothing there":
        manifest.unlink()
    elif what == "a flipped bit":
        data = bytearray(tensors.read_bytes())
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif what == "tensors cut":
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif what == "tensors gone":
        tensors.unlink()
    elif what == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:200])
    elif what == "manifest of something else":
        manifest.write_text("[1, 2]")
    elif what == "a newer format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    elif what == "another name":
        rewrite(folder, lambda t, m: t.update({"param/dense.kernel": t.pop("param/dense.weight")}))
    elif what == "a state lacks":
        rewrite(folder, lambda t, m: t.__delitem__("state/generator"))
    elif what == "another shape":
        rewrite(folder, lambda t, m: t.update({"param/dense.bias": np.zeros(5, np.float32)}))
    elif what == "another dtype":
        rewrite(folder, lambda t, m: t.update({"param/dense.bias": np.zeros(4, np.float64)}))
    elif what == "another program":
        rewrite(folder, lambda t, m: m.update({"program": "0" * 64}))
    elif what == "not of fit":
        rewrite(folder, lambda t, m: m.update({"fit": {}}))
    elif what == "other data":
        rewrite(folder, lambda t, m: m["fit"]["data"].update({"samples": 1000}))


DAMAGES = {
    "nothing there": None,  # begins anew
    "a flipped bit": "corrupted\n.*\n.*do not match the digest",
    "tensors cut": "corrupted\n.*\n.*do not match the digest",
    "tensors gone": "corrupted\n.*\n.*No such file",
    "manifest cut": "corrupted\n.*\n.*manifest cannot be read",
    "manifest of something else": "corrupted\n.*\n.*manifest cannot be read",
    "a newer format": "format is 99, this nervure reads 1",
    "another name": "does not fit the model\n.*\n.*'dense.kernel' is not in the model",
    "a state lacks": "does not fit the model\n.*\n.*state 'generator' is not in the file",
    "another shape": r"'dense.bias' is float32\[5\], the model's is float32\[4\]",
    "another dtype": r"'dense.bias' is float64\[4\], the model's is float32\[4\]",
    "another program": r"made by another program\n.*\n.*\n.*strict=False",
    "not of fit": "was not made by fit",
    "other data": "samples was 1000, it is 29",
}


@pytest.mark.parametrize("what", sorted(DAMAGES))
def test_what_is_wrong_is_said_before_anything_changes(training_library: Library, tmp_path: Path, what: str) -> None:
    trained(training_library(), checkpoint=tmp_path)
    damage(tmp_path, what)
    trainer = Trainer(training_library(), seed=3)
    before = bits(trainer)
    pattern = DAMAGES[what]
    options: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path, "resume": True, "verbose": 0}
    if pattern is None:
        assert trainer.fit(*samples(29), **options).epoch == [0, 1, 2]
        return
    with pytest.raises(NervureError, match=pattern):
        trainer.fit(*samples(29), **options)
    if what not in ("not of fit", "other data"):
        assert bits(trainer) == before
    if what == "another program":
        trainer.load(tmp_path, strict=False)
        assert bits(trainer) == bits(trained(training_library()))


def callbacks(folder: Path) -> list[Any]:
    return [
        EarlyStopping(monitor="loss", patience=50, restore_best_weights=True),
        ReduceLROnPlateau(monitor="loss", factor=0.7, patience=1, min_delta=0.02),
        CSVLogger(folder / "log.csv"),
    ]


@pytest.mark.parametrize("after", [1, 3, 4, 5, 9, 12])
def test_an_interrupted_training_ends_with_the_same_bits(training_library: Library, tmp_path: Path, after: int) -> None:
    class Stopped(Exception):
        pass

    def run(folder: Path, *more: Any, every: int | None = 1) -> tuple[Trainer, dict[str, list[float]]]:
        folder.mkdir(exist_ok=True)
        trainer = Trainer(training_library(), seed=3)
        options: dict[str, Any] = {"checkpoint": folder / "run", "checkpoint_every": every, "resume": True}
        history = trainer.fit(
            *samples(29), epochs=3, verbose=0, callbacks=[*callbacks(folder), *more], validation_split=0.2, **options
        )
        return trainer, history.history

    def stop(batch: int, logs: dict[str, float]) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Stopped

    whole, history = run(tmp_path / "whole")
    for every in (1, 2, None):
        left = after
        folder = tmp_path / f"parts{every}"
        if after <= 9:
            with pytest.raises(Stopped):
                run(folder, LambdaCallback(on_train_batch_end=stop), every=every)
        again, found = run(folder, every=every)
        assert found == history
        assert bits(again) == bits(whole)
        assert again.rate() == whole.rate()
        assert (folder / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def test_a_finished_training_is_not_run_again(training_library: Library, tmp_path: Path) -> None:
    first = trained(training_library(), checkpoint=tmp_path)
    again = trained(training_library(), checkpoint=tmp_path, resume=True)
    assert again.step == first.step == 8
    assert bits(again) == bits(first)
    further = trained(training_library(), epochs=4, checkpoint=tmp_path, resume=True)
    assert bits(further) == bits(trained(training_library(), epochs=4))
    assert further.history is not None and further.history.epoch == [0, 1, 2, 3]


def test_a_stream_is_read_on_where_it_was(training_library: Library, tmp_path: Path) -> None:
    x, y = samples(100)
    batches = [(x[i : i + 7], y[i : i + 7]) for i in range(0, 100, 7)]

    def run(folder: Path, data: Any, fail: int, **options: Any) -> Trainer:
        trainer = Trainer(training_library())
        seen = []

        def stop(batch: int, logs: Any) -> None:
            seen.append(batch)
            if len(seen) == fail:
                raise KeyboardInterrupt

        options |= {"checkpoint": folder, "checkpoint_every": 1, "resume": True, "verbose": 0}
        trainer.fit(data, callbacks=[LambdaCallback(on_train_batch_end=stop)], **options)
        return trainer

    for make, options in (
        (lambda: batches, {"epochs": 2}),
        (lambda: iter(batches), {"epochs": 3, "steps_per_epoch": 4}),
    ):
        name = str(options["epochs"])
        whole = run(tmp_path / f"whole{name}", make(), 0, **options)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / name, make(), 6, **options)
        assert bits(run(tmp_path / name, make(), 0, **options)) == bits(whole)


@pytest.mark.parametrize("call", ["fsync", "replace", "mkstemp", "write"])
@pytest.mark.parametrize("turn", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_last_good_one(
    training_library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, turn: int
) -> None:
    trainer = trained(training_library(), checkpoint=tmp_path)
    good = bits(trainer)
    count = 0

    def full(real: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == turn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        return fails

    class File:
        def __init__(self, file: Any) -> None:
            self.file, self.write = file, full(file.write)

        def __enter__(self) -> File:
            self.file.__enter__()
            return self

        def __exit__(self, *args: Any) -> None:
            self.file.__exit__(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        if call == "write":
            fdopen = os.fdopen
            patch.setattr("nervure.runtime.files.os.fdopen", lambda *a, **o: File(fdopen(*a, **o)))
        elif call == "mkstemp":
            patch.setattr("tempfile.mkstemp", full(__import__("tempfile").mkstemp))
        else:
            patch.setattr(f"nervure.runtime.files.os.{call}", full(getattr(os, call)))
        trainer.train_on_batch(*samples(8))
        if turn <= {"fsync": 4, "replace": 2, "mkstemp": 2, "write": 2}[call]:
            with pytest.raises(NervureError, match=r"cannot write the checkpoint\n.*\n.*No space left.*\n.*is intact"):
                trainer.save(tmp_path)
        else:
            trainer.save(tmp_path)
            good = bits(trainer)
    again = Trainer(training_library())
    again.load(tmp_path)
    assert bits(again) in (good, bits(trainer) if (call, turn) == ("fsync", 4) else good)
    assert not list(tmp_path.glob(".nervure-*"))
    trainer.save(tmp_path)
    again.load(tmp_path)
    assert bits(again) == bits(trainer)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_really_full(training_library: Library, tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from nervure.runtime.trainer import Trainer\n"
        "trainer = Trainer(sys.argv[1])\n"
        "trainer.save(sys.argv[2])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n"
        "    trainer.step = 7\n"
        "    trainer.save(sys.argv[2])\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    assert hasattr(resource, "RLIMIT_FSIZE")
    command = [sys.executable, "-c", code, str(training_library()), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "NervureError cannot write the checkpoint" in done.stdout, done.stdout + done.stderr
    assert "File too large" in done.stdout and "the last good checkpoint is intact" in done.stdout
    assert Trainer(training_library()).load(tmp_path)["step"] == 0


def test_parameters_that_are_not_finite_are_not_saved(training_library: Library, tmp_path: Path) -> None:
    trainer = trained(training_library(), checkpoint=tmp_path)
    trainer.learning_rate = 3e38
    with pytest.raises(NervureError, match=r"the last checkpoint before it is|no checkpoint is written"):
        trainer.fit(*samples(29), epochs=3, checkpoint=tmp_path, checkpoint_every=1, verbose=0)
    again = Trainer(training_library())
    again.load(tmp_path)
    assert all(np.isfinite(a).all() for a in again.session.params().values())
    trainer.load(tmp_path)
    trainer.session.set_params({"dense.bias": np.array([1, np.inf, 0, 0], np.float32)})
    with pytest.raises(NervureError, match=r"'dense.bias' holds NaN or infinity: no checkpoint is written"):
        trainer.save(tmp_path)


def test_without_safetensors(training_library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(training_library())
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(MissingTool, match=r"checkpoints need safetensors\n.*pip install 'nervure\[train\]'"):
        trainer.save(tmp_path)


KILLED = """
import hashlib, os, signal, sys, time
library, folder, call, turn, pause = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
sys.path.insert(0, {tests!r})
import numpy as np
from nervure.runtime.callbacks import EarlyStopping, LambdaCallback, ReduceLROnPlateau
from nervure.runtime.trainer import Trainer
if call != "none":
    real, count = getattr(os, call), 0
    def deadly(*args, **options):
        global count
        count += 1
        if count == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(os, call, deadly)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((60, 12), dtype=np.float32), rng.integers(0, 4, 60)
trainer = Trainer(library, seed=11)
watch = [
    EarlyStopping("loss", patience=30, restore_best_weights=True),
    ReduceLROnPlateau("loss", factor=0.8, patience=1, min_delta=0.01),
    LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(pause),
                   on_train_begin=lambda logs: print("begun", file=sys.stderr, flush=True)),
]
history = trainer.fit(x, y, epochs=12, callbacks=watch, validation_split=0.2, checkpoint=folder, checkpoint_every=2,
                      resume=True, verbose=0)
found = {{**trainer.session.params(), **trainer.session.states()}}
print(hashlib.sha256(b"".join(found[n].tobytes() for n in sorted(found))).hexdigest(), history.history)
"""


def start(library: Path, folder: Path, call: str = "none", turn: int = 0, pause: float = 0.0) -> subprocess.Popen[str]:
    code = KILLED.format(tests=str(Path(__file__).parent.parent))
    command = [sys.executable, "-c", code, str(library), str(folder), call, str(turn), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str | None:
    """What it printed, or None where it was killed."""
    out, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), errors
    return out if process.returncode == 0 else None


@pytest.mark.slow
def test_killed_within_the_writing_of_a_checkpoint(training_library: Library, tmp_path: Path) -> None:
    expected = finish(start(training_library(), tmp_path / "whole"))
    assert expected
    for call, turns in {"fsync": (1, 2, 3, 4, 7), "replace": (1, 2, 3, 4), "unlink": (1, 2)}.items():
        for turn in turns:
            folder = tmp_path / f"{call}{turn}"
            assert finish(start(training_library(), folder, call, turn)) is None
            assert finish(start(training_library(), folder)) == expected
            assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(training_library: Library, tmp_path: Path) -> None:
    expected = finish(start(training_library(), tmp_path / "whole"))
    assert expected
    chance = random.Random(5)
    reached = []
    for trial in range(2):
        folder = tmp_path / str(trial)
        for _ in range(6):
            process = start(training_library(), folder, pause=0.005)
            assert process.stderr is not None
            assert process.stderr.readline() == "begun\n"
            time.sleep(chance.uniform(0.0, 0.25))
            process.kill()
            finish(process)
            if checkpoint.exists(folder):
                reached.append(checkpoint.load(folder)[1]["step"])
        assert finish(start(training_library(), folder)) == expected
    assert len(set(reached)) >= 3, reached
