"""From a float network and samples to a quantized one, by compiled graphs."""

from __future__ import annotations

import models
import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.quantize.measure import PARTS
from nervure.compiler.quantize.observe import compiled
from nervure.compiler.quantize.quantizer import CANDIDATES, prepare, quantize
from nervure.compiler.quantize.settings import Settings
from nervure.compiler.types import TensorType
from nervure.errors import NervureError
from quantized_nets import pictures, separable

pytestmark = pytest.mark.slow


def noise(graph: Graph, x: np.ndarray) -> float:
    exact, found = (np.concatenate([interpret(g, {"x": p[None]})[0] for p in x]) for g in (separable(9.0), graph))
    return float(np.square(found - exact).sum() / np.square(exact).sum())


def test_a_network_with_uneven_channels() -> None:
    graph, x, fresh = separable(9.0), pictures(16), pictures(8, seed=9)
    made = quantize(graph, {"x": x})
    made.graph.check()
    assert made.method in CANDIDATES and noise(made.graph, fresh) < 1e-3
    assert sorted(made.facts) == sorted(k.name for k in made.sites.layers)
    for facts in made.facts.values():
        assert 15 < facts["sqnr_db"] < 80 and set(facts["parts"]) == set(PARTS)
        assert sum(facts["causes"].values()) == pytest.approx(1)
    again = quantize(graph, {"x": x}, observed=made, measure=False)
    assert again.graph.text() == made.graph.text()  # and so the same bytes for the same samples
    with compiled(made.graph) as run:
        for part in fresh:
            assert np.array_equal(
                run({"x": part[None]})[0].argmax(), interpret(made.graph, {"x": part[None]})[0].argmax()
            )


def test_repairs_help_where_weights_have_few_bits() -> None:
    graph, x, fresh = separable(9.0), pictures(32), pictures(8, seed=9)
    plain = Settings(weight_bits=3, method="minmax", equalize=False, bias_correction=False)
    repaired = Settings(weight_bits=3, method="minmax", equalize=False, rounding="adaptive")
    before, after = (noise(quantize(graph, {"x": x}, s, measure=False).graph, fresh) for s in (plain, repaired))
    assert after < 0.7 * before


def test_values_that_are_not_finite_name_the_tensor_and_the_sample() -> None:
    g = Graph("log")
    x = g.input("x", TensorType("float32", (1, 4)))
    logs = g.add("log", x, names=["logs"])
    g.output(g.add("matmul", logs, g.const(np.ones((4, 2), np.float32), "w")), "y")
    samples = np.ones((3, 4), np.float32)
    for bad, kind in ((-1.0, "NaN"), (0.0, "infinity")):
        samples[2, 1] = bad
        with pytest.raises(NervureError, match=f"{kind} in tensor 'logs' for calibration sample 2"):
            quantize(g, {"x": samples})


def test_a_quantized_network_is_refused() -> None:
    made = quantize(separable(), {"x": pictures(2)}, Settings(method="minmax", equalize=False), measure=False)
    with pytest.raises(NervureError, match="quantized already"):
        prepare(made.graph)


def test_smoothing_computes_the_same() -> None:
    from nervure.compiler.quantize.place import sites
    from nervure.compiler.quantize.smooth import smooth

    g = Graph("norm")
    x = g.input("x", TensorType("float32", (6, 16)))
    rng = np.random.default_rng(0)
    scale = g.const(np.where(np.arange(16) == 3, 60.0, 1.0).astype(np.float32), "gain")
    normed = g.add("layer_norm", x, scale, g.const(np.zeros(16, np.float32), "shift"), axis=1, epsilon=1e-5)
    w = g.const(rng.normal(0, 0.2, (16, 8)).astype(np.float32), "w")
    g.output(g.add("matmul", normed, w), "y")
    plain = prepare(g)
    samples = [{"x": rng.normal(0, 1, (6, 16)).astype(np.float32)} for _ in range(4)]
    smoothed = smooth(plain, sites(plain, Settings()), samples, 0.5)
    a, b = interpret(plain, samples[0])[0], interpret(smoothed, samples[0])[0]
    assert np.allclose(a, b, rtol=1e-4, atol=1e-4)
    errors = [
        np.square(interpret(quantize(g, samples, s, measure=False).graph, samples[0])[0] - a).sum()
        for s in (Settings(method="minmax"), Settings(method="minmax", smooth=0.5))
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.skipif(not (models.SHARED / "data" / "kws_500.npz").exists(), reason="no shared data")
def test_keyword_spotting_keeps_its_accuracy() -> None:
    from nervure.frontends.onnx import load

    with np.load(models.SHARED / "data" / "kws_500.npz") as held:
        x, y = ((held["x"].astype(np.float32) - 83) * np.float32(0.5847029))[..., None], held["y"]
    graph = load(models.model("tiny_kws01")[0])
    name = graph.node(graph.inputs[0]).names[0]
    made = quantize(graph, {name: x[:100]}, measure=False)
    right = []
    for g in (graph, made.graph):
        with compiled(g) as run:
            right.append(
                np.mean([run({name: p[None]})[0].argmax() == t for p, t in zip(x[100:], y[100:], strict=True)])
            )
    assert right[0] > 0.88 and right[0] - right[1] <= 0.003 + 1e-9
