"""Training beside PyTorch: the same first weights and the same batches for 100 steps, every network of
``training_nets`` with every optimizer that PyTorch has.

Distances are norm-wise, for each weight: |ours - theirs| / |theirs|. Where the rounding of float32 grows over the steps
until no two programs agree (a ReLU that flips, the sign of a gradient near zero under Adam), the judge is PyTorch in
float64: ours may be no further from it than PyTorch's own float32 is, one thread or two. ``-s`` prints the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nervure as nv
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import training_theirs as peers  # noqa: E402
from training_nets import NETS, OPTIMIZERS, Net  # noqa: E402

STEPS, BATCHES = 100, 10
FIRST, LAST = 1e-5, 1e-3
CHAOS = 3.0  # ours may be so many times as far from float64 as PyTorch's float32

# Softmax does not change when the same number is added to all scores of a query: the true gradient of a key's bias is
# zero, what is computed is rounding, and optimizers that divide by its size turn that into full steps.
WITHOUT_GRADIENT = ("self_attn.key.bias",)

COMPARED = ("mlp", "lenet", "resnet8", "lstm", "gru", "transformer", "autoencoder")

Weights = dict[str, np.ndarray]


@dataclass
class Run:
    """Weights after the first and the last step, and the loss of each."""

    first: Weights
    last: Weights
    losses: np.ndarray


def batches(net: Net) -> list[tuple[np.ndarray, np.ndarray]]:
    return [net.data(net.batch, seed) for seed in range(BATCHES)]


def module_of(net: Net) -> Any:
    torch.manual_seed(7)
    return net.theirs().train()


def ours(net: Net, rule: str) -> Run:
    made = net.ours()
    session = nv.compile(made, training=net.training(rule)).session
    values, params, states = weights_of(made, module_of(net)), session.params(), session.states()
    session.set_params({n: v for n, v in values.items() if n in params})
    session.set_states({n: v for n, v in values.items() if n in states})
    facts = session.artifact.meta["training"]
    x, y = (np.array(a) for a in net.data(net.batch))
    feeds = {facts["inputs"][0]: x, "y": y, "learning_rate": np.float32(facts["learning_rate"])}
    step = session.binding(feeds, entry="train_step")
    fed, first, losses = batches(net), {}, []
    for i in range(STEPS):
        x[...], y[...] = fed[i % BATCHES]
        step()
        losses.append(float(step.outputs[0]))
        if i == 0:
            first = {**session.states(), **session.params()}
    return Run(first, {**session.states(), **session.params()}, np.array(losses))


def theirs(net: Net, rule: str, dtype: Any = torch.float32, threads: int = 1) -> Run:
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    module, made = module_of(net).to(dtype), net.ours()
    optimizer, criterion = peers.optimizer(rule, module), peers.criterion(net.classes)
    fed = [(torch.from_numpy(x).to(dtype), torch.from_numpy(y)) for x, y in batches(net)]
    first, losses = {}, []
    for i in range(STEPS):
        x, y = fed[i % BATCHES]
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(module(x), y.long() if net.classes else y.to(dtype))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if i == 0:
            first = weights_of(made, module)
    return Run(first, weights_of(made, module), np.array(losses))


def weights_of(made: Any, module: Any) -> Weights:
    """PyTorch's weights under our names."""
    names = [name for name, _ in made.named_weights()]
    return dict(zip(names, peers.weights(module), strict=True))


def distances(found: Weights, wanted: Weights) -> dict[str, float]:
    """The distance of each weight that is trained or a running statistic."""
    kept = {n: w.astype(np.float64) for n, w in wanted.items() if not n.endswith(WITHOUT_GRADIENT)}
    return {n: float(np.linalg.norm(found[n] - w) / np.linalg.norm(w)) for n, w in kept.items()}


def worst(found: Weights, wanted: Weights) -> tuple[float, str]:
    return max((d, n) for n, d in distances(found, wanted).items())


@pytest.mark.slow
@pytest.mark.parametrize("rule", OPTIMIZERS)
@pytest.mark.parametrize("name", COMPARED)
def test_hundred_steps(name: str, rule: str) -> None:
    net = NETS[name]
    mine, peer = ours(net, rule), theirs(net, rule)
    (early, where), (late, which) = worst(mine.first, peer.first), worst(mine.last, peer.last)
    curve = float(np.abs(mine.losses - peer.losses).max() / peer.losses.max())
    print(f"\n{name:12} {rule:9} first {early:.1e} last {late:.1e} loss {curve:.1e}", end="")
    judged = early > FIRST or late > LAST
    if not judged:
        assert peer.losses[-BATCHES:].mean() < peer.losses[:BATCHES].mean()  # something was learned
        return
    truth, two = theirs(net, rule, torch.float64), theirs(net, rule, threads=2)
    own = [worst(run.last, truth.last)[0] for run in (peer, two)]
    start = [worst(run.first, truth.first)[0] for run in (peer, two)]
    mine_early, mine_late = worst(mine.first, truth.first)[0], worst(mine.last, truth.last)[0]
    drift = worst(two.last, peer.last)[0]
    note = f" | to float64: ours {mine_early:.1e} {mine_late:.1e}, PyTorch's {max(start):.1e} {max(own):.1e}"
    print(f"{note}; PyTorch one thread and two {drift:.1e} ({where}, {which})", end="")
    assert mine_early <= max(FIRST, CHAOS * max(start))
    assert mine_late <= max(LAST, CHAOS * max(own))
    own_curve = max(float(np.abs(run.losses - truth.losses).max()) for run in (peer, two))
    assert np.abs(mine.losses - truth.losses).max() <= max(1e-3, CHAOS * own_curve)


def test_the_weights_are_the_same_numbers() -> None:
    """Both forward passes of every network agree before anything is trained."""
    for name in COMPARED:
        net = NETS[name]
        module, made = module_of(net).eval(), net.ours()
        made.load_state_dict(weights_of(made, module))
        x, _ = net.data(2)
        with torch.no_grad():
            wanted = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(made(x), wanted, rtol=1e-4, atol=1e-5)
