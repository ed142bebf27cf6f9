"""``nervure train``: what it writes, what it says, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

ort.set_default_logger_severity(4)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes that one layer tells apart; some are held out."""
    random = np.random.default_rng(3)
    y = random.integers(0, 3, 120)
    x = (random.standard_normal((120, 4)) * 0.3 + 2 * np.eye(3, 4)[y]).astype(np.float32)
    path = tmp_path / "train.npz"
    np.savez(path, x=x[:96], y=y[:96], x_val=x[96:], y_val=y[96:])
    return path


def rewritten(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_classes(nervure, make_model, data, tmp_path):
    model = make_model(tmp_path / "net.onnx", last="Softmax", batch="N")
    out, curves, folder = tmp_path / "out.onnx", tmp_path / "c.svg", tmp_path / "ck"
    files = ["--data", data, "-o", out, "--curves", curves, "--checkpoint", folder]
    done = nervure("train", model, *files, "--lr", "0.05", "--batch-size", 16, "--epochs", 8, "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["loss"] == "sparse_categorical_crossentropy" and found["loss_guessed"]
    assert "3 probabilities" in " ".join(done.err.split()) and "epoch 8/8" in done.err
    assert len(found["history"]["loss"]) == 8 and found["epochs"][-1] == 8
    assert found["final"]["val_accuracy"] > 0.9
    assert (found["samples"], found["validation_samples"], found["steps"]) == (96, 24, 48)
    assert found["elements"] == found["trained_elements"] == 15
    assert found["train_arena_bytes"] >= found["infer_arena_bytes"] > 0
    assert curves.read_text().startswith("<svg") and folder.is_dir()

    held = np.load(data)
    (p,) = ort.InferenceSession(out).run(None, {"x": held["x_val"]})
    assert np.mean(p.argmax(1) == held["y_val"]) == pytest.approx(found["final"]["val_accuracy"])


def test_resumed_as_if_never_stopped(nervure, make_model, data, tmp_path):
    model = make_model(tmp_path / "net.onnx", last="Softmax")
    common = ["--data", data, "--batch-size", 16, "--seed", 5]
    whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
    assert nervure("train", model, *common, "-o", whole, "--epochs", 4).code == 0
    for epochs in (2, 4):
        options = ["-o", part, "--epochs", epochs, "--checkpoint", tmp_path / "ck", "--resume"]
        assert nervure("train", model, *common, *options).code == 0
    x = np.load(data)["x_val"][:2]
    results = [ort.InferenceSession(p).run(None, {"x": x})[0] for p in (whole, part)]
    assert results[0].tobytes() == results[1].tobytes()


def test_numbers_and_chosen_weights(nervure, make_model, tmp_path):
    model = make_model(tmp_path / "net.onnx", last="Tanh", classes=2, batch=1)
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 4)).astype(np.float32)
    data = rewritten(tmp_path / "d.npz", x=x, y=np.tanh(x[:, :2]))
    done = nervure(
        "train", model, "-d", data, "-o", tmp_path / "o.onnx", "--epochs", 2, "--train", "b", "--optimizer", "sgd",
        "--validation-split", 0.2, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = done.json
    assert found["loss"] == "mean_squared_error" and found["metrics"] == ["mae"] and "val_mae" in found["final"]
    assert (found["optimizer"], found["trained_elements"], found["elements"]) == ("sgd", 2, 10)
    nervure_words = nervure(
        "train", model, "-d", data, "-o", tmp_path / "o.onnx", "--epochs", 1, "--metrics", "none", "--loss", "mae"
    )
    assert nervure_words.code == 0
    assert "trained 10 of 10 weights" in nervure_words.out and "loss:" not in nervure_words.err.split("epoch")[0]


def test_what_is_refused(nervure, make_model, data, tmp_path):
    model = make_model(tmp_path / "net.onnx", last="Softmax")
    held = dict(np.load(data))
    odd = tmp_path / "odd.npz"

    def refused(*options: object, file: Path = data) -> str:
        done = nervure("train", model, "--data", file, "-o", tmp_path / "no.onnx", *options)
        assert done.code == 1 and not (tmp_path / "no.onnx").exists(), done.err
        return " ".join(done.err.split())

    assert "no array 'y'" in refused(file=rewritten(odd, x=held["x"]))
    assert "no array 'x'" in refused(file=rewritten(odd, images=held["x"], y=held["y"]))
    assert "no array 'y_val'" in refused(file=rewritten(odd, x=held["x"], y=held["y"], x_val=held["x"]))
    assert "the step takes [4]" in refused(file=rewritten(odd, x=held["x"][:, :3], y=held["y"]))
    assert "labels out of range: 7" in refused(file=rewritten(odd, x=held["x"], y=np.full(96, 7)))
    assert "different numbers of samples" in refused(file=rewritten(odd, x=held["x"], y=held["y"][:50]))
    assert "the data set is empty" in refused(file=rewritten(odd, x=held["x"][:0], y=held["y"][:0]))
    assert "cannot read the data" in refused(file=tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    assert "this is no .npz file" in refused(file=tmp_path / "text.npz")
    assert "mean_squared_error" in refused("--loss", "mean_sqared_error")
    assert "no weight is named 'c*'" in refused("--train", "c*")
    assert "--checkpoint DIR" in refused("--resume")
    assert "x_val is given" in refused("--validation-split", 0.5)
    assert nervure("train", model, "--data", data, "-o", tmp_path / "no.so").code == 1
