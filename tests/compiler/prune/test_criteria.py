"""Criteria, held against their definitions in numpy, finite differences and PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph, Value
from nervure.compiler.prune import running
from nervure.compiler.prune.criteria import scores
from nervure.compiler.prune.slopes import heads
from nervure.compiler.prune.structure import find_structure
from nervure.compiler.prune.units import unit_scores
from nervure.compiler.prune.weights import positions, scales, weights
from nervure.compiler.quantize.observe import with_outputs
from nervure.compiler.types import TensorType
from nervure.errors import NervureError

RNG = np.random.default_rng(7)
X = RNG.normal(size=(5, 6)).astype(np.float32)
W = (RNG.normal(size=(6, 4)) / 2).astype(np.float32)


def _linear(link: str = "") -> Graph:
    """x [1,6] @ w [6,4], and a link."""
    graph = Graph("linear")
    x = graph.input("x", TensorType("float32", (1, 6)))
    y = graph.add("matmul", x, graph.const(W, "w"), names=["scores"])
    if link:
        y = graph.add(link, y, **({} if link == "sigmoid" else {"axis": 1}))
    graph.output(y, "y")
    return graph


def _network() -> Graph:
    """Convolutions (one grouped), a batch norm and a dense layer; smooth, so that differences tell slopes."""
    rng = np.random.default_rng(1)
    graph = Graph("network")

    def const(name: str, *shape: int, low: float = -0.7) -> Value:
        return graph.const(rng.uniform(low, 0.9, shape).astype(np.float32), name)

    attrs = {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}
    x = graph.input("x", TensorType("float32", (1, 3, 5, 4)))
    a = graph.add("conv", x, const("a.w", 4, 3, 3, 3), const("a.b", 4), names=["a"], group=1, **attrs)
    norm = (const("n.scale", 4), const("n.bias", 4), const("n.mean", 4), const("n.var", 4, low=0.4))
    t = graph.add("tanh", graph.add("batch_norm", a, *norm, epsilon=1e-3, names=["n"]))
    b = graph.add("tanh", graph.add("conv", t, const("b.w", 6, 2, 3, 3), names=["b"], group=2, **attrs), names=["bt"])
    pooled = graph.add("reduce_mean", b, axes=(2, 3), keepdims=False)
    graph.output(graph.add("matmul", pooled, const("c.w", 6, 3), names=["c"]), "y")
    return graph


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# -- without data ------------------------------------------------------------------------------------------------------


def test_magnitudes() -> None:
    graph = _network()
    held = {w.name: w.array for w in weights(graph)}
    assert list(held) == ["a.w", "b.w", "c.w"]
    for name, array in held.items():
        np.testing.assert_allclose(scores(graph, "l1")[name], np.abs(array), rtol=1e-6)
        np.testing.assert_allclose(scores(graph, "l2")[name], np.square(array.astype(np.float64)), rtol=1e-6)


def test_scales_of_batch_norms() -> None:
    graph = _network()
    assert scales(graph) == {"a.w": "n.scale"}
    found = scores(graph, "bn_scale")
    constants = {graph.tensor_name(Value(k)): graph.node(k).array for k in graph.find("const")}
    gamma = np.abs(constants["n.scale"])
    np.testing.assert_allclose(found["n.scale"], gamma)
    np.testing.assert_allclose(found["a.w"], np.abs(constants["a.w"]) * gamma[:, None, None, None], rtol=1e-6)
    np.testing.assert_allclose(found["b.w"], np.abs(constants["b.w"]), rtol=1e-6)
    (group,) = [g for g in find_structure(graph).groups if g.name == "a"]
    each = [gamma[list(next(s.index for s in u.slices if s.tensor == "n.scale"))].sum() for u in group.units]
    np.testing.assert_allclose(unit_scores(group, found, "bn_scale"), np.array(each) / np.mean(each), rtol=1e-6)


def test_no_batch_norm_is_said() -> None:
    with pytest.raises(NervureError, match="needs batch norms"):
        scores(_linear(), "bn_scale")


def test_random_scores_are_those_of_the_seed() -> None:
    graph = _network()
    first, again, other = (scores(graph, "random", seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(first[n], again[n]) and not np.array_equal(first[n], other[n]) for n in first)


def test_an_unknown_criterion_and_missing_samples_are_refused() -> None:
    with pytest.raises(NervureError, match="no criterion"):
        scores(_linear(), "l3")
    for criterion in ("taylor", "movement", "wanda"):
        with pytest.raises(NervureError, match="needs samples"):
            scores(_linear(), criterion)


# -- slopes ------------------------------------------------------------------------------------------------------------


def test_classes_behind_a_softmax_and_as_bare_scores() -> None:
    classes = np.array([0, 3, 1, 1, 2])
    arriving = _softmax(X.astype(np.float64) @ W) - np.eye(4)[classes]
    slopes = X[:, :, None] * arriving[:, None, :]
    for graph in (_linear("softmax"), _linear("log_softmax"), _linear()):
        for labels in (classes, classes[:, None], np.eye(4, dtype=np.float32)[classes]):
            taylor = scores(graph, "taylor", {"x": X}, labels=labels)["w"]
            np.testing.assert_allclose(taylor, np.abs(W * slopes).mean(axis=0), rtol=1e-4, atol=1e-7)
            movement = scores(graph, "movement", {"x": X}, labels=labels)["w"]
            np.testing.assert_allclose(movement, (-W * slopes).mean(axis=0), rtol=1e-4, atol=1e-6)


def test_numbers_and_yes_or_no() -> None:
    wanted = RNG.normal(size=(5, 4))
    slopes = X[:, :, None] * (X.astype(np.float64) @ W - wanted)[:, None, :]
    found = scores(_linear(), "taylor", {"x": X}, labels=wanted)["w"]
    np.testing.assert_allclose(found, np.abs(W * slopes).mean(axis=0), rtol=1e-4, atol=1e-7)
    said = (wanted > 0).astype(np.int64)
    slopes = X[:, :, None] * (1 / (1 + np.exp(-(X.astype(np.float64) @ W))) - said)[:, None, :]
    found = scores(_linear("sigmoid"), "taylor", {"x": X}, labels=said)["w"]
    np.testing.assert_allclose(found, np.abs(W * slopes).mean(axis=0), rtol=1e-4, atol=1e-7)


def test_given_gradients_are_taken() -> None:
    slope = RNG.normal(size=W.shape)
    np.testing.assert_allclose(scores(_linear(), "taylor", gradients={"w": slope})["w"], np.abs(W * slope))
    np.testing.assert_allclose(scores(_linear(), "movement", gradients={"w": slope})["w"], -W * slope)
    with pytest.raises(NervureError, match="among the gradients"):
        scores(_linear(), "taylor", gradients={})


def test_slopes_of_a_network_by_differences() -> None:
    graph, x, label = _network(), RNG.normal(size=(1, 3, 5, 4)).astype(np.float32), 2

    def loss(name: str, place: tuple[int, ...], by: float) -> float:
        moved = graph.copy()
        key = next(k for k in moved.find("const") if moved.tensor_name(Value(k)) == name)
        array = moved.node(key).array.copy()
        array[place] += by
        moved.set_node(key, attrs={"value": array})
        (scored,) = interpret(moved, [x])
        return -float(np.log(_softmax(scored.astype(np.float64))[0, label]))

    found = scores(graph, "movement", [{"x": x}], labels=np.array([label]))
    for name, place in (("a.w", (1, 2, 0, 1)), ("b.w", (4, 1, 2, 2)), ("c.w", (3, 2))):
        weight = next(w.array for w in weights(graph) if w.name == name)[place]
        slope = (loss(name, place, 5e-3) - loss(name, place, -5e-3)) / 1e-2
        assert found[name][place] == pytest.approx(-weight * slope, rel=2e-2, abs=2e-5)


def test_slopes_as_pytorch_has_them() -> None:
    torch = pytest.importorskip("torch")
    graph = _network()
    held = {graph.tensor_name(Value(k)): torch.tensor(graph.node(k).array) for k in graph.find("const")}
    learned = [held[n].requires_grad_() for n in ("a.w", "b.w", "c.w")]
    xs, classes = RNG.normal(size=(3, 3, 5, 4)).astype(np.float32), np.array([1, 0, 2])
    wanted = {n: np.zeros(held[n].shape) for n in ("a.w", "b.w", "c.w")}
    norm = [held[f"n.{n}"] for n in ("mean", "var", "scale", "bias")]
    for x, y in zip(xs, classes, strict=True):
        a = torch.nn.functional.conv2d(torch.tensor(x[None]), held["a.w"], held["a.b"], padding=1)
        t = torch.tanh(torch.nn.functional.batch_norm(a, *norm, eps=1e-3))
        b = torch.tanh(torch.nn.functional.conv2d(t, held["b.w"], padding=1, groups=2)).mean(dim=(2, 3))
        loss = torch.nn.functional.cross_entropy(b @ held["c.w"], torch.tensor([y]))
        for name, slope in zip(wanted, torch.autograd.grad(loss, learned), strict=True):
            wanted[name] += np.abs(held[name].detach().numpy() * slope.numpy()) / len(xs)
    found = scores(graph, "taylor", {"x": xs}, labels=classes)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-6)


def test_without_labels_targets_are_drawn_from_the_predictions() -> None:
    """A network that is sure draws what it says, and has no slope; the mean of squares is Fisher's information."""
    sure = np.zeros((1, 6), np.float32)
    sure[0] = 400 * W[:, 0] - 200 * W[:, 1:].sum(axis=1)
    assert _softmax(sure.astype(np.float64) @ W).max() > 1 - 1e-12
    assert scores(_linear("softmax"), "taylor", {"x": sure})["w"].max() < 1e-6
    one = np.repeat(X[:1], 400, axis=0)
    found = scores(_linear("softmax"), "taylor", {"x": one}, seed=3)["w"]
    p = _softmax(X[:1].astype(np.float64) @ W)[0]
    wanted = np.abs(W * X[0][:, None]) * (2 * p * (1 - p))  # E|p - hit| of a hit with probability p
    np.testing.assert_allclose(found, wanted, rtol=0.2)
    assert np.array_equal(found, scores(_linear("softmax"), "taylor", {"x": one}, seed=3)["w"])
    numbers = scores(_linear(), "taylor", {"x": one}, seed=3)["w"]
    np.testing.assert_allclose(numbers, np.abs(W * X[0][:, None]) * np.sqrt(2 / np.pi), rtol=0.2)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 1]), "2 labels for 5 samples"),
        (np.array([0, 1, 2, 3, 4]), "class 4"),
        (np.array([0, 1, -1, 3, 2]), "class -1"),
        (np.zeros((5, 7)), "do not fit"),
        (np.array(list("abcde")), "labels of"),
        ({"z": np.zeros(5, int)}, "labels for 'z'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: object, said: str) -> None:
    with pytest.raises(NervureError, match=said):
        scores(_linear("softmax"), "taylor", {"x": X}, labels=labels)


def test_samples_that_do_not_fit_are_refused() -> None:
    for given in ({"z": X}, {"x": X[:, :3]}, {"x": np.full((2, 6), np.nan, np.float32)}, []):
        for criterion in ("taylor", "wanda"):
            with pytest.raises(NervureError):
                scores(_linear("softmax"), criterion, given)  # type: ignore[arg-type]


def test_heads_are_what_is_before_the_last_softmax() -> None:
    graph = _linear("softmax")
    (head,) = heads(graph)
    assert (head.name, head.link, head.axis, graph.tensor_name(head.scores)) == ("y", "softmax", 1, "scores")


# -- activations -------------------------------------------------------------------------------------------------------


def _norms(array: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(np.square(np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)).sum(axis=1))


def test_wanda() -> None:
    graph, xs = _network(), RNG.normal(size=(3, 3, 5, 4)).astype(np.float32)
    found = scores(graph, "wanda", {"x": xs})
    held = {w.name: np.abs(w.array.astype(np.float64)) for w in weights(graph)}
    values = {graph.tensor_name(v): v for k in graph for v in graph.values(k)}
    reads: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "a.w": lambda n: n[None, :, None, None],
        "b.w": lambda n: np.repeat(n.reshape(2, 2), 3, axis=0)[:, :, None, None],
        "c.w": lambda n: n[:, None],
    }
    for name, node in (("a.w", "a"), ("b.w", "b"), ("c.w", "c")):
        read = graph.args(values[node].node)[0]
        assert read is not None
        seen = np.concatenate([interpret(with_outputs(graph, [read]), [x[None]])[0] for x in xs])
        np.testing.assert_allclose(found[name], held[name] * reads[name](_norms(seen, 1)), rtol=1e-4)


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_wanda_of_recurrent_layers(op: str) -> None:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[op]
    graph, rng = Graph("recurrent"), np.random.default_rng(5)
    x = graph.input("x", TensorType("float32", (7, 1, 3)))
    shapes = {"w": (2, gates * 4, 3), "r": (2, gates * 4, 4)}
    w, r = (graph.const(rng.normal(size=s).astype(np.float32) / 2, n) for n, s in shapes.items())
    y = graph.add(op, x, w, r, direction="bidirectional")
    graph.output(y, "y")
    data = rng.normal(size=(7, 1, 3)).astype(np.float32)
    found = scores(graph, "wanda", [{"x": data}])
    said = interpret(graph, [data])[0]  # [T,D,B,H]
    np.testing.assert_allclose(found["w"], np.abs(graph.node(w).array) * _norms(data, 2), rtol=1e-4)
    norms = np.stack([_norms(said[:, d], 2) for d in range(2)])[:, None, :]
    np.testing.assert_allclose(found["r"], np.abs(graph.node(r).array) * norms, rtol=1e-4)
    assert positions(graph) == {"w": 7, "r": 7}


