"""Weight-only quantization of whole graphs: errors of rounding, GPTQ beside the nearest, files, ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.passes import canonicalize
from nervure.compiler.quantize.gptq import gptq, loss
from nervure.compiler.quantize.groups import best_scales, codes_of, rounder
from nervure.compiler.quantize.learning import _better
from nervure.compiler.quantize.weights import halve_weights, quantize_weights, weights_of
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

IDS = np.array([3, 1, 49, 0, 7])


def _network(seed: int = 0) -> Graph:
    """A table, two products, a 3x3 and a depthwise convolution."""
    rng = np.random.default_rng(seed)

    def held(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    g = Graph("net")
    rows = g.input("rows", TensorType("int64", (5,)))
    x = g.add("gather", g.const(held(50, 64), "table"), rows, axis=0)
    x = g.add("relu", g.add("matmul", x, g.const(held(64, 40), "w1")))
    x = g.add("add", g.add("matmul", x, g.const(held(40, 96), "w2")), g.const(held(96), "b2"))
    x = g.add("reshape", x, shape=(1, 96, 5, 1))
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    x = g.add("conv", x, g.const(held(20, 96, 3, 3), "wc"), g.const(held(20), "bc"), group=1, **window)
    x = g.add("conv", g.add("relu", x), g.const(held(20, 1, 3, 3), "wd"), group=20, **window)
    g.output(x, "y")
    return g


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).sum() / np.square(b).sum()))


@pytest.mark.parametrize(("bits", "most"), [(4, 0.25), (8, 0.02)])
def test_nearest(bits: int, most: float) -> None:
    g = _network()
    q = quantize_weights(g, bits, 32)
    assert _relative(interpret(q, [IDS])[0], interpret(g, [IDS])[0]) < most
    rows = {r.name: r for r in q.meta["weights"]}
    assert {n: r.bits for n, r in rows.items()} == {**dict.fromkeys(("table", "w1", "w2", "wc"), bits), "wd": 8}
    assert rows["table"].scales == 50 * 2 and rows["w2"].scales == 2 * 96 and rows["wc"].scales == 20 * 3 * 9
    ops = [canonicalize(q).node(k).op for k in canonicalize(q).order()]
    assert ops.count("gather_narrow") == ops.count("conv_narrow") == 1 and ops.count("matmul_narrow") == 2
    assert ops.count("conv") == 1  # depthwise


def test_halves_are_as_good_as_their_bits() -> None:
    g = _network()
    expected = interpret(g, [IDS])[0]
    assert _relative(interpret(halve_weights(g, "float16"), [IDS])[0], expected) < 1e-3
    assert _relative(interpret(halve_weights(g, "bfloat16"), [IDS])[0], expected) < 1e-2


def test_halves_that_float16_does_not_hold_stay() -> None:
    g = Graph("g")
    w = np.full((8, 16), 1e5, np.float32)
    g.output(g.add("matmul", g.input("x", TensorType("float32", (1, 8))), g.const(w, "w")))
    assert not halve_weights(g, "float16").find("cast") and halve_weights(g, "bfloat16").find("cast")


def test_scales_have_the_least_squared_error() -> None:
    """Beside every clip of a fine grid, no scale does noticeably better; all are float16 numbers."""
    w = np.random.default_rng(0).standard_t(3, size=(32, 6)).astype(np.float32)
    group = np.zeros(32, np.int64)
    scales = best_scales(w, group, 1, 4, np.ones(32))
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))

    def error(scale: np.ndarray) -> np.ndarray:
        return np.square(codes_of(w, scale, group, 4) * scale - w).sum(axis=0)

    tried = [error(np.abs(w).max(0, keepdims=True).astype(np.float32) * f / 7) for f in np.linspace(0.4, 1, 200)]
    assert (error(scales) <= np.min(tried, axis=0) * 1.03).all()
    assert (error(scales) < tried[-1]).any()


def test_groups_of_zeros_and_tiny_weights() -> None:
    w = np.zeros((64, 8), np.float32)
    w[:, 1] = 1e-6
    w[40:, 2] = 3e-41
    w[0, 3] = 3e38
    g = Graph("g")
    g.output(g.add("matmul", g.input("x", TensorType("float32", (1, 64))), g.const(w, "w")))
    q = quantize_weights(g, 4, 32)
    scale = next(q.node(k).array for k in q.find("const") if q.node(k).names[0] == "w.scale")
    assert np.isfinite(scale).all() and (scale > 0).all()
    (y,) = interpret(q, [np.ones((1, 64), np.float32)])
    assert np.isfinite(y).all() and y[0, 0] == 0 and abs(y[0, 1] - 64e-6) < 4e-6


def test_gptq_of_one_layer_beats_the_nearest() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 64)) @ rng.normal(size=(64, 64))  # correlated inputs
    w = rng.normal(size=(64, 24))
    group = np.arange(64) // 32
    moments = x.T @ x
    scales = best_scales(w, group, 2, 4, np.ones(64))
    near = codes_of(w, scales, group, 4) * scales[group].astype(np.float64) - w
    done = gptq(w, moments, rounder(scales, group, 4)) - w
    assert loss(done, moments) < 0.6 * loss(near, moments)
    assert loss(done, moments) == pytest.approx(float(np.square(x @ done).sum()))
    codes = (done + w) / scales[group]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
    assert codes.min() >= -8 and codes.max() <= 7


def test_gptq_leaves_pruned_weights_out() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 64)) @ rng.normal(size=(64, 64))
    w = rng.normal(size=(64, 24)) * (rng.random((64, 24)) < 0.3)
    group, moments = np.arange(64) // 32, x.T @ x
    scales = best_scales(w, group, 2, 4, np.ones(64))
    wide = scales[group].astype(np.float64)
    near, done = codes_of(w, scales, group, 4) * wide, gptq(w, moments, rounder(scales, group, 4))
    best = _better(w, scales, group, 4, moments) * wide
    assert (done[w == 0] == 0).all() and (best[w == 0] == 0).all()
    assert loss(best - w, moments) < 0.9 * loss(near - w, moments)


@pytest.mark.slow
def test_gptq_of_a_network() -> None:
    g = _network()
    rng = np.random.default_rng(4)
    samples = [{"rows": rng.integers(0, 50, 5)} for _ in range(64)]
    near, learned = quantize_weights(g, 4, 32), quantize_weights(g, 4, 32, "gptq", samples)
    tests = [rng.integers(0, 50, 5) for _ in range(32)]
    errors = {
        name: np.mean([_relative(interpret(q, [t])[0], interpret(g, [t])[0]) for t in tests])
        for name, q in (("near", near), ("gptq", learned))
    }
    assert errors["gptq"] < errors["near"]
    again = quantize_weights(g, 4, 32, "gptq", samples)
    assert interpret(again, [IDS])[0].tobytes() == interpret(learned, [IDS])[0].tobytes()
    methods = {r.name: r.method for r in learned.meta["weights"]}
    assert methods == {"table": "nearest", "w1": "gptq", "w2": "gptq", "wc": "gptq", "wd": "nearest"}


def test_a_share_of_the_weights_has_8_bits() -> None:
    sizes = {w.name: 0 for w in weights_of(_network())}
    bits = {r.name: r.bits for r in quantize_weights(_network(), 4, 32, wider=0.3).meta["weights"]}
    assert sizes.keys() == bits.keys()
    assert bits == {"table": 8, "w1": 8, "w2": 4, "wc": 4, "wd": 8} or (bits["wc"] == 4 and bits["w1"] == 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bits": 3}, "3 bits"),
        ({"group": 5}, "groups of 5"),
        ({"method": "awq"}, "awq"),
        ({"method": "gptq"}, "samples"),
        ({"float_patterns": ("nothing*",)}, "nothing"),
        ({"wider": 2.0}, "share"),
    ],
)
def test_what_cannot_be_meant_is_an_error(given: dict[str, object], said: str) -> None:
    with pytest.raises(NervureError, match=said):
        quantize_weights(_network(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error(bad: float) -> None:
    g = Graph("g")
    w = np.ones((8, 16), np.float32)
    w[3, 3] = bad
    g.output(g.add("matmul", g.input("x", TensorType("float32", (1, 8))), g.const(w, "weights")))
    for narrow in (quantize_weights, halve_weights):
        with pytest.raises(NervureError, match="weights"):
            narrow(g)


def test_float_patterns_keep_weights() -> None:
    q = quantize_weights(_network(), float_patterns=("w1", "t*"))
    assert {r.name for r in q.meta["weights"]} == {"w2", "wc", "wd"}


def test_onnx_runtime_computes_the_same(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from nervure.frontends.onnx import load, save

    options = ort.SessionOptions()  # without it, ONNX Runtime rounds activations to 8 bits for such products
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    g = _network()
    forms = (quantize_weights(g, 4, 32), quantize_weights(g, 8, 32), halve_weights(g), halve_weights(g, "bfloat16"))
    for narrow in forms:
        save(narrow, tmp_path / "net.onnx")
        (theirs,) = ort.InferenceSession(str(tmp_path / "net.onnx"), options).run(None, {"rows": IDS})
        (ours,) = interpret(narrow, [IDS])
        assert _relative(theirs, ours) < 1e-5
        back = canonicalize(load(tmp_path / "net.onnx", {}, {}))
        assert len(back.find("matmul_narrow")) == 2 and len(back.find("gather_narrow")) == 1
        assert interpret(back, [IDS])[0].tobytes() == interpret(canonicalize(narrow), [IDS])[0].tobytes()
