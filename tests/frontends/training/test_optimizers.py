"""Optimizers: what the graphs do over many steps, against a plain numpy form of each and against PyTorch."""

from __future__ import annotations

import nervure as nv
import numpy as np
import pytest
from nervure.compiler.interpret import interpret
from nervure.compiler.ir import Graph
from nervure.compiler.types import type_of
from nervure.frontends.dsl.tensor import Tensor
from nervure.frontends.dsl.trace import Trace

O = nv.optimizers  # noqa: E741
STEPS = 20
RATE = 0.03


class Quadratic:
    """sum(curve (w - goal)²) / 2 over two parameters: its gradients are known and change from step to step."""

    def __init__(self, dtype=np.float32):
        rng = np.random.default_rng(3)
        self.start = {"dense.weight": rng.normal(0, 1, (4, 3)).astype(dtype), "dense.bias": rng.normal(0, 1, 3)}
        self.start = {name: w.astype(dtype) for name, w in self.start.items()}
        self.goal = {name: rng.normal(0, 1, w.shape) for name, w in self.start.items()}
        self.curve = {name: 10 ** rng.uniform(-2, 1, w.shape) for name, w in self.start.items()}

    def grads(self, w):
        return {name: (self.curve[name] * (w[name] - self.goal[name])).astype(w[name].dtype) for name in w}


def update(optimizer, params) -> Graph:
    """One update as a graph of the gradients and the learning rate."""
    with Trace("update").active() as trace:
        stored = [(name, Tensor(trace, trace.graph.param(w, name))) for name, w in params.items()]
        grads = [trace.input(f"g{i}", type_of(w)) for i, w in enumerate(params.values())]
        optimizer.apply(trace, stored, grads, trace.input("learning_rate", type_of(np.float32(0))))
    trace.graph.check()
    return trace.graph


def run(optimizer, problem, steps=STEPS, rates=None):
    graph, state = update(optimizer, problem.start), {}
    for i in range(steps):
        w = {name: state.get(name, problem.start[name]) for name in problem.start}
        rate = np.float32(rates[i] if rates else optimizer.learning_rate)
        interpret(graph, [*problem.grads(w).values(), rate], state)
    return state


# -- numpy: one function for each rule, in float64 ---------------------------------------------------------------------


def sgd(s, w, g, rate, t, momentum=0.0, nesterov=False):
    s["m"] = momentum * s.get("m", 0) + g
    return w - rate * (g + momentum * s["m"] if nesterov else s["m"] if momentum else g)


def adam(s, w, g, rate, t, b1=0.9, b2=0.999, eps=1e-8, amsgrad=False):
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
    s["top"] = np.maximum(s.get("top", 0), s["v"])
    v = (s["top"] if amsgrad else s["v"]) / (1 - b2**t)
    return w - rate * s["m"] / (1 - b1**t) / (np.sqrt(v) + eps)


def rmsprop(s, w, g, rate, t, rho=0.99, momentum=0.0, eps=1e-8, centered=False):
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g * g
    s["a"] = rho * s.get("a", 0) + (1 - rho) * g
    s["b"] = momentum * s.get("b", 0) + g / (np.sqrt(s["v"] - (s["a"] ** 2 if centered else 0)) + eps)
    return w - rate * s["b"]


def adagrad(s, w, g, rate, t, start=0.0, eps=1e-10):
    s["sum"] = s.get("sum", start) + g * g
    return w - rate * g / (np.sqrt(s["sum"]) + eps)


def adadelta(s, w, g, rate, t, rho=0.9, eps=1e-6):
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g * g
    step = np.sqrt(s.get("d", 0) + eps) / np.sqrt(s["v"] + eps) * g
    s["d"] = rho * s.get("d", 0) + (1 - rho) * step * step
    return w - rate * step


def lion(s, w, g, rate, t, b1=0.9, b2=0.99):
    m = s.get("m", np.zeros_like(g))
    s["m"] = b2 * m + (1 - b2) * g
    return w - rate * np.sign(b1 * m + (1 - b1) * g)


