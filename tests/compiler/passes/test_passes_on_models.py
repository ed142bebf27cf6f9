"""The passes on real models: results kept, composite forms found. Needs ``../shared/models``; skipped without."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.passes import canonicalize
from nervure.frontends.onnx import load

MODELS = Path(__file__).parents[4] / "shared" / "models"
FILES = {f.stem: f for f in sorted([*MODELS.glob("*.onnx"), *MODELS.glob("skeletons/*.onnx")])}
QUICK = ("tiny_ic01", "bert_mini_128", "silero_vad_16k", "lenet", "ppocrv2_cls")

# what must be found, and what must not be left
FOUND = {
    "bert_mini_128": {"layer_norm": 9, "gelu": 4, "attention": 4},
    "vit_tiny": {"layer_norm": 25, "gelu": 12, "attention": 12},
    "mobilenet_v3_small": {"hard_swish": 19, "hard_sigmoid": 9},
    "ppocrv2_cls": {"hard_swish": 18, "hard_sigmoid": 9},
    "oww_embedding": {"clip": 19, "leaky_relu": 19},
    "tiny_ic01": {"conv": 9, "reduce_mean": 1, "softmax": 1},
    "resnet50": {"conv": 53, "add": 17},
}
GONE = ("identity", "batch_norm", "erf", "pow", "div", "minimum", "maximum", "tile")


def proto(path):
    """The model; the weights that a skeleton lacks are drawn from its seed."""
    import onnx

    model = onnx.load(path)
    if path.parent.name == "skeletons":
        spec = importlib.util.spec_from_file_location("materialize", MODELS / "materialize.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.fill(model)
    return model


def inputs(name, graph):
    stored = MODELS / "inputs" / f"{name}.npz"
    given = dict(np.load(stored)) if stored.exists() else {}
    random = np.random.default_rng(0)
    for key in graph.inputs:
        node = graph.node(key)
        drawn = random.standard_normal(node.types[0].dims)
        given.setdefault(node.names[0], np.abs(drawn).astype(node.types[0].dtype))
    return {graph.node(k).names[0]: given[graph.node(k).names[0]] for k in graph.inputs}


@pytest.mark.skipif(not FILES, reason="no models beside the checkout")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FILES] or ["none"]
)
def test_a_model_keeps_its_results(name, kit):
    graph = load(proto(FILES[name]))
    text = graph.text()
    after = canonicalize(graph, check=True)
    assert graph.text() == text
    assert canonicalize(after).text() == after.text()
    left = kit.operations(after)
    assert {op: left.get(op, 0) for op in FOUND.get(name, {})} == FOUND.get(name, {})
    assert not set(left) & set(GONE)
    assert sum(left.values()) <= sum(kit.operations(graph).values())
    stored = [sum(g.node(k).types[0].nbytes for k in g.find("const")) for g in (graph, after)]
    assert stored[1] <= 1.02 * stored[0] + 4096
    given = inputs(name, graph)
    for a, b in zip(interpret(graph, given), interpret(after, given), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=2e-5 * max(1e-6, float(np.abs(a).max())))
