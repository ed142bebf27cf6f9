"""LSTM and GRU through the post-training quantizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from nervure import targets
from nervure.compiler.interpret import interpret
from nervure.compiler.passes import canonicalize
from nervure.compiler.pipeline import EntryGraph, Options, compile_entries, plan_program
from nervure.compiler.quantize.quantizer import quantize
from nervure.runtime.session import load
from recurrent_nets import network


@pytest.mark.slow
@pytest.mark.parametrize("activations", ["int8", "uint8"])
@pytest.mark.parametrize("output", [0, 1], ids=["y", "last h"])
@pytest.mark.parametrize("op", ["lstm", "gru"])
def test_the_layer_and_what_follows_become_integers(op: str, output: int, activations: str) -> None:
    from nervure.compiler.quantize.settings import Settings

    graph, x = network(op, output)
    made = quantize(graph, {"x": x}, Settings(activations=activations))
    assert [m.name for m in made.sites.recurrences] == ["cell"]
    lowered = canonicalize(made.graph, check=True)
    ops = {lowered.node(n).op for n in lowered}
    assert {f"{op}_integer", "matmul_integer"} <= ops and op not in ops
    got, wanted = (np.stack([interpret(g, [one[None]])[0] for one in x]) for g in (lowered, graph))
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "op, options, words",
    [
        ("lstm", {"float_patterns": ("cel*",)}, "float pattern"),
        ("gru", {"activations": "int16"}, "16 bits"),
        ("rnn", {}, "no integer form"),
    ],
)
def test_why_a_layer_stays_in_float(op: str, options: dict[str, Any], words: str) -> None:
    from nervure.compiler.quantize.settings import Settings

    graph, x = network(op)
    made = quantize(graph, {"x": x}, Settings(**options))
    assert not made.sites.recurrences and words in made.sites.floats["cell"]
    assert canonicalize(made.graph).find(op)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_spoken_digits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is trained here loses at most half a point, and less than half of its weights' bytes are left."""
    if not (models.SHARED / "data" / "spoken_digits_8k.npz").exists():
        pytest.skip("needs ../shared/data")
    import nervure as nv
    from nervure import layers

    monkeypatch.setenv("NERVURE_DATA", str(models.SHARED / "data"))
    monkeypatch.setattr(sys, "path", [str(models.ROOT / "examples"), *sys.path])
    import spoken_digits as example

    sound, y, speaker = nv.datasets.spoken_digits()
    x, test = example.log_mel(sound), example.held_out(y, speaker)
    x = (x - x[~test].mean()) / x[~test].std()
    net = nv.Sequential(
        [
            nv.Input(x.shape[1:]),
            getattr(layers, kind)(64, bidirectional=True, return_sequences=True),
            layers.GlobalAveragePooling1D(data_format="channels_last"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    net.compile(optimizer=nv.optimizers.Adam(0.003), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    net.fit(x[~test], y[~test], 32, 6, verbose=0)
    nv.save_onnx(net, tmp_path / "net.onnx")
    graph = nv.load_onnx(tmp_path / "net.onnx")
    made = quantize(graph, {"input": x[~test][::48][:50]}).graph
    right, size = {}, {}
    for name, form in (("float", graph), ("int8", made)):
        path = tmp_path / f"{name}.so"
        size[name] = len(plan_program([EntryGraph(form, "infer")], targets.host(), Options())[0].const)
        compile_entries([EntryGraph(form, "infer")], targets.host(), path, Options())
        program = load(path)
        guesses = np.array([program.run(None, {"input": one[None]})[0].argmax() for one in x[test]])
        right[name] = float((guesses == y[test]).mean())
    print(kind, right, size)
    assert right["float"] > 0.95
    assert right["int8"] >= right["float"] - 0.005
    assert size["int8"] <= 0.35 * size["float"]