def expected(rule, problem, steps=STEPS, rates=None, decay=0.0, decoupled=False, clip=None, **options):
    w = {name: x.astype(np.float64) for name, x in problem.start.items()}
    slots = {name: {} for name in w}
    for t in range(1, steps + 1):
        rate, grads = rates[t - 1] if rates else RATE, problem.grads(w)
        grads = clip(grads) if clip else grads
        for name, g in grads.items():
            g = g if decoupled else g + decay * w[name]
            held = w[name] * (1 - rate * decay) if decoupled else w[name]
            w[name] = rule(slots[name], held, g, rate, t, **options)
    return w


CASES = {
    "sgd": (O.SGD(RATE), sgd, {}),
    "sgd momentum": (O.SGD(RATE, momentum=0.9), sgd, {"momentum": 0.9}),
    "sgd nesterov": (O.SGD(RATE, 0.9, True, weight_decay=0.1), sgd, {"momentum": 0.9, "nesterov": True, "decay": 0.1}),
    "adam": (O.Adam(RATE), adam, {}),
    "adam betas": (O.Adam(lr=RATE, betas=(0.7, 0.9), eps=1e-3), adam, {"b1": 0.7, "b2": 0.9, "eps": 1e-3}),
    "adam no mean": (O.Adam(RATE, beta_1=0.0), adam, {"b1": 0.0}),
    "adam decay": (O.Adam(RATE, weight_decay=0.1), adam, {"decay": 0.1}),
    "amsgrad": (O.Adam(RATE, amsgrad=True), adam, {"amsgrad": True}),
    "adamw": (O.AdamW(RATE), adam, {"decay": 0.01, "decoupled": True}),
    "adamw decay": (O.AdamW(RATE, weight_decay=0.3), adam, {"decay": 0.3, "decoupled": True}),
    "rmsprop": (O.RMSprop(RATE), rmsprop, {}),
    "rmsprop keras": (O.RMSprop(RATE, rho=0.9, momentum=0.5), rmsprop, {"rho": 0.9, "momentum": 0.5}),
    "rmsprop centered": (O.RMSprop(RATE, alpha=0.9, centered=True), rmsprop, {"rho": 0.9, "centered": True}),
    "adagrad": (O.Adagrad(RATE), adagrad, {}),
    "adagrad start": (O.Adagrad(RATE, initial_accumulator_value=0.1), adagrad, {"start": 0.1}),
    "adadelta": (O.Adadelta(RATE), adadelta, {}),
    "lion": (O.Lion(RATE), lion, {}),
    "lion decay": (O.Lion(RATE, weight_decay=0.1), lion, {"decay": 0.1, "decoupled": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_is_its_rule(case):
    optimizer, rule, options = CASES[case]
    problem = Quadratic()
    found, want = run(optimizer, problem), expected(rule, problem, **options)
    for name, w in want.items():
        assert found[name].dtype == np.float32
        assert np.abs(w - problem.start[name]).max() > 1e-3
        np.testing.assert_allclose(found[name], w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_is_exact(case):
    """Bias corrections near 0 must not lose digits: 1e-5 relative after one step is what PyTorch is compared by."""
    optimizer, rule, options = CASES[case]
    problem = Quadratic()
    found, want = run(optimizer, problem, 1), expected(rule, problem, 1, **options)
    for name, start in problem.start.items():
        np.testing.assert_allclose(found[name], want[name], rtol=1e-6, atol=2e-7)
        np.testing.assert_allclose(found[name] - start, want[name] - start, rtol=1e-4, atol=3e-7)


def test_the_learning_rate_is_an_input():
    rates = [0.1 / (1 + i) for i in range(STEPS)]
    problem = Quadratic()
    found = run(O.SGD(momentum=0.9), problem, rates=rates)
    for name, w in expected(sgd, problem, rates=rates, momentum=0.9).items():
        np.testing.assert_allclose(found[name], w, rtol=2e-5, atol=2e-6)


def test_double_precision_stays_double():
    problem = Quadratic(np.float64)
    found, want = run(O.Adam(RATE), problem, 3), expected(adam, problem, 3)
    for name, w in want.items():
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], w, rtol=1e-6)


def test_half_precision_is_computed_in_single():
    problem = Quadratic(np.float16)
    found = run(O.Adam(RATE), problem, 3)
    assert found["dense.weight"].dtype == np.float16
    assert found["optimizer/dense.weight/m"].dtype == np.float32
    np.testing.assert_allclose(found["dense.weight"], expected(adam, problem, 3)["dense.weight"], atol=5e-3)


# -- clipping, decay, accumulation, averages ---------------------------------------------------------------------------


def norm(*arrays):
    return np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))


