"""Training beside PyTorch: the same first weights and the same batches for 100 steps, every network of
``training_nets`` with every optimizer that PyTorch has.

Distances are norm-wise, for each weight: |ours - theirs| / |theirs|. Where the rounding of float32 grows over the steps
until no two programs agree (a ReLU that flips, the sign of a gradient near zero under Adam), PyTorch in float64 is the
truth, and the distance of others to it the measure: PyTorch in float32 with one thread and with two, in its default
layout and in channels_last, and in float64 from first weights that are moved by a few roundings of float32. In
ResNet-8's first step the sign of one activation decides over half a percent of a batch norm's gradient (PyTorch in
channels_last with two threads sees the other sign than with one), so that ours is compiled without Winograd's method
here (``precision="exact"``). ``-s`` prints the figures.
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
CHAOS = 10.0  # ours may be so many times as far from float64 as the farthest of the others

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
    session = nv.compile(made, training=net.training(rule), precision="exact").session
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


def theirs(
    net: Net, rule: str, dtype: Any = torch.float32, threads: int = 1, shake: int = 0, channels_last: bool = False
) -> Run:
    """PyTorch's run; ``shake``: a seed by which the first weights are moved by a few roundings of float32."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    module, made = module_of(net).to(dtype), net.ours()
    if shake:
        torch.manual_seed(shake)
        for weight in module.parameters():
            weight.data *= 1 + 2.0**-20 * (2 * torch.rand_like(weight) - 1)
    optimizer, criterion = peers.optimizer(rule, module), peers.criterion(net.classes)
    layout = torch.channels_last if channels_last else torch.preserve_format
    module.to(memory_format=layout)
    fed = [(torch.from_numpy(x).to(dtype, memory_format=layout), torch.from_numpy(y)) for x, y in batches(net)]
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
    print(f"\n{name:12} {rule:9} first {early:.1e} last {late:.1e} loss {curves(mine, peer):.1e}", end="")
    assert peer.losses[-BATCHES:].mean() < peer.losses[:BATCHES].mean()  # something was learned
    if early > FIRST or late > LAST:
        print(f" ({where}, {which})", end="")
        judge(net, rule, mine, peer)


def judge(net: Net, rule: str, mine: Run, peer: Run) -> None:
    """Compares with PyTorch in float64."""
    truth, two = theirs(net, rule, torch.float64), theirs(net, rule, threads=2)
    others = [peer, two, *(theirs(net, rule, torch.float64, shake=seed) for seed in (1, 2, 3))]
    if net.images:
        others += [theirs(net, rule, channels_last=True, threads=n) for n in (1, 2)]
    start, end = (max(worst(getattr(r, t), getattr(truth, t))[0] for r in others) for t in ("first", "last"))
    mine_start, mine_end = worst(mine.first, truth.first)[0], worst(mine.last, truth.last)[0]
    print(f" | to float64: ours {mine_start:.1e} {mine_end:.1e}, others {start:.1e} {end:.1e}", end="")
    print(f"; PyTorch with one thread and two {worst(two.last, peer.last)[0]:.1e}", end="")
    assert mine_start <= max(FIRST, CHAOS * start)
    assert mine_end <= max(LAST, CHAOS * end)
    assert curves(mine, truth) <= max(LAST, CHAOS * max(curves(r, truth) for r in others))


def curves(one: Run, other: Run) -> float:
    """How far two loss curves are from each other, over the largest loss."""
    return float(np.abs(one.losses - other.losses).max() / other.losses.max())


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
