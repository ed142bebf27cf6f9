"""Losses against formulas in numpy, against PyTorch, and their gradients against finite differences in float64."""

from __future__ import annotations

import math

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.autodiff import gradients, training_form
from nervure.compiler.interpret import interpret
from nervure.compiler.types import TensorType, type_of
from nervure.frontends.dsl.trace import Trace

L = nv.losses
RNG = np.random.default_rng(7)
B, C = 6, 5

REAL = RNG.normal(0, 1.5, (B, 3, 4))
OTHER = RNG.normal(0, 1.5, (B, 3, 4))
SCORES = RNG.normal(0, 2, (B, C))
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
CHANCES = RNG.uniform(0.02, 0.98, (B, C))
BITS = (RNG.uniform(size=(B, C)) > 0.5).astype(np.float64)
LABELS = np.array([0, 4, 2, 2, 1, 3])
ONE_HOT = np.eye(C)[LABELS]
MIX = RNG.dirichlet(np.ones(C), B)
COUNTS = RNG.integers(0, 6, (B, C)).astype(np.float64)
SAME = np.array([1.0, 0, 1, 1, 0, 0])
LEFT, RIGHT, FAR = (RNG.normal(0, 1, (B, C)) for _ in range(3))


def rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).mean(1)


def logs(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def away(a: np.ndarray, b: np.ndarray, shift: float = 0.0) -> np.ndarray:
    return np.linalg.norm(a - b + shift, axis=-1)


def huber(e: np.ndarray, delta: float) -> np.ndarray:
    return np.where(np.abs(e) <= delta, 0.5 * e**2, delta * np.abs(e) - 0.5 * delta**2)


def binary(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    return rows(-(t * np.log(p) + (1 - t) * np.log(1 - p)))


def contrasted(a: np.ndarray, b: np.ndarray, temperature: float) -> np.ndarray:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return -np.diag(logs(unit[0] @ unit[1].T / temperature))


def chance(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


SMOOTH = 0.9 * ONE_HOT + 0.1 / C
SIGNS = 2 * BITS - 1
# (loss, y_true, y_pred, the values expected)
CASES = {
    "mse": ("mse", REAL, OTHER, rows((REAL - OTHER) ** 2)),
    "mae": ("mean_absolute_error", REAL, OTHER, rows(np.abs(REAL - OTHER))),
    "mape": ("mape", REAL, OTHER, rows(100 * np.abs((REAL - OTHER) / REAL))),
    "msle": ("msle", COUNTS, CHANCES, rows((np.log1p(np.maximum(COUNTS, 1e-7)) - np.log1p(CHANCES)) ** 2)),
    "huber": ("huber", REAL, OTHER, rows(huber(OTHER - REAL, 1.0))),
    "huber 0.4": (L.Huber(0.4), REAL, OTHER, rows(huber(OTHER - REAL, 0.4))),
    "smooth l1": (L.SmoothL1Loss(beta=0.4), REAL, OTHER, rows(huber(OTHER - REAL, 0.4)) / 0.4),
    "log cosh": ("LogCosh", REAL, OTHER, rows(np.log(np.cosh(OTHER - REAL)))),
    "poisson": ("poisson", COUNTS, CHANCES, rows(CHANCES - COUNTS * np.log(CHANCES + 1e-7))),
    "poisson nll": ("PoissonNLLLoss", COUNTS, SCORES, rows(np.exp(SCORES) - COUNTS * SCORES)),
    "categorical": ("categorical_crossentropy", ONE_HOT, SHARES, -(ONE_HOT * np.log(SHARES)).sum(-1)),
    "categorical shares": ("categorical_crossentropy", MIX, 3 * SHARES, -(MIX * np.log(SHARES)).sum(-1)),
    "categorical logits": (L.CategoricalCrossentropy(True), MIX, SCORES, -(MIX * logs(SCORES)).sum(-1)),
    "categorical smooth": (
        L.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        ONE_HOT,
        SCORES,
        -(SMOOTH * logs(SCORES)).sum(-1),
    ),
    "sparse": ("sparse_categorical_crossentropy", LABELS, SHARES, -np.log(SHARES[np.arange(B), LABELS])),
    "sparse column": ("sparse_categorical_crossentropy", LABELS[:, None], SHARES, -np.log((SHARES * ONE_HOT).sum(1))),
    "sparse logits": (
        L.SparseCategoricalCrossentropy(from_logits=True),
        LABELS.astype(np.int64),
        SCORES,
        -(ONE_HOT * logs(SCORES)).sum(-1),
    ),
    "sparse smooth": (
        L.SparseCategoricalCrossentropy(True, label_smoothing=0.1),
        LABELS,
        SCORES,
        -(SMOOTH * logs(SCORES)).sum(-1),
    ),
    "sparse ignored": (
        L.SparseCategoricalCrossentropy(True, ignore_class=2),
        LABELS,
        SCORES,
        -(ONE_HOT * logs(SCORES)).sum(-1) * (LABELS != 2),
    ),
    "cross entropy": (
        "CrossEntropyLoss",
        LABELS.reshape(2, 3),
        REAL.reshape(2, 6, 6)[..., :3],
        -np.take_along_axis(logs(REAL.reshape(2, 6, 6)[..., :3], 1), LABELS.reshape(2, 1, 3), 1)[:, 0].mean(-1),
    ),
    "cross entropy shares": ("CrossEntropyLoss", MIX, SCORES, -(MIX * logs(SCORES)).sum(-1)),
    "nll": ("nll_loss", LABELS, logs(SCORES), -logs(SCORES)[np.arange(B), LABELS]),
    "binary": ("binary_crossentropy", BITS, CHANCES, binary(BITS, CHANCES)),
    "binary logits": (L.BinaryCrossentropy(from_logits=True), BITS, SCORES, binary(BITS, chance(SCORES))),
    "binary smooth": (L.BinaryCrossentropy(label_smoothing=0.2), BITS, CHANCES, binary(0.8 * BITS + 0.1, CHANCES)),
    "binary column": ("bce", BITS[:, 0], CHANCES[:, :1], binary(BITS[:, :1], CHANCES[:, :1])),
    "bce logits": (L.BCEWithLogitsLoss(), BITS, SCORES, binary(BITS, chance(SCORES))),
    "kl": ("kl_divergence", MIX, SHARES, (MIX * np.log(MIX / SHARES)).sum(-1)),
    "kl torch": (L.KLDivLoss(), MIX, logs(SCORES), (MIX * (np.log(MIX) - logs(SCORES))).sum(-1)),
    "kl torch logs": (
        L.KLDivLoss(log_target=True),
        np.log(MIX),
        logs(SCORES),
        (MIX * (np.log(MIX) - logs(SCORES))).sum(-1),
    ),
    "hinge": ("hinge", SIGNS, SCORES, rows(np.maximum(1 - SIGNS * SCORES, 0))),
    "hinge bits": ("hinge", BITS, SCORES, rows(np.maximum(1 - SIGNS * SCORES, 0))),
    "squared hinge": ("squared_hinge", SIGNS, SCORES, rows(np.maximum(1 - SIGNS * SCORES, 0) ** 2)),
    "categorical hinge": (
        "categorical_hinge",
        ONE_HOT,
        SCORES,
        np.maximum(1 + ((1 - ONE_HOT) * SCORES).max(-1) - (ONE_HOT * SCORES).sum(-1), 0),
    ),
    "margin": (
        L.MarginLoss(present=0.8),
        LABELS,
        CHANCES,
        (ONE_HOT * np.maximum(0.8 - CHANCES, 0) ** 2 + 0.5 * (1 - ONE_HOT) * np.maximum(CHANCES - 0.1, 0) ** 2).sum(1),
    ),
    "cosine": ("cosine_similarity", LEFT, RIGHT, -cosine(LEFT, RIGHT)),
    "cosine pairs": (
        L.CosineEmbeddingLoss(margin=0.2),
        2 * SAME - 1,
        [LEFT, RIGHT],
        np.where(SAME > 0, 1 - cosine(LEFT, RIGHT), np.maximum(cosine(LEFT, RIGHT) - 0.2, 0)),
    ),
    "contrastive": (
        L.ContrastiveLoss(margin=4.0),
        SAME,
        [LEFT, RIGHT],
        SAME * away(LEFT, RIGHT) ** 2 + (1 - SAME) * np.maximum(4 - away(LEFT, RIGHT), 0) ** 2,
    ),
    "contrastive distances": (
        "contrastive",
        SAME,
        CHANCES[:, :1],
        SAME * CHANCES[:, 0] ** 2 + (1 - SAME) * (1 - CHANCES[:, 0]) ** 2,
    ),
    "triplet": (
        L.TripletMarginLoss(margin=0.7),
        None,
        [LEFT, RIGHT, FAR],
        np.maximum(away(LEFT, RIGHT, 1e-6) - away(LEFT, FAR, 1e-6) + 0.7, 0),
    ),
    "triplet stacked": (
        "triplet",
        None,
        np.stack([LEFT, RIGHT, FAR], 1),
        np.maximum(away(LEFT, RIGHT, 1e-6) - away(LEFT, FAR, 1e-6) + 1, 0),
    ),
    "info nce": (L.InfoNCE(temperature=0.2), None, [LEFT, RIGHT], contrasted(LEFT, RIGHT, 0.2)),
    "info nce both": (
        L.InfoNCE(temperature=0.2, symmetric=True),
        None,
        [LEFT, RIGHT],
        0.5 * (contrasted(LEFT, RIGHT, 0.2) + contrasted(RIGHT, LEFT, 0.2)),
    ),
    "function": (lambda t, p: nv.maximum(0.9 * (t - p), 0.1 * (p - t)), REAL, OTHER, None),
    "one number": (lambda t, p: nv.mean((t - p) ** 2), REAL, OTHER, np.full(B, ((REAL - OTHER) ** 2).mean())),
}
CASES["function"] = (*CASES["function"][:3], rows(np.maximum(0.9 * (REAL - OTHER), 0.1 * (OTHER - REAL))))


@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_its_formula(case):
    loss, t, p, want = CASES[case]
    found = L.get(loss)(t, p)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=2e-7)
    narrow = [x.astype(np.float32) for x in p] if isinstance(p, list) else p.astype(np.float32)
    found = L.get(loss)(t, narrow)
    assert found.dtype == np.float32 and found.shape == (len(want),)
    np.testing.assert_allclose(found, want, rtol=3e-5, atol=3e-5)


class Problem:
    """The mean of a loss as a graph over float64 predictions, with its gradients."""

    def __init__(self, loss, t, p, before=lambda y: y):
        self.feeds = [np.asarray(x) for x in (p if isinstance(p, list) else [p])]
        with Trace("loss").active() as trace:
            inputs = [trace.input(f"p{i}", type_of(x)) for i, x in enumerate(self.feeds)]
            given = [before(x) for x in inputs]
            value = nv.mean(L.get(loss)(t, given if isinstance(p, list) else given[0]))
            trace.graph.output(value.value, "loss")
        self.graph = trace.graph
        training_form(self.graph, self.graph.outputs[0], [x.value for x in inputs])
        for i, grad in enumerate(gradients(self.graph, self.graph.outputs[0], [x.value for x in inputs])):
            self.graph.output(grad, f"grad{i}")
        self.graph.check()

    def run(self, feeds=None):
        return interpret(self.graph, self.feeds if feeds is None else feeds)


def numeric(problem: Problem, step: float = 1e-6) -> list[np.ndarray]:
    found = []
    for i, x in enumerate(problem.feeds):
        grad = np.zeros_like(x)
        for at in np.ndindex(*x.shape):
            ends = []
            for sign in (1, -1):
                moved = [y.copy() for y in problem.feeds]
                moved[i][at] += sign * step
                ends.append(problem.run(moved)[0])
            grad[at] = (ends[0] - ends[1]) / (2 * step)
        found.append(grad)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(case):
    loss, t, p, _ = CASES[case]
    problem = Problem(loss, t, p)
    for found, want in zip(problem.run()[1:], numeric(problem), strict=True):
        assert np.abs(want).max() > 1e-4
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-8)


# -- exact where the formulas overflow ---------------------------------------------------------------------------------

WIDE = np.array([[900.0, -900.0, 0.0], [-1e4, 1e4, 3.0]])
LAST = {
    "softmax": ("categorical_crossentropy", np.array([[0.0, 1, 0], [0, 0, 1]]), [1800.0, 9997.0], nv.softmax),
    "sparse": ("sparse_categorical_crossentropy", np.array([1, 2]), [1800.0, 9997.0], nv.softmax),
    "sigmoid": ("binary_crossentropy", np.array([[0.0, 1, 0], [0, 1, 1]]), None, nv.sigmoid),
}


@pytest.mark.parametrize("case", LAST)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scores_behind_the_last_activation_are_used(case, dtype):
    loss, t, want, before = LAST[case]
    problem = Problem(loss, t, WIDE.astype(dtype), before)
    value, grad = problem.run()
    if want is None:  # softplus(x) - x t
        want = rows(np.maximum(WIDE, 0) - WIDE * t + np.log1p(np.exp(-np.abs(WIDE))))
    np.testing.assert_allclose(value, np.mean(want), rtol=1e-6)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0.1


def test_probabilities_of_0_and_1_stay_finite():
    for loss, t, p in (
        ("categorical_crossentropy", np.eye(3), np.roll(np.eye(3), 1, 0)),
        ("sparse_categorical_crossentropy", np.arange(3), np.roll(np.eye(3), 1, 0)),
        ("binary_crossentropy", np.eye(3), 1 - np.eye(3)),
        ("kl_divergence", np.eye(3), np.roll(np.eye(3), 1, 0)),
    ):
        value, grad = Problem(loss, t, p).run()
        assert 5 < value < 17 and np.isfinite(grad).all(), loss


def test_equal_points_have_finite_gradients():
    same = np.zeros((4, 3))
    for loss, t, p in (
        (L.ContrastiveLoss(), np.zeros(4), [same, same]),
        ("triplet", None, [same, same, same]),
        ("cosine_similarity", same, same),
        (L.CosineEmbeddingLoss(), np.ones(4), [same, same]),
        ("info_nce", None, [same, same]),
    ):
        assert all(np.isfinite(x).all() for x in Problem(loss, t, p).run()), loss


def test_a_softmax_in_front_of_a_loss_of_scores_is_warned_of():
    with pytest.warns(UserWarning, match="comes from softmax"):
        Problem("CrossEntropyLoss", LABELS, SCORES, nv.softmax)


# -- shapes and names --------------------------------------------------------------------------------------------------

ZEROS = np.zeros((4, 3), np.float32)
MISFITS = {
    "sparse targets": ("categorical_crossentropy", np.zeros(4), ZEROS, "sparse_"),
    "one-hot targets": ("sparse_categorical_crossentropy", ZEROS, ZEROS, "one-hot"),
    "no broadcasting": ("mse", np.zeros((1, 3)), ZEROS, "same shape"),
    "wrong width": ("mse", np.zeros((4, 2)), ZEROS, "3 outputs a sample and y_true 2"),
    "one class": ("sparse_categorical_crossentropy", np.zeros(4), ZEROS[:, :1], "binary_crossentropy"),
    "labels of pixels": (L.SparseCategoricalCrossentropy(), np.zeros((4, 5)), np.zeros((4, 3, 5)), "axis=1"),
    "two outputs": ("mse", ZEROS, [ZEROS, ZEROS], "loss=["),
    "no pair": ("info_nce", None, ZEROS, "[batch, 2, size]"),
    "batch lost": (lambda t, p: nv.sum(p, 0), ZEROS, ZEROS, "batch"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_clear_error(case):
    loss, t, p, part = MISFITS[case]
    with pytest.raises(nv.NervureError) as caught:
        L.get(loss)(t, p)
    assert part in str(caught.value) and "test_losses.py" in str(caught.value)


def test_names_are_found_however_they_are_written():
    assert type(L.get("MeanSquaredError")) is type(L.get("mean_squared_error")) is type(L.get("MSELoss")) is L.MSELoss
    assert L.get("BCEWithLogitsLoss").from_logits and L.get("cross_entropy").from_logits
    assert L.get(L.Huber).delta == 1.0 and L.get(L.Huber(delta=2)).delta == 2.0
    assert L.Huber(name="mine").name == "mine" and L.SmoothL1Loss(beta=3).delta == 3.0
    with pytest.raises(nv.NervureError, match="sparse_categorical_crossentropy"):
        L.get("sparse_crossentropy")
    with pytest.raises(nv.NervureError, match=r"Huber\(delta=1.0\)"):
        L.Huber(margin=1)
    with pytest.raises(nv.NervureError, match="number above 0"):
        L.Huber(-1)


def test_losses_say_what_their_targets_are():
    scores = TensorType("float32", (8, 10, 7))
    assert L.get("mse").target(scores) == scores
    assert L.get("sparse_categorical_crossentropy").target(scores) == TensorType("int32", (8, 10))
    assert L.get("cross_entropy").target(scores) == TensorType("int32", (8, 7))
    assert L.get("triplet").target(scores) is None
    assert L.get("contrastive").target(scores) == TensorType("float32", (8,))


class Quantile(L.Loss):
    def call(self, y_true, y_pred):
        return nv.maximum(0.9 * (y_true - y_pred), 0.1 * (y_pred - y_true))


def test_a_class_of_ones_own():
    np.testing.assert_allclose(L.get(Quantile)(REAL, OTHER), CASES["function"][3], rtol=1e-6)
    assert Quantile().name == "quantile"


def combined(losses, weights, targets, predictions):
    with Trace("total").active() as trace:
        total, parts = L.total(losses, targets, predictions(trace), weights)
        found = trace.run([total, *parts.values()])
    return found[0], dict(zip(parts, found[1:], strict=True))


def test_the_losses_of_several_outputs_are_added_with_their_weights():
    mse, mae = rows((REAL - OTHER) ** 2), rows(np.abs(LEFT - RIGHT))
    pair = lambda trace: [nv.constant(OTHER), nv.constant(RIGHT)]  # noqa: E731
    value, parts = combined(["mse", "mae"], [1.0, 0.25], [REAL, LEFT], pair)
    np.testing.assert_allclose(value, mse + 0.25 * mae, rtol=1e-6)
    np.testing.assert_allclose(parts["output_1"], mae, rtol=1e-6)
    named = lambda trace: {"a": nv.constant(OTHER), "b": nv.constant(RIGHT)}  # noqa: E731
    value, parts = combined({"b": "mae"}, None, {"b": LEFT}, named)
    np.testing.assert_allclose(value, mae, rtol=1e-6)
    assert list(parts) == ["b"]
    value, _ = combined("mse", {"b": 2}, {"a": REAL, "b": LEFT}, named)
    np.testing.assert_allclose(value, mse + 2 * rows((LEFT - RIGHT) ** 2), rtol=1e-6)
    value, _ = combined("info_nce", None, None, lambda trace: [nv.constant(LEFT), nv.constant(RIGHT)])
    np.testing.assert_allclose(value, contrasted(LEFT, RIGHT, 0.1), rtol=1e-6)
    for wrong in ({"c": "mse"}, ["mse"], {}):
        with pytest.raises(nv.NervureError):
            combined(wrong, None, {}, named)


# -- PyTorch -----------------------------------------------------------------------------------------------------------

TORCH = {
    "MSELoss": (REAL, OTHER, {}),
    "L1Loss": (REAL, OTHER, {}),
    "SmoothL1Loss": (REAL, OTHER, {"beta": 0.3}),
    "HuberLoss": (REAL, OTHER, {"delta": 0.3}),
    "CrossEntropyLoss": (LABELS, SCORES, {"label_smoothing": 0.1}),
    "NLLLoss": (LABELS, logs(SCORES), {}),
    "BCELoss": (BITS, CHANCES, {}),
    "BCEWithLogitsLoss": (BITS, SCORES, {}),
    "PoissonNLLLoss": (COUNTS, SCORES, {}),
    "CosineEmbeddingLoss": (2 * SAME - 1, [LEFT, RIGHT], {"margin": 0.1}),
    "TripletMarginLoss": (None, [LEFT, RIGHT, FAR], {"margin": 0.5}),
    "KLDivLoss": (MIX, logs(SCORES), {}),
}


@pytest.mark.parametrize("name", TORCH)
def test_losses_with_pytorchs_names_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    t, p, options = TORCH[name]
    given = [torch.tensor(x, requires_grad=True) for x in (p if isinstance(p, list) else [p])]
    more = {"reduction": "batchmean"} if name == "KLDivLoss" else {}
    value = getattr(torch.nn, name)(**options, **more)(*given, *([] if t is None else [torch.tensor(t)]))
    value.backward()
    found, *grads = Problem(getattr(L, name)(**options), t, p).run()
    assert math.isclose(found, value.item(), rel_tol=1e-7)
    for grad, want in zip(grads, given, strict=True):
        np.testing.assert_allclose(grad, want.grad.numpy(), rtol=1e-6, atol=1e-9)