def whole(grads):
    return {n: g * min(1.0, 0.5 / (norm(*grads.values()) + 1e-6)) for n, g in grads.items()}


CLIPS = {
    "clipvalue": (0.2, lambda grads: {n: np.clip(g, -0.2, 0.2) for n, g in grads.items()}),
    "clipnorm": (0.5, lambda grads: {n: g * min(1.0, 0.5 / (norm(g) + 1e-6)) for n, g in grads.items()}),
    "global_clipnorm": (0.5, whole),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_clipping(kind):
    limit, clip = CLIPS[kind]
    problem = Quadratic()
    found = run(O.SGD(RATE, momentum=0.5, **{kind: limit}), problem)
    for name, w in expected(sgd, problem, momentum=0.5, clip=clip).items():
        np.testing.assert_allclose(found[name], w, rtol=2e-5, atol=2e-6)


def test_clipping_leaves_small_gradients_alone():
    problem = Quadratic()
    plain = run(O.SGD(RATE), problem)
    for kind in CLIPS:
        for name in problem.start:
            np.testing.assert_array_equal(run(O.SGD(RATE, **{kind: 1e6}), problem)[name], plain[name])


def test_parameters_can_be_left_out_of_weight_decay():
    problem = Quadratic()
    found = run(O.AdamW(RATE, weight_decay=0.5, exclude_from_weight_decay=["bias$"]), problem)
    decayed, plain = (expected(adam, problem, decay=d, decoupled=True) for d in (0.5, 0.0))
    np.testing.assert_allclose(found["dense.weight"], decayed["dense.weight"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(found["dense.bias"], plain["dense.bias"], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "lion"])
def test_accumulated_gradients_make_one_update_of_their_mean(name):
    """Three steps with accumulate=3 are one with the mean gradient; nothing moves in between."""
    make = lambda **more: O.NAMES[name](RATE, global_clipnorm=1.0, ema_momentum=0.9, **more)  # noqa: E731
    problem = Quadratic()
    rng = np.random.default_rng(0)
    grads = [[rng.normal(0, 2, w.shape).astype(np.float32) for w in problem.start.values()] for _ in range(9)]
    one, many = update(make(), problem.start), update(make(accumulate=3), problem.start)
    want: dict = {}
    found: dict = {}
    for i in range(0, 9, 3):
        interpret(one, [*(np.mean(g, 0) for g in zip(*grads[i : i + 3], strict=True)), np.float32(RATE)], want)
        for j in range(3):
            before = {k: v.copy() for k, v in found.items() if k in want}
            interpret(many, [*grads[i + j], np.float32(RATE)], found)
            for k, v in before.items():
                assert np.array_equal(v, found[k]) == (j < 2), (k, j)
        for k, v in want.items():
            np.testing.assert_allclose(found[k], v, rtol=1e-5, atol=1e-6, err_msg=k)
    assert found["optimizer/accumulated"] == 0 and not found["optimizer/dense.bias/gradient"].any()


def test_parameters_are_averaged():
    problem = Quadratic()
    average = {name: w.astype(np.float64) for name, w in problem.start.items()}
    for steps in range(1, 6):
        found = run(O.SGD(RATE, ema_momentum=0.8), problem, steps)
        for name, a in average.items():
            a += 0.2 * (found[name] - a)
            np.testing.assert_allclose(found[f"ema/{name}"], a, rtol=1e-5, atol=1e-6)


def test_states_have_the_names_that_checkpoints_go_by():
    problem = Quadratic()
    names = {name: set(run(O.NAMES[name](), problem, 1)) - set(problem.start) for name in O.NAMES}
    slots = lambda *which: {f"optimizer/{p}/{s}" for p in problem.start for s in which}  # noqa: E731
    assert names == {
        "sgd": set(),
        "adam": {"optimizer/step", *slots("m", "v")},
        "adamw": {"optimizer/step", *slots("m", "v")},
        "rmsprop": slots("v"),
        "adagrad": slots("sum"),
        "adadelta": slots("v", "steps"),
        "lion": slots("m"),
    }


# -- an optimizer of one's own, arguments ------------------------------------------------------------------------------


class Signed(O.Optimizer):
    name = "signed"

    def update(self, slots, w, g, rate, **scalars):
        slots["m"] = m = 0.5 * slots["m"] + g
        return w - rate * nv.sign(m)


def test_an_optimizer_of_ones_own():
    problem = Quadratic()
    found = run(Signed(RATE, clipvalue=1.0, ema_momentum=0.5), problem, 1)
    for name, g in problem.grads(problem.start).items():
        np.testing.assert_allclose(found[name], problem.start[name] - RATE * np.sign(g), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: O.get("adma"), "adam"),
        (lambda: O.get(3), "a name or an optimizer"),
        (lambda: O.Adam([1.0]), "given no parameters here"),
        (lambda: O.Adam(-1), "learning_rate must be"),
        (lambda: O.Adam(beta_1=1.0), "beta_1 must be [0, 1)"),
        (lambda: O.Adam(weight_decay="a"), "weight_decay must be a number"),
        (lambda: O.Adam(momentum=0.9), "unexpected keyword argument 'momentum'"),
        (lambda: O.SGD(nesterov=True), "momentum above 0"),
        (lambda: O.SGD(clipvalue=1, clipnorm=1), "one way of clipping"),
        (lambda: O.SGD(clipnorm=0), "clipnorm must be above 0"),
        (lambda: O.SGD(accumulate=0), "accumulate must be"),
    ],
)
def test_wrong_arguments_are_one_clear_error(make, part):
    with pytest.raises(nv.NervureError) as caught:
        make()
    assert part in str(caught.value) and "test_optimizers.py" in str(caught.value)


