"""Distillation: the loss against its formula, PyTorch and finite differences; and the teacher inside of the step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nervure as nv
import numpy as np
import pytest
from nervure import layers as L
from nervure.frontends.dsl.trace import Trace
from nervure.frontends.training.step import training_entries

SPARSE = "sparse_categorical_crossentropy"
SCE = nv.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(3)
TEACHER, STUDENT = RNG.normal(0, 3, (6, 5)), RNG.normal(0, 2, (6, 5))
BATCH = 16
X = RNG.standard_normal((64, 6)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(np.int32)


def soft(teacher: np.ndarray, student: np.ndarray, t: float) -> np.ndarray:
    """T² KL(p || q), the batch first."""
    p, q = (np.exp(a / t) / np.exp(a / t).sum(-1, keepdims=True) for a in (teacher, student))
    return t * t * (p * (np.log(p) - np.log(q))).sum(-1)


def slope(teacher: np.ndarray, student: np.ndarray, t: float) -> np.ndarray:
    """Of the mean over the batch, by nervure."""
    with Trace("slope").active() as trace:
        x = trace.constant(student)
        found = nv.grad(nv.mean(nv.losses.soft_loss(trace.constant(teacher), x, t)), x)
        return trace.run([found])[0]


def big(softmax: bool = False) -> nv.Sequential:
    layers = [nv.Input((6,)), L.Dense(48, "relu"), L.BatchNorm(), L.Dropout(0.5), L.Dense(2)]
    return nv.Sequential([*layers, *([L.Softmax()] if softmax else [])], name="big")


def small(softmax: bool = False) -> nv.Sequential:
    return nv.Sequential([nv.Input((6,)), L.Dense(8, "relu"), L.Dense(2, "softmax" if softmax else None)], name="small")


@pytest.mark.parametrize("t", [1.0, 4.0, 20.0])
def test_the_soft_loss_is_its_formula(t: float) -> None:
    np.testing.assert_allclose(nv.losses.soft_loss(TEACHER, STUDENT, t), soft(TEACHER, STUDENT, t), rtol=1e-7)


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_its_gradient_is_that_of_finite_differences(t: float) -> None:
    found, step = slope(TEACHER, STUDENT, t), 1e-6
    for at in np.ndindex(STUDENT.shape):
        ends = []
        for sign in (1, -1):
            moved = STUDENT.copy()
            moved[at] += sign * step
            ends.append(soft(TEACHER, moved, t).mean())
        assert found[at] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-8)


def test_its_gradient_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    f, t = torch.nn.functional, 4.0
    x = torch.tensor(STUDENT, requires_grad=True)
    value = f.kl_div(f.log_softmax(x / t, -1), f.softmax(torch.tensor(TEACHER) / t, -1), reduction="batchmean") * t * t
    value.backward()
    np.testing.assert_allclose(slope(TEACHER, STUDENT, t), x.grad.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(soft(TEACHER, STUDENT, t).mean(), value.item(), rtol=1e-9)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_step_s_loss_is_the_sum_of_both(softmax: bool) -> None:
    """Scores or probabilities, with a teacher that computes as at inference: its batch norm by running statistics, no
    dropout."""
    teacher, student = big(softmax), small(softmax)
    state = {n: a + 0.3 for n, a in teacher.state_dict().items()}
    teacher.load_state_dict(state)
    loss = nv.losses.Distillation(teacher, SPARSE if softmax else SCE, alpha=0.3, temperature=3.0)
    student.compile("sgd", loss, ["accuracy"])
    scores = [np.log(n(X[:BATCH])) if softmax else n(X[:BATCH]) for n in (teacher, student)]
    wide = [s.astype(np.float64) for s in scores]
    logs = wide[1] - np.log(np.exp(wide[1]).sum(-1, keepdims=True))
    wanted = 0.3 * -logs[np.arange(BATCH), Y[:BATCH]].mean() + 0.7 * soft(*wide, 3.0).mean()
    assert student.test_on_batch(X[:BATCH], Y[:BATCH])["loss"] == pytest.approx(wanted, rel=1e-4)
    assert student.train_on_batch(X[:BATCH], Y[:BATCH])["loss"] == pytest.approx(wanted, rel=1e-4)


def test_the_teacher_is_constant_and_none_of_the_network() -> None:
    teacher, student = big(), small()
    student.ready()
    names = list(student.state_dict())
    training = nv.Training(nv.losses.Distillation(teacher, SCE), "sgd", batch=BATCH)
    before = {n: a.copy() for n, a in teacher.state_dict().items()}
    for entry in training_entries(student, training, ({"batch": 1},))[0]:
        stored = [entry.graph.node(k).names[0] for op in ("param", "state") for k in entry.graph.find(op)]
        assert not [n for n in stored if n.startswith("teacher")]
        assert entry.function == "infer" or any(n.startswith("teacher") for n in constants(entry.graph))
    assert list(student.state_dict()) == names
    student.compile("adam", training.loss)
    student.fit(X, Y, BATCH, 2, verbose=0)
    assert all(np.array_equal(before[n], a) for n, a in teacher.state_dict().items())


def constants(graph: Any) -> list[str]:
    return [graph.node(k).names[0] for k in graph.find("const")]


def test_a_network_learns_its_teacher_without_labels() -> None:
    teacher, student = big(), small()
    teacher.compile(nv.optimizers.Adam(0.01), SCE, ["accuracy"])
    teacher.fit(X, Y, BATCH, 30, verbose=0)
    loss = nv.losses.Distillation(teacher)
    student.compile(nv.optimizers.Adam(0.01), loss)
    history = student.fit(X, batch_size=BATCH, epochs=40, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]
    same = (student.predict(X).argmax(1) == teacher.predict(X).argmax(1)).mean()
    assert same > 0.9


def test_a_pruned_network_learns_from_what_it_was() -> None:
    """The teacher is the network itself as it was when the loss was made: here written as a function, whose layers are
    made when it is traced."""

    @nv.network
    def net(x: nv.Input((6,))):
        return L.Dense(2, name="head")(L.Dropout(0.2)(L.Dense(32, "relu", name="body")(x)))

    net.compile(nv.optimizers.Adam(0.01), SCE)
    net.fit(X, Y, BATCH, 20, verbose=0)
    dense, names = net.predict(X), list(net.state_dict())
    loss = nv.losses.Distillation(net, SCE, alpha=0.0, temperature=2.0)
    nv.sparsify(net, 0.6)
    net.compile(nv.optimizers.Adam(0.003), loss)
    at_first = net.evaluate(X, Y, BATCH)
    assert at_first == pytest.approx(soft(dense, net.predict(X), 2.0).mean(), rel=1e-3)
    net.fit(X, Y, BATCH, 20, verbose=0)
    assert net.evaluate(X, Y, BATCH) < 0.5 * at_first and list(net.state_dict()) == names
    assert (net.state_dict()["body.weight"] == 0).mean() == pytest.approx(0.6, abs=0.01)


def test_a_file_teaches_by_the_order_of_its_inputs(tmp_path: Path) -> None:
    teacher = big(softmax=True)
    nv.save_onnx(teacher, tmp_path / "teacher.onnx")

    @nv.network
    def student(features: nv.Input((6,))):
        return L.Dense(2)(features)

    both = []
    for source in (teacher, tmp_path / "teacher.onnx"):
        student.compile("sgd", nv.losses.Distillation(source, SCE))
        both.append(student.test_on_batch(X[:BATCH], Y[:BATCH])["loss"])
    assert both[0] == pytest.approx(both[1], rel=1e-6)


def test_labels_outside_are_found_and_what_does_not_fit_is_one_error() -> None:
    student = small()
    student.compile("sgd", nv.losses.Distillation(big(), SCE))
    with pytest.raises(nv.NervureError, match="class"):
        student.fit(X, np.full(64, 7, np.int32), BATCH, verbose=0)

    @nv.network
    def pair(a: nv.Input((6,)), b: nv.Input((6,))):
        return L.Dense(2)(a + b)

    wide = nv.Sequential([nv.Input((6,)), L.Dense(3)], name="wide")
    for make, said in (
        (lambda: nv.losses.Distillation(big(), SCE, alpha=1.5), "alpha must be"),
        (lambda: nv.losses.Distillation(big(), SCE, temperature=0), "temperature must be"),
        (lambda: nv.losses.Distillation(pair, SCE), "the teacher takes a, b"),
        (lambda: nv.losses.Distillation(wide, SCE), "same classes"),
    ):
        with pytest.raises(nv.NervureError, match=said):
            net = small()
            net.compile("sgd", make())
            net.fit(X, Y, BATCH, verbose=0)