@pytest.mark.slow
def test_compiled_and_interpreted_scores_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, xs = _network(), RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
    for criterion in ("taylor", "movement", "wanda"):
        little = scores(graph, criterion, {"x": xs}, labels=np.array([1, 2]))
        with monkeypatch.context() as patched:
            patched.setattr(running, "LITTLE", 0.0)
            much = scores(graph, criterion, {"x": xs}, labels=np.array([1, 2]))
        for name, array in little.items():
            np.testing.assert_allclose(much[name], array, rtol=1e-3, atol=1e-6)


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "random"])
def test_units_sum_over_what_makes_and_what_reads_them(criterion: str) -> None:
    graph = _network()
    held = {w.name: w.array.astype(np.float64) for w in weights(graph)}
    group = find_structure(graph).groups[0]
    found = scores(graph, criterion, gradients={n: np.ones(a.shape) for n, a in held.items()})
    got = unit_scores(group, found, criterion, seed=1)
    parts = [[held[s.tensor].take(s.index, s.axis) for s in u.slices if s.tensor in held] for u in group.units]
    sums = np.array([sum(np.square(p).sum() if criterion == "l2" else np.abs(p).sum() for p in u) for u in parts])
    if criterion == "random":
        assert np.array_equal(got, unit_scores(group, found, criterion, seed=1)) and len(set(got)) == len(got)
    elif criterion == "taylor":
        np.testing.assert_allclose(got, sums, rtol=1e-6)
    else:
        sums = np.sqrt(sums) if criterion == "l2" else sums
        np.testing.assert_allclose(got, sums / sums.mean(), rtol=1e-6)