def test_names():
    assert isinstance(O.get("AdamW"), O.AdamW) and isinstance(O.get("RMSprop"), O.RMSprop)
    assert O.get(O.SGD).learning_rate == 0.01
    assert O.Adam(lr=0.5, eps=1e-3, gradient_accumulation_steps=4).accumulate == 4


# -- PyTorch -----------------------------------------------------------------------------------------------------------

TORCH = {
    "sgd momentum": ("SGD", {"momentum": 0.9}),
    "sgd nesterov": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": ("Adam", {}),
    "adam decay": ("Adam", {"weight_decay": 0.1}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "adamw": ("AdamW", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop centered": ("RMSprop", {"alpha": 0.9, "centered": True}),
    "adagrad": ("Adagrad", {}),
    "adagrad start": ("Adagrad", {"initial_accumulator_value": 0.1}),
    "adadelta": ("Adadelta", {}),
}


@pytest.mark.parametrize("case", TORCH)
def test_optimizers_are_pytorchs(case):
    torch = pytest.importorskip("torch")
    kind, options = TORCH[case]
    problem = Quadratic()
    params = {name: torch.tensor(w, requires_grad=True) for name, w in problem.start.items()}
    theirs = getattr(torch.optim, kind)(params.values(), lr=RATE, **options)
    for i in range(100):
        for name, g in problem.grads({name: p.detach().numpy() for name, p in params.items()}).items():
            params[name].grad = torch.tensor(g)
        theirs.step()
        if i in (0, 99):
            found = run(CASES[case][0], problem, i + 1)
            for name, p in params.items():
                np.testing.assert_allclose(found[name], p.detach().numpy(), rtol=1e-6 if i == 0 else 1e-4, atol=1e-6)
